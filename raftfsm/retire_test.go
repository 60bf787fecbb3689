package raftfsm

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// TestRetire: ended commands go thirty days after their end, with all that was
// kept for them; open ones never do, and no snapshot brings one back.
func TestRetire(t *testing.T) {
	w := newWorld(t)
	w.hosts(2)
	w.must(w.send(1, nil))
	w.must(w.send(2, func(r *entry.SendCommandV1) { r.TimeoutSeconds = entry.MaxDeliverySeconds }))
	w.must(w.cancel(1))
	w.now += 3 * 3600 * second
	w.must(&entry.Expire{Stamp: w.now, Command: w.command(1).ID, Attempt: 1})
	ended := w.command(1)
	if ended.Open() {
		t.Fatal("the first command has not ended")
	}
	before := snapshotOf(t, w.fsm)
	retire := func(want int) {
		t.Helper()
		if got := w.must(&entry.Retire{Stamp: w.now}); got != want {
			t.Errorf("%v commands are gone, want %d", got, want)
		}
	}
	w.now = ended.Ended + int64(entry.KeptFor) - 1
	retire(0)
	w.now++
	if a := w.fsm.Try(&entry.Retire{Stamp: w.now}); a.Value != 1 || w.fsm.Store().Command(ended.ID) == nil {
		t.Errorf("Try says %+v, want one, and nothing changed", a)
	}
	retire(1)
	store := w.fsm.Store()
	if store.Command(ended.ID) != nil || len(store.Shards()) != 0 || store.Request(entry.KindSendCommand, string(ended.ID)) != nil {
		t.Error("something is left of the command")
	}
	for _, r := range store.Requests() {
		if r.Kind == entry.KindCancelCommand {
			t.Error("its cancel is left")
		}
	}
	if store.Content(ended.Document) == nil {
		t.Error("the document is gone, and an open command has it")
	}
	w.now = w.command(2).Expires + int64(entry.KeptFor)
	retire(0) // it is open, however old
	w.must(&entry.Expire{Stamp: w.now, Command: w.command(2).ID, Attempt: 1})
	w.now += int64(entry.KeptFor)
	retire(1)
	if got := store.Contents(); len(got) != 0 {
		t.Errorf("%d documents are left of no command", len(got))
	}
	if _, err := restore(snapshotOf(t, w.fsm)); err != nil {
		t.Errorf("a snapshot after it: %v", err)
	}
	if err := w.fsm.Restore(io.NopCloser(bytes.NewReader(before))); err == nil {
		t.Error("a snapshot brought a command back")
	}
}

// TestRetiredBounds: above the bounds the oldest go first, but nothing that ended
// within the hour.
func TestRetiredBounds(t *testing.T) {
	hour := int64(time.Hour)
	var all []*fleet.Command // newest first
	for i := range entry.KeptCommands + 500 {
		all = append(all, &fleet.Command{ID: fleet.CommandID(fmt.Sprint(i)), Created: 1000 * hour, Ended: 1000*hour - int64(i), Targets: make([]fleet.NodeID, 1)})
	}
	if got := retired(all, 1000*hour); len(got) != 0 {
		t.Errorf("%d commands that ended within the hour go", len(got))
	}
	got := retired(all, 1001*hour)
	if len(got) != entry.MaxRetired || got[0] != all[len(all)-1] {
		t.Errorf("%d commands go, want %d beginning with the oldest", len(got), entry.MaxRetired)
	}
	if got := retired(all[:entry.KeptCommands+3], 1001*hour); len(got) != 3 {
		t.Errorf("%d commands go of 3 too many", len(got))
	}
	many := all[:100]
	for _, c := range many {
		c.Targets = make([]fleet.NodeID, entry.KeptTargets/50)
	}
	if got := retired(many, 1001*hour); len(got) != 50 {
		t.Errorf("%d commands go, want 50 for the others' targets to fit", len(got))
	}
}
