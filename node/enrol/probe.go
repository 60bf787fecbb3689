package enrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"fleet/node/fleet"
	"fleet/node/transport"
)

// A host that cannot join, or that others cannot reach, asks one that runs to
// try the way back. Whoever asks is not enrolled, so the answer must be of no
// use to anybody else: the host connects to the address that the question came
// from and to no other, says nothing on that connection, and tries few at once.
const (
	callBackTime = 3 * time.Second
	maxCallBacks = 8
	minCallBack  = 1024 // ports below belong to other programs' services

	callBackOpen    = "open"
	callBackRefused = "refused"
	callBackSilent  = "silent"
	callBackBusy    = "busy"
)

// callBacks is what is being tried now, by source: an address, or a /64 of IPv6.
type callBacks struct {
	mu    sync.Mutex // guards tried
	tried map[netip.Addr]bool
}

// enter reports whether a source may be tried now; leave ends that.
func (c *callBacks) enter(source netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tried[source] || len(c.tried) >= maxCallBacks {
		return false
	}
	if c.tried == nil {
		c.tried = map[netip.Addr]bool{}
	}
	c.tried[source] = true
	return true
}

func (c *callBacks) leave(source netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tried, source)
}

// callBack tries a port of the address that a question came from.
func (s *Server) callBack(ctx context.Context, from net.Addr, port uint16) string {
	host, _, err := net.SplitHostPort(from.String())
	source := transport.SourceOf(from)
	if err != nil || port < minCallBack || s.cfg.Reaches == nil || !s.callBacks.enter(source) {
		return callBackBusy
	}
	defer s.callBacks.leave(source)
	ctx, cancel := context.WithTimeout(ctx, callBackTime)
	defer cancel()
	err = s.cfg.Reaches(ctx, net.JoinHostPort(host, strconv.Itoa(int(port))))
	switch {
	case err == nil:
		return callBackOpen
	case errors.Is(err, syscall.ECONNREFUSED):
		return callBackRefused
	}
	return callBackSilent
}

// ProbeOptions says whom Probe asks.
type ProbeOptions struct {
	Address  string // "host:port" of an enrolled host
	CallBack uint16 // the port of this host that the other is to try; 0: none
	Now      func() time.Time
	Dial     transport.DialFunc // nil: the system's
}

// ProbeResult is what an enrolled host answered. Nobody vouches for it: it may
// be any fleet's.
type ProbeResult struct {
	Fleet    fleet.ID
	Root     fleet.PublicKey // of the fleet that answered
	Node     fleet.NodeID
	Role     fleet.Role
	Observed string        // the address that it sees this host at
	Offset   time.Duration // of its clock from this host's
	Took     time.Duration // until it had proved who it is; what it tried for this host comes after

	// CallBack is nil when the host could connect to the port; of kind
	// Unavailable when it could not, of kind Throttled when it did not try.
	CallBack error
}

// Probe asks an enrolled host who it is, what time it is, and whether it can
// connect back to this one.
func Probe(ctx context.Context, o ProbeOptions) (*ProbeResult, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	began := o.Now()
	conn, root, err := transport.DialAny(ctx, o.Dial, o.Address, o.Now)
	if err != nil {
		return nil, err
	}
	answered := o.Now().Sub(began)
	defer conn.Close() //nolint:errcheck // the answer was read or the error says more
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	sent := o.Now()
	if err := writeMessage(conn, &hello{Version: 1, CallBack: o.CallBack}); err != nil {
		return nil, fmt.Errorf("ask %s: %w", o.Address, err)
	}
	var a answer
	if err := readMessage(conn, maxAnswer, &a); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", o.Address, err)
	}
	took := o.Now().Sub(sent)
	r := &ProbeResult{
		Fleet: conn.Peer.Fleet, Root: root, Node: conn.Peer.Node, Role: conn.Peer.Role, Observed: a.Observed,
		Took: answered, Offset: time.Unix(0, a.Time).Sub(sent.Round(0)) - took,
	}
	if o.CallBack == 0 {
		return r, nil
	}
	switch a.CallBack {
	case callBackOpen:
	case callBackRefused:
		r.CallBack = fleet.Errorf(fleet.Unavailable, "the connection was refused")
	case callBackSilent:
		r.CallBack = fleet.Errorf(fleet.Unavailable, "there was no answer in %s", callBackTime)
	default:
		r.CallBack = fleet.Errorf(fleet.Throttled, "it did not try")
	}
	return r, nil
}
