// Package relay carries commands from hosts to hosts, so that the leader need
// not speak with each: it gives an order to a few, they give it to the others.
// The same code is the leader's end (Parent, used by node/dispatch) and the
// host's (Relay: a child to one parent, and the parent of its own children).
//
//   - A relay can drop and delay, and nothing else. What it carries is signed:
//     the ticket by k voters, results and receipts by the hosts that they are
//     about, acknowledgements and cancels by a voter.
//   - It serves whoever brings a genuine ticket that names it, and only hosts
//     that the ticket names: every path of the order is verified before a byte
//     goes further. A stranger, or a stolen host's key, makes it send nothing.
//   - A parent watches its children: one that does not accept, falls silent,
//     breaks off, or carries nothing to its targets in time loses those of which
//     nothing was heard. The next in the order takes them, or they are carried
//     to one by one; whom nobody reaches is the leader's again, which asks
//     directly as it does without a tree. Twice is harmless: the hosts' journals
//     see to that.
//   - A host gives a result to its parent and, when no acknowledgement came
//     within two seconds, to a voter itself (node/runcmd).
//   - Everything is bounded: targets of an order, orders at work, children
//     that are waited for, what waits to go up or down.
//
// What is not here: which host carries to which (node/dispatch plans it) and
// whether a host may run something (node/runcmd).
package relay

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/ticket"
)

const (
	// MaxOrders is how many orders one host works on at once; one more is
	// refused, and the parent gives it to another.
	MaxOrders = 64

	flushAfter = 25 * time.Millisecond // what a relay heard waits so long for more

	// receiptDelay is how long a host waits for a result before it sends a
	// receipt: a short command then costs one message, not two.
	receiptDelay = 100 * time.Millisecond
)

// Job is one command on this host, as a relay sees it.
type Job interface {
	// Deliver gives the command to the host itself.
	Deliver(ctx context.Context, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error)
	// Result gives the host's result with its details once, if it is of those
	// that climb.
	Result() <-chan runcmd.Answer
	// Acknowledged says that the result with this ID is in the log.
	Acknowledged(id ticket.ResultID, index uint64)
	// Close ends the interest in the result.
	Close()
}

// Config is what a Relay works with.
type Config struct {
	Self  fleet.NodeID
	Fleet fleet.ID
	Key   identity.PrivateKey // agent key: signs receipts
	Trust func() *identity.Trust
	// Time is the time of the fleet, or false.
	Time func() (time.Time, bool)

	Job     func(command fleet.CommandID, attempt uint32) Job
	Cancel  func(ctx context.Context, req *rpc.CancelRequest) (*rpc.DeliverResponse, error)
	Release func(ctx context.Context, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error)
	Open    func(ctx context.Context, node fleet.NodeID, order *rpc.CarryOrder) (Stream, error)
	// Life ends when the host stops: streams do not keep it waiting.
	Life   context.Context
	Logger *slog.Logger
	At     failpoint.Hook // nil but in tests
}

// Relay is a host's part in the trees of commands.
type Relay struct {
	cfg   Config
	slots chan struct{}
	pace  Pace

	carried atomic.Int64
}

// Carried is how many orders this host has accepted since it started.
func (r *Relay) Carried() int64 { return r.carried.Load() }

// New makes a relay; it starts nothing.
func New(cfg Config) *Relay { return &Relay{cfg: cfg, slots: make(chan struct{}, MaxOrders)} }

// check verifies all that an order says before anything is done for it.
func (r *Relay) check(o *rpc.CarryOrder) (*ticket.Ticket, error) {
	signed, err := ticket.ParseSigned(o.Ticket)
	if err != nil {
		return nil, err
	}
	t, err := signed.Verify(r.cfg.Trust())
	if err != nil {
		return nil, err
	}
	switch {
	case t.Fleet != r.cfg.Fleet:
		return nil, fleet.Errorf(fleet.Denied, "the ticket is of another fleet")
	case o.Items[0].Node != r.cfg.Self:
		return nil, fleet.Errorf(fleet.Denied, "the order is for %s", o.Items[0].Node)
	case fleet.Sum(o.Document) != t.Document || fleet.Sum(o.Parameters) != t.Parameters:
		return nil, fleet.Errorf(fleet.Denied, "the document or the parameters are not those that the ticket names")
	}
	now, known := r.cfg.Time()
	switch {
	case !known:
		return nil, fleet.Errorf(fleet.Unavailable, "this host has not heard the time from enough voters in the last minutes")
	case now.UnixNano() > t.NotAfter:
		return nil, fleet.Errorf(fleet.Denied, "the time in which the command may start is over")
	}
	seen := make(map[uint32]bool, len(o.Items))
	for i := range o.Items {
		item := &o.Items[i]
		if seen[item.Index] || !ticket.VerifyPath(t.Root, t.Targets, item.Index, item.Node, item.Path) {
			return nil, fleet.Errorf(fleet.Denied, "the ticket does not name %s as target %d, or the order does twice", item.Node, item.Index)
		}
		seen[item.Index] = true
	}
	return t, nil
}

// Serve is this host's side of one Carry stream: rpc.CarryHandler.
func (r *Relay) Serve(ctx context.Context, peer identity.Peer, order *rpc.CarryOrder, recv func() (*rpc.CarryDown, error), send func(*rpc.CarryUp) error) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		return fleet.Errorf(fleet.Throttled, "%d orders are being carried by this host", MaxOrders)
	}
	t, err := r.check(order)
	if err != nil {
		r.cfg.Logger.Warn("order refused", "peer", peer.Node, "err", err)
		return err
	}
	carries := len(order.Items) > 1
	if carries {
		r.cfg.At.Reach(failpoint.Relay, t.Command)
	}
	if err := send(&rpc.CarryUp{Accepted: uint32(len(order.Items))}); err != nil {
		return err
	}
	if carries {
		r.cfg.At.Reach(failpoint.Relayed, t.Command)
	}
	r.carried.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	defer context.AfterFunc(r.cfg.Life, func() { cancel(context.Cause(r.cfg.Life)) })()

	own := &own{r: r, t: t, item: order.Items[0], up: newUpward(len(order.Items))}
	job := r.cfg.Job(t.Command, t.Attempt)
	defer job.Close()
	var parent *Parent
	if carries {
		parent = NewParent(ParentConfig{
			Open: r.cfg.Open,
			Said: func(_ fleet.NodeID, said []rpc.CarrySaid) {
				if slices.ContainsFunc(said, func(s rpc.CarrySaid) bool { return len(s.Result) > 0 }) {
					r.cfg.At.Reach(failpoint.Forward, t.Command)
				}
				own.up.add(ctx, said...)
			},
			Lost: func(item rpc.CarryItem, why string) {
				own.up.add(ctx, rpc.CarrySaid{Index: item.Index, State: rpc.CarryUnreached, Reason: cut(why)})
			},
			Pace: &r.pace,
		}, order)
		wg.Go(func() { parent.Carry(ctx, Children(order.Items)) })
	}
	wg.Go(func() { own.run(ctx, job, order) })
	go func() { // ends with the stream, which ends when Serve has returned
		for {
			m, err := recv()
			if err != nil {
				cancel(err) // the parent has done
				return
			}
			if parent != nil {
				parent.Tell(m)
			}
			own.hear(ctx, job, m)
		}
	}()
	err = own.up.run(ctx, send)
	cancel(err)
	return err
}

// Children are the subtrees below the first item of one.
func Children(items []rpc.CarryItem) (branches [][]rpc.CarryItem) {
	for i := 1; i < len(items); {
		end := i + 1 + int(items[i].Below)
		branches = append(branches, items[i:end])
		i = end
	}
	return branches
}

// own is what a relay does for its own target, as a leaf does.
type own struct {
	r    *Relay
	t    *ticket.Ticket
	item rpc.CarryItem
	up   *upward

	mu   sync.Mutex // guards what follows; held while something is said, so that the order is kept
	sent ticket.ResultID
	held rpc.DeliverState // of the last receipt
}

// run delivers to this host, and says its result, or first that there will be
// one.
func (o *own) run(ctx context.Context, job Job, order *rpc.CarryOrder) {
	resp, err := job.Deliver(ctx, &rpc.DeliverRequest{
		Ticket: order.Ticket, Index: o.item.Index, Path: o.item.Path,
		Document: order.Document, DocumentName: order.DocumentName, Parameters: order.Parameters,
	})
	if err != nil {
		o.up.add(ctx, rpc.CarrySaid{Index: o.item.Index, State: rpc.DeliverNotReady, Reason: cut(err.Error())})
		return
	}
	if o.answer(ctx, resp) {
		return
	}
	delay := receiptDelay
	if resp.State == rpc.DeliverStaged {
		delay = 0 // no result comes before it is released
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case s := <-job.Result():
			o.result(ctx, s.Result, s.Detail)
			return
		case <-timer.C:
			o.receipt(ctx, resp.State)
		case <-ctx.Done():
			return
		}
	}
}

// receipt says, signed, that this host holds the command.
func (o *own) receipt(ctx context.Context, state rpc.DeliverState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent != (ticket.ResultID{}) || rank(state) <= rank(o.held) {
		return
	}
	o.held = state
	o.up.add(ctx, rpc.CarrySaid{Index: o.item.Index, State: state, Receipt: ticket.SignReceipt(o.r.cfg.Key, ticket.Receipt{
		Fleet: o.t.Fleet, Command: o.t.Command, Attempt: o.t.Attempt, Index: o.item.Index, Staged: state == rpc.DeliverStaged,
	})})
}

// answer says what the host answered, unless that is that a result follows.
func (o *own) answer(ctx context.Context, resp *rpc.DeliverResponse) (said bool) {
	switch {
	case resp.State == rpc.DeliverAccepted || resp.State == rpc.DeliverStaged:
		return false
	case len(resp.Result) > 0:
		detail := resp.Detail
		if len(detail) > rpc.MaxCarriedDetail {
			detail = nil // it has brought them to a voter, or will
		}
		o.result(ctx, resp.Result, detail)
	default:
		o.up.add(ctx, rpc.CarrySaid{Index: o.item.Index, State: resp.State, Reason: cut(resp.Reason)})
	}
	return true
}

func (o *own) result(ctx context.Context, result, detail []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent != (ticket.ResultID{}) {
		return
	}
	o.sent = ticket.ResultIDOf(result)
	o.up.add(ctx, rpc.CarrySaid{Index: o.item.Index, State: rpc.DeliverDone, Result: result, Detail: detail})
}

// hear acts on a message from the parent as far as it is about this host.
func (o *own) hear(ctx context.Context, job Job, m *rpc.CarryDown) {
	switch {
	case len(m.Ack) > 0:
		ack, err := ticket.ParseSignedAck(m.Ack)
		if err != nil {
			o.r.cfg.Logger.Warn("acknowledgement not taken", "err", err)
			return
		}
		o.mu.Lock()
		sent := o.sent
		o.mu.Unlock()
		if !ack.Names(sent) {
			return
		}
		if err := ack.Verify(o.r.cfg.Trust()); err != nil {
			o.r.cfg.Logger.Warn("acknowledgement not taken", "err", err)
			return
		}
		job.Acknowledged(sent, ack.Index)
	case len(m.Cancel) > 0:
		signed, err := ticket.ParseSignedCancel(m.Cancel)
		if err != nil || !signed.Covers(o.item.Index) || signed.Command != o.t.Command {
			return
		}
		resp, err := o.r.cfg.Cancel(ctx, &rpc.CancelRequest{Cancel: m.Cancel, Index: o.item.Index, Path: o.item.Path})
		if err != nil {
			o.r.cfg.Logger.Warn("cancel not taken", "command", o.t.Command, "err", err)
			return
		}
		if len(resp.Result) > 0 {
			o.answer(ctx, resp)
		}
	case len(m.Release) > 0:
		signed, err := ticket.ParseSignedRelease(m.Release)
		if err != nil || signed.Command != o.t.Command || !slices.Contains(signed.Indexes, o.item.Index) {
			return
		}
		resp, err := o.r.cfg.Release(ctx, &rpc.ReleaseRequest{Release: m.Release})
		switch {
		case err != nil:
			o.r.cfg.Logger.Warn("release not taken", "command", o.t.Command, "err", err)
		case resp.State == rpc.DeliverAccepted:
			o.receipt(ctx, rpc.DeliverAccepted)
		case len(resp.Result) > 0:
			o.answer(ctx, resp)
		}
	}
}

// upward is what waits to be said to the parent.
type upward struct {
	in    chan rpc.CarrySaid
	total int
}

func newUpward(total int) *upward {
	return &upward{in: make(chan rpc.CarrySaid, rpc.MaxCarrySaid), total: total}
}

func (u *upward) add(ctx context.Context, said ...rpc.CarrySaid) {
	for _, s := range said {
		select {
		case u.in <- s:
		case <-ctx.Done():
			return
		}
	}
}

// run sends reports until ctx is done, and at least one message each Beat.
func (u *upward) run(ctx context.Context, send func(*rpc.CarryUp) error) error {
	beat := time.NewTicker(Beat)
	defer beat.Stop()
	flush := time.NewTimer(time.Hour)
	defer flush.Stop()
	var batch []rpc.CarrySaid
	size := 0
	heard := map[uint32]bool{}
	results := map[uint32]bool{}
	out := func() error {
		up := &rpc.CarryUp{Heard: uint32(len(heard)), Said: batch}
		batch, size = nil, 0
		return send(up)
	}
	for {
		var now bool
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			now = true
		case <-flush.C:
			now = len(batch) > 0
		case s := <-u.in:
			if len(batch) == 0 {
				flush.Reset(flushAfter)
			}
			batch, size = append(batch, s), size+s.Size()
			heard[s.Index] = true
			if s.State != rpc.DeliverAccepted && s.State != rpc.DeliverStaged {
				results[s.Index] = true
			}
			// The last word, a single target's and a failure do not wait for more.
			now = len(batch) == rpc.MaxCarrySaid || size >= rpc.MaxCarryBytes || len(results) == u.total || u.total == 1 || failed(&s)
		}
		if now {
			if err := out(); err != nil {
				return err
			}
		}
	}
}

// failed reports whether something is to be known as soon as can be: a command
// may end after so many failures.
func failed(s *rpc.CarrySaid) bool {
	switch s.State {
	case rpc.DeliverAccepted, rpc.DeliverStaged:
		return false
	case rpc.DeliverDone:
	default:
		return true
	}
	r, err := ticket.ParseResult(s.Result)
	return err == nil && r.State.IsError()
}

// maxReason is how much of an error climbs.
const maxReason = 200

func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxReason)], "") }
