package identity

import (
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func TestProof(t *testing.T) {
	w := newWorld(t, 1)
	b := SignProof(w.operator, w.proof())
	s, err := ParseProof(b)
	if err != nil {
		t.Fatal(err)
	}
	want := w.proof()
	want.Key = w.operator.Public().ID()
	if s.Proof != want {
		t.Errorf("got %+v, want %+v", s.Proof, want)
	}
	if err := s.Verify(w.operator.Public()); err != nil {
		t.Error(err)
	}
	wantKind(t, s.Verify(w.agent.Public()), fleet.Unauthenticated, "not signed by")
	// Somebody who claims the operator's key but does not have it.
	claimed := w.proof()
	claimed.Key = w.operator.Public().ID()
	forged, err := ParseProof(SignProof(w.agent, claimed))
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, forged.Verify(w.operator.Public()), fleet.Unauthenticated, "not signed by")
	wantKind(t, forged.Verify(w.agent.Public()), fleet.Unauthenticated, "not signed by")
}

func TestParseProofRefuses(t *testing.T) {
	w := newWorld(t, 1)
	for name, change := range map[string]func(*proof){
		"version":         func(p *proof) { p.Version = 2 },
		"fleet":           func(p *proof) { p.Fleet = "x" },
		"operator":        func(p *proof) { p.Operator = "a b" },
		"no operator":     func(p *proof) { p.Operator = "" },
		"operation":       func(p *proof) { p.Operation = "send command" },
		"no operation":    func(p *proof) { p.Operation = "" },
		"lower case":      func(p *proof) { p.Operation = "sendCommand" },
		"long operation":  func(p *proof) { p.Operation = "A" + strings.Repeat("a", 64) },
		"no end":          func(p *proof) { p.NotAfter = 0 },
		"end before 1970": func(p *proof) { p.NotAfter = -1 },
	} {
		p := proof{1, w.proof()}
		change(&p)
		payload := wire.MustMarshal(&p)
		_, err := ParseProof(EncodeSigned(payload, w.operator.Sign(UseProof, payload)))
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("bad %s: %v", name, err)
		}
	}
	_, err := ParseProof(make([]byte, MaxProof+1))
	wantKind(t, err, fleet.TooLarge, "limit")
	// A nonce of 15 bytes would decode into 16 with a zero at the end.
	type shortNonce struct {
		Version uint8  `msgpack:"v"`
		F       string `msgpack:"f"`
		O       string `msgpack:"o"`
		K       []byte `msgpack:"k"`
		Op      string `msgpack:"op"`
		B       []byte `msgpack:"b"`
		N       []byte `msgpack:"n"`
		E       int64  `msgpack:"e"`
	}
	payload := wire.MustMarshal(&shortNonce{
		1, string(w.fleet), "o", make([]byte, 8), "SendCommand", make([]byte, 32), make([]byte, 15), 5,
	})
	_, err = ParseProof(EncodeSigned(payload, make([]byte, 64)))
	wantKind(t, err, fleet.Invalid, "")
}
