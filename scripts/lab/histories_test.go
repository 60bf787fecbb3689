//go:build lab && linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/scripts/history"
	"fleet/scripts/lab"
)

// TestHistories cuts cables between real voters, pauses and kills them while
// clients on every voter put, read and remove saved targets, typed as operators
// do: with a kernel's network. LAB_FAULTS cuts, seven by default;
// LAB_SEED repeats a schedule.
func TestHistories(t *testing.T) {
	t.Parallel()
	number := func(name string, otherwise uint64) uint64 {
		if v, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil && v > 0 {
			return v
		}
		return otherwise
	}
	seed := number("LAB_SEED", uint64(time.Now().UnixNano()))
	t.Logf("LAB_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := lab.New(t, lab.Options{Hosts: 5})
	h := l.Hosts()
	l.Found(5)
	for _, x := range h[1:] {
		h[0].CopyTo(x, credential)
	}

	var rec history.Recorder
	var stop atomic.Bool
	var work sync.WaitGroup
	defer work.Wait()
	defer stop.Store(true)
	var answered atomic.Int64
	for i, x := range h {
		own := rand.New(rand.NewPCG(seed, uint64(i+1)))
		work.Go(func() {
			p := rec.Process()
			for n := 0; !stop.Load(); n++ {
				res := typed(p, x, fmt.Sprintf("t%d", own.IntN(6)), []history.Verb{history.Read, history.Write, history.Write, history.Delete}[own.IntN(4)],
					fmt.Sprintf("v%d-%d", i, n))
				if !res.Unknown {
					answered.Add(1)
				}
			}
		})
	}
	others := func(not *lab.Host) []*lab.Host {
		var all []*lab.Host
		for _, x := range h {
			if x != not {
				all = append(all, x)
			}
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all
	}
	leads := func() *lab.Host {
		var leader *lab.Host
		l.Wait("a leader", 2*time.Minute, func() bool {
			for _, x := range others(nil) {
				if leader = l.Leader(x); leader != nil {
					return true
				}
			}
			return false
		})
		return leader
	}
	wait := func(d time.Duration) { <-time.After(d) }
	slowest := time.Duration(0)
	faults := int(number("LAB_FAULTS", 7))
	for i := range faults {
		wait(time.Duration(r.IntN(1500)) * time.Millisecond)
		leader := leads()
		rest := others(leader)
		switch i % 7 {
		case 0:
			l.Isolate(leader)
		case 1:
			for _, x := range rest {
				l.CutOneWay(leader, x)
			}
		case 2:
			for _, x := range rest {
				l.CutOneWay(x, leader)
			}
		case 3: // the leader with one of five
			l.Split([]*lab.Host{leader, rest[0]}, rest[1:])
		case 4: // two sides meet in one voter
			l.Split(rest[:2], append(rest[3:], leader))
		case 5:
			for range 8 {
				l.Isolate(rest[0])
				wait(300 * time.Millisecond)
				l.Heal()
				wait(100 * time.Millisecond)
			}
		case 6:
			leader.Pause()
		}
		wait(time.Duration(2000+r.IntN(4000)) * time.Millisecond)
		l.Heal()
		if i%7 == 6 {
			leader.Resume()
		}
		mended := time.Now()
		l.Wait("something to be decided", 2*time.Minute, func() bool {
			return rest[0].Fleet("target", "put", "probe", h[0].Name(), "--timeout", "5s").Code == 0
		})
		slowest = max(slowest, time.Since(mended))
	}
	stop.Store(true)
	work.Wait()
	p := rec.Process()
	for i := range 6 {
		typed(p, h[0], fmt.Sprintf("t%d", i), history.Read, "")
	}
	v := rec.Check(time.Minute)
	for _, key := range v.Illegal {
		t.Errorf("what was said of %q cannot have been:\n%s", key, rec.Of(key))
	}
	if len(v.Undecided) > 0 || answered.Load() == 0 {
		t.Errorf("there was no time to decide %v; %d operations were answered", v.Undecided, answered.Load())
	}
	t.Logf("%d faults on 5 voters: %s; decides again within %s of a fault's end", faults, v, slowest.Round(10*time.Millisecond))
}

// typed is one operation as somebody types it on a host.
func typed(p *history.Process, h *lab.Host, name string, verb history.Verb, value string) history.Result {
	return p.Do(history.Op{Key: "target " + name, Verb: verb, Value: value, Strict: true}, func() (res history.Result) {
		args := []string{"target", "show", name, "-o", "json"}
		switch verb {
		case history.Write:
			args = []string{"target", "put", name, h.Name(), "--description", value}
		case history.Delete:
			args = []string{"target", "rm", name}
		}
		r := h.Fleet(append(args, "--timeout", "5s")...)
		switch {
		case verb != history.Write && r.Code == 1 && strings.Contains(r.Stderr, "there is no target"):
			return history.Result{Absent: true}
		case r.Code != 0:
			return history.Result{Unknown: true}
		case verb != history.Read:
			return res
		}
		var shown struct{ Target fleet.TargetView }
		if err := json.Unmarshal([]byte(r.Stdout), &shown); err != nil || shown.Target.Description == "" {
			return history.Result{Unknown: true}
		}
		return history.Result{Value: shown.Target.Description}
	})
}
