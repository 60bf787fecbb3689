package api

import (
	"context"

	"fleet/node/fleet"
)

// maxBackups is how many backups a host writes at once: each holds on to a
// state that the fleet may have left behind long ago.
const maxBackups = 2

// createBackup streams the fleet's state as a snapshot; the client makes a
// backup of it. What was sent is whole if its trailer is: the client verifies
// it, and a broken connection is an error besides.
func createBackup(ctx context.Context, c *call) error {
	if _, err := decode[fleet.CreateBackupRequest](c.body); err != nil {
		return err
	}
	select {
	case c.backups <- struct{}{}:
		defer func() { <-c.backups }()
	default:
		return fleet.Errorf(fleet.Throttled, "this host writes %d backups already", maxBackups).WithHint("try again when they are done")
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	return c.cfg.Control.WriteState(ctx, c.stale, patient{c})
}
