package node

import (
	"context"
	"errors"
	"net"
	"slices"
	"sort"
	"sync"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/transport"
)

// dialTimeout bounds one try at one address.
const dialTimeout = 5 * time.Second

// dialRPC gives the way of calls that this host makes with one of its
// identities: as an agent for what it says of itself, as a quorum host for what
// the quorum asks.
func (n *Node) dialRPC(as fleet.Role) func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
	return func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
		return n.dial(ctx, transport.RPC, as, node, role)
	}
}

// dial tries each address that is known for a host.
func (n *Node) dial(ctx context.Context, p transport.Proto, as fleet.Role, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
	addrs := n.addresses(node)
	if len(addrs) == 0 {
		return nil, fleet.Errorf(fleet.Unavailable, "no address is known for %s", node)
	}
	var failures []error
	for _, addr := range addrs {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := n.transport.DialPeer(ctx, p, as, addr, role, node)
		cancel()
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
	}
	return nil, fleet.Errorf(fleet.Unavailable, "%s does not answer: %w", node, errors.Join(failures...))
}

// addresses lists where a host may answer, the most trustworthy first: the
// registry, the host's own signed record in gossip, what was written down at
// the last contact.
func (n *Node) addresses(node fleet.NodeID) []string {
	var addrs []string
	add := func(addr string) {
		if addr != "" && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if node == n.info.Node {
		add(n.advertised())
	}
	if m := n.member.Load(); m != nil {
		if row := m.fsm.Store().Node(node); row != nil {
			add(row.Address)
		}
	}
	add(n.view.address(node))
	if ring := n.ringRef.Load(); ring != nil {
		for _, member := range ring.Members() {
			if member.Node == node {
				add(member.Addr.String())
			}
		}
	}
	add(n.view.peer(node))
	return addrs
}

// quorumPeers lists the hosts of the quorum with an address of each.
func (n *Node) quorumPeers() []enrol.Peer {
	var peers []enrol.Peer
	for _, v := range n.trust.Load().Voters {
		if addrs := n.addresses(v.Node); len(addrs) > 0 {
			peers = append(peers, enrol.Peer{Node: v.Node, Address: addrs[0]})
		}
	}
	return peers
}

// savePeers writes the quorum's addresses down when they have changed, for a
// start with the quorum away.
func (n *Node) savePeers() error {
	peers := n.quorumPeers()
	if !n.view.setPeers(peers) {
		return nil
	}
	return n.dir.SavePeers(peers)
}

func (n *Node) voters() []fleet.NodeID {
	trust := n.trust.Load()
	ids := make([]fleet.NodeID, len(trust.Voters))
	for i, v := range trust.Voters {
		ids[i] = v.Node
	}
	return ids
}

func (n *Node) leader() fleet.NodeID {
	if m := n.member.Load(); m != nil {
		if leader := m.quorum.Leader(); leader != "" {
			return leader
		}
		if n.trust.Load().IsVoter(n.info.Node, m.key.Public()) {
			return ""
		}
		// Nobody speaks Raft with a host that was taken out of the quorum.
	}
	return n.view.leader()
}

// view is what an ordinary host knows of the others: its own copy of the
// registry, from heartbeat answers, and the quorum's last known addresses.
type view struct {
	now func() time.Time

	mu    sync.Mutex // guards all below
	rows  map[fleet.NodeID]rpc.ViewRow
	size  int                     // bytes of text in rows
	gone  map[fleet.NodeID]bool   // removed from the fleet, as a voter says
	index map[fleet.NodeID]uint64 // by voter: how far its rows reach; a voter that lies spoils its own only
	asOf  time.Time
	lead  fleet.NodeID
	named map[fleet.NodeID]fleet.NodeID // by voter: who leads, as it said last
	peers map[fleet.NodeID]string
}

func newView(now func() time.Time) *view {
	return &view{now: now, rows: map[fleet.NodeID]rpc.ViewRow{}, gone: map[fleet.NodeID]bool{}, index: map[fleet.NodeID]uint64{}, peers: map[fleet.NodeID]string{}, named: map[fleet.NodeID]fleet.NodeID{}}
}

// What a view holds at most: one voter that makes rows up must not fill the
// memory of every host. A fleet of these sizes is several cells long before.
const (
	maxRows     = 32 << 10 // hosts, and as many that are gone
	maxRowBytes = 32 << 20 // of their text
)

// putLocked takes a row if there is room for it.
func (v *view) putLocked(row rpc.ViewRow) {
	before, known := v.rows[row.ID]
	size := v.size + sizeOf(row)
	if known {
		size -= sizeOf(before)
	}
	if size > maxRowBytes || !known && len(v.rows) >= maxRows {
		return // what was known of the host stands
	}
	v.rows[row.ID], v.size = row, size
}

// removeLocked takes a host out for good and reports whether that is news.
func (v *view) removeLocked(id fleet.NodeID) bool {
	if row, known := v.rows[id]; known {
		delete(v.rows, id)
		v.size -= sizeOf(row)
	}
	if v.gone[id] || len(v.gone) >= maxRows {
		return false
	}
	v.gone[id] = true
	return true
}

// merge takes a voter's answer and reports whether a host is newly gone. A
// removal is for good: a row that a slower voter still has does not bring the
// host back.
func (v *view) merge(voter fleet.NodeID, resp *rpc.HeartbeatResponse) (removed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if resp.ViewIndex < v.index[voter] {
		return false // an answer overtaken by a newer one
	}
	for _, row := range resp.View {
		switch {
		case row.Removed:
			removed = v.removeLocked(row.ID) || removed
		case !v.gone[row.ID]:
			v.putLocked(row)
		}
	}
	v.index[voter], v.asOf, v.lead = resp.ViewIndex, v.now(), resp.Leader
	v.named[voter] = resp.Leader
	return removed
}

// leads reports whether k voters say that this one leads: what only the leader
// may tell a host is not taken from any voter that calls itself one.
func (v *view) leads(voter fleet.NodeID, k int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	say := 0
	for _, leader := range v.named {
		if leader == voter {
			say++
		}
	}
	return say >= k
}

func (v *view) isRemoved(node fleet.NodeID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gone[node]
}

func (v *view) at(voter fleet.NodeID) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.index[voter]
}

func (v *view) leader() fleet.NodeID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lead
}

func (v *view) address(node fleet.NodeID) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rows[node].Address
}

func (v *view) name(node fleet.NodeID) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rows[node].Name
}

func (v *view) peer(node fleet.NodeID) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.peers[node]
}

// setPeers reports whether the addresses differ from those it had.
func (v *view) setPeers(peers []enrol.Peer) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	changed := len(peers) != len(v.peers)
	next := make(map[fleet.NodeID]string, len(peers))
	for _, p := range peers {
		changed = changed || v.peers[p.Node] != p.Address
		next[p.Node] = p.Address
	}
	v.peers = next
	return changed
}

// list is a copy of the rows by name, and when they were last confirmed.
func (v *view) list() ([]rpc.ViewRow, time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	rows := make([]rpc.ViewRow, 0, len(v.rows))
	for _, row := range v.rows {
		rows = append(rows, row)
	}
	sort.Slice(rows, func(i, j int) bool {
		if rows[i].Name != rows[j].Name {
			return rows[i].Name < rows[j].Name
		}
		return rows[i].ID < rows[j].ID
	})
	return rows, v.asOf
}
