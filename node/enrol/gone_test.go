package enrol

import (
	"errors"
	"os"
	"strings"
	"testing"

	"fleet/node/fleet"
)

// TestGone is the directory of a host that is of its fleet no more: it opens to
// say so after a removal, not after a farewell, and can be enrolled in anew.
func TestGone(t *testing.T) {
	d := enrolled(t)
	if g, err := d.Gone(); g != nil || err != nil {
		t.Fatalf("Gone = %v, %v", g, err)
	}
	if err := refuseEnrolled(d.Path()); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("an enrolled directory: %v", err)
	}
	if err := d.SaveGone(Gone{How: GoneRemoved, Message: "removed by ada"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenDir(d.Path()); err != nil {
		t.Errorf("OpenDir of a removed host: %v", err)
	}
	if g, err := d.Gone(); err != nil || g.Message != "removed by ada" {
		t.Errorf("Gone = %+v, %v", g, err)
	}
	if err := d.SaveGone(Gone{How: GoneLeft, Message: "this host left fleet acme"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenDir(d.Path()); !errors.Is(err, ErrLeft) || err.Error() != "this host left fleet acme" {
		t.Errorf("OpenDir of a host that left: %v", err)
	}
	key, err := d.LoadOrCreateKey(Agent)
	if err != nil {
		t.Fatal(err)
	}
	again, err := createDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if next, err := again.LoadOrCreateKey(Agent); err != nil || next.Public() == key.Public() {
		t.Errorf("the directory of a new host has the old key (%v)", err)
	}
	for _, name := range []string{"FORMAT", "fleet.json", "trust.json", GoneFile} {
		if _, err := os.Lstat(again.File(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, text := range []string{`{"version":2,"how":"left","message":"","at":0}`, `{"version":1,"how":"bored","message":"","at":0}`, `{}`, `x`} {
		if err := os.WriteFile(d.File(GoneFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Gone(); fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(err.Error(), GoneFile) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
