package ticket

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

func TestForCommand(t *testing.T) {
	c := testCommand()
	got := ForCommand(c, testFleet, 3)
	want := &Ticket{
		Version: 1, Kind: KindCommand, Fleet: testFleet, Epoch: 3, Command: c.ID, Attempt: 1,
		Document: c.Document, Parameters: c.ParametersDigest, RunAs: "www-data", Targets: 5, Root: Root(c.Targets),
		Created: c.Created, Mint: 2, NotBefore: c.Mint.NotBefore, NotAfter: c.NotAfter, Expires: c.Expires,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if again := ForCommand(testCommand(), testFleet, 3); !bytes.Equal(again.Bytes(), got.Bytes()) {
		t.Error("equal rows give different bytes")
	}
	// Everything that a host obeys stands in the bytes.
	for name, change := range map[string]func(*fleet.Command){
		"ID":         func(c *fleet.Command) { c.ID = "11234567-89ab-cdef-0123-456789abcdef" },
		"attempt":    func(c *fleet.Command) { c.Attempt++ },
		"document":   func(c *fleet.Command) { c.Document[0]++ },
		"parameters": func(c *fleet.Command) { c.ParametersDigest[0]++ },
		"run as":     func(c *fleet.Command) { c.RunAs = "" },
		"targets":    func(c *fleet.Command) { c.Targets = c.Targets[:4] },
		"order":      func(c *fleet.Command) { c.Targets[0], c.Targets[1] = c.Targets[1], c.Targets[0] },
		"created":    func(c *fleet.Command) { c.Created++ },
		"mint":       func(c *fleet.Command) { c.Mint.N++ },
		"not before": func(c *fleet.Command) { c.Mint.NotBefore++ },
		"not after":  func(c *fleet.Command) { c.NotAfter++ },
		"expires":    func(c *fleet.Command) { c.Expires++ },
	} {
		c := testCommand()
		change(c)
		if bytes.Equal(ForCommand(c, testFleet, 3).Bytes(), got.Bytes()) {
			t.Errorf("another %s gives the same bytes", name)
		}
	}
	if bytes.Equal(ForCommand(c, testFleet, 4).Bytes(), got.Bytes()) {
		t.Error("another epoch gives the same bytes")
	}
	if bytes.Equal(ForCommand(c, fleet.IDOf(testKey(2).Public()), 3).Bytes(), got.Bytes()) {
		t.Error("another fleet gives the same bytes")
	}
}

func TestTicketRoundTrip(t *testing.T) {
	base := ForCommand(testCommand(), testFleet, 3)
	for name, change := range map[string]func(*Ticket){
		"command":       func(*Ticket) {},
		"root":          func(t *Ticket) { t.RunAs = "" },
		"nested":        func(t *Ticket) { t.Nested = []fleet.Digest{{1}, {2}} },
		"most nested":   func(t *Ticket) { t.Nested = make([]fleet.Digest, maxNested) },
		"longest user":  func(t *Ticket) { t.RunAs = strings.Repeat("u", maxRunAs) },
		"no targets":    func(t *Ticket) { t.Targets, t.Root = 0, Root(nil) },
		"largest times": func(t *Ticket) { t.Created, t.NotAfter, t.Expires = 1<<63-1, 1<<63-1, 1<<63-1 },
	} {
		t.Run(name, func(t *testing.T) {
			want := *base
			change(&want)
			b := want.Bytes()
			if len(b) == 0 || len(b) > MaxTicket || len(b) != fixedSize+32*len(want.Nested)+len(want.RunAs) {
				t.Fatalf("%d bytes", len(b))
			}
			got, err := Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got %+v, want %+v", *got, want)
			}
		})
	}
}

func TestTicketRefuses(t *testing.T) {
	good := ForCommand(testCommand(), testFleet, 3).Bytes()
	at := func(i int, v byte) []byte {
		b := bytes.Clone(good)
		b[i] = v
		return b
	}
	const nestedCount = 1 + 1 + 16 + 4 + 16 + 4 + 32
	const runAsLength = nestedCount + 1 + 32
	cases := []struct {
		name string
		b    []byte
		part string
	}{
		{"empty", nil, "cut off"},
		{"version alone", []byte{1}, "cut off"},
		{"version 0", at(0, 0), "version 0"},
		{"version 2", at(0, 2), "version 2"},
		{"kind 0", at(1, 0), "not known"},
		{"kind 3", at(1, 3), "not known"},
		{"one byte more", append(bytes.Clone(good), 0), "1 bytes follow"},
		{"a signature more", append(bytes.Clone(good), make([]byte, signatureSize)...), "72 bytes follow"},
		{"one byte less", good[:len(good)-1], "cut off"},
		{"nested beyond the end", at(nestedCount, 32), "cut off"},
		{"too many nested", append(at(nestedCount, 33), make([]byte, 33*32)...), "nested"},
		{"run as beyond the end", at(runAsLength, 255), "cut off"},
		{"line break in run as", at(runAsLength+1, '\n'), "plain text"},
		{"run as not UTF-8", at(runAsLength+1, 0xff), "plain text"},
		{"negative expiry", at(len(good)-8, 0x80), "times"},
		{"negative not-after", at(len(good)-16, 0x80), "times"},
		{"expires before not-after", at(len(good)-16, 0x7f), "times"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.b)
			wantKind(t, err, fleet.Invalid, c.part)
		})
	}
	for i := range good {
		if _, err := Parse(good[:i]); err == nil {
			t.Errorf("accepted its first %d bytes", i)
		}
	}
	for name, change := range map[string]func(*Ticket){
		"version": func(t *Ticket) { t.Version = 2 }, "kind": func(t *Ticket) { t.Kind = 9 },
		"fleet": func(t *Ticket) { t.Fleet = "x" }, "command": func(t *Ticket) { t.Command = "x" },
		"nested": func(t *Ticket) { t.Nested = make([]fleet.Digest, maxNested+1) },
		"run as": func(t *Ticket) { t.RunAs = strings.Repeat("u", maxRunAs+1) },
		"times":  func(t *Ticket) { t.Created = -1 },
	} {
		ticket := ForCommand(testCommand(), testFleet, 3)
		change(ticket)
		if ticket.Bytes() != nil {
			t.Errorf("bad %s: encoded", name)
		}
	}
}

func TestSignedRoundTrip(t *testing.T) {
	b := ForCommand(testCommand(), testFleet, 3).Bytes()
	want := &Signed{Ticket: b}
	for n := range byte(maxSignatures) {
		want.Signatures = append(want.Signatures, Sign(testKey(10+n), b))
		got, err := ParseSigned(want.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("with %d signatures: another came back", n+1)
		}
	}
	encoded := want.Encode()
	if len(encoded) > MaxSigned {
		t.Errorf("%d bytes", len(encoded))
	}
	for name, b := range map[string][]byte{
		"empty": nil, "no signature": b, "half a signature": encoded[:len(b)+36], "one byte more": append(bytes.Clone(encoded), 0),
		"six signatures": append(bytes.Clone(encoded), encoded[len(b):len(b)+signatureSize]...), "cut ticket": b[:50],
	} {
		_, err := ParseSigned(b)
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignedVerify(t *testing.T) {
	c := testCommand()
	b := ForCommand(c, testFleet, 3).Bytes()
	voter := func(n byte) Signature { return Sign(testKey(10+n), b) }
	stranger := Sign(testKey(99), b)
	// A stranger's signature under a voter's key ID.
	claimed := stranger
	key := voter(1).Key()
	copy(claimed[:8], key[:])
	otherUse := voter(0)
	copy(otherUse[8:], testKey(10).Sign(identity.UseResult, b))
	otherTicket := ForCommand(c, testFleet, 3)
	otherTicket.Mint++
	zeroK := testTrust(3)
	zeroK.K = 0
	otherFleet := testTrust(3)
	otherFleet.Fleet = fleet.IDOf(testKey(2).Public())
	otherEpoch := testTrust(3)
	otherEpoch.Epoch = 4
	empty := testTrust(0)
	empty.K = 0
	cases := []struct {
		name  string
		trust *identity.Trust
		signs []Signature
		part  string // empty: accepted
	}{
		{"one of one", testTrust(1), []Signature{voter(0)}, ""},
		{"two of three", testTrust(3), []Signature{voter(0), voter(2)}, ""},
		{"three of three", testTrust(3), []Signature{voter(0), voter(1), voter(2)}, ""},
		{"two of five", testTrust(5), []Signature{voter(3), voter(4)}, ""},
		{"bad ones beside two good", testTrust(3), []Signature{stranger, claimed, voter(0), otherUse, voter(2)}, ""},
		{"a bad one of the same voter first", testTrust(3), []Signature{claimed, voter(1), voter(2)}, ""},

		{"none", testTrust(1), nil, "0 of 1 needed"},
		{"one of three", testTrust(3), []Signature{voter(1)}, "1 of 2 needed"},
		{"one voter twice", testTrust(3), []Signature{voter(1), voter(1)}, "1 of 2 needed"},
		{"voter and stranger", testTrust(3), []Signature{voter(1), stranger}, "1 of 2 needed"},
		{"voter and a forged voter", testTrust(3), []Signature{voter(0), claimed}, "1 of 2 needed"},
		{"voter of another trust", testTrust(3), []Signature{voter(0), voter(3)}, "1 of 2 needed"},
		{"signature for another use", testTrust(1), []Signature{otherUse}, "0 of 1 needed"},
		{"signature of another ticket", testTrust(1), []Signature{Sign(testKey(10), otherTicket.Bytes())}, "0 of 1 needed"},
		{"zero signature", testTrust(1), []Signature{{}}, "0 of 1 needed"},
		{"trust that needs none", zeroK, []Signature{stranger}, "0 of 2 needed"},
		{"trust without voters", empty, []Signature{stranger}, "0 of 1 needed"},
		{"other fleet", otherFleet, []Signature{voter(0), voter(1)}, "this host of"},
		{"other epoch", otherEpoch, []Signature{voter(0), voter(1)}, "epoch 3, this host"},
		{"no trust", nil, []Signature{voter(0)}, "no voters"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := (&Signed{Ticket: b, Signatures: c.signs}).Verify(c.trust)
			if c.part != "" {
				wantKind(t, err, fleet.Denied, c.part)
				return
			}
			if err != nil || !bytes.Equal(got.Bytes(), b) {
				t.Errorf("refused: %v", err)
			}
		})
	}
	_, err := (&Signed{Ticket: append(bytes.Clone(b), 0), Signatures: []Signature{voter(0)}}).Verify(testTrust(1))
	wantKind(t, err, fleet.Invalid, "follow")
	_, err = (&Signed{Ticket: b, Signatures: make([]Signature, 6)}).Verify(testTrust(1))
	wantKind(t, err, fleet.Invalid, "limit")
}

// No byte of a signed ticket can change.
func TestSignedFlippedBytes(t *testing.T) {
	b := ForCommand(testCommand(), testFleet, 3).Bytes()
	good := (&Signed{Ticket: b, Signatures: []Signature{Sign(testKey(10), b)}}).Encode()
	for i := range good {
		for bit := range 8 {
			changed := bytes.Clone(good)
			changed[i] ^= 1 << bit
			s, err := ParseSigned(changed)
			if err != nil {
				continue
			}
			if _, err := s.Verify(testTrust(1)); err == nil {
				t.Errorf("accepted with bit %d of byte %d changed", bit, i)
			}
		}
	}
}

func TestGolden(t *testing.T) {
	b := ForCommand(testCommand(), testFleet, 3).Bytes()
	signed := &Signed{Ticket: b, Signatures: []Signature{Sign(testKey(10), b), Sign(testKey(11), b)}}
	nested := ForCommand(testCommand(), testFleet, 3)
	nested.Nested, nested.RunAs = []fleet.Digest{fleet.Sum([]byte("a")), fleet.Sum([]byte("b"))}, ""
	golden(t, "ticket.hex", b)
	golden(t, "ticket-nested.hex", nested.Bytes())
	golden(t, "ticket-signed.hex", signed.Encode())
	golden(t, "result.hex", SignResult(testKey(40), testResult()))

	s, err := ParseSigned(readGolden(t, "ticket-signed.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(testTrust(3)); err != nil {
		t.Error(err)
	}
	r, err := ParseResult(readGolden(t, "result.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(testKey(40).Public()); err != nil {
		t.Error(err)
	}
}
