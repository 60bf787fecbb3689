package identity

import (
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func testCandidate(w *world) Candidate {
	return Candidate{Fleet: w.fleet, Node: w.node, Quorum: w.quorum.Public(), Issuer: w.issuer.Public()}
}

func TestCandidate(t *testing.T) {
	w := newWorld(t, 1)
	b, err := NewCandidate(testCandidate(w), w.agent, w.quorum, w.issuer)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseCandidate(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.Candidate != testCandidate(w) {
		t.Errorf("got %+v", s.Candidate)
	}
	if err := s.Verify(w.agent.Public()); err != nil {
		t.Error(err)
	}
	other := testCandidate(w)
	other.Issuer = testKey(99).Public()
	if s.Fingerprint() == other.Fingerprint() || len(s.Fingerprint()) != 39 {
		t.Errorf("fingerprint %q does not cover the issuing key", s.Fingerprint())
	}
	cases := []struct {
		name   string
		agent  fleet.PublicKey
		change func(*SignedCandidate)
		part   string
	}{
		{"another agent", testKey(99).Public(), func(*SignedCandidate) {}, "not signed by"},
		{"agent's signature by another", w.agent.Public(), func(s *SignedCandidate) {
			s.AgentSig = testKey(99).Sign(UseCandidate, s.Payload)
		}, "not signed by"},
		{"quorum key not held", w.agent.Public(), func(s *SignedCandidate) { s.QuorumSig = s.AgentSig }, "does not show"},
		{"issuing key not held", w.agent.Public(), func(s *SignedCandidate) { s.IssuerSig = s.QuorumSig }, "does not show"},
		{"no signatures", w.agent.Public(), func(s *SignedCandidate) { s.QuorumSig, s.IssuerSig = nil, nil }, "does not show"},
		{"agent key as quorum key", w.agent.Public(), func(s *SignedCandidate) { s.Quorum = w.agent.Public() }, "second purpose"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			changed := *s
			c.change(&changed)
			wantKind(t, changed.Verify(c.agent), fleet.Unauthenticated, c.part)
		})
	}
	if _, err := NewCandidate(testCandidate(w), w.agent, w.issuer, w.quorum); err == nil {
		t.Error("signed with exchanged keys")
	}
	if _, err := NewCandidate(testCandidate(w), testKey(99), w.quorum, w.issuer); err == nil {
		t.Error("signed for another node")
	}
	for name, change := range map[string]func(*candidate){
		"version":          func(p *candidate) { p.Version = 2 },
		"fleet":            func(p *candidate) { p.Fleet = "x" },
		"node":             func(p *candidate) { p.Node = "x" },
		"quorum key":       func(p *candidate) { p.Quorum = fleet.PublicKey{} },
		"issuing key":      func(p *candidate) { p.Issuer = fleet.PublicKey{} },
		"one key for both": func(p *candidate) { p.Issuer = p.Quorum },
	} {
		p := candidate{1, testCandidate(w)}
		change(&p)
		payload := wire.MustMarshal(&p)
		_, err := ParseCandidate(wire.MustMarshal(&candidateEnvelope{Payload: payload}))
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
