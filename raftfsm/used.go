//go:build !planted_nodedupe

package raftfsm

import (
	"fleet/node/identity"
	"fleet/raftfsm/state"
)

// usedBy is what a proof was used for before; nil if it is new.
func (s *step) usedBy(p *identity.SignedProof) *state.Nonce { return s.Nonce(p.Key, p.Nonce) }
