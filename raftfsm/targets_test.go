package raftfsm

import (
	"fmt"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
)

func TestTargets(t *testing.T) {
	w := newWorld(t)
	made := w.must(w.target("web", nil)).(*fleet.SavedTarget)
	if made.Name != "web" || made.NodeSet != "web[1-3]" || len(made.Selectors) != 1 || made.Operator != "ada" || made.Modified != w.now {
		t.Errorf("made %+v", made)
	}
	w.now += second
	again := w.must(w.target("web", func(r *entry.PutTargetV1) { r.NodeSet, r.Targets = "web1", nil })).(*fleet.SavedTarget)
	if s := w.fsm.Store(); again.NodeSet != "web1" || len(again.Selectors) != 0 || len(s.SavedTargets()) != 1 || s.SavedTarget("web") != again {
		t.Errorf("replaced %+v", again)
	}
	w.refused(w.removeTarget("nothere"), fleet.NotFound)
	w.must(w.removeTarget("web"))
	w.refused(w.removeTarget("web"), fleet.NotFound)
	if s := w.fsm.Store(); s.SavedTarget("web") != nil || s.Request(entry.KindPutTarget, "web") != nil {
		t.Error("something is left of it")
	}
}

func TestForgedTargets(t *testing.T) {
	mallory := key('O', 1)
	for name, c := range map[string]struct {
		forge func(w *world) entry.Body
		kind  fleet.Kind
	}{
		"another key": {func(w *world) entry.Body {
			e := w.target("web", nil)
			e.Proof = identity.SignProof(mallory, w.proof("PutTarget", e.Request))
			return e
		}, fleet.Unauthenticated},
		"another request": {func(w *world) entry.Body {
			e := w.target("web", nil)
			e.Request = w.target("web", func(r *entry.PutTargetV1) { r.NodeSet = "@*" }).Request
			return e
		}, fleet.Unauthenticated},
		"a proof for another operation": {func(w *world) entry.Body {
			e := w.target("web", nil)
			e.Proof = identity.SignProof(operatorKey, w.proof("SendCommand", e.Request))
			return e
		}, fleet.Unauthenticated},
		"removed by nobody": {func(w *world) entry.Body {
			e := w.removeTarget("kept")
			e.Proof = identity.SignProof(mallory, w.proof("DeleteTarget", e.Request))
			return e
		}, fleet.Unauthenticated},
		"a put as a removal": {func(w *world) entry.Body {
			return &entry.DeleteTarget{Authority: w.target("kept", nil).Authority}
		}, fleet.Unauthenticated},
		"an old one again, later": {func(w *world) entry.Body {
			old := w.target("kept", nil)
			w.now += int64(identity.ProofLifetime) + second
			old.Stamp = w.now
			return old
		}, fleet.Expired},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			kept := w.must(w.target("kept", nil))
			w.refused(c.forge(w), c.kind)
			if s := w.fsm.Store(); s.SavedTarget("web") != nil || s.SavedTarget("kept") != kept {
				t.Error("it changed a target")
			}
		})
	}
}

func TestTargetsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.quick = true
	for i := range entry.MaxSavedTargets {
		w.must(w.target(fmt.Sprintf("t%d", i), nil))
	}
	w.refused(w.target("one-more", nil), fleet.TooLarge)
	w.must(w.target("t7", nil)) // replacing needs no room
	w.must(w.removeTarget("t8"))
	w.must(w.target("one-more", nil))
}
