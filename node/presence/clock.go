package presence

import (
	"sort"
	"sync"
	"time"

	"fleet/node/fleet"
)

const (
	// MaxSpread is how far apart the answers of the voters may lie.
	MaxSpread = 60 * time.Second
	// MaxAge is how long an answer counts, in monotonic time.
	MaxAge = 10 * time.Minute
	// maxRoundTrip bounds what an answer that was held back may shift the clock.
	maxRoundTrip = 10 * time.Second
)

// Clock is the fleet's time as a host knows it. Only answers of voters that
// the newest trust.json names are asked for, so a voter that was removed or
// replaced cannot shift it.
type Clock struct {
	now    func() time.Time
	voters func() (ids []fleet.NodeID, k int)

	mu     sync.Mutex // guards heards
	heards map[fleet.NodeID]heard
}

type heard struct {
	said time.Time // what the voter said
	at   time.Time // our clock when the answer came, with its monotonic reading
}

// NewClock makes a clock that has heard nothing. voters gives the voters of
// the newest trust.json held and how many of them must agree.
func NewClock(now func() time.Time, voters func() ([]fleet.NodeID, int)) *Clock {
	return &Clock{now: now, voters: voters, heards: map[fleet.NodeID]heard{}}
}

// Heard records a voter's answer to a question sent at sent. An answer that
// took longer than 10 s is dropped: it may be old.
func (c *Clock) Heard(voter fleet.NodeID, said, sent time.Time) {
	at := c.now()
	if at.Sub(sent) > maxRoundTrip {
		return
	}
	ids, _ := c.voters()
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[fleet.NodeID]heard, len(ids))
	for _, id := range ids {
		if h, ok := c.heards[id]; ok {
			known[id] = h
		}
		if id == voter {
			known[id] = heard{said: said, at: at}
		}
	}
	c.heards = known
}

// FleetTime is the time on which k voters agree within MaxSpread, the latest
// of the agreeing answers: an error of the clock then makes an order expire,
// not live longer. It is false when fewer than k answered in the last MaxAge.
func (c *Clock) FleetTime() (time.Time, bool) { return c.fleetTime(MaxAge) }

// lasting reports whether there will be fleet time for a while without another
// answer.
func (c *Clock) lasting() bool {
	_, ok := c.fleetTime(MaxAge / 2)
	return ok
}

func (c *Clock) fleetTime(maxAge time.Duration) (time.Time, bool) {
	ids, k := c.voters()
	now := c.now()
	var answers []time.Time
	c.mu.Lock()
	for _, id := range ids {
		h, ok := c.heards[id]
		if !ok {
			continue
		}
		age := now.Sub(h.at)                              // monotonic
		wall := now.Round(0).Sub(h.at.Round(0))           // by the wall clock
		if drift := wall - age; drift.Abs() > MaxSpread { // suspended, or the wall clock was set: ask again
			continue
		}
		if age >= 0 && age <= maxAge {
			answers = append(answers, h.said.Add(age))
		}
	}
	c.mu.Unlock()
	if k < 1 || len(answers) < k {
		return time.Time{}, false
	}
	sort.Slice(answers, func(i, j int) bool { return answers[i].Before(answers[j]) })
	for last := len(answers) - 1; last >= k-1; last-- {
		if answers[last].Sub(answers[last-k+1]) <= MaxSpread {
			return answers[last], true
		}
	}
	return time.Time{}, false
}

// Offset is fleet time minus this host's clock; false as FleetTime.
func (c *Clock) Offset() (time.Duration, bool) {
	t, ok := c.FleetTime()
	if !ok {
		return 0, false
	}
	return t.Round(0).Sub(c.now().Round(0)), true
}
