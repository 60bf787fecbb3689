package gossip

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

func TestStanding(t *testing.T) {
	start := time.Now()
	type check struct {
		yes, no, others int
		want            remedy
	}
	for name, checks := range map[string][]check{
		"all is well":                  {{3, 0, 5, nothing}, {1, 0, 1, nothing}},
		"nobody answers":               {{0, 0, 5, nothing}, {0, 0, 0, nothing}},
		"one of three does not":        {{2, 1, 5, nothing}, {2, 1, 5, nothing}},
		"one voice of several":         {{0, 1, 5, nothing}, {0, 1, 5, nothing}},
		"the only other":               {{0, 1, 1, announce}, {0, 1, 1, renew}},
		"more and more":                {{0, 3, 5, announce}, {1, 2, 5, renew}, {0, 2, 5, announce}, {0, 3, 5, remake}},
		"a good answer ends it":        {{0, 3, 5, announce}, {3, 0, 5, nothing}, {0, 3, 5, announce}},
		"silence changes nothing":      {{0, 3, 5, announce}, {0, 0, 5, nothing}, {0, 3, 5, renew}},
		"what is drastic is done once": {{0, 3, 5, announce}, {0, 3, 5, renew}, {0, 3, 5, announce}, {0, 3, 5, remake}, {0, 3, 5, announce}, {0, 3, 5, announce}, {0, 3, 5, announce}, {0, 3, 5, announce}},
	} {
		s := standing{}
		for i, c := range checks {
			var got remedy
			s, got = s.step(c.yes, c.no, c.others, start.Add(time.Duration(i)*checkEvery))
			if got != c.want {
				t.Errorf("%s: check %d: %d, want %d", name, i+1, got, c.want)
			}
		}
	}
	s := standing{}
	for range renewAt {
		s, _ = s.step(0, 3, 5, start)
	}
	if _, got := s.step(0, 3, 5, start.Add(drastic)); got != renew {
		t.Errorf("after %s: %d, want another renewal", drastic, got)
	}
}

// checked makes rings answer each other's self-checks over the network.
type checked struct {
	s     *sim
	mu    sync.Mutex // guards rings
	rings map[fleet.NodeID]*Ring
}

func (c *checked) put(i int, r *Ring) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rings[nodeID(i)] = r
}

func (c *checked) listed(i int) func(context.Context, fleet.NodeID) (bool, error) {
	return func(ctx context.Context, node fleet.NodeID) (bool, error) {
		c.mu.Lock()
		r := c.rings[node]
		c.mu.Unlock()
		if r == nil {
			return false, errors.New("no such host")
		}
		conn, err := c.s.host(i).DialContext(ctx, "tcp", netip.AddrPortFrom(r.cfg.Advertise.Addr(), 1).String())
		if err != nil {
			var refused *net.OpError
			if !errors.As(err, &refused) || ctx.Err() != nil {
				return false, err
			}
		} else {
			_ = conn.Close()
		}
		return r.Lists(nodeID(i)), nil
	}
}

// start starts hosts 1 to n with a self-check and a rejoin loop each.
func (c *checked) start(n int, change func(i int, cfg *Config)) []*Ring {
	for i := 1; i <= n; i++ {
		c.s.seeds = append(c.s.seeds, seedOf(i))
	}
	rings := make([]*Ring, n)
	for i := range rings {
		rings[i] = c.s.start(i+1, func(cfg *Config) {
			cfg.Seeds = func() []Seed { return c.s.seeds }
			cfg.Listed = c.listed(i + 1)
			if change != nil {
				change(i+1, cfg)
			}
		})
		c.put(i+1, rings[i])
	}
	return rings
}

// A host that went back to an older image has an older node record than the
// others know. They refuse it, and nothing but the self-check tells it: with a
// record of today it is back within a minute.
func TestOlderRecordIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		c := &checked{s: s, rings: map[fleet.NodeID]*Ring{}}
		var renewed atomic.Int32
		rings := c.start(5, func(i int, cfg *Config) {
			cfg.Renew = func(context.Context) error {
				renewed.Add(1)
				raw := s.record(i, nil)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.records[i] = raw
				return nil
			}
		})
		converged(t, rings)
		old := s.records[1]
		time.Sleep(time.Hour)
		raw := s.record(1, nil)
		s.mu.Lock()
		s.records[1] = raw
		s.mu.Unlock()
		if err := rings[0].UpdateRecord(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		_ = rings[0].Close()
		s.host(1).Down()
		time.Sleep(10 * time.Minute)
		s.host(1).Up()
		s.mu.Lock()
		s.records[1] = old
		s.mu.Unlock()
		if renewed.Load() != 0 {
			t.Errorf("%d records were renewed while all was well", renewed.Load())
		}
		rings[0] = s.start(1, func(cfg *Config) {
			cfg.Seeds = func() []Seed { return s.seeds }
			cfg.Listed = c.listed(1)
			cfg.Renew = func(context.Context) error {
				renewed.Add(1)
				raw := s.record(1, nil)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.records[1] = raw
				return nil
			}
		})
		c.put(1, rings[0])
		took := eventually(t, time.Minute, "it is listed again", func() bool {
			for _, r := range rings {
				if alive(r) != 5 {
					return false
				}
			}
			return true
		})
		t.Logf("listed again after %s with %d renewals", took, renewed.Load())
		if n := renewed.Load(); n != 1 {
			t.Errorf("%d renewals, want 1", n)
		}
	})
}

// A ring that stays missing is given up, once, so that its owner makes another;
// while all is well nothing happens, and a liar alone moves nobody.
func TestUnlisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		c := &checked{s: s, rings: map[fleet.NodeID]*Ring{}}
		var deaf atomic.Bool
		rings := c.start(4, func(i int, cfg *Config) {
			if i != 1 {
				return
			}
			honest := cfg.Listed
			cfg.Listed = func(ctx context.Context, node fleet.NodeID) (bool, error) {
				if deaf.Load() || node == nodeID(2) {
					return false, nil
				}
				return honest(ctx, node)
			}
		})
		converged(t, rings)
		time.Sleep(20 * time.Minute)
		for _, r := range rings {
			if n := r.Stats().Unlisted; n != 0 {
				t.Errorf("%s was missing %d times, though one of three says so at most", r.cfg.Self, n)
			}
		}
		deaf.Store(true)
		start := time.Now()
		select {
		case <-rings[0].Unlisted():
			t.Logf("given up after %s", time.Since(start))
		case <-time.After(2 * time.Minute):
			t.Error("the ring was not given up")
		}
		select {
		case <-rings[1].Unlisted():
			t.Error("another ring was given up")
		default:
		}
		converged(t, rings)
	})
}

func TestBudget(t *testing.T) {
	var b budget
	now := time.Unix(1000, 0)
	member, stranger := hostAddr(1), hostAddr(2)
	count := func(from netip.AddrPort, is bool, n int) (taken int) {
		for range n {
			if b.take(from, is, now) {
				taken++
			}
		}
		return taken
	}
	if got := count(member, true, 1000); got != packetsPerMember {
		t.Errorf("%d packets of a member", got)
	}
	if got := count(hostAddr(3), true, 10); got != 10 {
		t.Errorf("%d of 10 packets of another member", got)
	}
	for i := range 100 * 1000 { // as many sources as an attacker likes
		b.take(netip.AddrPortFrom(stranger.Addr(), uint16(i)), false, now)
	}
	if len(b.members) != 2 || b.strangers != 100*1000 {
		t.Errorf("%d members and %d strangers are remembered", len(b.members), b.strangers)
	}
	if got := count(hostAddr(3), true, 10); got != 10 {
		t.Errorf("%d of 10 packets of a member during a flood of strangers", got)
	}
	now = now.Add(time.Second)
	if got := count(member, true, 10) + count(stranger, false, 10); got != 20 {
		t.Errorf("%d of 20 packets in the next second", got)
	}
}
