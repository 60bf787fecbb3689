package ticket

import (
	"bytes"
	"reflect"
	"slices"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// stagedCommand waits for its turn on each of its targets.
func stagedCommand() *fleet.Command {
	c := testCommand()
	c.MaxConcurrency, c.DeliverySeconds = "2", 60
	c.NotAfter += int64(time.Hour)
	c.Expires += int64(time.Hour)
	return c
}

func testRelease(indexes ...uint32) *Release {
	c := stagedCommand()
	return ReleaseOf(c, testFleet, 3, c.Created+5, indexes)
}

func TestReleaseOf(t *testing.T) {
	c := stagedCommand()
	want := &Release{
		Version: 1, Fleet: testFleet, Epoch: 3, Command: c.ID, Attempt: 1, Targets: 5, Root: Root(c.Targets),
		Released: c.Created + 5, StartBy: c.Created + 5 + int64(time.Minute), Indexes: []uint32{1, 4},
	}
	if got := testRelease(1, 4); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := ReleaseOf(c, testFleet, 3, c.NotAfter-5, []uint32{1}); got.StartBy != c.NotAfter {
		t.Errorf("released at the end, it is to start by %d; want %d", got.StartBy, c.NotAfter)
	}
	base := testRelease(1, 4).Bytes()
	for name, change := range map[string]func(*Release){
		"fleet":    func(r *Release) { r.Fleet = fleet.IDOf(testKey(2).Public()) },
		"epoch":    func(r *Release) { r.Epoch++ },
		"command":  func(r *Release) { r.Command = "11234567-89ab-cdef-0123-456789abcdef" },
		"attempt":  func(r *Release) { r.Attempt++ },
		"targets":  func(r *Release) { r.Targets++ },
		"root":     func(r *Release) { r.Root[0]++ },
		"released": func(r *Release) { r.Released-- },
		"start by": func(r *Release) { r.StartBy++ },
		"an index": func(r *Release) { r.Indexes[1]-- },
	} {
		r := testRelease(1, 4)
		change(r)
		if b := r.Bytes(); b == nil || bytes.Equal(b, base) {
			t.Errorf("another %s gives the bytes %x", name, b)
		}
	}
	for index, want := range []bool{false, true, false, false, true, false} {
		if got := testRelease(1, 4).Covers(uint32(index)); got != want {
			t.Errorf("it covers %d: %v", index, got)
		}
	}
}

// TestStagedTicket: that a command waits for its turn is signed.
func TestStagedTicket(t *testing.T) {
	for limits, want := range map[[2]string]byte{
		{"100%", "100%"}: KindCommand, {"5", "100%"}: KindCommand, {"100%", "4"}: KindCommand, {"50", "90%"}: KindCommand,
		{"4", "100%"}: KindStaged, {"100%", "3"}: KindStaged, {"50", "0"}: KindStaged, {"1%", "0%"}: KindStaged,
	} {
		c := stagedCommand()
		c.MaxConcurrency, c.MaxErrors = limits[0], limits[1]
		b := ForCommand(c, testFleet, 3).Bytes()
		parsed, err := Parse(b)
		if err != nil || parsed.Kind != want || parsed.Staged() != (want == KindStaged) {
			t.Errorf("%v of 5 targets: kind %d, %v; want %d", limits, parsed.Kind, err, want)
		}
	}
	c := stagedCommand()
	signed := &Signed{Ticket: ForCommand(c, testFleet, 3).Bytes()}
	golden(t, "ticket-staged.hex", signed.Ticket)
	for _, n := range []byte{10, 11} {
		signed.Signatures = append(signed.Signatures, Sign(testKey(n), signed.Ticket))
	}
	if _, err := signed.Verify(testTrust(3)); err != nil {
		t.Fatal(err)
	}
	signed.Ticket = slices.Clone(signed.Ticket)
	signed.Ticket[1] = KindCommand
	_, err := signed.Verify(testTrust(3))
	wantKind(t, err, fleet.Denied, "0 of 2")
}

func TestSignedRelease(t *testing.T) {
	trust := testTrust(3)
	signed := SignRelease(testKey(11), testRelease(1, 4))
	golden(t, "release.hex", signed)
	s, err := ParseSignedRelease(signed)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&s.Release, testRelease(1, 4)) {
		t.Errorf("got %+v", s.Release)
	}
	if err := s.Verify(trust); err != nil {
		t.Errorf("signed by one voter of three: %v", err)
	}
	most := make([]uint32, MaxReleased)
	for i := range most {
		most[i] = uint32(i)
	}
	big := testRelease(most...)
	big.Targets = 1000
	if b := SignRelease(testKey(11), big); len(b) != MaxSignedRelease {
		t.Errorf("the largest has %d bytes, want %d", len(b), MaxSignedRelease)
	} else if _, err := ParseSignedRelease(b); err != nil {
		t.Error(err)
	}

	wantKind(t, s.Verify(nil), fleet.Denied, "no voters")
	for name, key := range map[string]identity.PrivateKey{"a stranger": testKey(99), "an agent": testKey(40), "a voter that is none any more": testKey(13)} {
		other, err := ParseSignedRelease(SignRelease(key, testRelease(1)))
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Verify(trust); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("signed by %s: %v", name, err)
		}
	}
	// A voter's key ID with another's signature, and a signature for a Cancel.
	forged := slices.Clone(SignRelease(testKey(99), testRelease(1)))
	id := testKey(11).Public().ID()
	copy(forged[len(forged)-signatureSize:], id[:])
	cancelled := slices.Concat(testRelease(1).Bytes(), id[:], testKey(11).Sign(identity.UseCancel, testRelease(1).Bytes()))
	for name, b := range map[string][]byte{"another's signature": forged, "a signature of a cancel": cancelled} {
		other, err := ParseSignedRelease(b)
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

func TestSignedReleaseRefuses(t *testing.T) {
	good := SignRelease(testKey(11), testRelease(1, 4))
	at := func(i int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[i:], v)
		return b
	}
	const times, count = 1 + 16 + 4 + 16 + 4 + 4 + 32, 1 + 16 + 4 + 16 + 4 + 4 + 32 + 16
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
		{"released after it may start", at(times, 0x7f), "times"},
		{"a negative time", at(times, 0x80), "times"},
		{"no targets", append(at(count, 0, 0)[:count+2], good[len(good)-signatureSize:]...), "1 to 256"},
		{"more targets than fit", at(count, 1, 1), "cut off"},
		{"many more", at(count, 0xff, 0xff), "cut off"},
		{"out of order", at(count+2, 0, 0, 0, 4, 0, 0, 0, 1), "order"},
		{"one twice", at(count+2, 0, 0, 0, 4), "order"},
		{"one beyond", at(count+6, 0, 0, 0, 5), "order"},
		{"too long", make([]byte, MaxSignedRelease+1), "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseSignedRelease(c.b)
			wantKind(t, err, fleet.Invalid, c.part)
		})
	}
	for _, indexes := range [][]uint32{nil, {4, 1}} {
		if b := SignRelease(testKey(11), testRelease(indexes...)); b != nil {
			t.Errorf("a Release of %v was signed", indexes)
		}
	}
}

// FuzzParseSignedRelease: no panic, one encoding, and nothing that nobody signed.
func FuzzParseSignedRelease(f *testing.F) {
	known := readGolden(f, "release.hex")
	f.Add(known)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignedRelease(b)
		if err != nil {
			return
		}
		if !bytes.Equal(append(s.Bytes(), s.Signature[:]...), b) {
			t.Fatal("a second encoding of one Release")
		}
		if s.Verify(testTrust(3)) == nil && !bytes.Equal(s.Payload, known[:len(known)-signatureSize]) {
			t.Fatal("accepted a Release that nobody signed")
		}
	})
}
