package runcmd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

// TestGivingUpATurnOnAFullDisk: what cannot be written down now waits on, and
// holds up nobody else, who would be told what is wrong.
func TestGivingUpATurnOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("fleet-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("needs a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, dir, nil)
	h.start()
	h.deliver(t, w.delivery(w.staged(1, "")))
	h.deliver(t, w.delivery(w.staged(3, "")))
	cancel := w.cancellation(3, func(c *ticket.Cancel) {
		o := w.staged(3, "").ticket
		c.NotAfter, c.Expires = o.NotAfter, o.Expires
	})
	late := w.turn(1, func(r *ticket.Release) { r.Released, r.StartBy = w.begin.UnixNano(), w.begin.UnixNano() })
	if err := h.journal.Cancel(commandKey(3), cancel.Cancel); err != nil { // there was room for that
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // as much as there is room for
	for n := 1000; ; n++ {                               // and the rest of the journal's last page
		if h.journal.Refuse(commandKey(n), journal.Accepted{Created: 1, Expires: 2, At: 1}, journal.Finished{Result: []byte{1}, At: 1}) != nil {
			break
		}
	}
	began := time.Now()
	for range 2 {
		if a := h.release(t, late); a.State != Staged {
			t.Errorf("released too late, with a full disk: %+v", a)
		}
	}
	h.giveUpTurn(t.Context(), commandKey(1), "its turn did not come")
	if a := h.cancel(t, cancel); a.State != Accepted {
		t.Errorf("cancelled: %+v", a)
	}
	if a := h.deliver(t, w.delivery(w.staged(2, ""))); a.State != NotReady || a.Reason == "" {
		t.Errorf("delivered: %+v", a)
	}
	if took := time.Since(began); took > 20*again {
		t.Errorf("it took %s", took)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if a := h.release(t, late); a.State != Done || stateOf(t, a) != fleet.DeliveryTimedOut {
		t.Errorf("with room again: %+v", a)
	}
}
