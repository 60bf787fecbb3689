package gossip

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/memnet"
)

// TestRingOf100 has a hundred hosts start in one second, kills thirty, cuts the
// rest in two and heals it.
func TestRingOf100(t *testing.T) { large(t, 100, 3*time.Minute) }

// TestScaleRings is the same with more hosts, and a day of partition.
func TestScaleRings(t *testing.T) {
	if os.Getenv("FLEET_SCALE") == "" {
		t.Skip("rings of hundreds take minutes: make test-scale")
	}
	for _, n := range []struct {
		hosts int
		cut   time.Duration
	}{{200, 10 * time.Minute}, {500, 3 * time.Minute}, {50, 24 * time.Hour}} {
		t.Run(fmt.Sprintf("%d hosts cut for %s", n.hosts, n.cut), func(t *testing.T) { large(t, n.hosts, n.cut) })
	}
}

func large(t *testing.T, n int, cut time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		s.net.SetLatency(time.Millisecond)
		s.net.SetLoss(0.01)
		began := time.Now()
		rings := s.ring(n)
		took := eventually(t, time.Minute, "everybody sees everybody", func() bool { return allSee(rings, n) })
		t.Logf("%d hosts started at once are one ring after %s", n, took)
		if cut > 5*time.Minute {
			time.Sleep(2 * time.Minute)
			calm := s.net.Stats()
			time.Sleep(time.Minute)
			st := s.net.Stats()
			t.Logf("at rest each sends %.1f packets and %d bytes of packets a second, and %d bytes of streams", float64(st.Packets-calm.Packets)/60/float64(n),
				(st.PacketBytes-calm.PacketBytes)/60/n, (st.StreamBytes-calm.StreamBytes)/60/n)
		}

		dead := n * 3 / 10
		for i := n - dead + 1; i <= n; i++ {
			s.host(i).Down()
		}
		live := rings[:n-dead]
		took = eventually(t, 5*time.Minute, "the dead are doubted by all", func() bool { return allSee(live, n-dead) })
		t.Logf("%d of them die: known to all after %s", dead, took)

		var left, right []*memnet.Host
		for i := range live {
			if i < len(live)/3 {
				left = append(left, s.host(i+1))
			} else {
				right = append(right, s.host(i+1))
			}
		}
		s.net.Partition(left, right)
		time.Sleep(cut)
		if got := alive(live[0]); got != len(left) {
			t.Errorf("%d are alive on the one side, want %d", got, len(left))
		}
		if got := alive(live[len(live)-1]); got != len(right) {
			t.Errorf("%d are alive on the other side, want %d", got, len(right))
		}
		s.net.HealAll()
		took = eventually(t, time.Minute, "one ring again", func() bool { return allSee(live, n-dead) })
		t.Logf("cut in two for %s: one ring again after %s", cut, took)

		// The dead come back, all at once, as after a power cut.
		for i := n - dead + 1; i <= n; i++ {
			_ = rings[i-1].Close()
			s.host(i).Up()
		}
		for i := n - dead + 1; i <= n; i++ {
			rings[i-1] = s.start(i, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
		}
		took = eventually(t, time.Minute, "all are back", func() bool { return allSee(rings, n) })
		t.Logf("%d come back at once: all see all after %s; %s of virtual time", dead, took, time.Since(began).Round(time.Second))
	})
}

// allSee reports whether every ring sees so many alive.
func allSee(rings []*Ring, n int) bool {
	for _, r := range rings {
		seen := 0
		r.members.mu.Lock()
		for _, m := range r.members.rows {
			if m.state == Alive {
				seen++
			}
		}
		r.members.mu.Unlock()
		if seen != n {
			return false
		}
	}
	return true
}

// A member that ends and begins again every three seconds costs the others some
// packets, bounded, and none of their members.
func TestFlappingMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		const n, span = 30, 3 * time.Minute
		rings := s.ring(n)
		converged(t, rings)
		time.Sleep(3 * time.Minute)
		calm := s.net.Stats()
		time.Sleep(span)
		quiet := s.net.Stats().Packets - calm.Packets
		calm = s.net.Stats()
		flips, was := 0, Alive
		for began := time.Now(); time.Since(began) < span; {
			_ = rings[n-1].Close()
			s.host(n).Down()
			time.Sleep(3 * time.Second)
			s.host(n).Up()
			rings[n-1] = s.start(n, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
			time.Sleep(3 * time.Second)
			for _, r := range rings[:n-1] {
				for i := 1; i < n; i++ {
					if m, _ := find(r, i); m.State != Alive {
						t.Fatalf("%s doubts %s", r.cfg.Self, m.Node)
					}
				}
			}
			if m, _ := find(rings[0], n); m.State != was {
				flips, was = flips+1, m.State
			}
		}
		busy := s.net.Stats().Packets - calm.Packets
		t.Logf("%d packets in %s without it, %d with it: %+.1f %%; its state changed %d times at the first host", quiet, span, busy, 100*float64(busy-quiet)/float64(quiet), flips)
		if flips > int(span/time.Minute) {
			t.Errorf("its state changed %d times", flips)
		}
		// A ring at rest only probes; each return of a member is told to all.
		if busy > 4*quiet {
			t.Errorf("%d packets instead of %d", busy, quiet)
		}
	})
}
