// Package dispatch brings committed commands to their hosts and the hosts'
// answers into the log. It works on the leader only, from committed state
// only, so that a new leader goes on where the old one stopped: it delivers
// again to every host that no row says has accepted, and the hosts' journals
// drop what they already have.
//
// A cancelled target gets a voter's signed Cancel instead, again and again, until
// its row is final: also one that nobody is known to have delivered to, because
// an earlier leader may have, or a delivery may still be on its way.
//
// A staged command is delivered to all its hosts, which wait. Who begins next is
// decided in the log, by what is in the log (nextTurns), before the host hears of
// it; then it is told so by a voter's signed Release, again and again, until its
// row says that it began or ended.
//
// What it does not do: it never decides that a host may run something (that is
// the ticket, package cosign) and never invents an answer. A row becomes final
// on the host's signed word, or by the log entry Expire once the host may no
// longer start.
package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/relay"
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
	lastCollect    = 2 * time.Second // as lastRetry, for a ticket: no host hears of the command until there is one
	// redeliver is when a host that took the command is asked again if still no
	// row says so: what it answered was lost on its way into the log.
	redeliver     = 5 * time.Second
	maxDeliveries = 256 // under way at once, over all commands
	maxOfCommand  = 192 // and of one command: hosts that do not answer must not hold up the others

	// takeover is how long a new leader gives up nothing. While there was no
	// leader the hosts could not report; they try again at least every minute.
	takeover = Skew + 30*time.Second
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

	// SignCancel signs that a command is cancelled at indexes, or everywhere.
	SignCancel func(c *fleet.Command, indexes []uint32) ([]byte, error)
	Cancel     func(ctx context.Context, node fleet.NodeID, req *rpc.CancelRequest) (*rpc.DeliverResponse, error)
	// SignRelease signs that targets at indexes were released at a stamp.
	SignRelease func(c *fleet.Command, released int64, indexes []uint32) ([]byte, error)
	Release     func(ctx context.Context, node fleet.NodeID, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error)
	// Hold reports that nothing is to be delivered to a node now; nil holds
	// nobody. The rows stay open.
	Hold func(node fleet.NodeID) bool

	// Tree is how commands for many hosts travel through relays; nil delivers
	// to each host directly.
	Tree *TreeConfig

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
	since time.Time // when this host began to lead

	pace  relay.Pace     // of the leader's children in trees
	trees sync.WaitGroup // trees at work

	blameMu sync.Mutex // guards blamed
	blamed  map[fleet.NodeID]*Blame

	carriagesMu sync.Mutex // guards carriages
	carriages   map[fleet.CommandID]*carriage
}

// New makes a dispatcher; Lead makes it work.
func New(cfg Config) *Dispatcher {
	return &Dispatcher{cfg: cfg, slots: make(chan struct{}, maxDeliveries), coll: newCollector(cfg),
		blamed: map[fleet.NodeID]*Blame{}, carriages: map[fleet.CommandID]*carriage{}}
}

// Lead dispatches until ctx is done, that is until leadership is lost.
func (d *Dispatcher) Lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer d.trees.Wait()
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.coll.run(ctx) })
	d.since = d.cfg.Now()

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
	d.carriagesMu.Lock()
	k := d.carriages[c.ID]
	d.carriagesMu.Unlock()
	if k != nil {
		k.brought(r.Index, detail)
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
	return d.coll.add(ctx, item{
		command: c.ID, attempt: c.Attempt, row: row, reply: reply,
		urgent: c.Staged() && row.State.IsError(), // others must not begin meanwhile
	})
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
	if err := vouched(r, n.Key); err != nil {
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
