package state

import (
	"fleet/node/fleet"
)

// SavedTarget is the saved target of this name; nil if there is none.
func (v View) SavedTarget(name fleet.TargetName) *fleet.SavedTarget {
	return first[fleet.SavedTarget](v, "targets", "id", string(name))
}

// SavedTargets is all saved targets by name.
func (v View) SavedTargets() []*fleet.SavedTarget { return all[fleet.SavedTarget](v, "targets", "id") }

// PutSavedTarget adds or replaces a saved target.
func (t *Txn) PutSavedTarget(s *fleet.SavedTarget) { t.put("targets", s) }

// DeleteSavedTarget removes a saved target.
func (t *Txn) DeleteSavedTarget(s *fleet.SavedTarget) { t.remove("targets", s) }
