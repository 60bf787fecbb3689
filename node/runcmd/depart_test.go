package runcmd

import (
	"context"
	"testing"
	"time"

	"fleet/node/fleet"
)

// TestDepart is a host that leaves its fleet: what runs, what waits for its turn
// and what waits for the time of the fleet ends as Cancelled, and the quorum has
// it before Depart returns.
func TestDepart(t *testing.T) {
	for name, at := range map[string]struct {
		after time.Duration
		ended int
	}{
		"while some run and some wait for their turn": {3 * time.Second, DefaultMaxParallel + 2},
		"while some wait for the time":                {time.Minute, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := &children{do: sleeping(50 * time.Second)}
			bubble(t, c, func(t *testing.T, w *world, h *host) {
				for n := range DefaultMaxParallel + 2 {
					h.deliver(t, w.delivery(w.shell(n, "sleep")))
				}
				time.Sleep(time.Second)
				h.clock.set(0, true) // the host is about to go: nothing starts
				time.Sleep(at.after)
				if got := h.Settled(); got != at.ended {
					t.Fatalf("%d are open; want %d", got, at.ended)
				}
				ended, left := h.Depart(t.Context())
				if ended != at.ended || left != 0 || h.Open() != 0 {
					t.Errorf("ended %d, %d left, %d open; want %d ended", ended, left, h.Open(), at.ended)
				}
				cancelled := 0
				results, _ := h.quorum.got()
				for _, r := range results {
					if r.State == fleet.Cancelled {
						cancelled++
					}
				}
				if len(results) != DefaultMaxParallel+2 || cancelled != at.ended || c.count() != DefaultMaxParallel {
					t.Errorf("%d results, %d of them Cancelled, %d ran", len(results), cancelled, c.count())
				}
			})
		})
	}
}

// A quorum that takes no results does not keep the host for ever.
func TestDepartUnheard(t *testing.T) {
	c := &children{do: sleeping(time.Hour)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.quorum.refuse(fleet.Errorf(fleet.Unavailable, "no leader"))
		h.deliver(t, w.delivery(w.shell(1, "sleep")))
		time.Sleep(time.Second)
		h.clock.set(0, true)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if ended, left := h.Depart(ctx); ended != 1 || left != 1 || ctx.Err() == nil {
			t.Errorf("ended %d, %d left (%v)", ended, left, ctx.Err())
		}
	})
}
