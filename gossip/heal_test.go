package gossip

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// The fleet is cut in two for long, and one side removes a host that the other
// still runs with. Healed, it is one ring within a minute, without that host, as
// soon as the other side hears of the removal too, as it does with a heartbeat.
func TestLongPartition(t *testing.T) {
	for _, cut := range []time.Duration{10 * time.Minute, 24 * time.Hour} {
		t.Run(cut.String(), func(t *testing.T) {
			if cut > time.Hour && os.Getenv("FLEET_SCALE") == "" {
				t.Skip("a day of a ring takes 15 s: make test-scale")
			}
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t)
				const n, gone = 5, 5
				for i := 1; i <= n; i++ {
					s.seeds = append(s.seeds, seedOf(i))
				}
				removed := make([]bool, n) // by the host that knows of it
				rings := make([]*Ring, n)
				for i := range rings {
					rings[i] = s.start(i+1, func(c *Config) {
						c.Shun = func(id fleet.NodeID) bool {
							s.mu.Lock()
							defer s.mu.Unlock()
							return removed[i] && id == nodeID(gone)
						}
						verify, shun := c.Verify, c.Shun
						c.Verify = func(b []byte) (identity.NodeRecord, error) {
							r, err := verify(b)
							if err == nil && shun(r.Node) {
								err = fmt.Errorf("%s was removed", r.Node)
							}
							return r, err
						}
						c.Seeds = func() []Seed { return s.seeds } // of a host that has not heard yet
					})
				}
				converged(t, rings)
				know := func(hosts ...int) {
					s.mu.Lock()
					for _, i := range hosts {
						removed[i-1] = true
					}
					s.mu.Unlock()
					for _, i := range hosts {
						rings[i-1].Recheck()
					}
				}
				for _, l := range []int{1, 2} {
					for _, r := range []int{3, 4, 5} {
						s.net.Cut(s.host(l), s.host(r))
					}
				}
				time.Sleep(cut / 2)
				know(1, 2)
				time.Sleep(cut / 2)
				if alive(rings[0]) != 2 || alive(rings[2]) != 3 {
					t.Errorf("while cut %d and %d are alive, want 2 and 3", alive(rings[0]), alive(rings[2]))
				}
				s.net.HealAll()
				one := func() bool {
					for _, r := range rings[:4] {
						for i := 1; i <= 4; i++ {
							if m, _ := find(r, i); m.State != Alive {
								return false
							}
						}
					}
					return true
				}
				back := func() {
					for _, r := range rings[:2] {
						if _, ok := find(r, gone); ok {
							t.Errorf("%s took the removed host in again", r.cfg.Self)
						}
					}
				}
				took := eventually(t, time.Minute, "one ring", one)
				t.Logf("after %s one ring within %s", cut, took)
				back()
				know(3, 4)
				for range 60 {
					time.Sleep(5 * time.Second)
					back()
				}
				if !one() {
					t.Error("the ring did not stay one")
				}
				for _, r := range rings[:4] {
					if _, ok := find(r, gone); ok {
						t.Errorf("%s has the removed host", r.cfg.Self)
					}
				}
			})
		})
	}
}

// The loudest that one host can be: everybody is said to be dead, suspect, gone
// and elsewhere, at the incarnations that hurt most, a thousand times a second to
// each host, among records of before and members that do not exist. Nobody who is
// attacked by words only may be lost for longer than a minute, and what the
// others keep of it stays small.
func TestFlood(t *testing.T) {
	for name, member := range map[string]bool{"by a member": true, "from elsewhere with the key": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { flood(t, member) })
		})
	}
}

func flood(t *testing.T, member bool) {
	s := newSim(t)
	const n = 5
	const seconds = 20
	rings := s.ring(n)
	converged(t, rings)
	old := map[int][]byte{}
	for i := 1; i <= n; i++ {
		old[i] = s.records[i]
	}
	time.Sleep(time.Hour)
	for i := 1; i <= n; i++ {
		raw := s.record(i, nil)
		s.mu.Lock()
		s.records[i] = raw
		s.mu.Unlock()
		if err := rings[i-1].UpdateRecord(); err != nil {
			t.Fatal(err)
		}
	}
	converged(t, rings)
	a := s.attacker(t)
	known := n
	if member {
		known++
		a.say(encode(t, msgAlive, aliveAt(evil, hostAddr(evil), 1, s.record(evil, nil))), everybody(n)...)
		time.Sleep(time.Second)
	}
	stranger := identity.KeyFromSeed([32]byte{66})
	ghost := mustParse(t, s.records[1])
	ghost.Node = nodeID(7777)
	forged, err := identity.SignNodeRecord(stranger, ghost)
	if err != nil {
		t.Fatal(err)
	}
	most, lost := 0, 0
	for i := range seconds * 1000 {
		who := i%n + 1
		name := string(nodeID(who))
		inc := []uint32{endOfRange, maxAccused - uint32(i), uint32(i), maxAccused}[i/7%4]
		var message []byte
		switch i % 5 {
		case 0:
			message = encode(t, msgDead, accusation{inc, name, string(nodeID(evil))})
		case 1:
			message = encode(t, msgSuspect, accusation{inc, name, string(nodeID(evil))})
		case 2:
			message = encode(t, msgDead, accusation{inc, name, name})
		case 3:
			message = encode(t, msgAlive, aliveAt(who, hostAddr(999), inc, old[who]))
		case 4:
			message = encode(t, msgAlive, aliveAt(10000+i, hostAddr(1), 1, forged))
		}
		a.say(message, everybody(n)...)
		time.Sleep(time.Millisecond)
		if i%500 != 0 {
			continue
		}
		for _, r := range rings {
			r.members.mu.Lock()
			most = max(most, len(r.members.rows), len(r.members.hosts))
			r.members.mu.Unlock()
			for j := 1; j <= n; j++ {
				if m, _ := find(r, j); m.State != Alive {
					lost++
				}
			}
		}
	}
	if most > known {
		t.Errorf("%d members were kept of a ring of %d", most, known)
	}
	took := eventually(t, time.Minute, "all are back", func() bool {
		for _, r := range rings {
			for j := 1; j <= n; j++ {
				if m, _ := find(r, j); m.State != Alive {
					return false
				}
			}
		}
		return true
	})
	st := rings[0].Stats()
	t.Logf("somebody was lost in %d of %d looks; all back %s after the end; the first host: %+v", lost, seconds*2*n*n, took, st)
	if st.ClaimsRefused == 0 || st.RecordsRefused == 0 || st.PacketsOver < seconds*500 {
		t.Errorf("not all was noticed: %+v", st)
	}
	if liars := rings[0].Liars(); member != (len(liars) == 1 && liars[0].Node == nodeID(evil)) {
		t.Errorf("who lies: %v", liars)
	}
	for i, r := range rings {
		for j := 1; j <= n; j++ {
			if m, _ := find(r, j); m.Addr != hostAddr(j) || m.Epoch != mustParse(t, s.records[j]).Epoch {
				t.Errorf("host %d sees %d at %s with the record of %d", i+1, j, m.Addr, m.Epoch)
			}
		}
	}
}
