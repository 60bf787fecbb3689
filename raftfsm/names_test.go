package raftfsm

import (
	"testing"

	"fleet/node/fleet"
)

func TestRenameNode(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	n := w.must(w.rename(1, "web7")).(*fleet.Node)
	if n.Name != "web7" || n.Index != w.index || n.ID != nodeID(1) {
		t.Errorf("node %+v", n)
	}
	w.must(w.rename(2, "web7")) // two hosts of one name are two hosts
	if all := w.fsm.Store().NodesByName("web7"); len(all) != 2 {
		t.Errorf("%d nodes are called web7; want 2", len(all))
	}
	w.must(w.rename(1, "web8"))
	w.must(w.rename(1, "host2")) // as it was called first
	w.refused(w.rename(9, "web9"), fleet.NotFound)
	w.must(w.remove(2))
	w.refused(w.rename(2, "web9"), fleet.NotFound)
	// A host that asks again for what it got keeps the name that it was given.
	w.must(w.rename(1, "web1"))
	if n := w.must(w.join(1000, 1)).(*fleet.Node); n.Name != "web1" {
		t.Errorf("node %+v", n)
	}
	if f, err := restore(snapshotOf(t, w.fsm)); err != nil || f.Hash() != w.fsm.Hash() {
		t.Errorf("restore: %v", err)
	}
}
