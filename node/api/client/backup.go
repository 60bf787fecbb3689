package client

import (
	"context"
	"io"

	"fleet/node/fleet"
)

// State opens the fleet's decided state, as a snapshot that package raftfsm
// reads: an answer that was cut short does not read as one. The caller closes it.
func (c *Client) State(ctx context.Context) (io.ReadCloser, error) {
	body, err := encode(fleet.CreateBackupRequest{})
	if err != nil {
		return nil, err
	}
	res, err := c.post(ctx, request{operation: "CreateBackup", body: body, stale: c.opts.Stale})
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}
