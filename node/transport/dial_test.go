package transport

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"fleet/node/fleet"
)

// TestConnectErrorNamesTheAddressOnce: what the system says of a dial has the
// address in it too.
func TestConnectErrorNamesTheAddressOnce(t *testing.T) {
	const addr = "10.0.0.9:7790"
	to := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 7790}
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, err := range []error{refused, &net.OpError{Op: "dial", Net: "tcp", Addr: to, Err: os.ErrDeadlineExceeded}, errors.New("cut")} {
		got := connectError(addr, err)
		if n := strings.Count(got.Error(), addr); n != 1 || fleet.KindOf(got) != fleet.Unavailable {
			t.Errorf("%q names the address %d times", got, n)
		}
	}
	if !errors.Is(connectError(addr, refused), syscall.ECONNREFUSED) {
		t.Error("what the system said is lost")
	}
}
