package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/relay"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/ticket"
	"fleet/raftfsm/state"
)

// This file runs real relays (node/relay) on many hosts under a real leader, in
// fake time. Hosts and the streams between them are simulated: a host verifies
// what it gets, journals and reports as node/runcmd does, and nothing else of it
// is here.

const simLatency = 10 * time.Millisecond

// forest is a world whose hosts are relays.
type forest struct {
	*world
	d     *Dispatcher
	hosts []*simHost
	takes time.Duration // of a command on a host

	// silent: what is sent to a host that has died is lost, and its streams do
	// not break.
	silent bool

	mu       sync.Mutex            // guards what follows
	messages int                   // between hosts, without heartbeats and without asking the dead again
	direct   int                   // deliveries that the leader made itself
	tried    map[fleet.NodeID]bool // by the leader itself
}

// simHost is one host of a forest.
type simHost struct {
	f     *forest
	n     int
	id    fleet.NodeID
	relay *relay.Relay
	evil  *evil

	refuses error // to carry; nil: it does

	mu       sync.Mutex // guards what follows
	ctx      context.Context
	down     context.CancelFunc
	runs     map[fleet.CommandID]int
	results  map[fleet.CommandID][]byte
	accepted map[fleet.CommandID]bool
	stop     map[fleet.CommandID]context.CancelFunc
	acked    map[fleet.CommandID]bool
	climbers map[*simJob]bool
	strikes  string // the step at which it dies; "" for never
}

// evil is what a stolen relay does instead. Nil functions are honest.
type evil struct {
	serve func(order *rpc.CarryOrder, send func(*rpc.CarryUp) error, done <-chan struct{}) bool // true: that was all
	up    func(up *rpc.CarryUp) []*rpc.CarryUp
	order func(order *rpc.CarryOrder) // changes what it gives its children
}

func newForest(t *testing.T, n int) *forest {
	f := &forest{world: newWorld(t, n), takes: 50 * time.Millisecond, tried: map[fleet.NodeID]bool{}}
	for i := range n {
		h := &simHost{f: f, n: i, id: f.row(i).ID, runs: map[fleet.CommandID]int{}, results: map[fleet.CommandID][]byte{},
			accepted: map[fleet.CommandID]bool{}, acked: map[fleet.CommandID]bool{}, climbers: map[*simJob]bool{},
			stop: map[fleet.CommandID]context.CancelFunc{}}
		h.ctx, h.down = context.WithCancel(t.Context())
		h.relay = relay.New(relay.Config{
			Self: h.id, Fleet: fleetID, Key: key('A', i), Trust: func() *identity.Trust { return f.store().Trust() },
			Time: func() (time.Time, bool) { return time.Now(), true },
			Job: func(c fleet.CommandID, _ uint32) relay.Job {
				j := &simJob{h: h, command: c, result: make(chan runcmd.Answer, 1)}
				h.mu.Lock()
				defer h.mu.Unlock()
				h.climbers[j] = true
				return j
			},
			Cancel: func(_ context.Context, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
				return h.cancel(req), nil
			},
			Release: func(context.Context, *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
				return nil, errors.New("nothing is staged here")
			},
			Open: func(ctx context.Context, to fleet.NodeID, order *rpc.CarryOrder) (relay.Stream, error) {
				if h.evil != nil && h.evil.order != nil {
					changed := *order
					h.evil.order(&changed)
					order = &changed
				}
				return f.open(ctx, h.ctx, to, order)
			},
			Life: t.Context(), Logger: quiet(),
		})
		f.hosts = append(f.hosts, h)
	}
	return f
}

// lead makes a leader whose commands travel through the hosts.
func (f *forest) lead() (stop func()) {
	cfg := f.config()
	cfg.Tree = &TreeConfig{
		Open: func(ctx context.Context, to fleet.NodeID, order *rpc.CarryOrder) (relay.Stream, error) {
			return f.open(ctx, f.t.Context(), to, order)
		},
		Fit: func() func(fleet.NodeID) bool { return func(fleet.NodeID) bool { return true } },
		SignAck: func(index uint64, results []ticket.ResultID) []byte {
			return ticket.SignAck(key('Q', 0), &ticket.Ack{Fleet: fleetID, Index: index, Results: results})
		},
	}
	cfg.Deliver = func(ctx context.Context, to fleet.NodeID, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
		h := f.hosts[f.world.hosts[to]]
		f.mu.Lock()
		f.direct++
		if h.ctx.Err() == nil || !f.tried[to] {
			f.messages++ // who is dead is asked again and again, tree or no tree
		}
		f.tried[to] = true
		f.mu.Unlock()
		resp, err := h.deliver(ctx, req)
		if err == nil {
			f.count(1)
		}
		return resp, err
	}
	cfg.Cancel = func(ctx context.Context, to fleet.NodeID, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
		f.count(2)
		h := f.hosts[f.world.hosts[to]]
		if h.ctx.Err() != nil {
			return nil, errors.New("nobody there")
		}
		return h.cancel(req), nil
	}
	d := New(cfg)
	f.mu.Lock()
	f.d = d
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Lead(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Lead: %v", err)
		}
	})
}

func (f *forest) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages += n
}

// simStream is a stream between two hosts; it ends when either does.
type simStream struct {
	f      *forest
	ctx    context.Context
	cancel context.CancelFunc
	up     chan *rpc.CarryUp
	down   chan *rpc.CarryDown
	served chan error
}

func (f *forest) open(ctx, from context.Context, to fleet.NodeID, order *rpc.CarryOrder) (relay.Stream, error) {
	f.count(1)
	if err := order.Validate(); err != nil {
		return nil, err
	}
	n, known := f.world.hosts[to]
	if !known {
		return nil, fmt.Errorf("no host %s", to)
	}
	h := f.hosts[n]
	if !pauseFor(ctx, 2*simLatency) || h.ctx.Err() != nil { // the handshake
		<-ctx.Done() // nobody answers there
		return nil, ctx.Err()
	}
	if len(order.Items) > 1 && h.refuses != nil {
		return nil, h.refuses
	}
	h.step("opened", len(order.Items) > 1)
	s := &simStream{f: f, up: make(chan *rpc.CarryUp, 1024), down: make(chan *rpc.CarryDown, 1024), served: make(chan error, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	work, lost := context.WithCancel(s.ctx) // of the host
	context.AfterFunc(from, s.cancel)
	context.AfterFunc(h.ctx, func() {
		if lost(); !f.silent {
			s.cancel()
		}
	})
	send := func(up *rpc.CarryUp) error {
		if !pauseFor(work, simLatency) {
			return io.ErrClosedPipe
		}
		ups := []*rpc.CarryUp{up}
		if h.evil != nil && h.evil.up != nil && len(order.Items) > 1 {
			ups = h.evil.up(up)
		}
		for _, up := range ups {
			if err := up.Validate(); err != nil {
				return err
			}
			if len(up.Said) > 0 {
				f.count(1)
				h.step("report", len(order.Items) > 1)
			}
			select {
			case s.up <- up:
			case <-work.Done():
				return io.ErrClosedPipe
			}
		}
		return nil
	}
	recv := func() (*rpc.CarryDown, error) {
		select {
		case m := <-s.down:
			h.step("told", len(order.Items) > 1)
			return m, nil
		case <-work.Done():
			return nil, io.EOF
		}
	}
	go func() {
		defer func() {
			if lost(); h.ctx.Err() == nil || !f.silent {
				s.cancel()
			}
		}()
		if h.evil != nil && h.evil.serve != nil && len(order.Items) > 1 && h.evil.serve(order, send, work.Done()) {
			return
		}
		s.served <- h.relay.Serve(work, identity.Peer{Node: "parent"}, order, recv, send)
	}()
	return s, nil
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *simStream) Send(m *rpc.CarryDown) error {
	s.f.count(1)
	select {
	case s.down <- m:
		return nil
	case <-s.ctx.Done():
		return io.ErrClosedPipe
	}
}

func (s *simStream) Recv() (*rpc.CarryUp, error) {
	select {
	case up := <-s.up:
		return up, nil
	case <-s.ctx.Done():
		select {
		case err := <-s.served:
			if err != nil {
				return nil, err
			}
		default:
		}
		return nil, io.EOF
	}
}

func (s *simStream) Close() error {
	s.cancel()
	return nil
}

// step ends a host that is to die at this step of its work as a relay.
func (h *simHost) step(name string, relays bool) {
	h.mu.Lock()
	dies := relays && h.strikes == name
	h.mu.Unlock()
	if dies {
		h.down()
	}
}

func (h *simHost) deliver(ctx context.Context, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
	if h.ctx.Err() != nil {
		return nil, errors.New("nobody there")
	}
	if !pauseFor(ctx, simLatency) { // its disk
		return nil, ctx.Err()
	}
	signed, err := ticket.ParseSigned(req.Ticket)
	var t *ticket.Ticket
	if err == nil {
		t, err = signed.Verify(h.f.store().Trust())
	}
	switch {
	case err != nil:
		return &rpc.DeliverResponse{State: rpc.DeliverRefused, Reason: err.Error()}, nil
	case !ticket.VerifyPath(t.Root, t.Targets, req.Index, h.id, req.Path) || fleet.Sum(req.Document) != t.Document || time.Now().UnixNano() > t.NotAfter:
		return &rpc.DeliverResponse{State: rpc.DeliverRefused, Reason: "not for this host, or not for now"}, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.results[t.Command] != nil:
		return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: h.results[t.Command]}, nil
	case h.accepted[t.Command]:
		return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
	}
	h.accepted[t.Command] = true
	h.runs[t.Command]++
	running, stop := context.WithCancel(h.ctx)
	h.stop[t.Command] = stop
	go h.run(running, t)
	return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
}

// run runs a command, and reports its result until it is acknowledged.
func (h *simHost) run(running context.Context, t *ticket.Ticket) {
	ended := fleet.Success
	if !pauseFor(running, h.f.takes) {
		ended = fleet.Cancelled
	}
	if h.ctx.Err() != nil {
		return
	}
	c := h.f.store().Command(t.Command)
	result := h.f.result(c, h.n, func(r *ticket.Result) { r.State = ended })
	h.mu.Lock()
	h.results[t.Command] = result
	wait := time.Duration(0)
	for j := range h.climbers {
		if j.command == t.Command {
			j.result <- runcmd.Answer{State: runcmd.Done, Result: result}
			wait = 2 * time.Second
		}
	}
	h.mu.Unlock()
	for pauseFor(h.ctx, wait) {
		h.mu.Lock()
		done := h.acked[t.Command]
		h.mu.Unlock()
		if done {
			return
		}
		h.f.count(2)
		h.f.mu.Lock()
		d := h.f.d // the leader may be another by now
		h.f.mu.Unlock()
		if _, err := d.Report(h.ctx, h.id, result, nil); err == nil {
			return
		}
		wait = time.Second
	}
}

func (h *simHost) cancel(req *rpc.CancelRequest) *rpc.DeliverResponse {
	signed, err := ticket.ParseSignedCancel(req.Cancel)
	if err == nil {
		err = signed.Verify(h.f.store().Trust())
	}
	if err != nil || !ticket.VerifyPath(signed.Root, signed.Targets, req.Index, h.id, req.Path) || !signed.Covers(req.Index) {
		return &rpc.DeliverResponse{State: rpc.DeliverRefused, Reason: "not for this host"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.results[signed.Command] != nil:
		return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: h.results[signed.Command]}
	case h.accepted[signed.Command]:
		h.stop[signed.Command]()
		return &rpc.DeliverResponse{State: rpc.DeliverAccepted}
	}
	h.accepted[signed.Command] = true
	c := h.f.store().Command(signed.Command)
	h.results[signed.Command] = h.f.result(c, h.n, func(r *ticket.Result) { r.State = fleet.Cancelled })
	return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: h.results[signed.Command]}
}

type simJob struct {
	h       *simHost
	command fleet.CommandID
	result  chan runcmd.Answer
}

func (j *simJob) Deliver(ctx context.Context, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
	return j.h.deliver(ctx, req)
}
func (j *simJob) Result() <-chan runcmd.Answer { return j.result }
func (j *simJob) Acknowledged(ticket.ResultID, uint64) {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	j.h.acked[j.command] = true
}
func (j *simJob) Close() {
	j.h.mu.Lock()
	defer j.h.mu.Unlock()
	delete(j.h.climbers, j)
}

// heads are the leader's children for a command.
func (f *forest) heads(c *fleet.Command) (heads []*simHost) {
	var items []rpc.CarryItem
	for i, node := range c.Targets {
		items = append(items, rpc.CarryItem{Node: node, Index: uint32(i)})
	}
	for _, b := range Plan(c.ID, items) {
		heads = append(heads, f.hosts[f.world.hosts[b[0].Node]])
	}
	return heads
}

// finish waits until every host that lives has its row, and checks that none ran
// twice. It answers how long it took.
func (f *forest) finish(c *fleet.Command, want fleet.InvocationState) time.Duration {
	f.t.Helper()
	var took time.Duration
	f.until("the rows of all that live", func() bool {
		for _, h := range f.hosts {
			index, _ := state.TargetIndex(c, h.id)
			if h.ctx.Err() == nil && !f.store().Invocation(c.ID, index).State.Final() {
				return false
			}
		}
		took = time.Since(time.Unix(0, c.Created))
		return true
	})
	for _, h := range f.hosts {
		index, _ := state.TargetIndex(c, h.id)
		if got := f.store().Invocation(c.ID, index).State; h.ctx.Err() == nil && got != want {
			f.t.Errorf("host %d: %s, want %s", h.n, got, want)
		}
		if n := h.runs[c.ID]; n > 1 {
			f.t.Errorf("host %d ran %d times", h.n, n)
		}
	}
	return took
}

func (f *forest) blamed() (relays []fleet.NodeID) {
	for _, b := range f.d.Blamed() {
		f.t.Logf("%s: %s; taken %d, false %d, again %d", b.Relay, b.Why, b.Taken, b.False, b.Again)
		relays = append(relays, b.Relay)
	}
	return relays
}

// grove runs a test over a forest in fake time and ends it.
func grove(t *testing.T, name string, n int, test func(t *testing.T, f *forest)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newForest(t, n)
			stop := f.lead()
			test(t, f)
			stop()
			for _, h := range f.hosts {
				h.down()
			}
			time.Sleep(time.Minute)
		})
	})
}

func forestSize(t *testing.T) int {
	if testing.Short() {
		return 100
	}
	return 500
}

// TestTree: a command reaches every host through relays, once, with few
// messages, and each result is acknowledged without being reported again.
func TestTree(t *testing.T) {
	for _, n := range []int{65, 200, forestSize(t)} {
		grove(t, fmt.Sprint(n), n, func(t *testing.T, f *forest) {
			c := f.send(1)
			took := f.finish(c, fleet.Success)
			time.Sleep(10 * time.Second)
			f.mu.Lock()
			defer f.mu.Unlock()
			t.Logf("%d hosts: %s, %d messages", n, took, f.messages)
			// Order, report and acknowledgement for each; a relay reports twice or
			// three times: first itself.
			if most := 3*n + 4*len(f.heads(c)); f.messages > most {
				t.Errorf("%d messages for %d hosts, want %d at most", f.messages, n, most)
			}
			if f.direct != 0 {
				t.Errorf("%d deliveries by the leader itself", f.direct)
			}
			if took > time.Second {
				t.Errorf("it took %s", took)
			}
			for _, h := range f.hosts {
				if !h.acked[c.ID] {
					t.Errorf("host %d was not told that its result is in the log", h.n)
				}
			}
			if b := f.blamed(); len(b) > 0 {
				t.Errorf("blamed %v", b)
			}
		})
	}
}

// TestTreeOfLongCommands: hosts say, signed, that they hold a command that takes
// its time, and the leader marks it.
func TestTreeOfLongCommands(t *testing.T) {
	grove(t, "", 100, func(t *testing.T, f *forest) {
		f.takes = 30 * time.Second
		c := f.send(1)
		time.Sleep(2 * time.Second)
		if got := f.states(c); got[fleet.InProgress] != 100 {
			t.Errorf("states %v", got)
		}
		f.finish(c, fleet.Success)
		if f.direct != 0 || len(f.blamed()) > 0 {
			t.Errorf("%d deliveries by the leader itself", f.direct)
		}
	})
}

// TestSmallCommandsGoDirectly: up to 64 targets there is no tree, and whoever is
// not fit for one is delivered to beside it.
func TestSmallCommandsGoDirectly(t *testing.T) {
	grove(t, "64", MaxDirect, func(t *testing.T, f *forest) {
		f.finish(f.send(1), fleet.Success)
		if f.direct != MaxDirect {
			t.Errorf("%d deliveries by the leader itself, want %d", f.direct, MaxDirect)
		}
	})
	grove(t, "unfit", 100, func(t *testing.T, f *forest) {
		f.d.cfg.Tree.Fit = func() func(fleet.NodeID) bool {
			return func(id fleet.NodeID) bool { return f.world.hosts[id]%10 != 0 }
		}
		f.finish(f.send(1), fleet.Success)
		if f.direct != 10 {
			t.Errorf("%d deliveries by the leader itself, want those to the 10 that are not fit", f.direct)
		}
	})
}

// TestRelayDies: a relay that ends at any step of its work costs no host its
// command, and none runs twice.
func TestRelayDies(t *testing.T) {
	for _, step := range []string{"before", "opened", "report", "told"} {
		grove(t, step, 100, func(t *testing.T, f *forest) {
			f.takes = 300 * time.Millisecond // receipts, then results
			c := f.send(1)
			dies := f.heads(c)[0]
			if step == "before" {
				dies.down()
			}
			dies.strikes = step
			took := f.finish(c, fleet.Success)
			t.Logf("%s", took)
			if dies.ctx.Err() == nil {
				t.Error("it did not die")
			}
			if took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
			if step == "before" || step == "opened" {
				if b := f.blamed(); !slices.Contains(b, dies.id) {
					t.Errorf("blamed %v, want %s", b, dies.id)
				}
			}
		})
	}
}

// TestThirdOfTheHostsDies while the command is on its way: every host that lives
// runs it once within 30 s, for about three messages a host.
func TestThirdOfTheHostsDies(t *testing.T) {
	t.Run("streams break", func(t *testing.T) { thirdDies(t, false) })
	t.Run("silence", func(t *testing.T) { thirdDies(t, true) })
}

func thirdDies(t *testing.T, silent bool) {
	n := forestSize(t)
	grove(t, "", n, func(t *testing.T, f *forest) {
		f.silent = silent
		c := f.send(1)
		time.Sleep(25 * time.Millisecond) // the first orders are on their way
		for i, h := range f.hosts {
			if i%10 < 3 {
				h.down()
			}
		}
		took := f.finish(c, fleet.Success)
		f.mu.Lock()
		t.Logf("%d hosts, %d dead: %s, %d messages, %d direct deliveries", n, 3*n/10, took, f.messages, f.direct)
		messages := f.messages
		f.mu.Unlock()
		if took > 30*time.Second {
			t.Errorf("the hosts that live had it after %s", took)
		}
		// Three a host; relays report twice, first themselves.
		if most := 3*n + 2*len(f.heads(c)); messages > most {
			t.Errorf("%d messages for %d hosts, want %d at most", messages, n, most)
		}
	})
}

// TestBusyRelay: a host that has too much to carry says so; others do it, and it
// is not blamed.
func TestBusyRelay(t *testing.T) {
	grove(t, "", 100, func(t *testing.T, f *forest) {
		c := f.send(1)
		busy := f.heads(c)[0]
		busy.refuses = fleet.Errorf(fleet.Throttled, "64 orders are being carried by this host")
		if took := f.finish(c, fleet.Success); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
		if b := f.blamed(); len(b) > 0 {
			t.Errorf("blamed %v", b)
		}
	})
}

// TestTreeCancel: a cancel goes down the tree and ends the command on every host.
func TestTreeCancel(t *testing.T) {
	grove(t, "", 150, func(t *testing.T, f *forest) {
		f.takes = time.Minute
		c := f.send(1)
		time.Sleep(2 * time.Second)
		before := f.messages
		f.world.cancel(c)
		took := f.finish(c, fleet.Cancelled)
		t.Logf("%s", took)
		if took > 4*time.Second {
			t.Errorf("cancelled 2s after it began, ended after %s", took)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := f.messages - before; n > 3*150 {
			t.Errorf("%d messages for 150 hosts", n)
		}
	})
}

// TestEvilRelays: a stolen relay costs nobody his command, makes nobody run what
// was not ordered, and is named.
func TestEvilRelays(t *testing.T) {
	flip := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	changed := func(change func(*rpc.CarrySaid)) func(up *rpc.CarryUp) []*rpc.CarryUp {
		return func(up *rpc.CarryUp) []*rpc.CarryUp {
			lie := *up
			lie.Said = slices.Clone(up.Said)
			for i := range lie.Said {
				change(&lie.Said[i])
			}
			return []*rpc.CarryUp{&lie}
		}
	}
	for _, tc := range []struct {
		name  string
		evil  func(f *forest) *evil
		takes time.Duration
		limit time.Duration
	}{
		{"swallows all", func(*forest) *evil {
			return &evil{serve: func(order *rpc.CarryOrder, send func(*rpc.CarryUp) error, done <-chan struct{}) bool {
				for err := send(&rpc.CarryUp{Accepted: uint32(len(order.Items))}); err == nil; err = send(&rpc.CarryUp{Heard: 3}) {
					select {
					case <-time.After(relay.Beat):
					case <-done:
						return true
					}
				}
				return true
			}}
		}, 0, 2 * relay.Quiet(time.Second)},
		{"swallows results", func(*forest) *evil {
			return &evil{up: func(up *rpc.CarryUp) []*rpc.CarryUp {
				lie := *up
				lie.Said = slices.DeleteFunc(slices.Clone(up.Said), func(s rpc.CarrySaid) bool { return len(s.Result) > 0 })
				return []*rpc.CarryUp{&lie}
			}}
		}, 300 * time.Millisecond, 4 * time.Second},
		{"alters tickets", func(*forest) *evil {
			return &evil{order: func(o *rpc.CarryOrder) { o.Ticket = flip(o.Ticket) }}
		}, 0, 10 * time.Second},
		{"alters results", func(*forest) *evil {
			return &evil{up: changed(func(s *rpc.CarrySaid) {
				if len(s.Result) > 0 {
					s.Result = flip(s.Result)
				}
			})}
		}, 0, 10 * time.Second},
		{"invents receipts", func(f *forest) *evil {
			return &evil{serve: func(order *rpc.CarryOrder, send func(*rpc.CarryUp) error, done <-chan struct{}) bool {
				up := &rpc.CarryUp{Accepted: uint32(len(order.Items))}
				for _, item := range order.Items {
					up.Said = append(up.Said, rpc.CarrySaid{Index: item.Index, State: rpc.DeliverAccepted,
						Receipt: ticket.SignReceipt(key('A', 999), ticket.Receipt{Fleet: fleetID, Command: planCommand(1), Attempt: 1, Index: item.Index})})
				}
				_ = send(up)
				<-done
				return true
			}}
		}, 0, 10 * time.Second},
		{"says that nobody is there", func(f *forest) *evil {
			return &evil{serve: func(order *rpc.CarryOrder, send func(*rpc.CarryUp) error, done <-chan struct{}) bool {
				up := &rpc.CarryUp{Accepted: uint32(len(order.Items))}
				for _, item := range order.Items {
					up.Said = append(up.Said, rpc.CarrySaid{Index: item.Index, State: rpc.CarryUnreached, Reason: "no"})
				}
				_ = send(up)
				<-done
				return true
			}}
		}, 0, 2 * time.Second},
		{"swaps results", func(*forest) *evil {
			return &evil{up: changed(func(s *rpc.CarrySaid) {
				if len(s.Result) > 0 {
					s.Index ^= 1
				}
			})}
		}, 0, 10 * time.Second},
		{"repeats", func(*forest) *evil {
			return &evil{up: func(up *rpc.CarryUp) []*rpc.CarryUp { return slices.Repeat([]*rpc.CarryUp{up}, 100) }}
		}, 0, time.Second},
	} {
		grove(t, tc.name, 100, func(t *testing.T, f *forest) {
			if tc.takes > 0 {
				f.takes = tc.takes
			}
			c := f.send(1)
			bad := f.heads(c)[0]
			bad.evil = tc.evil(f)
			took := f.finish(c, fleet.Success)
			time.Sleep(5 * time.Second) // reports that come late
			t.Logf("%s", took)
			if took > tc.limit {
				t.Errorf("it took %s, want %s at most", took, tc.limit)
			}
			if b := f.blamed(); !slices.Equal(b, []fleet.NodeID{bad.id}) {
				t.Errorf("blamed %v, want %s alone", b, bad.id)
			}
			// The next command does not go through it.
			next := f.send(2)
			f.finish(next, fleet.Success)
		})
	}
}

// TestEvilOrders: a host serves no order that k voters did not sign for it, and
// gives none to a host that the ticket does not name.
func TestEvilOrders(t *testing.T) {
	grove(t, "", 80, func(t *testing.T, f *forest) {
		c := f.send(1)
		f.finish(c, fleet.Success)
		signed, err := f.collect(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		item := func(n int) rpc.CarryItem {
			index, _ := state.TargetIndex(c, f.hosts[n].id)
			return rpc.CarryItem{Node: f.hosts[n].id, Index: index, Path: ticket.Path(c.Targets, int(index))}
		}
		stranger := rpc.CarryItem{Node: f.hosts[9].id, Index: item(8).Index, Path: item(8).Path}
		forged := &ticket.Signed{Ticket: signed.Ticket, Signatures: []ticket.Signature{ticket.Sign(key('Q', 7), signed.Ticket)}}
		old := *c
		old.NotAfter = time.Now().Add(-time.Second).UnixNano()
		oldBytes := ticket.ForCommand(&old, fleetID, 0).Bytes()
		late := &ticket.Signed{Ticket: oldBytes, Signatures: []ticket.Signature{ticket.Sign(key('Q', 0), oldBytes)}}
		for _, tc := range []struct {
			name   string
			signed *ticket.Signed
			doc    string
			items  []rpc.CarryItem
		}{
			{"a ticket that no voter signed", forged, document, []rpc.CarryItem{item(1), item(2)}},
			{"an old ticket", late, document, []rpc.CarryItem{item(1), item(2)}},
			{"another document", signed, `{"schemaVersion":"2.2","mainSteps":[ ]}`, []rpc.CarryItem{item(1), item(2)}},
			{"a host that is not named", signed, document, []rpc.CarryItem{item(1), stranger}},
			{"a host twice", signed, document, []rpc.CarryItem{item(1), item(2), item(2)}},
			{"for another host", signed, document, []rpc.CarryItem{item(2), item(1)}},
		} {
			order := &rpc.CarryOrder{Ticket: tc.signed.Encode(), Document: []byte(tc.doc), Parameters: c.Parameters, Items: relay.Flat(tc.items)}
			sent := f.messages
			err := f.hosts[1].relay.Serve(t.Context(), identity.Peer{Node: "thief"}, order,
				func() (*rpc.CarryDown, error) { return nil, io.EOF },
				func(*rpc.CarryUp) error { t.Errorf("%s: accepted", tc.name); return nil })
			if fleet.KindOf(err) != fleet.Denied {
				t.Errorf("%s: %v, want denied", tc.name, err)
			}
			if f.messages != sent {
				t.Errorf("%s: %d messages were sent", tc.name, f.messages-sent)
			}
		}
	})
}

// TestClimbingDetail: what a host lets climb fits into a report.
func TestClimbingDetail(t *testing.T) {
	if runcmd.MaxClimbing > rpc.MaxCarriedDetail {
		t.Errorf("details of %d bytes climb, a report takes %d", runcmd.MaxClimbing, rpc.MaxCarriedDetail)
	}
}

// TestTreeLeaderChanges: a leader that is lost while a command is on its way, or
// while hosts work on it, is followed by another, who makes a tree anew of those
// that no row speaks of; nobody runs twice.
func TestTreeLeaderChanges(t *testing.T) {
	for _, after := range []time.Duration{15 * time.Millisecond, 45 * time.Millisecond, 75 * time.Millisecond, 150 * time.Millisecond, time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newForest(t, 100)
				f.takes = 300 * time.Millisecond
				stop := f.lead()
				c := f.send(1)
				time.Sleep(after)
				stop()
				time.Sleep(time.Second)
				stop = f.lead()
				took := f.finish(c, fleet.Success)
				t.Logf("%s", took)
				if took > 5*time.Second {
					t.Errorf("it took %s", took)
				}
				if b := f.blamed(); len(b) > 0 {
					t.Errorf("blamed %v", b)
				}
				stop()
				for _, h := range f.hosts {
					h.down()
				}
				time.Sleep(time.Minute)
			})
		})
	}
}
