package memnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// socket is an open UDP port.
type socket struct {
	host *Host
	addr netip.AddrPort

	// Guarded by host.net.mu.
	queue         []packet
	closed        bool
	readDeadline  time.Time
	writeDeadline time.Time
	changed       chan struct{}
}

type packet struct {
	data []byte
	from netip.AddrPort
	due  time.Time
}

// ReadFrom waits for the next packet. What does not fit into b is cut off.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	n := s.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		if s.closed {
			return 0, nil, s.opError("read", net.ErrClosed)
		}
		if passed(s.readDeadline) {
			return 0, nil, s.opError("read", os.ErrDeadlineExceeded)
		}
		var due time.Time
		if len(s.queue) > 0 {
			p := s.queue[0]
			if !time.Now().Before(p.due) {
				s.queue = s.queue[1:]
				return copy(b, p.data), udpAddr(p.from), nil
			}
			due = p.due
		}
		n.waitLocked(s.changed, nil, s.readDeadline, due)
	}
}

// WriteTo sends a packet. It never waits and, as with UDP, does not tell
// whether the packet arrives.
func (s *socket) WriteTo(b []byte, addr net.Addr) (int, error) {
	n := s.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return 0, s.opError("write", net.ErrClosed)
	}
	if passed(s.writeDeadline) {
		return 0, s.opError("write", os.ErrDeadlineExceeded)
	}
	if len(b) > maxPacket {
		return 0, s.opError("write", syscall.EMSGSIZE)
	}
	if addr == nil {
		return 0, s.opError("write", syscall.EDESTADDRREQ)
	}
	to, err := parseAddr(addr.String())
	if err != nil {
		return 0, s.opError("write", fmt.Errorf("send packet: %w", err))
	}
	n.stats.Packets++
	n.stats.PacketBytes += len(b)
	if !n.deliverLocked(s.addr, to, b) {
		n.stats.Dropped++
	}
	return len(b), nil
}

func (n *Network) deliverLocked(from, to netip.AddrPort, b []byte) bool {
	if !n.openLocked(from.Addr(), to.Addr()) {
		return false
	}
	if n.loss > 0 && n.rng.Float64() < n.loss {
		return false
	}
	if sender := n.hosts[from.Addr()]; sender.firewall {
		sender.asked[to] = time.Now()
	}
	receiver := n.hosts[to.Addr()]
	if asked, ok := receiver.asked[from]; receiver.firewall && (!ok || time.Since(asked) > answerTime) {
		return false
	}
	s := receiver.sockets[to.Port()]
	if s == nil || len(s.queue) >= packetQueue {
		return false
	}
	s.queue = append(s.queue, packet{data: append([]byte(nil), b...), from: from, due: time.Now().Add(n.latency)})
	wakeLocked(&s.changed)
	return true
}

// Close closes the port; packets that were not read are gone.
func (s *socket) Close() error {
	n := s.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return s.opError("close", net.ErrClosed)
	}
	s.closeLocked()
	return nil
}

func (s *socket) closeLocked() {
	s.closed = true
	s.queue = nil
	delete(s.host.sockets, s.addr.Port())
	wakeLocked(&s.changed)
}

// LocalAddr is the address that was listened on.
func (s *socket) LocalAddr() net.Addr { return udpAddr(s.addr) }

// SetDeadline sets both deadlines; zero removes them.
func (s *socket) SetDeadline(t time.Time) error { return s.setDeadlines(t, true, true) }

// SetReadDeadline ends a ReadFrom that waits when t comes.
func (s *socket) SetReadDeadline(t time.Time) error { return s.setDeadlines(t, true, false) }

// SetWriteDeadline makes every WriteTo fail after t.
func (s *socket) SetWriteDeadline(t time.Time) error { return s.setDeadlines(t, false, true) }

func (s *socket) setDeadlines(t time.Time, read, write bool) error {
	s.host.net.mu.Lock()
	defer s.host.net.mu.Unlock()
	if s.closed {
		return s.opError("set", net.ErrClosed)
	}
	if read {
		s.readDeadline = t
	}
	if write {
		s.writeDeadline = t
	}
	wakeLocked(&s.changed)
	return nil
}

func (s *socket) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Addr: s.LocalAddr(), Err: err}
}
