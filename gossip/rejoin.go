package gossip

import (
	"context"
	"math/rand/v2"
	"time"
)

// How often the ring looks for hosts that it ought to have.
const (
	rejoinSteady  = 30 * time.Second
	rejoinFirst   = time.Second // after a failure; doubles up to rejoinSteady
	joinTimeout   = 15 * time.Second
	startsPerSec  = 50 // of a whole fleet that starts at once
	fastSteady    = 2 * time.Second
	fastFirst     = 100 * time.Millisecond
	longestJitter = 30 * time.Second
)

// pace decides how long to wait between attempts. It is a pure function of
// what happened, apart from the jitter that it is given.
type pace struct {
	first, steady time.Duration
	next          time.Duration
}

// after is the pause that follows an attempt: growing after failures, so that
// a host that is cut off does not press, and steady else. roll is 0 to 1 and
// stretches or shrinks the pause by up to a quarter, so that hosts that failed
// together do not return together.
func (p *pace) after(failed bool, roll float64) time.Duration {
	pause := p.steady
	if failed {
		pause = p.next
		p.next = min(2*p.next, p.steady)
	} else {
		p.next = p.first
	}
	return time.Duration(float64(pause) * (0.75 + roll/2))
}

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
	wait := startDelay(len(r.cfg.Seeds()), rand.Float64())
	if r.cfg.Fast {
		wait = 0
	}
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		missing := r.missing(r.cfg.Seeds())
		if len(missing) == 0 {
			// Alone with nobody to ask is a failure too: the registry may not
			// have reached this host yet.
			wait = p.after(len(r.members.listed()) <= 1, rand.Float64())
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, joinTimeout)
		_, err := r.Join(attempt, missing)
		cancel()
		if err != nil && ctx.Err() == nil {
			r.cfg.Logger.Debug("no answer from hosts that the ring is missing", "missing", len(missing), "err", err)
		}
		wait = p.after(err != nil, rand.Float64())
	}
}

// missing are the seeds that the ring does not see alive.
func (r *Ring) missing(seeds []Seed) []Seed {
	var out []Seed
	for _, s := range seeds {
		if s.Node != r.cfg.Self && !r.members.isAlive(s.Node) {
			out = append(out, s)
		}
	}
	return out
}
