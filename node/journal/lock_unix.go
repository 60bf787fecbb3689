//go:build unix

package journal

import (
	"os"
	"syscall"
)

// lock takes the file for this process, or fails at once. The lock goes with
// the open file: neither a child nor a crash keeps it.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}
