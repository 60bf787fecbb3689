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

// addressOf is host n's word that it moved.
func addressOf(tb testing.TB, n int, now int64) []byte {
	tb.Helper()
	b, err := identity.NewAddressChange(identity.AddressChange{
		Fleet: fleetID, Node: nodeID(n), Address: "10.7.7.7:7790", Epoch: uint32(now/second) + 5,
	}, key('A', n))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// signProof is ada's proof of a removal, made with another key.
func signProof(w *world, by identity.PrivateKey, request []byte) []byte {
	p := w.proof("DeregisterManagedInstance", request)
	p.Key = by.Public().ID()
	return identity.SignProof(by, p)
}

// TestRemoveNode is the end of a host: its row is gone, its key never counts
// again, and what was open on it has ended.
func TestRemoveNode(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	w.must(w.send(1, nil)) // of hosts 0 to 3
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
	w.must(w.results(w.command(1), fleet.Invocation{Index: at(3), State: fleet.Success, Started: w.now, Ended: w.now}))
	w.now += second
	watch := w.fsm.Store().WatchRemovals()
	r := w.must(w.remove(1)).(*fleet.Removal)
	if r.Node.ID != nodeID(1) || r.Operator != "ada" || r.At != w.now || r.Index != w.index || r.Node.Key != key('A', 1).Public() {
		t.Errorf("removal %+v", r)
	}
	select {
	case <-watch:
	default:
		t.Error("nobody was woken")
	}
	w.must(w.remove(2))
	w.must(w.remove(3))
	for n, want := range map[int]fleet.InvocationState{1: fleet.Undeliverable, 2: fleet.Interrupted, 3: fleet.Success} {
		row := w.fsm.Store().Invocation(w.command(1).ID, at(n))
		if row.State != want || row.Decided == 0 || want != fleet.Success && !strings.Contains(row.Reason, "removed from the fleet") {
			t.Errorf("host %d: %+v; want %s", n, row, want)
		}
		if w.fsm.Store().Node(nodeID(n)) != nil || w.fsm.Store().NodeByKey(key('A', n).Public()) != nil {
			t.Errorf("host %d still has a row", n)
		}
	}
	if !w.command(1).Open() {
		t.Error("the command ended, and host 0 has not answered")
	}

	// It does not come back, by whatever door.
	if err := w.refused(w.join(1000, 1), fleet.Denied); !strings.Contains(fmt.Sprint(err), "was removed from the fleet by ada at 2026-01-01T00:00:01Z") {
		t.Errorf("join: %v", err)
	}
	w.refused(&entry.Address{Stamp: w.now, Request: addressOf(t, 1, w.now)}, fleet.NotFound)
	w.refused(w.remove(1), fleet.NotFound)
	w.refused(w.remove(9), fleet.NotFound)
	w.refused(&entry.AddTags{Authority: w.authority("AddTagsToResource", "", entry.AddTagsToResourceV1{
		ResourceType: "ManagedInstance", ResourceId: string(nodeID(1)), Tags: []entry.Tag{{Key: "a", Value: "b"}},
	})}, fleet.NotFound)
	w.refused(w.send(2, func(req *entry.SendCommandV1) { req.Targets, req.InstanceIds = nil, []string{string(nodeID(1))} }), fleet.NotFound)
	if c := w.must(w.send(3, nil)).(*fleet.Command); len(c.Targets) != 1 || c.Targets[0] != firstNode {
		t.Errorf("targets %v; want the first host alone", c.Targets)
	}
	// The last open row was that of host 0.
	w.must(w.results(w.command(1), fleet.Invocation{Index: at(0), State: fleet.Success, Started: w.now, Ended: w.now}))
	if c := w.command(1); c.Open() || c.Counts[fleet.Undeliverable] != 1 || c.Counts[fleet.Interrupted] != 1 || c.Counts[fleet.Success] != 2 {
		t.Errorf("command %+v", c)
	}
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() || f.Store().Removal(nodeID(1)) == nil {
		t.Errorf("restore: %v", err)
	}
}

// TestARemovalEndsACommand is the removal of the one host that was awaited.
func TestARemovalEndsACommand(t *testing.T) {
	w := newWorld(t)
	w.hosts(2)
	w.must(w.send(1, func(req *entry.SendCommandV1) { req.Targets, req.InstanceIds = nil, []string{string(nodeID(1))} }))
	w.must(w.remove(1))
	if c := w.command(1); c.Open() || c.Index != w.index {
		t.Errorf("command %+v", c)
	}
}

// TestVotersAreNotRemoved holds whoever proposes it: a fleet whose trust.json
// names a host that has no row could not be led.
func TestVotersAreNotRemoved(t *testing.T) {
	w := newWorld(t)
	w.hosts(4)
	if err := w.refused(w.remove(0), fleet.Conflict); !strings.Contains(fmt.Sprint(err), "is of the quorum") {
		t.Errorf("remove: %v", err)
	}
	w.must(&entry.Trust{Stamp: w.now, Trust: trustJSON(t, rootKey, 2, 0, 3)})
	w.refused(w.remove(2), fleet.Conflict)
	w.must(w.remove(3))
	late := &entry.Trust{Stamp: w.now, Trust: trustJSON(t, rootKey, 3, 0, 5)}
	if err := w.refused(late, fleet.Conflict); !strings.Contains(fmt.Sprint(err), "names a voter that is gone") {
		t.Errorf("trust: %v", err)
	}
}

// TestForgedRemoval is a leader, or a host, that removes what no operator
// asked it to.
func TestForgedRemoval(t *testing.T) {
	for name, c := range map[string]struct {
		forge func(w *world, e *entry.RemoveNode)
		kind  fleet.Kind
	}{
		"another node": {func(w *world, e *entry.RemoveNode) {
			e.Request = bytes.ReplaceAll(e.Request, []byte(nodeID(1)), []byte(nodeID(2)))
		}, fleet.Unauthenticated},
		"signed by the host's key": {func(w *world, e *entry.RemoveNode) {
			e.Proof = signProof(w, key('A', 1), e.Request)
		}, fleet.Unauthenticated},
		"a proof of another operation": {func(w *world, e *entry.RemoveNode) {
			e.Proof = w.send(1, nil).Proof
		}, fleet.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hosts(3)
			e := w.remove(1)
			c.forge(w, e)
			w.refused(e, c.kind)
			if len(w.fsm.Store().Removals()) != 0 {
				t.Error("a host was removed")
			}
		})
	}
}
