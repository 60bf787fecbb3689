package relay

import (
	"context"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/ticket"
)

const (
	// direct is how many targets of a child that failed are carried to one by
	// one; for more the next in the order takes its place.
	direct = 16

	// maxOpening bounds the children that a parent waits to accept at once.
	maxOpening = 128
)

// Stream is a parent's way to one child: rpc.CarryStream. Send and Recv may run
// at the same time; Close ends both.
type Stream interface {
	Send(*rpc.CarryDown) error
	Recv() (*rpc.CarryUp, error)
	Close() error
}

// ParentConfig is what a Parent works with. Functions are safe for concurrent
// use and are called by many children at once.
type ParentConfig struct {
	// Open gives an order to a child and returns when it begins to answer.
	Open func(ctx context.Context, node fleet.NodeID, order *rpc.CarryOrder) (Stream, error)

	// Said hears what came up from a child: of targets that were given to it,
	// and of each not again what it has heard before. It sets the State of what
	// it does not believe to 0. Nothing else of the child is read meanwhile.
	Said func(child fleet.NodeID, said []rpc.CarrySaid)

	// Lost hears of a target that could not be got to say anything.
	Lost func(item rpc.CarryItem, why string)

	// Failed hears that a child did not do for targets what it was asked; nil
	// does not hear.
	Failed func(f Failure)

	Pace *Pace
}

// Failure is what a child did wrong.
type Failure struct {
	Child fleet.NodeID
	Why   string
	Taken int  // targets that were taken over from it
	False int  // words that were refused: of no target of its, or not signed by the host they are about
	Again int  // words that it said before
	Busy  bool // it said that it has too much to carry, which is no fault
}

// Parent carries one order to the children below it, watches them, and takes
// over what a child does not do.
type Parent struct {
	cfg   ParentConfig
	order rpc.CarryOrder // without items
	slots chan struct{}

	mu       sync.Mutex // guards what follows
	children map[*child]struct{}
	last     []*rpc.CarryDown // cancels and releases: for children that come later
}

// NewParent makes the parent of an order, whose items are not looked at.
func NewParent(cfg ParentConfig, order *rpc.CarryOrder) *Parent {
	p := &Parent{cfg: cfg, order: *order, slots: make(chan struct{}, maxOpening), children: map[*child]struct{}{}}
	p.order.Items = nil
	return p
}

// child is one child at work.
type child struct {
	node   fleet.NodeID
	stream Stream
	down   chan *rpc.CarryDown

	mu      sync.Mutex
	results map[ticket.ResultID]bool // that came from it and are not acknowledged
}

// maxDown is how many messages wait for a child that does not take them; what
// is over is dropped. A host that does not hear of an acknowledgement reports
// again, and what hears no cancel is sent one.
const maxDown = 64

// Carry carries to branches: lists of items, each a subtree in the form of an
// order. It returns when every child has ended, at the latest with ctx.
func (p *Parent) Carry(ctx context.Context, branches [][]rpc.CarryItem) {
	var wg sync.WaitGroup
	for _, items := range branches {
		wg.Go(func() { p.branch(ctx, items) })
	}
	wg.Wait()
}

// branch carries to one subtree, by one child after another if it must.
func (p *Parent) branch(ctx context.Context, items []rpc.CarryItem) {
	for {
		left, failure := p.child(ctx, items)
		if failure.False+failure.Again > 0 {
			failure.Why = "said what is not so, or the same more than once"
		}
		if ctx.Err() != nil || len(left) == 0 {
			p.failed(failure)
			return
		}
		head := left[0]
		if head.Node == failure.Child {
			p.cfg.Lost(head, failure.Why)
			left = left[1:]
		}
		failure.Taken = len(left)
		p.failed(failure)
		if len(left) == 0 {
			return
		}
		if len(left) <= direct {
			var alone [][]rpc.CarryItem
			for _, item := range left {
				item.Below = 0
				alone = append(alone, []rpc.CarryItem{item})
			}
			p.Carry(ctx, alone)
			return
		}
		items = Flat(left)
	}
}

func (p *Parent) failed(f Failure) {
	if p.cfg.Failed != nil && !f.Busy && f.Taken+f.False+f.Again > 0 {
		p.cfg.Failed(f)
	}
}

// Flat is a subtree in which the first item carries to each other itself.
func Flat(items []rpc.CarryItem) []rpc.CarryItem {
	flat := slices.Clone(items)
	for i := range flat {
		flat[i].Below = 0
	}
	flat[0].Below = uint32(len(flat) - 1)
	return flat
}

// child gives a subtree to its first item and answers which items nothing was
// heard of when that ended, and how.
func (p *Parent) child(ctx context.Context, items []rpc.CarryItem) (left []rpc.CarryItem, failure Failure) {
	node := items[0].Node
	failure = Failure{Child: node}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return items, failure
	}
	freed := sync.OnceFunc(func() { <-p.slots })
	defer freed()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	w := &watch{accept: p.cfg.Pace.Accept(), opened: time.Now(), missing: len(items)}
	order := p.order
	order.Items = items
	type opening struct {
		s   Stream
		err error
	}
	opened := make(chan opening, 1)
	wg.Go(func() {
		s, err := p.cfg.Open(ctx, node, &order)
		opened <- opening{s, err}
	})
	timer := time.NewTimer(w.accept)
	defer timer.Stop()
	var stream Stream
	select {
	case o := <-opened:
		if o.err != nil {
			failure.Why = "could not be given the order: " + cut(o.err.Error())
			failure.Busy = fleet.KindOf(o.err) == fleet.Throttled
			return items, failure
		}
		stream = o.s
	case <-timer.C:
		p.cfg.Pace.Missed(w.opened, time.Now())
		cancel()
		if o := <-opened; o.err == nil {
			_ = o.s.Close() // it came too late: another carries now
		}
		_, failure.Why = w.due()
		return items, failure
	case <-ctx.Done():
		if o := <-opened; o.err == nil {
			_ = o.s.Close() // nobody carries any more
		}
		return items, failure
	}
	c := &child{node: node, stream: stream, down: make(chan *rpc.CarryDown, maxDown), results: map[ticket.ResultID]bool{}}
	defer p.forget(c)
	defer stream.Close() //nolint:errcheck // ends both directions; what was lost is heard of otherwise
	wg.Go(func() {       // sends, until the stream or ctx ends
		for {
			select {
			case m := <-c.down:
				if stream.Send(m) != nil {
					return // Recv says so too
				}
			case <-ctx.Done():
				return
			}
		}
	})
	p.remember(c)

	messages := make(chan *rpc.CarryUp)
	ended := make(chan error, 1)
	wg.Go(func() {
		for {
			up, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- up:
			case <-ctx.Done():
				return
			}
		}
	})
	known := map[uint32]rpc.DeliverState{} // of items: what was heard last; absent for nothing
	for i := range items {
		known[items[i].Index] = 0
	}
	rest := func() []rpc.CarryItem {
		var left []rpc.CarryItem
		for _, item := range items {
			if known[item.Index] == 0 {
				left = append(left, item)
			}
		}
		return left
	}
	for {
		due, why := w.due()
		timer.Reset(time.Until(due))
		select {
		case up := <-messages:
			if w.accepted.IsZero() {
				p.cfg.Pace.Saw(time.Since(w.opened))
				freed()
			}
			w.got(time.Now(), p.take(c, up.Said, known, &failure))
		case err := <-ended:
			failure.Why = "broke off: " + cut(err.Error())
			return rest(), failure
		case <-timer.C:
			if time.Now().Before(due) {
				continue
			}
			if w.accepted.IsZero() {
				p.cfg.Pace.Missed(w.opened, time.Now())
			}
			failure.Why = why
			return rest(), failure
		case <-ctx.Done():
			return rest(), failure
		}
	}
}

// take gives on what is new in a report and answers of how many targets it is
// the first word.
func (p *Parent) take(c *child, said []rpc.CarrySaid, known map[uint32]rpc.DeliverState, failure *Failure) (fresh int) {
	news := said[:0:0]
	for _, s := range said {
		before, mine := known[s.Index]
		switch {
		case !mine:
			failure.False++
			continue
		case rank(s.State) <= rank(before):
			failure.Again++
			continue
		}
		news = append(news, s)
	}
	if len(news) == 0 {
		return 0
	}
	for _, s := range news { // before it is said: an answer may come at once
		if len(s.Result) > 0 {
			c.expect(ticket.ResultIDOf(s.Result))
		}
	}
	p.cfg.Said(c.node, news)
	for _, s := range news {
		switch {
		case s.State == 0:
			failure.False++
			continue
		case known[s.Index] == 0:
			fresh++
		}
		known[s.Index] = s.State
	}
	return fresh
}

// rank orders what may be said of a target one after another.
func rank(s rpc.DeliverState) int {
	switch s {
	case 0:
		return 0
	case rpc.DeliverStaged:
		return 1
	case rpc.DeliverAccepted:
		return 2
	}
	return 3
}

func (c *child) expect(id ticket.ResultID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[id] = true
}

// wants reports whether an acknowledgement is for a result that came from this
// child, which is then forgotten.
func (c *child) wants(a *ticket.SignedAck) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := false
	for _, id := range a.Results {
		if c.results[id] {
			found = true
			delete(c.results, id)
		}
	}
	return found
}

func (p *Parent) remember(c *child) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.children[c] = struct{}{}
	for _, m := range p.last {
		c.tell(m)
	}
}

func (p *Parent) forget(c *child) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.children, c)
}

func (c *child) tell(m *rpc.CarryDown) {
	select {
	case c.down <- m:
	default:
	}
}

// maxLast bounds the cancels and releases that are kept for later children.
const maxLast = 16

// Tell passes a message down: an acknowledgement to the children from which one
// of its results came, anything else to all, also to those that come later.
func (p *Parent) Tell(m *rpc.CarryDown) {
	var ack *ticket.SignedAck
	if len(m.Ack) > 0 {
		var err error
		if ack, err = ticket.ParseSignedAck(m.Ack); err != nil {
			return // whoever waits for it reports again
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ack == nil && len(p.last) < maxLast {
		p.last = append(p.last, m)
	}
	for c := range p.children {
		if ack == nil || c.wants(ack) {
			c.tell(m)
		}
	}
}
