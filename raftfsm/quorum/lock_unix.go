//go:build linux || darwin

package quorum

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// checkClosed refuses a raft.db that another process has open, with the lock
// that bbolt takes: what that process is writing would look like damage.
func checkClosed(path string) (err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // checkBolt says so
	}
	if err != nil {
		return fmt.Errorf("open quorum store: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }() // gives the lock back
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return errInUse(filepath.Dir(path))
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}
