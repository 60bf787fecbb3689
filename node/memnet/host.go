package memnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// Host is one address of the network, with its ports.
type Host struct {
	net  *Network
	addr netip.Addr

	// Guarded by net.mu.
	up        bool
	nextPort  uint16
	listeners map[uint16]*listener
	sockets   map[uint16]*socket
	silenced  []*conn                      // ends whose peers were not told that this host went down
	firewall  bool                         // see Firewall
	asked     map[netip.AddrPort]time.Time // behind a firewall: whom it sent packets to, and when last
}

// answerTime is how long a firewall lets packets in from where one was sent to.
const answerTime = 30 * time.Second

// Firewall puts the host behind a firewall that drops what others begin, or
// takes it away: they may not dial it, and a packet gets in only as an answer,
// from where the host sent one less than 30 s ago. What is open stays open.
func (h *Host) Firewall(on bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.firewall, h.asked = on, map[netip.AddrPort]time.Time{}
	h.net.wakeAllLocked()
}

// Addr is the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Listen opens a TCP port; 0 chooses a free one.
func (h *Host) Listen(network string, port uint16) (net.Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	port, err := takePortLocked(h, port, func(p uint16) bool { return h.listeners[p] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: tcpAddr(h.addr, port), Err: err}
	}
	l := &listener{host: h, addr: netip.AddrPortFrom(h.addr, port), changed: make(chan struct{})}
	h.listeners[port] = l
	wakeLocked(&h.net.changed)
	return l, nil
}

// ListenPacket opens a UDP port; 0 chooses a free one.
func (h *Host) ListenPacket(port uint16) (net.PacketConn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	port, err := takePortLocked(h, port, func(p uint16) bool { return h.sockets[p] != nil })
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: udpAddr(netip.AddrPortFrom(h.addr, port)), Err: err}
	}
	s := &socket{host: h, addr: netip.AddrPortFrom(h.addr, port), changed: make(chan struct{})}
	h.sockets[port] = s
	return s, nil
}

func takePortLocked(h *Host, port uint16, used func(uint16) bool) (uint16, error) {
	if !h.up {
		return port, syscall.ENETDOWN
	}
	if port != 0 {
		if used(port) {
			return port, syscall.EADDRINUSE
		}
		return port, nil
	}
	for range 1 << 15 {
		p := h.portLocked()
		if !used(p) {
			return p, nil
		}
	}
	return 0, syscall.EADDRINUSE
}

// portLocked is the next ephemeral port. Dialled streams may share one with
// each other: nothing looks them up by port.
func (h *Host) portLocked() uint16 {
	p := h.nextPort
	h.nextPort++
	if h.nextPort < ephemeral {
		h.nextPort = ephemeral
	}
	return p
}

// DialContext opens a stream to "ip:port". A closed port answers "connection
// refused"; an address that is cut off, down or nobody's answers nothing, and
// the dial waits for ctx, for two minutes or for the way to open.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := parseAddr(addr)
	if err == nil {
		var c *conn
		if c, err = h.dial(ctx, to); err == nil {
			return c, nil
		}
	}
	return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
}

func (h *Host) dial(ctx context.Context, to netip.AddrPort) (*conn, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	giveUp := time.Now().Add(synTimeout)
	ready := time.Now().Add(2 * n.latency) // SYN and its answer
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !h.up {
			return nil, syscall.ENETUNREACH
		}
		if passed(giveUp) {
			return nil, os.ErrDeadlineExceeded
		}
		var wake time.Time
		switch target := n.hosts[to.Addr()]; {
		case !n.openLocked(h.addr, to.Addr()) || !n.openLocked(to.Addr(), h.addr) || target.firewall && target != h:
		case time.Now().Before(ready):
			wake = ready
		case target.listeners[to.Port()] == nil:
			return nil, syscall.ECONNREFUSED
		default:
			if c := n.connectLocked(h, target.listeners[to.Port()]); c != nil {
				return c, nil
			}
		}
		n.waitLocked(n.changed, ctx.Done(), giveUp, wake)
	}
}

// connectLocked makes both ends of a stream; nil if the listener's queue is full.
func (n *Network) connectLocked(from *Host, l *listener) *conn {
	if len(l.queue) >= backlog {
		return nil
	}
	client := &conn{net: n, host: from, local: netip.AddrPortFrom(from.addr, from.portLocked()), remote: l.addr,
		changed: make(chan struct{})}
	server := &conn{net: n, host: l.host, local: l.addr, remote: client.local, changed: make(chan struct{})}
	client.peer, server.peer = server, client
	n.conns[client], n.conns[server] = struct{}{}, struct{}{}
	n.stats.Dials++
	l.queue = append(l.queue, server)
	wakeLocked(&l.changed)
	return client
}

// Down cuts the power: everything the host had open fails at once on its own
// side, and the others hear nothing until it is up again.
func (h *Host) Down() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if !h.up {
		return
	}
	h.killLocked(true)
	h.up = false
	h.net.wakeAllLocked()
}

// Up turns the power on. The streams of before are reset at their other ends.
func (h *Host) Up() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.up {
		return
	}
	h.up = true
	for _, c := range h.silenced {
		c.peer.failLocked(syscall.ECONNRESET)
	}
	h.silenced = nil
	h.net.wakeAllLocked()
}

// Kill ends the process on the host and leaves the host up: its ports close
// and its streams are reset at both ends.
func (h *Host) Kill() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.killLocked(false)
	h.net.wakeAllLocked()
}

// killLocked closes all that the host has open. Silent: the other ends of its
// streams are told only when it comes up.
func (h *Host) killLocked(silent bool) {
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for _, s := range h.sockets {
		s.closeLocked()
	}
	for c := range h.net.conns {
		if c.host != h {
			continue
		}
		reach := c.pathOpenLocked()
		c.failLocked(net.ErrClosed)
		switch {
		case silent:
			c.silent = true
			h.silenced = append(h.silenced, c)
		case reach: // else the peer learns of it when it writes after the heal
			c.peer.failLocked(syscall.ECONNRESET)
		}
	}
}

// listener is an open TCP port.
type listener struct {
	host *Host
	addr netip.AddrPort

	// Guarded by host.net.mu.
	queue   []*conn
	closed  bool
	changed chan struct{}
}

// Accept waits for the next stream.
func (l *listener) Accept() (net.Conn, error) {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		}
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue = l.queue[1:]
			wakeLocked(&n.changed) // a dial may wait for a place in the queue
			return c, nil
		}
		n.waitLocked(l.changed, nil)
	}
}

// Close closes the port and resets what was not accepted.
func (l *listener) Close() error {
	n := l.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.closeLocked()
	wakeLocked(&n.changed)
	return nil
}

func (l *listener) closeLocked() {
	l.closed = true
	delete(l.host.listeners, l.addr.Port())
	for _, c := range l.queue {
		c.failLocked(net.ErrClosed)
		c.peer.failLocked(syscall.ECONNRESET)
	}
	l.queue = nil
	wakeLocked(&l.changed)
}

// Addr is the address that was listened on.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

func tcpAddr(addr netip.Addr, port uint16) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, port))
}

func udpAddr(addr netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(addr) }
