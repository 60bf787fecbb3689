package runcmd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/process"
	"fleet/node/ticket"
)

// staged is the n-th command as one that waits for its turn, for an hour.
func (w *world) staged(n int, doc string) *order {
	o := w.shell(n, "true")
	if doc != "" {
		o = w.order(n, doc, nil)
	}
	o.ticket.Kind = ticket.KindStaged
	o.ticket.NotAfter, o.ticket.Expires = w.begin.Add(time.Hour).UnixNano(), w.begin.Add(2*time.Hour).UnixNano()
	return o
}

// order of a turn, from now on for a minute.
func (w *world) turn(n int, change ...func(*ticket.Release)) *ticket.Release {
	o := w.staged(n, "").ticket
	r := &ticket.Release{
		Version: ticket.ReleaseVersion, Fleet: o.Fleet, Epoch: o.Epoch, Command: o.Command, Attempt: o.Attempt,
		Targets: o.Targets, Root: o.Root, Released: time.Now().UnixNano(), StartBy: time.Now().Add(time.Minute).UnixNano(),
		Indexes: []uint32{w.index},
	}
	for _, f := range change {
		f(r)
	}
	return r
}

func (h *host) release(t testing.TB, r *ticket.Release) Answer {
	t.Helper()
	a, err := h.Release(t.Context(), ticket.SignRelease(h.w.voters[2], r))
	if err != nil {
		t.Fatalf("release: %v", err)
	}
	return a
}

func TestStagedWaitsForItsTurn(t *testing.T) {
	c := &children{do: sleeping(10 * time.Second)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		d := w.delivery(w.staged(1, ""))
		if a := h.release(t, w.turn(1)); a.State != NotHere {
			t.Errorf("released before it came: %+v", a)
		}
		for range 2 {
			if a := h.deliver(t, d); a.State != Staged {
				t.Fatalf("delivered: %+v", a)
			}
		}
		h.deliver(t, w.delivery(w.shell(2, "sleep"))) // others are not held up
		time.Sleep(30 * time.Minute)
		if n := c.count(); n != 1 || h.Open() != 1 {
			t.Fatalf("%d ran, %d are open; want one of each", n, h.Open())
		}
		before := time.Now()
		if a := h.release(t, w.turn(1)); a.State != Accepted || time.Since(before) != 0 {
			t.Errorf("released: %+v after %s", a, time.Since(before))
		}
		if a := h.release(t, w.turn(1)); a.State != Accepted {
			t.Errorf("released again: %+v", a)
		}
		if a := h.deliver(t, d); a.State != Accepted {
			t.Errorf("delivered while it runs: %+v", a)
		}
		h.reports(t, 2)
		if a := h.release(t, w.turn(1)); a.State != Done || stateOf(t, a) != fleet.Success || c.count() != 2 {
			t.Errorf("released after its end: %+v; %d ran", a, c.count())
		}
		if a := h.release(t, w.turn(2)); a.State != Done {
			t.Errorf("the release of one that never waited: %+v", a)
		}
	})
}

func TestForgedReleasesStartNothing(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.deliver(t, w.delivery(w.staged(1, "")))
		sign := func(key identity.PrivateKey, change ...func(*ticket.Release)) []byte {
			return ticket.SignRelease(key, w.turn(1, change...))
		}
		voter := w.voters[0]
		altered := sign(voter)
		altered[len(altered)-80]++
		for name, b := range map[string][]byte{
			"nothing":             nil,
			"not signed":          append(w.turn(1).Bytes(), make([]byte, 72)...),
			"by an agent":         sign(w.host),
			"altered":             altered,
			"for others":          sign(voter, func(r *ticket.Release) { r.Indexes = []uint32{0, 1} }),
			"for other targets":   sign(voter, func(r *ticket.Release) { r.Root[0]++ }),
			"for more targets":    sign(voter, func(r *ticket.Release) { r.Targets++ }),
			"of another fleet":    sign(voter, func(r *ticket.Release) { r.Fleet = fleet.IDOf(keyOfSeed(2).Public()) }),
			"of another epoch":    sign(voter, func(r *ticket.Release) { r.Epoch++ }),
			"of a voter that was": sign(keyOfSeed(13)),
			"until after its end": sign(voter, func(r *ticket.Release) { r.StartBy = w.staged(1, "").ticket.NotAfter + 1 }),
			"from before it was":  sign(voter, func(r *ticket.Release) { r.Released = w.staged(1, "").ticket.Created - 1 }),
		} {
			a, err := h.Release(t.Context(), b)
			if err != nil || a.State != Refused || a.Result != nil || a.Reason == "" {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
		}
		for name, change := range map[string]func(*ticket.Release){
			"another command": func(r *ticket.Release) { r.Command = commandID(2) },
			"another attempt": func(r *ticket.Release) { r.Attempt = 2 },
		} {
			if a, err := h.Release(t.Context(), sign(voter, change)); err != nil || a.State != NotHere {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
		}
		if a := h.release(t, w.turn(1, func(r *ticket.Release) { r.Released += int64(Skew + time.Second); r.StartBy += int64(10 * time.Minute) })); a.State != NotReady {
			t.Errorf("of the future: %+v", a)
		}
		h.clock.set(0, true)
		if a := h.release(t, w.turn(1)); a.State != NotReady {
			t.Errorf("without the time of the fleet: %+v", a)
		}
		h.clock.set(0, false)
		synctest.Wait()
		if c.count() != 0 || h.Open() != 1 {
			t.Errorf("%d ran", c.count())
		}
		if a := h.release(t, w.turn(1)); a.State != Accepted && a.State != Done {
			t.Errorf("after all that: %+v", a)
		}
		h.reports(t, 1)
	})
}

// TestStagedIsTooLate: a host gives its word that it does not begin when its
// turn comes too late, or does not come.
func TestStagedIsTooLate(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.deliver(t, w.delivery(w.staged(1, "")))
		h.deliver(t, w.delivery(w.staged(2, "")))
		late := w.turn(1)
		time.Sleep(time.Minute + 1)
		a := h.release(t, late)
		if r, err := ticket.ParseResult(a.Result); a.State != Done || err != nil || r.State != fleet.DeliveryTimedOut || !strings.Contains(r.Reason, "was to start by") {
			t.Errorf("its turn was over: %+v, %+v", a, r)
		}
		if a := h.release(t, w.turn(1)); a.State != Done || stateOf(t, a) != fleet.DeliveryTimedOut {
			t.Errorf("another turn after that: %+v", a)
		}
		h.reports(t, 1)
		time.Sleep(59 * time.Minute)
		results, _ := h.reports(t, 2)
		if r := results[1]; r.State != fleet.DeliveryTimedOut || !strings.Contains(r.Reason, "its turn did not come") || r.Command != commandID(2) {
			t.Errorf("no turn: %+v", r.Result)
		}
		if c.count() != 0 || h.Open() != 0 {
			t.Errorf("%d ran, %d are open", c.count(), h.Open())
		}
	})
}

func TestCancelWhileStaged(t *testing.T) {
	c := &children{}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		h.deliver(t, w.delivery(w.staged(1, "")))
		o := w.staged(1, "").ticket
		times := func(c *ticket.Cancel) { c.NotAfter, c.Expires = o.NotAfter, o.Expires }
		if a := h.cancel(t, w.cancellation(1, times)); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Errorf("cancelled: %+v", a)
		}
		if a := h.release(t, w.turn(1)); a.State != Done || stateOf(t, a) != fleet.Cancelled {
			t.Errorf("released after that: %+v", a)
		}
		if h.reports(t, 1); c.count() != 0 {
			t.Errorf("%d ran", c.count())
		}
	})
}

// TestReleasedOnABusyHost: memory alone holds that its turn has come, so the
// answer says that it has not begun, until it has or its time is over.
func TestReleasedOnABusyHost(t *testing.T) {
	c := &children{do: sleeping(30 * time.Second)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		for n := 1; n <= DefaultMaxParallel; n++ {
			h.deliver(t, w.delivery(w.shell(n, "sleep")))
		}
		for _, n := range []int{11, 12} {
			h.deliver(t, w.delivery(w.staged(n, "")))
		}
		before := time.Now()
		soon := w.turn(12, func(r *ticket.Release) { r.StartBy = time.Now().Add(20 * time.Second).UnixNano() })
		if a := h.release(t, w.turn(11)); a.State != Staged || time.Since(before) != beginWait {
			t.Errorf("%+v after %s", a, time.Since(before))
		}
		if a := h.release(t, soon); a.State != Staged {
			t.Errorf("%+v", a)
		}
		time.Sleep(30 * time.Second)
		if a := h.release(t, w.turn(11)); a.State != Accepted {
			t.Errorf("when there is room: %+v", a)
		}
		results, _ := h.reports(t, DefaultMaxParallel+2)
		for _, r := range results {
			if late := r.State == fleet.DeliveryTimedOut; late != (r.Command == commandID(12)) || !late && r.State != fleet.Success {
				t.Errorf("%s: %s, %s", r.Command, r.State, r.Reason)
			}
		}
	})
}

func TestStagedBound(t *testing.T) {
	c := &children{do: sleeping(time.Second)}
	bubble(t, c, func(t *testing.T, w *world, h *host) {
		for n := 1; n <= DefaultMaxQueue; n++ {
			h.deliver(t, w.delivery(w.staged(n, "")))
		}
		if a := h.deliver(t, w.delivery(w.staged(500, ""))); a.State != NotReady {
			t.Errorf("one more that waits: %+v", a)
		}
		if a := h.deliver(t, w.delivery(w.shell(501, "x"))); a.State != Accepted {
			t.Errorf("one that does not wait: %+v", a)
		}
		h.reports(t, 1)
	})
}

// TestStagedAndCrash cuts the journal of a staged life at each of its bytes.
// Whatever a crash took, a Release that is repeated starts it once, and no
// journal makes it begin without.
func TestStagedAndCrash(t *testing.T) {
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent %v", idempotent), func(t *testing.T) { stagedAndCrash(t, idempotent) })
	}
}

func stagedAndCrash(t *testing.T, idempotent bool) {
	c := &children{}
	w := newWorld(time.Now().Round(0))
	doc := fmt.Sprintf(`{"schemaVersion":"2.2","idempotent":%v,"mainSteps":[
		{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["x"]}}]}`, idempotent)
	d := w.delivery(w.staged(1, doc))
	dir := t.TempDir()
	h := w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
	beginning := h.journal.Size()
	h.start()
	h.deliver(t, d)
	h.release(t, w.turn(1))
	h.reports(t, 1)
	h.halt(t)
	whole, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	type state struct{ accepted, starts, finished bool }
	seen := map[state]bool{}
	for _, cut := range cuts(whole, int(beginning)) {
		crashed := t.TempDir()
		if err := os.WriteFile(filepath.Join(crashed, "journal"), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		again := &children{}
		h := w.newHost(t, crashed, func(cfg *Config) {
			cfg.Starter = again.start
			cfg.Kill = func(context.Context, process.Identity) (int, error) { return 1, nil }
			cfg.Boot = func() (string, error) { return "boot", nil }
		})
		e, accepted := h.journal.Lookup(commandKey(1))
		at := state{accepted, e.Starts > 0, e.Finished != nil}
		seen[at] = true
		h.start()
		want, runs := fleet.Success, 1
		switch {
		case at.finished:
			runs = 0
		case at.starts && !idempotent:
			want, runs = fleet.Interrupted, 0
		}
		if !at.accepted {
			if a := h.release(t, w.turn(1)); a.State != NotHere {
				t.Errorf("cut at %d: released: %+v", cut, a)
			}
			h.deliver(t, d)
		}
		if !at.starts {
			if a := h.deliver(t, d); a.State != Staged {
				t.Errorf("cut at %d: delivered again: %+v", cut, a)
			}
			if n := again.count(); n != 0 {
				t.Errorf("cut at %d: it ran before its turn", cut)
			}
		}
		for range 2 {
			h.release(t, w.turn(1))
		}
		if e.Acknowledged == 0 {
			if results, _ := h.reports(t, 1); len(results) != 1 || results[0].State != want {
				t.Errorf("cut at %d, %+v: %s, want %s", cut, at, results[0].State, want)
			}
		}
		if n := again.count(); n != runs {
			t.Errorf("cut at %d, %+v: it ran %d times, want %d", cut, at, n, runs)
		}
		h.halt(t)
	}
	for _, s := range []state{{}, {accepted: true}, {accepted: true, starts: true}, {true, true, true}} {
		if !seen[s] {
			t.Errorf("no crash in state %+v", s)
		}
	}
}

// TestIdempotentBeginsAgainInItsTurnOnly: what a crash cut off goes on by itself
// as long as its turn lasts. Later its place may be another host's.
func TestIdempotentBeginsAgainInItsTurnOnly(t *testing.T) {
	w := newWorld(time.Now().Round(0))
	dir := t.TempDir()
	d := w.delivery(w.staged(1, `{"schemaVersion":"2.2","idempotent":true,"mainSteps":[
		{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["x"]}}]}`))
	h := w.newHost(t, dir, nil)
	h.deliver(t, d)
	if err := h.journal.Start(commandKey(1), 1, w.begin.Add(time.Minute).UnixNano()); err != nil {
		t.Fatal(err)
	}
	_, _ = h.journal.Close(), h.blobs.Close()
	c := &children{}
	h = w.newHost(t, dir, func(cfg *Config) { cfg.Starter = c.start })
	h.clock.set(2*time.Minute, false) // long before the ticket's end
	h.start()
	if results, _ := h.reports(t, 1); results[0].State != fleet.Interrupted || c.count() != 0 {
		t.Errorf("%s, and it ran %d times", results[0].State, c.count())
	}
}

// TestStagedRaces: deliveries, releases, cancels and the end of time come in any
// order and at once; each command runs once at most, and only if it was released.
func TestStagedRaces(t *testing.T) {
	for seed := range uint64(30) {
		c := &children{do: sleeping(time.Second)}
		bubble(t, c, func(t *testing.T, w *world, h *host) {
			r := rand.New(rand.NewPCG(seed, 5))
			const n = 8
			released := map[journal.Key]bool{}
			var calls []func()
			for i := 1; i <= n; i++ {
				o := w.staged(i, "")
				times := func(c *ticket.Cancel) { c.NotAfter, c.Expires = o.ticket.NotAfter, o.ticket.Expires }
				calls = append(calls, func() { _, _ = h.Deliver(t.Context(), w.delivery(o)) }, func() { _, _ = h.Deliver(t.Context(), w.delivery(o)) })
				if i%2 == 0 {
					released[commandKey(i)] = true
					for range 3 {
						turn := ticket.SignRelease(w.voters[1], w.turn(i))
						calls = append(calls, func() { _, _ = h.Release(t.Context(), turn) })
					}
				}
				if i%3 == 0 {
					cancel := w.cancellation(i, times)
					calls = append(calls, func() { _, _ = h.Cancel(t.Context(), cancel) })
				}
			}
			r.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
			done := make(chan struct{})
			for _, call := range calls {
				wait := time.Duration(r.IntN(2000)) * time.Millisecond
				go func() { time.Sleep(wait); call(); done <- struct{}{} }()
			}
			for range calls {
				<-done
			}
			for i := 1; i <= n; i++ { // what lost its release or came after it
				if released[commandKey(i)] {
					h.release(t, w.turn(i))
				}
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			runs := 0
			for i := 1; i <= n; i++ {
				e, ok := h.journal.Lookup(commandKey(i))
				if !ok || e.Finished == nil {
					t.Errorf("seed %d: command %d has not ended: %+v", seed, i, e)
					continue
				}
				if e.Starts > 1 || e.Starts > 0 && !released[commandKey(i)] {
					t.Errorf("seed %d: command %d was started %d times, released %v", seed, i, e.Starts, released[commandKey(i)])
				}
				runs += e.Starts
			}
			if c.count() > runs || h.Open() != 0 {
				t.Errorf("seed %d: %d ran, %d were started, %d are open", seed, c.count(), runs, h.Open())
			}
		})
	}
}
