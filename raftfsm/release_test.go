package raftfsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// paced is command n on all hosts with limits.
func (w *world) paced(n int, concurrency, errors string) *entry.SendCommand {
	w.tb.Helper()
	return w.send(n, func(r *entry.SendCommandV1) { r.MaxConcurrency, r.MaxErrors = concurrency, errors })
}

// stage is that hosts have command n.
func (w *world) stage(n int, indexes ...uint32) *entry.Results {
	w.tb.Helper()
	return w.said(n, fleet.Staged, indexes...)
}

// said is that hosts say the same of command n.
func (w *world) said(n int, s fleet.InvocationState, indexes ...uint32) *entry.Results {
	w.tb.Helper()
	e := w.results(w.command(n))
	for _, i := range indexes {
		e.Rows = append(e.Rows, fleet.Invocation{Index: i, State: s, Code: -1})
	}
	return e
}

func (w *world) release(n int, indexes ...uint32) *entry.Release {
	w.tb.Helper()
	return &entry.Release{Stamp: w.now, Command: fleet.CommandID(uuid(n)), Attempt: 1, Indexes: indexes}
}

const (
	pd, st, rl, ip, ok  = fleet.Pending, fleet.Staged, fleet.Released, fleet.InProgress, fleet.Success
	no, tm, cp, ci, und = fleet.Failed, fleet.Terminated, fleet.CancelPending, fleet.CancelInProgress, fleet.Undeliverable
	dt, over            = fleet.DeliveryTimedOut, fleet.Cancelled
)

func (w *world) wantStates(when string, n int, want ...fleet.InvocationState) {
	w.tb.Helper()
	if got := w.states(n); !slices.Equal(got, want) {
		w.tb.Errorf("%s: rows %v, want %v", when, got, want)
	}
	if h, err := restore(snapshotOf(w.tb, w.fsm)); err != nil || h.Hash() != w.fsm.Hash() {
		w.tb.Errorf("%s: it does not come back from a snapshot: %v", when, err)
	}
}

func TestRelease(t *testing.T) {
	w := newWorld(t)
	w.hosts(6)
	c := w.must(w.paced(1, "2", "1")).(*fleet.Command)
	if c.MaxConcurrency != "2" || c.MaxErrors != "1" || !c.Staged() {
		t.Errorf("command %+v", c)
	}
	w.refused(w.release(1, 0), fleet.Conflict) // nobody has it
	w.must(w.said(1, ip, 5))                   // says that it began: it was not let
	w.must(w.stage(1, 0, 1, 2, 3))
	w.wantStates("staged", 1, st, st, st, st, pd, pd)
	w.refused(w.release(1, 4), fleet.Conflict)
	w.refused(w.release(1, 6), fleet.Invalid)
	w.refused(w.release(1, 0, 1, 2), fleet.Conflict) // all or none of them
	w.refused(w.release(2, 0), fleet.NotFound)
	e := w.release(1, 0)
	e.Attempt = 2
	w.refused(e, fleet.Conflict)

	w.now += second
	w.must(w.release(1, 1, 3))
	w.wantStates("two are released", 1, st, rl, st, rl, pd, pd)
	if row := w.fsm.Store().Invocation(c.ID, 3); row.Released != w.now {
		t.Errorf("row %+v; want it released at %d", row, w.now)
	}
	w.refused(w.release(1, 0), fleet.Conflict)
	w.refused(w.release(1, 1), fleet.Conflict)
	w.must(w.stage(1, 1, 4)) // one has it still, in another leader's words
	w.must(w.said(1, ip, 0, 1))
	w.wantStates("one began", 1, st, ip, st, rl, st, pd)
	w.refused(w.release(1, 0), fleet.Conflict) // it has its place still
	w.must(w.said(1, ok, 3))
	if row := w.fsm.Store().Invocation(c.ID, 3); row.Released == 0 {
		t.Errorf("row %+v forgot that it was released", row)
	}
	w.must(w.release(1, 0))
	w.must(w.said(1, no, 0))
	w.must(w.release(1, 2))
	w.wantStates("one error is allowed", 1, no, ip, rl, ok, st, pd)
	w.must(w.said(1, no, 2))
	w.wantStates("two are not", 1, no, ip, no, ok, tm, tm)
	w.refused(w.release(1, 4), fleet.Conflict)
	w.must(w.said(1, ok, 1))
	w.wantStates("who ran has ended", 1, no, ok, no, ok, tm, tm)
	if row := w.fsm.Store().Invocation(c.ID, 4); !strings.Contains(row.Reason, "2 failed, more than MaxErrors 1") || row.Decided == 0 {
		t.Errorf("row %+v", row)
	}
	if w.command(1).Open() {
		t.Error("it is open still")
	}
	w.refused(w.release(1, 4), fleet.Conflict)

	w.must(w.send(2, nil))
	w.must(w.stage(2, 0))
	w.wantStates("one without limits", 2, pd, pd, pd, pd, pd, pd)
	w.refused(w.release(2, 0), fleet.Conflict)
}

// What counts as an error ends the rest in the entry that brings it, whichever
// shard that is in; what does not count, does not.
func TestErrorsStop(t *testing.T) {
	w := newWorld(t)
	w.quick = true
	w.hosts(300)
	w.must(w.paced(1, "10", "0%"))
	w.must(w.stage(1, 0, 1, 2))
	w.must(w.stage(1, 298, 299))
	w.must(w.release(1, 0, 1, 299))
	w.must(w.said(1, und, 2))
	w.must(w.said(1, fleet.InvalidPlatform, 3))
	w.must(w.said(1, dt, 0))
	if c := w.command(1); c.Count(tm) != 0 || c.Count(pd, st) != 295 {
		t.Errorf("counts %v: what is no error stopped it", c.Counts)
	}
	w.must(w.cancel(1, w.command(1).Targets[4]))
	w.must(w.said(1, fleet.Interrupted, 299))
	if c := w.command(1); c.Count(tm) != 294 || c.Count(pd, st) != 0 || c.Count(rl) != 1 || c.Count(cp) != 1 || !c.Open() {
		t.Errorf("counts %v", c.Counts)
	}
}

func TestCancelStaged(t *testing.T) {
	w := newWorld(t)
	w.hosts(5)
	c := w.must(w.paced(1, "3", "100%")).(*fleet.Command)
	w.must(w.stage(1, 0, 1, 2, 3))
	w.must(w.release(1, 0, 1))
	w.must(w.said(1, ip, 0))
	w.must(w.cancel(1))
	w.wantStates("cancelled", 1, ci, ci, cp, cp, cp)
	w.must(w.said(1, ip, 1, 2))
	w.must(w.stage(1, 4))
	w.wantStates("they have it still", 1, ci, ci, cp, cp, cp)
	w.refused(w.release(1, 2), fleet.Conflict)
	w.must(w.said(1, over, 0, 2))
	w.now = c.ReachBy() + int64(entry.Skew) + 1
	w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
	w.wantStates("what was not released is over", 1, over, ci, over, over, over)
	w.now = c.OverBy(w.fsm.Store().Invocation(c.ID, 1).Released) + int64(entry.Skew) + 1
	w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
	w.wantStates("and what was", 1, over, dt, over, over, over)
}

// TestPacedTimes: a host is to be reached as soon as for any command, its turn
// may come much later, and whoever is silent then gives up its place.
func TestPacedTimes(t *testing.T) {
	w := newWorld(t)
	w.hosts(5)
	c := w.must(w.paced(1, "1", "100%")).(*fleet.Command)
	const turn = (60 + 100 + 120 + 60) * second
	if got := c.NotAfter - c.Created; got != 60*second+6*turn || c.ReachBy() != c.Created+60*second || c.Expires != c.NotAfter+220*second {
		t.Errorf("one after another: by %d s, to be reached by %d s, over by %d s", got/second, (c.ReachBy()-c.Created)/second, (c.Expires-c.Created)/second)
	}
	expire := func(at int64) { w.now = at; w.must(&entry.Expire{Stamp: at, Command: c.ID, Attempt: 1}) }
	skew := int64(entry.Skew)
	w.must(w.stage(1, 0, 1, 2))
	w.now += 30 * second
	w.must(w.release(1, 1))
	expire(c.ReachBy() + skew)
	w.wantStates("at the last moment", 1, st, rl, st, pd, pd)
	expire(c.ReachBy() + skew + 1)
	w.wantStates("not reached in time", 1, st, rl, st, dt, dt)
	gone := c.Created + 30*second + (60+100+120)*second + skew
	expire(gone)
	w.refused(w.release(1, 0), fleet.Conflict)
	expire(gone + 1)
	w.wantStates("the silent one", 1, st, dt, st, dt, dt)
	w.must(w.release(1, 0))
	w.must(w.said(1, ip, 0))
	expire(w.now + (60+100+120)*second + skew + 1)
	w.wantStates("it began and fell silent", 1, dt, dt, st, dt, dt)
	w.now = c.NotAfter
	w.refused(w.release(1, 2), fleet.Expired)
	expire(c.NotAfter + skew + 1)
	w.wantStates("its turn never came", 1, dt, dt, dt, dt, dt)
	if row := w.fsm.Store().Invocation(c.ID, 2); row.Reason != reasonNoTurn {
		t.Errorf("row %+v", row)
	}

	far := w.must(w.send(2, func(r *entry.SendCommandV1) { r.MaxConcurrency, r.TimeoutSeconds = "1", 30*24*3600 })).(*fleet.Command)
	if far.NotAfter != far.Created+30*24*3600*second {
		t.Errorf("a command of 30 days may begin until %d", far.NotAfter-far.Created)
	}
}

func TestRemovedWhileStaged(t *testing.T) {
	w := newWorld(t)
	w.hosts(5)
	c := w.must(w.paced(1, "2", "0")).(*fleet.Command)
	at := func(n int) uint32 { i, _ := state.TargetIndex(c, nodeID(n)); return i }
	indexes := []uint32{at(1), at(2), at(3)}
	slices.Sort(indexes)
	w.must(w.stage(1, indexes...))
	w.must(w.release(1, at(2)))
	// That a released one goes is no error: with MaxErrors 0 the rest goes on.
	for _, gone := range []struct {
		n    int
		want fleet.InvocationState
	}{{1, und}, {2, und}, {4, und}} {
		w.must(w.remove(gone.n))
		if got := w.states(1)[at(gone.n)]; got != gone.want {
			t.Errorf("host %d was removed and is %s; want %s", gone.n, got, gone.want)
		}
	}
	w.must(w.release(1, at(3)))
	w.must(w.said(1, ip, at(3)))
	w.must(w.remove(3))
	if got := w.states(1)[at(3)]; got != fleet.Interrupted || !w.command(1).Stopped() {
		t.Errorf("one that had begun was removed and is %s", got)
	}
}

// TestReleasedWhenItStops: whoever was released when one too many failed, and is
// told not to begin, was not begun. No operator cancelled it.
func TestReleasedWhenItStops(t *testing.T) {
	w := newWorld(t)
	w.hosts(6)
	w.must(w.paced(1, "4", "0"))
	w.must(w.stage(1, 0, 1, 2, 3, 4, 5))
	w.must(w.release(1, 0, 1, 2, 3))
	w.must(w.said(1, ip, 0))
	w.must(w.said(1, no, 0))
	w.wantStates("one failed", 1, no, rl, rl, rl, tm, tm)
	w.must(w.said(1, ip, 1)) // it had begun
	w.must(w.said(1, over, 2))
	e := w.said(1, over, 3)
	e.Rows[0].Started = w.now // it began, and was told in that moment
	w.must(e)
	w.wantStates("they were told", 1, no, ip, tm, over, tm, tm)
	w.must(w.said(1, ok, 1))
	w.wantStates("what ran goes on", 1, no, ok, tm, over, tm, tm)
	if w.command(1).Open() {
		t.Error("it is open still")
	}
}

// TestSilenceStops: a mistake that kills each host that begins it brings no error
// of any of them. That they fell silent counts, and what hosts say of themselves
// does not.
func TestSilenceStops(t *testing.T) {
	w := newWorld(t)
	w.hosts(6)
	c := w.must(w.paced(1, "2", "1")).(*fleet.Command)
	w.must(w.stage(1, 0, 1, 2, 3, 4, 5))
	w.must(w.release(1, 0))
	w.must(w.said(1, dt, 0)) // it came too late there, by its own word
	w.must(w.release(1, 1, 2))
	w.must(w.said(1, ip, 1))
	if got := w.command(1); got.Failures() != 0 || got.Stopped() {
		t.Errorf("%d failures", got.Failures())
	}
	w.now = c.OverBy(w.now) + int64(entry.Skew) + 1
	w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
	w.wantStates("two fell silent", 1, dt, dt, dt, tm, tm, tm)
	for i, want := range map[uint32]string{1: reasonSilentBegun, 2: reasonSilentReleased, 3: "2 failed or fell silent in their turn, more than MaxErrors 1"} {
		if row := w.fsm.Store().Invocation(c.ID, i); !strings.Contains(row.Reason, want) {
			t.Errorf("row %+v; want %q", row, want)
		}
	}
	b := snapshotOf(t, w.fsm)
	forged := rewrite(t, b, edit(t, tableCommands, func(c *fleet.Command) bool { c.Silent--; return true }))
	if _, err := restore(forged); err == nil || !strings.Contains(err.Error(), "counts of command") {
		t.Errorf("%v; want a silence that was forgotten refused", err)
	}
}

// TestReleaseAgainstModel compares with the rules written down once more: a
// leader that proposes anything at all breaks neither limit.
func TestReleaseAgainstModel(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 22))
		w := newWorld(t)
		w.quick = true
		n := 2 + r.IntN(8)
		w.hosts(n)
		atOnce, mayFail := 1+r.IntN(n), r.IntN(n)
		c := w.must(w.paced(1, fmt.Sprint(atOnce), fmt.Sprint(mayFail))).(*fleet.Command)
		if !c.Staged() {
			continue
		}
		rows := w.states(1)
		running, failed := map[uint32]bool{}, 0
		for round := 0; w.command(1).Open(); round++ {
			w.now += second / 4
			var indexes []uint32
			for i := range rows {
				if r.IntN(3) == 0 {
					indexes = append(indexes, uint32(i))
				}
			}
			if len(indexes) == 0 {
				continue
			}
			switch r.IntN(7) {
			case 0, 1:
				w.must(w.stage(1, indexes...))
				for _, i := range indexes {
					if rows[i] == pd {
						rows[i] = st
					}
				}
			case 2, 3, 4:
				may := failed <= mayFail && len(running)+len(indexes) <= atOnce
				for _, i := range indexes {
					may = may && rows[i] == st
				}
				a := w.apply(w.release(1, indexes...))
				if (a.Err == nil) != may {
					t.Fatalf("seed %d, round %d: release of %v with %v running, %d failed, rows %v: %v", seed, round, indexes, running, failed, rows, a.Err)
				}
				for _, i := range indexes {
					if may {
						rows[i], running[i] = rl, true
					}
				}
			case 5:
				w.must(w.said(1, ip, indexes...))
				for _, i := range indexes {
					if rows[i] == rl {
						rows[i] = ip
					}
				}
			case 6:
				s := []fleet.InvocationState{ok, ok, no, fleet.ExecutionTimedOut, und, over}[r.IntN(6)]
				w.must(w.said(1, s, indexes[0]))
				if i := indexes[0]; !rows[i].Final() {
					rows[i] = s
					delete(running, i)
					if s.IsError() {
						failed++
					}
				}
				for i := range rows {
					if failed > mayFail && (rows[i] == st || rows[i] == pd) {
						rows[i] = tm
					}
				}
			}
			if got := w.states(1); !slices.Equal(got, rows) {
				t.Fatalf("seed %d, round %d: rows %v; want %v", seed, round, got, rows)
			}
			if held := w.command(1).Held(); held != len(running) || held > atOnce {
				t.Fatalf("seed %d, round %d: %d have a place; want %d of %d", seed, round, held, len(running), atOnce)
			}
		}
		if h, err := restore(snapshotOf(t, w.fsm)); err != nil || h.Hash() != w.fsm.Hash() {
			t.Fatalf("seed %d: it does not come back from a snapshot: %v", seed, err)
		}
	}
}

// TestForgedPaceSnapshots is a stolen voter whose snapshot has more at work than
// there may be, or somebody who never was let.
func TestForgedPaceSnapshots(t *testing.T) {
	w := fullWorld(t) // command 7: in progress, staged, released, pending; two at once
	b := snapshotOf(t, w.fsm)
	row := func(index int, s fleet.InvocationState, released int64) func(string, []byte) [][]byte {
		shards := edit(t, tableShards, func(sh *state.Shard) bool {
			if sh.Command == fleet.CommandID(uuid(7)) {
				sh.Rows[index].State, sh.Rows[index].Released = s, released
			}
			return true
		})
		commands := edit(t, tableCommands, func(c *fleet.Command) bool {
			if c.ID == fleet.CommandID(uuid(7)) {
				was := w.states(7)
				was[index] = s
				c.Counts = make([]uint32, 15)
				for _, s := range was {
					c.Counts[s]++
				}
			}
			return true
		})
		return func(table string, b []byte) [][]byte {
			if table == tableCommands {
				return commands(table, b)
			}
			return shards(table, b)
		}
	}
	w.wantStates("command 7", 7, ip, st, rl, pd)
	released := w.fsm.Store().Invocation(fleet.CommandID(uuid(7)), 0).Released
	for name, c := range map[string]struct {
		change func(string, []byte) [][]byte
		want   string
	}{
		"one more than there may be": {row(1, rl, released), "over its limit"},
		"one that nobody released":   {row(0, ip, 0), "cannot be"},
		"one that waits, released":   {row(1, st, released), "cannot be"},
		"released before it was":     {row(2, rl, start-second), "cannot be"},
		"one that runs, unreleased":  {row(3, ip, 0), "cannot be"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := restore(rewrite(t, b, c.change))
			if fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want it refused with %q", err, c.want)
			}
		})
	}
}
