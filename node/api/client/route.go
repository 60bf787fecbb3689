package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// LocalAddress is the address of this host on the route to target
// ("host:port"): what target would see. Nothing is sent.
func LocalAddress(ctx context.Context, target string) (netip.Addr, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", target)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %s: %w", target, unwrapURL(err))
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, fmt.Errorf("route to %s: local address of type %T", target, conn.LocalAddr())
	}
	addr := local.AddrPort().Addr().Unmap().WithZone("")
	if addr.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("route to %s: no local address", target)
	}
	return addr, nil
}
