package identity

import (
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

func TestCheckAddress(t *testing.T) {
	for _, ok := range []string{"10.0.0.1:7790", "[::1]:1", "[fd00::1]:65535", "host1:7790", "a.example.com:80", "127.0.0.1:7790"} {
		if err := CheckAddress(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", ":", "host1", "host1:", ":7790", "host1:0", "host1:65536", "host1:-1", "host1:+80", "host1:080", "host1:http",
		"0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[fe80::1%eth0]:80", "fd00::1:80", "a b:80", "a,b:80", "host1:80,host2:80",
		"host\n1:80", "-a:80", strings.Repeat("a", 300) + ":80", "user@host:80", "http://host:80",
	} {
		if err := CheckAddress(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		} else if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%q: kind %s", bad, fleet.KindOf(err))
		}
	}
}

func testChange(w *world) AddressChange {
	return AddressChange{Fleet: w.fleet, Node: w.node, Address: "10.0.0.8:7790", Epoch: uint32(w.now.Unix())}
}

func TestAddressChange(t *testing.T) {
	w := newWorld(t, 1)
	b, err := NewAddressChange(testChange(w), w.agent)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseAddressChange(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.AddressChange != testChange(w) {
		t.Errorf("got %+v", s.AddressChange)
	}
	if err := s.Verify(w.agent.Public()); err != nil {
		t.Error(err)
	}
	wantKind(t, s.Verify(testKey(99).Public()), fleet.Unauthenticated, "not signed by")
	forged := *s
	forged.Signature = testKey(99).Sign(UseAddress, s.Payload)
	wantKind(t, forged.Verify(w.agent.Public()), fleet.Unauthenticated, "not signed by")
	forged.Signature = w.agent.Sign(UseJoin, s.Payload)
	wantKind(t, forged.Verify(w.agent.Public()), fleet.Unauthenticated, "not signed by")
	if _, err := NewAddressChange(testChange(w), testKey(99)); err == nil {
		t.Error("signed for another node")
	}
	for name, change := range map[string]func(*addressChange){
		"version": func(p *addressChange) { p.Version = 2 },
		"fleet":   func(p *addressChange) { p.Fleet = "x" },
		"node":    func(p *addressChange) { p.Node = "x" },
		"address": func(p *addressChange) { p.Address = "x" },
	} {
		p := addressChange{1, testChange(w)}
		change(&p)
		payload := wire.MustMarshal(&p)
		_, err := ParseAddressChange(EncodeSigned(payload, w.agent.Sign(UseAddress, payload)))
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
