package identity

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func testFileSignature(w *world) FileSignature {
	return FileSignature{Fleet: w.fleet, Operator: "alice@acme", Digest: fleet.Sum([]byte("sums")), Size: 4, Made: 1_800_000_000}
}

func TestFileSignature(t *testing.T) {
	w := newWorld(t, 1)
	b, err := SignFile(w.operator, testFileSignature(w))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseFileSignature(b)
	if err != nil {
		t.Fatal(err)
	}
	want := testFileSignature(w)
	want.Key = w.operator.Public()
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	other, err := SignFile(testKey(99), testFileSignature(w))
	if err != nil {
		t.Fatal(err)
	}
	payload := func(b []byte) []byte { return bytes.SplitN(b, []byte(`","`), 2)[0] }
	for name, b := range map[string][]byte{
		"empty":                   nil,
		"another's signature":     append(append(payload(b), `","`...), bytes.SplitN(other, []byte(`","`), 2)[1]...),
		"a field twice":           bytes.Replace(b, []byte(`{"payload"`), []byte(`{"payload":"","payload"`), 1),
		"too long":                []byte(strings.Repeat(" ", MaxFileSignature) + string(b)),
		"signed for another use":  forOtherUse(t, w, b),
		"one bit of the payload":  flip(b, len(`{"payload":"`)+40),
		"one bit of the sigature": flip(b, len(b)-10),
	} {
		if _, err := ParseFileSignature(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := SignFile(PrivateKey{}, testFileSignature(w)); err == nil {
		t.Error("signed without a key")
	}
}

// forOtherUse is the same payload under a signature made for trust.json.
func forOtherUse(t *testing.T, w *world, b []byte) []byte {
	t.Helper()
	var file trustFile
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	file.Signature = w.operator.Sign(UseTrust, file.Payload)
	b, err := json.Marshal(&file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func flip(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func FuzzParseFileSignature(f *testing.F) {
	w := newWorld(f, 1)
	b, err := SignFile(w.operator, testFileSignature(w))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payload":"","signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseFileSignature(b)
		if err != nil {
			return
		}
		if s.Key.IsZero() || s.check() != nil {
			t.Errorf("accepted %+v", s)
		}
	})
}
