package gossip

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestRingOf30(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		s.net.SetLatency(time.Millisecond)
		rings := s.ring(30)
		took := eventually(t, 20*time.Second, "everybody sees everybody", func() bool {
			for _, r := range rings {
				if alive(r) != 30 {
					return false
				}
			}
			return true
		})
		t.Logf("converged in %s", took)

		s.host(30).Down()
		took = eventually(t, time.Minute, "a death is noticed by all", func() bool {
			for _, r := range rings[:29] {
				if m, ok := find(r, 30); !ok || m.State != Suspect {
					return false
				}
			}
			return true
		})
		t.Logf("noticed in %s", took)
		for _, r := range rings[:29] {
			if got := alive(r); got != 29 {
				t.Errorf("%s sees %d alive, want 29", r.cfg.Self, got)
			}
		}
	})
}
