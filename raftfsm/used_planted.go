//go:build planted_nodedupe

package raftfsm

import (
	"fleet/node/identity"
	"fleet/raftfsm/state"
)

// A planted bug: a request that is sent again counts again.
func (s *step) usedBy(*identity.SignedProof) *state.Nonce { return nil }
