//go:build unix

package service

import (
	"errors"
	"os"
)

// swap puts a file in the place of another, which may be running.
func swap(from, to string) error { return os.Rename(from, to) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
