package process

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"fleet/node/fleet"
	"fleet/node/private"
)

// WriteScript writes a new file, of mode 0700 and the owner's, that is to be
// run. No child is forked meanwhile: one that is would hold the file open for
// writing until its exec, and the kernel refuses to run such a file (ETXTBSY).
func WriteScript(dir *os.Root, name string, text []byte, owner Account) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return fmt.Errorf("write script: %w", err)
	}
	_, err = f.Write(text)
	if err == nil && !owner.Own {
		// By the open file: by its name, an owner of the directory could have
		// put another one in its place.
		err = owner.take(f.Chown)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write script: %w", err)
	}
	return nil
}

// MakeDir makes a new directory, of mode 0700 and the owner's.
func MakeDir(parent *os.Root, name string, owner Account) error {
	err := parent.Mkdir(name, 0o700)
	if err == nil && !owner.Own {
		err = owner.take(func(uid, gid int) error { return parent.Lchown(name, uid, gid) })
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// take makes the account the owner of what chown changes.
func (a Account) take(chown func(uid, gid int) error) error {
	uid, err := strconv.Atoi(a.UID)
	if err != nil {
		return fmt.Errorf("user ID of %.64q: %w", a.Name, err)
	}
	gid, err := strconv.Atoi(a.GID)
	if err != nil {
		return fmt.Errorf("group ID of %.64q: %w", a.Name, err)
	}
	return chown(uid, gid)
}

// CheckOwnDir refuses a directory in which somebody else could put what this
// process then runs: one that is a link, another's, or writable by others.
func CheckOwnDir(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("directory of commands: %w", err)
	}
	var wrong string
	switch {
	case !info.IsDir():
		wrong = "is not a directory"
	case !ownedByUs(info):
		wrong = "belongs to another user"
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0:
		wrong = fmt.Sprintf("can be written to by others (mode %o)", info.Mode().Perm())
	default:
		if wrong, err = private.Usurped(path); err != nil {
			return fmt.Errorf("directory of commands: %w", err)
		}
	}
	if wrong == "" {
		return nil
	}
	return fleet.Errorf(fleet.Denied, "%s %s: what commands run could be put there by others", path, wrong).
		WithHint("move it away; it is made anew at the next start")
}
