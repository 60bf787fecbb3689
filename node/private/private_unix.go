//go:build linux || darwin

package private

import (
	"fmt"
	"os"
)

// Loose says why others may read the file; "" when they may not.
func Loose(f *os.File) (why string, err error) {
	info, err := f.Stat()
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return "", err
	}
	return fmt.Sprintf("its mode %#o lets others read it", info.Mode().Perm()), nil
}

// Repair is what a person types to make a file private.
func Repair(path string) string { return "chmod 600 " + path }

// Restrict has nothing to do: a file has its mode from its making.
func Restrict(string) error { return nil }

// Usurped reports nothing here: callers look at owner and mode.
func Usurped(string) (why string, err error) { return "", nil }
