package raftfsm

import (
	"sync"

	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

// marked is the state behind a Marks entry: all replicas have one there, and
// compare it.
type marked struct {
	index uint64
	store *state.Store

	once sync.Once // sets hash
	hash fleet.Digest
}

// Marked is the index of the last Marks entry that was applied; 0 if none was
// since the start or the last restore.
func (f *FSM) Marked() uint64 {
	if m := f.marked.Load(); m != nil {
		return m.index
	}
	return 0
}

// HashAt is the Hash that this replica had at a Marks entry; false if that is
// not the last one.
func (f *FSM) HashAt(index uint64) (fleet.Digest, bool) {
	m := f.marked.Load()
	if m == nil || m.index != index {
		return fleet.Digest{}, false
	}
	m.once.Do(func() { m.hash = hashOf(m.store.View) })
	return m.hash, true
}
