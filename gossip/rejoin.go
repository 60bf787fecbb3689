package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"fleet/node/fleet"
)

// How often the ring looks for hosts that it ought to have.
const (
	rejoinSteady  = 30 * time.Second
	rejoinFirst   = time.Second // while somebody is missing; doubles up to rejoinSteady
	joinTimeout   = 15 * time.Second
	seedTimeout   = 5 * time.Second // for one of several, the last excepted
	startsPerSec  = 50              // of a whole fleet that starts at once
	fastSteady    = 2 * time.Second
	fastFirst     = 100 * time.Millisecond
	longestJitter = 30 * time.Second

	// settling is how long after its start, or after much of the ring changed, a
	// host calls whenever it misses somebody: gossip alone is slow to gather hosts
	// that start together, or two halves of a ring.
	settling = time.Minute

	// callers is how many of a ring's members, on average, call a missing host
	// in a round. All of them would be a storm when it comes back.
	callers = 3
)

// pace decides when to look for missing hosts and whether to call one. Chance
// is given to it: roll is 0 to 1.
type pace struct {
	first, steady time.Duration
	next          time.Duration
}

// after is the pause before the next look: steady while the ring is complete,
// and short at first, then growing, while it is not, so that a host that is cut
// off does not press. It is stretched or shrunk by up to a quarter, so that
// hosts that failed together do not return together.
func (p *pace) after(complete bool, roll float64) time.Duration {
	pause := p.steady
	if complete {
		p.next = p.first
	} else {
		pause = p.next
		p.next = min(2*p.next, p.steady)
	}
	return time.Duration(float64(pause) * (0.75 + roll/2))
}

// calls decides whether this host calls one of those that are missing. It does
// so for sure when it misses a good part of the ring: then it is the one that
// was cut off, or half of the ring was.
func calls(missing, alive int, roll float64) bool {
	return missing > 0 && roll*float64(alive) < callers*float64(missing)
}

// upheaval is how many changes between two looks at a ring of n members are more
// than some hosts that come and go.
func upheaval(n int) int { return max(3, n/20) }

// startDelay spreads the first attempts of n hosts that start together.
func startDelay(n int, roll float64) time.Duration {
	spread := min(time.Duration(n)*time.Second/startsPerSec, longestJitter)
	return time.Duration(float64(spread) * roll)
}

// rejoin runs until ctx is done. It is what heals a partition: memberlist by
// itself never calls a member again that it has given up.
func (r *Ring) rejoin(ctx context.Context) {
	p := pace{first: rejoinFirst, steady: rejoinSteady}
	if r.cfg.Fast {
		p = pace{first: fastFirst, steady: fastSteady}
	}
	p.next = p.first
	unsettled := time.Now()
	wait := startDelay(len(r.cfg.Seeds()), rand.Float64())
	if r.cfg.Fast {
		wait = 0
	}
	due := time.Now().Add(wait)
	for {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-r.members.stir:
			// Much changed: who waited for his turn would miss for long what the
			// others are told now. A little later, for not all of it has come.
			timer.Stop()
			if time.Since(unsettled) >= settling {
				unsettled, p.next = time.Now(), p.first
				due = unsettled.Add(p.first + startDelay(len(r.cfg.Seeds()), rand.Float64()))
			}
			continue
		case <-timer.C:
		}
		missing, alive := r.missing(r.cfg.Seeds())
		if r.members.changes() >= upheaval(alive) {
			unsettled = time.Now()
		}
		settled := time.Since(unsettled) >= settling
		if len(missing) > 0 && (!settled || calls(len(missing), alive, rand.Float64())) {
			err := r.call(ctx, missing)
			if err != nil && ctx.Err() == nil {
				r.cfg.Logger.Debug("no answer from hosts that the ring is missing", "missing", len(missing), "err", err)
			}
			if err != nil && !settled {
				// Those are off, it seems. A member that is there may know of
				// one that is back and that gossip did not tell this host.
				_ = r.call(ctx, r.alivePeers()) // the next look is soon
			}
		}
		// Alone with nobody to call is not complete either: the registry may
		// not have reached this host yet.
		due = time.Now().Add(p.after(len(missing) == 0 && alive > 1, rand.Float64()))
	}
}

// call exchanges states with one of the seeds.
func (r *Ring) call(ctx context.Context, seeds []Seed) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	_, err := r.Join(ctx, seeds)
	return err
}

// missing are the seeds that the ring does not see alive, and how many members
// it does see alive, this host included.
func (r *Ring) missing(seeds []Seed) (missing []Seed, alive int) {
	here := make(map[fleet.NodeID]bool)
	for _, m := range r.Members() {
		if m.State == Alive {
			here[m.Node] = true
		}
	}
	for _, s := range seeds {
		if !here[s.Node] {
			missing = append(missing, s)
		}
	}
	return missing, len(here)
}
