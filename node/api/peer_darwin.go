package api

import "golang.org/x/sys/unix"

// uidOf asks for the user of a socket's other end, as he was when it opened.
func uidOf(fd int) (int, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

// sameNamespace accepts all: this system has one set of user IDs.
func sameNamespace(int) error { return nil }
