//go:build planted_agentraft

package transport

import "fleet/node/fleet"

// A planted bug: every certificate of the fleet opens the log.
var raftClients = []fleet.Role{fleet.RoleQuorum, fleet.RoleAgent}
