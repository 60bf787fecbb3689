package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"fleet/node/fleet"
)

// DefaultPort is a host's port unless another is said.
const DefaultPort = 7790

const lookupTimeout = 5 * time.Second

// Resolve turns what a person calls a host into addresses of its port: an IP
// address or a DNS name, with or without a port. What is stored are the
// addresses: a name that moves must not move whom a credential trusts.
func Resolve(ctx context.Context, text string) ([]string, error) {
	host, port := text, strconv.Itoa(DefaultPort)
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, p
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fleet.Errorf(fleet.Invalid, "%.80q: the port is not a number from 1 to 65535", text)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() {
			return nil, fleet.Errorf(fleet.Invalid, "%.80q names no host", text)
		}
		return []string{net.JoinHostPort(ip.Unmap().String(), port)}, nil
	}
	if err := fleet.CheckNodeName(host); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%.80q is neither a host name nor IP:PORT", text).
			WithHint("for example 10.0.0.5, 10.0.0.5:7790 or host1.example.net")
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			return nil, fleet.Errorf(fleet.NotFound, "the name %s leads to no address from here", host).
				WithHint("say its address: IP:PORT")
		}
		return nil, fleet.Errorf(fleet.Unavailable, "look up %s: %w", host, err).WithHint("say its address: IP:PORT")
	}
	var all []string
	for _, ip := range ips[:min(len(ips), maxQuorum)] {
		all = append(all, net.JoinHostPort(ip.Unmap().WithZone("").String(), port))
	}
	return all, nil
}

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
