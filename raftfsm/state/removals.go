package state

import (
	"time"

	"fleet/node/fleet"
)

// Removal is the removal of the node of this ID; nil if it was not removed.
func (v View) Removal(id fleet.NodeID) *fleet.Removal {
	return first[fleet.Removal](v, "removals", "id", string(id))
}

// Removals is all removals by node ID.
func (v View) Removals() []*fleet.Removal { return all[fleet.Removal](v, "removals", "id") }

// RemovalsByActivation is the removed nodes that had enrolled with an
// activation, by ID.
func (v View) RemovalsByActivation(id fleet.ActivationID) []*fleet.Removal {
	return all[fleet.Removal](v, "removals", "activation", string(id))
}

// WatchRemovals is closed when a node is removed.
func (v View) WatchRemovals() <-chan struct{} { return v.watch("removals") }

// RemoveNode takes a node's row away and remembers why.
func (t *Txn) RemoveNode(r *fleet.Removal) {
	t.remove("nodes", &r.Node)
	t.PutRemoval(r)
}

// PutRemoval adds a removal whose node has no row.
func (t *Txn) PutRemoval(r *fleet.Removal) { t.put("removals", r) }

// Removed is the error that the host of a removal meets: of kind Denied, so
// that it is taken for an answer.
func Removed(r *fleet.Removal) error {
	return fleet.CodeErrorf(fleet.Denied, fleet.CodeNodeRemoved, "%s", RemovedText(r)).
		WithHint("it never counts again under this key: to make the host a new node of the fleet, " +
			"remove its data directory and join with a new activation")
}

// RemovedText says what became of a node.
func RemovedText(r *fleet.Removal) string {
	at := time.Unix(0, r.At).UTC().Format(time.RFC3339)
	if r.ReplacedBy != "" {
		return "node " + string(r.Node.ID) + " (" + r.Node.Name + ") was replaced by node " + string(r.ReplacedBy) + " at " + at
	}
	if r.Operator == "" {
		return "node " + string(r.Node.ID) + " (" + r.Node.Name + ") left the fleet by itself at " + at
	}
	return "node " + string(r.Node.ID) + " (" + r.Node.Name + ") was removed from the fleet by " + string(r.Operator) + " at " + at
}
