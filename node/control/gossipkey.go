package control

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// GossipKeyAge is how long one gossip key is in use before the leader makes
// another.
const GossipKeyAge = 30 * 24 * time.Hour

// rotateGossipKey begins a rotation. The key is drawn here: it grants nothing,
// and the leader is believed with it as every member is. The leader takes the
// steps that follow by itself.
func (c *Control) rotateGossipKey(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseRotateGossipKey(body); err != nil {
		return nil, err
	}
	key := make([]byte, entry.GossipKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make a gossip key: %w", err)
	}
	keys, err := decideEntry[*state.GossipKeys](ctx, c, &entry.GossipKey{
		Stamp: c.cfg.Now().UnixNano(), Step: entry.GossipKeyMade, Version: c.cfg.FSM.Store().GossipKeys().Version, Key: key,
		Request: body, Proof: proof,
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(fleet.RotateGossipKeyResult{Number: int(keys.Newest().N)})
}
