package raftfsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
)

func (w *world) results(c *fleet.Command, rows ...fleet.Invocation) *entry.Results {
	return &entry.Results{Stamp: w.now, Command: c.ID, Attempt: c.Attempt, Rows: rows}
}

func (w *world) command(n int) *fleet.Command {
	w.tb.Helper()
	c, err := w.fsm.Store().FindCommand(fleet.CommandID(uuid(n)))
	if err != nil {
		w.tb.Fatal(err)
	}
	return c
}

func TestSendCommand(t *testing.T) {
	w := newWorld(t)
	w.hosts(5)
	e := w.send(1, func(r *entry.SendCommandV1) { r.Comment, r.RunAs = "hello", "www-data" })
	c := w.must(e).(*fleet.Command)
	var ids []fleet.NodeID
	for _, n := range w.fsm.Store().Nodes() {
		ids = append(ids, n.ID)
	}
	if !slices.Equal(c.Targets, ids) || !slices.IsSorted(c.Targets) || len(ids) != 5 {
		t.Errorf("targets %v; want %v", c.Targets, ids)
	}
	if c.Created != w.now || c.NotAfter != w.now+60*second || c.Expires != w.now+160*second+int64(entry.ExpiryGrace) || !c.Open() {
		t.Errorf("command %+v", c)
	}
	if c.Mint != (fleet.Mint{N: 1, NotBefore: w.now}) || c.Attempt != 1 || c.Counts[fleet.Pending] != 5 || c.Index != w.index {
		t.Errorf("command %+v", c)
	}
	if c.Request != fleet.Sum(e.Request) || c.Comment != "hello" || c.RunAs != "www-data" || c.Operator != "ada" || c.DocumentVersion != "1" {
		t.Errorf("command %+v", c)
	}
	want := wire.MustMarshal(wire.StringMap{"a": {"1", "2"}, "commands": {"true"}})
	if !slices.Equal(c.Parameters, want) || c.ParametersDigest != fleet.Sum(want) {
		t.Errorf("parameters %x; want %x", c.Parameters, want)
	}
	if got := w.fsm.Store().Content(c.Document); string(got) != document {
		t.Errorf("content %q", got)
	}
	rows := w.fsm.Store().Invocations(c.ID)
	if len(rows) != 5 || rows[4].Index != 4 || rows[4].State != fleet.Pending {
		t.Errorf("rows %+v", rows)
	}
	none := w.must(w.send(2, func(r *entry.SendCommandV1) { r.Parameters = nil })).(*fleet.Command)
	if string(none.Parameters) != "\x80" {
		t.Errorf("no parameters are %x; want an empty map", none.Parameters)
	}
}

func TestSendCommandToNobody(t *testing.T) {
	w := newWorld(t)
	c := w.must(w.send(1, func(r *entry.SendCommandV1) {
		r.Targets = []fleet.Target{{Key: "tag:role", Values: []string{"web"}}}
	})).(*fleet.Command)
	if len(c.Targets) != 0 || c.Ended != w.now || c.Open() || len(w.fsm.Store().OpenCommands()) != 0 {
		t.Errorf("command %+v; want one that has ended", c)
	}
	w.refused(&entry.Mint{Stamp: w.now, Command: c.ID, Attempt: 1, N: 2, NotBefore: w.now}, fleet.Conflict)
	w.refused(w.results(c, fleet.Invocation{State: fleet.Success}), fleet.Invalid)
}

func TestSendCommandRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*entry.SendCommandV1)
		more func(*entry.SendCommand)
		code string
	}{
		"unknown node":   {func(r *entry.SendCommandV1) { r.Targets, r.InstanceIds = nil, []string{string(nodeID(44))} }, nil, "InvalidInstanceId"},
		"unknown target": {func(r *entry.SendCommandV1) { r.Targets[0].Values = []string{string(nodeID(44))} }, nil, "InvalidInstanceId"},
		"a node twice": {func(r *entry.SendCommandV1) {
			r.Targets, r.InstanceIds = nil, []string{string(firstNode), string(firstNode)}
		}, nil, "DuplicateInstanceId"},
		"another version":      {func(r *entry.SendCommandV1) { r.DocumentVersion = "2" }, nil, "InvalidDocumentVersion"},
		"another content":      {func(r *entry.SendCommandV1) { r.DocumentHash = fleet.Sum(nil).String() }, nil, "InvalidDocument"},
		"rate control":         {func(r *entry.SendCommandV1) { r.MaxErrors = "-1" }, nil, "ValidationException"},
		"no execution time":    {nil, func(e *entry.SendCommand) { e.ExecutionSeconds = 0 }, ""},
		"an ID that is a name": {nil, func(e *entry.SendCommand) { e.ID = "command" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e := w.send(1, c.edit)
			if c.more != nil {
				c.more(e)
			}
			answer := w.apply(e)
			err, ok := answer.Err.(*fleet.Error)
			if !ok || err.Code != c.code {
				t.Errorf("answered %v, %+v; want the code %q", answer.Value, answer.Err, c.code)
			}
		})
	}
}

func TestResults(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	row := func(index uint32, s fleet.InvocationState) fleet.Invocation {
		return fleet.Invocation{Index: index, State: s, Code: int32(s)}
	}
	for _, step := range []struct {
		name string
		in   []fleet.Invocation
		want []fleet.InvocationState // as answered
		open bool
	}{
		{"two accept", []fleet.Invocation{row(0, fleet.InProgress), row(2, fleet.InProgress)}, []fleet.InvocationState{fleet.InProgress, fleet.InProgress}, true},
		{"one ends", []fleet.Invocation{row(0, fleet.Success)}, []fleet.InvocationState{fleet.Success}, true},
		{"accepted after its end", []fleet.Invocation{row(0, fleet.InProgress)}, []fleet.InvocationState{fleet.Success}, true},
		{"another end", []fleet.Invocation{row(0, fleet.Failed), row(1, fleet.Failed)}, []fleet.InvocationState{fleet.Success, fleet.Failed}, true},
		{"accepted twice", []fleet.Invocation{row(2, fleet.InProgress)}, []fleet.InvocationState{fleet.InProgress}, true},
		{"the last", []fleet.Invocation{row(2, fleet.Interrupted), row(3, fleet.Undeliverable)}, []fleet.InvocationState{fleet.Interrupted, fleet.Undeliverable}, false},
		{"late", []fleet.Invocation{row(3, fleet.Success)}, []fleet.InvocationState{fleet.Undeliverable}, false},
	} {
		w.now += second
		got := w.must(w.results(c, step.in...)).([]fleet.Invocation)
		for i, s := range step.want {
			if got[i].State != s || got[i].Index != step.in[i].Index || s.Final() != (got[i].Decided > 0) {
				t.Errorf("%s: row %+v; want %s", step.name, got[i], s)
			}
		}
		if open := w.command(1).Open(); open != step.open {
			t.Errorf("%s: open %v; want %v", step.name, open, step.open)
		}
	}
	done := w.command(1)
	if done.Ended != start+6*second || done.Counts[fleet.Success] != 1 || done.Counts[fleet.Failed] != 1 || done.Counts[fleet.Pending] != 0 {
		t.Errorf("command %+v", done)
	}
	if first := w.fsm.Store().Invocation(c.ID, 0); first.Code != int32(fleet.Success) || first.Decided != w.index-5 {
		t.Errorf("row %+v; want what was said first, at entry %d", first, w.index-5)
	}
	if c.Counts[fleet.Pending] != 4 {
		t.Error("a row that was read has changed")
	}
	w.refused(w.results(c, row(4, fleet.Success)), fleet.Invalid)
	w.refused(w.results(c, row(300, fleet.Success)), fleet.Invalid)
	w.refused(&entry.Results{Stamp: w.now, Command: c.ID, Attempt: 2, Rows: []fleet.Invocation{row(0, fleet.Success)}}, fleet.Conflict)
	w.refused(&entry.Results{Stamp: w.now, Command: fleet.CommandID(uuid(9)), Attempt: 1, Rows: []fleet.Invocation{row(0, fleet.Success)}}, fleet.NotFound)
}

func TestMint(t *testing.T) {
	w := newWorld(t)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	next := func(n uint32) *entry.Mint {
		return &entry.Mint{Stamp: w.now, Command: c.ID, Attempt: 1, N: n, NotBefore: w.now}
	}
	w.refused(next(1), fleet.Conflict)
	w.refused(next(3), fleet.Conflict)
	w.now += 30 * second
	if got := w.must(next(2)).(*fleet.Command); got.Mint != (fleet.Mint{N: 2, NotBefore: w.now}) || got.Index != w.index {
		t.Errorf("command %+v", got)
	}
	w.refused(next(2), fleet.Conflict)
	early, late := next(3), next(3)
	early.NotBefore = c.Created - 1
	late.NotBefore = w.now + int64(entry.Skew) + 1
	w.refused(early, fleet.Invalid)
	w.refused(late, fleet.Invalid)
	w.now = c.Expires - 1
	w.must(next(3))
	w.now = c.Expires
	w.refused(next(4), fleet.Expired)
	w.must(w.results(c, fleet.Invocation{State: fleet.Success}))
	w.refused(next(4), fleet.Conflict)
}

// TestExpireSaid: what a host answered last is its row's reason, unless it had
// taken the command.
func TestExpireSaid(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	w.must(w.results(c, fleet.Invocation{Index: 1, State: fleet.InProgress, Code: -1, Started: 5}))
	text := strings.Repeat("x", entry.MaxSaidText)
	w.now = c.Expires + int64(entry.Skew) + 1
	w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1, Said: []entry.Said{{Index: 0, Text: text}, {Index: 1, Text: text}, {Index: 99, Text: text}}})
	rows := w.fsm.Store().Invocations(c.ID)
	if r := rows[0].Reason; !strings.HasSuffix(r, "; its last answer: "+text) || strings.Contains(r, "not reached") || len(r) > entry.MaxReason {
		t.Errorf("host 0: %q", r)
	}
	if rows[1].Reason != reasonNotReported || rows[2].Reason != reasonNotDelivered {
		t.Errorf("the others: %q, %q", rows[1].Reason, rows[2].Reason)
	}
}

func TestExpire(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	w.must(w.results(c, fleet.Invocation{Index: 1, State: fleet.InProgress, Code: -1, Started: 5}))
	skew := int64(entry.Skew)
	for _, step := range []struct {
		at   int64
		want []fleet.InvocationState
	}{
		{c.NotAfter + skew, []fleet.InvocationState{fleet.Pending, fleet.InProgress, fleet.Pending}},
		{c.NotAfter + skew + 1, []fleet.InvocationState{fleet.DeliveryTimedOut, fleet.InProgress, fleet.DeliveryTimedOut}},
		{c.Expires + skew, []fleet.InvocationState{fleet.DeliveryTimedOut, fleet.InProgress, fleet.DeliveryTimedOut}},
		{c.Expires + skew + 1, []fleet.InvocationState{fleet.DeliveryTimedOut, fleet.DeliveryTimedOut, fleet.DeliveryTimedOut}},
	} {
		w.now = step.at
		w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
		for i, r := range w.fsm.Store().Invocations(c.ID) {
			if r.State != step.want[i] || r.State.Final() && (r.Reason == "" || r.Code != -1) {
				t.Errorf("at %d row %+v; want %s", step.at-c.Created, r, step.want[i])
			}
		}
	}
	if got := w.command(1); got.Open() || got.Counts[fleet.DeliveryTimedOut] != 3 {
		t.Errorf("command %+v", got)
	}
	hash := w.fsm.Hash()
	w.must(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 1})
	if w.fsm.Hash() != hash {
		t.Error("it expired twice")
	}
	w.refused(&entry.Expire{Stamp: w.now, Command: c.ID, Attempt: 2}, fleet.Conflict)
	w.refused(&entry.Expire{Stamp: w.now, Command: fleet.CommandID(uuid(9)), Attempt: 1}, fleet.NotFound)
}

// TestResultsAgainstModel compares with the rule written down once more: a row
// goes Pending, InProgress, final, and never back.
func TestResultsAgainstModel(t *testing.T) {
	const hosts = 600 // three shards
	w := newWorld(t)
	w.quick = true
	w.hosts(hosts)
	c := w.must(w.send(1, nil)).(*fleet.Command)
	model := make([]fleet.InvocationState, hosts)
	r := rand.New(rand.NewPCG(3, 4))
	for round := 0; w.command(1).Open(); round++ {
		shard := uint32(r.IntN(3))
		e := w.results(c)
		for i := shard * fleet.ShardSize; i < min((shard+1)*fleet.ShardSize, hosts); i++ {
			if r.IntN(3) > 0 {
				continue
			}
			s := fleet.InvocationState(1 + r.IntN(10))
			e.Rows = append(e.Rows, fleet.Invocation{Index: i, State: s})
			if !model[i].Final() && (s.Final() || model[i] == fleet.Pending) {
				model[i] = s
			}
		}
		if len(e.Rows) == 0 {
			continue
		}
		for _, row := range w.must(e).([]fleet.Invocation) {
			if row.State != model[row.Index] {
				t.Fatalf("round %d: row %d is answered %s; want %s", round, row.Index, row.State, model[row.Index])
			}
		}
	}
	counts := make([]uint32, countedStates)
	for i, row := range w.fsm.Store().Invocations(c.ID) {
		counts[model[i]]++
		if row.State != model[i] || !row.State.Final() {
			t.Errorf("row %d is %s; want %s", i, row.State, model[i])
		}
	}
	if got := w.command(1).Counts; !slices.Equal(got, counts) {
		t.Errorf("counts %v; want %v", got, counts)
	}
	if h, err := restore(snapshotOf(t, w.fsm)); err != nil || h.Hash() != w.fsm.Hash() {
		t.Errorf("it does not come back from a snapshot: %v", err)
	}
}

func TestCountsGrow(t *testing.T) {
	c := fleet.Command{Counts: make([]uint32, countedStates)}
	count(&c, fleet.InvocationState(12), 1)
	if fmt.Sprint(c.Counts) != "[0 0 0 0 0 0 0 0 0 0 0 0 1]" {
		t.Errorf("counts %v", c.Counts)
	}
}

// A snapshot cannot widen a command whose selector names nodes.
func TestSelectorsThatNameNodesAreChecked(t *testing.T) {
	ids := func(n ...int) (all []fleet.NodeID) {
		for _, i := range n {
			all = append(all, nodeID(i))
		}
		return all
	}
	named := fleet.Target{Key: "InstanceIds", Values: []string{string(nodeID(1)), string(nodeID(2))}}
	label := fleet.Target{Key: "tag:role", Values: []string{"web"}}
	for name, c := range map[string]struct {
		targets   []fleet.NodeID
		selectors []fleet.Target
		ok        bool
	}{
		"those named":              {ids(1, 2), []fleet.Target{named}, true},
		"one of those named":       {ids(1), []fleet.Target{named}, false},
		"one who is not named":     {ids(1, 3), []fleet.Target{named}, false},
		"narrowed by a label":      {ids(1), []fleet.Target{named, label}, true},
		"widened behind a label":   {ids(1, 3), []fleet.Target{label, named}, false},
		"only a label":             {ids(1, 3), []fleet.Target{label}, true},
		"all":                      {ids(1, 2, 3), []fleet.Target{{Key: "InstanceIds", Values: []string{"*"}}}, true},
		"all and, useless, a name": {ids(1, 3), []fleet.Target{{Key: "InstanceIds", Values: []string{string(nodeID(1)), "*"}}}, true},
	} {
		if err := checkSelected(c.targets, c.selectors); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
