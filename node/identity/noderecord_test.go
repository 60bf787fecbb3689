package identity

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"fleet/node/fleet"
)

func TestNodeRecord(t *testing.T) {
	w := newWorld(t, 1)
	trust := w.trust()
	for name, change := range map[string]func(*NodeRecord){
		"IPv4":         func(*NodeRecord) {},
		"IPv6":         func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("[fd00::1]:1") },
		"quorum":       func(r *NodeRecord) { r.Role = fleet.RoleQuorum },
		"no cell":      func(r *NodeRecord) { r.Cell = "" },
		"longest cell": func(r *NodeRecord) { r.Cell = "0123456789abcdef" },
		"loopback":     func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("127.0.0.1:7790") },
	} {
		t.Run(name, func(t *testing.T) {
			want := w.nodeRecord()
			change(&want)
			b, err := SignNodeRecord(w.issuer, want)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > 122 || len(b) != 42+len(want.Cell)+64 {
				t.Errorf("%d bytes", len(b))
			}
			id := w.issuer.Public().ID()
			want.Issuer = [4]byte(id[:4])
			if got, err := VerifyNodeRecord(b, &trust, w.now); err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
	mapped := w.nodeRecord()
	mapped.Addr = netip.MustParseAddrPort("[::ffff:10.0.0.7]:7790")
	b, err := SignNodeRecord(w.issuer, mapped)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNodeRecord(b); err != nil || got.Addr != w.nodeRecord().Addr {
		t.Errorf("a mapped address came back as %s, %v", got.Addr, err)
	}
}

func TestSignNodeRecordRefuses(t *testing.T) {
	w := newWorld(t, 1)
	for name, change := range map[string]func(*NodeRecord){
		"role none":      func(r *NodeRecord) { r.Role = fleet.RoleNone },
		"role issuer":    func(r *NodeRecord) { r.Role = fleet.RoleIssuer },
		"malformed node": func(r *NodeRecord) { r.Node = "host1" },
		"no node":        func(r *NodeRecord) { r.Node = "" },
		"no address":     func(r *NodeRecord) { r.Addr = netip.AddrPort{} },
		"no port":        func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("10.0.0.1:0") },
		"unspecified":    func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("0.0.0.0:7790") },
		"multicast":      func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("224.0.0.1:7790") },
		"zone":           func(r *NodeRecord) { r.Addr = netip.MustParseAddrPort("[fe80::1%eth0]:7790") },
		"no lifetime":    func(r *NodeRecord) { r.Expiry = r.Epoch },
		"long cell":      func(r *NodeRecord) { r.Cell = "0123456789abcdefg" },
		"cell with dots": func(r *NodeRecord) { r.Cell = "a.b" },
	} {
		r := w.nodeRecord()
		change(&r)
		if _, err := SignNodeRecord(w.issuer, r); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyNodeRecordRefuses(t *testing.T) {
	w := newWorld(t, 1)
	trust := w.trust()
	good, err := SignNodeRecord(w.issuer, w.nodeRecord())
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key PrivateKey, use Use) []byte {
		b, err := SignNodeRecord(w.issuer, w.nodeRecord())
		if err != nil {
			t.Fatal(err)
		}
		return append(b[:len(b)-64], key.Sign(use, b[:len(b)-64])...)
	}
	foreign, err := SignNodeRecord(w.agent, w.nodeRecord())
	if err != nil {
		t.Fatal(err)
	}
	removed := w.trust()
	removed.Issuers = []TrustIssuer{{Node: w.node, Key: w.issuer.Public(), Until: w.now.UnixNano() - 1}}
	cases := []struct {
		name  string
		b     []byte
		trust *Trust
		now   time.Time
		kind  fleet.Kind
		part  string
	}{
		{"signed by another key in the issuer's name", sign(testKey(99), UseNodeRecord), &trust, w.now,
			fleet.Unauthenticated, "not signed"},
		{"signed for another use", sign(w.issuer, UseTicket), &trust, w.now, fleet.Unauthenticated, "not signed"},
		{"signed by the agent itself", foreign, &trust, w.now, fleet.Unauthenticated, "not signed"},
		{"issuer removed", good, &removed, w.now, fleet.Unauthenticated, "not signed"},
		{"no trust", good, nil, w.now, fleet.Unauthenticated, "not signed"},
		{"expired", good, &trust, w.now.Add(AgentValidity + time.Second), fleet.Expired, "valid until"},
		{"from the future", good, &trust, w.now.Add(-10*time.Minute - time.Second), fleet.Expired, "issued at"},
		{"empty", nil, &trust, w.now, fleet.Invalid, "0 bytes"},
		{"cut off", good[:len(good)-1], &trust, w.now, fleet.Invalid, "do not fit"},
		{"longer", append(bytes.Clone(good), 0), &trust, w.now, fleet.Invalid, "do not fit"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := VerifyNodeRecord(c.b, c.trust, c.now)
			wantKind(t, err, c.kind, c.part)
		})
	}
	if _, err := VerifyNodeRecord(good, &trust, w.now.Add(-10*time.Minute)); err != nil {
		t.Errorf("ten minutes ahead: %v", err)
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1
		if _, err := VerifyNodeRecord(b, &trust, w.now); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
}

// Four bytes of a key's ID may name two keys: both are tried.
func TestNodeRecordTriesEachIssuer(t *testing.T) {
	w := newWorld(t, 1)
	b, err := SignNodeRecord(w.issuer, w.nodeRecord())
	if err != nil {
		t.Fatal(err)
	}
	trust := w.trust()
	trust.Issuers = []TrustIssuer{{Key: w.issuer.Public(), Until: 1}, {Key: testKey(98).Public()}, {Key: w.issuer.Public()}}
	if _, err := VerifyNodeRecord(b, &trust, w.now); err != nil {
		t.Error(err)
	}
}
