package identity

import (
	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxLeave is the size of the largest signed farewell, in bytes.
const MaxLeave = 1 << 10

// Leave is a host's word that it goes out of its fleet for good.
type Leave struct {
	Fleet fleet.ID     `msgpack:"f"`
	Node  fleet.NodeID `msgpack:"n"`
	Epoch uint32       `msgpack:"e"` // Unix seconds, when it was signed: it counts for a short time only
}

type leave struct {
	Version uint8 `msgpack:"v"`
	Leave   `msgpack:",inline"`
}

// SignedLeave is a Leave as it travels.
type SignedLeave struct {
	Leave
	Payload, Signature []byte
}

// NewLeave signs p; its Node must be that of the agent key.
func NewLeave(p Leave, agent PrivateKey) ([]byte, error) {
	if p.Node != fleet.NodeIDOf(agent.Public()) {
		return nil, fleet.Errorf(fleet.Invalid, "farewell: %s is not the node of the signing key", p.Node)
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := wire.MustMarshal(&leave{1, p})
	return EncodeSigned(payload, agent.Sign(UseLeave, payload)), nil
}

// ParseLeave reads a signed farewell and checks its form; it does not verify
// the signature.
func ParseLeave(b []byte) (*SignedLeave, error) {
	const what = "farewell"
	var p leave
	payload, signature, err := decodeFirst(b, MaxLeave, what, &p, &p.Version, p.check)
	if err != nil {
		return nil, err
	}
	return &SignedLeave{p.Leave, payload, signature}, nil
}

// Verify checks that the host itself, whose agent key is given, said so. The
// error is of kind Unauthenticated.
func (s *SignedLeave) Verify(agent fleet.PublicKey) error {
	if s.Node != fleet.NodeIDOf(agent) || !Verify(agent, UseLeave, s.Payload, s.Signature) {
		return fleet.Errorf(fleet.Unauthenticated, "farewell: not signed by %s", s.Node)
	}
	return nil
}

func (p *Leave) check() error {
	if _, err := fleet.ParseID(string(p.Fleet)); err != nil {
		return err
	}
	_, err := fleet.ParseNodeID(string(p.Node))
	return err
}
