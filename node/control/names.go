package control

import (
	"context"
	"encoding/json"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

func (c *Control) renameNode(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseRenameNode(body); err != nil {
		return nil, err
	}
	if _, err := c.propose(ctx, &entry.RenameNode{Authority: c.authority(body, proof)}); err != nil {
		return nil, err
	}
	return json.Marshal(fleet.RenameNodeResult{})
}
