package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/raftfsm/entry"
)

// A leader stamps what it decides, and stamps never fall: an honest leader with
// a fast clock would make rows expire and signed requests look late, long after
// its clock was set right. So it decides only while its clock agrees with the
// other voters', and hands leadership over when it does not.

const (
	clockCheck    = 15 * time.Second // between two comparisons
	clockRetry    = time.Second      // while no other voter answers
	clockQuestion = 2 * time.Second  // for an answer
	clockStale    = 3 * clockCheck   // a comparison counts for so long
	clockJump     = 5 * time.Second  // of the wall clock against the monotonic one
)

// clockState is what the last comparison said.
type clockState struct {
	known  bool          // another voter answered
	offset time.Duration // the others' clock less this one's
	at     time.Time     // when, by this host's clock
}

// err is nil while this host, whose clock says now, may stamp. A comparison
// counts only while the clock runs on as it did: one that was set since must be
// compared again before anything is stamped.
func (s *clockState) err(now time.Time) error {
	switch {
	case s == nil || !s.known || s.jumped(now):
		return fleet.Errorf(fleet.Unavailable, "this leader has not compared its clock with another voter's yet")
	case s.offset.Abs() > entry.Skew:
		return fleet.Errorf(fleet.Unavailable, "the leader's clock is %s off the other voters': it decides nothing", s.offset.Abs().Round(time.Second)).
			WithHint("set the clocks of the quorum hosts: chronyc makestep, or timedatectl set-ntp true")
	}
	return nil
}

func (s *clockState) jumped(now time.Time) bool {
	age := now.Sub(s.at) // monotonic
	wall := now.Round(0).Sub(s.at.Round(0))
	return age < 0 || age > clockStale || (wall-age).Abs() > clockJump
}

// watchClock compares while this host leads.
func (m *member) watchClock(ctx context.Context) {
	for {
		s := m.compareClocks(ctx)
		wait := clockCheck
		if s.known || m.clock.Load() == nil {
			before := m.clock.Swap(&s)
			if s.known && s.offset.Abs() > entry.Skew && (before == nil || before.offset.Abs() <= entry.Skew) {
				m.n.log.Error("clock is off: handing leadership over", "offset", s.offset.String())
			}
		}
		if !s.known {
			wait = clockRetry
		} else if s.offset.Abs() > entry.Skew {
			m.handOver(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-m.doubt:
		}
	}
}

// mayStamp is nil while this host's clock may stamp what the quorum decides.
func (m *member) mayStamp() error {
	if len(m.n.trust.Load().Voters) == 1 {
		return nil // nobody to compare with
	}
	err := m.clock.Load().err(m.n.cfg.Now())
	if err != nil {
		select {
		case m.doubt <- struct{}{}: // compare now
		default:
		}
	}
	return err
}

// compareClocks asks every other voter for its time and takes the answer that
// lies nearest to this host's: an honest leader does not step down because one
// other clock is wrong.
func (m *member) compareClocks(ctx context.Context) clockState {
	ctx, cancel := context.WithTimeout(ctx, clockQuestion)
	defer cancel()
	var mu sync.Mutex // guards offsets
	var offsets []time.Duration
	var wg sync.WaitGroup
	for _, v := range m.n.trust.Load().Voters {
		if v.Node == m.n.info.Node {
			continue
		}
		wg.Go(func() {
			sent := m.n.cfg.Now()
			resp, err := rpc.Call[rpc.Empty, rpc.AppliedResponse](ctx, m.rpc, quorumHost(v.Node), rpc.MethodApplied, &rpc.Empty{})
			if err != nil {
				return
			}
			middle := sent.Add(m.n.cfg.Now().Sub(sent) / 2)
			mu.Lock()
			defer mu.Unlock()
			offsets = append(offsets, time.Unix(0, resp.Time).Sub(middle.Round(0)))
		})
	}
	wg.Wait()
	if len(offsets) == 0 {
		return clockState{}
	}
	nearest := slices.MinFunc(offsets, func(a, b time.Duration) int { return cmp.Compare(a.Abs(), b.Abs()) })
	return clockState{known: true, offset: nearest, at: m.n.cfg.Now()}
}

// clockWarning says that this voter's clock is off, if it led and found so.
func (m *member) clockWarning() []fleet.Warning {
	s := m.clock.Load()
	if s == nil || !s.known || s.offset.Abs() <= entry.Skew {
		return nil
	}
	return []fleet.Warning{{
		Code: "VoterClockOff", Message: fmt.Sprintf("%s: it may not lead", enrol.ClockText(s.offset)),
		Remedy: "set the clock: chronyc makestep, or timedatectl set-ntp true",
	}}
}
