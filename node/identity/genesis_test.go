package identity

import (
	"reflect"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func TestGenesis(t *testing.T) {
	w := newWorld(t, 1)
	want := w.genesis(t, w.rootDER)
	b := SignGenesis(w.root, want)
	got, trust, err := ParseGenesis(b, w.fleet)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, want %+v", *got, want)
	}
	if trust.Version != 1 || trust.FirstOperator.Name != want.Operator.Name {
		t.Errorf("trust = %+v", trust)
	}
}

func TestParseGenesisRefuses(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	build := func(change func(*GenesisPayload)) []byte {
		p := w.genesis(t, w.rootDER)
		change(&p)
		return SignGenesis(w.root, p)
	}
	trust := func(change func(*Trust)) []byte {
		return build(func(p *GenesisPayload) {
			tr := w.trust()
			change(&tr)
			b, err := SignTrust(w.root, tr)
			if err != nil {
				t.Fatal(err)
			}
			p.Trust = b
		})
	}
	versioned := wire.MustMarshal(&genesis{2, w.genesis(t, w.rootDER)})
	good := build(func(*GenesisPayload) {})
	cases := []struct {
		name string
		b    []byte
		id   fleet.ID
		kind fleet.Kind
		part string
	}{
		{"another fleet", good, other.fleet, fleet.Unauthenticated, "belongs to fleet"},
		{"another root signed", SignGenesis(other.root, w.genesis(t, w.rootDER)), w.fleet, fleet.Unauthenticated, "not signed"},
		{"another root's certificate",
			build(func(p *GenesisPayload) { p.RootCertificate = other.rootDER }), w.fleet, fleet.Unauthenticated, "belongs to fleet"},
		{"no certificate",
			build(func(p *GenesisPayload) { p.RootCertificate = nil }), w.fleet, fleet.Unauthenticated, "root certificate"},
		{"another root's trust",
			build(func(p *GenesisPayload) { p.Trust = other.signedTrust(t) }), w.fleet, fleet.Unauthenticated, "not signed"},
		{"no trust", build(func(p *GenesisPayload) { p.Trust = nil }), w.fleet, fleet.Invalid, "trust.json"},
		{"version 2", EncodeSigned(versioned, w.root.Sign(UseGenesis, versioned)), w.fleet, fleet.Invalid, "version 2"},
		{"later trust", trust(func(t *Trust) { t.Version, t.FirstOperator = 2, nil }), w.fleet, fleet.Invalid, "version 1"},
		{"trust without an operator", trust(func(t *Trust) { t.FirstOperator = nil }), w.fleet, fleet.Invalid, "first operator"},
		{"trust with another voter", trust(func(t *Trust) { t.Voters[0].Node = other.node }), w.fleet, fleet.Invalid, "only voter"},
		{"trust with three voters", trust(func(t *Trust) {
			t.K = 2
			for n := byte(50); n < 52; n++ {
				t.Voters = append(t.Voters, TrustVoter{Node: fleet.NodeIDOf(testKey(n).Public()), Key: testKey(n + 10).Public()})
			}
		}), w.fleet, fleet.Invalid, "only voter"},
		{"another operator",
			build(func(p *GenesisPayload) { p.Operator.Name = "eve" }), w.fleet, fleet.Invalid, "operator"},
		{"another operator's key",
			build(func(p *GenesisPayload) { p.Operator.Keys[0] = other.operator.Public() }), w.fleet, fleet.Invalid, "operator"},
		{"a second key", build(func(p *GenesisPayload) {
			p.Operator.Keys = append(p.Operator.Keys, other.operator.Public())
		}), w.fleet, fleet.Invalid, "operator"},
		{"operator that may nothing",
			build(func(p *GenesisPayload) { p.Operator.May = nil }), w.fleet, fleet.Invalid, "may do nothing"},
		{"bad fleet name", build(func(p *GenesisPayload) { p.FleetName = "A b" }), w.fleet, fleet.Invalid, "fleet name"},
		{"short gossip key",
			build(func(p *GenesisPayload) { p.GossipKey = p.GossipKey[:16] }), w.fleet, fleet.Invalid, "gossip key"},
		{"zero gossip key",
			build(func(p *GenesisPayload) { p.GossipKey = make([]byte, 32) }), w.fleet, fleet.Invalid, "gossip key"},
		{"node ID of another key",
			build(func(p *GenesisPayload) { p.Node.Key = other.agent.Public() }), w.fleet, fleet.Invalid, "first host"},
		{"node with an activation",
			build(func(p *GenesisPayload) { p.Node.Activation = "x" }), w.fleet, fleet.Invalid, "first host"},
		{"node with an index", build(func(p *GenesisPayload) { p.Node.Index = 1 }), w.fleet, fleet.Invalid, "first host"},
		{"bad node name", build(func(p *GenesisPayload) { p.Node.Name = "a b" }), w.fleet, fleet.Invalid, "node name"},
		{"bad address", build(func(p *GenesisPayload) { p.Node.Address = "x" }), w.fleet, fleet.Invalid, "HOST:PORT"},
		{"bad label", build(func(p *GenesisPayload) { p.Node.Labels["a,b"] = "c" }), w.fleet, fleet.Invalid, "label"},
		{"too large",
			build(func(p *GenesisPayload) { p.Trust = make([]byte, MaxGenesis) }), w.fleet, fleet.TooLarge, "limit"},
		{"cut off", good[:len(good)-1], w.fleet, fleet.Invalid, ""},
		{"empty", nil, w.fleet, fleet.Invalid, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p, _, err := ParseGenesis(c.b, c.id)
			wantKind(t, err, c.kind, c.part)
			if p != nil {
				t.Error("a refused genesis gave a payload")
			}
		})
	}
}
