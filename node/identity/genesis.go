package identity

import (
	"bytes"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxGenesis is the size of the largest genesis, in bytes.
const MaxGenesis = 128 << 10

// GenesisPayload is what a fleet begins with: the first entry of its log.
type GenesisPayload struct {
	Trust           []byte         `msgpack:"t"` // trust.json, version 1
	RootCertificate []byte         `msgpack:"c"` // DER
	FleetName       string         `msgpack:"f"`
	Operator        fleet.Operator `msgpack:"o"` // the first; also named in trust.json
	Node            fleet.Node     `msgpack:"n"` // the first host, the only voter
	GossipKey       []byte         `msgpack:"g"` // 32 bytes, in clear: it grants nothing
}

type genesis struct {
	Version        uint8 `msgpack:"v"`
	GenesisPayload `msgpack:",inline"`
}

// SignGenesis signs p with the root key. It checks nothing: ParseGenesis does,
// for everybody.
func SignGenesis(root PrivateKey, p GenesisPayload) []byte {
	payload := wire.MustMarshal(&genesis{1, p})
	return EncodeSigned(payload, root.Sign(UseGenesis, payload))
}

// ParseGenesis reads a genesis and verifies all of it: that the certificate is
// that of the fleet's root key, that this key signed the genesis and the
// trust.json in it, and that operator, host and trust.json agree.
func ParseGenesis(b []byte, fleetID fleet.ID) (*GenesisPayload, *Trust, error) {
	const what = "genesis"
	var g genesis
	payload, signature, err := DecodeSigned(b, MaxGenesis, what, &g)
	if err != nil {
		return nil, nil, err
	}
	if err := checkVersion(what, g.Version); err != nil {
		return nil, nil, err
	}
	root, err := VerifyRoot(g.RootCertificate, fleetID)
	if err != nil {
		return nil, nil, err
	}
	if !Verify(root, UseGenesis, payload, signature) {
		return nil, nil, fleet.Errorf(fleet.Unauthenticated, "genesis is not signed by the root key %s", root.Fingerprint())
	}
	t, err := ParseTrust(g.Trust, root)
	if err != nil {
		return nil, nil, err
	}
	if err := g.check(t); err != nil {
		return nil, nil, err
	}
	return &g.GenesisPayload, t, nil
}

func (p *GenesisPayload) check(t *Trust) error {
	bad := func(format string, args ...any) error {
		return fleet.Errorf(fleet.Invalid, "genesis: "+format, args...)
	}
	if err := fleet.CheckName(p.FleetName); err != nil {
		return bad("%w", err)
	}
	if len(p.GossipKey) != 32 || bytes.Equal(p.GossipKey, make([]byte, 32)) {
		return bad("the gossip key is not 32 random bytes")
	}
	first := t.FirstOperator
	if t.Version != 1 || first == nil {
		return bad("trust.json is not the version 1 that names the first operator")
	}
	o := &p.Operator
	if o.Name != first.Name || len(o.Keys) != 1 || o.Keys[0] != first.Key || len(o.May) == 0 {
		return bad("operator %q is not the one of trust.json, or may do nothing", o.Name)
	}
	n := &p.Node
	if n.ID != fleet.NodeIDOf(n.Key) || n.Activation != "" || n.Index != 0 {
		return bad("the first host %s is not what its key and a genesis make it", n.ID)
	}
	if len(t.Voters) != 1 || t.Voters[0].Node != n.ID {
		return bad("the first host %s is not the only voter", n.ID)
	}
	if err := fleet.CheckNodeName(n.Name); err != nil {
		return bad("%w", err)
	}
	if err := CheckAddress(n.Address); err != nil {
		return bad("%w", err)
	}
	for k, v := range n.Labels {
		if err := fleet.CheckLabel(k, v); err != nil {
			return bad("%w", err)
		}
	}
	return nil
}
