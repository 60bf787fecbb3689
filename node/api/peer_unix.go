//go:build linux || darwin

package api

import (
	"errors"
	"net"
)

// peerUID asks the kernel whose process opened the other end.
func peerUID(c *net.UnixConn) (uid int, err error) {
	uid = -1 // not root's, whoever forgets the error
	err = ofSocket(c, func(fd int) (err error) { uid, err = uidOf(fd); return err })
	return uid, err
}

// peerIsOfThisHost accepts the other end if its user IDs mean what they mean
// here.
func peerIsOfThisHost(c *net.UnixConn) error { return ofSocket(c, sameNamespace) }

// ofSocket asks something of a socket.
func ofSocket(c *net.UnixConn, ask func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var asked error
	err = raw.Control(func(fd uintptr) { asked = ask(int(fd)) })
	return errors.Join(err, asked)
}
