package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// follower is what the leader remembers of one command. All of it may be lost.
type follower struct {
	d      *Dispatcher
	ticket []byte       // signed ticket of mint, encoded
	mint   uint32       // of the ticket
	trust  uint32       // version of the trust.json that the ticket was signed under
	tree   *ticket.Tree // of the targets

	backoff time.Duration // before the next try to get a ticket
	next    time.Time     // that try

	hosts    map[uint32]*host
	busy     int // deliveries under way
	outcomes chan outcome
	wg       sync.WaitGroup // the deliveries
}

// host is what the leader remembers of one target.
type host struct {
	busy    bool      // a delivery or a cancel is under way
	stop    func()    // ends the waiting for it
	cancel  bool      // the row is cancelled: only that is sent
	took    bool      // it said that it holds the command
	stale   bool      // it may want a newer trust.json first
	asked   uint32    // version of the newest trust.json that was sent to it
	said    string    // its last answer that it does not take the command
	next    time.Time // when to send next, if no row says that this is done
	backoff time.Duration
}

// outcome is how one delivery or cancel ended.
type outcome struct {
	index  uint32
	cancel bool
	resp   *rpc.DeliverResponse
	err    error
}

// follow works on one command until it has ended.
func (d *Dispatcher) follow(ctx context.Context, id fleet.CommandID) error {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{d: d, hosts: map[uint32]*host{}, backoff: firstRetry, outcomes: make(chan outcome, maxOfCommand)}
	defer f.wg.Wait()
	defer cancel()
	for {
		store := d.cfg.Store()
		changed, abandoned := store.WatchCommand(id), store.Abandoned() // before the read: no change is missed
		retrust := store.WatchTrust()
		c := store.Command(id)
		if c == nil {
			return fmt.Errorf("command %s is gone", id)
		}
		if !c.Open() {
			d.cfg.Logger.Info("command finished", "command", id, "document", c.DocumentName)
			return nil
		}
		wait, err := f.step(ctx, store, c)
		if err != nil {
			d.cfg.Logger.Warn("command waits", "command", id, "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-retrust:
		case <-changed:
		case <-abandoned:
		case o := <-f.outcomes:
			f.take(ctx, c, o)
			for range len(f.outcomes) {
				f.take(ctx, c, <-f.outcomes)
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// step does what is due and says how long to wait for the next thing.
func (f *follower) step(ctx context.Context, store *state.Store, c *fleet.Command) (time.Duration, error) {
	now := f.d.cfg.Now()
	late := now.UnixNano() >= c.NotAfter
	trust := store.Trust().Version
	var ready, cancels []uint32 // hosts to deliver to now, or to stop
	unheard, open := false, false
	var again time.Time // when the next host is due
	for _, inv := range store.Invocations(c.ID) {
		open = open || !inv.State.Final()
		if inv.State.Final() || inv.State == fleet.InProgress {
			continue
		}
		h := f.host(inv.Index)
		if h.stale && h.asked < trust {
			h.next = time.Time{} // with ours it may say something else: at once, for each version once
		}
		cancelling := inv.State.Cancelling()
		if cancelling && !h.cancel {
			h.turn()
		}
		if inv.State != fleet.CancelInProgress {
			unheard = unheard || !h.took
		}
		switch {
		case h.busy, !cancelling && late:
		case !cancelling && f.d.cfg.Hold != nil && f.d.cfg.Hold(c.Targets[inv.Index]):
			if look := now.Add(lastRetry); again.IsZero() || look.Before(again) {
				again = look
			}
		case !now.Before(h.next) && cancelling:
			cancels = append(cancels, inv.Index)
		case !now.Before(h.next):
			ready = append(ready, inv.Index)
		case again.IsZero() || h.next.Before(again):
			again = h.next
		}
	}
	due := Due(c, unheard, open)
	if patient := f.d.since.Add(takeover); c.Created < f.d.since.UnixNano() && due.Before(patient) {
		due = patient
	}
	if !now.Before(due) {
		_, err := f.d.cfg.Propose(ctx, &entry.Expire{Stamp: now.UnixNano(), Command: c.ID, Attempt: c.Attempt, Said: f.said()})
		return time.Second, err
	}
	wait := due.Sub(now)
	if !again.IsZero() {
		wait = min(wait, again.Sub(now))
	}
	if n := min(len(cancels), maxOfCommand-f.busy); n > 0 {
		if err := f.cancel(ctx, store, c, cancels[:n]); err != nil {
			return min(wait, time.Second), err
		}
	}
	if len(ready) == 0 || f.busy >= maxOfCommand {
		return wait, nil
	}
	if now.Before(f.next) {
		return min(wait, f.next.Sub(now)), nil
	}
	if err := f.authorise(ctx, c, now); err != nil {
		f.next = now.Add(f.backoff)
		f.backoff = min(2*f.backoff, lastCollect)
		return min(wait, f.next.Sub(now)), err
	}
	f.backoff = firstRetry
	for _, index := range ready[:min(len(ready), maxOfCommand-f.busy)] {
		f.deliver(ctx, store, c, index)
	}
	return wait, nil
}

// said is what hosts answered that did not take the command.
func (f *follower) said() []entry.Said {
	var all []entry.Said
	for index, h := range f.hosts {
		if h.said != "" && !h.took {
			all = append(all, entry.Said{Index: index, Text: h.said})
		}
	}
	slices.SortFunc(all, func(a, b entry.Said) int { return cmp.Compare(a.Index, b.Index) })
	return all[:min(len(all), entry.MaxSaid)]
}

func (f *follower) host(index uint32) *host {
	h := f.hosts[index]
	if h == nil {
		h = &host{backoff: firstRetry}
		f.hosts[index] = h
	}
	return h
}

// turn stops delivering to a host: its row was cancelled.
func (h *host) turn() {
	h.cancel, h.next, h.backoff = true, time.Time{}, firstRetry
	if h.busy {
		h.stop() // whether it arrived is not known, and does not matter any more
	}
}

// Due is when the quorum next gives up rows of c: those that no host has
// accepted after NotAfter, all others after Expires, each with Skew.
func Due(c *fleet.Command, undelivered, open bool) time.Time {
	at := c.Expires
	if undelivered {
		at = c.NotAfter
	}
	if !open {
		at = c.Created
	}
	return time.Unix(0, at).Add(Skew + 1) // Apply wants it to have passed
}

// authorise makes sure that there is a ticket, with a new mint if the newest
// can no longer be signed. A ticket that was signed under an older trust.json
// may lack signatures that hosts now ask for.
func (f *follower) authorise(ctx context.Context, c *fleet.Command, now time.Time) error {
	trust := f.d.cfg.Store().Trust().Version
	if f.ticket != nil && f.mint == c.Mint.N && f.trust == trust {
		return nil
	}
	signed, err := f.d.cfg.Collect(ctx, c)
	if errors.Is(err, f.d.cfg.StaleMint) {
		a, err := f.d.cfg.Propose(ctx, &entry.Mint{
			Stamp: now.UnixNano(), Command: c.ID, Attempt: c.Attempt, N: c.Mint.N + 1, NotBefore: now.UnixNano(),
		})
		if err == nil {
			err = a.Err
		}
		if err != nil {
			return fmt.Errorf("mint: %w", err)
		}
		if c = f.d.cfg.Store().Command(c.ID); c == nil {
			return errors.New("the command is gone")
		}
		if signed, err = f.d.cfg.Collect(ctx, c); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	f.ticket, f.mint, f.trust = signed.Encode(), c.Mint.N, trust
	return nil
}

// deliver sends the command to one host; take hears how it went.
func (f *follower) deliver(ctx context.Context, store *state.Store, c *fleet.Command, index uint32) {
	if f.tree == nil {
		f.tree = ticket.NewTree(c.Targets)
	}
	req := &rpc.DeliverRequest{
		Ticket: f.ticket, Index: index, Path: f.tree.Path(int(index)),
		Document: store.Content(c.Document), DocumentName: c.DocumentName, Parameters: c.Parameters,
	}
	if h := f.host(index); h.stale {
		req.Trust, h.asked = store.Trust().Raw(), store.Trust().Version
	}
	f.send(ctx, outcome{index: index}, func(ctx context.Context) (*rpc.DeliverResponse, error) {
		return f.d.cfg.Deliver(ctx, c.Targets[index], req)
	})
}

// cancel sends hosts a voter's word that the command is cancelled there; take
// hears how it went.
func (f *follower) cancel(ctx context.Context, store *state.Store, c *fleet.Command, indexes []uint32) error {
	if f.tree == nil {
		f.tree = ticket.NewTree(c.Targets)
	}
	named := indexes
	if c.Cancelled() {
		named = nil // it is one and the same for every host
	}
	signed, err := f.d.cfg.SignCancel(c, named)
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	for _, index := range indexes {
		req := &rpc.CancelRequest{Cancel: signed, Index: index, Path: f.tree.Path(int(index))}
		if h := f.host(index); h.stale {
			req.Trust, h.asked = store.Trust().Raw(), store.Trust().Version
		}
		f.send(ctx, outcome{index: index, cancel: true}, func(ctx context.Context) (*rpc.DeliverResponse, error) {
			return f.d.cfg.Cancel(ctx, c.Targets[index], req)
		})
	}
	return nil
}

// send asks one host in the background, as soon as there is a slot.
func (f *follower) send(ctx context.Context, o outcome, call func(context.Context) (*rpc.DeliverResponse, error)) {
	h := f.host(o.index)
	ctx, stop := context.WithCancel(ctx)
	h.busy, h.stop = true, stop
	f.busy++
	f.wg.Go(func() {
		defer stop()
		select {
		case f.d.slots <- struct{}{}:
			ctx, cancel := context.WithTimeout(ctx, deliverTimeout)
			o.resp, o.err = call(ctx)
			cancel()
			<-f.d.slots
		case <-ctx.Done():
			o.err = ctx.Err()
		}
		f.outcomes <- o // has room for all that is under way
	})
}

// take acts on how one delivery or cancel went.
func (f *follower) take(ctx context.Context, c *fleet.Command, o outcome) {
	h := f.host(o.index)
	h.busy = false
	f.busy--
	now := f.d.cfg.Now()
	answered := f.answered(ctx, c, h, o)
	h.took = h.took || answered
	if o.cancel != h.cancel {
		return // a delivery that a cancel has overtaken: turn said when to go on
	}
	if answered {
		h.next, h.backoff = now.Add(redeliver), firstRetry
		return
	}
	h.next = now.Add(h.backoff)
	h.backoff = min(2*h.backoff, lastRetry)
}

// answered reports whether the host took the command or brought its result.
func (f *follower) answered(ctx context.Context, c *fleet.Command, h *host, o outcome) bool {
	log := f.d.cfg.Logger.With("command", c.ID, "node", c.Targets[o.index])
	if o.err != nil {
		log.Debug("host did not answer", "cancel", o.cancel, "err", o.err)
		return false
	}
	switch o.resp.State {
	case rpc.DeliverAccepted:
		if row := f.d.cfg.Store().Invocation(c.ID, o.index); row != nil && c.Hear(row.State, fleet.InProgress) != row.State {
			f.d.coll.mark(c, o.index)
		}
		return true
	case rpc.DeliverDone, rpc.DeliverRefused:
		if len(o.resp.Result) == 0 {
			// It refused without putting its name to it: its trust.json or its
			// clock may be behind. That is no answer; try again with ours.
			h.stale, h.said = true, saying("refused: ", o.resp.Reason)
			log.Warn("host refused without a signed answer", "cancel", o.cancel, "reason", o.resp.Reason)
			return false
		}
		if err := f.d.submit(ctx, c, c.Targets[o.index], o.resp.Result, o.resp.Detail, nil); err != nil {
			log.Warn("host's answer not taken", "cancel", o.cancel, "err", err)
			return false
		}
		return true
	case rpc.DeliverNotReady:
		h.stale, h.said = true, saying("not ready: ", o.resp.Reason)
		log.Debug("host is not ready", "reason", o.resp.Reason)
	}
	return false
}

// saying is a host's answer as it is told to people.
func saying(state, reason string) string {
	text := state + strings.ToValidUTF8(reason, "?")
	if len(text) <= entry.MaxSaidText {
		return text
	}
	end := entry.MaxSaidText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
