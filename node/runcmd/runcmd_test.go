package runcmd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/process"
	"fleet/node/ticket"
)

// bubble runs a test in a bubble, in a world that begins when the bubble does,
// on a host with fake children.
func bubble(t *testing.T, c *children, test func(t *testing.T, w *world, h *host)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
		h.start()
		test(t, w, h)
		if h.stop != nil {
			h.halt(t)
		}
	})
}

func TestDeliverRunReport(t *testing.T) {
	c := &children{do: func(ctx context.Context, spec process.Spec) process.Exit {
		_, _ = spec.Stdout.Write([]byte("hello\n"))
		_, _ = spec.Stderr.Write(make([]byte, 10_000))
		return sleeping(3*time.Second)(ctx, spec)
	}}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		d := w.delivery(w.shell(1, "echo hello"))
		if a := h.deliver(t, d); a.State != Accepted || h.Open() != 1 {
			t.Fatalf("delivered: %+v", a)
		}
		if a, ok := h.Query(commandID(1), 1); !ok || a.State != Accepted {
			t.Errorf("while it runs: %+v, %v", a, ok)
		}
		results, details := h.reports(t, 1)
		r := results[0]
		if r.State != fleet.Success || r.Code != 0 || r.Command != commandID(1) || r.Ended-r.Started != int64(3*time.Second) {
			t.Errorf("result %+v", r.Result)
		}
		step := details[0].Steps[0]
		if step.Name != "runShellScript" || step.Plugin != ActionShell || string(step.Stdout.Inline) != "hello\n" || step.Stderr.Total != 10_000 || step.Stderr.Blob.IsZero() {
			t.Errorf("step %+v", step)
		}
		if blobs := h.quorum.blobs[0]; len(blobs) != 1 || blobs[0] != step.Stderr.Blob || !h.blobs.Has(blobs[0]) {
			t.Errorf("blobs %v", blobs)
		}
		synctest.Wait()
		e, _ := h.journal.Lookup(commandKey(1))
		if e.Acknowledged != 101 || h.Open() != 0 {
			t.Errorf("acknowledged at %d, %d open", e.Acknowledged, h.Open())
		}
		for range 2 { // also after it was reported, delivered again or asked for
			a := h.deliver(t, d)
			if a.State != Done || string(a.Result) == "" || fleet.Sum(a.Detail) != r.Detail {
				t.Errorf("delivered again: %d, %d bytes of details", a.State, len(a.Detail))
			}
		}
		if _, ok := h.Query(commandID(1), 2); ok {
			t.Error("another attempt is known")
		}
		time.Sleep(time.Hour)
		if c.count() != 1 || h.quorum.tries != 1 {
			t.Errorf("ran %d times, reported %d times", c.count(), h.quorum.tries)
		}
	})
}

func TestConcurrentDeliveriesRunOnce(t *testing.T) {
	c := &children{do: sleeping(time.Second)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		d := w.delivery(w.shell(1, "true"))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if a := h.deliver(t, d); a.State != Accepted && a.State != Done {
					t.Errorf("answer %+v", a)
				}
			})
		}
		wg.Wait()
		h.reports(t, 1)
		if h.deliver(t, d).State != Done || c.count() != 1 {
			t.Errorf("ran %d times", c.count())
		}
	})
}

func TestRefusals(t *testing.T) {
	stranger := keyOfSeed(200)
	tests := []struct {
		name   string
		change func(w *world, h *host, o *order)
		mangle func(w *world, d *Delivery) // after signing
		voters func(w *world) []identity.PrivateKey
		state  State
		result fleet.InvocationState // 0: nothing signed
		words  string
	}{
		{name: "no ticket", mangle: func(_ *world, d *Delivery) { d.Ticket = nil }, state: Refused, words: "ticket"},
		{name: "ticket with a tail", mangle: func(_ *world, d *Delivery) { d.Ticket = append(d.Ticket, 0) }, state: Refused, words: "ticket"},
		{name: "one signature", voters: func(w *world) []identity.PrivateKey { return w.voters[:1] }, state: Refused, words: "1 of 2"},
		{name: "one signature twice", voters: func(w *world) []identity.PrivateKey { return []identity.PrivateKey{w.voters[0], w.voters[0]} }, state: Refused, words: "1 of 2"},
		{name: "a stranger's signature", voters: func(w *world) []identity.PrivateKey { return []identity.PrivateKey{w.voters[0], stranger} }, state: Refused, words: "1 of 2"},
		{name: "the host's own signature", voters: func(w *world) []identity.PrivateKey { return []identity.PrivateKey{w.voters[0], w.host} }, state: Refused, words: "1 of 2"},
		{name: "altered after signing", mangle: func(_ *world, d *Delivery) { d.Ticket[60] ^= 1 }, state: Refused, words: "ticket"},
		{name: "another fleet", change: func(_ *world, _ *host, o *order) { o.ticket.Fleet = fleet.IDOf(stranger.Public()) }, state: Refused, words: "fleet"},
		{name: "another epoch", change: func(_ *world, _ *host, o *order) { o.ticket.Epoch = 2 }, state: Refused, words: "epoch"},
		{name: "another target's place", mangle: func(w *world, d *Delivery) { d.Index = 2; d.Path = ticket.Path(w.targets, 2) }, state: Refused, words: "name this host"},
		{name: "another path", mangle: func(w *world, d *Delivery) { d.Path = ticket.Path(w.targets, 2) }, state: Refused, words: "name this host"},
		{name: "no path", mangle: func(_ *world, d *Delivery) { d.Path = nil }, state: Refused, words: "name this host"},
		{name: "targets without this host", change: func(w *world, _ *host, o *order) {
			o.ticket.Root, o.ticket.Targets = ticket.Root(w.targets[:3]), 3
		}, state: Refused, words: "name this host"},
		{name: "another document", mangle: func(_ *world, d *Delivery) { d.Document = append([]byte(" "), d.Document...) }, state: Refused, words: "document"},
		{name: "other parameters", mangle: func(_ *world, d *Delivery) { d.Parameters = nil }, state: Refused, words: "parameters"},
		{name: "no fleet time", change: func(_ *world, h *host, _ *order) { h.clock.set(0, true) }, state: NotReady, words: "time"},
		{name: "too early", change: func(_ *world, h *host, _ *order) { h.clock.set(-2*time.Minute, false) }, state: NotReady, words: "counts from"},
		{name: "too late", change: func(_ *world, h *host, _ *order) { h.clock.set(time.Minute+time.Second, false) }, state: Refused, result: fleet.DeliveryTimedOut, words: "to start by"},
		{name: "older than the journal", change: func(w *world, _ *host, o *order) { o.ticket.Created = w.begin.UnixNano() - 1 }, state: Refused, result: fleet.Undeliverable, words: "journal"},
		{name: "document that is none", change: func(_ *world, _ *host, o *order) {
			o.document = []byte("{}")
			o.ticket.Document = fleet.Sum(o.document)
		}, state: Refused, result: fleet.Undeliverable, words: "document"},
		{name: "parameters that are none", change: func(_ *world, _ *host, o *order) {
			o.parameters = []byte{0xc1}
			o.ticket.Parameters = fleet.Sum(o.parameters)
		}, state: Refused, result: fleet.Undeliverable, words: "parameters"},
		{name: "missing parameter", change: func(_ *world, _ *host, o *order) {
			o.parameters = []byte{0x80}
			o.ticket.Parameters = fleet.Sum(o.parameters)
		}, state: Refused, result: fleet.Undeliverable, words: "commands"},
		{name: "unknown user", change: func(_ *world, _ *host, o *order) { o.ticket.RunAs = "no-such-user" }, state: Refused, result: fleet.Undeliverable, words: "no-such-user"},
		{name: "nested documents", change: func(_ *world, _ *host, o *order) { o.ticket.Nested = []fleet.Digest{{1}} }, state: Refused, result: fleet.Undeliverable, words: "documents"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := &children{}
			bubble(t, c, func(t *testing.T, w *world, h *host) {
				o := w.shell(1, "true")
				if test.change != nil {
					test.change(w, h, o)
				}
				var voters []identity.PrivateKey
				if test.voters != nil {
					voters = test.voters(w)
				}
				d := w.delivery(o, voters...)
				if test.mangle != nil {
					test.mangle(w, &d)
				}
				a := h.deliver(t, d)
				if a.State != test.state || !strings.Contains(a.Reason, test.words) || len(a.Reason) > maxReason {
					t.Fatalf("got %d, %q, want %d, %q", a.State, a.Reason, test.state, test.words)
				}
				if (a.Result != nil) != (test.result != 0) {
					t.Fatalf("signed: %v", a.Result != nil)
				}
				if a.Result != nil {
					r, err := ticket.ParseResult(a.Result)
					if err != nil || r.State != test.result || r.Code != -1 || r.Started != 0 || r.Reason == "" || r.Verify(w.host.Public()) != nil {
						t.Errorf("result %+v, %v", r, err)
					}
				}
				h.clock.set(0, false)
				time.Sleep(time.Minute)
				if c.count() != 0 || h.Open() != 0 {
					t.Errorf("ran %d times", c.count())
				}
			})
		})
	}
}

// A host that has refused does not run the command when it could later.
func TestARefusalIsFinal(t *testing.T) {
	c := &children{}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		known := false
		h := w.newHost(t, dir, func(cfg *Config) {
			cfg.Starter = c.start
			cfg.Account = func(string) (process.Account, error) {
				if !known {
					return process.Account{}, fleet.Errorf(fleet.NotFound, "no such user")
				}
				return process.Account{Own: true, Home: "/"}, nil
			}
		})
		h.start()
		d := w.delivery(w.shell(1, "true"))
		first := h.deliver(t, d)
		known = true
		again := h.deliver(t, d)
		if first.State != Refused || again.State != Done || string(first.Result) != string(again.Result) {
			t.Errorf("first %+v, again %+v", first, again)
		}
		results, _ := h.reports(t, 1)
		if results[0].State != fleet.Undeliverable || c.count() != 0 {
			t.Errorf("result %+v, ran %d times", results[0].Result, c.count())
		}
		h.halt(t)
	})
}

// A directory of users that does not answer has refused nothing: the command
// comes again.
func TestADirectoryThatDoesNotAnswerRefusesNothing(t *testing.T) {
	c := &children{}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		answers := false
		h := w.newHost(t, dir, func(cfg *Config) {
			cfg.Starter = c.start
			cfg.Account = func(string) (process.Account, error) {
				if !answers {
					return process.Account{}, fleet.Errorf(fleet.Unavailable, "user %q cannot be looked up now", "web")
				}
				return process.Account{Own: true, Home: "/"}, nil
			}
		})
		h.start()
		d := w.delivery(w.shell(1, "true"))
		if a := h.deliver(t, d); a.State != NotReady || !strings.Contains(a.Reason, "cannot be looked up now") {
			t.Errorf("while it does not answer: %+v", a)
		}
		answers = true
		if a := h.deliver(t, d); a.State != Accepted {
			t.Errorf("when it does: %+v", a)
		}
		h.reports(t, 1)
		h.halt(t)
	})
}

func TestBounds(t *testing.T) {
	c := &children{do: sleeping(10 * time.Second)}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter, cfg.MaxParallel, cfg.MaxQueue = c.start, 3, 4 })
		h.start()
		ready := 0
		for n := range 20 {
			a := h.deliver(t, w.delivery(w.shell(n, "true")))
			synctest.Wait() // for the workers to take what they can
			switch a.State {
			case Accepted:
				ready++
			case NotReady:
				if _, ok := h.Query(commandID(n), 1); ok || !strings.Contains(a.Reason, "wait") {
					t.Errorf("command %d: %+v", n, a)
				}
			default:
				t.Fatalf("command %d: %+v", n, a)
			}
		}
		if ready != 7 {
			t.Errorf("%d were accepted, want 3 that run and 4 that wait", ready)
		}
		h.reports(t, 7)
		if c.peak != 3 || c.count() != 7 {
			t.Errorf("%d at once, %d in all", c.peak, c.count())
		}
		if a := h.deliver(t, w.delivery(w.shell(19, "true"))); a.State != Accepted {
			t.Errorf("with room again: %+v", a)
		}
		h.reports(t, 8)
		h.halt(t)
	})
}

func TestLateInTheQueueIsDeliveryTimedOut(t *testing.T) {
	c := &children{do: sleeping(50 * time.Second)}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter, cfg.MaxParallel = c.start, 1 })
		h.start()
		for n := range 3 {
			if a := h.deliver(t, w.delivery(w.shell(n, "true"))); a.State != Accepted {
				t.Fatalf("command %d: %+v", n, a)
			}
		}
		results, details := h.reports(t, 3)
		if c.count() != 2 {
			t.Errorf("ran %d times", c.count())
		}
		for i, r := range results { // the last two are reported at once
			switch r.Command {
			case commandID(0), commandID(1):
				if r.State != fleet.Success {
					t.Errorf("result %+v", r.Result)
				}
			default:
				if r.State != fleet.DeliveryTimedOut || details[i] != nil || !strings.Contains(r.Reason, "start by") || r.Started != 0 {
					t.Errorf("result %+v", r.Result)
				}
			}
		}
		h.halt(t)
	})
}

func TestWithoutFleetTimeAnAcceptedCommandWaits(t *testing.T) {
	c := &children{}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
		if a := h.deliver(t, w.delivery(w.shell(1, "true"))); a.State != Accepted {
			t.Fatalf("before it runs: %+v", a)
		}
		h.clock.set(0, true)
		h.start()
		time.Sleep(30 * time.Second)
		if c.count() != 0 {
			t.Fatal("it ran without the time of the fleet")
		}
		h.clock.set(0, false)
		if results, _ := h.reports(t, 1); results[0].State != fleet.Success || c.count() != 1 {
			t.Errorf("result %+v", results[0].Result)
		}
		h.halt(t)
	})
}

func TestReportsGoOnUntilTheyAreAcknowledged(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.quorum.refuse(fleet.Errorf(fleet.Unavailable, "no voter answers"))
		begin := time.Now()
		for n := range 10 {
			h.deliver(t, w.delivery(w.shell(n, "true")))
		}
		time.Sleep(time.Hour)
		h.quorum.mu.Lock()
		tries := h.quorum.tries
		h.quorum.mu.Unlock()
		if tries < 10*60 || tries > 10*140 {
			t.Errorf("%d tries in an hour", tries)
		}
		h.quorum.refuse(nil)
		h.reports(t, 10)
		if took := time.Since(begin); took > time.Hour+maxBackoff+time.Second {
			t.Errorf("took %v", took)
		}
		for n := range 10 {
			if e, ok := h.journal.Lookup(commandKey(n)); !ok || e.Finished == nil {
				t.Errorf("command %d: %+v", n, e)
			}
		}
	})
}

func TestStopWhileACommandRuns(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent %v", idempotent), func(t *testing.T) {
			c := &children{do: sleeping(time.Hour)}
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(time.Now())
				h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
				h.start()
				doc := fmt.Sprintf(`{"schemaVersion":"2.2","idempotent":%v,"mainSteps":[
					{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["x"]}},
					{"action":"aws:runShellScript","name":"b","inputs":{"runCommand":["y"]}}]}`, idempotent)
				d := w.delivery(w.order(1, doc, nil))
				h.deliver(t, d)
				synctest.Wait()
				h.quorum.refuse(errors.New("away"))
				h.halt(t)
				if c.count() != 1 {
					t.Fatalf("ran %d times", c.count())
				}
				c.do = nil
				h = w.newHost(t, dir, func(cfg *Config) {
					cfg.Starter = c.start
					cfg.Kill = func(context.Context, process.Identity) (int, error) { return 0, nil }
				})
				h.start()
				results, details := h.reports(t, 1)
				r := results[0]
				if idempotent {
					if r.State != fleet.Success || c.count() != 3 {
						t.Errorf("result %+v, ran %d times", r.Result, c.count())
					}
				} else if r.State != fleet.Interrupted || c.count() != 1 || !strings.Contains(r.Reason, "stopped") ||
					len(details[0].Steps) != 1 || string(details[0].Steps[0].Stdout.Inline) != "cut off" {
					t.Errorf("result %+v, ran %d times, %+v", r.Result, c.count(), details[0])
				}
				h.halt(t)
			})
		})
	}
}

// TestCrashBetweenAnyTwoRecords opens the runner from every prefix of the
// journal of a whole life, and delivers the command again. Before "started" is
// in the journal, nothing has run; from then on, nothing may run again.
func TestCrashBetweenAnyTwoRecords(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent %v", idempotent), func(t *testing.T) { crashEverywhere(t, idempotent) })
	}
}

func crashEverywhere(t *testing.T, idempotent bool) {
	c := &children{do: func(_ context.Context, spec process.Spec) process.Exit {
		_, _ = spec.Stdout.Write([]byte("once"))
		return process.Exit{}
	}}
	begin := time.Now().Round(0)
	w := newWorld(begin)
	doc := fmt.Sprintf(`{"schemaVersion":"2.2","idempotent":%v,"mainSteps":[
		{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["x"]}},
		{"action":"aws:runShellScript","name":"b","inputs":{"runCommand":["y"]}}]}`, idempotent)
	d := w.delivery(w.order(1, doc, nil))

	// The life, and the size of the journal after each record.
	dir := t.TempDir()
	h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
	beginning := h.journal.Size()
	h.start()
	h.deliver(t, d)
	h.reports(t, 1)
	for e, _ := h.journal.Lookup(commandKey(1)); e.Acknowledged == 0; e, _ = h.journal.Lookup(commandKey(1)) {
		time.Sleep(time.Millisecond)
	}
	h.halt(t)
	whole, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if c.count() != 2 {
		t.Fatalf("the life ran %d steps", c.count())
	}

	type state struct{ starts, spawned, finished, acknowledged bool }
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
		at := state{e.Starts > 0, len(e.Spawned) > 0, e.Finished != nil, e.Acknowledged != 0}
		seen[at] = true

		again := &children{}
		var killed []process.Identity
		h := w.newHost(t, crashed, func(cfg *Config) {
			cfg.Starter = again.start
			cfg.Kill = func(_ context.Context, id process.Identity) (int, error) { killed = append(killed, id); return 1, nil }
			cfg.Boot = func() (string, error) { return "boot", nil }
		})
		if _, ok := h.Query(commandID(1), 1); ok != accepted {
			t.Errorf("cut at %d: known %v, want %v", cut, ok, accepted)
		}
		h.start()
		a := h.deliver(t, d)
		if accepted && !at.finished && a.State != Accepted && a.State != Done || at.finished && a.State != Done {
			t.Errorf("cut at %d: delivered again: %+v", cut, a)
		}
		want := fleet.Success
		if at.starts && !at.finished && !idempotent {
			want = fleet.Interrupted
		}
		if !at.acknowledged {
			results, _ := h.reports(t, 1)
			if len(results) != 1 || results[0].State != want {
				t.Errorf("cut at %d, %+v: %d results, %+v, want %v", cut, at, len(results), results[0].Result, want)
			}
			if want == fleet.Interrupted && !strings.Contains(results[0].Reason, "ended while the command ran") {
				t.Errorf("cut at %d: reason %q", cut, results[0].Reason)
			}
		}
		h.halt(t)
		wantRuns := 0
		if !at.finished && (!at.starts || idempotent) {
			wantRuns = 2
		}
		if again.count() != wantRuns {
			t.Errorf("cut at %d, %+v: ran %d steps, want %d", cut, at, again.count(), wantRuns)
		}
		wantKilled := 0
		if at.starts && !at.finished {
			wantKilled = len(e.Spawned)
		}
		if len(killed) != wantKilled {
			t.Errorf("cut at %d: %d leftovers killed, want %d", cut, len(killed), wantKilled)
		}
		if results, _ := h.quorum.got(); at.acknowledged && len(results) != 0 {
			t.Errorf("cut at %d: reported again", cut)
		}
	}
	if len(seen) != 5 {
		t.Errorf("only these states were met: %v", seen)
	}
}

// cuts are the ends of the records of a journal from an offset on, and places
// inside of them.
func cuts(journal []byte, from int) (all []int) {
	for at := from; at < len(journal); {
		n := 8 + int(binary.BigEndian.Uint32(journal[at:]))
		all = append(all, at, at+3, at+n-1)
		at += n
	}
	return append(all, len(journal))
}

func TestARestartOfTheHostIsTold(t *testing.T) {
	w := newWorld(time.Now().Round(0))
	dir := t.TempDir()
	h := w.newHost(t, dir, nil)
	if err := h.journal.Accept(commandKey(1), acceptedOf(&w.shell(1, "x").ticket, w.delivery(w.shell(1, "x")), w.begin)); err != nil {
		t.Fatal(err)
	}
	if err := h.journal.Start(commandKey(1), 1, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.journal.Spawn(commandKey(1), journal.Spawned{PID: 99999, Start: 1, Boot: "an earlier one", Mark: "m"}); err != nil {
		t.Fatal(err)
	}
	_ = h.journal.Close()
	_ = h.blobs.Close()
	h = w.newHost(t, dir, nil)
	h.start()
	results, _ := h.reports(t, 1)
	if r := results[0]; r.State != fleet.Interrupted || !strings.Contains(r.Reason, "restarted") || r.Started != 1 || r.Code != -1 {
		t.Errorf("result %+v", r.Result)
	}
}

func TestAFailedJournalEndsRun(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(time.Now().Round(0))
	c := &children{}
	h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
	h.start()
	_ = h.journal.Close()
	if a := h.deliver(t, w.delivery(w.shell(1, "true"))); a.State != NotReady {
		t.Errorf("a closed journal: %+v", a)
	}
	h.fatal(fmt.Errorf("sync: %w", journal.ErrFailed))
	if err := <-h.ended; !errors.Is(err, journal.ErrFailed) {
		t.Errorf("run ended with %v", err)
	}
	h.stop = nil
}

func TestAPluginThatPanicsFailsItsStep(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		h := w.newHost(t, dir, func(cfg *Config) {
			cfg.Plugins = Plugins{"my:bad": panicking{}, "my:foreign": nil}
		})
		h.start()
		doc := `{"schemaVersion":"2.2","mainSteps":[{"action":"my:bad","name":"a"},{"action":"my:foreign","name":"b"},{"action":"my:unknown","name":"c"}]}`
		h.deliver(t, w.delivery(w.order(1, doc, nil)))
		results, details := h.reports(t, 1)
		if r := results[0]; r.State != fleet.Failed || !strings.Contains(r.Reason, "step a: the plugin my:bad crashed") {
			t.Errorf("result %+v", r.Result)
		}
		s := details[0].Steps
		if len(s) != 3 || s[0].State != fleet.Failed || !s[1].Skipped || s[1].State != fleet.Success || s[1].Started != 0 || s[2].State != fleet.Failed {
			t.Errorf("steps %+v", s)
		}
		h.halt(t)
	})
}

type panicking struct{}

func (panicking) Run(context.Context, *Task) Outcome { panic("oh") }

func TestNewRefuses(t *testing.T) {
	w := newWorld(time.Now())
	h := w.newHost(t, t.TempDir(), nil)
	for name, change := range map[string]func(*Config){
		"no key":            func(c *Config) { c.Key = identity.PrivateKey{} },
		"no journal":        func(c *Config) { c.Journal = nil },
		"no directory":      func(c *Config) { c.Dir = "" },
		"no report":         func(c *Config) { c.Report = nil },
		"too many workers":  func(c *Config) { c.MaxParallel = 65 },
		"negative queue":    func(c *Config) { c.MaxQueue = -1 },
		"file as directory": func(c *Config) { c.Dir = filepath.Join(h.dir, "journal") },
	} {
		cfg := h.cfg
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestALostJournalBeginsAnewWithTheFleetsTime(t *testing.T) {
	dir := t.TempDir()
	c := &children{}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(time.Now())
		if j, err := journal.Open(filepath.Join(dir, "journal")); err != nil {
			t.Fatal(err)
		} else if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
		h.clock.set(0, true)
		h.start()
		old := w.delivery(w.shell(1, "true"))
		if a := h.deliver(t, old); a.State != NotReady || !strings.Contains(a.Reason, "journal") {
			t.Errorf("without the time: %+v", a)
		}
		time.Sleep(time.Second)
		h.clock.set(0, false)
		time.Sleep(time.Second)
		if a := h.deliver(t, old); a.State != Refused || !strings.Contains(a.Reason, "journal") {
			t.Errorf("an older command: %+v", a)
		}
		o := w.shell(2, "true")
		o.ticket.Created = time.Now().UnixNano()
		if a := h.deliver(t, w.delivery(o)); a.State != Accepted {
			t.Errorf("a newer command: %+v", a)
		}
		h.reports(t, 1)
		h.halt(t)
	})
}

func TestTheJournalIsCompacted(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.deliver(t, w.delivery(w.shell(1, "true")))
		h.reports(t, 1)
		time.Sleep(time.Hour + journal.Retention)
		if _, ok := h.journal.Lookup(commandKey(1)); !ok {
			t.Error("dropped too early")
		}
		time.Sleep(2*keepHouseEvery + time.Minute)
		if _, ok := h.journal.Lookup(commandKey(1)); ok {
			t.Error("not dropped")
		}
		// The same order once more, should anybody have kept it, with a clock
		// that the voters turned back.
		h.clock.set(time.Until(w.begin), false)
		if a := h.deliver(t, w.delivery(w.shell(1, "true"))); a.State != Refused || c.count() != 1 {
			t.Errorf("delivered again: %+v, ran %d times", a, c.count())
		}
	})
}

func TestStandardPlugins(t *testing.T) {
	content, _, _ := document.Builtin("AWS-RunShellScript")
	d, err := document.Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Steps {
		if _, ok := StandardPlugins()[s.Action]; !ok {
			t.Errorf("no plugin for %s", s.Action)
		}
	}
}

// TestASlowDirectoryOfUsersHoldsUpNobodyElse: who asks for a user of it waits,
// and no other delivery.
func TestASlowDirectoryOfUsersHoldsUpNobodyElse(t *testing.T) {
	w := newWorld(time.Now())
	asked, release := make(chan struct{}), make(chan struct{})
	h := w.newHost(t, t.TempDir(), func(c *Config) {
		c.Account = func(name string) (process.Account, error) {
			if name == "slow" {
				close(asked)
				<-release
			}
			return process.Account{Name: name, Own: true}, nil
		}
	})
	slow := w.shell(1, "true")
	slow.ticket.RunAs = "slow"
	first := make(chan Answer, 1)
	go func() {
		a, err := h.Deliver(t.Context(), w.delivery(slow))
		if err != nil {
			t.Errorf("deliver: %v", err)
		}
		first <- a
	}()
	<-asked
	second := make(chan Answer, 1)
	go func() {
		a, err := h.Deliver(t.Context(), w.delivery(w.shell(2, "true")))
		if err != nil {
			t.Errorf("deliver: %v", err)
		}
		second <- a
	}()
	select {
	case a := <-second:
		if a.State != Accepted {
			t.Errorf("the other command: %+v", a)
		}
	case <-time.After(30 * time.Second):
		t.Error("the other command waits for the directory")
	}
	close(release)
	if a := <-first; a.State != Accepted {
		t.Errorf("the slow one: %+v", a)
	}
}
