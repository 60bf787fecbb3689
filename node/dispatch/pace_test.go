package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// paced makes a command for all hosts with limits.
func (w *world) paced(n int, concurrency, errors string) *fleet.Command {
	w.t.Helper()
	c := w.sendWith(n, func(r *entry.SendCommandV1) { r.MaxConcurrency, r.MaxErrors = concurrency, errors })
	if !c.Staged() {
		w.t.Fatalf("%s and %s of %d hosts are no limits", concurrency, errors, len(c.Targets))
	}
	return c
}

func TestNextTurns(t *testing.T) {
	const (
		pd, st, rl, ip, ok, no = fleet.Pending, fleet.Staged, fleet.Released, fleet.InProgress, fleet.Success, fleet.Failed
		ci, cp                 = fleet.CancelInProgress, fleet.CancelPending
	)
	for _, tc := range []struct {
		name                string
		concurrency, errors string
		rows                []fleet.InvocationState
		want                []uint32
	}{
		{"nobody has it", "4", "100%", []fleet.InvocationState{pd, pd, pd, pd, pd, pd}, nil},
		{"the first alone", "4", "100%", []fleet.InvocationState{pd, st, st, st, st, st}, []uint32{1}},
		{"the first did not begin yet", "4", "100%", []fleet.InvocationState{rl, st, st, st, st, st}, nil},
		{"it began: two more", "4", "100%", []fleet.InvocationState{ip, st, st, st, st, st}, []uint32{1, 2}},
		{"it ended: two more", "4", "100%", []fleet.InvocationState{ok, st, st, st, st, st}, []uint32{1, 2}},
		{"of the second wave one began", "4", "100%", []fleet.InvocationState{ok, ip, rl, st, st, st}, []uint32{3, 4}},
		{"the second wave began", "4", "100%", []fleet.InvocationState{ip, ip, ip, st, st, st}, []uint32{3}},
		{"the limit", "4", "100%", []fleet.InvocationState{ip, ip, ip, ip, st, st}, nil},
		{"one of them is cancelled and not over", "4", "100%", []fleet.InvocationState{ip, ip, ip, ci, st, st}, nil},
		{"one ended", "4", "100%", []fleet.InvocationState{ip, ok, ip, ip, st, st}, []uint32{4}},
		{"a cancelled one did not have it", "4", "100%", []fleet.InvocationState{ok, cp, ip, ip, ip, st}, []uint32{5}},
		{"one at a time", "1", "100%", []fleet.InvocationState{ok, ok, no, st, st, st}, []uint32{3}},
		{"one at a time, and it runs", "1", "100%", []fleet.InvocationState{ok, ok, no, ip, st, st}, nil},
		{"errors within the limit", "3", "2", []fleet.InvocationState{no, no, ok, st, st, st}, []uint32{3, 4, 5}},
		{"errors past it", "3", "1", []fleet.InvocationState{no, no, ok, st, st, st}, nil},
		{"all at once, once all is well", "100%", "0", []fleet.InvocationState{ok, ok, ok, st, st, st}, []uint32{3, 4, 5}},
		{"no limits", "100%", "100%", []fleet.InvocationState{pd, st, st, st, st, st}, nil},
	} {
		c := &fleet.Command{MaxConcurrency: tc.concurrency, MaxErrors: tc.errors, Targets: make([]fleet.NodeID, len(tc.rows)), Counts: make([]uint32, 15)}
		rows := make([]fleet.Invocation, len(tc.rows))
		for i, s := range tc.rows {
			rows[i] = fleet.Invocation{Index: uint32(i), State: s}
			if s.Holds() || s.Final() {
				rows[i].Released = 1
			}
			c.Counts[s]++
		}
		if got := nextTurns(c, rows, 0, func(uint32) bool { return false }); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		// Who is held is passed over, and nobody else loses by it.
		for _, index := range nextTurns(c, rows, 0, func(i uint32) bool { return i%2 == 1 }) {
			if index%2 == 1 {
				t.Errorf("%s: %d is held and released", tc.name, index)
			}
		}
	}
}

// TestSilentFirst: the first of all is never heard of. The others wait until it
// may not begin any more, and then go on around it.
func TestSilentFirst(t *testing.T) {
	c := &fleet.Command{
		MaxConcurrency: "3", MaxErrors: "100%", DeliverySeconds: 60, NotAfter: 1 << 62, Targets: make([]fleet.NodeID, 5), Counts: make([]uint32, 15),
	}
	c.Counts[fleet.Released], c.Counts[fleet.Staged] = 1, 4
	rows := []fleet.Invocation{{State: fleet.Released, Released: 5}}
	for i := range uint32(4) {
		rows = append(rows, fleet.Invocation{Index: i + 1, State: fleet.Staged})
	}
	late := 5 + int64(time.Minute) + int64(Skew)
	nobody := func(uint32) bool { return false }
	if got := nextTurns(c, rows, late, nobody); got != nil {
		t.Errorf("at the last moment: %v", got)
	}
	if got := nextTurns(c, rows, late+1, nobody); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("after that: %v", got)
	}
}

func TestGiveUpAt(t *testing.T) {
	at := func(s int64) int64 { return s * int64(time.Second) }
	seen := time.Unix(5000, 0)
	staged := &fleet.Command{Created: at(1000), DeliverySeconds: 60, NotAfter: at(4000), Expires: at(4300), MaxConcurrency: "1", MaxErrors: "100%", Targets: make([]fleet.NodeID, 3)}
	once := &fleet.Command{Created: at(1000), DeliverySeconds: 60, NotAfter: at(1060), Expires: at(1360), MaxConcurrency: "100%", MaxErrors: "100%", Targets: make([]fleet.NodeID, 3)}
	for _, tc := range []struct {
		name string
		c    *fleet.Command
		row  fleet.Invocation
		took bool
		want int64
	}{
		{"not reached", once, fleet.Invocation{State: fleet.Pending}, false, 1060},
		{"it said that it has it", once, fleet.Invocation{State: fleet.Pending}, true, 1360},
		{"in progress", once, fleet.Invocation{State: fleet.InProgress}, false, 1360},
		{"cancelled, not reached", once, fleet.Invocation{State: fleet.CancelPending}, false, 1060},
		{"cancelled", once, fleet.Invocation{State: fleet.CancelInProgress}, false, 1360},
		{"staged: not reached", staged, fleet.Invocation{State: fleet.Pending}, false, 1060},
		{"staged: it said that it has it", staged, fleet.Invocation{State: fleet.Pending}, true, 4000},
		{"staged", staged, fleet.Invocation{State: fleet.Staged}, false, 4000},
		{"released", staged, fleet.Invocation{State: fleet.Released, Released: at(2000)}, false, 2360},
		{"released at the end", staged, fleet.Invocation{State: fleet.Released, Released: at(3990)}, false, 4300},
		{"staged: in progress", staged, fleet.Invocation{State: fleet.InProgress, Released: at(2000)}, false, 2360},
		{"staged: cancelled in progress", staged, fleet.Invocation{State: fleet.CancelInProgress, Released: at(2000)}, false, 2360},
		{"staged: cancelled", staged, fleet.Invocation{State: fleet.CancelPending}, false, 5000},
	} {
		if got := giveUpAt(tc.c, &tc.row, tc.took, seen); got != at(tc.want) {
			t.Errorf("%s: %d, want %d", tc.name, got/at(1), tc.want)
		}
	}
}

// model is the hosts of one command, and what must never be.
type model struct {
	t       testing.TB
	w       *world
	c       *fleet.Command
	limit   int
	mayFail int
	takes   func() time.Duration         // how long it runs, ExecutionSeconds at most
	ending  func() fleet.InvocationState // how it ends

	mu      sync.Mutex // guards what follows
	seed    uint64
	rand    *rand.Rand
	hosts   []*modelHost
	stopped int64 // stamp when too many errors were first seen; 0: they are not
	running int
	peak    int
	begun   int
}

// modelHost is one host: what its journal and its memory hold.
type modelHost struct {
	node     int
	has      bool // the command is in its journal
	begun    bool
	runs     int
	running  bool
	ends     time.Time
	result   fleet.InvocationState // 0: none
	reported bool
	silent   bool // hears and says nothing
	turn     int64

	// toldBefore is that the word that its turn has come was said before too many
	// targets had failed, or by a leader that could not know: it may be late.
	toldBefore bool
}

func newModel(t testing.TB, w *world, c *fleet.Command, seed uint64) *model {
	m := &model{t: t, w: w, c: c, seed: seed, rand: rand.New(rand.NewPCG(seed, 44))}
	m.limit, m.mayFail = c.Limits()
	m.takes = func() time.Duration { return time.Duration(m.rand.IntN(100_000)) * time.Millisecond }
	m.ending = func() fleet.InvocationState {
		return []fleet.InvocationState{fleet.Failed, fleet.ExecutionTimedOut, fleet.Success}[min(2, m.rand.IntN(8))]
	}
	for _, id := range c.Targets {
		m.hosts = append(m.hosts, &modelHost{node: w.hosts[id]})
	}
	return m
}

func (m *model) row(i int) *fleet.Invocation { return m.w.store().Invocation(m.c.ID, uint32(i)) }

// begin runs the command on a host: what is promised is checked here, where it
// counts.
func (m *model) begin(i int) {
	h := m.hosts[i]
	h.begun, h.running = true, true
	h.runs++
	h.ends = time.Now().Add(m.takes())
	m.running++
	m.begun++
	m.peak = max(m.peak, m.running)
	if c := m.w.store().Command(m.c.ID); m.stopped != 0 && time.Now().UnixNano() > m.stopped && !h.toldBefore {
		m.t.Errorf("seed %d: host %d begins %s after too many errors: %v", m.seed, i, time.Duration(time.Now().UnixNano()-m.stopped), c.Counts)
	}
	if m.running > m.limit {
		m.t.Errorf("seed %d: %d hosts run, the limit is %d", m.seed, m.running, m.limit)
	}
	if row := m.row(i); row.Released == 0 {
		m.t.Errorf("seed %d: host %d runs and was never released: %+v", m.seed, i, row)
	}
	if row := m.row(i); m.stopped != 0 && row.Released > m.stopped {
		m.t.Errorf("seed %d: host %d was released %s after too many errors", m.seed, i, time.Duration(row.Released-m.stopped))
	}
	if h.runs > 1 {
		m.t.Errorf("seed %d: host %d runs for the %d. time", m.seed, i, h.runs)
	}
}

// live lets time pass on the hosts: what ends by now has ended.
func (m *model) live() {
	if m.stopped == 0 && m.w.store().Command(m.c.ID).Stopped() {
		m.stopped = time.Now().UnixNano()
	}
	for _, h := range m.hosts {
		if !h.running || time.Now().Before(h.ends) {
			continue
		}
		h.running = false
		m.running--
		h.result = m.ending()
	}
}

// began is how many hosts began it.
func (m *model) began() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.begun
}

// crash takes a host's memory, and what runs there.
func (m *model) crash(i int) {
	h := m.hosts[i]
	h.turn = 0
	if h.running {
		h.running = false
		m.running--
		h.result = fleet.Interrupted
	}
}

// check compares how it ended with what the hosts did.
func (m *model) check() {
	m.t.Helper()
	c := m.w.store().Command(m.c.ID)
	if c.Open() {
		m.t.Fatalf("seed %d: it never ends: %v", m.seed, m.w.states(c))
	}
	errs := 0
	for i, h := range m.hosts {
		row := m.row(i)
		if row.State.IsError() {
			errs++
		}
		if !row.State.Final() || h.runs > 0 && (row.State == fleet.Terminated || row.State == fleet.Undeliverable) ||
			h.reported && row.State != h.result && row.State != fleet.DeliveryTimedOut && row.State != fleet.Terminated {
			m.t.Errorf("seed %d: host %d ran %d times, said %s, and is %s", m.seed, i, h.runs, h.result, row.State)
		}
	}
	if over := errs - m.mayFail; over > m.limit {
		m.t.Errorf("seed %d: %d errors with a limit of %d and %d at once", m.seed, errs, m.mayFail, m.limit)
	}
	if c.Count(fleet.Terminated) > 0 != (c.Stopped() && c.Count(fleet.Terminated) > 0) {
		m.t.Errorf("seed %d: terminated without a reason: %v", m.seed, m.w.states(c))
	}
}

// TestPaceAgainstModel: leaders decide by nextTurns from what they see of the
// log, which may be old; their words to the hosts are lost, late, twice and in
// any order; hosts fall silent, crash and come back. There is a leader at any
// time, or two, or none. Whatever happens, not more than MaxConcurrency run, none
// runs twice, none begins that was not released, and every row ends.
func TestPaceAgainstModel(t *testing.T) {
	runs := uint64(1000)
	switch {
	case os.Getenv("FLEET_SCALE") != "":
		runs = 5000
	case testing.Short():
		runs = 200
	}
	const ofWorld = 100
	began, stopped, full := 0, 0, 0
	for first := uint64(0); first < runs; first += ofWorld {
		bubble(t, fmt.Sprint(first), 3+int(first/ofWorld)%10, func(t *testing.T, w *world) {
			for seed := first; seed < first+ofWorld; seed++ {
				m := paceOnce(t, w, seed)
				began += m.begun
				if w.store().Command(m.c.ID).Stopped() {
					stopped++
				}
				if m.peak == m.limit {
					full++
				}
				if t.Failed() {
					return
				}
			}
		})
	}
	if stopped < int(runs)/10 || full < int(runs)/4 || began < int(runs) {
		t.Errorf("of %d runs %d stopped and %d used all places, %d hosts began: they show little", runs, stopped, full, began)
	}
}

func paceOnce(t *testing.T, w *world, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 3))
	n := len(w.hosts)
	limit, mayFail := 1+r.IntN(n-1), r.IntN(n)
	c := w.paced(int(seed)+1, fmt.Sprint(limit), fmt.Sprint(mayFail))
	m := newModel(t, w, c, seed)
	decide := func(body entry.Body) {
		if _, err := w.decide(t.Context(), body); err != nil {
			t.Fatal(err)
		}
	}
	results := func(i int, s fleet.InvocationState) {
		decide(&entry.Results{Stamp: time.Now().UnixNano(), Command: c.ID, Attempt: 1, Rows: []fleet.Invocation{{Index: uint32(i), State: s, Code: -1}}})
	}
	type message struct {
		to    int
		order *ticket.Release // nil: the command itself
		stop  bool            // it is not to begin any more
	}
	speaker := &follower{hosts: map[uint32]*host{}}
	var air []message // words of leaders to hosts
	old := w.store().Snapshot()
	for w.store().Command(c.ID).Open() {
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		m.live()
		store := w.store()
		if r.IntN(8) == 0 {
			old = w.store().Snapshot() // what a leader that is cut off sees from now on
		}
		if r.IntN(4) == 0 {
			store = old
		}
		row := store.Command(c.ID)
		i := r.IntN(n)
		h := m.hosts[i]
		switch r.IntN(12) {
		case 0, 1, 2: // a leader decides
			if next := nextTurns(row, store.Invocations(c.ID), time.Now().UnixNano(), func(uint32) bool { return r.IntN(10) == 0 }); len(next) > 0 {
				decide(&entry.Release{Stamp: time.Now().UnixNano(), Command: c.ID, Attempt: 1, Indexes: next})
			}
		case 3, 4, 5: // and speaks
			for _, inv := range store.Invocations(c.ID) {
				what, wanted := speaker.order(row, &inv)
				switch {
				case wanted && what == orderDeliver:
					air = append(air, message{to: int(inv.Index)})
				case wanted && what == orderRelease:
					if row.Stopped() {
						t.Fatalf("seed %d: target %d is to begin after too many errors", seed, inv.Index)
					}
					air = append(air, message{to: int(inv.Index), order: ticket.ReleaseOf(row, fleetID, 0, inv.Released, []uint32{inv.Index})})
				case wanted && inv.State == fleet.Released:
					air = append(air, message{to: int(inv.Index), stop: true})
				}
			}
		case 6, 7, 8: // which a host may hear, or nobody
			for range min(len(air), 3) {
				k := r.IntN(len(air))
				word := air[k]
				if r.IntN(3) > 0 { // else it comes again
					air = slices.Delete(air, k, k+1)
				}
				h := m.hosts[word.to]
				if h.silent || r.IntN(5) == 0 {
					continue
				}
				switch now := time.Now().UnixNano(); {
				case word.stop:
					if !h.begun && h.result == 0 {
						h.result = fleet.Cancelled
					}
				case word.order == nil:
					if state := w.store().Invocation(c.ID, uint32(word.to)).State; state == fleet.Released && h.has && !h.begun {
						speaker.host(uint32(word.to)).waits = row.Stopped()
					}
					h.has = h.has || now <= c.NotAfter
					if h.has && !h.begun && r.IntN(4) > 0 {
						results(word.to, fleet.Staged)
					}
				case h.has && !h.begun && h.result == 0 && now > word.order.StartBy:
					h.result = fleet.DeliveryTimedOut
				case h.has && !h.begun && h.result == 0:
					h.turn, h.toldBefore = word.order.StartBy, true // what is said is checked where it is said
				}
			}
		case 9: // a worker is free
			if h.turn != 0 && !h.begun && h.result == 0 {
				if time.Now().UnixNano() > h.turn {
					h.result = fleet.DeliveryTimedOut
				} else if m.begin(i); r.IntN(3) > 0 && !h.silent {
					results(i, fleet.InProgress)
				}
			}
		case 10: // a host reports, once or again
			if h.result != 0 && !h.silent {
				h.reported = true
				results(i, h.result)
			}
		case 11:
			switch r.IntN(6) {
			case 0:
				if r.IntN(4) == 0 {
					m.crash(i)
				}
			case 1:
				h.silent = !h.silent && r.IntN(4) == 0
			case 2:
				decide(&entry.Expire{Stamp: time.Now().UnixNano(), Command: c.ID, Attempt: 1})
			case 3:
				if r.IntN(20) == 0 {
					w.cancel(c, h.node)
				}
			}
		}
		if held := w.store().Command(c.ID).Held(); held > limit {
			t.Fatalf("seed %d: %d places of %d are taken", seed, held, limit)
		}
		// A host whose row was given up must have ended by then.
		for k, h := range m.hosts {
			if h.running && m.row(k).State.Final() {
				t.Fatalf("seed %d: host %d runs, and its row is %s", seed, k, m.row(k).State)
			}
		}
	}
	time.Sleep(time.Hour) // what still runs ends
	m.live()
	m.check()
	return m
}

// paceHosts lets the hosts of a model answer a real dispatcher.
func (m *model) serve(lose func() bool) {
	w := m.w
	lost := errors.New("lost on the way")
	at := func(n int) (int, *modelHost) {
		i, _ := state.TargetIndex(m.c, node(n))
		return int(i), m.hosts[i]
	}
	answer := func(h *modelHost) *rpc.DeliverResponse {
		switch {
		case h.result != 0:
			return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: m.word(h)}
		case h.begun:
			return &rpc.DeliverResponse{State: rpc.DeliverAccepted}
		}
		return &rpc.DeliverResponse{State: rpc.DeliverStaged}
	}
	w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.live()
		_, h := at(n)
		if h.silent || lose() {
			return nil, lost
		}
		if !ticket.IsStaged(req.Ticket) {
			m.t.Errorf("host %d got a ticket that lets it begin at once", n)
		}
		h.has = true
		if lose() {
			return nil, lost
		}
		return answer(h), nil
	}
	w.turn = func(n int, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.live()
		i, h := at(n)
		if h.silent || lose() {
			return nil, lost
		}
		s, err := ticket.ParseSignedRelease(req.Release)
		if err == nil {
			err = s.Verify(w.store().Trust())
		}
		if err == nil {
			err = req.Validate()
		}
		if err != nil || s.Command != m.c.ID || !s.Covers(uint32(i)) || s.Root != ticket.Root(m.c.Targets) || s.Released != m.row(i).Released {
			m.t.Errorf("host %d got %+v, %v", n, s, err)
		}
		switch {
		case !h.has:
			return &rpc.DeliverResponse{State: rpc.DeliverNotHere}, nil
		case h.begun || h.result != 0:
		case time.Now().UnixNano() > s.StartBy:
			h.result = fleet.DeliveryTimedOut
		default:
			m.begin(i)
		}
		if lose() {
			return nil, lost
		}
		return answer(h), nil
	}
	w.stop = func(n int, _ *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.live()
		_, h := at(n)
		if h.silent || lose() {
			return nil, lost
		}
		if h.result == 0 {
			if h.running {
				h.running = false
				m.running--
			}
			if m.w.store().Command(m.c.ID).Stopped() && h.begun && m.heard(n) {
				m.t.Errorf("seed %d: host %d was told to end what ran", m.seed, n)
			}
			h.result = fleet.Cancelled
		}
		return answer(h), nil
	}
}

// word is a host's signed result. What never began has no start.
func (m *model) word(h *modelHost) []byte {
	return m.w.result(m.c, h.node, func(r *ticket.Result) {
		if r.State = h.result; h.runs == 0 {
			r.Started = 0
		}
	})
}

// heard reports whether a host's begin is known, and that no operator cancelled
// it.
func (m *model) heard(n int) bool {
	index, _ := state.TargetIndex(m.c, node(n))
	return m.row(int(index)).State == fleet.InProgress
}

// reports brings results to whoever leads, until all rows have ended.
func (m *model) reports(ctx context.Context, leader func() *Dispatcher, lose func() bool) {
	for m.w.store().Command(m.c.ID).Open() && ctx.Err() == nil {
		time.Sleep(200 * time.Millisecond)
		m.mu.Lock()
		m.live()
		var due []*modelHost
		for _, h := range m.hosts {
			if h.result != 0 && !h.reported && !h.silent && !lose() {
				due = append(due, h)
			}
		}
		m.mu.Unlock()
		for _, h := range due {
			d := leader()
			if d == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			_, err := d.Report(ctx, node(h.node), m.word(h), nil)
			cancel()
			m.mu.Lock()
			h.reported = h.reported || err == nil
			m.mu.Unlock()
		}
	}
}

// TestRollout is a rollout as a user wants it: two at a time, in waves, to its
// end.
func TestRollout(t *testing.T) {
	bubble(t, "", 8, func(t *testing.T, w *world) {
		c := w.paced(1, "4", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.serve(func() bool { return false })
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("it ends", w.ended(c))
		m.check()
		var waves []int
		for _, p := range w.proposals(entry.KindRelease) {
			waves = append(waves, len(p.body.(*entry.Release).Indexes))
		}
		if !slices.Equal(waves[:2], []int{1, 2}) || m.began() != 8 || w.states(c)[fleet.Success] != 8 {
			t.Errorf("waves of %v, states %v", waves, w.states(c))
		}
		for n := range 8 {
			wantTimes(t, "deliveries", w.delivered(n), seconds(0))
		}
	})
}

// steady lets all hosts take a second and end alike.
func (m *model) steady(s fleet.InvocationState) {
	m.takes = func() time.Duration { return time.Second }
	m.ending = func() fleet.InvocationState { return s }
}

// TestRolloutStops: after one error too many nothing begins, and those that
// wait are told not to.
func TestRolloutStops(t *testing.T) {
	bubble(t, "", 6, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "1")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Failed)
		m.serve(func() bool { return false })
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("it ends", w.ended(c))
		if got := w.states(c); got[fleet.Failed] != 2 || got[fleet.Terminated] != 4 || m.began() != 2 {
			t.Errorf("states %v, %d began", got, m.began())
		}
		synctest.Wait()
		time.Sleep(time.Second)
		for i, h := range m.hosts {
			if told := len(w.cancelledAt(h.node)); (told > 0) != (m.row(i).State == fleet.Terminated) || told > 1 {
				t.Errorf("host %d, %s, was told %d times that it is over", i, m.row(i).State, told)
			}
		}
		before := len(w.entries)
		time.Sleep(time.Hour)
		if len(w.entries) != before {
			t.Errorf("%d entries after its end", len(w.entries)-before)
		}
	})
}

// TestReleasedWhenItStops: two hosts were released and cannot be heard when one
// too many fails. When they are back the one that had begun goes on, and the other
// does not begin: whoever leads, and in whatever order they come.
func TestReleasedWhenItStops(t *testing.T) {
	for _, another := range []bool{false, true} {
		bubble(t, fmt.Sprintf("another leader %v", another), 6, func(t *testing.T, w *world) {
			c := w.paced(1, "3", "0")
			m := newModel(t, w, c, 1)
			m.steady(fleet.Failed)
			m.takes = func() time.Duration { return 20 * time.Second }
			m.serve(func() bool { return false })
			turn := w.turn
			w.turn = func(n int, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
				switch n {
				case m.hosts[1].node: // it reboots
					m.mu.Lock()
					m.hosts[1].silent = true
					m.mu.Unlock()
				case m.hosts[2].node: // it begins, and cannot say so
					a, err := turn(n, req)
					m.mu.Lock()
					m.hosts[2].silent = true
					m.mu.Unlock()
					if err == nil && a.State == rpc.DeliverAccepted {
						return nil, errors.New("lost on the way")
					}
				}
				return turn(n, req)
			}
			d, stop := w.lead()
			ctx, cancel := context.WithCancel(t.Context())
			defer func() { cancel(); time.Sleep(time.Second) }()
			var leader atomic.Pointer[Dispatcher]
			leader.Store(d)
			go m.reports(ctx, leader.Load, func() bool { return false })
			w.until("it stops", func() bool { return w.store().Command(c.ID).Stopped() })
			if m.row(1).State != fleet.Released || m.row(2).State != fleet.Released || m.began() != 2 {
				t.Errorf("rows %s and %s, %d began", m.row(1).State, m.row(2).State, m.began())
			}
			if another {
				stop()
				d, _ = w.lead()
				leader.Store(d)
			}
			m.mu.Lock()
			m.hosts[2].ends = time.Now().Add(time.Minute)
			m.hosts[1].silent, m.hosts[2].silent = false, false
			m.mu.Unlock()
			w.until("it ends", w.ended(c))
			if m.row(1).State != fleet.Terminated || m.row(2).State != fleet.Failed || m.began() != 2 {
				t.Errorf("rows %s and %s, %d began", m.row(1).State, m.row(2).State, m.began())
			}
			if told := w.cancelledAt(m.hosts[2].node); len(told) != 0 {
				t.Errorf("what runs was cancelled at %v", told)
			}
			m.check()
		})
	}
}

// TestNotHeardInTimeAndHoldsIt: a host took the command and nobody heard it in
// time. It is told that no turn of its comes, and holds nothing for weeks.
func TestNotHeardInTimeAndHoldsIt(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.takes = func() time.Duration { return 90 * time.Second } // so that the command lasts
		m.serve(func() bool { return false })
		host := w.host
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			a, err := host(n, req)
			if n == m.hosts[1].node {
				return nil, errors.New("lost on the way")
			}
			return a, err
		}
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("it ends", w.ended(c))
		if m.row(1).State != fleet.DeliveryTimedOut || m.hosts[1].result != fleet.Cancelled || len(w.cancelledAt(m.hosts[1].node)) != 1 {
			t.Errorf("%s, it said %s, told at %v", m.row(1).State, m.hosts[1].result, w.cancelledAt(m.hosts[1].node))
		}
		time.Sleep(time.Hour)
	})
}

// TestHeldAndNotWrittenInTime: a host said that it holds the command, and that
// could not be written down before the time to deliver was over. It is asked again.
func TestHeldAndNotWrittenInTime(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.serve(func() bool { return false })
		w.propose = func(body entry.Body) error {
			if body.Kind() == entry.KindResults && time.Now().UnixNano() <= c.ReachBy()+int64(time.Second) {
				return errors.New("no quorum")
			}
			return nil
		}
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("it ends", w.ended(c))
		if got := w.states(c); got[fleet.Success] != 2 {
			t.Errorf("states %v", got)
		}
		time.Sleep(time.Hour)
	})
}

// TestSilentAfterItsRelease: a host that was released and says nothing keeps its
// place until it must have ended. Then the next one has its turn.
func TestSilentAfterItsRelease(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.serve(func() bool { return false })
		turn := w.turn
		w.turn = func(n int, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
			if _, silent := state.TargetIndex(c, node(n)); silent && n == m.hosts[0].node {
				return nil, errors.New("nobody there")
			}
			return turn(n, req)
		}
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("the first is released", func() bool { return m.row(0).State == fleet.Released })
		over := time.Unix(0, c.OverBy(m.row(0).Released)).Add(Skew)
		time.Sleep(time.Until(over) - time.Second)
		if m.began() != 0 || m.row(0).State != fleet.Released {
			t.Errorf("%d began beside the silent one, which is %s", m.began(), m.row(0).State)
		}
		w.until("it ends", w.ended(c))
		if m.row(0).State != fleet.DeliveryTimedOut || m.began() != 2 {
			t.Errorf("states %v, %d began", w.states(c), m.began())
		}
	})
}

// TestReleasedAndForgotten: a host that lost what it took gets it again, and
// begins once.
func TestReleasedAndForgotten(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.serve(func() bool { return false })
		turn := w.turn
		w.turn = func(n int, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
			m.mu.Lock()
			if h := m.hosts[0]; h.node == n && len(w.delivered(n)) == 1 {
				h.has = false
			}
			m.mu.Unlock()
			return turn(n, req)
		}
		d, _ := w.lead()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("it ends", w.ended(c))
		if got := w.states(c); got[fleet.Success] != 2 || len(w.delivered(m.hosts[0].node)) != 2 {
			t.Errorf("states %v, delivered %v", got, w.delivered(m.hosts[0].node))
		}
	})
}

// TestHeldHostHasNoTurn: a host that nothing is to be sent to is passed over.
func TestHeldHostHasNoTurn(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.paced(1, "1", "100%")
		m := newModel(t, w, c, 1)
		m.steady(fleet.Success)
		m.serve(func() bool { return false })
		var mu sync.Mutex
		held := false
		d := New(func() Config {
			cfg := w.config()
			cfg.Hold = func(id fleet.NodeID) bool {
				mu.Lock()
				defer mu.Unlock()
				return held && w.hosts[id] == m.hosts[0].node
			}
			return cfg
		}())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Lead(ctx) }()
		defer func() { cancel(); <-done }()
		time.Sleep(5 * time.Millisecond) // all have it
		mu.Lock()
		held = true
		mu.Unlock()
		go m.reports(t.Context(), func() *Dispatcher { return d }, func() bool { return false })
		w.until("the others end", func() bool { return m.row(1).State.Final() && m.row(2).State.Final() })
		if m.row(0).State != fleet.Staged {
			t.Errorf("the held one is %s", m.row(0).State)
		}
		mu.Lock()
		held = false
		mu.Unlock()
		w.until("it ends", w.ended(c))
		if got := w.states(c); got[fleet.Success] != 3 {
			t.Errorf("states %v", got)
		}
	})
}

// TestDispatcherPacesAgainstModel drives real dispatchers: leaders come and go,
// words are lost both ways, hosts fall silent for a while and crash.
func TestDispatcherPacesAgainstModel(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 25
	}
	for seed := range seeds {
		bubble(t, fmt.Sprint(seed), 2+int(seed)%9, func(t *testing.T, w *world) {
			r := rand.New(rand.NewPCG(seed, 17))
			n := len(w.hosts)
			limit := 1 + r.IntN(n)
			mayFail := r.IntN(n)
			if limit == n {
				mayFail = 0
			}
			c := w.paced(1, fmt.Sprint(limit), fmt.Sprint(mayFail))
			m := newModel(t, w, c, seed)
			loss := r.IntN(3)
			lose := func() bool { return m.rand.IntN(10) < loss }
			m.serve(lose)
			var mu sync.Mutex
			var leader *Dispatcher
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var reporting sync.WaitGroup
			reporting.Go(func() {
				m.reports(ctx, func() *Dispatcher {
					mu.Lock()
					defer mu.Unlock()
					return leader
				}, lose)
			})
			for w.store().Command(c.ID).Open() {
				d, stop := w.lead()
				mu.Lock()
				leader = d
				mu.Unlock()
				for range 1 + r.IntN(5) {
					time.Sleep(time.Duration(r.IntN(40_000)) * time.Millisecond)
					m.mu.Lock()
					i := r.IntN(n)
					switch r.IntN(5) {
					case 0:
						m.crash(i)
					case 1:
						m.hosts[i].silent = !m.hosts[i].silent
					}
					m.mu.Unlock()
				}
				mu.Lock()
				leader = nil
				mu.Unlock()
				stop()
				time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
			}
			cancel()
			reporting.Wait()
			m.mu.Lock()
			defer m.mu.Unlock()
			time.Sleep(time.Hour)
			m.live()
			m.check()
		})
	}
}
