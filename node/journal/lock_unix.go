//go:build unix

package journal

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// lock takes the file for this process, or fails after lockPatience. The lock
// goes with the open file: neither a program that was started nor a crash keeps
// it. But a child has the file from its fork to its exec, also of an agent that
// was killed meanwhile: hence the patience.
func lock(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
		<-time.After(lockPatience / 20)
	}
}

// lockPatience is longer than a fork takes to become an exec.
const lockPatience = 500 * time.Millisecond

// unlock gives the file up although a child may have it still.
func unlock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

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

// openFile opens a file for reading and writing; with create a new, empty one.
func openFile(path string, create bool) (*os.File, error) {
	if create {
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

func rename(from, to string) error { return os.Rename(from, to) }
