package runcmd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/process"
	"fleet/node/ticket"
)

// cancellation is the Cancel of the n-th command as it reaches the host.
func (w *world) cancellation(n int, change ...func(*ticket.Cancel)) Cancellation {
	o := w.shell(n, "").ticket
	c := ticket.Cancel{
		Version: ticket.CancelVersion, Fleet: o.Fleet, Epoch: o.Epoch, Command: o.Command, Attempt: o.Attempt,
		Targets: o.Targets, Root: o.Root, Created: o.Created, NotAfter: o.NotAfter, Expires: o.Expires,
	}
	for _, f := range change {
		f(&c)
	}
	return Cancellation{Cancel: ticket.SignCancel(w.voters[2], &c), Index: w.index, Path: ticket.Path(w.targets, int(w.index))}
}

func (h *host) cancel(t testing.TB, c Cancellation) Answer {
	t.Helper()
	a, err := h.Cancel(t.Context(), c)
	if err != nil {
		t.Fatalf("cancel: %v", err)
	}
	return a
}

func stateOf(t testing.TB, a Answer) fleet.InvocationState {
	t.Helper()
	r, err := ticket.ParseResult(a.Result)
	if err != nil {
		t.Fatalf("answer %+v: %v", a, err)
	}
	return r.State
}

func TestCancelWhileItRuns(t *testing.T) {
	c := &children{do: sleeping(time.Hour)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		d := w.delivery(w.shell(1, "sleep"))
		h.deliver(t, d)
		time.Sleep(3 * time.Second)
		if a := h.cancel(t, w.cancellation(1)); a.State != Accepted {
			t.Fatalf("cancelled: %+v", a)
		}
		results, details := h.reports(t, 1)
		r := results[0]
		if r.State != fleet.Cancelled || r.Code != 143 || r.Ended-r.Started != int64(3*time.Second) || r.Reason != "cancelled while it ran" {
			t.Errorf("result %+v", r.Result)
		}
		if got := string(details[0].Steps[0].Stdout.Inline); got != "cut off" {
			t.Errorf("what it had written: %q", got)
		}
		for range 2 { // again, and delivered again
			if a := h.cancel(t, w.cancellation(1)); a.State != Done || stateOf(t, a) != fleet.Cancelled {
				t.Errorf("cancelled again: %+v", a)
			}
			if a := h.deliver(t, d); a.State != Done || stateOf(t, a) != fleet.Cancelled {
				t.Errorf("delivered again: %+v", a)
			}
		}
		time.Sleep(time.Hour)
		if c.count() != 1 || h.quorum.tries != 1 {
			t.Errorf("ran %d times, reported %d times", c.count(), h.quorum.tries)
		}
	})
}

// unmet counts what was cancelled before it came, by whatever voter.
func (h *host) unmet() int {
	n := 0
	for _, v := range h.cfg.Trust().Voters {
		n += h.journal.Unmet(v.Node)
	}
	return n
}

// Whoever stole one voter's key can fill that voter's share of what a host
// remembers, and no other's.
func TestUnmetCancelsByVoter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, t.TempDir(), nil)
		h.start()
		signed := func(n int, voter identity.PrivateKey) Cancellation {
			c := w.cancellation(n)
			s, err := ticket.ParseSignedCancel(c.Cancel)
			if err != nil {
				t.Fatal(err)
			}
			c.Cancel = ticket.SignCancel(voter, &s.Cancel)
			return c
		}
		for n := range maxUnmet {
			k := journal.Key{Command: commandID(1_000_000 + n), Attempt: 1}
			// As the journal has it after so many Cancels of the first voter.
			if err := h.journal.Refuse(k, journal.Accepted{Created: w.begin.UnixNano(), Expires: w.begin.Add(time.Hour).UnixNano(), By: w.trust.Voters[0].Node},
				journal.Finished{Result: []byte("result")}); err != nil {
				t.Fatal(err)
			}
		}
		if a := h.cancel(t, signed(1, w.voters[0])); a.State != NotReady {
			t.Errorf("one more of the voter that took its share: %+v", a)
		}
		if a := h.cancel(t, signed(2, w.voters[1])); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Errorf("one of another voter: %+v", a)
		}
		if n := h.journal.Unmet(w.trust.Voters[1].Node); n != 1 {
			t.Errorf("%d are remembered of the other voter", n)
		}
		h.halt(t)
	})
}

// What was cancelled before it came never starts, after a restart neither, and
// is remembered as long as any other command.
func TestCancelBeforeItCame(t *testing.T) {
	c := &children{}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		open := func() *host {
			h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
			h.start()
			return h
		}
		h := open()
		if a := h.cancel(t, w.cancellation(1)); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Fatalf("cancelled: %+v", a)
		}
		d := w.delivery(w.shell(1, "true"))
		if a := h.deliver(t, d); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Errorf("delivered: %+v", a)
		}
		h.halt(t)
		h = open()
		if a := h.deliver(t, d); a.State != Done || stateOf(t, a) != fleet.Cancelled || h.unmet() != 1 {
			t.Errorf("delivered after a restart: %+v", a)
		}
		end := w.begin.Add(time.Hour + journal.Retention).UnixNano()
		if err := h.journal.Compact(end); err != nil || h.unmet() != 1 {
			t.Errorf("%d are remembered at the end of their time (%v)", h.unmet(), err)
		}
		if err := h.journal.Compact(end + 1); err != nil || h.unmet() != 0 {
			t.Errorf("%d are remembered for ever (%v)", h.unmet(), err)
		}
		if a := h.deliver(t, d); a.State != Refused {
			t.Errorf("delivered when it was forgotten: %+v", a)
		}
		// Who cancels takes the answer with him: it is not brought to the quorum.
		if c.count() != 0 || h.quorum.tries != 0 || h.Open() != 0 {
			t.Errorf("ran %d times, reported %d times, %d open", c.count(), h.quorum.tries, h.Open())
		}
		h.halt(t)
	})
}

// A cancelled command does not wait for its turn to end.
func TestCancelInTheQueue(t *testing.T) {
	c := &children{do: sleeping(50 * time.Second)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		for n := range DefaultMaxParallel {
			h.deliver(t, w.delivery(w.shell(10+n, "sleep")))
		}
		h.deliver(t, w.delivery(w.shell(1, "true")))
		synctest.Wait()
		if a := h.cancel(t, w.cancellation(1)); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Errorf("cancelled: %+v", a)
		}
		results, _ := h.reports(t, 1)
		if r := results[0]; r.Command != commandID(1) || r.State != fleet.Cancelled || r.Started != 0 {
			t.Errorf("result %+v", r.Result)
		}
		h.reports(t, 1+DefaultMaxParallel)
		if c.count() != DefaultMaxParallel || h.Open() != 0 {
			t.Errorf("ran %d times, %d open", c.count(), h.Open())
		}
	})
}

func TestCancelWhatHasEnded(t *testing.T) {
	bubble(t, &children{}, func(t *testing.T, w *world, h *host) {
		h.deliver(t, w.delivery(w.shell(1, "true")))
		h.reports(t, 1)
		synctest.Wait()
		size := h.journal.Size()
		if a := h.cancel(t, w.cancellation(1)); a.State != Done || stateOf(t, a) != fleet.Success || len(a.Detail) == 0 {
			t.Errorf("cancelled: %+v", a)
		}
		if h.journal.Size() != size {
			t.Error("the journal wrote something down")
		}
	})
}

// A command that waits for the time of the fleet is cancelled at once.
func TestCancelWhileItWaitsForTheTime(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		o := w.shell(1, "true")
		h.clock.set(0, false)
		h.deliver(t, w.delivery(o))
		h.clock.set(0, true) // maybe it ran already
		h.deliver(t, w.delivery(w.shell(2, "true")))
		if a := h.deliver(t, w.delivery(w.shell(2, "true"))); a.State != NotReady {
			t.Errorf("delivered without a time: %+v", a)
		}
		if a := h.cancel(t, w.cancellation(2)); a.State != NotReady {
			t.Errorf("cancelled what never came, without a time: %+v", a)
		}
	})
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
		h.deliver(t, w.delivery(w.shell(3, "true")))
		h.clock.set(0, true)
		h.start()
		synctest.Wait()
		// It ends at once: the answer may already have the result.
		if a := h.cancel(t, w.cancellation(3)); a.State != Accepted && a.State != Done {
			t.Errorf("cancelled: %+v", a)
		}
		if results, _ := h.reports(t, 1); results[0].State != fleet.Cancelled {
			t.Errorf("result %+v", results[0].Result)
		}
		h.halt(t)
	})
}

func TestForgedCancelsStopNothing(t *testing.T) {
	stranger := keyOfSeed(200)
	signed := func(key identity.PrivateKey) func(*world, *Cancellation) {
		return func(w *world, c *Cancellation) {
			s, err := ticket.ParseSignedCancel(c.Cancel)
			if err != nil {
				panic(err)
			}
			c.Cancel = ticket.SignCancel(key, &s.Cancel)
		}
	}
	for name, test := range map[string]struct {
		change func(w *world, c *ticket.Cancel)
		mangle func(w *world, c *Cancellation) // after signing
	}{
		"nothing":               {mangle: func(_ *world, c *Cancellation) { c.Cancel = nil }},
		"no signature":          {mangle: func(_ *world, c *Cancellation) { c.Cancel = c.Cancel[:len(c.Cancel)-72] }},
		"a byte more":           {mangle: func(_ *world, c *Cancellation) { c.Cancel = append(c.Cancel, 0) }},
		"altered after signing": {mangle: func(_ *world, c *Cancellation) { c.Cancel[60] ^= 1 }},
		"a stranger's key":      {mangle: signed(stranger)},
		"the host's own key":    {mangle: func(w *world, c *Cancellation) { signed(w.host)(w, c) }},
		"a voter's word for a ticket": {mangle: func(w *world, c *Cancellation) {
			payload := c.Cancel[:len(c.Cancel)-72]
			sig := ticket.Sign(w.voters[2], payload)
			c.Cancel = append(append([]byte(nil), payload...), sig[:]...)
		}},
		"another fleet":            {change: func(_ *world, c *ticket.Cancel) { c.Fleet = fleet.IDOf(stranger.Public()) }},
		"another epoch":            {change: func(_ *world, c *ticket.Cancel) { c.Epoch = 2 }},
		"another command":          {change: func(_ *world, c *ticket.Cancel) { c.Command = commandID(2) }},
		"another attempt":          {change: func(_ *world, c *ticket.Cancel) { c.Attempt = 2 }},
		"other targets' indexes":   {change: func(_ *world, c *ticket.Cancel) { c.Indexes = []uint32{0, 2, 4} }},
		"targets without this one": {change: func(w *world, c *ticket.Cancel) { c.Targets, c.Root = 3, ticket.Root(w.targets[:3]) }},
		"another target's place":   {mangle: func(w *world, c *Cancellation) { c.Index, c.Path = 2, ticket.Path(w.targets, 2) }},
		"no path":                  {mangle: func(_ *world, c *Cancellation) { c.Path = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			children := &children{do: sleeping(20 * time.Second)}
			bubble(t, children, func(t *testing.T, w *world, h *host) {
				h.deliver(t, w.delivery(w.shell(1, "sleep")))
				synctest.Wait()
				c := w.cancellation(1, func(c *ticket.Cancel) {
					if test.change != nil {
						test.change(w, c)
					}
				})
				if test.mangle != nil {
					test.mangle(w, &c)
				}
				if a := h.cancel(t, c); a.State == Accepted {
					t.Errorf("answer %+v", a)
				}
				for range 100 {
					results, _ := h.quorum.got()
					for _, r := range results {
						if r.Command == commandID(1) && r.Attempt == 1 {
							if r.State != fleet.Success {
								t.Errorf("result %+v", r.Result)
							}
							return
						}
					}
					time.Sleep(time.Second)
				}
				t.Error("no result")
			})
		})
	}
}

func TestJudgeCancel(t *testing.T) {
	base := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := &ticket.SignedCancel{Cancel: ticket.Cancel{Created: base.UnixNano(), NotAfter: base.Add(time.Minute).UnixNano(), Expires: base.Add(time.Hour).UnixNano()}}
	denied, waiting := fleet.Errorf(fleet.Denied, "older"), fleet.Errorf(fleet.Unavailable, "waits")
	for _, test := range []struct {
		name   string
		now    time.Duration
		known  bool
		admits error
		unmet  int
		state  State
		result fleet.InvocationState
		forget bool
	}{
		{"in time", 0, true, nil, 0, Refused, fleet.Cancelled, false},
		{"when it may not start any more", 2 * time.Minute, true, nil, 0, Refused, fleet.Cancelled, false},
		{"when it is long over", time.Hour + 1, true, nil, 0, Refused, fleet.Cancelled, true},
		{"a minute too early", -time.Minute, true, nil, 0, Refused, fleet.Cancelled, false},
		{"more than a minute too early", -time.Minute - 1, true, nil, 0, NotReady, 0, false},
		{"no time", 0, false, nil, 0, NotReady, 0, false},
		{"no journal yet", 0, true, waiting, 0, NotReady, 0, false},
		{"older than the journal: it may have run", 0, true, denied, 0, Refused, fleet.Undeliverable, true},
		{"almost too many", 0, true, nil, maxUnmet - 1, Refused, fleet.Cancelled, false},
		{"too many", 0, true, nil, maxUnmet, NotReady, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := judgeCancel(s, base.Add(test.now), test.known, test.admits, test.unmet)
			if got.state != test.state || got.result != test.result || got.forget != test.forget || got.reason == "" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestCancelAndCrash opens the runner from every prefix of the journal of a
// command that was cancelled while it ran. What the journal says decides: the
// cancel is in it, and the result is Cancelled; it is not, and a command that
// was started is Interrupted.
func TestCancelAndCrash(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent %v", idempotent), func(t *testing.T) { cancelAndCrash(t, idempotent) })
	}
}

func cancelAndCrash(t *testing.T, idempotent bool) {
	running := make(chan struct{}, 1)
	c := &children{do: func(ctx context.Context, _ process.Spec) process.Exit {
		running <- struct{}{}
		<-ctx.Done()
		return process.Exit{Code: 143, Signal: 15, Cancelled: true}
	}}
	w := newWorld(time.Now().Round(0))
	doc := fmt.Sprintf(`{"schemaVersion":"2.2","idempotent":%v,"mainSteps":[
		{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["x"]}}]}`, idempotent)
	dir := t.TempDir()
	h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
	beginning := h.journal.Size()
	h.start()
	d := w.delivery(w.order(1, doc, nil))
	h.deliver(t, d)
	<-running
	h.cancel(t, w.cancellation(1))
	h.reports(t, 1)
	h.halt(t)
	whole, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	type state struct{ starts, spawned, cancelled, finished bool }
	seen := map[state]bool{}
	for _, cut := range cuts(whole, int(beginning)) {
		crashed := t.TempDir()
		if err := os.WriteFile(filepath.Join(crashed, "journal"), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(filepath.Join(crashed, "journal"))
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		e, accepted := j.Lookup(commandKey(1))
		_ = j.Close()
		at := state{e.Starts > 0, len(e.Spawned) > 0, e.Cancel != nil, e.Finished != nil}
		seen[at] = true
		again := &children{}
		var killed int
		h := w.newHost(t, crashed, func(cfg *Config) {
			cfg.Starter = again.start
			cfg.Kill = func(context.Context, process.Identity) (int, error) { killed++; return 1, nil }
			cfg.Boot = func() (string, error) { return "boot", nil }
		})
		h.start()
		want := fleet.Success // of the second start, by children that end at once
		switch {
		case at.cancelled || at.finished:
			want = fleet.Cancelled
		case at.starts && !idempotent:
			want = fleet.Interrupted
		}
		if !accepted {
			h.deliver(t, d)
		}
		if e.Acknowledged == 0 {
			results, _ := h.reports(t, 1)
			if results[0].State != want {
				t.Errorf("cut at %d, %+v: %s, want %s", cut, at, results[0].State, want)
			}
			if at.cancelled && !strings.Contains(results[0].Reason, "cancelled") {
				t.Errorf("cut at %d: reason %q", cut, results[0].Reason)
			}
		}
		if a := h.cancel(t, w.cancellation(1)); a.State != Done || stateOf(t, a) != want {
			t.Errorf("cut at %d, %+v: cancelled again: %+v, want %s", cut, at, a, want)
		}
		h.halt(t)
		wantRuns := 0
		if !at.finished && !at.cancelled && (!at.starts || idempotent) {
			wantRuns = 1
		}
		if again.count() != wantRuns {
			t.Errorf("cut at %d, %+v: ran %d times, want %d", cut, at, again.count(), wantRuns)
		}
		if want := len(e.Spawned); killed != want && !at.finished {
			t.Errorf("cut at %d, %+v: %d leftovers killed, want %d", cut, at, killed, want)
		}
	}
	if len(seen) != 5 {
		t.Errorf("only these states were met: %v", seen)
	}
}

// An orderly stop in the moment of a cancel: the journal has the cancel.
func TestCancelAndStop(t *testing.T) {
	ending := make(chan struct{})
	c := &children{do: func(ctx context.Context, _ process.Spec) process.Exit {
		<-ctx.Done()
		<-ending // it takes its time to die
		return process.Exit{Code: 143, Signal: 15, Cancelled: true}
	}}
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), func(cfg *Config) { cfg.Starter = c.start })
	h.start()
	h.deliver(t, w.delivery(w.shell(1, "sleep")))
	for c.count() == 0 {
		time.Sleep(time.Millisecond)
	}
	h.stop()
	if a := h.cancel(t, w.cancellation(1)); a.State != Accepted {
		t.Errorf("cancelled: %+v", a)
	}
	close(ending)
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
	e, _ := h.journal.Lookup(commandKey(1))
	if e.Finished == nil {
		t.Fatal("no result")
	}
	if r, err := ticket.ParseResult(e.Finished.Result); err != nil || r.State != fleet.Cancelled || !strings.Contains(r.Reason, "cancelled") {
		t.Errorf("result %+v, %v", r, err)
	}
	h.stop = nil
}

// TestCancelRaces delivers and cancels many commands at random times. Each has
// exactly one result; once a cancel is answered, nothing of its command starts.
func TestCancelRaces(t *testing.T) {
	var mu sync.Mutex
	cancelled := map[string]bool{}
	c := &children{}
	c.do = func(ctx context.Context, spec process.Spec) process.Exit {
		mu.Lock()
		late := cancelled[spec.Mark]
		mu.Unlock()
		if late {
			t.Errorf("%s starts after its cancel was answered", spec.Mark)
		}
		return sleeping(time.Duration(rand.IntN(300))*time.Millisecond)(ctx, spec)
	}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		const commands = 150
		var all sync.WaitGroup
		for n := range commands {
			d, x := w.delivery(w.shell(n, "sleep")), w.cancellation(n)
			all.Go(func() {
				time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
				for h.deliver(t, d).State == NotReady {
					time.Sleep(50 * time.Millisecond)
				}
			})
			all.Go(func() {
				time.Sleep(time.Duration(rand.IntN(4000)) * time.Millisecond)
				if a := h.cancel(t, x); a.State != Accepted && a.State != Done {
					t.Errorf("answer %+v", a)
				}
				mu.Lock()
				defer mu.Unlock()
				cancelled[fmt.Sprintf("%s/%s/1", w.self(), commandID(n))] = true
			})
		}
		all.Wait()
		results, _ := h.reports(t, commands-h.unmet())
		synctest.Wait()
		states := map[fleet.InvocationState]int{}
		for n := range commands {
			a, _ := h.Query(commandID(n), 1)
			if a.State != Done {
				t.Fatalf("command %d: %+v", n, a)
			}
			states[stateOf(t, a)]++
		}
		unmet := h.unmet()
		if len(results)+unmet != commands || h.Open() != 0 || unmet == 0 || states[fleet.Success] == 0 ||
			states[fleet.Cancelled] <= unmet || states[fleet.Success]+states[fleet.Cancelled] != commands {
			t.Errorf("%d results: %v, %d open, %d never came", len(results), states, h.Open(), unmet)
		}
	})
}
