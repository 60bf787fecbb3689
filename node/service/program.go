package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fleet/node/fleet"
)

// program is the place of the program that a service starts.
type program struct {
	path string // of the file
	name string // that people are told; it is the path outside tests
	run  Run
}

// mustCopy decides whether the running program is to be copied to its place.
func (p program) mustCopy(ctx context.Context, spec Spec) (bool, error) {
	there, err := os.Stat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the installed program: %w", err)
	}
	mine, err := os.Stat(spec.Binary)
	if err != nil {
		return false, fmt.Errorf("look at this program: %w", err)
	}
	if os.SameFile(there, mine) {
		return false, nil
	}
	same, err := sameContent(spec.Binary, p.path)
	if err != nil || same {
		return false, err
	}
	if spec.Force {
		return true, nil
	}
	other := p.installedVersion(ctx)
	newer, known := NewerVersion(other, spec.Version)
	if !known { // builds without a release number: by their age
		newer = there.ModTime().After(mine.ModTime())
	}
	if newer {
		return false, fleet.Errorf(fleet.Conflict, "%s is another fleet, and newer: %s; this one is %s", p.name,
			firstOf(other, "of an unknown version"), spec.Version).
			WithHint("use that one: %s ...; or replace it: --force", p.name)
	}
	return true, nil
}

// installedVersion asks the installed program; "" when it does not answer.
func (p program) installedVersion(ctx context.Context) string {
	out, err := p.run(ctx, p.path, "version", "-o", "json")
	if err != nil {
		return ""
	}
	var v struct{ Version string }
	if json.Unmarshal(out, &v) != nil || len(v.Version) > 64 {
		return ""
	}
	return v.Version
}

// NewerVersion compares release numbers, "1.2.3" or "v1.2.3-rc.1"; known is
// false unless both are such.
func NewerVersion(a, b string) (newer, known bool) {
	x, okA := release(a)
	y, okB := release(b)
	if !okA || !okB {
		return false, false
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] > y[i], true
		}
	}
	return false, true
}

// release reads a release number; its last part is 0 for what comes before the
// release itself.
func release(v string) (r [4]int, ok bool) {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "v"), "+")
	v, _, early := strings.Cut(v, "-")
	parts := strings.Split(v, ".")
	if len(parts) != 3 {
		return r, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			return r, false
		}
		r[i] = int(n)
	}
	if !early {
		r[3] = 1
	}
	return r, true
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func sameContent(a, b string) (bool, error) {
	x, err := digest(a)
	if err != nil {
		return false, err
	}
	y, err := digest(b)
	return bytes.Equal(x, y), err
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), errors.Join(err, f.Close())
}

// copyProgram puts the program in its place, with the age of the original.
func copyProgram(from, to string) (err error) {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return replaceFile(to, f, 0o755, info)
}

// replaceFile writes a file so that at every moment the old one is there or the
// new. With like the new one has its age.
func replaceFile(path string, content io.Reader, mode fs.FileMode, like fs.FileInfo) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".fleet-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// The first error says more.
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := io.Copy(tmp, content); err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if like != nil {
		if err := os.Chtimes(tmp.Name(), like.ModTime(), like.ModTime()); err != nil {
			return err
		}
	}
	if err := swap(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}
