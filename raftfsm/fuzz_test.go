package raftfsm

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
)

// FuzzApply applies foreign bytes to a full state: what can be read is answered
// without a panic, what is refused changes nothing, and what was accepted
// leaves a state whose snapshot is believed.
func FuzzApply(f *testing.F) {
	w := fullWorld(f)
	for _, b := range w.log {
		f.Add(b)
	}
	w.now += second
	for _, body := range []entry.Body{
		w.send(7, nil), w.target("web", nil), w.target("new", nil), w.removeTarget("web"), w.leave(1), w.join(1, 9), &entry.Trust{Stamp: w.now, Trust: trustJSON(f, rootKey, 3, 0, 3)},
		w.results(w.command(2), fleet.Invocation{Index: 1, State: fleet.Success}),
		&entry.Mint{Stamp: w.now, Command: w.command(2).ID, Attempt: 1, N: 2, NotBefore: w.now},
		w.cancel(2), w.cancel(2, w.command(2).Targets[1]), w.cancel(1),
		&entry.Expire{Stamp: w.now + 1000*second, Command: w.command(2).ID, Attempt: 1},
	} {
		b, err := entry.Encode(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	hash := w.fsm.Hash()
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := entry.Decode(b); err != nil {
			return // Apply stops the process
		}
		replica := New(fleetID)
		replica.store.Store(w.fsm.Store().Snapshot()) // a copy that costs nothing
		answer := replica.Apply(&raft.Log{Index: w.index + 1, Type: raft.LogCommand, Data: b}).(Answer)
		if answer.Err != nil {
			if replica.Hash() != hash {
				t.Fatalf("it was refused (%v) and changed the state", answer.Err)
			}
			return
		}
		again, err := restore(snapshotOf(t, replica))
		if err != nil || again.Hash() != replica.Hash() {
			t.Fatalf("the state after it does not come back from a snapshot: %v", err)
		}
	})
}

// FuzzRestore reads foreign snapshots. The second input is put, with sound
// checksums, in place of the row that the number names, so that what lies
// behind the checksums is reached.
func FuzzRestore(f *testing.F) {
	b := snapshotOf(f, fullWorld(f).fsm)
	f.Add(b, []byte{0x80}, 0)
	f.Add(b[:len(b)-9], wire.MustMarshal(&clockRow{1}), 3)
	row := 0
	in := &frameReader{r: bytes.NewReader(b[len(magic)+1:]), sum: sha256.New()}
	for {
		fr, _, err := in.next()
		if err != nil {
			f.Fatal(err)
		}
		if fr.Table == tableEnd {
			break
		}
		f.Add([]byte(magic), fr.Row, row)
		row++
	}
	f.Fuzz(func(t *testing.T, foreign, inner []byte, place int) {
		if replica, err := restore(foreign); err == nil {
			mustRoundTrip(t, replica)
		} else if fleet.KindOf(err) != fleet.Corrupt {
			t.Fatalf("kind %s: %v", fleet.KindOf(err), err)
		}
		n := -1
		forged := rewrite(t, b, func(_ string, row []byte) [][]byte {
			if n++; n == place {
				return [][]byte{inner}
			}
			return [][]byte{row}
		})
		if replica, err := restore(forged); err == nil {
			mustRoundTrip(t, replica)
		}
	})
}

// mustRoundTrip holds that a state that was believed is written as it is.
func mustRoundTrip(t *testing.T, replica *FSM) {
	t.Helper()
	again := New(fleetID)
	if err := again.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, replica)))); err != nil || again.Hash() != replica.Hash() {
		t.Fatalf("what was restored cannot be restored again: %v", err)
	}
}
