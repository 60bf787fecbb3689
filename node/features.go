package node

import (
	"context"
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
)

// level is the newest feature level that this host knows.
func (n *Node) level() uint32 {
	if n.cfg.Level != 0 {
		return n.cfg.Level
	}
	return entry.MaxLevel
}

// askVouch asks another host of the quorum what this one's store lacks.
func (m *member) askVouch(ctx context.Context, node fleet.NodeID, s quorum.Standing) (string, error) {
	resp, err := rpc.Call[rpc.VouchRequest, rpc.VouchResponse](ctx, m.rpc, quorumHost(node), rpc.MethodVouch,
		&rpc.VouchRequest{Term: s.Term, Index: s.Index, Vote: s.Vote})
	if err != nil {
		return "", err
	}
	return resp.Missing, nil
}

// markEvery is how often a leader writes into the log how far each voter has
// come.
const markEvery = time.Minute

// noteMarks does so while this host leads.
func (m *member) noteMarks(ctx context.Context) {
	ticker := time.NewTicker(markEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		marks, err := m.quorum.Marks()
		if err == nil && (len(marks) < 2 || m.fsm.Store().Features() < entry.KindMarks.Level()) {
			continue // nobody to be asked by, or one that could not read it
		}
		if err == nil {
			_, err = m.control.Propose(ctx, &entry.Marks{Stamp: m.n.cfg.Now().UnixNano(), Marks: marks})
		}
		if err != nil && ctx.Err() == nil {
			m.n.log.Debug("how far the voters have come is not written down", "err", err)
		}
	}
}

// waitsWarning is how long a voter may ask the others whether its store is an
// older copy before it is warned of.
const waitsWarning = 10 * time.Second

// Codes of warnings about stores that are older copies.
const (
	warnWaits = "QuorumWaits"
	warnOlder = "VoterRolledBack"
)

// storeWarnings says which stores are older copies, or may be.
func (m *member) storeWarnings() []fleet.Warning {
	var ws []fleet.Warning
	if why, since := m.quorum.Waits(); why != "" && time.Since(since) > waitsWarning {
		ws = append(ws, fleet.Warning{
			Code: warnWaits, Message: fmt.Sprintf("%s does not vote yet: it has not heard that its store is the newest: %s", m.n.Name(), why),
			Remedy: "start fleet on the other hosts of the quorum; if this one's store was emptied, take it out of the quorum and add it anew",
		})
	}
	for _, id := range m.quorum.Older() {
		name := m.n.name(id)
		ws = append(ws, fleet.Warning{
			Code: warnOlder, Message: fmt.Sprintf("the store of %s is older than what it acknowledged: its word does not count", name),
			Remedy: fmt.Sprintf("restart fleet on %s, and do there what fleet status says", name),
		})
	}
	return ws
}
