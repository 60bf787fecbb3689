package gossip

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
)

// What is read of one source in a second; more is dropped before it is opened.
// An honest member sends three packets in each gossip interval to somebody, and
// a few probes, so that a hundred to one member are far more than it ever sends.
// Members are told from strangers by their signed addresses: a member that
// floods, or whoever pretends to be it, uses up its own share, and all others,
// among them members behind a translator of addresses, have one share together.
const (
	packetsPerMember    = 128
	packetsPerStrangers = 256
)

// budget counts the packets of this second. It is for one goroutine. It holds
// no more sources than there are members.
type budget struct {
	second    int64
	members   map[netip.AddrPort]int
	strangers int
}

// take reports whether one more packet of a source is to be read.
func (b *budget) take(from netip.AddrPort, member bool, now time.Time) bool {
	if second := now.Unix(); second != b.second || b.members == nil {
		b.second, b.members, b.strangers = second, make(map[netip.AddrPort]int), 0
	}
	if !member {
		b.strangers++
		return b.strangers <= packetsPerStrangers
	}
	b.members[from]++
	return b.members[from] <= packetsPerMember
}

// sourceOf is the sender of a packet as a node record would name it.
func sourceOf(from net.Addr) netip.AddrPort {
	var at netip.AddrPort
	if udp, ok := from.(*net.UDPAddr); ok {
		at = udp.AddrPort()
	} else if parsed, err := netip.ParseAddrPort(from.String()); err == nil {
		at = parsed
	}
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

// Liar is a member whose gossip could not be believed, or was too much.
type Liar struct {
	Node    fleet.NodeID
	Refused int // of its packets, in this span of ten minutes or the last
}

// A member of this release sends nothing that is refused. A few packets may be
// another's doing, for an address is easily forged; many are worth a word.
const (
	liarSpan  = 10 * time.Minute
	liarFrom  = 100
	liarsTold = 8
)

// liars counts by member what was refused; nothing of strangers is kept.
type liars struct {
	mu         sync.Mutex // guards the rest
	since      time.Time
	last, this map[fleet.NodeID]int
}

func (l *liars) note(node fleet.NodeID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turnLocked(now)
	if l.this == nil {
		l.this = make(map[fleet.NodeID]int)
	}
	l.this[node]++
}

func (l *liars) turnLocked(now time.Time) {
	switch age := now.Sub(l.since); {
	case age >= 2*liarSpan:
		l.last, l.this, l.since = nil, nil, now
	case age >= liarSpan:
		l.last, l.this, l.since = l.this, nil, now
	}
}

// told lists those of whom much was refused, the worst first.
func (l *liars) told(now time.Time) []Liar {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turnLocked(now)
	var out []Liar
	for _, counts := range []map[fleet.NodeID]int{l.this, l.last} {
		for node, n := range counts {
			if n >= liarFrom && !slices.ContainsFunc(out, func(o Liar) bool { return o.Node == node }) {
				out = append(out, Liar{node, n})
			}
		}
	}
	slices.SortFunc(out, func(a, b Liar) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Node, b.Node))
	})
	return out[:min(liarsTold, len(out))]
}

// Liars lists the members, if any, whose packets were refused in numbers.
func (r *Ring) Liars() []Liar { return r.port.liars.told(time.Now()) }
