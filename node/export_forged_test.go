package node

import (
	"context"

	"fleet/raftfsm"
)

// ProposeBytes puts what a stolen leader would into the log, past every check
// but Apply's.
func (n *Node) ProposeBytes(ctx context.Context, entry []byte) (raftfsm.Answer, error) {
	return n.member.Load().quorum.Propose(ctx, entry)
}

// FSM is the state machine of a quorum host.
func (n *Node) FSM() *raftfsm.FSM { return n.member.Load().fsm }
