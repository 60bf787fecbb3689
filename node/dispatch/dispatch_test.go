package dispatch

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// TestCommand is the life of a command: delivered to all, run, reported.
func TestCommand(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.send(1)
		detail := []byte("what the steps printed")
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			checkDelivery(t, w, c, n, req)
			if n == 2 { // has done it before and lost the acknowledgement
				return &rpc.DeliverResponse{State: rpc.DeliverDone, Result: w.result(c, 2)}, nil
			}
			return accepts(n, req)
		}
		d, _ := w.lead()
		time.Sleep(time.Second)
		if got := w.states(c); got[fleet.InProgress] != 2 || got[fleet.Success] != 1 {
			t.Errorf("states %v", got)
		}
		for n, s := range map[int]fleet.InvocationState{0: fleet.Success, 1: fleet.Failed} {
			result := w.result(c, n, func(r *ticket.Result) {
				r.State, r.Code, r.Detail, r.DetailSize, r.Reason = s, int32(n), fleet.Sum(detail), uint32(len(detail)), "because"
			})
			index, err := d.Report(t.Context(), w.row(n).ID, result, detail)
			if err != nil || index == 0 {
				t.Fatalf("report of host %d: %d, %v", n, index, err)
			}
			again, err := d.Report(t.Context(), w.row(n).ID, result, nil)
			if err != nil || again != index {
				t.Errorf("reported again: %d, %v; want %d", again, err, index)
			}
			at, _ := state.TargetIndex(c, w.row(n).ID)
			row := w.store().Invocation(c.ID, at)
			if row.State != s || row.Code != int32(n) || row.Detail != fleet.Sum(detail) || row.Reason != "because" || len(row.Signature) != 64 || row.Decided != index {
				t.Errorf("row of host %d: %+v", n, row)
			}
		}
		if c = w.store().Command(c.ID); c.Open() || c.Counts[fleet.Success] != 2 || c.Counts[fleet.Failed] != 1 {
			t.Errorf("command %+v", c)
		}
		if len(w.kept) != 2 || !bytes.Equal(w.kept[0], detail) {
			t.Errorf("kept %q", w.kept)
		}
		time.Sleep(time.Hour)
		for n := range 3 {
			wantTimes(t, "deliveries", w.delivered(n), seconds(0))
		}
		if n := len(w.proposals(entry.KindExpire)); n != 0 {
			t.Errorf("%d proposals to expire it", n)
		}
	})
}

// checkDelivery is what a host checks before it takes a command.
func checkDelivery(t *testing.T, w *world, c *fleet.Command, n int, req *rpc.DeliverRequest) {
	t.Helper()
	signed, err := ticket.ParseSigned(req.Ticket)
	if err != nil {
		t.Error(err)
		return
	}
	tk, err := signed.Verify(w.store().Trust())
	if err != nil {
		t.Error(err)
		return
	}
	if !ticket.VerifyPath(tk.Root, tk.Targets, req.Index, w.row(n).ID, req.Path) {
		t.Errorf("host %d is not target %d of the ticket", n, req.Index)
	}
	if tk.Command != c.ID || tk.Document != fleet.Sum(req.Document) || tk.Parameters != fleet.Sum(req.Parameters) || req.DocumentName != c.DocumentName {
		t.Errorf("delivery of %+v with %q, %q", tk, req.DocumentName, req.Document)
	}
	if err := req.Validate(); err != nil {
		t.Error(err)
	}
}

// TestUnreachable: a host that never answers is tried less and less often until
// it may no longer start, and given up when its clock cannot say otherwise.
func TestUnreachable(t *testing.T) {
	tries := seconds(0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 25.75, 35.75, 45.75, 55.75)
	bubble(t, "one of one", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.lead()
		w.until("ended", w.ended(c))
		wantTimes(t, "deliveries", w.delivered(0), tries)
		expire := w.proposals(entry.KindExpire)
		if len(expire) != 1 || expire[0].at != time.Minute+Skew+1 {
			t.Errorf("expired by %v", expire)
		}
		if s := w.state(c, 0); s != fleet.DeliveryTimedOut {
			t.Errorf("state %s", s)
		}
	})
	bubble(t, "one of two", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if n == 1 {
				return accepts(n, req)
			}
			return nil, errors.New("nobody there")
		}
		w.lead()
		w.until("ended", w.ended(c))
		wantTimes(t, "deliveries", w.delivered(0), tries)
		wantTimes(t, "deliveries", w.delivered(1), seconds(0))
		// Not reached: after not-after. Reached, and never heard of again:
		// after the command expired.
		var at []time.Duration
		for _, p := range w.proposals(entry.KindExpire) {
			at = append(at, p.at)
		}
		expires := time.Duration(c.Expires - c.Created)
		wantTimes(t, "expired", at, []time.Duration{time.Minute + Skew + 1, expires + Skew + 1})
		if got := w.states(c); got[fleet.DeliveryTimedOut] != 2 {
			t.Errorf("states %v", got)
		}
	})
	bubble(t, "slow to fail", 1, func(t *testing.T, w *world) {
		w.send(1)
		cfg := w.config()
		leads, cancel := context.WithTimeout(t.Context(), 5*deliverTimeout)
		defer cancel()
		tries := 0
		cfg.Deliver = func(ctx context.Context, _ fleet.NodeID, _ *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			begin := time.Now()
			tries++
			<-ctx.Done()
			if took := time.Since(begin); took != deliverTimeout && leads.Err() == nil {
				t.Errorf("a delivery was given up after %s, want %s", took, deliverTimeout)
			}
			return nil, ctx.Err()
		}
		if err := New(cfg).Lead(leads); err != nil {
			t.Error(err)
		}
		if tries < 3 {
			t.Errorf("%d tries", tries)
		}
	})
}

func TestNotReady(t *testing.T) {
	for _, tc := range []struct {
		name string
		resp *rpc.DeliverResponse
	}{
		{"not ready", &rpc.DeliverResponse{State: rpc.DeliverNotReady, Reason: "no fleet time"}},
		{"refused without a signature", &rpc.DeliverResponse{State: rpc.DeliverRefused, Reason: "unknown voter"}},
		{"done without a signature", &rpc.DeliverResponse{State: rpc.DeliverDone}},
		{"garbage instead of a result", &rpc.DeliverResponse{State: rpc.DeliverDone, Result: []byte("\xdd\xff\xff\xff\xff")}},
		{"a state of the next release", &rpc.DeliverResponse{State: 9}},
	} {
		bubble(t, tc.name, 1, func(t *testing.T, w *world) {
			c := w.send(1)
			w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
				if w.now() < 5*time.Second {
					return tc.resp, nil
				}
				return accepts(n, req)
			}
			w.lead()
			time.Sleep(20 * time.Second)
			asks := tc.resp.State != 9 && tc.resp.Result == nil
			want := seconds(0, 0.25, 0.75, 1.75, 3.75, 7.75)
			if asks {
				want = seconds(0, 0, 0.5, 1.5, 3.5, 7.5) // with the trust.json at once, but once
			}
			wantTimes(t, "deliveries", w.delivered(0), want)
			if s := w.state(c, 0); s != fleet.InProgress {
				t.Errorf("state %s", s)
			}
			bare := len(w.deliveries[0].req.Trust) == 0
			again := bytes.Equal(w.deliveries[1].req.Trust, w.store().Trust().Raw())
			if !bare || again != asks {
				t.Errorf("trust.json in the first delivery %v, in the second %v; want it in the second: %v", !bare, again, asks)
			}
		})
	}
}

// TestNewerTrust: a host that does not accept the ticket is asked again as soon
// as there is a newer trust.json, however long it has waited by then.
func TestNewerTrust(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if trust, err := identity.ParseTrust(req.Trust, rootKey.Public()); err == nil && trust.Version == 2 {
				return accepts(n, req)
			}
			return &rpc.DeliverResponse{State: rpc.DeliverRefused, Reason: "0 of 1 needed voters signed it (trust version 1)"}, nil
		}
		w.lead()
		time.Sleep(16 * time.Second) // tries are 8 s apart
		before := len(w.delivered(0))
		next, err := identity.ParseTrust(trustJSON(t, 2, 3), rootKey.Public())
		if err != nil {
			t.Fatal(err)
		}
		txn := w.store().Write() // not a change of voters is tested here
		txn.PutTrust(next)
		txn.Commit()
		time.Sleep(200 * time.Millisecond)
		if s := w.state(c, 0); s != fleet.InProgress {
			t.Errorf("0.2 s after a newer trust.json: %s after %d more deliveries", s, len(w.delivered(0))-before)
		}
	})
}

// TestSaid: the row of a host that answered, and did not take the command, says
// what it answered; that of one that was not reached does not.
func TestSaid(t *testing.T) {
	bubble(t, "", 3, func(t *testing.T, w *world) {
		c := w.send(1)
		long := strings.Repeat("ü", 300)
		w.host = func(n int, _ *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			switch {
			case n == 0 && w.now() < 50*time.Second:
				return &rpc.DeliverResponse{State: rpc.DeliverNotReady, Reason: "the disk of /d is full"}, nil
			case n == 1:
				return &rpc.DeliverResponse{State: rpc.DeliverNotReady, Reason: long}, nil
			}
			return nil, errors.New("nobody there")
		}
		w.lead()
		w.until("ended", w.ended(c))
		for n, want := range []string{"its last answer: not ready: the disk of /d is full", "its last answer: not ready: üü", "the host was not reached"} {
			index, _ := state.TargetIndex(c, w.row(n).ID)
			row := w.store().Invocation(c.ID, index)
			if row.State != fleet.DeliveryTimedOut || !strings.Contains(row.Reason, want) || !utf8.ValidString(row.Reason) {
				t.Errorf("host %d: %s %q, want %q", n, row.State, row.Reason, want)
			}
		}
	})
}

// TestRefusedByWord: a host that may not start it says so, signed.
func TestRefusedByWord(t *testing.T) {
	bubble(t, "", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(int, *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			return &rpc.DeliverResponse{State: rpc.DeliverRefused, Result: w.result(c, 0, func(r *ticket.Result) {
				r.State, r.Code, r.Started, r.Reason = fleet.Undeliverable, -1, 0, "no such user"
			})}, nil
		}
		w.lead()
		synctest.Wait()
		if w.store().Command(c.ID).Open() || w.state(c, 0) != fleet.Undeliverable {
			t.Errorf("state %s", w.state(c, 0))
		}
	})
}

// TestOnlyPending: a new leader goes on from the rows.
func TestOnlyPending(t *testing.T) {
	bubble(t, "", 4, func(t *testing.T, w *world) {
		c := w.send(1)
		rows := map[int]fleet.InvocationState{1: fleet.InProgress, 2: fleet.Success}
		for n, s := range rows {
			at, _ := state.TargetIndex(c, w.row(n).ID)
			w.must(&entry.Results{Stamp: time.Now().UnixNano(), Command: c.ID, Attempt: 1, Rows: []fleet.Invocation{{Index: at, State: s}}})
		}
		w.host = accepts
		w.lead()
		time.Sleep(time.Second)
		for n := range 4 {
			if _, has := rows[n]; has != (len(w.delivered(n)) == 0) {
				t.Errorf("host %d, in state %s, was delivered to %d times", n, rows[n], len(w.delivered(n)))
			}
		}
	})
}

func TestNewLeader(t *testing.T) {
	bubble(t, "delivers again what no row shows", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		w.propose = func(b entry.Body) error {
			if b.Kind() == entry.KindResults {
				return fleet.Errorf(fleet.NotLeader, "lost")
			}
			return nil
		}
		_, stop := w.lead()
		time.Sleep(time.Second)
		stop()
		if got := w.states(c); got[fleet.Pending] != 2 {
			t.Fatalf("states %v", got)
		}
		w.propose = nil
		w.lead()
		time.Sleep(time.Second)
		if got := w.states(c); got[fleet.InProgress] != 2 {
			t.Errorf("states %v", got)
		}
		wantTimes(t, "deliveries", w.delivered(0), seconds(0, 1))
	})
	bubble(t, "after not-after", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		time.Sleep(61 * time.Second) // nobody led
		w.host = accepts
		w.lead()
		time.Sleep(time.Second)
		if n := len(w.delivered(0)); n != 0 {
			t.Errorf("%d deliveries after not-after", n)
		}
		c = w.store().Command(c.ID)
		if c.Mint.N != 1 {
			t.Errorf("mint %d for nobody", c.Mint.N)
		}
	})
	bubble(t, "is stopped while it waits", 1, func(t *testing.T, w *world) {
		w.send(1)
		_, stop := w.lead()
		time.Sleep(10 * time.Second)
		begin := time.Now()
		stop()
		if took := time.Since(begin); took != 0 {
			t.Errorf("it took %s to stop", took)
		}
	})
	bubble(t, "follows commands that come later", 1, func(t *testing.T, w *world) {
		w.host = accepts
		w.lead()
		time.Sleep(time.Minute)
		a, b := w.send(1), w.send(2)
		time.Sleep(time.Second)
		if w.state(a, 0) != fleet.InProgress || w.state(b, 0) != fleet.InProgress {
			t.Errorf("states %s, %s", w.state(a, 0), w.state(b, 0))
		}
	})
}

// TestRemint: a mint that is too old to be signed is followed by another, and
// the tickets carry it.
func TestRemint(t *testing.T) {
	long := func(w *world) *fleet.Command { // an hour to deliver it
		c := *w.send(1)
		c.DeliverySeconds += 3600
		c.NotAfter, c.Expires = c.NotAfter+int64(time.Hour), c.Expires+int64(time.Hour)
		txn := w.store().Write()
		txn.PutCommand(&c)
		txn.Commit()
		return &c
	}
	bubble(t, "new leader", 1, func(t *testing.T, w *world) {
		c := long(w)
		time.Sleep(10 * time.Minute)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			checkDelivery(t, w, c, n, req)
			return accepts(n, req)
		}
		w.lead()
		time.Sleep(time.Second)
		mints := w.proposals(entry.KindMint)
		if len(mints) != 1 || mints[0].body.(*entry.Mint).N != 2 || mints[0].body.(*entry.Mint).NotBefore != time.Now().Add(-time.Second).UnixNano() {
			t.Errorf("mints %+v", mints)
		}
		signed, err := ticket.ParseSigned(w.deliveries[0].req.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		if tk, err := ticket.Parse(signed.Ticket); err != nil || tk.Mint != 2 {
			t.Errorf("ticket %+v, %v", tk, err)
		}
	})
	bubble(t, "the mint is refused", 1, func(t *testing.T, w *world) {
		long(w)
		time.Sleep(10 * time.Minute)
		w.propose = func(b entry.Body) error {
			if b.Kind() == entry.KindMint && w.now() < 10*time.Minute+time.Second {
				return fleet.Errorf(fleet.Throttled, "too many proposals")
			}
			return nil
		}
		w.host = accepts
		w.lead()
		time.Sleep(10 * time.Second)
		wantTimes(t, "deliveries", w.delivered(0), []time.Duration{10*time.Minute + 1750*time.Millisecond})
	})
	bubble(t, "too few voters sign", 1, func(t *testing.T, w *world) {
		w.send(1)
		cfg := w.config()
		collect := cfg.Collect
		cfg.Collect = func(ctx context.Context, c *fleet.Command) (*ticket.Signed, error) {
			if w.now() < 3*time.Second {
				return nil, fleet.Errorf(fleet.Unavailable, "too few")
			}
			return collect(ctx, c)
		}
		w.host = accepts
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := New(cfg).Lead(ctx); err != nil {
			t.Error(err)
		}
		wantTimes(t, "deliveries", w.delivered(0), seconds(3.75))
		if n := len(w.proposals(entry.KindMint)); n != 0 {
			t.Errorf("%d mints; want none while the first is fresh", n)
		}
	})
	bubble(t, "the quorum grew", 3, func(t *testing.T, w *world) {
		c := long(w)
		w.lead()
		time.Sleep(2 * time.Minute) // the ticket has one signature
		w.must(&entry.Trust{Stamp: time.Now().UnixNano(), Trust: trustJSON(t, 2, 3)})
		w.set(func() {
			w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
				checkDelivery(t, w, c, n, req) // two signatures are needed now
				return accepts(n, req)
			}
		})
		time.Sleep(time.Minute)
		if got := w.states(c); got[fleet.InProgress] != 3 {
			t.Errorf("states %v", got)
		}
		if mint := w.store().Command(c.ID).Mint.N; mint != 2 {
			t.Errorf("mint %d, want 2", mint)
		}
	})
}

// TestLostMark: a host took the command and no row says so: it is asked again,
// so that it is not given up as never reached.
func TestLostMark(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if n == 1 {
				return accepts(n, req)
			}
			return nil, errors.New("nobody there")
		}
		w.propose = func(b entry.Body) error {
			if b.Kind() == entry.KindResults && w.now() < time.Second {
				return fleet.Errorf(fleet.Throttled, "too many proposals")
			}
			return nil
		}
		d, _ := w.lead()
		time.Sleep(3 * time.Minute)
		wantTimes(t, "deliveries", w.delivered(1), []time.Duration{0, redeliver})
		if s := w.state(c, 1); s != fleet.InProgress {
			t.Errorf("state %s; it was given up while it ran", s)
		}
		if _, err := d.Report(t.Context(), w.row(1).ID, w.result(c, 1), nil); err != nil || w.state(c, 1) != fleet.Success {
			t.Errorf("reported: %v, state %s", err, w.state(c, 1))
		}
	})
	bubble(t, "of all hosts", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		w.propose = func(b entry.Body) error {
			if b.Kind() == entry.KindResults && w.now() < time.Second {
				return fleet.Errorf(fleet.Throttled, "too many proposals")
			}
			return nil
		}
		w.lead()
		time.Sleep(10 * time.Second)
		wantTimes(t, "deliveries", w.delivered(0), []time.Duration{0, redeliver})
		if s := w.state(c, 0); s != fleet.InProgress {
			t.Errorf("state %s", s)
		}
	})
}

// TestSilentHostHoldsNobodyUp: one host takes the call and says nothing, another
// is not ready at first; each has its own pace.
func TestSilentHostHoldsNobodyUp(t *testing.T) {
	bubble(t, "", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			if n == 0 {
				time.Sleep(deliverTimeout)
				return nil, errors.New("silent")
			}
			if w.now() < time.Second {
				return &rpc.DeliverResponse{State: rpc.DeliverNotReady, Reason: "no fleet time"}, nil
			}
			return accepts(n, req)
		}
		_, stop := w.lead()
		time.Sleep(3 * time.Second)
		if s := w.state(c, 1); s != fleet.InProgress {
			t.Errorf("the host that was ready after a second is %s after three", s)
		}
		stop()
	})
}

func TestDeliveriesAreBounded(t *testing.T) {
	bubble(t, "", 600, func(t *testing.T, w *world) {
		c := w.send(1)
		var under, most atomic.Int64
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			now := under.Add(1)
			defer under.Add(-1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}
			time.Sleep(time.Second)
			return accepts(n, req)
		}
		_, stop := w.lead()
		w.until("accepted", func() bool { return w.states(c)[fleet.InProgress] == 600 })
		if most.Load() != maxOfCommand {
			t.Errorf("%d deliveries of one command at once, want %d", most.Load(), maxOfCommand)
		}
		// 600 rows of three shards: a handful of entries, not 600.
		if n := len(w.proposals(entry.KindResults)); n > 12 {
			t.Errorf("%d entries for 600 rows", n)
		}
		stop()
	})
	bubble(t, "and cut short", 600, func(t *testing.T, w *world) {
		w.send(1)
		w.host = func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			time.Sleep(time.Second)
			return accepts(n, req)
		}
		_, stop := w.lead()
		time.Sleep(500 * time.Millisecond)
		stop() // checks that no slot stays taken
	})
}

// TestAccept is what host 1 could send about a command, and others in its name.
func TestAccept(t *testing.T) {
	detail := []byte("detail")
	for _, tc := range []struct {
		name   string
		change func(r *ticket.Result)
		sign   int // number of the key that signs
		from   int // number of the host that the channel is of
		detail []byte
		damage func([]byte) []byte
		kind   fleet.Kind // Other: accepted
		part   string
	}{
		{name: "its own", sign: 1, from: 1},
		{name: "with details", sign: 1, from: 1, detail: detail, change: func(r *ticket.Result) { r.Detail, r.DetailSize = fleet.Sum(detail), 6 }},
		{name: "details to follow", sign: 1, from: 1, change: func(r *ticket.Result) { r.Detail, r.DetailSize = fleet.Sum(detail), 6 }},
		{name: "cancelled", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.Cancelled }},
		{name: "timed out by its own word", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.DeliveryTimedOut }},
		{name: "interrupted", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.Interrupted }},

		{name: "another host's, passed on", sign: 2, from: 1, change: func(r *ticket.Result) { r.Node, r.Index = node(2), 2 },
			kind: fleet.Unauthenticated, part: "not signed by"},
		{name: "in another host's name", sign: 1, from: 1, change: func(r *ticket.Result) { r.Node = node(2) }, kind: fleet.Unauthenticated, part: "not signed by"},
		{name: "over another host's channel", sign: 1, from: 2, kind: fleet.Unauthenticated, part: "not signed by"},
		{name: "signed with another key", sign: 2, from: 1, kind: fleet.Unauthenticated, part: "not signed by"},
		{name: "altered", sign: 1, from: 1, damage: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, kind: fleet.Unauthenticated, part: "not signed by"},
		{name: "cut off", sign: 1, from: 1, damage: func(b []byte) []byte { return b[:len(b)-1] }, kind: fleet.Invalid, part: "cannot be read"},
		{name: "from a stranger", sign: 9, from: 9, change: func(r *ticket.Result) { r.Node = node(9) }, kind: fleet.Denied, part: "not enrolled"},
		{name: "another fleet", sign: 1, from: 1, change: func(r *ticket.Result) { r.Fleet = fleet.IDOf(key('R', 1).Public()) }, kind: fleet.Denied, part: "another fleet"},
		{name: "another command", sign: 1, from: 1, change: func(r *ticket.Result) { r.Command = "00000000-0000-4000-8000-000000000002" },
			kind: fleet.Denied, part: "the result is for command 00000000-0000-4000-8000-000000000002 attempt 1"},
		{name: "another attempt", sign: 1, from: 1, change: func(r *ticket.Result) { r.Attempt = 2 }, kind: fleet.Denied, part: "attempt 2"},
		{name: "another's place", sign: 1, from: 1, change: func(r *ticket.Result) { r.Index = (r.Index + 1) % 3 }, kind: fleet.Denied, part: "is not target"},
		{name: "no place", sign: 1, from: 1, change: func(r *ticket.Result) { r.Index = 3 }, kind: fleet.Denied, part: "is not target 3"},
		{name: "a place far out", sign: 1, from: 1, change: func(r *ticket.Result) { r.Index = 1<<32 - 1 }, kind: fleet.Denied, part: "is not target"},
		{name: "still running", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.InProgress }, kind: fleet.Invalid, part: "not final"},
		{name: "never begun", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.Pending }, kind: fleet.Invalid, part: "not final"},
		{name: "a state of the next release", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = 99 }, kind: fleet.Invalid, part: "not final"},
		{name: "what only the quorum says", sign: 1, from: 1, change: func(r *ticket.Result) { r.State = fleet.Terminated }, kind: fleet.Invalid, part: "cannot report"},
		{name: "other details", sign: 1, from: 1, detail: []byte("others"), change: func(r *ticket.Result) { r.Detail, r.DetailSize = fleet.Sum(detail), 6 },
			kind: fleet.Denied, part: "not those that the result names"},
		{name: "details that it does not name", sign: 1, from: 1, detail: detail, kind: fleet.Denied, part: "not those that the result names"},
		{name: "a time after all times", sign: 1, from: 1, change: func(r *ticket.Result) { r.Ended = 1<<63 - 1 }, kind: fleet.Invalid, part: "time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 3)
			c := w.send(1)
			r := ticket.Result{Fleet: fleetID, Command: c.ID, Attempt: 1, Node: node(1), State: fleet.Failed, Code: 7, Started: 5, Ended: 6, Reason: "why"}
			r.Index, _ = state.TargetIndex(c, node(1))
			if tc.change != nil {
				tc.change(&r)
			}
			b := sign(t, key('A', tc.sign), r)
			if tc.damage != nil {
				b = tc.damage(b)
			}
			row, err := Accept(w.store(), c, node(tc.from), b, tc.detail)
			if tc.kind == fleet.Other {
				if err != nil || row.State != r.State || row.Index != r.Index || row.Code != 7 || row.Started != 5 || row.Ended != 6 ||
					row.Reason != "why" || row.Detail != r.Detail || row.DetailSize != r.DetailSize || row.Decided != 0 {
					t.Fatalf("row %+v, %v", row, err)
				}
				if !identity.Verify(key('A', 1).Public(), identity.UseResult, r.Encode(), row.Signature) {
					t.Error("the row does not hold the host's signature")
				}
				w.must(&entry.Results{Stamp: c.Created, Command: c.ID, Attempt: 1, Rows: []fleet.Invocation{row}})
				return
			}
			if err == nil {
				t.Fatalf("accepted as %+v", row)
			}
			if fleet.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("got %q of kind %s; want kind %s with %q", err, fleet.KindOf(err), tc.kind, tc.part)
			}
			if w.state(c, 1) != fleet.Pending {
				t.Error("the row changed")
			}
		})
	}
}

func node(n int) fleet.NodeID { return fleet.NodeIDOf(key('A', n).Public()) }

// sign signs a result, also one that ticket.SignResult would not.
func sign(t *testing.T, k identity.PrivateKey, r ticket.Result) []byte {
	t.Helper()
	payload := r.Encode()
	b := identity.EncodeSigned(payload, k.Sign(identity.UseResult, payload))
	if good := ticket.SignResult(k, r); good != nil && !bytes.Equal(b, good) {
		t.Fatal("signed otherwise than ticket.SignResult")
	}
	return b
}

func TestReport(t *testing.T) {
	bubble(t, "refused", 2, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		d, _ := w.lead()
		unknown := *c
		unknown.ID = "00000000-0000-4000-8000-000000000009"
		for name, tc := range map[string]struct {
			result []byte
			kind   fleet.Kind
		}{
			"garbage":         {[]byte("x"), fleet.Invalid},
			"nothing":         {nil, fleet.Invalid},
			"unknown command": {w.result(&unknown, 1), fleet.NotFound},
			"another host's":  {w.result(c, 0), fleet.Unauthenticated},
		} {
			if index, err := d.Report(t.Context(), node(1), tc.result, nil); fleet.KindOf(err) != tc.kind || err == nil || index != 0 {
				t.Errorf("%s: %d, %v; want kind %s", name, index, err, tc.kind)
			}
		}
		w.set(func() { w.keep = func([]byte) error { return errors.New("disk full") } })
		detail := []byte("d")
		r := w.result(c, 1, func(r *ticket.Result) { r.Detail, r.DetailSize = fleet.Sum(detail), 1 })
		if _, err := d.Report(t.Context(), node(1), r, detail); fleet.KindOf(err) != fleet.Unavailable || w.state(c, 1) == fleet.Success {
			t.Errorf("details that cannot be kept: %v, state %s", err, w.state(c, 1))
		}
	})
	bubble(t, "the proposal fails", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		w.propose = func(entry.Body) error { return fleet.Errorf(fleet.Throttled, "too many proposals") }
		d, _ := w.lead()
		if _, err := d.Report(t.Context(), node(0), w.result(c, 0), nil); fleet.KindOf(err) != fleet.Throttled {
			t.Errorf("got %v", err)
		}
		w.set(func() { w.propose = nil })
		if _, err := d.Report(t.Context(), node(0), w.result(c, 0), nil); err != nil {
			t.Errorf("again: %v", err)
		}
	})
	bubble(t, "nobody leads here", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := New(w.config()).Report(ctx, node(0), w.result(c, 0), nil); fleet.KindOf(err) != fleet.Unknown || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	bubble(t, "a poisoned result harms nobody else", 3, func(t *testing.T, w *world) {
		c := w.send(1)
		w.host = accepts
		d, _ := w.lead()
		time.Sleep(time.Second)
		errs := make(chan error, 3)
		for n := range 3 {
			go func() {
				_, err := d.Report(t.Context(), node(n), w.result(c, n, func(r *ticket.Result) {
					if n == 1 {
						r.Ended = 1<<63 - 1
					}
				}), nil)
				errs <- err
			}()
		}
		synctest.Wait()
		if w.state(c, 0) != fleet.Success || w.state(c, 2) != fleet.Success || w.state(c, 1) != fleet.InProgress {
			t.Errorf("states %v", w.states(c))
		}
		for range 3 {
			<-errs
		}
	})
	bubble(t, "an answer after the row was given up", 1, func(t *testing.T, w *world) {
		c := w.send(1)
		d, _ := w.lead()
		w.until("ended", w.ended(c))
		index, err := d.Report(t.Context(), node(0), w.result(c, 0), nil)
		if err != nil || index == 0 || w.state(c, 0) != fleet.DeliveryTimedOut {
			t.Errorf("answered %d, %v; state %s", index, err, w.state(c, 0))
		}
	})
}

// FuzzAccept: no bytes but those that the host signed become a row.
func FuzzAccept(f *testing.F) {
	w := newWorld(f, 3)
	c := w.send(1)
	fixed := func(r *ticket.Result) { r.Started, r.Ended = 1, 2 } // the same in each process that fuzzes
	own := [][]byte{w.result(c, 1, fixed), w.result(c, 1, fixed, func(r *ticket.Result) { r.Detail = fleet.Sum([]byte("detail")) })}
	f.Add(own[0], []byte(nil))
	f.Add(own[1], []byte("detail"))
	f.Add(w.result(c, 2, fixed), []byte("detail"))
	f.Add([]byte("\xdd\xff\xff\xff\xff"), []byte(nil))
	f.Fuzz(func(t *testing.T, result, detail []byte) {
		row, err := Accept(w.store(), c, node(1), result, detail)
		if err == nil && !slices.ContainsFunc(own, func(b []byte) bool { return bytes.Equal(b, result) }) {
			t.Errorf("%x became %+v", result, row)
		}
	})
}
