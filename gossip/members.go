package gossip

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/logging"
)

// State is what the ring says about a member.
type State uint8

// States of a member. There is no "dead": the ring cannot know that.
const (
	Alive   State = 1 // it answers, or nobody doubts that it would
	Suspect State = 2 // it stopped answering, is cut off, left, or somebody claims so
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Member is one host as the ring sees it.
type Member struct {
	Node  fleet.NodeID
	Role  fleet.Role
	Cell  string
	Addr  netip.AddrPort // from the newest node record that was seen
	Epoch uint32         // of that record, Unix seconds
	State State
	Since time.Time // when it took this state here
}

// members keeps what is known of each member: its newest verified record, which
// is also the memory against the return of older ones, and its state. It is
// memberlist's delegate, called with memberlist's lock held.
type members struct {
	cfg    Config
	counts *counters
	notify func()
	own    atomic.Pointer[[]byte] // own record, announced as metadata

	conflicts logging.Sometimes

	mu    sync.Mutex // guards the rest
	rows  map[fleet.NodeID]*row
	moves int                             // changes of state since they were last counted
	stir  chan struct{}                   // has a value when those became an upheaval
	hosts map[netip.AddrPort]fleet.NodeID // by the address in the record; of two with one, the last
}

type row struct {
	raw    []byte
	record identity.NodeRecord
	state  State // 0: its record was seen, but memberlist has not taken it in
	since  time.Time
}

func newMembers(cfg Config, counts *counters, notify func()) *members {
	return &members{cfg: cfg, counts: counts, notify: notify,
		stir: make(chan struct{}, 1), rows: make(map[fleet.NodeID]*row), hosts: make(map[netip.AddrPort]fleet.NodeID)}
}

// dropLocked forgets a member.
func (m *members) dropLocked(id fleet.NodeID) {
	if r := m.rows[id]; r != nil && m.hosts[r.record.Addr] == id {
		delete(m.hosts, r.record.Addr)
	}
	delete(m.rows, id)
}

// at is the member whose record names this address.
func (m *members) at(addr netip.AddrPort) (fleet.NodeID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, ok := m.hosts[addr]
	return id, ok
}

// changes counts the changes of state since it was last asked.
func (m *members) changes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.moves
	m.moves = 0
	return n
}

func (m *members) alive(id fleet.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rows[id]
	return r != nil && r.state == Alive
}

func (m *members) setOwn(raw []byte) { m.own.Store(&raw) }

// listed copies the rows that memberlist has taken in.
func (m *members) listed() []Member {
	m.mu.Lock()
	out := make([]Member, 0, len(m.rows))
	for id, r := range m.rows {
		if r.state == 0 {
			continue
		}
		out = append(out, Member{
			Node: id, Role: r.record.Role, Cell: r.record.Cell, Addr: r.record.Addr, Epoch: r.record.Epoch,
			State: r.state, Since: r.since,
		})
	}
	m.mu.Unlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Node < out[j].Node })
	return out
}

// recheck verifies all records again and forgets the members whose record does
// not count any more.
func (m *members) recheck() {
	m.mu.Lock()
	raws := make(map[fleet.NodeID][]byte, len(m.rows))
	for id, r := range m.rows {
		raws[id] = r.raw
	}
	m.mu.Unlock()
	var gone []fleet.NodeID
	for id, raw := range raws {
		if _, err := m.cfg.Verify(raw); err != nil {
			gone = append(gone, id)
		}
	}
	m.mu.Lock()
	for _, id := range gone {
		if r := m.rows[id]; r != nil && bytes.Equal(r.raw, raws[id]) {
			m.dropLocked(id)
		}
	}
	m.mu.Unlock()
	if len(gone) > 0 {
		m.notify()
	}
}

// NotifyAlive decides whether memberlist may believe that a member is alive at
// an address.
func (m *members) NotifyAlive(n *memberlist.Node) error {
	if err := m.admit(n); err != nil {
		m.counts.recordsRefused.Add(1)
		return err
	}
	return nil
}

func (m *members) admit(n *memberlist.Node) error {
	id, err := fleet.ParseNodeID(n.Name)
	if err != nil {
		return err
	}
	record, err := m.verified(id, n.Meta)
	if err != nil {
		return err
	}
	switch addr := addrOf(n.Addr, n.Port); {
	case record.Node != id:
		return fleet.Errorf(fleet.Denied, "the node record is for %s", record.Node)
	case record.Addr != addr:
		return fleet.Errorf(fleet.Denied, "the node record is for the address %s, not %s", record.Addr, addr)
	case record.Cell != m.cfg.Cell:
		return fleet.Errorf(fleet.Denied, "the node record is for the cell %q", record.Cell)
	}
	return m.keep(id, n.Meta, record)
}

// verified gives the record in meta. One that was verified before is not
// verified again before it expires or Recheck forgets it: memberlist asks for
// each member at each state exchange, with its lock held.
func (m *members) verified(id fleet.NodeID, meta []byte) (identity.NodeRecord, error) {
	m.mu.Lock()
	r := m.rows[id]
	known := r != nil && bytes.Equal(r.raw, meta) && time.Now().Unix() <= int64(r.record.Expiry)
	var record identity.NodeRecord
	if known {
		record = r.record
	}
	m.mu.Unlock()
	if known {
		return record, nil
	}
	return m.cfg.Verify(meta)
}

// keep remembers a record unless a newer one is known or there is no place.
func (m *members) keep(id fleet.NodeID, raw []byte, record identity.NodeRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rows[id]
	switch {
	case r != nil && record.Epoch < r.record.Epoch:
		return fleet.Errorf(fleet.Conflict, "the node record is older than the one that is known")
	case r != nil && bytes.Equal(r.raw, raw):
		return nil
	case r == nil && len(m.rows) >= m.cfg.MaxMembers && !m.makePlaceLocked():
		return fleet.Errorf(fleet.Throttled, "the ring is full with %d members", len(m.rows))
	case r == nil:
		r = &row{since: time.Now()}
		m.rows[id] = r
	case m.hosts[r.record.Addr] == id:
		delete(m.hosts, r.record.Addr)
	}
	r.raw, r.record = bytes.Clone(raw), record
	m.hosts[record.Addr] = id
	if r.state != 0 {
		m.notify()
	}
	return nil
}

// makePlaceLocked forgets the member that has been gone the longest.
func (m *members) makePlaceLocked() bool {
	var oldest fleet.NodeID
	for id, r := range m.rows {
		if r.state != Alive && (oldest == "" || r.since.Before(m.rows[oldest].since)) {
			oldest = id
		}
	}
	if oldest == "" {
		return false
	}
	m.dropLocked(oldest)
	return true
}

func (m *members) setState(n *memberlist.Node, s State) {
	m.mu.Lock()
	r := m.rows[fleet.NodeID(n.Name)]
	changed := r != nil && r.state != s
	if changed {
		r.state, r.since = s, time.Now()
		m.moves++
		if m.moves == upheaval(len(m.rows)) {
			select {
			case m.stir <- struct{}{}:
			default: // it is known
			}
		}
	}
	m.mu.Unlock()
	if changed {
		m.notify()
	}
}

// NotifyJoin takes a member in; its record was kept by NotifyAlive just before.
func (m *members) NotifyJoin(n *memberlist.Node) { m.setState(n, Alive) }

// NotifyLeave is called for the dead and for those that left.
func (m *members) NotifyLeave(n *memberlist.Node) { m.setState(n, Suspect) }

// NotifyUpdate is called for a member that is there and has a new record, which
// NotifyAlive has kept. Its row may be new if Recheck had forgotten it.
func (m *members) NotifyUpdate(n *memberlist.Node) { m.setState(n, Alive) }

// NotifyConflict is called for a member that moved while its old address still
// counts. Its record for the new one is in order, so it moved, or its directory
// was copied to another host: then both will say so again and again.
func (m *members) NotifyConflict(old, moved *memberlist.Node) {
	m.counts.conflicts.Add(1)
	m.conflicts.Log(time.Now(), func(suppressed int) {
		m.cfg.Logger.Warn("a member is at two addresses: it moved, or was copied",
			"node", moved.Name, "addr", addrOf(old.Addr, old.Port), "other", addrOf(moved.Addr, moved.Port), "suppressed", suppressed)
	})
}

// NodeMeta is the own node record.
func (m *members) NodeMeta(int) []byte {
	if raw := m.own.Load(); raw != nil {
		return *raw
	}
	return nil
}

// NotifyMsg, GetBroadcasts, LocalState and MergeRemoteState carry nothing: the
// ring says who is here. What must arrive does not travel by gossip.
func (m *members) NotifyMsg([]byte) {}

// GetBroadcasts has nothing to say.
func (m *members) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing to add to a state exchange.
func (m *members) LocalState(bool) []byte { return nil }

// MergeRemoteState is not called: believe.go cuts such state off.
func (m *members) MergeRemoteState([]byte, bool) {}

func addrOf(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
