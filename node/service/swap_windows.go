package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// asideSuffix names the program that was replaced.
const asideSuffix = ".old"

// swap puts a file in the place of another. A program that runs can be neither
// replaced nor removed on Windows, but renamed: it is put aside, and the next
// swap or removal takes it away. Between the two renames there is no file.
func swap(from, to string) error {
	err := os.Rename(from, to)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	aside := to + asideSuffix
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the program that was replaced the last time still runs: %w", err)
	}
	if err := os.Rename(to, aside); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Rename(aside, to))
	}
	return nil
}

// syncDir does nothing: Windows has no handle of a directory that it would
// write out, and NTFS has names in its own journal.
func syncDir(string) error { return nil }
