package fleet

import (
	"fmt"
	"testing"
)

// TestLimits: SSM rounds somehow; here N% is rounded down, and at least one
// target may always be at work.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		concurrency, errors string
		n                   int
		atOnce, mayFail     int
		staged              bool
	}{
		{"100%", "100%", 0, 1, 0, false},
		{"100%", "100%", 1, 1, 1, false},
		{"100%", "100%", 50, 50, 50, false},
		{"50", "0", 1, 1, 0, false}, // SSM's limits do nothing for one
		{"50", "0", 2, 2, 0, true},
		{"50", "0", 51, 50, 0, true},
		{"50", "100%", 50, 50, 50, false},
		{"50", "49", 50, 50, 49, false}, // to pass the limit all must have failed
		{"50", "48", 50, 50, 48, true},
		{"9999999", "9999999", 3, 3, 3, false},
		{"10%", "10%", 50, 5, 5, true},
		{"10%", "10%", 9, 1, 0, true},
		{"1%", "1%", 199, 1, 1, true},
		{"33%", "33%", 10, 3, 3, true},
		{"99%", "100%", 10, 9, 10, true},
		{"100%", "99%", 10, 10, 9, false},
		{"100%", "0%", 10, 10, 0, true},
		{"1", "100%", 10, 1, 10, true},
	} {
		cmd := &Command{MaxConcurrency: c.concurrency, MaxErrors: c.errors, Targets: make([]NodeID, c.n)}
		atOnce, mayFail := cmd.Limits()
		if atOnce != c.atOnce || mayFail != c.mayFail || cmd.Staged() != c.staged {
			t.Errorf("%s and %s of %d: %d at once, %d errors, staged %v; want %d, %d, %v",
				c.concurrency, c.errors, c.n, atOnce, mayFail, cmd.Staged(), c.atOnce, c.mayFail, c.staged)
		}
	}
}

// TestStopped: of 50 targets with 10% the sixth error is the one too many.
func TestStopped(t *testing.T) {
	for _, c := range []struct {
		errors string
		at     int
	}{{"3", 4}, {"0", 1}, {"10%", 6}, {"0%", 1}} {
		cmd := &Command{MaxConcurrency: "5", MaxErrors: c.errors, Targets: make([]NodeID, 50), Counts: make([]uint32, 15)}
		cmd.Counts[DeliveryTimedOut], cmd.Counts[Undeliverable], cmd.Counts[InvalidPlatform], cmd.Counts[Cancelled] = 9, 9, 9, 9 // do not count
		for n := 1; n <= c.at; n++ {
			cmd.Counts[[]InvocationState{Failed, ExecutionTimedOut, Interrupted}[n%3]]++
			if cmd.Stopped() != (n == c.at) {
				t.Errorf("MaxErrors %s: stopped after %d errors: %v", c.errors, n, cmd.Stopped())
			}
		}
	}
}

func TestHear(t *testing.T) {
	staged := &Command{MaxConcurrency: "1", MaxErrors: "0", Targets: make([]NodeID, 3)}
	atOnce := &Command{MaxConcurrency: Unlimited, MaxErrors: Unlimited, Targets: make([]NodeID, 3)}
	changes := map[string]InvocationState{
		fmt.Sprint("staged ", Pending, Staged): Staged, fmt.Sprint("staged ", Released, InProgress): InProgress,
		fmt.Sprint("at once ", Pending, InProgress): InProgress, fmt.Sprint("at once ", uint8(CancelPending), InProgress): CancelInProgress,
	}
	for name, c := range map[string]*Command{"staged ": staged, "at once ": atOnce} {
		for row := Pending; row <= Released; row++ {
			for _, said := range []InvocationState{Staged, InProgress, Released, Success} {
				key := fmt.Sprint(name, row, said)
				if row == CancelPending {
					key = fmt.Sprint(name, uint8(row), said)
				}
				want, ok := changes[key]
				if !ok || row == CancelInProgress {
					want = row
				}
				if got := c.Hear(row, said); got != want {
					t.Errorf("%sa row that is %s (%d) hears %s: %s; want %s", name, row, row, said, got, want)
				}
			}
		}
	}
}
