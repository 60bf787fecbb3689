package raftfsm

import (
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// genesis makes the fleet: trust version 1, the first operator, the first host.
func genesis(s *step, e *entry.Genesis) (any, error) {
	p, t, err := s.readGenesis(e.Payload)
	if err != nil {
		return nil, err
	}
	s.PutTrust(t)
	s.PutOperator(&p.Operator)
	node := p.Node
	node.Index = s.index
	s.PutNode(&node)
	s.at(node.Enrolled)
	return t, nil
}

// readGenesis verifies a genesis and sets the fleet's fixed row.
func (s *step) readGenesis(signed []byte) (*identity.GenesisPayload, *identity.Trust, error) {
	p, t, err := identity.ParseGenesis(signed, s.fleet)
	if err != nil {
		return nil, nil, err
	}
	if err := entry.CheckStamp(p.Node.Enrolled); err != nil {
		return nil, nil, err
	}
	root, err := identity.VerifyRoot(p.RootCertificate, s.fleet)
	if err != nil {
		return nil, nil, err
	}
	s.PutFleet(state.Fleet{
		ID: s.fleet, Name: p.FleetName, Root: root, RootCertificate: p.RootCertificate,
		Genesis: true, Signed: signed,
	})
	s.PutGossipKeys(&state.GossipKeys{
		Version: 1, Keys: []state.GossipKey{{N: 1, Key: p.GossipKey, Made: p.Node.Enrolled}}, Stepped: p.Node.Enrolled,
	})
	return p, t, nil
}

// trust takes a newer trust.json. Versions may be left out: one that the root
// key signed and that did not get here is never signed again for something else
// (see identity.RootKeyFile.SignTrust), and can come no more once a newer one did.
func trust(s *step, e *entry.Trust) (any, error) {
	s.at(e.Stamp)
	t, err := identity.ParseTrust(e.Trust, s.Fleet().Root)
	if err != nil {
		return nil, err
	}
	current := s.Trust()
	if !t.NewerThan(current.Epoch, current.Version) {
		return nil, fleet.Errorf(fleet.Conflict, "trust.json of epoch %d, version %d cannot follow epoch %d, version %d", t.Epoch, t.Version, current.Epoch, current.Version)
	}
	for _, v := range t.Voters {
		if r := s.Removal(v.Node); r != nil {
			return nil, fleet.Errorf(fleet.Conflict, "trust.json of version %d names a voter that is gone: %s", t.Version, state.RemovedText(r)).
				WithHint("sign one without it: fleet quorum add with other hosts")
		}
	}
	s.PutTrust(t)
	return t, nil
}
