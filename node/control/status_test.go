package control

import (
	"testing"

	"fleet/node/fleet"
)

// TestCommandStatus: the state of a whole command by those of its targets, as
// SSM's user guide has it.
func TestCommandStatus(t *testing.T) {
	const unlimited = fleet.Unlimited
	type counts map[fleet.InvocationState]int
	for _, c := range []struct {
		name                string
		concurrency, errors string
		counts              counts
		status, details     string
	}{
		{"nobody", unlimited, unlimited, nil, "Failed", "NoInstancesInTag"},
		{"not reached yet", unlimited, unlimited, counts{fleet.Pending: 3}, "Pending", "Pending"},
		{"waiting for the first turn", "1", unlimited, counts{fleet.Pending: 1, fleet.Staged: 2}, "Pending", "Pending"},
		{"the first turn", "1", unlimited, counts{fleet.Staged: 2, fleet.Released: 1}, "InProgress", "InProgress"},
		{"one runs", "1", unlimited, counts{fleet.Staged: 2, fleet.InProgress: 1}, "InProgress", "InProgress"},
		{"cancelled", "1", unlimited, counts{fleet.CancelPending: 2, fleet.CancelInProgress: 1}, "Cancelling", "Cancelling"},
		{"all is well", unlimited, "0", counts{fleet.Success: 3}, "Success", "Success"},
		{"some could not take it", unlimited, "0", counts{fleet.Success: 2, fleet.Undeliverable: 1}, "Success", "Success"},
		{"nobody could take it", unlimited, "0", counts{fleet.Undeliverable: 2, fleet.InvalidPlatform: 1}, "Failed", "Undeliverable"},
		{"an error within the limit", unlimited, "1", counts{fleet.Success: 2, fleet.Failed: 1}, "Failed", "Incomplete"},
		{"errors past it", "1", "1", counts{fleet.Success: 1, fleet.Failed: 2, fleet.Terminated: 4}, "Failed", "Failed"},
		{"the first error of none", "50", "0", counts{fleet.Success: 9, fleet.Failed: 1}, "Failed", "Failed"},
		{"of both kinds", "1", "1", counts{fleet.Failed: 1, fleet.ExecutionTimedOut: 1, fleet.Terminated: 2}, "Failed", "Failed"},
		{"too many were too slow", "1", "0", counts{fleet.Success: 1, fleet.ExecutionTimedOut: 1, fleet.Terminated: 1}, "TimedOut", "ExecutionTimedOut"},
		{"too many were not reached", "50", "0", counts{fleet.Success: 5, fleet.DeliveryTimedOut: 1}, "TimedOut", "DeliveryTimedOut"},
		{"one was not reached, and there is no limit", unlimited, unlimited, counts{fleet.Success: 5, fleet.DeliveryTimedOut: 1}, "Failed", "Incomplete"},
		{"none was reached", unlimited, unlimited, counts{fleet.DeliveryTimedOut: 3}, "TimedOut", "DeliveryTimedOut"},
		{"all failed", unlimited, unlimited, counts{fleet.Failed: 2, fleet.Interrupted: 1}, "Failed", "Failed"},
		{"cut short", unlimited, "0", counts{fleet.Success: 1, fleet.Cancelled: 2}, "Cancelled", "Cancelled"},
	} {
		cmd := &fleet.Command{MaxConcurrency: c.concurrency, MaxErrors: c.errors, Counts: make([]uint32, 15), Ended: 1}
		for s, n := range c.counts {
			cmd.Counts[s] = uint32(n)
			cmd.Targets = append(cmd.Targets, make([]fleet.NodeID, n)...)
			if !s.Final() {
				cmd.Ended = 0
			}
		}
		if status, details := CommandStatus(cmd); status != c.status || details != c.details {
			t.Errorf("%s: %s/%s, want %s/%s", c.name, status, details, c.status, c.details)
		}
	}
}
