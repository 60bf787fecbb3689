package state

import (
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

type featuresRow struct{ level uint32 }

// Features is the decided feature level: entries of kinds that need a higher one
// are not proposed.
func (v View) Features() uint32 {
	if row := first[featuresRow](v, "features", "id", ""); row != nil {
		return row.level
	}
	return entry.BaseLevel
}

// SetFeatures sets Features.
func (t *Txn) SetFeatures(level uint32) { t.put("features", &featuresRow{level}) }

// Mark is how far a voter's log had come when a leader last said so; nil if none
// did.
func (v View) Mark(node fleet.NodeID) *fleet.VoterMark {
	return first[fleet.VoterMark](v, "marks", "id", string(node))
}

// Marks is all marks by node.
func (v View) Marks() []*fleet.VoterMark { return all[fleet.VoterMark](v, "marks", "id") }

// WatchMarks is closed when a mark changes.
func (v View) WatchMarks() <-chan struct{} { return v.watch("marks") }

// PutMark adds or replaces a mark.
func (t *Txn) PutMark(m *fleet.VoterMark) { t.put("marks", m) }

// DeleteMark removes a mark.
func (t *Txn) DeleteMark(m *fleet.VoterMark) { t.remove("marks", m) }
