package api

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// uidOf asks for the user of a socket's other end, as he was when it opened.
func uidOf(fd int) (int, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

// sameNamespace accepts a socket's other end if its process is in the user
// namespace of this one. The kernel translates user IDs, but a container may map
// its root to ours: that is not who owns the host.
func sameNamespace(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if cred.Pid <= 0 {
		return errors.New("its process is not seen from here")
	}
	// A number is given again when its process has ended. Where the kernel can
	// say so (6.5 and later), the process that was looked at is the one that asks.
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		defer unix.Close(pidfd) //nolint:errcheck // nothing was written to it
	case errors.Is(err, unix.ENOPROTOOPT):
		pidfd = -1
	default:
		return err
	}
	own, err := os.Stat("/proc/self/ns/user")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without user namespaces
	}
	if err != nil {
		return err
	}
	its, err := os.Stat("/proc/" + strconv.Itoa(int(cred.Pid)) + "/ns/user")
	if err != nil {
		return fmt.Errorf("its user namespace: %w", err)
	}
	if pidfd >= 0 {
		if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
			return errors.New("its process has ended")
		}
	}
	if !os.SameFile(own, its) {
		return errors.New("it is in another user namespace")
	}
	return nil
}
