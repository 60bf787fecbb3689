package node

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/memnet"
	"fleet/scripts/history"
)

// fault is one way to break the quorum; mend undoes it.
type fault struct {
	name string
	do   func(h *havoc) (mend func())
}

var faults = []fault{
	{"the leader is killed", func(h *havoc) func() {
		leader := h.awaitLeader("")
		h.kill(leader)
		return func() { h.start(leader) }
	}},
	{"the leader is isolated", func(h *havoc) func() {
		h.net.Isolate(h.hosts[h.awaitLeader("")])
		return h.net.HealAll
	}},
	{"the leader is cut off from the voters, and not from the clients", func(h *havoc) func() {
		leader := h.awaitLeader("")
		h.net.Partition(h.named([]string{leader}), h.named(h.others(leader)))
		return h.net.HealAll
	}},
	{"the leader is not heard", func(h *havoc) func() {
		leader := h.awaitLeader("")
		for name := range h.hosts {
			if name != leader {
				h.net.CutOneWay(h.hosts[leader], h.hosts[name])
			}
		}
		return h.net.HealAll
	}},
	{"the leader hears nobody", func(h *havoc) func() {
		leader := h.awaitLeader("")
		for name := range h.hosts {
			if name != leader {
				h.net.CutOneWay(h.hosts[name], h.hosts[leader])
			}
		}
		return h.net.HealAll
	}},
	{"the leader is with a minority, and with the clients", func(h *havoc) func() {
		leader := h.awaitLeader("")
		names := h.others(leader)
		few, many := append([]string{leader}, names[:len(h.hosts)/2-1]...), names[len(h.hosts)/2-1:]
		h.net.Partition(append(h.named(few), h.host), h.named(many))
		return h.net.HealAll
	}},
	{"two sides meet in one voter", func(h *havoc) func() {
		names := h.others("")
		half := len(names) / 2
		h.net.Partition(h.named(names[:half]), h.named(names[half+1:])) // names[half] reaches both
		return h.net.HealAll
	}},
	{"cables flap", func(h *havoc) func() {
		for range 10 {
			names := h.others("")
			h.net.Isolate(h.hosts[names[0]])
			time.Sleep(300 * time.Millisecond)
			h.net.HealAll()
			time.Sleep(100 * time.Millisecond)
		}
		return func() {}
	}},
	{"a minority is killed", func(h *havoc) func() {
		dead := h.others("")[:(len(h.hosts)-1)/2]
		for _, name := range dead {
			h.kill(name)
		}
		return func() {
			for _, name := range dead {
				h.start(name)
			}
		}
	}},
	{"all are killed at once", func(h *havoc) func() {
		names := h.others("")
		for _, name := range names {
			h.kill(name)
		}
		return func() {
			h.rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				h.start(name)
				time.Sleep(time.Duration(h.rand.IntN(500)) * time.Millisecond)
			}
		}
	}},
	{"packets are lost", func(h *havoc) func() {
		h.net.SetLoss(0.3)
		h.net.SetLatency(time.Duration(h.rand.IntN(100)) * time.Millisecond)
		return func() {
			h.net.SetLoss(0)
			h.net.SetLatency(time.Millisecond)
		}
	}},
}

// havoc breaks the quorum of a bubble of voters.
type havoc struct {
	*bubble
	rand *rand.Rand
}

// others are all voters but one, in any order.
func (h *havoc) others(but string) []string {
	var names []string
	for name := range h.hosts {
		if name != but {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	h.rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

func (h *havoc) named(names []string) []*memnet.Host {
	hosts := make([]*memnet.Host, len(names))
	for i, name := range names {
		hosts[i] = h.hosts[name]
	}
	return hosts
}

func (h *havoc) kill(name string) {
	if err := h.end(h.nodes[name], name, true); err != nil {
		h.t.Fatal(err)
	}
	h.bury(name)
}

// TestHistories breaks a quorum while ten clients change and read what it
// decides, and holds that there is one order of all that explains every answer;
// that no two lead in one term; that the voters are equal in the end; and that
// it decides again soon after a fault. FLEET_FAULTS faults (one of each kind by
// default), on FLEET_VOTERS voters; FLEET_SEED repeats a schedule.
func TestHistories(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	number := func(name string, otherwise int) int {
		v, err := strconv.Atoi(os.Getenv(name))
		if err != nil || v < 1 {
			return otherwise
		}
		return v
	}
	const clients, batch = 10, 20 // a fleet for each batch of faults
	total, voters, seed := number("FLEET_FAULTS", len(faults)), number("FLEET_VOTERS", 3), seedOf(t)
	began, slowest := time.Now(), time.Duration(0)
	var sum history.Verdict
	for done := 0; done < total; done += batch {
		var rec history.Recorder
		var virtual time.Duration
		synctest.Test(t, func(t *testing.T) {
			h := &havoc{bubble: newBubble(t, voters, 0), rand: rand.New(rand.NewPCG(seed, uint64(done)))}
			defer h.stopAll()
			start := time.Now()
			slowest = max(slowest, h.wreak(&rec, clients, done, min(batch, total-done)))
			virtual = time.Since(start)
		})
		v := rec.Check(30 * time.Second)
		t.Logf("faults %d to %d of %d, in %s of their time: %s", done+1, min(done+batch, total), total, virtual.Round(time.Second), v)
		for _, key := range v.Illegal {
			t.Errorf("FLEET_SEED=%d: what was said of %q cannot have been:\n%s", seed, key, rec.Of(key))
		}
		if len(v.Undecided) > 0 {
			t.Errorf("there was no time to decide %v", v.Undecided)
		}
		sum.Operations, sum.Unknown, sum.Keys = sum.Operations+v.Operations, sum.Unknown+v.Unknown, sum.Keys+v.Keys
		if t.Failed() {
			break
		}
	}
	t.Logf("%d faults on %d voters, %d operations (%d of unknown outcome) by %d clients on %d keys: 0 illegal; decides again within %s of a fault's end; %s of ours",
		total, voters, sum.Operations, sum.Unknown, clients, sum.Keys, slowest.Round(10*time.Millisecond), time.Since(began).Round(time.Second))
}

// wreak breaks the quorum a number of times, and gives the longest time that it
// took to decide something after a fault was mended.
func (h *havoc) wreak(rec *history.Recorder, clients, from, number int) (slowest time.Duration) {
	t := h.t
	var voters []string
	for _, name := range h.others("") {
		voters = append(voters, h.addr(name))
	}
	open := func(addrs ...string) *client.Client {
		for {
			c, err := client.Open(t.Context(), h.cred, client.Options{Dial: h.host.DialContext, Addresses: addrs, Timeout: 5 * time.Second})
			if err == nil {
				return c
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	keys := history.Keys{Node: h.nodes["n1"].ID(), Labels: 16, Targets: 8}
	probe := open(voters...)
	defer probe.Close()
	first := rec.Process()
	first.Do(history.Op{Key: "name", Verb: history.Write, Value: "n1"}, func() history.Result {
		return history.Result{Unknown: probe.Call(t.Context(), "RenameNode", fleet.RenameNodeRequest{InstanceId: string(keys.Node), Name: "n1"}, nil) != nil}
	})

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var work sync.WaitGroup
	var answered atomic.Int64
	for i := range clients {
		c, own := open(voters[i%len(voters)]), rand.New(rand.NewPCG(uint64(from), uint64(i)))
		work.Go(func() {
			defer c.Close()
			rec.Work(ctx, paced{c}, keys, own, &answered)
		})
	}
	leaders := map[uint64]string{} // by term
	work.Go(func() {
		for ctx.Err() == nil {
			for name, n := range h.running() {
				if m := n.member.Load(); m != nil {
					if s := m.quorum.Stats(); s.State == "Leader" {
						if other := leaders[s.Term]; other != "" && other != name {
							t.Errorf("%s and %s lead in term %d", other, name, s.Term)
						}
						leaders[s.Term] = name
					}
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	for i := range number {
		time.Sleep(time.Duration(h.rand.IntN(1000)) * time.Millisecond)
		f := faults[(from+i)%len(faults)]
		mend := f.do(h)
		time.Sleep(time.Duration(1000+h.rand.IntN(6000)) * time.Millisecond)
		mend()
		mended := time.Now()
		for {
			ctx, give := context.WithTimeout(t.Context(), time.Second)
			err := probe.Call(ctx, "PutTarget", fleet.PutTargetRequest{Name: "probe", NodeSet: "web1"}, nil)
			give()
			if err == nil {
				break
			}
			if time.Since(mended) > time.Minute {
				t.Fatalf("fault %d, %s: nothing is decided a minute after it was mended: %v", from+i+1, f.name, err)
			}
		}
		slowest = max(slowest, time.Since(mended))
		rec.Settle(t.Context(), probe, keys) // before others write again what was lost
	}
	time.Sleep(time.Second)
	stop()
	work.Wait()
	rec.Settle(t.Context(), probe, keys)

	hashes := map[string]string{}
	for name, n := range h.nodes {
		if _, err := n.member.Load().control.Read(t.Context(), false); err != nil {
			t.Errorf("a read on %s when all is over: %v", name, err)
		}
		hashes[n.member.Load().fsm.Hash().String()] = name
	}
	if len(hashes) != 1 {
		t.Errorf("the voters differ when all is over: %v", hashes)
	}
	if answered.Load() == 0 {
		t.Error("nothing was answered: the test shows nothing")
	}
	return slowest
}

// paced is a client that takes a breath between two operations: in virtual time
// an operation takes none, and a history would have no end.
type paced struct{ *client.Client }

func (p paced) Call(ctx context.Context, operation string, req, resp any) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(5+rand.N(95)) * time.Millisecond):
	}
	return p.Client.Call(ctx, operation, req, resp)
}
