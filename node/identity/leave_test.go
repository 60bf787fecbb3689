package identity

import (
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func testLeave(w *world) Leave {
	return Leave{Fleet: w.fleet, Node: w.node, Epoch: uint32(w.now.Unix())}
}

func TestLeave(t *testing.T) {
	w := newWorld(t, 1)
	b, err := NewLeave(testLeave(w), w.agent)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseLeave(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.Leave != testLeave(w) {
		t.Errorf("got %+v", s.Leave)
	}
	if err := s.Verify(w.agent.Public()); err != nil {
		t.Error(err)
	}
	wantKind(t, s.Verify(testKey(99).Public()), fleet.Unauthenticated, "not signed by")
	for name, signature := range map[string][]byte{
		"another key": testKey(99).Sign(UseLeave, s.Payload), "another use": w.agent.Sign(UseAddress, s.Payload),
	} {
		forged := *s
		forged.Signature = signature
		if err := forged.Verify(w.agent.Public()); fleet.KindOf(err) != fleet.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewLeave(testLeave(w), testKey(99)); err == nil {
		t.Error("signed for another node")
	}
	for name, change := range map[string]func(*leave){
		"version": func(p *leave) { p.Version = 2 },
		"fleet":   func(p *leave) { p.Fleet = "x" },
		"node":    func(p *leave) { p.Node = "x" },
	} {
		p := leave{1, testLeave(w)}
		change(&p)
		payload := wire.MustMarshal(&p)
		_, err := ParseLeave(EncodeSigned(payload, w.agent.Sign(UseLeave, payload)))
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
