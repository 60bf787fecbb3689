package raftfsm

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
)

// TestOperators is the life of an operator: he may what he was granted, grants
// no more than that, and nothing once his rights ended.
func TestOperators(t *testing.T) {
	w := newWorld(t)
	w.hosts(2)
	bobs := key('O', 2)
	command := func(id int) *entry.SendCommand {
		return &entry.SendCommand{
			Authority: w.signs("bob", bobs, "SendCommand", uuid(id), bobsCommand()), Document: []byte(document), Version: "1", ExecutionSeconds: 100,
		}
	}
	w.refused(command(1), fleet.Unauthenticated)
	watch := w.fsm.Store().WatchOperators()
	o := w.must(w.appoint("bob", 2, "SendCommand", "CreateOperator")).(*fleet.Operator)
	if o.Name != "bob" || !slices.Equal(o.May, []string{"SendCommand", "CreateOperator"}) || o.Created != w.now || o.Keys[0] != bobs.Public() {
		t.Errorf("operator %+v", o)
	}
	select {
	case <-watch:
	default:
		t.Error("nobody was woken")
	}
	w.must(command(1))
	w.refused(&entry.AddTags{Authority: w.signs("bob", bobs, "AddTagsToResource", "", entry.AddTagsToResourceV1{
		ResourceType: "ManagedInstance", ResourceId: string(nodeID(1)), Tags: []entry.Tag{{Key: "a", Value: "b"}},
	})}, fleet.Denied)

	grant := func(n int, may ...string) *entry.CreateOperator {
		return &entry.CreateOperator{Authority: w.signs("bob", bobs, "CreateOperator", "", newOperator(fmt.Sprint("friend", n), n, may...))}
	}
	for _, may := range [][]string{{"*"}, {"SendCommand", "AddTagsToResource"}, {"DeleteOperator"}} {
		if err := w.refused(grant(5, may...), fleet.Denied); !strings.Contains(fmt.Sprint(err), "may not do it himself") {
			t.Errorf("%q: %v", may, err)
		}
	}
	w.must(grant(5, "SendCommand"))

	for name, e := range map[string]*entry.CreateOperator{
		"a name twice": w.appoint("bob", 6, "SendCommand"), "a key twice": w.appoint("bob2", 2, "SendCommand"),
	} {
		t.Run(name, func(t *testing.T) { w.refused(e, fleet.Conflict) })
	}
	w.now += second
	if name := w.must(w.dismiss("bob")); name != fleet.OperatorName("bob") {
		t.Errorf("answered %v", name)
	}
	w.refused(command(2), fleet.Unauthenticated)
	w.refused(w.dismiss("bob"), fleet.NotFound)
	w.refused(w.dismiss("nobody"), fleet.NotFound)
	w.refused(w.appoint("bob", 2, "SendCommand"), fleet.Conflict) // a revoked key stays so
	w.must(w.appoint("bob", 7, "SendCommand"))                    // the name does not
	w.refused(command(2), fleet.Unauthenticated)
	if w.command(1) == nil {
		t.Error("what he had sent went with him")
	}
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() ||
		len(f.Store().Operators()) != 3 || len(f.Store().FormerOperators()) != 1 {
		t.Errorf("restore: %v", err)
	}
}

// TestTheLastWhoMayEverythingStays whoever asks for it.
func TestTheLastWhoMayEverythingStays(t *testing.T) {
	w := newWorld(t)
	if err := w.refused(w.dismiss("ada"), fleet.Conflict); !strings.Contains(fmt.Sprint(err), "the last operator who may do everything") {
		t.Errorf("dismiss: %v", err)
	}
	w.must(w.appoint("bob", 2, "SendCommand", "DeleteOperator", "CreateOperator"))
	w.refused(w.dismiss("ada"), fleet.Conflict)
	w.must(w.appoint("eve", 3, "*"))

	// bob may end operators, but none that may more than he.
	bobs := func(name string) *entry.DeleteOperator {
		return &entry.DeleteOperator{Authority: w.signs("bob", key('O', 2), "DeleteOperator", "", entry.DeleteOperatorV1{Name: name})}
	}
	w.refused(bobs("eve"), fleet.Denied)
	w.must(w.appoint("dan", 4, "SendCommand"))
	w.must(bobs("dan"))
	w.must(bobs("bob")) // himself

	w.must(w.dismiss("ada"))
	w.refused(w.appoint("gus", 8, "*"), fleet.Unauthenticated)
	by := entry.DeleteOperatorV1{Name: "eve"}
	w.refused(&entry.DeleteOperator{Authority: w.signs("eve", key('O', 3), "DeleteOperator", "", by)}, fleet.Conflict)
	b := snapshotOf(t, w.fsm)
	f, err := restore(b)
	if err != nil || f.Hash() != w.fsm.Hash() || len(f.Store().Operators()) != 1 || f.Store().Operator("eve") == nil {
		t.Errorf("restore without the first operator: %v", err)
	}
	if err := f.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Errorf("restore again: %v", err)
	}
}

// TestOperatorsAreBounded: each stays in the state, and is looked through when
// the next one comes.
func TestOperatorsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.quick = true
	for n := 1; n < entry.MaxOperators; n++ { // ada is one
		w.must(w.appoint(fmt.Sprint("op", n), n, "SendCommand"))
	}
	w.refused(w.appoint("more", entry.MaxOperators, "SendCommand"), fleet.TooLarge)
	w.must(w.dismiss("op1"))
	w.must(w.appoint("more", entry.MaxOperators, "SendCommand"))
}

// TestForgedAppointments is a leader that makes or ends operators by itself.
func TestForgedAppointments(t *testing.T) {
	mallory := key('O', 1)
	for name, c := range map[string]struct {
		forge func(w *world) entry.Body
		kind  fleet.Kind
	}{
		"its own operator": {func(w *world) entry.Body {
			return &entry.CreateOperator{Authority: w.signs("mallory", mallory, "CreateOperator", "", newOperator("mallory", 1, "*"))}
		}, fleet.Unauthenticated},
		"its own operator, under ada's name": {func(w *world) entry.Body {
			return &entry.CreateOperator{Authority: w.signs("ada", mallory, "CreateOperator", "", newOperator("mallory", 1, "*"))}
		}, fleet.Unauthenticated},
		"another key than ada signed for": {func(w *world) entry.Body {
			e := w.appoint("bob", 2, "*")
			e.Request = encodeJSON(t, newOperator("bob", 1, "*"))
			return e
		}, fleet.Unauthenticated},
		"more than ada signed for": {func(w *world) entry.Body {
			e := w.appoint("bob", 2, "SendCommand")
			e.Request = encodeJSON(t, newOperator("bob", 2, "*"))
			return e
		}, fleet.Unauthenticated},
		"the end of ada": {func(w *world) entry.Body {
			e := w.dismiss("ada")
			p := w.proof("DeleteOperator", e.Request)
			p.Key = mallory.Public().ID()
			e.Proof = identity.SignProof(mallory, p)
			return e
		}, fleet.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.refused(c.forge(w), c.kind)
			if n := len(w.fsm.Store().Operators()); n != 1 {
				t.Errorf("%d operators", n)
			}
		})
	}
}
