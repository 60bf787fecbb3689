package raftfsm

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// cancel is a request to cancel command n on some nodes, or on all.
func (w *world) cancel(n int, nodes ...fleet.NodeID) *entry.CancelCommand {
	w.tb.Helper()
	req := entry.CancelCommandV1{CommandId: uuid(n)}
	for _, id := range nodes {
		req.InstanceIds = append(req.InstanceIds, string(id))
	}
	return &entry.CancelCommand{Authority: w.authority("CancelCommand", "", req)}
}

func (w *world) states(n int) []fleet.InvocationState {
	var out []fleet.InvocationState
	for _, row := range w.fsm.Store().Invocations(fleet.CommandID(uuid(n))) {
		out = append(out, row.State)
	}
	return out
}

func TestCancelCommand(t *testing.T) {
	const (
		pending, running, success = fleet.Pending, fleet.InProgress, fleet.Success
		cancelP, cancelR, over    = fleet.CancelPending, fleet.CancelInProgress, fleet.Cancelled
	)
	w := newWorld(t)
	w.hosts(4)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	row := func(index uint32, s fleet.InvocationState) *entry.Results {
		return w.results(c, fleet.Invocation{Index: index, State: s, Code: -1, Started: 7})
	}
	kept := func() (n int) {
		for _, r := range w.fsm.Store().Requests() {
			if r.Kind == entry.KindCancelCommand {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		name  string
		entry entry.Body
		want  []fleet.InvocationState
		kept  int // requests of which something came
	}{
		{"one runs", row(1, running), []fleet.InvocationState{pending, running, pending, pending}, 0},
		{"one ends", row(2, success), []fleet.InvocationState{pending, running, success, pending}, 0},
		{"cancel two that are not alike", w.cancel(1, c.Targets[1], c.Targets[0]), []fleet.InvocationState{cancelP, cancelR, success, pending}, 1},
		{"cancel what has ended", w.cancel(1, c.Targets[2]), []fleet.InvocationState{cancelP, cancelR, success, pending}, 1},
		{"cancel one again", w.cancel(1, c.Targets[0]), []fleet.InvocationState{cancelP, cancelR, success, pending}, 1},
		{"it has it after all", row(0, running), []fleet.InvocationState{cancelR, cancelR, success, pending}, 1},
		{"it was done before", row(1, success), []fleet.InvocationState{cancelR, success, success, pending}, 1},
		{"cancel all", w.cancel(1), []fleet.InvocationState{cancelR, success, success, cancelP}, 2},
		{"cancel all again", w.cancel(1), []fleet.InvocationState{cancelR, success, success, cancelP}, 2},
		{"it stopped", row(0, over), []fleet.InvocationState{over, success, success, cancelP}, 2},
		{"it says otherwise", row(0, success), []fleet.InvocationState{over, success, success, cancelP}, 2},
		{"it failed", row(3, fleet.Failed), []fleet.InvocationState{over, success, success, fleet.Failed}, 2},
		{"cancel what is over", w.cancel(1), []fleet.InvocationState{over, success, success, fleet.Failed}, 2},
	} {
		w.must(step.entry)
		if got := w.states(1); !slices.Equal(got, step.want) || kept() != step.kept {
			t.Errorf("%s: rows %v, want %v; %d requests are kept, want %d", step.name, got, step.want, kept(), step.kept)
		}
		now := w.command(1)
		if open := slices.ContainsFunc(step.want, func(s fleet.InvocationState) bool { return !s.Final() }); now.Open() != open {
			t.Errorf("%s: open %v, want %v", step.name, now.Open(), open)
		}
		if h, err := restore(snapshotOf(t, w.fsm)); err != nil || h.Hash() != w.fsm.Hash() {
			t.Errorf("%s: it does not come back from a snapshot: %v", step.name, err)
		}
	}
	if first := w.fsm.Store().Invocation(c.ID, 0); first.Started != 7 {
		t.Errorf("row %+v", first)
	}
	w.refused(w.cancel(9), fleet.NotFound)
	w.refused(w.cancel(1, nodeID(9)), fleet.Invalid)
	if err, ok := w.refused(w.cancel(9), fleet.NotFound).(*fleet.Error); !ok || err.Code != "InvalidCommandId" {
		t.Errorf("a command that is not there: %v", err)
	}
	if err, ok := w.refused(w.cancel(1, nodeID(9)), fleet.Invalid).(*fleet.Error); !ok || err.Code != "InvalidInstanceId" {
		t.Errorf("a node that is no target: %v", err)
	}
}

// Only an operator's word makes a row Cancelling.
func TestCancellingIsNotReported(t *testing.T) {
	w := newWorld(t)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	for _, s := range []fleet.InvocationState{fleet.CancelPending, fleet.CancelInProgress} {
		w.refused(w.results(c, fleet.Invocation{State: s, Code: -1}), fleet.Invalid)
	}
}

func TestForgedCancel(t *testing.T) {
	mallory := key('O', 1)
	for name, forge := range map[string]func(w *world, e *entry.CancelCommand){
		"another key": func(w *world, e *entry.CancelCommand) {
			e.Proof = identity.SignProof(mallory, w.proof("CancelCommand", e.Request))
		},
		"another operation": func(w *world, e *entry.CancelCommand) {
			e.Proof = identity.SignProof(operatorKey, w.proof("SendCommand", e.Request))
		},
		"another command": func(w *world, e *entry.CancelCommand) {
			e.Request = []byte(strings.Replace(string(e.Request), uuid(1), uuid(2), 1))
		},
		"another fleet": func(w *world, e *entry.CancelCommand) {
			p := w.proof("CancelCommand", e.Request)
			p.Fleet = fleet.IDOf(mallory.Public())
			e.Proof = identity.SignProof(operatorKey, p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.must(w.send(1, nil))
			w.must(w.send(2, nil))
			e := w.cancel(1)
			forge(w, e)
			w.refused(e, fleet.Unauthenticated)
		})
	}
}

// A cancelled command gets no new mint, hence no new ticket, as long as
// somebody else does not still need one.
func TestCancelledIsNotMinted(t *testing.T) {
	w := newWorld(t)
	w.hosts(2)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	next := func(n uint32) *entry.Mint {
		return &entry.Mint{Stamp: w.now, Command: c.ID, Attempt: 1, N: n, NotBefore: w.now}
	}
	w.must(w.cancel(1, c.Targets[0]))
	w.must(next(2))
	w.must(w.cancel(1))
	w.refused(next(3), fleet.Conflict)
}

func TestCancelledExpires(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	w.must(w.results(c, fleet.Invocation{Index: 1, State: fleet.InProgress, Code: -1, Started: 5}, fleet.Invocation{Index: 2, State: fleet.InProgress, Code: -1}))
	w.must(w.cancel(1, c.Targets[0], c.Targets[1]))
	const p, r, cp, cr, dt, over = fleet.Pending, fleet.InProgress, fleet.CancelPending, fleet.CancelInProgress, fleet.DeliveryTimedOut, fleet.Cancelled
	skew := int64(entry.Skew)
	for _, step := range []struct {
		at   int64
		want []fleet.InvocationState
	}{
		{c.NotAfter + skew, []fleet.InvocationState{cp, cr, r, p}},
		{c.NotAfter + skew + 1, []fleet.InvocationState{over, cr, r, dt}},
		{c.Expires + skew, []fleet.InvocationState{over, cr, r, dt}},
		{c.Expires + skew + 1, []fleet.InvocationState{over, dt, dt, dt}},
	} {
		w.now = step.at
		w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
		if got := w.states(1); !slices.Equal(got, step.want) {
			t.Errorf("at %d rows %v; want %v", step.at-c.Created, got, step.want)
		}
	}
	for _, row := range w.fsm.Store().Invocations(c.ID) {
		if row.Reason == "" || row.Code != -1 || row.Decided == 0 {
			t.Errorf("row %+v", row)
		}
	}
}

// TestCancelAgainstModel compares with the rule written down once more, over
// two shards, with cancels, marks, results and the end of time in any order.
func TestCancelAgainstModel(t *testing.T) {
	const hosts = 300
	type model struct {
		heard, cancelled bool
		final            fleet.InvocationState
	}
	seeds := uint64(2)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		w := newWorld(t)
		w.quick = true
		w.hosts(hosts)
		c := w.must(w.send(1, nil)).(*fleet.Command)
		rows := make([]model, hosts)
		state := func(m model) fleet.InvocationState {
			switch {
			case m.final != 0:
				return m.final
			case m.cancelled && m.heard:
				return fleet.CancelInProgress
			case m.cancelled:
				return fleet.CancelPending
			case m.heard:
				return fleet.InProgress
			}
			return fleet.Pending
		}
		r := rand.New(rand.NewPCG(seed, 9))
		for round := 0; w.command(1).Open(); round++ {
			w.now += int64(r.IntN(4)) * second
			switch n := r.IntN(20); {
			case n < 3:
				var nodes []fleet.NodeID
				for range 1 + r.IntN(50) {
					i := r.IntN(hosts)
					if !slices.Contains(nodes, c.Targets[i]) {
						nodes = append(nodes, c.Targets[i])
						rows[i].cancelled = rows[i].cancelled || rows[i].final == 0
					}
				}
				w.must(w.cancel(1, nodes...))
			case n == 3 && r.IntN(4) == 0:
				for i := range rows {
					rows[i].cancelled = rows[i].cancelled || rows[i].final == 0
				}
				w.must(w.cancel(1))
			case n == 4:
				for i := range rows {
					m := &rows[i]
					switch late, gone := w.now > c.NotAfter+int64(entry.Skew), w.now > c.Expires+int64(entry.Skew); {
					case m.final != 0:
					case !m.heard && late && m.cancelled:
						m.final = fleet.Cancelled
					case !m.heard && late, m.heard && gone:
						m.final = fleet.DeliveryTimedOut
					}
				}
				w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
			default:
				shard := uint32(r.IntN(2))
				e := w.results(c)
				for i := shard * fleet.ShardSize; i < min((shard+1)*fleet.ShardSize, hosts); i++ {
					if r.IntN(12) > 0 {
						continue
					}
					s := fleet.InvocationState(1 + r.IntN(10))
					e.Rows = append(e.Rows, fleet.Invocation{Index: i, State: s})
					switch m := &rows[i]; {
					case m.final != 0:
					case s == fleet.InProgress:
						m.heard = true
					default:
						m.final = s
					}
				}
				if len(e.Rows) == 0 {
					continue
				}
				for _, row := range w.must(e).([]fleet.Invocation) {
					if want := state(rows[row.Index]); row.State != want {
						t.Fatalf("seed %d, round %d: row %d is answered %s; want %s", seed, round, row.Index, row.State, want)
					}
				}
			}
			if round%20 > 0 && w.command(1).Open() {
				continue
			}
			for i, got := range w.states(1) {
				if want := state(rows[i]); got != want {
					t.Fatalf("seed %d, round %d: row %d is %s (%d); want %s (%d)", seed, round, i, got, got, want, want)
				}
			}
			if round%100 > 0 && w.command(1).Open() {
				continue // each host is verified again, which takes its time
			}
			if h, err := restore(snapshotOf(t, w.fsm)); err != nil || h.Hash() != w.fsm.Hash() {
				t.Fatalf("seed %d, round %d: it does not come back from a snapshot: %v", seed, round, err)
			}
		}
	}
}

// TestForgedCancelSnapshots is a stolen voter whose snapshot cancels what
// nobody cancelled, or forgets that somebody did.
func TestForgedCancelSnapshots(t *testing.T) {
	w := fullWorld(t) // command 2: its first target is cancelled, its second not
	b := snapshotOf(t, w.fsm)
	var signed *state.Request
	for _, r := range w.fsm.Store().Requests() {
		if r.Kind == entry.KindCancelCommand {
			signed = r
		}
	}
	row := func(index int, s fleet.InvocationState) func(string, []byte) [][]byte {
		shards := edit(t, tableShards, func(s2 *state.Shard) bool {
			if s2.Command == fleet.CommandID(uuid(2)) {
				s2.Rows[index].State = s
			}
			return true
		})
		commands := edit(t, tableCommands, func(c *fleet.Command) bool {
			if c.ID == fleet.CommandID(uuid(2)) {
				c.Counts = make([]uint32, 13)
				for i, was := range w.states(2) {
					if i == index {
						was = s
					}
					c.Counts[was]++
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
	without := edit(t, tableRequests, func(r *state.Request) bool { return r.Kind != entry.KindCancelCommand })
	other := edit(t, tableRequests, func(r *state.Request) bool {
		if r.Kind == entry.KindCancelCommand {
			r.Object = cancelObject(fleet.CommandID(uuid(1)), r.Proof)
		}
		return true
	})
	forged := edit(t, tableRequests, func(r *state.Request) bool {
		if r.Kind == entry.KindCancelCommand {
			r.Request = []byte(fmt.Sprintf(`{"CommandId":%q}`, uuid(2)))
		}
		return true
	})
	for name, c := range map[string]struct {
		change func(string, []byte) [][]byte
		want   string
	}{
		"a cancel that nobody signed":        {without, "not what was signed"},
		"one that was not cancelled":         {row(1, fleet.CancelPending), "not what was signed"},
		"one that is not cancelled any more": {row(0, fleet.Pending), "not what was signed"},
		"one that runs on":                   {row(0, fleet.InProgress), "not what was signed"},
		"a cancel of another command":        {other, "is kept as"},
		"a cancel of more":                   {forged, "not the one that was signed"},
		"a cancel twice":                     {add(tableRequests, signed), "twice"},
		"a cancel before the command": {edit(t, tableRequests, func(r *state.Request) bool {
			if r.Kind == entry.KindCancelCommand {
				r.Stamp = start - second
			}
			return true
		}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := restore(rewrite(t, b, c.change))
			if fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want it refused with %q", err, c.want)
			}
		})
	}
	// A replica that knows of the cancel is not talked out of it.
	before := newWorld(t)
	before.must(before.send(1, nil))
	old := snapshotOf(t, before.fsm)
	before.must(before.cancel(1))
	if err := before.fsm.Restore(io.NopCloser(bytes.NewReader(old))); !strings.Contains(fmt.Sprint(err), "was cancelled, and it says otherwise") {
		t.Errorf("a snapshot without the cancel: %v", err)
	}
}
