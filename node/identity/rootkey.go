package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"fleet/node/fleet"
	"fleet/node/private"
	"fleet/node/wire"
)

// RootKeyFile is the file with a fleet's root key, without the key. It is made
// once, kept offline, and taken out to change the quorum.
type RootKeyFile struct {
	Path        string
	Fleet       fleet.ID
	Name        string // of the fleet
	Certificate []byte // of the root, DER
	Created     time.Time
	LastTrust   uint32 // highest version of trust.json that was signed; 0 before the first
	TrustShown  uint32 // highest version that the fleet has shown
	Sealed      bool   // a passphrase is needed for the key
}

// The file's shape: of key and sealed one is set.
type rootKeyFile struct {
	Version     int    `json:"version"`
	Fleet       string `json:"fleet"`
	Name        string `json:"name"`
	Certificate []byte `json:"certificate"`
	Created     string `json:"created"`                // RFC 3339: people read this file
	Trust       uint32 `json:"trust"`                  // last version that was signed
	TrustDigest string `json:"trust-digest,omitempty"` // SHA-256 of that file
	TrustShown  uint32 `json:"trust-shown,omitempty"`  // highest version that the fleet showed
	Key         []byte `json:"key,omitempty"`          // seed
	Sealed      string `json:"sealed,omitempty"`       // the seed, age-encrypted to a passphrase, armored
}

// scryptWork is the cost of guessing a passphrase once, as a power of two:
// about a second. Files that ask for much more are refused, since they would
// only stall the reader.
const (
	scryptWork    = 18
	scryptMaxWork = 20
)

// CreateRootKeyFile writes a new root-key file of mode 0600; it never
// overwrites. An empty passphrase leaves the key in the clear, which only a
// file system that keeps the mode may hold: elsewhere the file is not made.
func CreateRootKeyFile(path, name string, root PrivateKey, certDER, passphrase []byte, now time.Time) error {
	if root.IsZero() {
		return fmt.Errorf("save root key %s: there is no key", path)
	}
	id := fleet.IDOf(root.Public())
	if _, err := VerifyRoot(certDER, id); err != nil {
		return fmt.Errorf("save root key %s: %w", path, err)
	}
	if err := fleet.CheckName(name); err != nil {
		return err
	}
	file := &rootKeyFile{Version: 1, Fleet: string(id), Name: name, Certificate: certDER, Created: clock(now)}
	if len(passphrase) == 0 {
		file.Key = root.seed()
	} else {
		sealed, err := seal(root.seed(), passphrase)
		if err != nil {
			return fmt.Errorf("save root key %s: %w", path, err)
		}
		file.Sealed = sealed
	}
	b, err := encodeFile(file)
	if err != nil {
		return fmt.Errorf("save root key %s: %w", path, err)
	}
	if err := writeNew(path, b); err != nil {
		return saveError("root-key", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("save root key %s: %w", path, err)
	}
	why, err := private.Loose(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("save root key %s: %w", path, err)
	}
	if why != "" && file.Sealed == "" {
		refused := fleet.Errorf(fleet.Invalid, "%s lies on a file system that lets others read every file", path).
			WithHint("give a passphrase, or choose a path on a file system with permissions")
		return errors.Join(refused, os.Remove(path))
	}
	return nil
}

// OpenRootKeyFile reads a root-key file with its key. passphrase is asked only
// when the file is sealed; nil means that nobody can be asked. A wrong
// passphrase is of kind Denied, a damaged file Corrupt.
func OpenRootKeyFile(path string, passphrase func() ([]byte, error)) (*RootKeyFile, PrivateKey, error) {
	f, raw, err := readRootKeyFile(path)
	if err != nil {
		return nil, PrivateKey{}, err
	}
	seed := raw.Key
	if f.Sealed {
		if passphrase == nil {
			return nil, PrivateKey{}, fleet.Errorf(fleet.Denied, "root-key file %s is sealed with a passphrase", path)
		}
		phrase, err := passphrase()
		if err != nil {
			return nil, PrivateKey{}, fmt.Errorf("passphrase of %s: %w", path, err)
		}
		if seed, err = unseal(raw.Sealed, phrase); err != nil {
			return nil, PrivateKey{}, rootKeyError(path, err)
		}
	}
	if len(seed) != 32 {
		return nil, PrivateKey{}, fleet.Errorf(fleet.Corrupt, "root-key file %s: the key is damaged", path)
	}
	root := KeyFromSeed([32]byte(seed))
	if fleet.IDOf(root.Public()) != f.Fleet {
		return nil, PrivateKey{}, fleet.Errorf(fleet.Corrupt, "root-key file %s: its key is not that of fleet %s", path, f.Fleet)
	}
	return f, root, nil
}

// ReadRootKeyFile reads all of a root-key file but the key, and so needs no
// passphrase.
func ReadRootKeyFile(path string) (*RootKeyFile, error) {
	f, _, err := readRootKeyFile(path)
	return f, err
}

func readRootKeyFile(path string) (*RootKeyFile, *rootKeyFile, error) {
	// The mode is judged below: a sealed key may lie on a stick without modes.
	b, err := readPrivate(path, true)
	if err != nil {
		return nil, nil, err
	}
	var raw rootKeyFile
	if err := wire.StrictJSON(b, &raw); err != nil {
		return nil, nil, rootKeyError(path, err)
	}
	if raw.Version != 1 {
		return nil, nil, fleet.Errorf(fleet.Invalid, "root-key file %s of version %d: this release knows version 1", path, raw.Version)
	}
	if (len(raw.Key) == 0) == (raw.Sealed == "") {
		return nil, nil, fleet.Errorf(fleet.Corrupt, "root-key file %s does not hold exactly one key", path)
	}
	if raw.Sealed == "" {
		if _, err := readPrivate(path, false); err != nil {
			return nil, nil, err
		}
	}
	created, err := time.Parse(time.RFC3339, raw.Created)
	if err != nil {
		return nil, nil, rootKeyError(path, err)
	}
	if err := fleet.CheckName(raw.Name); err != nil {
		return nil, nil, rootKeyError(path, err)
	}
	if _, err := VerifyRoot(raw.Certificate, fleet.ID(raw.Fleet)); err != nil {
		return nil, nil, rootKeyError(path, err)
	}
	return &RootKeyFile{
		Path: path, Fleet: fleet.ID(raw.Fleet), Name: raw.Name, Certificate: raw.Certificate,
		Created: created, LastTrust: raw.Trust, TrustShown: raw.TrustShown, Sealed: raw.Sealed != "",
	}, &raw, nil
}

func rootKeyError(path string, err error) error {
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return fleet.Errorf(fleet.Denied, "root-key file %s: the passphrase is wrong", path)
	}
	return fleet.Errorf(fleet.Corrupt, "root-key file %s: %w", path, err)
}

func seal(secret, passphrase []byte) (string, error) {
	to, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return "", err
	}
	to.SetWorkFactor(scryptWork)
	var out strings.Builder
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, to)
	if err != nil {
		return "", err
	}
	_, err = w.Write(secret)
	if err := errors.Join(err, w.Close(), armored.Close()); err != nil {
		return "", err
	}
	return out.String(), nil
}

func unseal(sealed string, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("the passphrase is empty")
	}
	from, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return nil, err
	}
	from.SetMaxWorkFactor(scryptMaxWork)
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(sealed)), from)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, 64))
}

// encodeFile writes JSON for a file that people may open.
func encodeFile(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
