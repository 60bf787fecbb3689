package raftfsm

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// marks is an entry about some voters.
func (w *world) marks(all ...fleet.VoterMark) *entry.Marks {
	slices.SortFunc(all, func(a, b fleet.VoterMark) int { return cmp.Compare(a.Node, b.Node) })
	return &entry.Marks{Stamp: w.now, Marks: all}
}

// TestMarks: a mark only rises, by term and then by index, and ends with the
// vote.
func TestMarks(t *testing.T) {
	w := newWorld(t)
	a, b := nodeID(1), nodeID(2)
	show := func() string {
		text := ""
		for _, m := range w.fsm.Store().Marks() {
			name := map[fleet.NodeID]string{a: "a", b: "b"}[m.Node]
			text += fmt.Sprintf("%s %d %d; ", name, m.Term, m.Index)
		}
		return text
	}
	first, second := a, b
	if b < a {
		first, second = b, a
	}
	names := map[fleet.NodeID]string{a: "a", b: "b"}
	want := func(one, two string) {
		t.Helper()
		text := ""
		for _, half := range []struct {
			id   fleet.NodeID
			mark string
		}{{first, map[string]string{"a": one, "b": two}[names[first]]}, {second, map[string]string{"a": one, "b": two}[names[second]]}} {
			if half.mark != "" {
				text += names[half.id] + " " + half.mark + "; "
			}
		}
		if got := show(); got != text {
			t.Errorf("marks are %q, want %q", got, text)
		}
	}
	w.must(w.marks(fleet.VoterMark{Node: a, Term: 2, Index: 10}, fleet.VoterMark{Node: b}))
	want("2 10", "0 0")
	w.must(w.marks(fleet.VoterMark{Node: a, Term: 2, Index: 9}, fleet.VoterMark{Node: b, Term: 2, Index: 7}))
	want("2 10", "2 7")
	w.must(w.marks(fleet.VoterMark{Node: a, Term: 3, Index: 8}, fleet.VoterMark{Node: b}))
	want("3 8", "2 7")
	w.must(w.marks(fleet.VoterMark{Node: a, Term: 1, Index: 99}))
	want("3 8", "")
	for name, bad := range map[string]*entry.Marks{
		"none":                   w.marks(),
		"a term without index":   w.marks(fleet.VoterMark{Node: a, Term: 1}),
		"no node":                w.marks(fleet.VoterMark{Term: 1, Index: 1}),
		"one twice":              w.marks(fleet.VoterMark{Node: a}, fleet.VoterMark{Node: a}),
		"more than can be voter": w.marks(make([]fleet.VoterMark, entry.MaxMarks+1)...),
	} {
		if a := w.apply(bad); a.Err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	want("3 8", "")
}

// TestFeatures: the level only rises, and a voter stops at one that it does not
// know.
func TestFeatures(t *testing.T) {
	w := newWorld(t)
	if got := w.fsm.Store().Features(); got != entry.BaseLevel {
		t.Errorf("a new fleet has feature level %d, want %d", got, entry.BaseLevel)
	}
	w.refused(&entry.Features{Stamp: w.now, Level: entry.BaseLevel}, fleet.Invalid)
	w.must(&entry.Features{Stamp: w.now, Level: entry.MaxLevel})
	w.refused(&entry.Features{Stamp: w.now, Level: entry.MaxLevel}, fleet.Conflict)
	if got := w.fsm.Store().Features(); got != entry.MaxLevel {
		t.Errorf("feature level %d, want %d", got, entry.MaxLevel)
	}
	b, err := entry.Encode(&entry.Features{Stamp: w.now, Level: entry.MaxLevel + 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := entry.Decode(b); err == nil {
		t.Error("a feature level of a later release is read")
	}

	// A snapshot from before cannot lower it.
	old := newWorld(t)
	if err := w.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, old.fsm)))); err == nil {
		t.Error("a snapshot with a lower feature level was taken")
	}
}

// TestHashAt: replicas agree about the state at a Marks entry, whatever came
// after, and one that was changed beside the log does not.
func TestHashAt(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	other := New(fleetID)
	feed := func(f *FSM) {
		for i, b := range w.log {
			if index := uint64(i + 1); index > f.Applied() {
				f.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: b})
			}
		}
	}
	if _, known := w.fsm.HashAt(0); known || w.fsm.Marked() != 0 {
		t.Error("a state has a hash before the first mark")
	}
	w.must(w.marks(fleet.VoterMark{Node: nodeID(1), Term: 1, Index: 3}))
	at := w.fsm.Marked()
	want := w.fsm.Hash()
	w.must(w.rename(1, "later"))
	feed(other)
	for name, f := range map[string]*FSM{"first": w.fsm, "other": other} {
		if got, known := f.HashAt(at); !known || got != want {
			t.Errorf("%s: hash at %d is %s, %v; want %s", name, at, got, known, want)
		}
		if _, known := f.HashAt(at + 1); known {
			t.Errorf("%s has a hash at an entry that is no mark", name)
		}
	}
	txn := other.Store().Write()
	row := *txn.Node(nodeID(2))
	row.Name = "forged"
	txn.PutNode(&row)
	txn.Commit()
	w.must(w.marks(fleet.VoterMark{Node: nodeID(1), Term: 1, Index: 9}))
	feed(other)
	mine, _ := w.fsm.HashAt(w.fsm.Marked())
	if got, known := other.HashAt(w.fsm.Marked()); !known || got == mine {
		t.Error("a state that was changed beside the log has the same hash")
	}
	f, err := restore(snapshotOf(t, w.fsm))
	if err != nil {
		t.Fatal(err)
	}
	if _, known := f.HashAt(w.fsm.Marked()); known {
		t.Error("a restored replica says what its state was at an entry it did not apply")
	}
}
