package raftfsm

import (
	"bytes"
	"io"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

func TestGossipKeyRotation(t *testing.T) {
	w := newWorld(t)
	keys := func() *state.GossipKeys { return w.fsm.Store().GossipKeys() }
	if g := keys(); g.Version != 1 || len(g.Keys) != 1 || !bytes.Equal(g.Keys[0].Key, bytes.Repeat([]byte{9}, 32)) || g.Keys[0].Made != start {
		t.Fatalf("after genesis %+v", g)
	}
	w.refused(w.rotation(entry.GossipKeyUsed, 1), fleet.Conflict)
	w.refused(w.rotation(entry.GossipKeyDropped, 1), fleet.Conflict)
	w.now += second
	first := w.rotate(1, 77)
	w.must(first)
	if g := keys(); g.Version != 2 || !g.Spreading() || g.Retiring() || g.Newest().N != 2 || g.Newest().Made != w.now || g.Index != w.index || g.Keys[0].N != 1 {
		t.Errorf("after the first step %+v", g)
	}
	index := w.index
	// The operator's request again is answered; another one has to wait; a step
	// of another time counts for nothing.
	if g := w.must(first).(*state.GossipKeys); g.Version != 2 {
		t.Errorf("asked again: %+v", g)
	}
	w.refused(w.rotate(2, 78), fleet.Conflict)
	w.refused(w.rotation(entry.GossipKeyUsed, 1), fleet.Conflict)
	w.refused(w.rotation(entry.GossipKeyDropped, 2), fleet.Conflict)
	w.must(w.rotation(entry.GossipKeyUsed, 2))
	if g := keys(); g.Version != 3 || !g.Retiring() || g.Spreading() || g.Keys[0].N != 2 || g.Newest().N != 2 || g.Index != index {
		t.Errorf("after the second step %+v", g)
	}
	w.must(w.rotation(entry.GossipKeyDropped, 3))
	if g := keys(); g.Version != 4 || len(g.Keys) != 1 || !bytes.Equal(g.Raw()[0], bytes.Repeat([]byte{77}, 32)) {
		t.Errorf("after the last step %+v", g)
	}
	// The leader rotates by itself too.
	w.must(&entry.GossipKey{Stamp: w.now, Step: entry.GossipKeyMade, Version: 4, Key: bytes.Repeat([]byte{5}, 32)})
	if g := keys(); g.Newest().N != 3 {
		t.Errorf("after the leader's step %+v", g)
	}
}

func TestForgedGossipKeyRequests(t *testing.T) {
	mallory := key('M', 0)
	for name, c := range map[string]struct {
		forge func(w *world) *entry.GossipKey
		kind  fleet.Kind
	}{
		"another key": {func(w *world) *entry.GossipKey {
			e := w.rotate(1, 1)
			e.Proof = identity.SignProof(mallory, w.proof(rotateOperation, e.Request))
			return e
		}, fleet.Unauthenticated},
		"another operation": {func(w *world) *entry.GossipKey {
			e := w.rotate(1, 1)
			e.Proof = identity.SignProof(operatorKey, w.proof("SendCommand", e.Request))
			return e
		}, fleet.Unauthenticated},
		"another request": {func(w *world) *entry.GossipKey {
			e := w.rotate(1, 1)
			e.Request = []byte("{ }")
			return e
		}, fleet.Unauthenticated},
		"a request that says more": {func(w *world) *entry.GossipKey {
			e := w.rotate(1, 1)
			e.Request = []byte(`{"Key":"x"}`)
			e.Proof = identity.SignProof(operatorKey, w.proof(rotateOperation, e.Request))
			return e
		}, fleet.Invalid},
		"an operator without the right": {func(w *world) *entry.GossipKey {
			w.must(w.appoint("bob", 2, "SendCommand"))
			e := w.rotate(1, 1)
			e.Proof = w.signs("bob", key('O', 2), rotateOperation, "", entry.RotateGossipKeyV1{}).Proof
			return e
		}, fleet.Denied},
		"a proof that ended": {func(w *world) *entry.GossipKey {
			e := w.rotate(1, 1)
			w.now += 301 * second
			e.Stamp = w.now
			return e
		}, fleet.Expired},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.refused(c.forge(w), c.kind)
			if g := w.fsm.Store().GossipKeys(); g.Version != 1 {
				t.Errorf("the keys changed: %+v", g)
			}
		})
	}
}

// A snapshot brings the keys along and cannot take them back.
func TestGossipKeySnapshots(t *testing.T) {
	for steps := range 4 {
		w := newWorld(t)
		if steps > 0 {
			w.must(w.rotate(1, 77))
		}
		if steps > 1 {
			w.must(w.rotation(entry.GossipKeyUsed, 2))
		}
		if steps > 2 {
			w.must(w.rotation(entry.GossipKeyDropped, 3))
		}
		snapshot := snapshotOf(t, w.fsm)
		other := New(fleetID)
		if err := other.Restore(io.NopCloser(bytes.NewReader(snapshot))); err != nil {
			t.Fatalf("%d steps: %v", steps, err)
		}
		if got, want := other.Store().GossipKeys(), w.fsm.Store().GossipKeys(); got.Version != want.Version || len(got.Keys) != len(want.Keys) || got.Newest().N != want.Newest().N {
			t.Errorf("%d steps: %+v, want %+v", steps, got, want)
		}
		if steps == 0 {
			continue
		}
		older := newWorld(t)
		if err := w.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, older.fsm)))); err == nil {
			t.Errorf("%d steps: a snapshot of before took the keys back", steps)
		}
	}
}
