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
	"fleet/node/relay"
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
	turnAt  time.Time     // when the next turns are decided; zero while there are none

	carriage *carriage // nil: all is delivered directly
	hosts    map[uint32]*host
	busy     int // deliveries under way
	outcomes chan outcome
	wg       sync.WaitGroup // the deliveries
}

// host is what the leader remembers of one target.
type host struct {
	busy    bool         // a delivery or a cancel is under way
	stop    func()       // ends the waiting for it
	what    order        // what it is told now
	turned  time.Time    // since when
	missing bool         // its turn has come, and it does not hold the command: deliver it first
	waits   bool         // too many targets failed, and since then it said that it has not begun
	tidy    bool         // it knows that its turn will not come
	took    bool         // it said that it holds the command
	stale   bool         // it may want a newer trust.json first
	asked   uint32       // version of the newest trust.json that was sent to it
	told    bool         // a cancel was sent to it through the tree
	by      fleet.NodeID // the relay that did not get it to answer
	said    string       // its last answer that it does not take the command
	next    time.Time    // when to send next, if no row says that this is done
	backoff time.Duration
}

// order is what a host is told: to take the command, that its turn has come, that
// it is over.
type order uint8

const (
	orderDeliver order = iota
	orderRelease
	orderCancel
)

func (o order) String() string { return [...]string{"deliver", "release", "cancel"}[o] }

// outcome is how one order ended.
type outcome struct {
	index   uint32
	what    order
	carried bool         // it came through the tree
	taken   bool         // the host's result was taken already
	by      fleet.NodeID // the relay that says that the host did not take it
	stopped bool         // too many targets had failed when it was given
	resp    *rpc.DeliverResponse
	err     error
}

// follow works on one command until it has ended.
func (d *Dispatcher) follow(ctx context.Context, id fleet.CommandID) error {
	lead := ctx
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{d: d, hosts: map[uint32]*host{}, backoff: firstRetry, outcomes: make(chan outcome, maxOfCommand)}
	defer f.wg.Wait()
	defer f.endCarriage(id)
	defer cancel()
	var ended time.Time
	for {
		store := d.cfg.Store()
		changed, abandoned := store.WatchCommand(id), store.Abandoned() // before the read: no change is missed
		retrust := store.WatchTrust()
		c := store.Command(id)
		if c == nil {
			return fmt.Errorf("command %s is gone", id)
		}
		if !c.Open() {
			if ended.IsZero() {
				d.cfg.Logger.Info("command finished", "command", id, "document", c.DocumentName)
				ended = d.cfg.Now()
			}
			if f.tidied(store, c) || d.cfg.Now().Sub(ended) >= tidyTime {
				return nil
			}
		}
		wait, err := f.step(lead, ctx, store, c)
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
func (f *follower) step(lead, ctx context.Context, store *state.Store, c *fleet.Command) (time.Duration, error) {
	now := f.d.cfg.Now()
	trust := store.Trust().Version
	rows := store.Invocations(c.ID)
	var due [3][]uint32 // hosts to tell something now, by order
	var again time.Time // when the next host is due
	giveUp := c.Created // stamp at which rows are given up, the first of them
	for first, i := true, 0; i < len(rows); i++ {
		row := &rows[i]
		what, wanted := f.order(c, row)
		h := f.hosts[row.Index]
		if h == nil && wanted {
			h = f.host(row.Index)
		}
		if wanted && what != h.what {
			h.turn(what, now)
		}
		if !row.State.Final() {
			at := giveUpAt(c, row, h != nil && h.took, h.since())
			if first || at < giveUp {
				giveUp, first = at, false
			}
		}
		if !wanted {
			continue
		}
		if h.stale && h.asked < trust {
			h.next = time.Time{} // with ours it may say something else: at once, for each version once
		}
		late := what == orderDeliver && row.State == fleet.Pending && now.UnixNano() >= c.ReachBy() && !h.took
		switch {
		case h.busy, late:
		case what != orderCancel && f.holds(c, row.Index):
			if look := now.Add(lastRetry); again.IsZero() || look.Before(again) {
				again = look
			}
		case !now.Before(h.next):
			due[what] = append(due[what], row.Index)
		case again.IsZero() || h.next.Before(again):
			again = h.next
		}
	}
	wait := tidyTime
	if c.Open() {
		at := time.Unix(0, giveUp).Add(Skew + 1) // Apply wants it to have passed
		if patient := f.d.since.Add(takeover); c.Created < f.d.since.UnixNano() && at.Before(patient) {
			at = patient
		}
		if !now.Before(at) {
			_, err := f.d.cfg.Propose(ctx, &entry.Expire{Stamp: now.UnixNano(), Command: c.ID, Attempt: c.Attempt, Said: f.said()})
			return time.Second, err
		}
		wait = at.Sub(now)
	}
	if !again.IsZero() {
		wait = min(wait, again.Sub(now))
	}
	soon, err := f.turns(ctx, c, rows, now)
	if err != nil {
		f.d.cfg.Logger.Debug("turn not decided", "command", c.ID, "err", err)
	}
	wait = min(wait, soon)
	if due[orderCancel], err = f.carryCancel(c, due[orderCancel]); err != nil {
		return min(wait, time.Second), err
	}
	room := func(indexes []uint32) []uint32 { return indexes[:max(0, min(len(indexes), maxOfCommand-f.busy))] }
	if some := room(due[orderCancel]); len(some) > 0 {
		if err := f.cancel(ctx, store, c, some); err != nil {
			return min(wait, time.Second), err
		}
	}
	if some := room(due[orderRelease]); len(some) > 0 {
		if err := f.release(ctx, store, c, some); err != nil {
			return min(wait, time.Second), err
		}
	}
	if len(due[orderDeliver]) == 0 || f.busy >= maxOfCommand {
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
	for _, index := range room(f.carry(lead, ctx, store, c, due[orderDeliver])) {
		f.deliver(ctx, store, c, index)
	}
	return wait, nil
}

// order is what a host is to be told now; false if it is told nothing.
func (f *follower) order(c *fleet.Command, row *fleet.Invocation) (what order, wanted bool) {
	h := f.hosts[row.Index]
	switch row.State {
	case fleet.Pending:
		return orderDeliver, true
	case fleet.Released:
		switch {
		case c.Stopped() && h != nil && h.waits:
			return orderCancel, true
		case c.Stopped():
			// It may have begun and nobody heard: what runs goes on. Its answer
			// to the command says which it is.
			return orderDeliver, true
		case h != nil && h.missing:
			return orderDeliver, true
		}
		return orderRelease, true
	case fleet.CancelPending, fleet.CancelInProgress:
		return orderCancel, true
	case fleet.Terminated, fleet.DeliveryTimedOut:
		return orderCancel, waitsInVain(c, row) && (h == nil || !h.tidy)
	}
	return 0, false
}

// waitsInVain reports whether the host of a row that has ended may hold the
// command and wait for a turn that does not come any more: it was stopped, or
// nobody heard in time that it has it.
func waitsInVain(c *fleet.Command, row *fleet.Invocation) bool {
	return c.Staged() && row.Released == 0 && (row.State == fleet.Terminated || row.State == fleet.DeliveryTimedOut)
}

// tidied reports whether all hosts know that wait for a turn that does not come.
func (f *follower) tidied(store *state.Store, c *fleet.Command) bool {
	if c.Count(fleet.Terminated, fleet.DeliveryTimedOut) == 0 {
		return true
	}
	for _, row := range store.Invocations(c.ID) {
		if h := f.hosts[row.Index]; waitsInVain(c, &row) && (h == nil || !h.tidy) {
			return false
		}
	}
	return true
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

// turn goes over to telling a host something else. What it was told before does
// not matter any more, whether it arrived or not.
func (h *host) turn(what order, now time.Time) {
	h.what, h.turned, h.next, h.backoff = what, now, time.Time{}, firstRetry
	if h.busy {
		h.stop()
	}
}

// since is when the host began to be told what it is told now.
func (h *host) since() time.Time {
	if h == nil {
		return time.Time{}
	}
	return h.turned
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

// paths is the tree over the targets, made once.
func (f *follower) paths(c *fleet.Command) *ticket.Tree {
	if f.tree == nil {
		f.tree = ticket.NewTree(c.Targets)
	}
	return f.tree
}

// deliver sends the command to one host; take hears how it went.
func (f *follower) deliver(ctx context.Context, store *state.Store, c *fleet.Command, index uint32) {
	req := &rpc.DeliverRequest{
		Ticket: f.ticket, Index: index, Path: f.paths(c).Path(int(index)),
		Document: store.Content(c.Document), DocumentName: c.DocumentName, Parameters: c.Parameters,
	}
	if h := f.host(index); h.stale {
		req.Trust, h.asked = store.Trust().Raw(), store.Trust().Version
	}
	f.send(ctx, outcome{index: index, what: orderDeliver, stopped: c.Stopped()}, func(ctx context.Context) (*rpc.DeliverResponse, error) {
		return f.d.cfg.Deliver(ctx, c.Targets[index], req)
	})
}

// cancel sends hosts a voter's word that the command is cancelled there; take
// hears how it went.
func (f *follower) cancel(ctx context.Context, store *state.Store, c *fleet.Command, indexes []uint32) error {
	named := indexes
	if c.Cancelled() {
		named = nil // it is one and the same for every host
	}
	signed, err := f.d.cfg.SignCancel(c, named)
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	for _, index := range indexes {
		req := &rpc.CancelRequest{Cancel: signed, Index: index, Path: f.paths(c).Path(int(index))}
		if h := f.host(index); h.stale {
			req.Trust, h.asked = store.Trust().Raw(), store.Trust().Version
		}
		f.send(ctx, outcome{index: index, what: orderCancel}, func(ctx context.Context) (*rpc.DeliverResponse, error) {
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

// take acts on how one order ended.
func (f *follower) take(ctx context.Context, c *fleet.Command, o outcome) {
	h := f.host(o.index)
	h.busy = false
	if !o.carried {
		f.busy--
	}
	now := f.d.cfg.Now()
	answered := f.answered(ctx, c, h, o)
	h.took = h.took || answered
	switch {
	case o.by != "":
		h.by = o.by
	case answered && h.by != "": // the relay said that it could not be done
		f.d.blame(relay.Failure{Child: h.by, Why: "did not get hosts to answer that do", Taken: 1}, c.ID)
		h.by = ""
	}
	if o.what != h.what {
		return // it was overtaken: turn said when to go on
	}
	switch {
	case h.missing && o.what == orderRelease, answered && h.missing && o.what == orderDeliver:
		h.missing, h.next = o.what == orderRelease, time.Time{} // deliver it, and then release it, at once
	case answered:
		h.tidy = o.what == orderCancel
		h.next, h.backoff = now.Add(redeliver), firstRetry
	case o.carried:
		h.next = time.Time{} // at once, and directly
	default:
		h.next = now.Add(h.backoff)
		h.backoff = min(2*h.backoff, lastRetry)
	}
}

// answered reports whether the host took the command or brought its result.
func (f *follower) answered(ctx context.Context, c *fleet.Command, h *host, o outcome) bool {
	log := f.d.cfg.Logger.With("command", c.ID, "node", c.Targets[o.index])
	if o.err != nil {
		log.Debug("host did not answer", "order", o.what, "err", o.err)
		return false
	}
	if o.taken {
		return true
	}
	switch o.resp.State {
	case rpc.DeliverAccepted:
		f.heard(c, o.index, fleet.InProgress)
		return true
	case rpc.DeliverStaged:
		f.heard(c, o.index, fleet.Staged)
		h.waits = o.what == orderDeliver && o.stopped
		return o.what == orderDeliver // a release has to come again until it began
	case rpc.DeliverNotHere:
		h.missing = true
		log.Info("host does not hold what it is to begin", "reason", o.resp.Reason)
	case rpc.DeliverDone, rpc.DeliverRefused:
		if len(o.resp.Result) == 0 {
			// It refused without putting its name to it: its trust.json or its
			// clock may be behind. That is no answer; try again with ours.
			h.stale, h.said = true, saying("refused: ", o.resp.Reason)
			log.Warn("host refused without a signed answer", "order", o.what, "reason", o.resp.Reason)
			return false
		}
		if err := f.d.submit(ctx, c, c.Targets[o.index], o.resp.Result, o.resp.Detail, nil); err != nil {
			log.Warn("host's answer not taken", "order", o.what, "err", err)
			return false
		}
		return true
	case rpc.DeliverNotReady:
		h.stale, h.said = true, saying("not ready: ", o.resp.Reason)
		log.Debug("host is not ready", "reason", o.resp.Reason)
	}
	return false
}

// heard marks that a host holds the command, if no row says so.
func (f *follower) heard(c *fleet.Command, index uint32, said fleet.InvocationState) {
	if row := f.d.cfg.Store().Invocation(c.ID, index); row != nil && c.Hear(row.State, said) != row.State {
		f.d.coll.mark(c, index, said)
	}
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
