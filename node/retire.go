package node

import (
	"context"
	"time"

	"fleet/raftfsm/entry"
)

// retireEvery is how often a leader looks for ended commands that have been kept
// long enough; the first time after retireFirst.
const (
	retireEvery = time.Hour
	retireFirst = time.Minute
)

// retire removes them while this host leads: the log's state, and with it every
// snapshot, is bounded. The hosts keep their outputs by a budget of their own.
func (m *member) retire(ctx context.Context) {
	wait := retireFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = retireEvery
		if m.fsm.Store().Features() < entry.KindRetire.Level() {
			continue
		}
		for ctx.Err() == nil {
			e := &entry.Retire{Stamp: m.n.cfg.Now().UnixNano()}
			if n, _ := m.fsm.Try(e).Value.(int); n == 0 {
				break
			}
			a, err := m.control.Propose(ctx, e)
			if err != nil || a.Err != nil {
				m.n.log.Debug("ended commands not removed", "err", err)
				break
			}
			m.n.log.Info("ended commands removed", "count", a.Value)
		}
	}
}
