package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
)

// The same log gives the same state on every voter: tests hold that. Memory that
// fails, or a mistake in a release, would make one voter sign and answer by
// another truth, and nobody would know. So at each Marks entry, which leaders
// write every minute, every voter compares the digest of its state with the
// others', who took theirs at the same entry.

// warnStates is the code of the warning that a voter's state differs.
const warnStates = "VoterStateDiffers"

// hashTime is how long the others have to come to the entry, and to answer.
const hashTime = 20 * time.Second

// comparison is what the last one said.
type comparison struct {
	index   uint64
	differs []fleet.NodeID // from most, by ID
	of      int            // who took part
}

// compareStates compares at each Marks entry until ctx is done.
func (m *member) compareStates(ctx context.Context) error {
	for {
		store := m.fsm.Store()
		changed, abandoned := store.WatchMarks(), store.Abandoned()
		if index := m.fsm.Marked(); index != 0 && (m.states.Load() == nil || m.states.Load().index != index) {
			m.compareAt(ctx, index)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-abandoned:
		}
	}
}

func (m *member) compareAt(ctx context.Context, index uint64) {
	mine, known := m.fsm.HashAt(index)
	voters, err := m.quorum.Voters()
	if !known || err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, hashTime)
	defer cancel()
	var mu sync.Mutex // guards said
	said := map[fleet.NodeID]fleet.Digest{}
	if slices.Contains(voters, m.n.info.Node) {
		said[m.n.info.Node] = mine
	}
	var wg sync.WaitGroup
	for _, id := range voters {
		if id == m.n.info.Node {
			continue
		}
		wg.Go(func() {
			resp, err := rpc.Call[rpc.StateHashRequest, rpc.StateHashResponse](ctx, m.rpc, quorumHost(id), rpc.MethodStateHash, &rpc.StateHashRequest{Index: index})
			if err != nil || resp.Hash.IsZero() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			said[id] = resp.Hash
		})
	}
	wg.Wait()
	next := &comparison{index: index, differs: odd(said), of: len(said)}
	before := m.states.Swap(next)
	if len(next.differs) > 0 && (before == nil || !slices.Equal(before.differs, next.differs)) {
		m.n.log.Error("the states of the voters differ", "index", index, "peers", fmt.Sprint(next.differs), "of", next.of)
	}
	if m.quorum.Leader() == m.n.info.Node && slices.Contains(next.differs, m.n.info.Node) && 2*len(next.differs) < next.of {
		m.handOver(ctx)
	}
}

// odd is who says something else than most; everybody who does not say what the
// first one does, and he, when there is no most.
func odd(said map[fleet.NodeID]fleet.Digest) []fleet.NodeID {
	votes := map[fleet.Digest]int{}
	for _, hash := range said {
		votes[hash]++
	}
	if len(votes) < 2 {
		return nil
	}
	var differs []fleet.NodeID
	for _, id := range slices.Sorted(maps.Keys(said)) {
		if 2*votes[said[id]] <= len(said) {
			differs = append(differs, id)
		}
	}
	return differs
}

// stateWarnings names the voters whose state differs.
func (m *member) stateWarnings() []fleet.Warning {
	c := m.states.Load()
	if c == nil {
		return nil
	}
	var ws []fleet.Warning
	for _, id := range c.differs {
		name := m.n.name(id)
		ws = append(ws, fleet.Warning{
			Code:    warnStates,
			Message: fmt.Sprintf("the state of %s differs from that of other voters at log entry %d: what it answers and signs may be wrong", name, c.index),
			Remedy:  fmt.Sprintf("restart fleet on %s; if this comes back, take it out of the quorum, move its quorum directory aside and add it anew", name),
		})
	}
	return ws
}
