//go:build !planted_maporder

package state

import "fleet/node/fleet"

// inOrder is the targets of a command in the order that every replica gives
// them: that of the rows, which is by ID.
func inOrder(ids []fleet.NodeID) []fleet.NodeID { return ids }
