//go:build !planted_agentraft

package transport

import "fleet/node/fleet"

// raftClients are the roles that may speak Raft.
var raftClients = []fleet.Role{fleet.RoleQuorum}
