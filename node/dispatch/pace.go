package dispatch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

const (
	// turnBatch is how long a turn waits for others to be decided with it: ends
	// of a wave come within milliseconds of each other, and one entry can let
	// all of the next begin.
	turnBatch = 10 * time.Millisecond

	// tidyTime is how long after its end a leader follows a command that was
	// stopped, to tell hosts that wait for their turn that there is none. Those
	// that do not hear of it give up by themselves.
	tidyTime = 30 * time.Second
)

// nextTurns is which targets of a staged command begin next, ascending, by what
// is decided and nothing else: so whoever leads goes on where the last leader
// stopped. At most MaxConcurrency may be at it. At first one begins, and for each
// that is heard to have begun or ended two more, so that the waves are 1, 2, 4,
// ... as in SSM: a mistake that no host survives long enough to say that it began
// meets one host, not all that may run at once. One that says nothing until it may
// not begin any more keeps its place, but does not hold up the waves. When it must
// be over it counts as an error, and after too many errors none begins.
//
// held reports that a target is not to begin now. It and now are all that is not
// decided, and neither can make more run than may.
func nextTurns(c *fleet.Command, rows []fleet.Invocation, now int64, held func(index uint32) bool) []uint32 {
	if !c.Staged() || c.Stopped() {
		return nil
	}
	limit, _ := c.Limits()
	released, heard := 0, 0
	for i := range rows {
		if row := &rows[i]; row.Released != 0 {
			released++
			if row.State == fleet.InProgress || row.State.Final() || now > c.StartBy(row.Released)+int64(Skew) {
				heard++
			}
		}
	}
	room := min(limit-c.Held(), 2*heard+1-released, entry.MaxReleased)
	var next []uint32
	for i := range rows {
		if len(next) >= room {
			break
		}
		if row := &rows[i]; row.State == fleet.Staged && !held(row.Index) {
			next = append(next, row.Index)
		}
	}
	return next
}

// giveUpAt is the stamp at which nothing more is expected of a row that is open.
// took is that its host said that it holds the command, which no row says yet;
// cancelled is when this leader first saw that it is.
func giveUpAt(c *fleet.Command, row *fleet.Invocation, took bool, cancelled time.Time) int64 {
	switch unheard := row.State == fleet.Pending || row.State == fleet.CancelPending; {
	case row.State.Holds() && row.Released != 0:
		return c.OverBy(row.Released)
	case row.State == fleet.Staged, row.State == fleet.Pending && took && c.Staged():
		return c.NotAfter
	case row.State == fleet.CancelPending && c.Staged():
		// It cannot begin any more; but the host's own word is better than ours.
		return max(c.ReachBy(), cancelled.UnixNano())
	case unheard && !took:
		return c.ReachBy()
	}
	return c.Expires
}

// turns decides whose turn has come, and says how long to wait for that.
func (f *follower) turns(ctx context.Context, c *fleet.Command, rows []fleet.Invocation, now time.Time) (time.Duration, error) {
	if c.Count(fleet.Staged) == 0 {
		return time.Hour, nil // what is decided wakes us
	}
	next := nextTurns(c, rows, now.UnixNano(), func(index uint32) bool { return f.holds(c, index) })
	limit, _ := c.Limits()
	switch {
	case len(next) == 0 || now.UnixNano() >= c.NotAfter:
		f.turnAt = time.Time{}
		return lastRetry, nil // that a host is held no more, or too late to begin, does not wake us
	case f.turnAt.IsZero() && len(next) < limit:
		f.turnAt = now.Add(turnBatch)
	}
	if now.Before(f.turnAt) {
		return f.turnAt.Sub(now), nil
	}
	f.turnAt = time.Time{}
	a, err := f.d.cfg.Propose(ctx, &entry.Release{Stamp: now.UnixNano(), Command: c.ID, Attempt: c.Attempt, Indexes: next})
	if err == nil {
		err = a.Err
	}
	if err != nil {
		f.turnAt = now.Add(time.Second)
		return time.Second, fmt.Errorf("release: %w", err)
	}
	f.d.cfg.Logger.Debug("targets released", "command", c.ID, "targets", len(next))
	return lastRetry, nil
}

func (f *follower) holds(c *fleet.Command, index uint32) bool {
	return f.d.cfg.Hold != nil && f.d.cfg.Hold(c.Targets[index])
}

// release tells hosts that their turn has come, each with a voter's signature
// over the decision that says so; take hears how it went.
func (f *follower) release(ctx context.Context, store *state.Store, c *fleet.Command, indexes []uint32) error {
	byStamp := map[int64][]uint32{}
	for _, index := range indexes {
		released := store.Invocation(c.ID, index).Released
		byStamp[released] = append(byStamp[released], index)
	}
	for released, all := range byStamp {
		for some := range slices.Chunk(all, ticket.MaxReleased) {
			signed, err := f.d.cfg.SignRelease(c, released, some)
			if err != nil {
				return fmt.Errorf("release: %w", err)
			}
			for _, index := range some {
				req := &rpc.ReleaseRequest{Release: signed}
				if h := f.host(index); h.stale {
					req.Trust, h.asked = store.Trust().Raw(), store.Trust().Version
				}
				f.send(ctx, outcome{index: index, what: orderRelease}, func(ctx context.Context) (*rpc.DeliverResponse, error) {
					return f.d.cfg.Release(ctx, c.Targets[index], req)
				})
			}
		}
	}
	return nil
}
