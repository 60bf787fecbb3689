//go:build linux || darwin

package api

import (
	"errors"
	"net"
)

// peerUID asks the kernel whose process opened the other end.
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	uid = -1 // not root's, whoever forgets the error
	var asked error
	err = raw.Control(func(fd uintptr) { uid, asked = uidOf(int(fd)) })
	return uid, errors.Join(err, asked)
}
