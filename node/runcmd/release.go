package runcmd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

const (
	// beginWait is how long the answer to a Release waits for the command to
	// begin: then one question is enough, unless the host is busy.
	beginWait = time.Second

	// turnCheck is how often it is looked at least whether staged commands can
	// still begin: the time of the fleet may make a leap.
	turnCheck = time.Minute
)

// turn is that a staged command may begin.
type turn struct {
	by    int64         // and until when
	begun chan struct{} // closed when it has, or has ended
	over  bool          // begun is closed
}

// waits reports whether an entry of the journal waits for a Release, and until
// when. One that cannot be read goes the way of all others, which says so.
func waits(e *journal.Entry) (until int64, ok bool) {
	if e.Starts > 0 || e.Cancel != nil || !ticket.IsStaged(e.Ticket) {
		return 0, false
	}
	signed, err := ticket.ParseSigned(e.Ticket)
	if err != nil {
		return 0, false
	}
	t, err := ticket.Parse(signed.Ticket)
	if err != nil {
		return 0, false
	}
	return t.NotAfter, true
}

// Release lets a staged command begin. It waits a moment for that: Accepted says
// that the journal has the start, Staged that the command is before nothing but
// this host's other commands, and that the Release has to come again, because
// only memory holds it. The error says that the journal failed.
func (r *Runner) Release(ctx context.Context, release []byte) (Answer, error) {
	order, err := ticket.ParseSignedRelease(release)
	if err == nil {
		err = order.Verify(r.cfg.Trust())
	}
	if err == nil && order.Fleet != r.cfg.Fleet {
		err = fleet.Errorf(fleet.Denied, "the release is of another fleet")
	}
	if err != nil {
		r.cfg.Logger.Warn("release refused", "err", err)
		return refusal(err.Error()), nil
	}
	answer, begun := r.takeTurn(ctx, order)
	if begun == nil {
		return answer, nil
	}
	timer := time.NewTimer(beginWait)
	defer timer.Stop()
	select {
	case <-begun:
	case <-timer.C:
	case <-ctx.Done():
	}
	answer, _ = r.Query(order.Command, order.Attempt)
	return answer, nil
}

// takeTurn puts a released command into the queue; begun is nil if there is
// nothing to wait for.
func (r *Runner) takeTurn(ctx context.Context, order *ticket.SignedRelease) (_ Answer, begun <-chan struct{}) {
	r.deliveries.Lock()
	defer r.deliveries.Unlock()
	k := journal.Key{Command: order.Command, Attempt: order.Attempt}
	e, ok := r.cfg.Journal.Lookup(k)
	if !ok {
		return Answer{State: NotHere, Reason: "this host does not have the command"}, nil
	}
	if answer, _ := r.Query(k.Command, k.Attempt); answer.State != Staged {
		return answer, nil
	}
	if err := genuineRelease(order, &e); err != nil {
		r.cfg.Logger.Warn("release refused", "command", k.Command, "err", err)
		return refusal(err.Error()), nil
	}
	switch now, known := r.cfg.Clock.FleetTime(); {
	case !known:
		return NotReadyAnswer("this host has not heard the time from enough voters in the last minutes"), nil
	case now.Before(time.Unix(0, order.Released).Add(-Skew)):
		return NotReadyAnswer(fmt.Sprintf("its turn is at %s, it is %s", stamp(order.Released), stamp(now.UnixNano()))), nil
	case now.UnixNano() > order.StartBy:
		// A target is released once: no other turn comes.
		r.giveUpTurnLocked(ctx, k, tooLate(order.StartBy, now))
		answer, _ := r.Query(k.Command, k.Attempt)
		return answer, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, waiting := r.staged[k]; waiting {
		delete(r.staged, k)
		r.turns[k] = &turn{by: order.StartBy, begun: make(chan struct{})}
		r.queue = append(r.queue, k)
		r.cfg.Logger.Info("command released", "command", k.Command)
		signal(r.wake)
	}
	if t := r.turns[k]; t != nil {
		return Answer{State: Staged}, t.begun
	}
	return Answer{State: Staged}, nil // it is being given up
}

// genuineRelease checks that a Release, which a voter signed, is for what this
// host holds. It is one voter's word, and the ticket that of k: it can move the
// begin within the ticket's time, and not out of it.
func genuineRelease(order *ticket.SignedRelease, e *journal.Entry) error {
	signed, err := ticket.ParseSigned(e.Ticket)
	if err != nil {
		return err
	}
	t, err := ticket.Parse(signed.Ticket)
	if err != nil {
		return err
	}
	if order.Root != t.Root || order.Targets != t.Targets || !order.Covers(e.Index) {
		return fleet.Errorf(fleet.Denied, "the release does not name this host")
	}
	if order.Released < t.Created || order.StartBy > t.NotAfter {
		return fleet.Errorf(fleet.Denied, "the release, from %s until %s, is not within the command's time, from %s until %s",
			stamp(order.Released), stamp(order.StartBy), stamp(t.Created), stamp(t.NotAfter))
	}
	return nil
}

// startBy is until when a released command may begin; 0 if it was not released
// since this host started.
func (r *Runner) startBy(k journal.Key) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.turns[k]; t != nil {
		return t.by
	}
	return 0
}

// begun tells who waits for it that a released command began.
func (r *Runner) begun(k journal.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begunLocked(k)
}

func (r *Runner) begunLocked(k journal.Key) {
	if t := r.turns[k]; t != nil && !t.over {
		t.over = true
		close(t.begun)
	}
}

// finishWaiting gives a command that waits, for its turn or for a worker, its
// result at once: the workers may be busy for hours. What was started before a
// crash has leftovers, which a worker kills first. Who cancels or gives up a turn
// holds r.deliveries (Depart does not: it takes in nothing any more), so this does
// not wait long for room on the disk: there is another time.
func (r *Runner) finishWaiting(ctx context.Context, k journal.Key, o Outcome) {
	ctx, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	e, ok := r.cfg.Journal.Lookup(k)
	if !ok || e.Finished != nil || e.Starts > 0 {
		return
	}
	r.mu.Lock()
	until, staged := r.staged[k]
	delete(r.staged, k)
	i := slices.Index(r.queue, k)
	if i >= 0 {
		r.queue = slices.Delete(r.queue, i, i+1)
	}
	r.mu.Unlock()
	if !staged && i < 0 {
		return
	}
	r.finish(ctx, &e, o, nil)
	if e, ok := r.cfg.Journal.Lookup(k); ok && e.Finished == nil { // there was no room on the disk
		r.mu.Lock()
		defer r.mu.Unlock()
		if staged && e.Cancel == nil {
			r.staged[k] = until
			return
		}
		r.queue = append(r.queue, k) // a worker tries it again
		signal(r.wake)
	}
}

func (r *Runner) giveUpTurn(ctx context.Context, k journal.Key, reason string) {
	r.deliveries.Lock()
	defer r.deliveries.Unlock()
	r.giveUpTurnLocked(ctx, k, reason)
}

// giveUpTurnLocked ends a staged command; r.deliveries is held.
func (r *Runner) giveUpTurnLocked(ctx context.Context, k journal.Key, reason string) {
	r.finishWaiting(ctx, k, Outcome{State: fleet.DeliveryTimedOut, Code: -1, Reason: reason})
}

// giveUpTurns ends staged commands whose turn did not come in time, until ctx
// ends.
func (r *Runner) giveUpTurns(ctx context.Context) {
	for {
		now, known := r.cfg.Clock.FleetTime()
		wait := turnCheck
		late := map[journal.Key]int64{}
		r.mu.Lock()
		for k, until := range r.staged {
			switch left := time.Unix(0, until).Sub(now); {
			case !known:
			case left < 0:
				late[k] = until
			default:
				wait = min(wait, left+time.Millisecond)
			}
		}
		r.mu.Unlock()
		for k, until := range late {
			r.giveUpTurn(ctx, k, "its turn did not come: "+tooLate(until, now))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.more:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}
