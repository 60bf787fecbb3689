package ticket

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

func testCancel(indexes ...uint32) *Cancel { return CancelOf(testCommand(), testFleet, 3, indexes) }

func TestCancelOf(t *testing.T) {
	c := testCommand()
	want := &Cancel{
		Version: 1, Fleet: testFleet, Epoch: 3, Command: c.ID, Attempt: 1, Targets: 5, Root: Root(c.Targets),
		Created: c.Created, NotAfter: c.NotAfter, Expires: c.Expires, Indexes: []uint32{1, 4},
	}
	if got := testCancel(1, 4); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	base := testCancel(1, 4).Bytes()
	for name, change := range map[string]func(*Cancel){
		"fleet":      func(c *Cancel) { c.Fleet = fleet.IDOf(testKey(2).Public()) },
		"epoch":      func(c *Cancel) { c.Epoch++ },
		"command":    func(c *Cancel) { c.Command = "11234567-89ab-cdef-0123-456789abcdef" },
		"attempt":    func(c *Cancel) { c.Attempt++ },
		"targets":    func(c *Cancel) { c.Targets++ },
		"root":       func(c *Cancel) { c.Root[0]++ },
		"created":    func(c *Cancel) { c.Created-- },
		"not after":  func(c *Cancel) { c.NotAfter++ },
		"expires":    func(c *Cancel) { c.Expires++ },
		"an index":   func(c *Cancel) { c.Indexes[1]-- },
		"no indexes": func(c *Cancel) { c.Indexes = nil },
	} {
		c := testCancel(1, 4)
		change(c)
		if b := c.Bytes(); b == nil || bytes.Equal(b, base) {
			t.Errorf("another %s gives the bytes %x", name, b)
		}
	}
}

func TestCancelCovers(t *testing.T) {
	for index, want := range []bool{false, true, false, false, true, false} {
		if got := testCancel(1, 4).Covers(uint32(index)); got != want {
			t.Errorf("%d of two: %v", index, got)
		}
		if got := testCancel().Covers(uint32(index)); got != (index < 5) {
			t.Errorf("%d of all: %v", index, got)
		}
	}
}

func TestSignedCancel(t *testing.T) {
	trust := testTrust(3)
	signed := SignCancel(testKey(11), testCancel(1, 4))
	golden(t, "cancel.hex", signed)
	golden(t, "cancel-all.hex", SignCancel(testKey(11), testCancel()))
	s, err := ParseSignedCancel(signed)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&s.Cancel, testCancel(1, 4)) {
		t.Errorf("got %+v", s.Cancel)
	}
	if err := s.Verify(trust); err != nil {
		t.Errorf("signed by one voter of three: %v", err)
	}
	most := make([]uint32, MaxCancelled)
	for i := range most {
		most[i] = uint32(i)
	}
	big := testCancel(most...)
	big.Targets = 1000
	if b := SignCancel(testKey(11), big); len(b) != MaxSignedCancel {
		t.Errorf("the largest has %d bytes, want %d", len(b), MaxSignedCancel)
	} else if _, err := ParseSignedCancel(b); err != nil {
		t.Error(err)
	}

	wantKind(t, s.Verify(nil), fleet.Denied, "no voters")
	for name, key := range map[string]identity.PrivateKey{"a stranger": testKey(99), "an agent": testKey(40), "a voter that is none any more": testKey(13)} {
		other, err := ParseSignedCancel(SignCancel(key, testCancel()))
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Verify(trust); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("signed by %s: %v", name, err)
		}
	}
	// A voter's key ID with another's signature, and a signature for a ticket.
	forged := slices.Clone(SignCancel(testKey(99), testCancel()))
	id := testKey(11).Public().ID()
	copy(forged[len(forged)-signatureSize:], id[:])
	ticketSig := Sign(testKey(11), testCancel().Bytes())
	for name, b := range map[string][]byte{"another's signature": forged, "a signature of a ticket": append(testCancel().Bytes(), ticketSig[:]...)} {
		other, err := ParseSignedCancel(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Verify(trust); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	epoch, otherFleet := testTrust(3), testTrust(3)
	epoch.Epoch, otherFleet.Fleet = 4, fleet.IDOf(testKey(2).Public())
	wantKind(t, s.Verify(epoch), fleet.Denied, "epoch 4")
	wantKind(t, s.Verify(otherFleet), fleet.Denied, "of fleet")
}

func TestSignedCancelRefuses(t *testing.T) {
	good := SignCancel(testKey(11), testCancel(1, 4))
	at := func(i int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[i:], v)
		return b
	}
	const times, count = 1 + 16 + 4 + 16 + 4 + 4 + 32, 1 + 16 + 4 + 16 + 4 + 4 + 32 + 24
	for _, c := range []struct {
		name string
		b    []byte
		part string
	}{
		{"empty", nil, "cut off"},
		{"version 0", at(0, 0), "version 0"},
		{"version 2", at(0, 2), "version 2"},
		{"one byte less", good[:len(good)-1], "cut off"},
		{"one byte more", append(bytes.Clone(good), 0), "1 bytes follow"},
		{"no signature", good[:len(good)-signatureSize], "cut off"},
		{"created after it may start", at(times, 0x7f), "times"},
		{"a negative time", at(times, 0x80), "times"},
		{"remembered for ever", at(times+16, 0x7f), "times"},
		{"more targets than fit", at(count, 1, 1), "cut off"},
		{"many more", at(count, 0xff, 0xff), "cut off"},
		{"out of order", at(count+2, 0, 0, 0, 4, 0, 0, 0, 1), "order"},
		{"one twice", at(count+2, 0, 0, 0, 4), "order"},
		{"one beyond", at(count+6, 0, 0, 0, 5), "order"},
		{"too long", make([]byte, MaxSignedCancel+1), "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseSignedCancel(c.b)
			wantKind(t, err, fleet.Invalid, c.part)
		})
	}
	if b := SignCancel(testKey(11), testCancel(4, 1)); b != nil {
		t.Error("a Cancel out of order was signed")
	}
}

// FuzzParseSignedCancel: no panic, one encoding, and nothing that nobody signed.
func FuzzParseSignedCancel(f *testing.F) {
	two, all := readGolden(f, "cancel.hex"), readGolden(f, "cancel-all.hex")
	f.Add(two)
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignedCancel(b)
		if err != nil {
			return
		}
		if !bytes.Equal(append(s.Bytes(), s.Signature[:]...), b) {
			t.Fatal("a second encoding of one Cancel")
		}
		if s.Verify(testTrust(3)) == nil && !bytes.Equal(s.Payload, two[:len(two)-signatureSize]) && !bytes.Equal(s.Payload, all[:len(all)-signatureSize]) {
			t.Fatal("accepted a Cancel that nobody signed")
		}
	})
}
