package identity

import (
	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxCandidate is the size of the largest candidate request, in bytes.
const MaxCandidate = 1 << 10

// Candidate is a host's request to become a voter: the keys that it made for
// that. No private key travels.
type Candidate struct {
	Fleet  fleet.ID        `msgpack:"f"`
	Node   fleet.NodeID    `msgpack:"n"`
	Quorum fleet.PublicKey `msgpack:"q"`
	Issuer fleet.PublicKey `msgpack:"i"`
}

type candidate struct {
	Version   uint8 `msgpack:"v"`
	Candidate `msgpack:",inline"`
}

// SignedCandidate is a Candidate as it travels: signed by the host's agent key
// and, to show that it has them, by both keys that it names.
type SignedCandidate struct {
	Candidate
	Payload                        []byte
	AgentSig, QuorumSig, IssuerSig []byte
}

type candidateEnvelope struct {
	Payload   []byte `msgpack:"p"`
	AgentSig  []byte `msgpack:"a"`
	QuorumSig []byte `msgpack:"q"`
	IssuerSig []byte `msgpack:"i"`
}

// NewCandidate signs p, whose node and keys must be those of the three keys.
func NewCandidate(p Candidate, agent, quorum, issuer PrivateKey) ([]byte, error) {
	if p.Node != fleet.NodeIDOf(agent.Public()) || p.Quorum != quorum.Public() || p.Issuer != issuer.Public() {
		return nil, fleet.Errorf(fleet.Invalid, "candidate: node or keys are not those of the signing keys")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := wire.MustMarshal(&candidate{1, p})
	return wire.MustMarshal(&candidateEnvelope{
		Payload:   payload,
		AgentSig:  agent.Sign(UseCandidate, payload),
		QuorumSig: quorum.Sign(UseCandidate, payload),
		IssuerSig: issuer.Sign(UseCandidate, payload),
	}), nil
}

// ParseCandidate reads a candidate request and checks its form; it verifies no
// signature.
func ParseCandidate(b []byte) (*SignedCandidate, error) {
	const what = "candidate"
	var e candidateEnvelope
	if err := decodeExact(b, MaxCandidate, what, &e); err != nil {
		return nil, err
	}
	var p candidate
	if err := decodeExact(e.Payload, MaxCandidate, what, &p); err != nil {
		return nil, err
	}
	if err := checkVersion(what, p.Version); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return &SignedCandidate{p.Candidate, e.Payload, e.AgentSig, e.QuorumSig, e.IssuerSig}, nil
}

// Verify checks all three signatures; agent is the key of the host's row. The
// error is of kind Unauthenticated.
func (s *SignedCandidate) Verify(agent fleet.PublicKey) error {
	if s.Node != fleet.NodeIDOf(agent) || !Verify(agent, UseCandidate, s.Payload, s.AgentSig) {
		return fleet.Errorf(fleet.Unauthenticated, "candidate: not signed by %s", s.Node)
	}
	if agent == s.Quorum || agent == s.Issuer {
		return fleet.Errorf(fleet.Unauthenticated, "candidate: the agent key of %s has a second purpose", s.Node)
	}
	if !Verify(s.Quorum, UseCandidate, s.Payload, s.QuorumSig) || !Verify(s.Issuer, UseCandidate, s.Payload, s.IssuerSig) {
		return fleet.Errorf(fleet.Unauthenticated, "candidate: %s does not show that it has the keys it names", s.Node)
	}
	return nil
}

// Fingerprint is for people to compare before they make the host a voter: it
// covers both keys, the node and the fleet. It has the form of a key's.
func (c Candidate) Fingerprint() string {
	sum := fleet.Sum(wire.MustMarshal(&candidate{1, c}))
	return fleet.PublicKey(sum).Fingerprint()
}

func (c *Candidate) check() error {
	if _, err := fleet.ParseID(string(c.Fleet)); err != nil {
		return err
	}
	if _, err := fleet.ParseNodeID(string(c.Node)); err != nil {
		return err
	}
	if c.Quorum.IsZero() || c.Issuer.IsZero() || c.Quorum == c.Issuer {
		return fleet.Errorf(fleet.Invalid, "candidate: two different keys are needed")
	}
	return nil
}
