// Package dispatch brings committed commands to their hosts and the hosts'
// answers into the log. It works on the leader only, from committed state
// only, so that a new leader goes on where the old one stopped: it delivers
// again to every host that no row says has accepted, and the hosts' journals
// drop what they already have.
//
// What it does not do: it never decides that a host may run something (that is
// the ticket, package cosign) and never invents an answer. A row becomes final
// on the host's signed word, or by the log entry Expire once the host may no
// longer start.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

const (
	// Skew is how long after a deadline a row is given up by the quorum: the
	// fleet time of a host may lie that far behind.
	Skew = entry.Skew

	deliverTimeout = 10 * time.Second
	firstRetry     = 250 * time.Millisecond
	lastRetry      = 10 * time.Second
	// redeliver is when a host that took the command is asked again if still no
	// row says so: what it answered was lost on its way into the log.
	redeliver     = 5 * time.Second
	maxDeliveries = 256 // under way at once, over all commands
)

// Config is what a dispatcher works with. All functions are safe for
// concurrent use.
type Config struct {
	Store   func() *state.Store
	Propose func(ctx context.Context, body entry.Body) (raftfsm.Answer, error)

	// Collect gives the signed ticket of the newest mint, or cosign.ErrStaleMint.
	Collect   func(ctx context.Context, c *fleet.Command) (*ticket.Signed, error)
	StaleMint error // cosign.ErrStaleMint; a field because siblings do not import each other

	Deliver func(ctx context.Context, node fleet.NodeID, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error)

	// Keep stores a detail blob on this host.
	Keep func(blob []byte) error

	Now    func() time.Time
	Logger *slog.Logger
}

// Dispatcher follows the open commands while this host leads.
type Dispatcher struct {
	cfg   Config
	slots chan struct{} // one token for each delivery under way
	coll  *collector
}

// New makes a dispatcher; Lead makes it work.
func New(cfg Config) *Dispatcher {
	return &Dispatcher{cfg: cfg, slots: make(chan struct{}, maxDeliveries), coll: newCollector(cfg)}
}

// Lead dispatches until ctx is done, that is until leadership is lost.
func (d *Dispatcher) Lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.coll.run(ctx) })

	following := map[fleet.CommandID]bool{}
	ended := make(chan fleet.CommandID)
	for {
		store := d.cfg.Store()
		changed, abandoned := store.WatchCommands(), store.Abandoned()
		for _, c := range store.OpenCommands() {
			if following[c.ID] {
				continue
			}
			following[c.ID] = true
			wg.Go(func() {
				if err := d.follow(ctx, c.ID); err != nil && ctx.Err() == nil {
					d.cfg.Logger.Error("command not followed to its end", "command", c.ID, "err", err)
				}
				select {
				case ended <- c.ID:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-abandoned:
		case id := <-ended:
			delete(following, id)
		}
	}
}

// follow works on one command until it has ended.
func (d *Dispatcher) follow(ctx context.Context, id fleet.CommandID) error {
	f := &follower{d: d, accepted: map[uint32]time.Time{}, stale: map[uint32]bool{}, backoff: firstRetry}
	for {
		store := d.cfg.Store()
		changed, abandoned := store.WatchCommand(id), store.Abandoned() // before the read: no change is missed
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
		case <-changed:
		case <-abandoned:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// follower is what the leader remembers of one command. All of it may be lost.
type follower struct {
	d        *Dispatcher
	ticket   []byte // signed ticket of mint, encoded
	mint     uint32
	trust    uint32               // version of the trust.json that the ticket was signed under
	accepted map[uint32]time.Time // hosts that hold the command, and when they last said so
	stale    map[uint32]bool      // hosts that want a newer trust.json first
	backoff  time.Duration
	next     time.Time // when to deliver again to those that did not answer
}

// step does what is due and says how long to wait for the next thing.
func (f *follower) step(ctx context.Context, store *state.Store, c *fleet.Command) (time.Duration, error) {
	now := f.d.cfg.Now()
	var undelivered []uint32
	unheard, open := false, false
	var again time.Time // when to ask the first of those that took it and have no row yet
	for _, inv := range store.Invocations(c.ID) {
		open = open || !inv.State.Final()
		if inv.State != fleet.Pending {
			continue
		}
		took, ok := f.accepted[inv.Index]
		switch next := took.Add(redeliver); {
		case !ok:
			unheard = true
			undelivered = append(undelivered, inv.Index)
		case !now.Before(next):
			undelivered = append(undelivered, inv.Index)
		case again.IsZero() || next.Before(again):
			again = next
		}
	}
	due := Due(c, unheard, open)
	if !now.Before(due) {
		_, err := f.d.cfg.Propose(ctx, &entry.Expire{Stamp: now.UnixNano(), Command: c.ID, Attempt: c.Attempt})
		return time.Second, err
	}
	wait := due.Sub(now)
	if now.UnixNano() >= c.NotAfter {
		return wait, nil
	}
	if !again.IsZero() {
		wait = min(wait, again.Sub(now))
	}
	if len(undelivered) == 0 {
		return wait, nil
	}
	if now.Before(f.next) {
		return min(wait, f.next.Sub(now)), nil
	}
	if err := f.authorise(ctx, c, now); err != nil {
		return min(wait, f.retry(now)), err
	}
	if f.deliver(ctx, store, c, undelivered) {
		f.backoff = firstRetry
	}
	return min(wait, f.retry(f.d.cfg.Now())), nil
}

// retry sets when to try again and doubles the pause after that.
func (f *follower) retry(now time.Time) time.Duration {
	pause := f.backoff
	f.next = now.Add(pause)
	f.backoff = min(2*f.backoff, lastRetry)
	return pause
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

// deliver sends the command to hosts, at most maxDeliveries at once, and
// reports whether one of them took it.
func (f *follower) deliver(ctx context.Context, store *state.Store, c *fleet.Command, indexes []uint32) bool {
	document := store.Content(c.Document)
	trust := store.Trust()
	tree := ticket.NewTree(c.Targets)
	type outcome struct {
		index uint32
		resp  *rpc.DeliverResponse
		err   error
	}
	outcomes := make(chan outcome, len(indexes))
	var wg sync.WaitGroup
	started := 0
	slot := func() bool {
		select {
		case f.d.slots <- struct{}{}:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for _, index := range indexes {
		if !slot() {
			break
		}
		started++
		req := &rpc.DeliverRequest{
			Ticket: f.ticket, Index: index, Path: tree.Path(int(index)),
			Document: document, DocumentName: c.DocumentName, Parameters: c.Parameters,
		}
		if f.stale[index] {
			req.Trust = trust.Raw()
		}
		wg.Go(func() {
			defer func() { <-f.d.slots }()
			ctx, cancel := context.WithTimeout(ctx, deliverTimeout)
			defer cancel()
			resp, err := f.d.cfg.Deliver(ctx, c.Targets[index], req)
			outcomes <- outcome{index, resp, err}
		})
	}
	taken := false
	for range started {
		o := <-outcomes
		if f.take(ctx, c, o.index, o.resp, o.err) {
			taken = true
		}
	}
	wg.Wait()
	return taken
}

// take acts on what one host answered to a delivery, and reports whether that
// was an answer.
func (f *follower) take(ctx context.Context, c *fleet.Command, index uint32, resp *rpc.DeliverResponse, err error) bool {
	log := f.d.cfg.Logger.With("command", c.ID, "node", c.Targets[index])
	if err != nil {
		log.Debug("delivery not answered", "err", err)
		return false
	}
	switch resp.State {
	case rpc.DeliverAccepted:
		f.accepted[index] = f.d.cfg.Now()
		f.d.coll.mark(c, index)
		return true
	case rpc.DeliverDone, rpc.DeliverRefused:
		if len(resp.Result) == 0 {
			// It refused without putting its name to it: its trust.json or its
			// clock may be behind. That is no answer; try again with ours.
			f.stale[index] = true
			log.Warn("host refused without a signed answer", "reason", resp.Reason)
			return false
		}
		if err := f.d.submit(ctx, c, c.Targets[index], resp.Result, resp.Detail, nil); err != nil {
			log.Warn("answer to a delivery not taken", "err", err)
			return false
		}
		f.accepted[index] = f.d.cfg.Now()
		return true
	case rpc.DeliverNotReady:
		f.stale[index] = true
		log.Debug("host is not ready", "reason", resp.Reason)
	}
	return false
}

// Report takes a host's signed result and answers the log index under which
// it, or an earlier one for the same target, is final. The caller has verified
// that the channel is node's.
func (d *Dispatcher) Report(ctx context.Context, node fleet.NodeID, result, detail []byte) (uint64, error) {
	r, err := ticket.ParseResult(result)
	if err != nil {
		return 0, fleet.Errorf(fleet.Invalid, "the result cannot be read: %w", err)
	}
	c := d.cfg.Store().Command(r.Command)
	if c == nil {
		return 0, fleet.Errorf(fleet.NotFound, "no command %s", r.Command)
	}
	reply := make(chan decided, 1)
	if err := d.submit(ctx, c, node, result, detail, reply); err != nil {
		return 0, err
	}
	select {
	case a := <-reply:
		return a.index, a.err
	case <-ctx.Done():
		return 0, fleet.Errorf(fleet.Unknown, "the result was not decided in time: %w", context.Cause(ctx))
	}
}

// submit checks a result against the command's row and hands it to the
// collector; reply, if not nil, hears of the decision.
func (d *Dispatcher) submit(ctx context.Context, c *fleet.Command, node fleet.NodeID, result, detail []byte, reply chan<- decided) error {
	store := d.cfg.Store()
	row, err := Accept(store, c, node, result, detail)
	if err != nil {
		return err
	}
	if old := store.Invocation(c.ID, row.Index); old != nil && old.State.Final() {
		if reply != nil {
			reply <- decided{index: old.Decided}
		}
		return nil
	}
	if len(detail) > 0 {
		if err := d.cfg.Keep(detail); err != nil {
			return fleet.Errorf(fleet.Unavailable, "the details of a result could not be kept: %w", err)
		}
	}
	return d.coll.add(ctx, item{command: c.ID, attempt: c.Attempt, row: row, reply: reply})
}

// Accept checks that result is node's own, signed word about its own target of
// c, and makes a row of it.
func Accept(store *state.Store, c *fleet.Command, node fleet.NodeID, result, detail []byte) (fleet.Invocation, error) {
	var none fleet.Invocation
	r, err := ticket.ParseResult(result)
	if err != nil {
		return none, fleet.Errorf(fleet.Invalid, "the result cannot be read: %w", err)
	}
	n := store.Node(node)
	if n == nil {
		return none, fleet.Errorf(fleet.Denied, "node %s is not enrolled", node)
	}
	if err := r.Verify(n.Key); err != nil {
		return none, err
	}
	info := store.Fleet()
	switch {
	case r.Fleet != info.ID:
		return none, fleet.Errorf(fleet.Denied, "the result is for another fleet")
	case r.Node != node:
		return none, fleet.Errorf(fleet.Denied, "node %s reports for node %s", node, r.Node)
	case r.Command != c.ID || r.Attempt != c.Attempt:
		return none, fleet.Errorf(fleet.Denied, "the result is for command %s attempt %d, not %s attempt %d", r.Command, r.Attempt, c.ID, c.Attempt)
	case int64(r.Index) >= int64(len(c.Targets)) || c.Targets[r.Index] != node:
		return none, fleet.Errorf(fleet.Denied, "node %s is not target %d of command %s", node, r.Index, c.ID)
	case !r.State.Final() || !r.State.Valid() || r.State == fleet.Terminated:
		return none, fleet.Errorf(fleet.Invalid, "a host cannot report state %s", r.State)
	case len(detail) > 0 && fleet.Sum(detail) != r.Detail:
		return none, fleet.Errorf(fleet.Denied, "the details are not those that the result names")
	}
	row := fleet.Invocation{
		Index: r.Index, State: r.State, Code: r.Code, Started: r.Started, Ended: r.Ended,
		Detail: r.Detail, DetailSize: r.DetailSize, Reason: r.Reason, Signature: r.Signature,
	}
	// Rows of many hosts share an entry: one that Apply would refuse must not
	// take the others with it.
	alone := &entry.Results{Stamp: c.Created, Command: c.ID, Attempt: c.Attempt, Rows: []fleet.Invocation{row}}
	if err := alone.Check(); err != nil {
		return none, err
	}
	return row, nil
}
