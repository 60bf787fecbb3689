package transport

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// Limits bound what others can hold open on the port. Zero fields take the
// defaults, which stand in DefaultLimits.
type Limits struct {
	// Total is the most accepted connections at once.
	Total int

	// Handshakes is the most connections in their handshake at once.
	Handshakes int

	// PerSource is the most connections of one address (a /64 for IPv6) that
	// have shown no certificate: those in their handshake, operators, joiners.
	PerSource int

	// PerPeer is the most connections of one identity, all protocols together.
	PerPeer int

	// PerPeerProto is the most connections of one identity by a protocol; a
	// protocol that is missing is limited by PerPeer alone.
	PerPeerProto map[Proto]int

	// PerProto is the most connections of a protocol; a protocol that is
	// missing has no limit of its own.
	PerProto map[Proto]int

	// Handshake is how long a handshake may take.
	Handshake time.Duration
}

// DefaultLimits are for a voter of a large fleet, to which every host keeps a
// connection.
func DefaultLimits() Limits {
	return Limits{
		Total:      16384,
		Handshakes: 512,
		PerSource:  256,
		PerPeer:    64,

		// A host keeps one reverse connection and opens the next when it thinks
		// the last one dead; the places beyond are for those that only this side
		// still believes in. All of them together leave a quarter of the port free.
		PerPeerProto: map[Proto]int{Gossip: 4, Reverse: 3},
		PerProto:     map[Proto]int{Raft: 64, Gossip: 256, API: 256, Join: 64, Reverse: 12288},
		Handshake:    5 * time.Second,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	for _, f := range []struct{ have, def *int }{
		{&l.Total, &d.Total}, {&l.Handshakes, &d.Handshakes}, {&l.PerSource, &d.PerSource}, {&l.PerPeer, &d.PerPeer},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	if l.PerPeerProto == nil {
		l.PerPeerProto = d.PerPeerProto
	}
	if l.PerProto == nil {
		l.PerProto = d.PerProto
	}
	if l.Handshake == 0 {
		l.Handshake = d.Handshake
	}
	return l
}

// limiter counts accepted connections.
type limiter struct {
	limits Limits

	mu          sync.Mutex // guards the rest
	total       int
	handshaking int
	sources     map[netip.Addr]int
	peers       map[peerKey]int
	protos      map[Proto]int
}

// peerKey is an identity, on one protocol or, with an empty proto, on all.
type peerKey struct {
	role  fleet.Role
	node  fleet.NodeID
	proto Proto
}

func newLimiter(l Limits) *limiter {
	return &limiter{
		limits: l, sources: make(map[netip.Addr]int), peers: make(map[peerKey]int), protos: make(map[Proto]int),
	}
}

func (l *limiter) counts() (open, handshaking int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, l.handshaking
}

// slot is the place that one connection takes. Its fields are guarded by the
// limiter's lock and say which counters it is in.
type slot struct {
	l           *limiter
	source      netip.Addr
	anonymous   bool // counted by source
	handshaking bool
	proto       Proto         // counted once set
	peer        identity.Peer // counted once set
	left        bool
}

// enter takes a place for a connection that was just accepted; nil if there is
// none.
func (l *limiter) enter(from net.Addr) *slot {
	source := SourceOf(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.limits.Total || l.handshaking >= l.limits.Handshakes || l.sources[source] >= l.limits.PerSource {
		return nil
	}
	l.total++
	l.handshaking++
	l.sources[source]++
	return &slot{l: l, source: source, anonymous: true, handshaking: true}
}

// identify moves a connection from its source's count to its peer's and its
// protocol's after the handshake; false if those are full. The place is kept
// either way, until leave.
func (s *slot) identify(p Proto, peer identity.Peer) bool {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.handshaking--
	s.handshaking = false
	if most, limited := s.l.limits.PerProto[p]; limited && s.l.protos[p] >= most {
		return false
	}
	if peer.Role != fleet.RoleNone {
		all, here := peerKeys(p, peer)
		most, limited := s.l.limits.PerPeerProto[p]
		if s.l.peers[all] >= s.l.limits.PerPeer || (limited && s.l.peers[here] >= most) {
			return false
		}
		s.l.peers[all]++
		s.l.peers[here]++
		s.peer = peer
		s.anonymous = false
		drop(s.l.sources, s.source)
	}
	s.l.protos[p]++
	s.proto = p
	return true
}

// peerKeys are the two counts that a peer's connection is in.
func peerKeys(p Proto, peer identity.Peer) (all, here peerKey) {
	all = peerKey{role: peer.Role, node: peer.Node}
	here = all
	here.proto = p
	return all, here
}

// leave gives the place back. It may be called more than once.
func (s *slot) leave() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.left {
		return
	}
	s.left = true
	s.l.total--
	if s.handshaking {
		s.l.handshaking--
	}
	if s.anonymous {
		drop(s.l.sources, s.source)
	}
	if s.proto != "" {
		drop(s.l.protos, s.proto)
	}
	if s.peer.Role != fleet.RoleNone {
		all, here := peerKeys(s.proto, s.peer)
		drop(s.l.peers, all)
		drop(s.l.peers, here)
	}
}

// drop lowers a count and forgets it at zero, so that the maps stay as small
// as what is open.
func drop[K comparable](counts map[K]int, key K) {
	if counts[key]--; counts[key] <= 0 {
		delete(counts, key)
	}
}

// SourceOf is the address that a stranger is counted by. IPv6 hands out whole
// /64s, so a single address there bounds nothing.
func SourceOf(from net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return netip.Addr{} // all unparsable sources share one count
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is4() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return p.Addr()
}
