package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"fleet/gossip"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/rpc"
	"fleet/node/transport"
)

// Cell is the name of the one cell that a fleet has; gossip's label and every
// node record carry it.
const Cell = ""

// recordWait is how long a host waits before it looks again for its node record.
const recordWait = time.Second

// inbound is whether the leader can dial this host, as it says.
type inbound struct {
	mu      sync.Mutex // guards the rest
	dial    presence.Dial
	changed chan struct{} // closed and replaced when dial changes
}

// set reports whether dial is news. That nothing is known is none: a new leader
// begins with that.
func (i *inbound) set(dial presence.Dial) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if dial == i.dial || dial != presence.Answers && dial != presence.Silent {
		return false
	}
	i.dial = dial
	close(i.changed)
	i.changed = make(chan struct{})
	return true
}

func (i *inbound) get() (presence.Dial, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.dial, i.changed
}

// runRing takes part in gossip while others can reach this host. One that
// cannot be dialled could not answer the probes of the ring: it would be
// suspected and come back for ever, and everybody would hear of it each time.
// It misses nothing: what it must know comes with heartbeats.
func (n *Node) runRing(context.Context) error {
	ctx := n.inFleet // it ends sooner for a host that is of the fleet no more
	for ctx.Err() == nil {
		dial, changed := n.inbound.get()
		if dial == presence.Silent {
			n.log.Info("not in the ring: this host cannot be dialled")
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		if err := n.inRing(ctx); err != nil {
			return err
		}
	}
	return nil
}

// inRing takes part in gossip until ctx is done or the leader cannot dial this
// host. A host needs its signed node record for that; until the quorum has
// given one it waits.
func (n *Node) inRing(ctx context.Context) error {
	if err := n.ownRecord(ctx); err != nil {
		return nil // stopped first
	}
	keys, err := n.ringKeys.load(n.dir)
	if err != nil {
		return err
	}
	advertise, err := netip.ParseAddrPort(n.advertised())
	if err != nil {
		return fmt.Errorf("advertised address: %w", err)
	}
	ring, err := gossip.New(gossip.Config{
		Fleet: n.info.Fleet, Cell: Cell, Self: n.info.Node, Keys: keys,
		Record: func() []byte { return *n.record.Load() },
		Verify: func(b []byte) (identity.NodeRecord, error) {
			r, err := identity.VerifyNodeRecord(b, n.trust.Load(), n.cfg.Now())
			if err == nil && n.isRemoved(r.Node) {
				err = fleet.Errorf(fleet.Denied, "%s was removed from the fleet", r.Node)
			}
			return r, err
		},
		Shun:   n.isRemoved,
		Packet: n.transport.Packet(), Listener: n.transport.Listener(transport.Gossip),
		Dial: func(ctx context.Context, node fleet.NodeID, addr string) (net.Conn, error) {
			return n.transport.DialPeer(ctx, transport.Gossip, fleet.RoleAgent, addr, fleet.RoleAgent, node)
		},
		Seeds: n.seeds, Listed: n.isListedBy, Renew: n.renewRecord, Advertise: advertise, Fast: n.cfg.Timing.Fast, Logger: n.ringLog,
	})
	if err != nil {
		return err
	}
	if err := ring.Start(); err != nil {
		return err
	}
	n.ringRef.Store(ring)
	defer n.ringRef.Store(nil)
	n.ringKeys.into(ring, n.log) // which may have changed meanwhile
	n.whileInRing(ctx, ring)
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := ring.Leave(leaving); err != nil {
		n.log.Debug("ring not told of the stop", "err", err)
	}
	return ring.Close()
}

// whileInRing returns when ctx is done, when the leader cannot dial this host, or
// when the ring did not get this host back into those of the others.
func (n *Node) whileInRing(ctx context.Context, ring *gossip.Ring) {
	for {
		dial, changed := n.inbound.get()
		if dial == presence.Silent {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ring.Unlisted():
			n.log.Warn("beginning a new ring: the others do not list this host")
			return
		case <-changed:
		}
	}
}

// isListedBy asks another host whether its ring lists this one, and takes a newer
// trust.json from it.
func (n *Node) isListedBy(ctx context.Context, node fleet.NodeID) (bool, error) {
	held := n.trust.Load()
	resp, err := rpc.Call[rpc.ListedRequest, rpc.ListedResponse](ctx, n.rpc, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodListed,
		&rpc.ListedRequest{Epoch: held.Epoch, Version: held.Version})
	if err != nil {
		return false, err
	}
	if len(resp.Trust) > 0 {
		if err := n.setTrust(resp.Trust); err != nil {
			n.log.Warn("trust.json from another host not taken", "peer", node, "err", err)
		}
	}
	return resp.Listed, nil
}

// listed answers another host's self-check.
func (n *Node) listed(_ context.Context, peer identity.Peer, req *rpc.ListedRequest) (*rpc.ListedResponse, error) {
	ring := n.ringRef.Load()
	if ring == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "%s is not in the ring itself", n.info.Node)
	}
	resp := &rpc.ListedResponse{Listed: ring.Lists(peer.Node)}
	if held := n.trust.Load(); held.NewerThan(req.Epoch, req.Version) {
		resp.Trust = held.Raw()
	}
	return resp, nil
}

// gossipWarnings names the members that lie.
func (n *Node) gossipWarnings() []fleet.Warning {
	ring := n.ringRef.Load()
	if ring == nil {
		return nil
	}
	var ws []fleet.Warning
	for _, l := range ring.Liars() {
		name := n.nameOf(l.Node)
		ws = append(ws, fleet.Warning{
			Code:    WarnGossip,
			Message: fmt.Sprintf("%s sends gossip that no host of this fleet should: %d packets were refused in the last minutes", name, l.Refused),
			Remedy:  "gossip grants nothing and commands reach every host; look who has " + name + ", and remove it if it is not yours any more: fleet node rm " + name,
		})
	}
	return ws
}

// WarnGossip is the code of that warning.
const WarnGossip = "ForgedGossip"

// leaveTimeout bounds the farewell of a host that stops.
const leaveTimeout = 2 * time.Second

// seeds lists the hosts that ought to be in the ring: the quorum first, then
// the registry as this host knows it. Gossip forgets, the registry does not.
func (n *Node) seeds() []gossip.Seed {
	var seeds []gossip.Seed
	known := map[fleet.NodeID]bool{n.info.Node: true}
	add := func(node fleet.NodeID, addr string) {
		if !known[node] && addr != "" {
			known[node] = true
			seeds = append(seeds, gossip.Seed{Node: node, Address: addr})
		}
	}
	for _, p := range n.quorumPeers() {
		add(p.Node, p.Address)
	}
	rows, _ := n.view.list()
	for _, row := range rows {
		add(row.ID, row.Address)
	}
	return seeds
}

// ownRecord waits until this host has a node record for the address that it
// answers at. A voter signs its own.
func (n *Node) ownRecord(ctx context.Context) error {
	for {
		if record := n.record.Load(); record != nil {
			r, err := identity.VerifyNodeRecord(*record, n.trust.Load(), n.cfg.Now())
			if err == nil && r.Addr.String() == n.advertised() {
				return nil
			}
		}
		if m := n.member.Load(); m != nil {
			if err := m.signOwnRecord(); err == nil {
				continue
			}
		}
		timer := time.NewTimer(recordWait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// signOwnRecord makes a voter's node record.
func (m *member) signOwnRecord() error {
	issuing, err := m.issuing()
	if err != nil {
		return err
	}
	_, record, err := issuing.Certify(&fleet.Node{ID: m.n.info.Node, Key: m.n.key.Public(), Address: m.n.advertised()}, m.n.cfg.Now())
	if err != nil {
		return err
	}
	m.n.setRecord(record)
	return nil
}

// ringAlive counts the members that gossip believes alive, this host included.
func (n *Node) ringAlive() int {
	ring := n.ringRef.Load()
	if ring == nil {
		return 0
	}
	alive := 0
	for _, m := range ring.Members() {
		if m.State == gossip.Alive {
			alive++
		}
	}
	return alive
}
