package dispatch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/relay"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/ticket"
	"fleet/raftfsm/state"
)

const (
	// carriedRepeat is how long what was sent down the tree, a cancel, has before
	// it is sent to a host directly.
	carriedRepeat = 2 * time.Second

	// lastAcks is how long a tree lives on when its command has ended: the last
	// acknowledgements are still on their way, and without them every host would
	// report once more.
	lastAcks = 500 * time.Millisecond
)

// TreeConfig is what delivery through relays needs.
type TreeConfig struct {
	Open func(ctx context.Context, node fleet.NodeID, order *rpc.CarryOrder) (relay.Stream, error)

	// Fit gives what reports whether a host may stand in a tree, as of now: it is
	// there, can be dialled, and speaks as this host does. Others are delivered to
	// directly.
	Fit func() func(node fleet.NodeID) bool

	// Direct is up to how many targets the leader delivers itself; MaxDirect
	// when zero.
	Direct int

	// SignAck signs that results are in the log at an index or before.
	SignAck func(index uint64, results []ticket.ResultID) []byte
}

// carriage is the leader's end of one command's tree. It lives as long as the
// command, and a moment longer.
type carriage struct {
	d       *Dispatcher
	cmd     *fleet.Command
	parent  *relay.Parent
	deliver func(outcome)
	ended   chan struct{} // closed when the command has ended

	mu    sync.Mutex // guards what follows
	items map[uint32]*carried
	acks  sync.WaitGroup
}

// carried is one target in the tree.
type carried struct {
	by     fleet.NodeID // the child of the leader that said the last word about it
	result bool         // its result came this way
	told   bool         // the follower has heard the first word
}

// carry gives targets to a tree, if there are enough of them, and answers those
// that are to be delivered to directly. A follower does so once: who was not
// reached then is asked directly.
func (f *follower) carry(lead, ctx context.Context, store *state.Store, c *fleet.Command, ready []uint32) (direct []uint32) {
	cfg := f.d.cfg.Tree
	if cfg == nil || f.carriage != nil || len(ready) <= cmp.Or(cfg.Direct, MaxDirect) {
		return ready
	}
	fit := cfg.Fit()
	var items []rpc.CarryItem
	for _, index := range ready {
		h := f.host(index)
		if node := c.Targets[index]; !h.stale && !f.d.unfit(node) && fit(node) {
			items = append(items, rpc.CarryItem{Node: node, Index: index, Path: f.paths(c).Path(int(index))})
		} else {
			direct = append(direct, index)
		}
	}
	plan := planAbove(c.ID, items, cmp.Or(cfg.Direct, MaxDirect))
	if plan == nil {
		return ready
	}
	k := &carriage{d: f.d, cmd: c, ended: make(chan struct{}), items: make(map[uint32]*carried, len(items))}
	for _, item := range items {
		k.items[item.Index] = &carried{}
		h := f.host(item.Index)
		h.busy, h.stop = true, func() { // called by the follower itself
			k.silence(item.Index)
			h.busy = false
		}
	}
	k.deliver = func(o outcome) {
		select {
		case f.outcomes <- o:
		case <-ctx.Done(): // the command has ended
		}
	}
	k.parent = relay.NewParent(relay.ParentConfig{
		Open: cfg.Open, Said: k.said(lead), Lost: func(item rpc.CarryItem, why string) {
			k.first(item.Index, outcome{err: fleet.Errorf(fleet.Unavailable, "through the tree: %s", why)})
		},
		Failed: func(failure relay.Failure) { k.d.blame(failure, c.ID) }, Pace: &f.d.pace,
	}, &rpc.CarryOrder{
		Ticket: f.ticket, Document: store.Content(c.Document), DocumentName: c.DocumentName, Parameters: c.Parameters,
	})
	f.carriage = k
	f.d.carriagesMu.Lock()
	f.d.carriages[c.ID] = k
	f.d.carriagesMu.Unlock()
	f.d.cfg.Logger.Debug("command goes through relays", "command", c.ID, "targets", len(items), "relays", len(plan))
	f.d.trees.Go(func() { k.run(lead, plan) })
	return direct
}

// run carries until the command has ended and its last acknowledgements had
// their time, or leadership is lost.
func (k *carriage) run(lead context.Context, plan [][]rpc.CarryItem) {
	ctx, cancel := context.WithCancel(lead)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { k.parent.Carry(ctx, plan) })
	select {
	case <-k.ended:
		timer := time.NewTimer(lastAcks)
		select {
		case <-timer.C:
		case <-lead.Done():
		}
		timer.Stop()
	case <-lead.Done():
	}
	cancel()
	wg.Wait()
	k.acks.Wait()
}

// endCarriage lets the tree of a command end, if it has one.
func (f *follower) endCarriage(id fleet.CommandID) {
	if f.carriage == nil {
		return
	}
	f.d.carriagesMu.Lock()
	delete(f.d.carriages, id)
	f.d.carriagesMu.Unlock()
	close(f.carriage.ended)
}

// first tells the follower the first word about a target, whoever says it.
func (k *carriage) first(index uint32, o outcome) {
	k.mu.Lock()
	it := k.items[index]
	told := it.told
	it.told = true
	k.mu.Unlock()
	if !told {
		o.index, o.carried, o.stopped = index, true, k.cmd.Stopped()
		k.deliver(o)
	}
}

// silence keeps the first word about a target from the follower, which wants
// something else of it now.
func (k *carriage) silence(index uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.items[index].told = true
}

// said takes what a child of the leader brings: each word is believed if the
// host that it is about signed it. What nobody signed is only a reason to ask
// the host.
func (k *carriage) said(lead context.Context) func(fleet.NodeID, []rpc.CarrySaid) {
	return func(child fleet.NodeID, said []rpc.CarrySaid) {
		var batch []*pendingAck
		for i := range said {
			s := &said[i]
			node := k.cmd.Targets[s.Index]
			var o outcome
			switch {
			case len(s.Result) > 0:
				if k.has(s.Index) {
					continue // another way was faster, and its acknowledgement is under way
				}
				reply := make(chan decided, 1)
				if err := k.d.submit(lead, k.cmd, node, s.Result, s.Detail, reply); err != nil {
					k.d.cfg.Logger.Warn("host's answer not taken", "command", k.cmd.ID, "node", node, "relay", child, "err", err)
					if fleet.KindOf(err) == fleet.Unavailable {
						k.first(s.Index, outcome{err: err}) // ours to blame: the host will be asked
					} else {
						s.State = 0
					}
					continue
				}
				batch = append(batch, &pendingAck{ticket.ResultIDOf(s.Result), reply})
				o.taken = true
			case s.State == rpc.DeliverAccepted || s.State == rpc.DeliverStaged:
				if err := k.receipt(node, s); err != nil {
					k.d.cfg.Logger.Warn("receipt not taken", "command", k.cmd.ID, "node", node, "relay", child, "err", err)
					s.State = 0
					continue
				}
				o.resp = &rpc.DeliverResponse{State: s.State}
			case s.State == rpc.CarryUnreached:
				o.err = fleet.Errorf(fleet.Unavailable, "%s did not reach it: %s", child, s.Reason)
				o.by = child
			default:
				o.resp = &rpc.DeliverResponse{State: s.State, Reason: s.Reason}
				o.by = child
			}
			k.note(s, child)
			k.first(s.Index, o)
		}
		if len(batch) > 0 {
			k.acks.Go(func() { k.acknowledge(lead, batch) })
		}
	}
}

func (k *carriage) has(index uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.items[index].result
}

func (k *carriage) note(s *rpc.CarrySaid, child fleet.NodeID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	it := k.items[s.Index]
	if it.result = it.result || len(s.Result) > 0; len(s.Receipt) > 0 {
		it.by = child // from here on it owes the result
	}
}

// receipt checks a host's word that it holds the command.
func (k *carriage) receipt(node fleet.NodeID, s *rpc.CarrySaid) error {
	store := k.d.cfg.Store()
	row := store.Node(node)
	if row == nil {
		return fleet.Errorf(fleet.Denied, "node %s is not enrolled", node)
	}
	return ticket.VerifyReceipt(s.Receipt, ticket.Receipt{
		Fleet: store.Fleet().ID, Command: k.cmd.ID, Attempt: k.cmd.Attempt, Index: s.Index, Staged: s.State == rpc.DeliverStaged,
	}, row.Key)
}

type pendingAck struct {
	result ticket.ResultID
	reply  <-chan decided
}

// acknowledge tells the hosts of one report that their results are in the log.
// Those whose results were not decided hear nothing, and report again.
func (k *carriage) acknowledge(lead context.Context, batch []*pendingAck) {
	var results []ticket.ResultID
	var index uint64
	for _, p := range batch {
		select {
		case d := <-p.reply:
			if d.err == nil {
				results, index = append(results, p.result), max(index, d.index)
			}
		case <-lead.Done():
			return
		}
	}
	for some := range slices.Chunk(results, ticket.MaxAcked) {
		if signed := k.d.cfg.Tree.SignAck(index, some); signed != nil {
			k.parent.Tell(&rpc.CarryDown{Ack: signed})
		}
	}
}

// carryCancel sends a cancel down the tree and answers to whom it must be sent
// directly now.
func (f *follower) carryCancel(c *fleet.Command, indexes []uint32) (direct []uint32, err error) {
	if f.carriage == nil || c.Staged() { // a host that waits for its turn has to answer
		return indexes, nil
	}
	var carried []uint32
	for _, index := range indexes {
		if h := f.host(index); f.carriage.items[index] != nil && !h.told {
			carried = append(carried, index)
		} else {
			direct = append(direct, index)
		}
	}
	now := f.d.cfg.Now()
	for some := range slices.Chunk(carried, ticket.MaxCancelled) {
		named := some
		if c.Cancelled() {
			named, some = nil, carried
		}
		signed, err := f.d.cfg.SignCancel(c, named)
		if err != nil {
			return direct, err
		}
		f.carriage.parent.Tell(&rpc.CarryDown{Cancel: signed})
		for _, index := range some {
			h := f.host(index)
			h.told, h.next = true, now.Add(carriedRepeat)
		}
		if named == nil {
			break
		}
	}
	return direct, nil
}

// brought hears that a host brought a result itself that its relay should have.
// A host does so for details that do not climb, too, and when its
// acknowledgement is late.
func (k *carriage) brought(index uint32, detail []byte) {
	k.mu.Lock()
	it := k.items[index]
	if it == nil || it.result || it.by == "" {
		k.mu.Unlock()
		return
	}
	by := it.by
	it.result = true
	k.mu.Unlock()
	if len(detail) > runcmd.MaxClimbing {
		return
	}
	if d, err := runcmd.ParseDetail(detail); err == nil && len(d.Blobs()) > 0 {
		return
	}
	k.d.blame(relay.Failure{Child: by, Why: "did not bring results", Taken: 1}, k.cmd.ID)
}
