//go:build planted_maporder

package state

import "fleet/node/fleet"

// A planted bug: the targets pass through a map.
func inOrder(ids []fleet.NodeID) []fleet.NodeID {
	set := map[fleet.NodeID]bool{}
	for _, id := range ids {
		set[id] = true
	}
	ids = ids[:0]
	for id := range set {
		ids = append(ids, id)
	}
	return ids
}
