//go:build planted_ackbeforecommit

package control

import (
	"context"

	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// A planted bug: whoever asked is answered while the entry is on its way.
func (c *Control) commit(ctx context.Context, body entry.Body, log []byte) (raftfsm.Answer, error) {
	a := c.cfg.FSM.Try(body)
	go func() { _, _ = c.cfg.Quorum.Propose(context.WithoutCancel(ctx), log) }()
	return a, nil
}
