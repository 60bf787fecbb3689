package raftfsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
)

// TestLeave is the end of a host by its own word: as a removal, without an
// operator.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	w.must(w.send(1, nil))
	at := func(n int) uint32 {
		for i, id := range w.command(1).Targets {
			if id == nodeID(n) {
				return uint32(i)
			}
		}
		t.Fatalf("host %d is no target", n)
		return 0
	}
	w.must(w.results(w.command(1), fleet.Invocation{Index: at(2), State: fleet.InProgress, Code: -1, Started: w.now}))
	w.now += second
	watch := w.fsm.Store().WatchRemovals()
	first := w.leave(1)
	r := w.must(first).(*fleet.Removal)
	if r.Node.ID != nodeID(1) || r.Operator != "" || r.At != w.now || r.Index != w.index || r.Node.Key != key('A', 1).Public() {
		t.Errorf("removal %+v", r)
	}
	select {
	case <-watch:
	default:
		t.Error("nobody was woken")
	}
	w.must(w.leave(2))
	for n, want := range map[int]fleet.InvocationState{1: fleet.Undeliverable, 2: fleet.Interrupted} {
		row := w.fsm.Store().Invocation(w.command(1).ID, at(n))
		if row.State != want || row.Decided == 0 || !strings.Contains(row.Reason, "the host left the fleet before") {
			t.Errorf("host %d: %+v; want %s", n, row, want)
		}
	}
	// Who missed the answer gets it again, however late; an operator has nothing
	// left to remove.
	w.now += 3600 * second
	for _, again := range []*entry.Leave{first, w.leave(1)} {
		again.Stamp = w.now
		if got := w.must(again).(*fleet.Removal); got.At != r.At || got.Index != r.Index {
			t.Errorf("again: %+v", got)
		}
	}
	w.refused(w.remove(1), fleet.NotFound)
	if err := w.refused(w.join(1000, 1), fleet.Denied); !strings.Contains(fmt.Sprint(err), "left the fleet by itself at 2026-01-01T00:00:01Z") {
		t.Errorf("join: %v", err)
	}
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() || f.Store().Removal(nodeID(1)) == nil {
		t.Errorf("restore: %v", err)
	}
}

// TestLeaveRefused is every farewell that does not count.
func TestLeaveRefused(t *testing.T) {
	resigned := func(w *world, n int, by identity.PrivateKey, use identity.Use, edit func(payload []byte) []byte) *entry.Leave {
		l, err := identity.ParseLeave(w.leave(n).Request)
		if err != nil {
			t.Fatal(err)
		}
		payload := edit(l.Payload)
		return &entry.Leave{Stamp: w.now, Request: identity.EncodeSigned(payload, by.Sign(use, payload))}
	}
	as := func(payload []byte) []byte { return payload }
	for name, c := range map[string]struct {
		make func(w *world) *entry.Leave
		kind fleet.Kind
		text string
	}{
		"another host's, with a stolen agent key": {func(w *world) *entry.Leave {
			return resigned(w, 1, key('A', 1), identity.UseLeave, func(b []byte) []byte {
				return bytes.Replace(b, []byte(nodeID(1)), []byte(nodeID(2)), 1)
			})
		}, fleet.Unauthenticated, "not signed by"},
		"signed by the leader":  {func(w *world) *entry.Leave { return resigned(w, 1, key('Q', 0), identity.UseLeave, as) }, fleet.Unauthenticated, "not signed by"},
		"signed by an operator": {func(w *world) *entry.Leave { return resigned(w, 1, operatorKey, identity.UseLeave, as) }, fleet.Unauthenticated, "not signed by"},
		"signed for another use": {func(w *world) *entry.Leave {
			return resigned(w, 1, key('A', 1), identity.UseRejoin, as)
		}, fleet.Unauthenticated, "not signed by"},
		"to another fleet": {func(w *world) *entry.Leave {
			other := fleet.IDOf(key('R', 9).Public())
			return resigned(w, 1, key('A', 1), identity.UseLeave, func(b []byte) []byte { return bytes.Replace(b, []byte(fleetID), []byte(other), 1) })
		}, fleet.Unauthenticated, "this is fleet"},
		"of a host that is not enrolled": {func(w *world) *entry.Leave { return w.leave(9) }, fleet.NotFound, ""},
		"of a voter":                     {func(w *world) *entry.Leave { return w.leave(0) }, fleet.Conflict, "is of the quorum"},
		"kept and brought later": {func(w *world) *entry.Leave {
			e := w.leave(1)
			w.now += int64(maxFarewellAge) + second
			e.Stamp = w.now
			return e
		}, fleet.Expired, "set the clock"},
		"of a host whose clock runs ahead": {func(w *world) *entry.Leave {
			w.now += int64(maxFarewellAge) + second
			e := w.leave(1)
			w.now -= int64(maxFarewellAge) + second
			e.Stamp = w.now
			return e
		}, fleet.Expired, "set the clock"},
		"of a host that an operator removed": {func(w *world) *entry.Leave {
			w.must(w.remove(1))
			return w.leave(1)
		}, fleet.Denied, "was removed from the fleet by ada"},
		"that is none": {func(w *world) *entry.Leave {
			return &entry.Leave{Stamp: w.now, Request: addressOf(t, 1, w.now)}
		}, fleet.Invalid, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hosts(3)
			e := c.make(w)
			gone := len(w.fsm.Store().Removals())
			err := w.refused(e, c.kind)
			var full string
			if e, ok := err.(*fleet.Error); ok {
				full = e.Error() + " " + e.Hint
			}
			if !strings.Contains(full, c.text) {
				t.Errorf("%s; want %q", full, c.text)
			}
			if len(w.fsm.Store().Removals()) != gone {
				t.Error("a host left")
			}
		})
	}
}
