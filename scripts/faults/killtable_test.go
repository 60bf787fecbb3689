//go:build faults && unix

package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"fleet/node/failpoint"
	"fleet/node/ssm"
)

// cell is a step at which a process is ended, and where that is noticed.
type cell struct {
	point    failpoint.Point
	onLeader bool
	agent    []string // final states of the host, if it is the one that is ended
}

var (
	once  = []string{"Success"}
	cut   = []string{"Interrupted"}
	any3  = []string{"Success", "Interrupted"}
	cells = []cell{
		{failpoint.Propose, true, once}, {failpoint.Committed, true, once},
		{failpoint.Dispatch, true, any3},
		{failpoint.Arrived, false, once}, {failpoint.Accept, false, once}, {failpoint.Accepted, false, once},
		{failpoint.Answer, false, any3}, {failpoint.Heard, true, any3},
		{failpoint.Start, false, once}, {failpoint.Started, false, cut}, {failpoint.Exec, false, cut}, {failpoint.Runs, false, cut},
		{failpoint.Exited, false, cut}, {failpoint.Finish, false, cut}, {failpoint.Finished, false, once},
		{failpoint.Send, false, once}, {failpoint.Received, true, any3},
		{failpoint.Decide, true, any3}, {failpoint.Decided, true, any3},
		{failpoint.Acknowledge, false, once}, {failpoint.Known, false, once},
		{failpoint.Cancel, false, cut}, {failpoint.Cancelled, false, []string{"Cancelled"}},
	}
)

// TestKillTable ends FLEET_KILLS processes (3 by default) with SIGKILL in each
// cell: at exactly one step in the life of a command, and each of the leader and
// a host. With -short, one in a few cells.
//
// The steps of S15, when a journal forgets, come two days after a command: they
// are in the bubble alone.
func TestKillTable(t *testing.T) {
	seed := seedOf(t)
	f := start(t, 3, 2)
	watched := f.hosts[3]
	kills, killed, doubles := number("FLEET_KILLS", 3), 0, 0
	states := map[string]int{}
	began := time.Now()
	for i, c := range cells {
		for _, who := range []string{"leader", "agent"} {
			if testing.Short() && (i*2+len(who))%6 != 0 {
				continue
			}
			for round := range kills {
				name := fmt.Sprintf("%s/%s/%d", c.point, who, round)
				leader := f.leader(nil)
				on, victim := watched, watched
				if c.onLeader {
					on = leader
				}
				if who == "leader" {
					victim = leader
				}
				takes := "0.3"
				if c.point == failpoint.Cancel || c.point == failpoint.Cancelled {
					takes = "20"
				}
				on.trap(c.point, victim)
				id := f.order(takes)
				if takes == "20" {
					f.until("it runs", time.Minute, func() bool { return f.runs(id, watched.id) == 1 })
					f.call("CancelCommand", ssm.CancelCommandRequest{CommandId: string(id)}, nil)
				}
				select {
				case <-victim.done:
				case <-time.After(time.Minute):
					t.Fatalf("%s: the point was not reached", name)
				}
				_ = os.Remove(filepath.Join(on.traps(), string(c.point)))
				select {
				case <-time.After(time.Duration(seed.IntN(2000)) * time.Millisecond):
				case <-t.Context().Done():
				}
				victim.start()
				victim.ready()
				killed++
				for node, state := range f.ended(id) {
					runs := f.runs(id, node)
					if runs > 1 {
						doubles++
						t.Errorf("%s: %s ran %d times on %s", name, id, runs, node)
					}
					want := once
					switch {
					case node == victim.id && who == "agent":
						want = c.agent
					case node == victim.id && takes == "20":
						want = []string{"Interrupted", "Cancelled"}
					case node == victim.id:
						want = any3
					case takes == "20":
						want = []string{"Cancelled"}
					}
					if !slices.Contains(want, state) || state == "Success" && runs != 1 {
						t.Errorf("%s: %s on %s (ended: %v): %s and %d runs, want one of %v", name, id, node, node == victim.id, state, runs, want)
					}
					if node == victim.id {
						states[state]++
					}
				}
			}
		}
	}
	// Nothing is left that wakes up later.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	<-ctx.Done()
	t.Logf("%d processes ended: %d double runs, 0 rows without an end, who was ended says %v, in %s", killed, doubles, states, time.Since(began).Round(time.Second))
}
