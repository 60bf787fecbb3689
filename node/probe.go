package node

import (
	"context"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/presence"
)

// The leader finds out which hosts can be dialled: it prefers the connections
// that they open, so nothing else would. Operators see which hosts only reach
// out (such a host can run commands, and cannot vote), and the host is told, so
// that it stays out of the ring, where it could not answer.
//
// A host is dialled when this host begins to lead or first hears of it, and
// then every quarter of an hour, one every probePace at most: ten thousand
// hosts cost eleven handshakes a second. One that does not answer is dialled
// again soon, because one lost connection proves nothing.
const (
	probeEvery  = 15 * time.Minute
	probeAgain  = 20 * time.Second // after the first failure
	probeFailed = 5 * time.Minute  // after more
	probePace   = 20 * time.Millisecond
	probeWork   = 8 // dials at once
	probeLook   = 5 * time.Second
)

// probe dials hosts until ctx is done.
func (m *member) probe(ctx context.Context) {
	var dials sync.WaitGroup
	defer dials.Wait()
	slots := make(chan struct{}, probeWork)
	look := time.NewTicker(probeLook)
	defer look.Stop()
	for {
		for _, row := range m.fsm.Store().Nodes() {
			if !m.probeDue(row.ID) {
				continue
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			dials.Go(func() {
				defer func() { <-slots }()
				if err := m.rpc.Probe(ctx, row.ID); err != nil {
					m.n.log.Debug("host cannot be dialled", "peer", row.ID, "err", err)
				}
			})
			pace := time.NewTimer(probePace)
			select {
			case <-pace.C:
			case <-ctx.Done():
				pace.Stop()
				return
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// probeDue reports whether a host that is there is to be dialled now.
func (m *member) probeDue(id fleet.NodeID) bool {
	if id == m.n.info.Node {
		return false
	}
	reach := m.rpc.Reach(id)
	seen, heard := m.n.seen.Get(id)
	if !reach.Reverse && (!heard || m.n.cfg.Now().Sub(seen.LastSeen) > 3*m.n.heartbeatInterval()) {
		return false // it is off, as far as one knows
	}
	// Spread, so that hosts that were dialled together are not again.
	wait := probeEvery - probeEvery/4*time.Duration(fleet.Sum([]byte(id))[0])/256
	switch {
	case reach.Dialled.IsZero():
		return true
	case reach.Fails == 1:
		wait = probeAgain
	case reach.Fails > 1:
		wait = probeFailed
	}
	return time.Since(reach.Dialled) >= wait
}

// reachOf is how this quorum host gets to a host.
func (m *member) reachOf(id fleet.NodeID) presence.Reach {
	r := m.rpc.Reach(id)
	reach := presence.Reach{Reverse: r.Reverse}
	switch {
	case id == m.n.info.Node:
		reach.Dial = presence.Answers
	case r.Dialled.IsZero() || r.Fails == 1:
	case r.Fails == 0:
		reach.Dial = presence.Answers
	default:
		reach.Dial = presence.Silent
	}
	return reach
}
