package journal

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"fleet/node/fleet"
)

func TestAFullDiskIsSurvived(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("fleet-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "journal")
	if err := Create(path, testOrigin); err != nil {
		t.Fatal(err)
	}
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // as much as there is room for
	full := 0
	for n := range 100 {
		err := j.Accept(key(n), acceptedOf(n))
		if err == nil {
			continue
		}
		if fleet.KindOf(err) != fleet.Unavailable || fleet.HintOf(err) == "" || errors.Is(err, ErrFailed) {
			t.Fatalf("got %v, want kind unavailable and a hint", err)
		}
		full++
	}
	if full == 0 {
		t.Fatal("the disk did not fill")
	}
	// A host that starts with a full disk can say that it is full.
	_ = j.Close()
	if j, err = Open(path); err != nil {
		t.Fatalf("with a full disk: %v", err)
	}
	if err := j.Accept(key(2000), acceptedOf(2000)); fleet.KindOf(err) != fleet.Unavailable {
		t.Errorf("after a start with a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := j.Accept(key(1000), acceptedOf(1000)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	want := j.Entries()
	_ = j.Close()
	if j, err = Open(path); err != nil {
		t.Fatal(err)
	}
	if got := j.Entries(); !reflect.DeepEqual(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	_ = j.Close()
}
