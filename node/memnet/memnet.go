// Package memnet is an in-memory IP network for tests: hosts with addresses,
// packets that get lost, streams that stall, and cuts in one direction or both.
//
// It exists because a test under testing/synctest must not touch real sockets
// (they hold fake time still), and because the in-memory transports that come
// with the libraries block where a network drops. Invariants:
//
//   - Nothing here starts a goroutine. Whoever reads, writes, dials or accepts
//     waits on a channel or a timer, so a bubble's clock can move on.
//   - A packet is never waited for: it is dropped when it is lost, cut or when
//     the receiver's queue is full.
//   - A stream never loses bytes. A cut holds them back (as retransmission
//     does) until it heals, and a dial across a cut waits; nobody is told.
//   - Every queue is bounded: 256 KiB in flight per direction of a stream, 128
//     connections per listener, 4096 packets per socket.
//
// One lock guards the whole network. Finer locks would buy speed that tests do
// not need and cost the certainty that a cut takes effect at one instant.
package memnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	window      = 256 << 10       // bytes in flight per direction of a stream
	backlog     = 128             // connections that wait to be accepted
	packetQueue = 4096            // packets that wait to be read
	maxPacket   = 65507           // largest UDP payload over IPv4
	synTimeout  = 2 * time.Minute // how long an unanswered dial without deadline waits
	ephemeral   = 32768           // first port that is given to a socket that names none
)

// Network is a set of hosts that can reach each other. All methods may be
// called from any goroutine.
type Network struct {
	mu      sync.Mutex // guards everything below and every host, stream and socket
	rng     *rand.Rand
	hosts   map[netip.Addr]*Host
	conns   map[*conn]struct{}
	cuts    map[path]time.Time // cut directions and since when
	latency time.Duration
	loss    float64
	stats   Stats
	changed chan struct{} // closed and replaced when reachability or a listener changes
}

type path struct{ from, to netip.Addr }

// Stats counts traffic since the network was made.
type Stats struct {
	Packets     int // packets sent, dropped ones included
	PacketBytes int // their payload
	Dropped     int // packets that were lost, cut, unaddressed or met a full queue
	StreamBytes int // bytes written to streams
	Dials       int // streams opened
}

// New makes an empty network without latency or loss. The seed decides which
// packets are lost.
func New(seed uint64) *Network {
	return &Network{
		rng:     rand.New(rand.NewPCG(seed, seed)),
		hosts:   make(map[netip.Addr]*Host),
		conns:   make(map[*conn]struct{}),
		cuts:    make(map[path]time.Time),
		changed: make(chan struct{}),
	}
}

// Host is the host at an IP address, made when it is first asked for. It
// panics on anything but an IP address: that is a mistake in the test.
func (n *Network) Host(ip string) *Host {
	addr := netip.MustParseAddr(ip).Unmap()
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[addr]
	if h == nil {
		h = &Host{
			net: n, addr: addr, up: true, nextPort: ephemeral,
			listeners: make(map[uint16]*listener), sockets: make(map[uint16]*socket),
		}
		n.hosts[addr] = h
	}
	return h
}

// SetLatency sets how long every packet and every byte travels one way. It
// applies to what is sent from now on.
func (n *Network) SetLatency(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = d
}

// SetLoss sets the share of packets that are lost, 0 to 1. Streams lose nothing.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// Cut stops everything between two hosts, both ways.
func (n *Network) Cut(a, b *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cutLocked(a.addr, b.addr)
	n.cutLocked(b.addr, a.addr)
	n.wakeAllLocked()
}

// CutOneWay stops what one host sends to another; the way back stays open.
func (n *Network) CutOneWay(from, to *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cutLocked(from.addr, to.addr)
	n.wakeAllLocked()
}

// Isolate cuts a host off from all others that the network knows, both ways.
func (n *Network) Isolate(h *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for addr := range n.hosts {
		if addr != h.addr {
			n.cutLocked(h.addr, addr)
			n.cutLocked(addr, h.addr)
		}
	}
	n.wakeAllLocked()
}

// Partition cuts every host of one side off from every host of the other.
func (n *Network) Partition(left, right []*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range left {
		for _, r := range right {
			n.cutLocked(l.addr, r.addr)
			n.cutLocked(r.addr, l.addr)
		}
	}
	n.wakeAllLocked()
}

// Heal opens both ways between two hosts. What a stream held back flows on.
func (n *Network) Heal(a, b *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cuts, path{a.addr, b.addr})
	delete(n.cuts, path{b.addr, a.addr})
	n.wakeAllLocked()
}

// HealHost undoes every cut that touches a host.
func (n *Network) HealHost(h *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.cuts {
		if p.from == h.addr || p.to == h.addr {
			delete(n.cuts, p)
		}
	}
	n.wakeAllLocked()
}

// HealAll undoes every cut.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	n.wakeAllLocked()
}

// Stats is the traffic so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Close closes every listener, socket and stream, so that whoever waits on one
// returns. The network can be used again afterwards.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		h.killLocked(false)
	}
	n.wakeAllLocked()
}

func (n *Network) cutLocked(from, to netip.Addr) {
	p := path{from, to}
	if _, cut := n.cuts[p]; !cut {
		n.cuts[p] = time.Now()
	}
}

// openLocked reports whether what is sent now from one address reaches another.
func (n *Network) openLocked(from, to netip.Addr) bool {
	if _, cut := n.cuts[path{from, to}]; cut {
		return false
	}
	f, t := n.hosts[from], n.hosts[to]
	return f != nil && t != nil && f.up && t.up
}

func (n *Network) wakeAllLocked() {
	wakeLocked(&n.changed)
	for c := range n.conns {
		wakeLocked(&c.changed)
	}
}

// wakeLocked wakes everybody who waits on a channel and puts a new one there.
func wakeLocked(ch *chan struct{}) {
	close(*ch)
	*ch = make(chan struct{})
}

// waitLocked lets the lock go until changed is closed, done is closed or the
// earlier of two moments comes (zero: never), and takes it again.
func (n *Network) waitLocked(changed, done <-chan struct{}, moments ...time.Time) {
	var first time.Time
	for _, m := range moments {
		if !m.IsZero() && (first.IsZero() || m.Before(first)) {
			first = m
		}
	}
	n.mu.Unlock()
	defer n.mu.Lock()
	if first.IsZero() {
		select {
		case <-changed:
		case <-done:
		}
		return
	}
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	select {
	case <-changed:
	case <-done:
	case <-timer.C:
	}
}

func passed(deadline time.Time) bool {
	return !deadline.IsZero() && !time.Now().Before(deadline)
}

// parseAddr reads "ip:port"; the network has no names.
func parseAddr(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q is not ip:port: %w", s, err)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
