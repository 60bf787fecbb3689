package api

import (
	"context"
	"slices"
	"time"

	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

// maxBehind is how many hosts are named that do not have the gossip key yet.
const maxBehind = 100

func describeGossipKey(ctx context.Context, c *call, store *state.Store,
	_ *fleet.DescribeGossipKeyRequest) (*fleet.DescribeGossipKeyResult, error) {
	keys := store.GossipKeys()
	if keys == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "this host does not hold the fleet's first log entry yet")
	}
	newest := keys.Newest()
	result := &fleet.DescribeGossipKeyResult{
		Number: int(newest.N), Made: fleet.InstantOf(newest.Made), Stage: fleet.GossipKeySettled, Since: fleet.InstantOf(keys.Stepped),
		Next: fleet.InstantOf(time.Unix(0, newest.Made).Add(control.GossipKeyAge).UnixNano()),
	}
	switch {
	case keys.Spreading():
		result.Stage = fleet.GossipKeySpreading
	case keys.Retiring():
		result.Stage = fleet.GossipKeyRetiring
	}
	heard := c.cfg.Control.Presence(ctx)
	for _, n := range store.Nodes() {
		seen := heard[n.ID]
		if c.cfg.Now().Sub(seen.LastSeen) >= c.cfg.Lost {
			continue
		}
		result.Live++
		if seen.Keys >= keys.Version {
			result.Holding++
		} else if len(result.Behind) < maxBehind {
			result.Behind = append(result.Behind, n.Name)
		}
	}
	slices.Sort(result.Behind)
	return result, nil
}
