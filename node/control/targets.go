package control

import (
	"context"
	"encoding/json"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

func (c *Control) putTarget(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParsePutTarget(body); err != nil {
		return nil, err
	}
	t, err := decideEntry[*fleet.SavedTarget](ctx, c, &entry.PutTarget{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	return json.Marshal(fleet.ViewOf(t))
}

func (c *Control) deleteTarget(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseDeleteTarget(body); err != nil {
		return nil, err
	}
	if _, err := c.propose(ctx, &entry.DeleteTarget{Authority: c.authority(body, proof)}); err != nil {
		return nil, err
	}
	return json.Marshal(fleet.DeleteTargetResult{})
}
