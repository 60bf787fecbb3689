package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"fleet/node/fleet"
	"fleet/node/private"
)

// maxPrivateFile is the largest file with a key in it that is read, in bytes.
const maxPrivateFile = 64 << 10

const pemType = "PRIVATE KEY" // PKCS#8

// SaveKey writes k to a new file that only its owner may read: PKCS#8 in PEM,
// mode 0600, on disk when SaveKey returns. It never overwrites: a key that is
// replaced by accident is an identity lost. The error is then of kind Conflict.
func SaveKey(path string, k PrivateKey) error {
	if k.IsZero() {
		return fmt.Errorf("save key %s: there is no key", path)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.key())
	if err != nil {
		return fmt.Errorf("save key %s: %w", path, err)
	}
	if err := writeNew(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})); err != nil {
		return saveError("key", path, err)
	}
	return nil
}

// LoadKey reads what SaveKey wrote. A file that others may read is refused
// with kind Invalid, a damaged one with Corrupt; os.ErrNotExist stays visible.
func LoadKey(path string) (PrivateKey, error) {
	b, err := readPrivate(path, false)
	if err != nil {
		return PrivateKey{}, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return PrivateKey{}, fleet.Errorf(fleet.Corrupt, "key file %s is not one PKCS#8 PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		// The parser's text may quote what it read: it is not passed on.
		return PrivateKey{}, fleet.Errorf(fleet.Corrupt, "key file %s is damaged", path)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return PrivateKey{}, fleet.Errorf(fleet.Corrupt, "key file %s does not hold an Ed25519 key", path)
	}
	return privateKey(key), nil
}

// readPrivate reads a file that holds a secret. Unless loose is set, it
// refuses a file that its group or others may read: whoever could read it has
// the key already.
func readPrivate(path string, loose bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read private file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read private file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fleet.Errorf(fleet.Invalid, "%s is not a regular file", path)
	}
	if !loose {
		why, err := private.Loose(f)
		if err != nil {
			return nil, fmt.Errorf("read private file: %w", err)
		}
		if why != "" {
			return nil, fleet.Errorf(fleet.Invalid, "%s holds a secret, but %s", path, why).
				WithHint("if nobody else has read it, run: %s", private.Repair(path))
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPrivateFile+1))
	if err != nil {
		return nil, fmt.Errorf("read private file: %w", err)
	}
	if len(b) > maxPrivateFile {
		return nil, fleet.Errorf(fleet.TooLarge, "%s is larger than %d bytes", path, maxPrivateFile)
	}
	return b, nil
}

// writeNew writes a file of mode 0600 that did not exist. After a crash there
// is either the whole file or none.
func writeNew(path string, data []byte) error {
	tmp, err := writeTemp(path, data)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// A hard link, unlike a rename, fails when the name is taken.
	err = os.Link(tmp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without links (vfat on a stick): the name is reserved
		// by O_EXCL and the content follows in place.
		err = writeInPlace(path, data)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeInPlace(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = private.Restrict(path); err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// replace puts data in the place of the file at path, atomically.
func replace(path string, data []byte) error {
	tmp, err := writeTemp(path, data)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

// writeTemp writes data to a new file of mode 0600 beside path and syncs it.
func writeTemp(path string, data []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return "", err
	}
	if err = private.Restrict(f.Name()); err == nil { // before there is anything to read
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// syncDir makes a new name in dir survive a crash.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// saveError says what was not saved; an existing file gets its own words.
func saveError(what, path string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fleet.Errorf(fleet.Conflict, "%s file %s exists already and is not overwritten", what, path).
			WithHint("choose another path, or move the old file away if it is no longer needed")
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fleet.Errorf(fleet.Unavailable, "%s file %s is not written: the disk is full", what, path).
			WithHint("free some space there and repeat the command; a join that is repeated is counted once")
	}
	// The error names a temporary file beside it, which says nothing to anybody.
	if dir := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) {
		return fleet.Errorf(fleet.NotFound, "%s file %s is not written: there is no directory %s", what, path, dir).
			WithHint("make it, or mount the medium that it is on")
	}
	return fmt.Errorf("save %s %s: %w", what, path, err)
}
