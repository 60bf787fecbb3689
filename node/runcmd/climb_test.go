package runcmd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/process"
	"fleet/node/ticket"
)

// TestClimb: a result that climbs is left to the relays for two seconds; one
// that is acknowledged is not reported, one that is not, or that another's
// acknowledgement is about, is.
func TestClimb(t *testing.T) {
	for _, tc := range []struct {
		name    string
		climber bool
		ack     func(result []byte) ticket.ResultID // nil: none
		again   time.Duration                       // after which it is reported; 0 for never
	}{
		{"nobody waits for it", false, nil, 1},
		{"acknowledged", true, func(result []byte) ticket.ResultID { return ticket.ResultIDOf(result) }, 0},
		{"not acknowledged", true, nil, climbTime},
		{"another's acknowledgement", true, func([]byte) ticket.ResultID { return ticket.ResultIDOf([]byte("x")) }, climbTime},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, &children{}, func(t *testing.T, w *world, h *host) {
				if tc.climber {
					c := h.Climb(commandID(1), 1)
					defer c.Close()
					go func() {
						a := <-c.Result()
						if tc.ack != nil {
							c.Acknowledged(tc.ack(a.Result), 77)
						}
					}()
				}
				begin := time.Now()
				h.deliver(t, w.delivery(w.shell(1, "true")))
				if tc.again == 0 {
					time.Sleep(time.Hour)
					e, _ := h.journal.Lookup(commandKey(1))
					if results, _ := h.quorum.got(); len(results) != 0 || e.Acknowledged != 77 {
						t.Errorf("%d reports, acknowledged at %d; want none, and 77", len(results), e.Acknowledged)
					}
					return
				}
				h.reports(t, 1)
				if took := time.Since(begin); took < tc.again-1 || took > tc.again+time.Second {
					t.Errorf("reported after %s, want %s", took, tc.again)
				}
			})
		})
	}
}

// TestLargeResultsDoNotClimb: what names blobs goes straight to a voter.
func TestLargeResultsDoNotClimb(t *testing.T) {
	c := &children{do: func(_ context.Context, spec process.Spec) process.Exit {
		_, _ = spec.Stdout.Write(make([]byte, 2*MaxInline))
		return process.Exit{}
	}}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		climber := h.Climb(commandID(1), 1)
		begin := time.Now()
		h.deliver(t, w.delivery(w.shell(1, "true")))
		h.reports(t, 1)
		if took := time.Since(begin); took > time.Second || len(climber.Result()) != 0 {
			t.Errorf("reported after %s, and it climbed: %v", took, len(climber.Result()) != 0)
		}
		climber.Close()
		synctest.Wait()
		if h.climbers[commandKey(1)] != nil {
			t.Error("somebody still waits for it")
		}
	})
}
