package process

import (
	"fmt"
	"os"
	"syscall"
)

// WriteScript writes a new file that is to be run. No child is forked
// meanwhile: one that is would hold the file open for writing until its exec,
// and the kernel refuses to run such a file (ETXTBSY).
func WriteScript(dir *os.Root, name string, text []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write script: %w", err)
	}
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write script: %w", err)
	}
	return nil
}
