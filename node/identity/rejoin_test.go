package identity

import (
	"bytes"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func TestParseRejoinRefuses(t *testing.T) {
	w := newWorld(t, 1)
	p := Rejoin{Fleet: w.fleet, Key: w.agent.Public(), Epoch: 7}
	valid, err := NewRejoin(p, w.agent)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseRejoin(valid); err != nil || *got != p {
		t.Fatalf("ParseRejoin = %+v, %v; want %+v", got, err, p)
	}
	if _, err := NewRejoin(p, w.operator); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("signed with another key: %v", err)
	}
	payload := wire.MustMarshal(&rejoin{1, p})
	for name, c := range map[string]struct {
		b    []byte
		kind fleet.Kind
	}{
		"signed by another": {EncodeSigned(payload, w.operator.Sign(UseRejoin, payload)), fleet.Unauthenticated},
		"signed to join":    {EncodeSigned(payload, w.agent.Sign(UseJoin, payload)), fleet.Unauthenticated},
		"altered":           {bytes.Replace(valid, []byte(w.fleet), bytes.Repeat([]byte("0"), len(w.fleet)), 1), fleet.Unauthenticated},
		"of tomorrow": {func() []byte {
			b := wire.MustMarshal(&rejoin{2, p})
			return EncodeSigned(b, w.agent.Sign(UseRejoin, b))
		}(), fleet.Invalid},
		"cut":      {valid[:len(valid)-1], fleet.Invalid},
		"too long": {append(bytes.Clone(valid), make([]byte, MaxRejoin)...), fleet.TooLarge},
		"nothing":  {nil, fleet.Invalid},
	} {
		if _, err := ParseRejoin(c.b); err == nil || fleet.KindOf(err) != c.kind && fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v; want %s", name, err, c.kind)
		}
	}
}

func FuzzParseRejoin(f *testing.F) {
	w := newWorld(f, 1)
	b, err := NewRejoin(Rejoin{Fleet: w.fleet, Key: w.agent.Public(), Epoch: 7}, w.agent)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseRejoin(b)
		if err == nil && p.Key != w.agent.Public() {
			t.Fatalf("it is believed of the key %s", p.Key.ID())
		}
	})
}
