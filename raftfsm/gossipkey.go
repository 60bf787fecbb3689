package raftfsm

import (
	"fmt"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// rotateOperation is what an operator's proof of a rotation names.
const rotateOperation = "RotateGossipKey"

// gossipKey takes a step of a rotation of the gossip key.
func gossipKey(s *step, e *entry.GossipKey) (any, error) {
	s.at(e.Stamp)
	remember := func() {}
	if len(e.Proof) > 0 {
		if _, err := entry.ParseRotateGossipKey(e.Request); err != nil {
			return nil, err
		}
		p, _, err := Authorize(s.View, rotateOperation, s.stamp, e.Request, e.Proof)
		if err != nil {
			return nil, err
		}
		if used := s.Nonce(p.Key, p.Nonce); used != nil {
			if used.Kind != entry.KindGossipKey || used.Body != p.Body {
				return nil, fleet.Errorf(fleet.Conflict, "the nonce of this request was used for another request")
			}
			return s.GossipKeys(), nil // asked again
		}
		if s.NonceCount(p.Key) >= MaxNonces {
			return nil, fleet.Errorf(fleet.Throttled, "operator %q made more than %d requests", p.Operator, MaxNonces).WithHint("wait a few minutes")
		}
		remember = func() {
			s.PutNonce(&state.Nonce{Key: p.Key, Nonce: p.Nonce, NotAfter: p.NotAfter, Kind: entry.KindGossipKey, Body: p.Body})
		}
	}
	have := s.GossipKeys()
	if e.Version != have.Version {
		return nil, fleet.Errorf(fleet.Conflict, "the step is for version %d of the gossip keys, they have version %d", e.Version, have.Version)
	}
	next := &state.GossipKeys{Version: have.Version + 1, Stepped: s.stamp, Index: have.Index}
	switch {
	case e.Step == entry.GossipKeyMade && len(have.Keys) == 1:
		made := state.GossipKey{N: have.Keys[0].N + 1, Key: e.Key, Made: s.stamp}
		next.Keys, next.Index = []state.GossipKey{have.Keys[0], made}, s.index
	case e.Step == entry.GossipKeyMade:
		return nil, fleet.Errorf(fleet.Conflict, "a rotation of the gossip key is under way").
			WithHint("see how far it is: fleet gossip-key status")
	case e.Step == entry.GossipKeyUsed && have.Spreading():
		next.Keys = []state.GossipKey{have.Keys[1], have.Keys[0]}
	case e.Step == entry.GossipKeyDropped && have.Retiring():
		next.Keys = have.Keys[:1:1]
	default:
		return nil, fleet.Errorf(fleet.Conflict, "step %d does not follow from version %d of the gossip keys", e.Step, have.Version)
	}
	remember()
	s.PutGossipKeys(next)
	return next, nil
}

// loadGossipKeys takes the keys as they are said to be. They are the leader's
// word, in the log too, and grant nothing; checkWhole holds that they do not go
// back.
func (r *restorer) loadGossipKeys(row *state.GossipKeys) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.GossipKeys().Version > 1 {
		return errTwice
	}
	if row.Version < 2 || len(row.Keys) < 1 || len(row.Keys) > 2 || row.Stepped > r.step.LastStamp() {
		return fmt.Errorf("the gossip keys have no valid form")
	}
	for _, k := range row.Keys {
		if len(k.Key) != entry.GossipKeySize || k.N == 0 {
			return fmt.Errorf("gossip key %d has no valid form", k.N)
		}
	}
	if len(row.Keys) == 2 && !row.Spreading() && !row.Retiring() {
		return fmt.Errorf("two gossip keys have the number %d", row.Keys[0].N)
	}
	r.step.PutGossipKeys(row)
	return nil
}
