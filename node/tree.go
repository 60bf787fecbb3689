package node

import (
	"context"
	"fmt"

	"fleet/gossip"
	"fleet/node/dispatch"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/relay"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/ticket"
)

// This file joins the relay tree to a host: every host is a relay, and the
// leader is the first parent.

func (n *Node) buildRelay() {
	n.relay = relay.New(relay.Config{
		Self: n.info.Node, Fleet: n.info.Fleet, Key: n.key, Trust: n.trust.Load, Time: fleetTime{n}.FleetTime,
		Job: func(command fleet.CommandID, attempt uint32) relay.Job {
			return &relayJob{n: n, climber: n.runner.Climb(command, attempt)}
		},
		Cancel: func(ctx context.Context, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			return n.cancelCommand(ctx, identity.Peer{}, req)
		},
		Release: func(ctx context.Context, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
			return n.releaseCommand(ctx, identity.Peer{}, req)
		},
		Open: openCarry(n.rpc),
		Life: n.ctx, At: n.cfg.At,
		Logger: n.log.With("component", "relay"),
	})
}

// openCarry opens the stream to a child.
func openCarry(c *rpc.Client) func(context.Context, fleet.NodeID, *rpc.CarryOrder) (relay.Stream, error) {
	return func(ctx context.Context, node fleet.NodeID, order *rpc.CarryOrder) (relay.Stream, error) {
		s, err := rpc.OpenCarry(ctx, c, rpc.Target{Node: node, Role: fleet.RoleAgent}, order)
		if err != nil {
			return nil, err // not a nil stream in an interface
		}
		return s, nil
	}
}

// relayJob is one command on this host, for the relay.
type relayJob struct {
	n       *Node
	climber *runcmd.Climber
}

func (j *relayJob) Deliver(ctx context.Context, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
	return j.n.deliver(ctx, identity.Peer{}, req)
}

func (j *relayJob) Result() <-chan runcmd.Answer { return j.climber.Result() }

func (j *relayJob) Acknowledged(id ticket.ResultID, index uint64) { j.climber.Acknowledged(id, index) }

func (j *relayJob) Close() { j.climber.Close() }

// tree is how commands of this leader travel through relays.
func (m *member) tree() *dispatch.TreeConfig {
	return &dispatch.TreeConfig{
		Open: openCarry(m.rpc), Fit: m.fitForTree, Direct: m.n.cfg.Direct,
		SignAck: func(index uint64, results []ticket.ResultID) []byte {
			t := m.n.trust.Load()
			return ticket.SignAck(m.key, &ticket.Ack{Fleet: t.Fleet, Epoch: t.Epoch, Index: index, Results: results})
		},
	}
}

// fitForTree gives what decides whether a host may carry and be carried to: it
// can be dialled, by the leader and so by others; gossip does not suspect it; and
// it was heard of with this release and the newest trust.json, or not at all by a
// leader that is new.
func (m *member) fitForTree() func(fleet.NodeID) bool {
	suspected := map[fleet.NodeID]bool{}
	if ring := m.n.ringRef.Load(); ring != nil {
		for _, other := range ring.Members() {
			if other.State != gossip.Alive {
				suspected[other.Node] = true
			}
		}
	}
	trust, now, late := m.n.trust.Load().Version, m.n.cfg.Now(), 3*m.n.heartbeatInterval()
	return func(id fleet.NodeID) bool {
		if m.n.direct.Load() || suspected[id] || m.reachOf(id).Dial == presence.Silent {
			return false
		}
		seen, heard := m.n.seen.Get(id)
		return !heard || seen.Version == m.n.cfg.Version && seen.Trust == trust && now.Sub(seen.LastSeen) <= late
	}
}

// relayWarnings names the relays that did not do their part.
func (m *member) relayWarnings() (ws []fleet.Warning) {
	for _, b := range m.dispatch.Blamed() {
		name := m.n.name(b.Relay)
		text := fmt.Sprintf("%s did not carry command %s as it was asked: it %s", name, b.Command, b.Why)
		for _, part := range []struct {
			n    int
			what string
		}{{b.Taken, "targets were reached by another way"}, {b.False, "words of its were refused"}, {b.Again, "were said more than once"}} {
			if part.n > 0 {
				text += fmt.Sprintf("; %d %s", part.n, part.what)
			}
		}
		ws = append(ws, fleet.Warning{
			Code: "RelayFailed", Message: text,
			Remedy: fmt.Sprintf("see whether %s is up and not overloaded; if words were refused its program may be another's: fleet node rm %s", name, name),
		})
	}
	return ws
}
