package raftfsm

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// lastTurn is by when the last target of a staged command has to begin: late
// enough for each turn before it to take as long as a silent host can hold its
// place, and no later than any command may begin.
func lastTurn(c *fleet.Command) int64 {
	n := len(c.Targets)
	concurrency, _ := c.Limits()
	turns := int64((n+concurrency-1)/concurrency + bits.Len(uint(concurrency))) // the first ones are smaller
	turn := int64(c.DeliverySeconds+c.ExecutionSeconds)*int64(time.Second) + int64(entry.ExpiryGrace) + int64(entry.Skew)
	most := int64(entry.MaxDeliverySeconds) * int64(time.Second)
	if turns > most/turn {
		return c.Created + most
	}
	return c.Created + min(most, int64(c.DeliverySeconds)*int64(time.Second)+turns*turn)
}

// release lets targets of a staged command begin. It holds what MaxConcurrency
// and MaxErrors promise whatever a leader proposes: a place is free only when
// the end of who had it is decided, and after too many errors there is none.
func release(s *step, e *entry.Release) (any, error) {
	s.at(e.Stamp)
	c, err := s.command(e.Command, e.Attempt)
	if err != nil {
		return nil, err
	}
	concurrency := places(c)
	switch last := e.Indexes[len(e.Indexes)-1]; {
	case !c.Open():
		return nil, fleet.Errorf(fleet.Conflict, "command %s has ended", c.ID)
	case !c.Staged():
		return nil, fleet.Errorf(fleet.Conflict, "command %s has no limits: nothing of it waits", c.ID)
	case c.Stopped():
		return nil, fleet.Errorf(fleet.Conflict, "command %s begins nowhere any more: %d targets failed", c.ID, c.Failures())
	case s.stamp >= c.NotAfter:
		return nil, fleet.Errorf(fleet.Expired, "command %s was to begin by %s", c.ID, formatTime(c.NotAfter))
	case uint64(last) >= uint64(len(c.Targets)):
		return nil, fleet.Errorf(fleet.Invalid, "command %s has %d targets, there is none at %d", c.ID, len(c.Targets), last)
	case c.Held()+len(e.Indexes) > concurrency:
		return nil, fleet.Errorf(fleet.Conflict, "command %s is at work on %d targets, and %d more are over its limit of %d",
			c.ID, c.Held(), len(e.Indexes), concurrency)
	}
	for _, index := range e.Indexes {
		if row := s.Invocation(c.ID, index); row.State != fleet.Staged {
			return nil, fleet.Errorf(fleet.Conflict, "target %d of command %s is %s, and does not wait for its turn", index, c.ID, row.State)
		}
	}
	changed := s.changing(c)
	for rest := e.Indexes; len(rest) > 0; {
		n := rest[0] / fleet.ShardSize
		rows := slices.Clone(s.Shard(c.ID, n))
		for len(rest) > 0 && rest[0]/fleet.ShardSize == n {
			row := &rows[rest[0]%fleet.ShardSize]
			next := *row
			next.State, next.Released = fleet.Released, s.stamp
			changed.move(row, next)
			rest = rest[1:]
		}
		changed.put(n, rows)
	}
	return changed.finish(), nil
}

// overBy is the stamp by which a row that has a place has ended on its host.
func overBy(c *fleet.Command, row *fleet.Invocation) int64 {
	if row.Released == 0 {
		return c.Expires
	}
	return c.OverBy(row.Released)
}

// stop ends what was not released when too many targets have failed. No host
// has been told to begin it, and none will be. One that was released may have
// begun: it keeps its place until its host says what became of it, and is not
// told to begin any more.
func (ch *change) stop() {
	c := &ch.command
	if !c.Stopped() || c.Count(fleet.Pending, fleet.Staged) == 0 {
		return
	}
	for n := uint32(0); uint64(n)*fleet.ShardSize < uint64(len(c.Targets)); n++ {
		rows := slices.Clone(ch.s.Shard(c.ID, n))
		for i := range rows {
			if row := &rows[i]; row.State == fleet.Pending || row.State == fleet.Staged {
				ch.move(row, notReleased(c, row.Index))
			}
		}
		ch.put(n, rows)
	}
}

// notReleased is the end of a target that did not begin because too many failed.
func notReleased(c *fleet.Command, index uint32) fleet.Invocation {
	reason := reasonNotReleased
	if c.Silent > 0 {
		reason = reasonNotReleased2
	}
	return fleet.Invocation{Index: index, State: fleet.Terminated, Code: -1, Reason: fmt.Sprintf(reason, c.Failures(), c.MaxErrors)}
}

// checkPace accepts the rows of a command that is staged, or is not: those that
// have a place were released, and they are not more than there may be.
func (r *restorer) checkPace(c *fleet.Command) error {
	staged := c.Staged()
	for _, row := range r.step.Invocations(c.ID) {
		waits := row.State == fleet.Staged || row.State == fleet.Released
		switch {
		case !staged && (waits || row.Released != 0),
			staged && !row.State.Final() && row.State.Holds() != (row.Released != 0),
			row.Released != 0 && (row.Released < c.Created || row.Released >= c.NotAfter):
			return fmt.Errorf("target %d of command %s is %s, released at %d, which cannot be", row.Index, c.ID, row.State, row.Released)
		}
	}
	if concurrency, _ := c.Limits(); staged && c.Held() > concurrency {
		return fmt.Errorf("command %s is at work on %d targets, over its limit of %d", c.ID, c.Held(), concurrency)
	}
	if c.Stopped() && c.Count(fleet.Pending, fleet.Staged) > 0 {
		return fmt.Errorf("targets of command %s wait for a turn that cannot come", c.ID)
	}
	return nil
}
