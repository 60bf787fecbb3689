package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// cancel has the operator cancel a command on some hosts, or on all.
func (w *world) cancel(c *fleet.Command, hosts ...int) {
	w.t.Helper()
	req := entry.CancelCommandV1{CommandId: string(c.ID)}
	for _, n := range hosts {
		req.InstanceIds = append(req.InstanceIds, string(node(n)))
	}
	request, err := json.Marshal(req)
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now()
	var nonce [16]byte
	w.set(func() { nonce = [16]byte{15: 1, 14: byte(len(w.entries)), 13: byte(len(w.entries) >> 8)} })
	w.must(&entry.CancelCommand{Authority: entry.Authority{Stamp: now.UnixNano(), Request: request, Proof: identity.SignProof(operatorKey, identity.Proof{
		Fleet: fleetID, Operator: "ada", Operation: "CancelCommand", Body: fleet.Sum(request), Nonce: nonce, NotAfter: now.Add(5 * time.Minute).UnixNano(),
	})}})
}

// stops is a host that has the command and begins to end it.
func stops(int, *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
	return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
}

// done is a host's answer with a result in a state.
func (w *world) done(c *fleet.Command, n int, s fleet.InvocationState) *rpc.DeliverResponse {
	return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: w.result(c, n, func(r *ticket.Result) { r.State = s })}
}

// cancelledAt is when cancels were sent to a host.
func (w *world) cancelledAt(n int) (at []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.cancels {
		if d.host == n {
			at = append(at, d.at)
		}
	}
	return at
}

// checkCancel is what a host checks before it ends a command.
func checkCancel(t *testing.T, w *world, c *fleet.Command, n int, req *rpc.CancelRequest) *ticket.SignedCancel {
	t.Helper()
	s, err := ticket.ParseSignedCancel(req.Cancel)
	if err == nil {
		err = s.Verify(w.store().Trust())
	}
	if err == nil {
		err = req.Validate()
	}
	if err != nil {
		t.Error(err)
		return &ticket.SignedCancel{}
	}
	if s.Command != c.ID || s.Attempt != c.Attempt || s.Created != c.Created || s.NotAfter != c.NotAfter || s.Expires != c.Expires ||
		!ticket.VerifyPath(s.Root, s.Targets, req.Index, node(n), req.Path) || !s.Covers(req.Index) {
		t.Errorf("host %d is not meant by %+v as target %d", n, s.Cancel, req.Index)
	}
	return s
}

func TestCancel(t *testing.T) {
	bubble(t, "all", 4, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			switch n {
			case 0:
				return nil, errors.New("nobody there")
			case 2:
				return w.done(c, 2, fleet.Success), nil
			}
			return accepts(n, req)
		}
		w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			if s := checkCancel(t, w, c, n, req); len(s.Indexes) != 0 {
				t.Errorf("a cancel of all names %v", s.Indexes)
			}
			switch n {
			case 0: // it never came
				return w.done(c, 0, fleet.Cancelled), nil
			case 3: // it ended by itself in this moment
				return w.done(c, 3, fleet.Failed), nil
			}
			return stops(n, req)
		}
		d, _ := w.lead()
		time.Sleep(2 * time.Second)
		w.cancel(c)
		synctest.Wait()
		want := map[int]fleet.InvocationState{0: fleet.Cancelled, 1: fleet.CancelInProgress, 2: fleet.Success, 3: fleet.Failed}
		for n, s := range want {
			if got := w.state(c, n); got != s {
				t.Errorf("host %d is %d, want %d", n, got, s)
			}
			if sent := len(w.cancelledAt(n)) > 0; sent == (n == 2) {
				t.Errorf("host %d: a cancel was sent: %v", n, sent)
			}
		}
		time.Sleep(time.Second)
		if _, err := d.Report(t.Context(), node(1), w.result(c, 1, func(r *ticket.Result) { r.State = fleet.Cancelled }), nil); err != nil {
			t.Fatal(err)
		}
		if c = w.store().Command(c.ID); c.Open() || c.Count(fleet.Cancelled) != 2 {
			t.Errorf("command %+v", c)
		}
		before := len(w.delivered(0))
		time.Sleep(time.Hour)
		if len(w.delivered(0)) != before || len(w.proposals(entry.KindExpire)) != 0 || len(w.proposals(entry.KindMint)) != 0 {
			t.Error("it goes on after its end")
		}
	})
	bubble(t, "some", 3, func(t *testing.T, w *world) {
		c := w.send(1)
		w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			if s := checkCancel(t, w, c, n, req); !slices.Equal(s.Indexes, []uint32{req.Index}) {
				t.Errorf("a cancel of target %d names %v", req.Index, s.Indexes)
			}
			return w.done(c, n, fleet.Cancelled), nil
		}
		w.lead()
		time.Sleep(time.Second)
		w.cancel(c, 1)
		synctest.Wait()
		if w.state(c, 1) != fleet.Cancelled || w.state(c, 0) != fleet.Pending {
			t.Errorf("states %v", w.states(c))
		}
		w.set(func() { w.host = accepts })
		time.Sleep(10 * time.Second)
		if w.state(c, 0) != fleet.InProgress || w.state(c, 2) != fleet.InProgress || len(w.cancelledAt(0))+len(w.cancelledAt(2)) != 0 {
			t.Errorf("states %v", w.states(c))
		}
	})
	bubble(t, "many", 600, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			time.Sleep(100 * time.Millisecond)
			return w.done(c, n, fleet.Cancelled), nil
		}
		w.lead()
		w.until("accepted", func() bool { return w.states(c)[fleet.InProgress] == 600 })
		w.cancel(c)
		begin := time.Now()
		w.until("ended", w.ended(c))
		if took := time.Since(begin); took > 2*time.Second || w.states(c)[fleet.Cancelled] != 600 {
			t.Errorf("after %s states %v", took, w.states(c))
		}
	})
}

// TestCancelUnreachable: as long as the host may be at it, its row is
// Cancelling, and the cancel is tried again.
func TestCancelUnreachable(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if n == 1 {
				return accepts(n, req)
			}
			return nil, errors.New("nobody there")
		}
		w.lead()
		time.Sleep(10 * time.Second)
		w.cancel(c)
		var at []time.Duration
		w.until("ended", w.ended(c))
		for _, p := range w.proposals(entry.KindExpire) {
			at = append(at, p.at)
		}
		wantTimes(t, "expired", at, []time.Duration{time.Minute + Skew + 1, time.Duration(c.Expires-c.Created) + Skew + 1})
		if w.state(c, 0) != fleet.Cancelled || w.state(c, 1) != fleet.DeliveryTimedOut {
			t.Errorf("states %v", w.states(c))
		}
		for n := range 2 {
			tries := w.cancelledAt(n)
			if len(tries) < 10 || tries[0] != 10*time.Second {
				t.Errorf("cancels to host %d at %v", n, tries)
			}
			for i, at := range tries[1:] {
				if at-tries[i] > lastRetry {
					t.Errorf("host %d had no cancel from %s to %s", n, tries[i], at)
				}
			}
		}
	})
}

// A host that answers "not ready" or refuses without a signature is asked
// again, with the newest trust.json.
func TestCancelNotReady(t *testing.T) {
	for name, resp := range map[string]*rpc.DeliverResponse{
		"not ready": {State: rpc.DeliverNotReady}, "refused": {State: rpc.DeliverRefused, Reason: "no voter signed it"},
	} {
		bubble(t, name, 1, func(t *testing.T, w *world) {
			c := w.send(1)
			w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
				if len(req.Trust) == 0 {
					return resp, nil
				}
				return w.done(c, n, fleet.Cancelled), nil
			}
			w.lead()
			synctest.Wait()
			w.cancel(c)
			time.Sleep(time.Second)
			wantTimes(t, "cancels", w.cancelledAt(0), seconds(0, 0)) // at once, with the trust.json
			if s := w.state(c, 0); s != fleet.Cancelled {
				t.Errorf("state %s", s)
			}
		})
	}
}

// A host that takes its time to kill is asked again without filling the log.
func TestCancelTakesItsTime(t *testing.T) {
	bubble(t, "", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host, w.stop = accepts, stops
		w.lead()
		time.Sleep(time.Second)
		w.cancel(c)
		time.Sleep(30 * time.Second)
		if n := len(w.cancelledAt(0)); n < 4 || n > 8 {
			t.Errorf("%d cancels in 30 s", n)
		}
		if n := len(w.proposals(entry.KindResults)); n != 1 {
			t.Errorf("%d entries say that the host has it", n)
		}
	})
}

// A delivery that hangs does not hold up the cancel, and its late answer does
// not hide it.
func TestCancelOvertakesADelivery(t *testing.T) {
	bubble(t, "", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		cfg := w.config()
		cfg.Deliver = func(ctx context.Context, _ fleet.NodeID, _ *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			<-ctx.Done()
			return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
		}
		w.stop = stops
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- New(cfg).Lead(ctx) }()
		time.Sleep(time.Second)
		w.cancel(c)
		time.Sleep(time.Second)
		if at := w.cancelledAt(0); len(at) == 0 || at[0] != time.Second {
			t.Errorf("cancels at %v", at)
		}
		if s := w.state(c, 0); s != fleet.CancelInProgress {
			t.Errorf("state %d", s)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// The next leader goes on: also where the last one never came to send anything.
func TestCancelNewLeader(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if n == 1 {
				return accepts(n, req)
			}
			return nil, errors.New("nobody there")
		}
		_, stop := w.lead()
		time.Sleep(time.Second)
		stop()
		w.cancel(c) // the leader dies after the commit
		w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			return w.done(c, n, fleet.Cancelled), nil
		}
		w.lead()
		time.Sleep(time.Second)
		if w.store().Command(c.ID).Open() || w.states(c)[fleet.Cancelled] != 2 {
			t.Errorf("states %v", w.states(c))
		}
		if n := len(w.delivered(0)); n != 3 { // of the first leader
			t.Errorf("%d deliveries", n)
		}
	})
}

func TestCancelIsSignedLater(t *testing.T) {
	bubble(t, "", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		w.stop = func(n int, _ *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			return w.done(c, n, fleet.Cancelled), nil
		}
		cfg := w.config()
		sign := cfg.SignCancel
		cfg.SignCancel = func(c *fleet.Command, indexes []uint32) ([]byte, error) {
			if w.now() < 5*time.Second {
				return nil, fleet.Errorf(fleet.Unavailable, "this host does not vote")
			}
			return sign(c, indexes)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		time.AfterFunc(time.Second, func() { w.cancel(c) })
		if err := New(cfg).Lead(ctx); err != nil {
			t.Error(err)
		}
		if at := w.cancelledAt(0); len(at) != 1 || at[0] < 5*time.Second || at[0] > 6*time.Second {
			t.Errorf("cancels at %v", at)
		}
	})
}

// agent is what a host promises, written down once more without a disk: at most
// one start, none after a cancel that it answered, one result that stays.
type agent struct {
	runs    int
	told    bool                  // a cancel was answered
	has     bool                  // the command
	ends    time.Time             // of its run
	result  fleet.InvocationState // 0: none yet
	unmet   bool                  // it was cancelled before it came
	crashed bool                  // while it ran
}

// TestDispatchAgainstModel lets leaders come and go, messages and answers get
// lost, and operators cancel, all in random order. What is promised of every
// row holds: one final state; Success and Failed only of what ran; Cancelled on
// the host's word, or once it may not begin any more.
func TestDispatchAgainstModel(t *testing.T) {
	rounds := uint64(60)
	if testing.Short() {
		rounds = 10
	}
	met := map[fleet.InvocationState]int{}
	for seed := range rounds {
		bubble(t, fmt.Sprintf("seed %d", seed), 6, func(t *testing.T, w *world) { modelRound(t, w, seed, met) })
	}
	for _, s := range []fleet.InvocationState{fleet.Success, fleet.Cancelled, fleet.Interrupted, fleet.DeliveryTimedOut} {
		if met[s] == 0 && !testing.Short() {
			t.Errorf("nothing ended as %s: the rounds test too little (%v)", s, met)
		}
	}
}

func modelRound(t *testing.T, w *world, seed uint64, met map[fleet.InvocationState]int) {
	r := rand.New(rand.NewPCG(seed, 77))
	var mu sync.Mutex // guards r and what follows
	const hosts = 6
	agents := [hosts]*agent{}
	away := [hosts]bool{}
	for n := range agents {
		agents[n] = &agent{}
		away[n] = r.IntN(5) == 0
	}
	loss := r.IntN(60) // of 100
	c := w.send(1)
	chance := func(percent int) bool { return r.IntN(100) < percent }
	// settle brings an agent to this moment.
	settle := func(a *agent) {
		if a.has && a.result == 0 && !time.Now().Before(a.ends) {
			a.result = fleet.Success
			if a.crashed {
				a.result = fleet.Interrupted
			}
		}
	}
	answer := func(n int, a *agent) *rpc.DeliverResponse {
		if a.result == 0 {
			return &rpc.DeliverResponse{State: rpc.DeliverAccepted}
		}
		return w.done(c, n, a.result)
	}
	w.set(func() {
		w.host = func(n int, _ *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			mu.Lock()
			defer mu.Unlock()
			if away[n] || chance(loss) {
				return nil, errors.New("lost on its way")
			}
			a := agents[n]
			settle(a)
			if !a.has && a.result == 0 {
				if time.Now().UnixNano() > c.NotAfter {
					a.result = fleet.DeliveryTimedOut
				} else {
					a.has, a.crashed = true, chance(10)
					a.ends = time.Now().Add(time.Duration(r.IntN(60)) * time.Second)
					a.runs++
					if a.told {
						t.Errorf("host %d starts what it was told not to", n)
					}
				}
			}
			if chance(loss) {
				return nil, errors.New("answer lost")
			}
			return answer(n, a), nil
		}
		w.stop = func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			checkCancel(t, w, c, n, req)
			mu.Lock()
			defer mu.Unlock()
			if away[n] || chance(loss) {
				return nil, errors.New("lost on its way")
			}
			a := agents[n]
			settle(a)
			a.told = true
			switch {
			case a.result != 0:
			case !a.has:
				a.result, a.unmet = fleet.Cancelled, true
			default:
				a.result = fleet.Cancelled // killed
			}
			if chance(loss) {
				return nil, errors.New("answer lost")
			}
			return answer(n, a), nil
		}
	})
	var d *Dispatcher
	stop := func() {}
	cancelled := [hosts]bool{}
	reported := [hosts]bool{}
	for step := 0; w.store().Command(c.ID).Open(); step++ {
		if step > 3000 {
			t.Fatalf("seed %d: not ended after %s: %v", seed, w.now(), w.states(c))
		}
		mu.Lock()
		what, host, later := r.IntN(40), r.IntN(hosts), time.Duration(r.IntN(3000))*time.Millisecond
		if what < 3 {
			away[host] = !away[host] && chance(50)
		}
		var ready []int // hosts with a result that the quorum does not have
		for n, a := range agents {
			settle(a)
			if a.result != 0 && !a.unmet && a.has && !reported[n] && !away[n] && !chance(loss) {
				ready = append(ready, n)
			}
		}
		mu.Unlock()
		switch {
		case what == 3 && d != nil:
			stop()
			d = nil
		case d == nil && what < 20:
			d, stop = w.lead()
		case what == 21:
			cancelled[host] = true
			w.cancel(c, host)
		case what == 22 && step > 5:
			cancelled = [hosts]bool{true, true, true, true, true, true}
			w.cancel(c)
		}
		if d != nil {
			for _, n := range ready {
				ctx, give := context.WithTimeout(t.Context(), time.Minute)
				mu.Lock()
				result := agents[n].result
				mu.Unlock()
				if _, err := d.Report(ctx, node(n), w.result(c, n, func(r *ticket.Result) { r.State = result }), nil); err == nil {
					reported[n] = true
				}
				give()
			}
		}
		time.Sleep(later)
	}
	if d != nil {
		stop()
	}
	mu.Lock()
	defer mu.Unlock()
	for n, a := range agents {
		index, _ := state.TargetIndex(c, node(n))
		row := w.store().Invocation(c.ID, index)
		met[row.State]++
		byHost := len(row.Signature) > 0
		switch {
		case a.runs > 1:
			t.Errorf("host %d ran it %d times", n, a.runs)
		case byHost && row.State != a.result:
			t.Errorf("row %d is %s, the host says %s", n, row.State, a.result)
		case row.State == fleet.Success && (a.runs != 1 || !byHost):
			t.Errorf("row %d is Success, the host ran it %d times", n, a.runs)
		case row.State == fleet.Cancelled && !cancelled[n]:
			t.Errorf("row %d is Cancelled, which nobody asked for", n)
		case row.State == fleet.Cancelled && !byHost && time.Now().UnixNano() <= c.NotAfter+int64(Skew):
			t.Errorf("row %d is Cancelled on nobody's word, %s after the command was made", n, w.now())
		case !byHost && row.State != fleet.Cancelled && row.State != fleet.DeliveryTimedOut:
			t.Errorf("row %d is %s on nobody's word", n, row.State)
		}
	}
}
