package node

import (
	"context"

	"fleet/raftfsm/entry"
)

// Propose puts an entry into the log of a node that leads, for benchmarks: it
// costs what any decision costs, without the work of an operation.
func (n *Node) Propose(ctx context.Context, body entry.Body) error {
	_, err := n.member.Load().control.Propose(ctx, body)
	return err
}

// DeliverDirectly makes a leader use no relays.
func (n *Node) DeliverDirectly(v bool) { n.direct.Store(v) }
