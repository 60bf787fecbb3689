package raftfsm

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// TestReplace is a host whose disk died: another takes its name and its labels,
// and in the same entry its key counts no more.
func TestReplace(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	tags := []entry.Tag{{Key: "role", Value: "web"}}
	w.must(&entry.AddTags{Authority: w.authority("AddTagsToResource", "",
		entry.AddTagsToResourceV1{ResourceType: "ManagedInstance", ResourceId: string(nodeID(1)), Tags: tags})})
	a := w.must(w.createReplacing(1, 1)).(*fleet.Activation)
	if a.Replaces != nodeID(1) || a.Limit != 1 || w.fsm.Store().Node(nodeID(1)) == nil {
		t.Errorf("activation %+v", a)
	}
	w.must(w.rename(1, "web7")) // what counts is how it is called, and labelled, at its end
	w.must(w.send(1, nil))
	at, _ := state.TargetIndex(w.command(1), nodeID(1))
	w.now += second

	n := w.must(w.join(1, 10)).(*fleet.Node)
	if n.ID != nodeID(10) || n.Name != "web7" || !maps.Equal(n.Labels, map[string]string{"role": "web"}) || n.Replaces != nodeID(1) || n.Index != w.index {
		t.Errorf("node %+v", n)
	}
	r := w.fsm.Store().Removal(nodeID(1))
	if r == nil || r.ReplacedBy != nodeID(10) || r.Operator != "ada" || r.At != w.now || r.Index != w.index || w.fsm.Store().Node(nodeID(1)) != nil {
		t.Fatalf("removal %+v", r)
	}
	if row := w.fsm.Store().Invocation(w.command(1).ID, at); row.State != fleet.Undeliverable || row.Reason != reasonReplacedBefore {
		t.Errorf("its invocation: %+v", row)
	}
	if slices.Contains(w.command(1).Targets, nodeID(10)) {
		t.Error("the new host is to run what the old one was sent")
	}
	if got := w.fsm.Store().Activation(a.ID).Used; got != 1 {
		t.Errorf("the activation was used %d times", got)
	}

	// Who asks again is answered as before, who comes second is not let in, and
	// the old host does not come back.
	if again := w.must(w.join(1, 10)).(*fleet.Node); again.ID != n.ID || again.Replaces != nodeID(1) {
		t.Errorf("asked again: %+v", again)
	}
	w.refused(w.join(1, 11), fleet.Throttled)
	if err := w.refused(w.join(1000, 1), fleet.Denied); !strings.Contains(fmt.Sprint(err), "was replaced by node "+string(nodeID(10))) {
		t.Errorf("the old host: %v", err)
	}
	w.refused(w.remove(1), fleet.NotFound)

	// A third takes the place of the second, one without a name keeps its own.
	w.must(w.createReplacing(2, 10))
	if n := w.must(w.join(2, 11)).(*fleet.Node); n.Name != "web7" || n.Labels["role"] != "web" || n.Replaces != nodeID(10) {
		t.Errorf("node %+v", n)
	}
	w.must(w.rename(11, "web8"))
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() {
		t.Errorf("restore: %v", err)
	}
}

// TestReplaceTheFirst replaces the host with which the fleet began, once it
// votes no more, and one that nobody named.
func TestReplaceTheFirst(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	trust := identity.Trust{Fleet: fleetID, Version: 2, K: 2}
	for i := 1; i < 4; i++ {
		trust.Voters = append(trust.Voters, identity.TrustVoter{Node: nodeID(i), Key: key('Q', i).Public()})
		trust.Issuers = append(trust.Issuers, identity.TrustIssuer{Node: nodeID(i), Key: key('I', i).Public()})
	}
	b, err := identity.SignTrust(rootKey, trust)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(w.createReplacing(1, 0), fleet.Conflict)
	w.must(&entry.Trust{Stamp: w.now, Trust: b})
	w.must(w.createReplacing(2, 0))
	if n := w.must(w.join(2, 10)).(*fleet.Node); n.Name != "host1" {
		t.Errorf("node %+v", n)
	}
	nameless := activation(3, 1)
	nameless.DefaultInstanceName = ""
	w.must(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(3), nameless)})
	request, err := identity.NewJoinRequest(identity.JoinPayload{Fleet: fleetID, Activation: fleet.ActivationID(uuid(3)), Key: key('A', 11).Public(),
		Address: "10.0.0.11:7790", Epoch: uint32(w.now / second)}, key('A', 11), code(3))
	if err != nil {
		t.Fatal(err)
	}
	w.must(&entry.Enrol{Stamp: w.now, Request: request})
	w.must(w.createReplacing(4, 11))
	if n := w.must(w.join(4, 12)).(*fleet.Node); n.Name != "host13" {
		t.Errorf("it is called %s; want its own name, not the ID of another", n.Name)
	}
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() {
		t.Errorf("restore: %v", err)
	}
}

func TestReplacingActivationIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*entry.CreateActivationV1)
		kind fleet.Kind
		want string
	}{
		"for two hosts":  {func(r *entry.CreateActivationV1) { r.RegistrationLimit = 2 }, fleet.Invalid, "one host takes the place of one"},
		"with labels":    {func(r *entry.CreateActivationV1) { r.Tags = []entry.Tag{{Key: "a", Value: "b"}} }, fleet.Invalid, "Replaces excludes"},
		"with a name":    {func(r *entry.CreateActivationV1) { r.DefaultInstanceName = "web" }, fleet.Invalid, "Replaces excludes"},
		"no ID":          {func(r *entry.CreateActivationV1) { r.Replaces = "web7" }, fleet.Invalid, "web7"},
		"of nobody":      {func(r *entry.CreateActivationV1) { r.Replaces = string(nodeID(9)) }, fleet.NotFound, "no node"},
		"of a voter":     {func(r *entry.CreateActivationV1) { r.Replaces = string(nodeID(0)) }, fleet.Conflict, "is of the quorum"},
		"of one removed": {func(r *entry.CreateActivationV1) { r.Replaces = string(nodeID(2)) }, fleet.NotFound, "was removed from the fleet"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hosts(3)
			w.must(w.remove(2))
			req := replacing(1, 1)
			c.edit(&req)
			err := w.refused(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(1), req)}, c.kind)
			if !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
}

// TestReplaceNeedsBothRights is an operator who may let hosts in, and would
// take others out by it.
func TestReplaceNeedsBothRights(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	w.must(w.appoint("bob", 1, "CreateActivation"))
	w.must(w.appoint("eve", 2, "CreateActivation", "DeregisterManagedInstance"))
	make := func(name fleet.OperatorName, by, n int) *entry.CreateActivation {
		return &entry.CreateActivation{Authority: w.signs(name, key('O', by), "CreateActivation", uuid(n), replacing(n, 1))}
	}
	if err := w.refused(make("bob", 1, 1), fleet.Denied); !strings.Contains(fmt.Sprint(err), "may not DeregisterManagedInstance") {
		t.Errorf("bob: %v", err)
	}
	w.must(make("eve", 2, 2))
	// A leader that would have her replace another host.
	forged := make("eve", 2, 3)
	forged.Request = bytes.ReplaceAll(forged.Request, []byte(nodeID(1)), []byte(nodeID(2)))
	w.refused(forged, fleet.Unauthenticated)
	// The right ends with who had it.
	w.must(w.dismiss("eve"))
	if err := w.refused(w.join(2, 10), fleet.Denied); !strings.Contains(fmt.Sprint(err), "has no rights any more") {
		t.Errorf("after eve: %v", err)
	}
	w.must(w.appoint("eve", 3, "*")) // another of that name
	w.refused(w.join(2, 10), fleet.Denied)
	if w.fsm.Store().Node(nodeID(1)) == nil || len(w.fsm.Store().Removals()) != 0 {
		t.Error("a host was replaced")
	}
}

// TestReplaceTooLate is what can become of the host, or of the activation,
// before somebody joins: each has one outcome, and nobody is let in.
func TestReplaceTooLate(t *testing.T) {
	for name, c := range map[string]struct {
		before func(w *world)
		kind   fleet.Kind
		want   string
	}{
		"removed":        {func(w *world) { w.must(w.remove(1)) }, fleet.Conflict, "replaces a host that is gone: node " + string(nodeID(1)) + " (host2) was removed"},
		"it left":        {func(w *world) { w.must(w.leave(1)) }, fleet.Conflict, "left the fleet by itself"},
		"replaced":       {func(w *world) { w.must(w.createReplacing(2, 1)); w.must(w.join(2, 9)) }, fleet.Conflict, "was replaced by node"},
		"it votes":       {func(w *world) { w.must(&entry.Trust{Stamp: w.now, Trust: trustJSON(t, rootKey, 2, 0, 3)}) }, fleet.Conflict, "is of the quorum"},
		"expired":        {func(w *world) { w.now += 25 * 3600 * second }, fleet.Expired, "expired"},
		"used":           {func(w *world) { w.must(w.join(1, 9)) }, fleet.Throttled, "spent"},
		"used, then out": {func(w *world) { w.must(w.join(1, 9)); w.must(w.remove(9)) }, fleet.Throttled, "spent"},
		"deleted": {func(w *world) {
			w.must(&entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(1)})})
		}, fleet.NotFound, "no activation"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hosts(4)
			w.must(w.createReplacing(1, 1))
			c.before(w)
			nodes := len(w.fsm.Store().Nodes())
			if err := w.refused(w.join(1, 10), c.kind); !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if got := len(w.fsm.Store().Nodes()); got != nodes {
				t.Errorf("%d hosts; want %d", got, nodes)
			}
			if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() {
				t.Errorf("restore: %v", err)
			}
		})
	}
	// The host itself, which lost its FORMAT and asks with that token, is what it was.
	w := newWorld(t)
	w.hosts(2)
	w.must(w.createReplacing(1, 1))
	if n := w.must(w.join(1, 1)).(*fleet.Node); n.ID != nodeID(1) || n.Replaces != "" || w.fsm.Store().Activation(fleet.ActivationID(uuid(1))).Used != 0 {
		t.Errorf("node %+v", n)
	}
}

// TestForgedReplacementSnapshots is a voter that says of hosts that they
// replaced one another, or that they did not.
func TestForgedReplacementSnapshots(t *testing.T) {
	w := fullWorld(t) // 7 took the place of 6, 8 that of 7; an activation waits for who takes that of 8
	b := snapshotOf(t, w.fsm)
	gone := func(n int, change func(*fleet.Removal) bool) func(string, []byte) [][]byte {
		return edit(t, tableRemovals, func(r *fleet.Removal) bool { return r.Node.ID != nodeID(n) || change(r) })
	}
	here := func(n int, change func(*fleet.Node) bool) func(string, []byte) [][]byte {
		return edit(t, tableNodes, func(r *fleet.Node) bool { return r.ID != nodeID(n) || change(r) })
	}
	took := &fleet.Removal{Node: *w.fsm.Store().Node(nodeID(3)), At: w.now, Operator: "ada", ReplacedBy: nodeID(8)}
	for name, c := range map[string]struct {
		change func(string, []byte) [][]byte
		want   string
	}{
		"by another host":          {gone(6, func(r *fleet.Removal) bool { r.ReplacedBy = nodeID(1); return true }), "did not replace node"},
		"by a host there is not":   {gone(6, func(r *fleet.Removal) bool { r.ReplacedBy = nodeID(77); return true }), "never asked to enrol"},
		"at another time":          {gone(6, func(r *fleet.Removal) bool { r.At -= second; return true }), "did not replace node"},
		"by another operator":      {gone(6, func(r *fleet.Removal) bool { r.Operator = "eve"; return true }), "did not replace node"},
		"removed and not replaced": {gone(6, func(r *fleet.Removal) bool { r.ReplacedBy = ""; return true }), "nobody signed for RemoveNode"},
		"forgotten":                {gone(7, func(*fleet.Removal) bool { return false }), "of which that is not known"},
		"a host that stayed":       {add2(t, tableNodes, tableRemovals, nodeID(3), took), "did not replace node"},
		"who took it is gone":      {here(8, func(*fleet.Node) bool { return false }), "which there is not"},
		"of its own name":          {here(8, func(n *fleet.Node) bool { n.Name = "host9"; return true }), "not what was signed"},
		"of nobody's place":        {here(8, func(n *fleet.Node) bool { n.Replaces = ""; return true }), "not what was signed"},
		"of another's place":       {here(8, func(n *fleet.Node) bool { n.Replaces = nodeID(4); return true }), "not what was signed"},
		"an activation for another": {edit(t, tableActivations, func(a *fleet.Activation) bool {
			if a.Replaces != "" {
				a.Replaces = nodeID(1)
			}
			return true
		}), "not what was signed"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := restore(rewrite(t, b, c.change)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want it refused: %q", err, c.want)
			}
		})
	}
}

// TestReplacedByAnotherOfThatName: an operator's rights end, and another has his
// name when a host joins with what he left behind. Apply refuses that, so no
// snapshot has it either.
func TestReplacedByAnotherOfThatName(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	w.must(w.appoint("eve", 2, "CreateActivation", "DeregisterManagedInstance"))
	w.must(&entry.CreateActivation{Authority: w.signs("eve", key('O', 2), "CreateActivation", uuid(2), replacing(2, 1))})
	w.now += second
	w.must(w.join(2, 10))
	joined := w.now
	w.now += second
	w.must(w.dismiss("eve"))
	w.now += second
	w.must(w.appoint("eve", 3, "CreateActivation", "DeregisterManagedInstance"))
	b := snapshotOf(t, w.fsm)
	if _, err := restore(b); err != nil {
		t.Fatal(err)
	}
	// A stolen voter says that it was now.
	at := func(stamp int64) func(string, []byte) [][]byte {
		removals := edit(t, tableRemovals, func(r *fleet.Removal) bool { r.At = stamp; return true })
		nodes := edit(t, tableNodes, func(n *fleet.Node) bool {
			if n.Enrolled == joined {
				n.Enrolled = stamp
			}
			return true
		})
		requests := edit(t, tableRequests, func(r *state.Request) bool {
			if r.Kind == entry.KindEnrol && r.Stamp == joined {
				r.Stamp = stamp
			}
			return true
		})
		return func(table string, b []byte) [][]byte {
			switch table {
			case tableRemovals:
				return removals(table, b)
			case tableNodes:
				return nodes(table, b)
			}
			return requests(table, b)
		}
	}
	if _, err := restore(rewrite(t, b, at(w.now))); err == nil || !strings.Contains(err.Error(), "is not one of operator") {
		t.Errorf("%v; want it refused: the key is not that of who has the name", err)
	}
}

// add2 drops the row of a node from one table and puts a row into another.
func add2(tb testing.TB, from, to string, id fleet.NodeID, row any) func(string, []byte) [][]byte {
	drop := edit(tb, from, func(n *fleet.Node) bool { return n.ID != id })
	put := add(to, row)
	return func(table string, b []byte) [][]byte {
		if table == from {
			return drop(table, b)
		}
		return put(table, b)
	}
}

// TestReplacementThatNobodySaw is a voter that brings a replica a replacement of
// a time of which that one knows all.
func TestReplacementThatNobodySaw(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	w.must(w.createReplacing(1, 1))
	honest := New(fleetID)
	for i, b := range w.log {
		honest.Apply(&raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: b})
	}
	w.must(w.join(1, 10)) // on the stolen voter only
	later := *w
	later.fsm = honest
	later.now += 10 * second
	later.must(later.rename(2, "other"))
	w.now += 20 * second
	w.must(w.rename(2, "other"))
	if err := honest.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, w.fsm)))); err == nil || !strings.Contains(err.Error(), "has not seen it") {
		t.Errorf("%v; want it refused", err)
	}
}

// TestHostsThatReplaceInACircle is a snapshot of a voter and an operator who
// sign what no log can have decided.
func TestHostsThatReplaceInACircle(t *testing.T) {
	w := newWorld(t)
	r := &restorer{store: state.New(), old: w.fsm.Store().Snapshot(), objects: map[proofID]objectID{}, names: map[fleet.NodeID]*string{}}
	r.step = &step{Txn: r.store.Write(), fleet: fleetID}
	defer r.step.Abort()
	genesis := genesisPayload(t, rootKey)
	r.genesis = &genesis
	for i, old := range []int{11, 10} { // 10 replaces 11, 11 replaces 10
		a := w.createReplacing(1+i, old)
		r.step.PutRequest(&state.Request{Kind: entry.KindCreateActivation, Object: uuid(1 + i), Stamp: w.now, Request: a.Request, Proof: a.Proof})
		r.step.PutRequest(&state.Request{Kind: entry.KindEnrol, Object: string(nodeID(10 + i)), Stamp: w.now, Request: w.join(1+i, 10+i).Request})
	}
	n, err := r.enrolled(nodeID(10))
	if err != nil {
		t.Fatal(err)
	}
	if name, err := r.named(n); err == nil || !strings.Contains(err.Error(), "in a circle") {
		t.Errorf("named = %q, %v", name, err)
	}
}
