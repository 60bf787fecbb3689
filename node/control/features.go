package control

import (
	"context"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/raftfsm/entry"
)

// A voter stops at an entry that it cannot read. So the leader proposes entries
// of newer kinds only from the feature level on that every host of the quorum
// has said it knows, on its own connection; what gossip says counts for
// nothing. The level is decided by the log and never falls.

const (
	// raiseEvery is how often a leader asks whether the level may rise.
	raiseEvery = 15 * time.Second

	// raiseAgain is for how long an answer that it may not counts.
	raiseAgain = 2 * time.Second
)

// raising is what the last try to raise the level said.
type raising struct {
	turn chan struct{} // holds a token while somebody tries

	mu  sync.Mutex // guards what follows
	at  time.Time
	err error
}

// mayPropose is nil when every host of the quorum can read an entry of a kind.
func (c *Control) mayPropose(ctx context.Context, kind entry.Kind) error {
	need := kind.Level()
	if kind == entry.KindFeatures || need <= c.cfg.FSM.Store().Features() {
		return nil
	}
	select {
	case c.raising.turn <- struct{}{}:
		defer func() { <-c.raising.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if need <= c.cfg.FSM.Store().Features() {
		return nil
	}
	c.raising.mu.Lock()
	at, err := c.raising.at, c.raising.err
	c.raising.mu.Unlock()
	if err != nil && c.cfg.Now().Sub(at).Abs() < raiseAgain {
		return err
	}
	err = c.raise(ctx, need)
	c.raising.mu.Lock()
	c.raising.at, c.raising.err = c.cfg.Now(), err
	c.raising.mu.Unlock()
	return err
}

// raise raises the level to what all know, which must be need at least.
func (c *Control) raise(ctx context.Context, need uint32) error {
	levels, err := c.levels(ctx)
	if err != nil {
		return err
	}
	var behind, silent []string
	lowest := c.cfg.Level
	for id, level := range levels {
		name := string(id)
		if n := c.cfg.FSM.Store().Node(id); n != nil {
			name = n.Name
		}
		switch {
		case level == 0:
			silent = append(silent, name)
		case level < need:
			behind = append(behind, name)
		}
		lowest = min(lowest, level)
	}
	sort.Strings(behind)
	sort.Strings(silent)
	switch {
	case len(behind) > 0:
		return fleet.Errorf(fleet.Conflict, "this needs feature level %d, and %s of the quorum runs a release that does not know it",
			need, strings.Join(behind, ", ")).WithHint("update fleet on %s, then try again", strings.Join(behind, ", "))
	case len(silent) > 0:
		return fleet.Errorf(fleet.Conflict, "this needs feature level %d, and %s of the quorum does not answer whether it knows it",
			need, strings.Join(silent, ", ")).WithHint("start fleet on %s, then try again", strings.Join(silent, ", "))
	case lowest < need:
		return fleet.Errorf(fleet.Conflict, "this needs feature level %d, and this host knows level %d", need, lowest)
	}
	a, err := c.Propose(ctx, &entry.Features{Stamp: c.cfg.Now().UnixNano(), Level: lowest})
	if err != nil {
		return err
	}
	if a.Err == nil {
		c.cfg.Logger.Info("feature level raised", "level", lowest)
	}
	if c.cfg.FSM.Store().Features() < need {
		return a.Err
	}
	return nil // by this entry, or by another that came first
}

// levels asks every host of the quorum, by trust.json and by Raft, which feature
// level it knows; 0 where it does not answer.
func (c *Control) levels(ctx context.Context) (map[fleet.NodeID]uint32, error) {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	var ids []fleet.NodeID
	for _, s := range servers {
		ids = append(ids, s.ID)
	}
	if t := c.cfg.FSM.Store().Trust(); t != nil {
		for _, v := range t.Voters {
			ids = append(ids, v.Node)
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex // guards levels
	levels := map[fleet.NodeID]uint32{}
	for _, id := range ids {
		levels[id] = 0
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		if id == c.cfg.Self {
			mu.Lock()
			levels[id] = c.cfg.Level
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			resp, err := rpc.Call[rpc.Empty, rpc.AppliedResponse](ctx, c.cfg.RPC, voter(id), rpc.MethodApplied, &rpc.Empty{})
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			levels[id] = max(resp.Level, entry.BaseLevel)
		})
	}
	wg.Wait()
	return levels, nil
}

// RaiseFeatures raises the level whenever it may rise, on a leader, until ctx is
// done.
func (c *Control) RaiseFeatures(ctx context.Context) {
	for c.cfg.FSM.Store().Features() < c.cfg.Level {
		levels, err := c.levels(ctx)
		lowest := c.cfg.Level
		for _, level := range levels {
			lowest = min(lowest, level)
		}
		if err == nil && lowest > c.cfg.FSM.Store().Features() {
			err = c.raise(ctx, lowest)
		}
		if err != nil && ctx.Err() == nil {
			c.cfg.Logger.Debug("feature level not raised", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(raiseEvery):
		}
	}
}
