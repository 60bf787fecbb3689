//go:build faults && unix

package faults

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/scripts/history"
)

// TestHistories kills, pauses and restarts real voters while ten clients change
// and read what they decide: FLEET_FAULTS faults (12 by default), on
// FLEET_VOTERS voters (3).
func TestHistories(t *testing.T) {
	seed := seedOf(t)
	f := start(t, number("FLEET_VOTERS", 3), 0)
	keys := history.Keys{Node: f.hosts[0].id, Labels: 12, Targets: 7}
	var rec history.Recorder
	probe := f.client()
	defer probe.Close()
	rec.Process().Do(history.Op{Key: "name", Verb: history.Write, Value: "h1"}, func() history.Result {
		return history.Result{Unknown: probe.Call(t.Context(), "RenameNode", fleet.RenameNodeRequest{InstanceId: string(keys.Node), Name: "h1"}, nil) != nil}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	var answered atomic.Int64
	for i := range 10 {
		c, own := f.client(f.hosts[i%len(f.hosts)].addr), rand.New(rand.NewPCG(seed.Uint64(), 0))
		work.Go(func() {
			defer c.Close()
			rec.Work(ctx, slow{c}, keys, own, &answered)
		})
	}
	defer work.Wait()
	defer stop()
	pause := func(least, most int) {
		select {
		case <-time.After(time.Duration(least+seed.IntN(most-least)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	faults, slowest := number("FLEET_FAULTS", 12), time.Duration(0)
	began := time.Now()
	for i := range faults {
		pause(200, 1500)
		leader := f.leader(nil)
		switch i % 4 {
		case 0:
			leader.kill()
			pause(500, 4000)
			leader.start()
		case 1:
			_ = leader.cmd.Process.Signal(syscall.SIGSTOP)
			pause(1000, 8000)
			_ = leader.cmd.Process.Signal(syscall.SIGCONT)
		case 2:
			order := seed.Perm(len(f.hosts))
			for _, h := range f.hosts {
				h.kill()
			}
			for _, n := range order {
				f.hosts[n].start()
				pause(10, 500)
			}
		case 3:
			other := f.hosts[seed.IntN(len(f.hosts))]
			_ = other.cmd.Process.Signal(syscall.SIGSTOP)
			pause(100, 3000)
			leader.kill()
			pause(100, 2000)
			if other != leader {
				_ = other.cmd.Process.Signal(syscall.SIGCONT)
			}
			leader.start()
		}
		mended := time.Now()
		for {
			ctx, give := context.WithTimeout(t.Context(), 2*time.Second)
			err := probe.Call(ctx, "PutTarget", fleet.PutTargetRequest{Name: "probe", NodeSet: "web1"}, nil)
			give()
			if err == nil {
				break
			}
			if time.Since(mended) > 2*time.Minute {
				t.Fatalf("fault %d: nothing is decided two minutes after it was mended: %v", i+1, err)
			}
		}
		slowest = max(slowest, time.Since(mended))
	}
	pause(500, 501)
	stop()
	work.Wait()
	rec.Settle(t.Context(), probe, keys)
	v := rec.Check(time.Minute)
	for _, key := range v.Illegal {
		t.Errorf("what was said of %q cannot have been:\n%s", key, rec.Of(key))
	}
	if len(v.Undecided) > 0 || answered.Load() == 0 {
		t.Errorf("there was no time to decide %v; %d operations were answered", v.Undecided, answered.Load())
	}
	t.Logf("%d faults on %d voters in %s: %s; decides again within %s of a fault's end", faults, len(f.hosts), time.Since(began).Round(time.Second), v,
		slowest.Round(10*time.Millisecond))
}

// slow is a client that takes a breath, so that two processors can serve ten.
type slow struct{ *client.Client }

func (s slow) Call(ctx context.Context, operation string, req, resp any) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(10+rand.N(50)) * time.Millisecond):
	}
	return s.Client.Call(ctx, operation, req, resp)
}
