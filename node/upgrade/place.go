package upgrade

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"fleet/node/fleet"
	"fleet/node/service"
)

// Names beside the program.
const (
	newSuffix  = ".new"
	backSuffix = ".back"
)

// place is where the service's program lies.
type place struct{ program string }

func (p place) previous() string { return p.program + service.PreviousSuffix }
func (p place) next() string     { return p.program + newSuffix }

// diskError is an error of this host, which no other source of the program mends.
type diskError struct{ error }

func (d diskError) Unwrap() error { return d.error }

// OfThisHost reports whether an error is of the disk here, and not of whoever
// sent the program.
func OfThisHost(err error) bool {
	var d diskError
	return errors.As(err, &d)
}

// plain says what is wrong with the disk, for people.
func (p place) plain(what string, err error) error {
	if err == nil {
		return nil
	}
	return diskError{p.said(what, err)}
}

func (p place) said(what string, err error) error {
	dir := filepath.Dir(p.program)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fleet.Errorf(fleet.TooLarge, "the disk of %s is full: %s: %w", dir, what, err).
			WithHint("a program needs its size twice there")
	case errors.Is(err, syscall.EROFS):
		return fleet.Errorf(fleet.Unavailable, "%s is read-only: %s: %w", dir, what, err).
			WithHint("replace the program in the image of the host")
	case errors.Is(err, fs.ErrPermission):
		return fleet.Errorf(fleet.Denied, "the agent may not write to %s: %s: %w", dir, what, err).WithHint("it has to run as root")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// write takes the new program and puts it on disk, beside the old one. What is
// not of the digest is removed again.
func (p place) write(want Program, from io.Reader) (err error) {
	f, err := os.OpenFile(p.next(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return p.plain("make the new program", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.discard())
		}
	}()
	w := &hashed{w: f, left: want.Size, sum: sha256.New()}
	_, err = io.Copy(w, from)
	if w.err != nil {
		err = p.plain("write the new program", w.err)
	}
	if got := fleet.Digest(w.sum.Sum(nil)); err == nil && (w.left != 0 || got != want.Digest) {
		err = fleet.Errorf(fleet.Corrupt, "what came is not the program of the order: its SHA-256 is %s, and it is %d bytes short", got, w.left)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return p.plain("write the new program", errors.Join(f.Chmod(0o755), f.Sync(), f.Close()))
}

// hashed counts and hashes what goes to a file, and takes no more than is due.
type hashed struct {
	w    *os.File
	left int64
	sum  hash.Hash
	err  error // the first of the disk
}

func (h *hashed) Write(b []byte) (int, error) {
	if int64(len(b)) > h.left {
		return 0, fleet.Errorf(fleet.TooLarge, "more bytes came than the program has")
	}
	n, err := h.w.Write(b)
	_, _ = h.sum.Write(b[:n]) // a hash never fails
	h.left -= int64(n)
	h.err = errors.Join(h.err, err)
	return n, err
}

// discard removes a new program that is not to be used.
func (p place) discard() error {
	if err := os.Remove(p.next()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.plain("remove the new program", err)
	}
	return nil
}

// keep makes the program that is in its place the previous one as well.
func (p place) keep() error { return p.double(p.program, p.previous()) }

// exchange puts the new program into its place.
func (p place) exchange() error {
	if err := os.Rename(p.next(), p.program); err != nil {
		return p.plain("put the new program into its place", err)
	}
	return p.plain("write the directory", syncDir(filepath.Dir(p.program)))
}

// putBack puts the previous program into its place again.
func (p place) putBack() error { return p.double(p.previous(), p.program) }

// double gives a file a second name, or where the file system has none, a copy;
// the file of the second name is there whole at every moment, the old or the new.
func (p place) double(from, to string) error {
	tmp := to + backSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.plain("remove "+tmp, err)
	}
	if err := os.Link(from, tmp); err != nil {
		if err := copyFile(from, tmp); err != nil {
			return p.plain("copy "+from, errors.Join(err, os.Remove(tmp)))
		}
	}
	if err := os.Rename(tmp, to); err != nil {
		return p.plain("put "+to+" into its place", err)
	}
	// Of two names of one file a rename leaves both.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.plain("remove "+tmp, err)
	}
	return p.plain("write the directory", syncDir(filepath.Dir(to)))
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Chmod(0o755), dst.Sync(), dst.Close())
}

// DigestOf is the SHA-256 of a file.
func DigestOf(path string) (_ fleet.Digest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return fleet.Digest{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fleet.Digest(h.Sum(nil)), err
}
