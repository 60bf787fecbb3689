package identity

import (
	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxRejoin is the size of the largest rejoin request, in bytes.
const MaxRejoin = 1 << 10

// Rejoin is a host's question whether it is still of the fleet, and its wish
// for a certificate if it is. It needs no certificate, which may have ended
// while the host was off, and no activation: the key is in the host's row. Who
// sends it again gets a certificate for a key that he does not have.
type Rejoin struct {
	Fleet fleet.ID        `msgpack:"f"`
	Key   fleet.PublicKey `msgpack:"k"` // agent key
	Epoch uint32          `msgpack:"e"` // Unix seconds by the host's clock
}

type rejoin struct {
	Version uint8 `msgpack:"v"`
	Rejoin  `msgpack:",inline"`
}

// NewRejoin signs a rejoin request of the host that has the agent key.
func NewRejoin(p Rejoin, agent PrivateKey) ([]byte, error) {
	if p.Key != agent.Public() {
		return nil, fleet.Errorf(fleet.Invalid, "rejoin request: the key is not the agent's")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := wire.MustMarshal(&rejoin{1, p})
	return EncodeSigned(payload, agent.Sign(UseRejoin, payload)), nil
}

// ParseRejoin reads a rejoin request and verifies that the key in it signed it.
// Whether that is a host's key is the registry's to say.
func ParseRejoin(b []byte) (*Rejoin, error) {
	const what = "rejoin request"
	var p rejoin
	payload, signature, err := decodeFirst(b, MaxRejoin, what, &p, &p.Version, p.check)
	if err != nil {
		return nil, err
	}
	if !Verify(p.Key, UseRejoin, payload, signature) {
		return nil, fleet.Errorf(fleet.Unauthenticated, "%s: not signed by its agent key", what)
	}
	return &p.Rejoin, nil
}

func (p *Rejoin) check() error {
	if _, err := fleet.ParseID(string(p.Fleet)); err != nil {
		return err
	}
	if p.Key.IsZero() {
		return fleet.Errorf(fleet.Invalid, "rejoin request: there is no agent key")
	}
	return nil
}
