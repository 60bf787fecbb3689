package presence

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"sort"
	"sync"
	"time"

	"fleet/node/fleet"
)

// BeatsConfig is what the heartbeat loop of a host needs.
type BeatsConfig struct {
	Self     fleet.NodeID
	Interval time.Duration // between heartbeats, jittered by a fifth either way; 15 s when zero
	Voters   func() []fleet.NodeID
	Leader   func() fleet.NodeID // the last leader heard of; may be empty

	// Send asks one voter and gives what time it said. It must return when ctx
	// is done.
	Send func(ctx context.Context, voter fleet.NodeID) (said time.Time, err error)

	Clock  *Clock
	Now    func() time.Time
	Logger *slog.Logger
}

// DefaultInterval is the time between two heartbeats of a host.
const DefaultInterval = 15 * time.Second

// Wanted is how many voters a host keeps in touch with.
const Wanted = 2

// Beats sends heartbeats until its context ends.
type Beats struct {
	cfg  BeatsConfig
	kick chan struct{}

	mu   sync.Mutex // guards last
	last time.Time  // when a voter last answered
}

// NewBeats makes the loop; Run starts it.
func NewBeats(cfg BeatsConfig) *Beats {
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	return &Beats{cfg: cfg, kick: make(chan struct{}, 1)}
}

// Kick asks for a heartbeat now: fleet time is wanted, or something changed.
func (b *Beats) Kick() {
	select {
	case b.kick <- struct{}{}:
	default: // one is already asked for
	}
}

// LastHeard is when a voter last answered; zero when none did.
func (b *Beats) LastHeard() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// Run sends a round of heartbeats at once and then every interval. While too
// few voters answer it tries again sooner, from a tenth of the interval up.
func (b *Beats) Run(ctx context.Context) error {
	wait := time.Duration(0)
	failures := 0
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-b.kick:
			timer.Stop()
		}
		if b.round(ctx) {
			failures = 0
			wait = jitter(b.cfg.Interval)
			continue
		}
		failures++
		wait = jitter(min(b.cfg.Interval, b.cfg.Interval/10*time.Duration(failures)))
	}
}

// answerTimeout is how long a voter may take before another is asked in its
// place: one that takes the call and says nothing must not cost the round.
const answerTimeout = 3 * time.Second

// round asks two voters, and others in place of those that do not answer in
// time. When their answers give no fleet time, because one of their clocks is
// off, it asks all the rest: any k honest voters are enough. It reports whether
// as many answered as are wanted or exist, and agreed.
func (b *Beats) round(ctx context.Context) bool {
	order := b.order()
	wanted := min(Wanted, len(order))
	if wanted == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, maxRoundTrip)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	answered := make(chan bool, 2*len(order)) // each voter answers, and may be late before that
	next := 0
	start := func() {
		voter := order[next]
		next++
		wg.Go(func() {
			late := time.AfterFunc(answerTimeout, func() { answered <- false })
			good := b.ask(ctx, voter)
			if late.Stop() || good {
				answered <- good
			}
		})
	}
	good, open := 0, 0
	for next < wanted {
		start()
		open++
	}
	for open > 0 && good < wanted {
		if <-answered {
			good++
		} else if next < len(order) {
			start()
			open++
		}
		open--
	}
	for !b.cfg.Clock.lasting() && next < len(order) {
		start()
		if <-answered {
			good++
		}
	}
	return good >= wanted && b.cfg.Clock.lasting()
}

// ask sends one heartbeat and reports whether the voter answered it.
func (b *Beats) ask(ctx context.Context, voter fleet.NodeID) bool {
	sent := b.cfg.Now()
	said, err := b.cfg.Send(ctx, voter)
	if err != nil {
		b.cfg.Logger.Debug("heartbeat not answered", "peer", voter, "err", err)
		return false
	}
	b.cfg.Clock.Heard(voter, said, sent)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = b.cfg.Now()
	return true
}

// order lists the voters: the leader first, because results go there, then the
// others in an order of this host's own, which spreads the hosts over them.
func (b *Beats) order() []fleet.NodeID {
	voters := b.cfg.Voters()
	leader := b.cfg.Leader()
	weight := func(v fleet.NodeID) uint64 {
		if v == leader {
			return 0
		}
		sum := sha256.Sum256([]byte(string(b.cfg.Self) + "\x00" + string(v)))
		return binary.BigEndian.Uint64(sum[:8]) | 1
	}
	sorted := append([]fleet.NodeID(nil), voters...)
	sort.Slice(sorted, func(i, j int) bool { return weight(sorted[i]) < weight(sorted[j]) })
	return sorted
}

// jitter is d give or take a fifth, so that hosts that started together do not
// stay together.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/5 + rand.N(2*d/5+1)
}
