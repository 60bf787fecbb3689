package api

import "golang.org/x/sys/unix"

// uidOf asks for the user of a socket's other end, as he was when it opened.
func uidOf(fd int) (int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}
