//go:build !planted_ackbeforecommit

package control

import (
	"context"

	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// commit puts an entry into the log and gives what the state machine answered
// when it was committed. It is the one place at which control proposes.
func (c *Control) commit(ctx context.Context, _ entry.Body, log []byte) (raftfsm.Answer, error) {
	return c.cfg.Quorum.Propose(ctx, log)
}
