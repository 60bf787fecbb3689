package runcmd

import (
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

const (
	// MaxClimbing is the size of the largest details of a result that climbs
	// through relays, in bytes. Larger ones, and results that name blobs, go
	// straight to a voter.
	MaxClimbing = 8 << 10

	// climbTime is how long a result that climbs may be without an
	// acknowledgement before the host brings it to a voter itself.
	climbTime = 2 * time.Second
)

// Climber waits for the result of one command, to send it up through relays.
type Climber struct {
	r      *Runner
	key    journal.Key
	result chan Answer // has room for the one that comes
}

// acked is a voter's word, which the caller has verified, that a result is in
// the log.
type acked struct {
	key    journal.Key
	result ticket.ResultID
	index  uint64
}

// Climb waits for the result of a command that may not have come yet. Close
// must follow.
func (r *Runner) Climb(command fleet.CommandID, attempt uint32) *Climber {
	c := &Climber{r: r, key: journal.Key{Command: command, Attempt: attempt}, result: make(chan Answer, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.climbers == nil {
		r.climbers = map[journal.Key][]*Climber{}
	}
	r.climbers[c.key] = append(r.climbers[c.key], c)
	return c
}

// Result gives the result when the command finishes, if it may climb.
func (c *Climber) Result() <-chan Answer { return c.result }

// Acknowledged says that the quorum has a result at a log index.
func (c *Climber) Acknowledged(result ticket.ResultID, index uint64) {
	c.r.mu.Lock()
	c.r.acked = append(c.r.acked, acked{c.key, result, index})
	c.r.mu.Unlock()
	signal(c.r.news)
}

// Close ends the interest.
func (c *Climber) Close() {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	left := slices.DeleteFunc(c.r.climbers[c.key], func(other *Climber) bool { return other == c })
	if c.r.climbers[c.key] = left; len(left) == 0 {
		delete(c.r.climbers, c.key)
	}
}

// climb gives a fresh result to those who wait for it and says how long the
// reporter leaves it to them.
func (r *Runner) climb(k journal.Key) time.Duration {
	r.mu.Lock()
	waiting := slices.Clone(r.climbers[k])
	r.mu.Unlock()
	if len(waiting) == 0 {
		return 0
	}
	e, ok := r.cfg.Journal.Lookup(k)
	if !ok || e.Finished == nil || len(e.Finished.Blobs) > 0 || len(e.Finished.Detail) > MaxClimbing {
		return 0
	}
	for _, c := range waiting {
		select {
		case c.result <- Answer{State: Done, Result: e.Finished.Result, Detail: e.Finished.Detail}:
		default: // it has one
		}
	}
	return climbTime
}

// takeAcked acknowledges what came down through relays, unless the reporter is
// bringing it to a voter just now or has done so.
func (r *Runner) takeAcked(waiting map[journal.Key]*pending) {
	r.mu.Lock()
	all := r.acked
	r.acked = nil
	r.mu.Unlock()
	for _, a := range all {
		p := waiting[a.key]
		e, ok := r.cfg.Journal.Lookup(a.key)
		if p == nil || p.busy || !ok || e.Finished == nil || ticket.ResultIDOf(e.Finished.Result) != a.result || a.index == 0 {
			continue
		}
		r.acknowledge(waiting, reported{key: a.key, index: a.index})
	}
}
