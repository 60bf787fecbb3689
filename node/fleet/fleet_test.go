package fleet

import (
	"strings"
	"testing"
)

// as makes a check of a parser with any result type.
func as[T ~string](parse func(string) (T, error)) func(string) (string, error) {
	return func(s string) (string, error) { v, err := parse(s); return string(v), err }
}

func check(f func(string) error) func(string) (string, error) {
	return func(s string) (string, error) { return s, f(s) }
}

func TestParse(t *testing.T) {
	const (
		hex32 = "0123456789abcdef0123456789abcdef"
		node  = "mi-0123456789abcdef0"
		uuid  = "01234567-89ab-cdef-0123-456789abcdef"
	)
	long := func(n int) string { return strings.Repeat("a", n) }
	for _, tc := range []struct {
		name  string
		parse func(string) (string, error)
		good  []string
		bad   []string
	}{
		{"fleet ID", as(ParseID), []string{hex32},
			[]string{"", hex32[1:], hex32 + "0", strings.ToUpper(hex32), hex32[1:] + "g", hex32 + "\n", " " + hex32, "0x" + hex32[2:]}},
		{"node ID", as(ParseNodeID), []string{node, "mi-00000000000000000"},
			[]string{"", "mi-", node[:len(node)-1], node + "0", "MI-0123456789abcdef0", "i-0123456789abcdef00", "mi-0123456789ABCDEF0", node + "\n", "\n" + node}},
		{"command ID", as(ParseCommandID), []string{uuid},
			[]string{"", strings.ToUpper(uuid), strings.ReplaceAll(uuid, "-", ""), "{" + uuid + "}", uuid + "\n", uuid[1:], "g" + uuid[1:], "../" + uuid}},
		{"activation ID", as(ParseActivationID), []string{uuid},
			[]string{"", strings.ToUpper(uuid), uuid + "0", uuid[:35], uuid + "\n"}},
		{"operator name", as(ParseOperatorName), []string{"a", "Z9", "root@host-1.example_x", long(64)},
			[]string{"", "-a", ".a", "@", long(65), "a b", "a/b", "a\n", "ä", "a:b"}},
		{"node name", check(CheckNodeName), []string{"a", "web01", "web-01.example.org", "A1", long(253)},
			[]string{"", "-a", "a-", ".a", "a.", long(254), "a_b", "a b", "a\n", "wäb", "a/b"}},
		{"fleet name", check(CheckName), []string{"a", "acme", "acme-2", "0", long(63), "a-"},
			[]string{"", "-a", "Acme", long(64), "a.b", "a_b", "a\n", "a b"}},
		{"label key", check(func(k string) error { return CheckLabel(k, "v") }), []string{"env", "team/web", "a.b-c_d", long(128), "awsome", "0"},
			[]string{"", "-a", "/a", long(129), "a b", "a=b", "a:b", "aws:x", "AWS:x", "fleet:x", "Fleet:y", "a\n", "ä", "a,b"}},
		{"label value", check(func(v string) error { return CheckLabel("k", v) }), []string{"", "prod", "a b", "1.2:3/4=5+6@7-8_9", long(256)},
			[]string{long(257), "a,b", "a\n", "a\tb", "ä", "a*", "a\x00"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, s := range tc.good {
				if got, err := tc.parse(s); err != nil || got != s {
					t.Errorf("%q: got %q, %v; want it accepted", s, got, err)
				}
			}
			for _, s := range tc.bad {
				_, err := tc.parse(s)
				if err == nil || KindOf(err) != Invalid {
					t.Errorf("%q: got %v; want it refused as invalid", s, err)
				} else if len(err.Error()) > 600 {
					t.Errorf("%q: a message of %d bytes", s, len(err.Error()))
				}
			}
			if _, err := tc.parse(long(1 << 20)); err == nil || len(err.Error()) > 600 {
				t.Error("a megabyte: accepted, or quoted in full")
			}
		})
	}
}

// TestDerivedIDs: IDs are in certificates, logs and on disk; how they are made
// never changes.
func TestDerivedIDs(t *testing.T) {
	key := PublicKey{1, 2, 3}
	for _, tc := range []struct{ name, got, want string }{
		{"fleet", string(IDOf(key)), "1ac2f192702849e03dfe5c31ec66a4f6"},
		{"node", string(NodeIDOf(key)), "mi-1ac2f192702849e03"},
		{"key", key.ID().String(), "1ac2f192702849e0"},
		{"fingerprint", key.Fingerprint(), "1ac2-f192-7028-49e0-3dfe-5c31-ec66-a4f6"},
		{"digest", Sum([]byte("abc")).String(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.got != tc.want {
				t.Errorf("got %s, want %s", tc.got, tc.want)
			}
		})
	}
	if _, err := ParseID(string(IDOf(key))); err != nil {
		t.Error(err)
	}
	if _, err := ParseNodeID(string(NodeIDOf(key))); err != nil {
		t.Error(err)
	}
	if key.IsZero() || !(PublicKey{}).IsZero() || Sum(nil).IsZero() || !(Digest{}).IsZero() {
		t.Error("IsZero is wrong")
	}
}

func TestRoles(t *testing.T) {
	for role, want := range map[Role]string{0: "none", 1: "agent", 2: "quorum", 3: "issuer", 4: "role(4)", 255: "role(255)"} {
		if role.String() != want {
			t.Errorf("role %d is %q, want %q", uint8(role), role, want)
		}
	}
}

func TestPublicKeyText(t *testing.T) {
	key := PublicKey{1, 2, 0xff}
	text := key.Text()
	if want := "ed25519:AQL_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"; text != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if got, err := ParsePublicKey(text + "\n"); err != nil || got != key {
		t.Errorf("got %v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"nothing": "", "no prefix": text[8:], "cut off": text[:len(text)-1], "too long": text + "AA", "padded": text + "=",
		"another algorithm": "rsa:" + text[8:], "zero": PublicKey{}.Text(), "trailing bits": text[:len(text)-1] + "B",
	} {
		if got, err := ParsePublicKey(bad); KindOf(err) != Invalid {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}
