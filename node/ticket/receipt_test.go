package ticket

import (
	"bytes"
	"slices"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

func testReceipt() Receipt {
	c := testCommand()
	return Receipt{Fleet: testFleet, Command: c.ID, Attempt: c.Attempt, Index: 3}
}

func TestReceipt(t *testing.T) {
	host := testKey(40)
	signed := SignReceipt(host, testReceipt())
	golden(t, "receipt.hex", signed)
	if err := VerifyReceipt(signed, testReceipt(), host.Public()); err != nil {
		t.Error(err)
	}
	result := append(testReceipt().Bytes(), host.Sign(identity.UseResult, testReceipt().Bytes())...)
	for name, b := range map[string][]byte{
		"nothing": nil, "cut off": signed[:len(signed)-1], "longer": append(slices.Clone(signed), 0),
		"another use": result, "another host": SignReceipt(testKey(41), testReceipt()),
	} {
		if err := VerifyReceipt(b, testReceipt(), host.Public()); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range signed {
		b := slices.Clone(signed)
		b[i] ^= 1
		if VerifyReceipt(b, testReceipt(), host.Public()) == nil {
			t.Errorf("accepted with byte %d altered", i)
		}
	}
	other := testReceipt()
	other.Index++
	if VerifyReceipt(signed, other, host.Public()) == nil {
		t.Error("accepted as the receipt of another target")
	}
}

func testAck() *Ack {
	return &Ack{Fleet: testFleet, Epoch: 3, Index: 77, Results: []ResultID{ResultIDOf([]byte("a")), ResultIDOf([]byte("b"))}}
}

func TestSignedAck(t *testing.T) {
	trust := testTrust(3)
	signed := SignAck(testKey(11), testAck())
	golden(t, "ack.hex", signed)
	s, err := ParseSignedAck(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(trust); err != nil {
		t.Error(err)
	}
	if s.Index != 77 || !s.Names(ResultIDOf([]byte("b"))) || s.Names(ResultIDOf([]byte("c"))) {
		t.Errorf("read as %+v", s.Ack)
	}
	otherEpoch := *trust
	otherEpoch.Epoch++
	for name, tr := range map[string]*identity.Trust{"nobody known": nil, "another epoch": &otherEpoch, "not a voter": testTrust(1)} {
		if err := s.Verify(tr); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range signed {
		b := slices.Clone(signed)
		b[i] ^= 1
		if s, err := ParseSignedAck(b); err == nil && s.Verify(trust) == nil {
			t.Errorf("accepted with byte %d altered", i)
		}
		if _, err := ParseSignedAck(signed[:i]); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("cut off at %d: %v", i, err)
		}
	}
	many := testAck()
	many.Results = make([]ResultID, MaxAcked)
	if b := SignAck(testKey(11), many); len(b) != MaxSignedAck {
		t.Errorf("the largest has %d bytes, the limit is %d", len(b), MaxSignedAck)
	}
	many.Results = make([]ResultID, MaxAcked+1)
	for name, a := range map[string]*Ack{"too many": many, "no index": {Fleet: testFleet, Results: make([]ResultID, 1)}, "no results": {Fleet: testFleet, Index: 1}} {
		if SignAck(testKey(11), a) != nil {
			t.Errorf("%s was signed", name)
		}
	}
}

func FuzzParseSignedAck(f *testing.F) {
	f.Add(readGolden(f, "ack.hex"))
	known := testAck().Bytes()
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignedAck(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Bytes(), s.Payload) {
			t.Fatal("a second encoding of one acknowledgement")
		}
		if s.Verify(testTrust(3)) == nil && !bytes.Equal(s.Payload, known) {
			t.Fatal("accepted one that nobody signed")
		}
	})
}
