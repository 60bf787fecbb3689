package journal

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// lock takes the file for this process. The lock is of one byte far behind its
// end, because what is locked here nobody else can read. Taken again by the same
// open file it would be refused, so it is given up first.
func lock(f *os.File) error {
	_ = unlock(f) // fails when it was not ours
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, lockedByte())
}

func unlock(f *os.File) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, lockedByte())
}

func lockedByte() *windows.Overlapped { return &windows.Overlapped{OffsetHigh: 1 << 30} }

// syncDir does nothing: a directory cannot be synced here.
func syncDir(string) error { return nil }

// openFile is os.OpenFile for reading and writing with the leave to rename the
// file, and to put another in its place, while it is open.
func openFile(path string, create bool) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	how := uint32(windows.OPEN_EXISTING)
	if create {
		how = windows.CREATE_ALWAYS
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, how, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// rename is os.Rename that may replace an open file, as Unix does: os.Root asks
// for that, os.Rename does not.
func rename(from, to string) error {
	dir, err := os.OpenRoot(filepath.Dir(from))
	if err != nil {
		return err
	}
	return errors.Join(dir.Rename(filepath.Base(from), filepath.Base(to)), dir.Close())
}
