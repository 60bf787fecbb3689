package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/ssm"
	"fleet/raftfsm/state"
)

// witness counts a child of a command that begins, and what it returns counts
// its end: one for all hosts, so that what is promised of all of them together
// is seen. b.mu is held.
func (b *bubble) witness(id fleet.CommandID) (end func()) {
	b.atWork[id]++
	b.peak[id] = max(b.peak[id], b.atWork[id])
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.atWork[id]--
	}
}

// sendPaced sends a command with limits to every host.
func (b *bubble) sendPaced(c *client.Client, concurrency, errors string) fleet.CommandID {
	b.t.Helper()
	content, _, _ := document.Builtin("AWS-RunShellScript")
	var sent ssm.SendCommandResult
	if err := c.Call(b.t.Context(), "SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {"true"}, "executionTimeout": {"60"}},
		MaxConcurrency: concurrency, MaxErrors: errors, TimeoutSeconds: 60,
	}, &sent); err != nil {
		b.t.Fatal(err)
	}
	return fleet.CommandID(sent.Command.CommandId)
}

// begun is how many hosts began a command.
func (b *bubble) begun(id fleet.CommandID) (n int) {
	for name := range b.hosts {
		n += b.ran(id, name)
	}
	return n
}

func (b *bubble) most(id fleet.CommandID) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.peak[id]
}

// judgePaced is judge, and that no more than limit ran at once.
func (b *bubble) judgePaced(id fleet.CommandID, limit int) map[fleet.InvocationState]int {
	b.t.Helper()
	counts := b.judge(id)
	if peak := b.most(id); peak > limit {
		b.t.Errorf("%s: %d hosts ran it at once, the limit is %d", id, peak, limit)
	}
	return counts
}

func TestPacedCommand(t *testing.T) {
	inBubble(t, 3, 4, func(t *testing.T, b *bubble, c *client.Client) {
		began := time.Now()
		id := b.sendPaced(c, "2", "100%")
		if counts := b.judgePaced(id, 2); counts[fleet.Success] != 7 || b.most(id) != 2 {
			t.Errorf("%v, at most %d at once", counts, b.most(id))
		}
		if took := time.Since(began); took < 4*runTime || took > 6*runTime {
			t.Errorf("7 hosts, 2 at a time, %s each: it took %s", runTime, took)
		}
		id = b.sendPaced(c, "50", "0") // the limits of SSM's API
		if counts := b.judgePaced(id, 7); counts[fleet.Success] != 7 {
			t.Errorf("%v", counts)
		}
	})
}

// TestPacedStops: after one error too many nothing begins, what runs goes on,
// and the hosts that waited know that it is over.
func TestPacedStops(t *testing.T) {
	inBubble(t, 3, 4, func(t *testing.T, b *bubble, c *client.Client) {
		b.mu.Lock()
		for name := range b.hosts {
			b.fails[name] = true
		}
		b.mu.Unlock()
		id := b.sendPaced(c, "2", "1")
		counts := b.judgePaced(id, 2)
		if failed := counts[fleet.Failed]; failed < 2 || failed > 3 || counts[fleet.Terminated] != 7-failed || b.begun(id) != failed {
			t.Errorf("%v, %d began", counts, b.begun(id))
		}
		b.until("no host waits any more", func() bool {
			for _, n := range b.nodes {
				if n.runner.Open() > 0 {
					return false
				}
			}
			return true
		})
		time.Sleep(10 * time.Minute)
		if n := b.begun(id); n != counts[fleet.Failed] {
			t.Errorf("%d began in the end", n)
		}
	})
}

// seeded is a source of chance of another seed each time, which the test prints:
// FLEET_SEED repeats one.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("FLEET_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("FLEET_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// TestPacedThroughLeaderChanges disturbs the leader when so many hosts have
// begun: no more than two ever run, none twice, and all of them end.
func TestPacedThroughLeaderChanges(t *testing.T) {
	r := seeded(t)
	for _, tc := range []struct {
		name    string
		disturb func(b *bubble, leader string) (mend func())
	}{
		{"crash", func(b *bubble, leader string) func() {
			b.crash(leader)
			return func() { b.start(leader) }
		}},
		{"isolated", func(b *bubble, leader string) func() {
			b.net.Isolate(b.hosts[leader])
			return b.net.HealAll
		}},
		{"cannot be heard", func(b *bubble, leader string) func() {
			for _, h := range b.hosts {
				if h != b.hosts[leader] {
					b.net.CutOneWay(b.hosts[leader], h)
				}
			}
			return b.net.HealAll
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t, 3, 3)
				defer b.stopAll()
				steps := 6
				if testing.Short() {
					steps = 2
				}
				for begun := range steps {
					c := b.client()
					id := b.sendPaced(c, "2", "100%")
					b.until(fmt.Sprintf("%d began", begun), func() bool { return b.begun(id) >= begun })
					time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
					mend := tc.disturb(b, b.awaitLeader(""))
					time.Sleep(time.Duration(5+r.IntN(10)) * time.Second)
					mend()
					b.awaitLeader("")
					counts := b.judgePaced(id, 2)
					t.Logf("after %d began: %v", begun, counts)
					if counts[fleet.Terminated] > 0 {
						t.Errorf("terminated without a limit of errors: %v", counts)
					}
					c.Close()
				}
			})
		})
	}
}

// TestPacedErrorsThroughLeaderChanges: the leader goes when the first host has
// failed. Whoever leads next begins nothing more than was released by then.
func TestPacedErrorsThroughLeaderChanges(t *testing.T) {
	r := seeded(t)
	inBubble(t, 3, 3, func(t *testing.T, b *bubble, _ *client.Client) {
		b.mu.Lock()
		for name := range b.hosts {
			b.fails[name] = true
		}
		b.mu.Unlock()
		for round := range 4 {
			c := b.client()
			id := b.sendPaced(c, "1", "0")
			b.until("the first began", func() bool { return b.begun(id) >= 1 })
			time.Sleep(time.Duration(r.IntN(2500)) * time.Millisecond)
			leader := b.awaitLeader("")
			b.crash(leader)
			time.Sleep(20 * time.Second)
			b.start(leader)
			b.ready(leader)
			b.awaitLeader("")
			counts := b.judgePaced(id, 1)
			if errors := counts[fleet.Failed] + counts[fleet.Interrupted]; errors != 1 || counts[fleet.Terminated] != 5 || b.begun(id) != 1 {
				t.Errorf("round %d: %v, %d began", round, counts, b.begun(id))
			}
			c.Close()
		}
	})
}

// TestPacedAgentDies ends an agent at each step of its turn, as kill -9 does:
// what had not begun begins once when the host is back, what had begun does not
// again, and nobody takes its place meanwhile.
func TestPacedAgentDies(t *testing.T) {
	inBubble(t, 1, 3, func(t *testing.T, b *bubble, c *client.Client) {
		const victim = "n3"
		for _, tc := range []struct {
			at   failpoint.Point
			want fleet.InvocationState
			runs int
		}{
			{failpoint.Arrived, fleet.Success, 1},
			{failpoint.Accept, fleet.Success, 1},
			{failpoint.Accepted, fleet.Success, 1},
			{failpoint.Answer, fleet.Success, 1},
			{failpoint.Start, fleet.Success, 1}, // released, and not in the journal
			{failpoint.Started, fleet.Interrupted, 0},
			{failpoint.Exec, fleet.Interrupted, 0},
			{failpoint.Runs, fleet.Interrupted, 1},
			{failpoint.Exited, fleet.Interrupted, 1},
			{failpoint.Finish, fleet.Interrupted, 1},
			{failpoint.Finished, fleet.Success, 1},
			{failpoint.Send, fleet.Success, 1},
		} {
			struck := make(chan struct{}, 1)
			dying := b.nodes[victim]
			b.onStrike(func(name string, p failpoint.Point, _ fleet.CommandID) {
				if name != victim || p != tc.at {
					return
				}
				b.onStrike(nil)
				if err := b.end(dying, victim, false); err != nil {
					t.Error(err)
				}
				struck <- struct{}{}
			})
			id := b.sendPaced(c, "1", "100%")
			select {
			case <-struck:
			case <-time.After(time.Hour):
				t.Fatalf("%s was not reached", tc.at)
			}
			b.bury(victim)
			released := b.row(id, victim).Released != 0 || b.row(id, victim).State == fleet.Released
			before := b.begun(id)
			time.Sleep(20 * time.Second)
			if row := b.row(id, victim); released && !row.State.Final() && b.begun(id) != before {
				t.Errorf("%s: %d began while the place of the dead was held", tc.at, b.begun(id)-before)
			}
			b.revive(victim)
			b.start(victim)
			b.ready(victim)
			counts := b.judgePaced(id, 1)
			if row := b.row(id, victim); row.State != tc.want || b.ran(id, victim) > tc.runs {
				t.Errorf("%s: it is %s and ran %d times; want %s and %d (%v)", tc.at, row.State, b.ran(id, victim), tc.want, tc.runs, counts)
			}
		}
	})
}

// TestPacedHostIsCutOff: nothing takes the place of a host that cannot be heard
// until it must have ended.
func TestPacedHostIsCutOff(t *testing.T) {
	inBubble(t, 3, 2, func(t *testing.T, b *bubble, c *client.Client) {
		id := b.sendPaced(c, "1", "100%")
		b.until("one began", func() bool { return b.begun(id) == 1 })
		var victim string
		for name := range b.hosts {
			if b.ran(id, name) > 0 {
				victim = name
			}
		}
		b.net.Isolate(b.hosts[victim])
		time.Sleep(2 * time.Minute)
		if n := b.begun(id); n != 1 {
			t.Errorf("%d began while the place was held", n-1)
		}
		var cmd *fleet.Command
		for name, n := range b.nodes {
			if m := n.member.Load(); m != nil && name != victim {
				cmd = m.fsm.Store().Command(id)
			}
		}
		if index, ok := state.TargetIndex(cmd, b.nodes[victim].ID()); !ok || cmd.Held() != 1 {
			t.Fatalf("%s is target %d, %v; %d places are held", victim, index, ok, cmd.Held())
		}
		b.until("the next ones begin", func() bool { return b.begun(id) > 1 })
		b.net.HealAll()
		counts := b.judgePaced(id, 1)
		if counts[fleet.Success] != 4 || counts[fleet.DeliveryTimedOut] != 1 {
			t.Errorf("%v", counts)
		}
	})
}

// TestPacedReleasedWhenItStops: an agent dies when its turn has come and before it
// began, and is back when one too many has failed. It does not begin any more.
func TestPacedReleasedWhenItStops(t *testing.T) {
	inBubble(t, 1, 4, func(t *testing.T, b *bubble, c *client.Client) {
		b.long(20 * time.Second)
		b.mu.Lock()
		for name := range b.hosts {
			b.fails[name] = true
		}
		b.mu.Unlock()
		nodes := maps.Clone(b.nodes)
		struck := make(chan string, 1)
		b.onStrike(func(name string, p failpoint.Point, id fleet.CommandID) {
			if p != failpoint.Start || name == "n1" || b.begun(id) == 0 {
				return // the first of all is to fail
			}
			b.onStrike(nil)
			if err := b.end(nodes[name], name, false); err != nil {
				t.Error(err)
			}
			struck <- name
		})
		id := b.sendPaced(c, "3", "0")
		victim := <-struck
		b.bury(victim)
		b.until("it stops", func() bool {
			cmd := b.nodes["n1"].member.Load().fsm.Store().Command(id)
			return cmd.Stopped()
		})
		if row := b.row(id, victim); row.State != fleet.Released {
			t.Fatalf("%s is %s; want it released", victim, row.State)
		}
		begun := b.begun(id)
		b.revive(victim)
		b.start(victim)
		b.ready(victim)
		counts := b.judgePaced(id, 3)
		if b.ran(id, victim) != 0 || b.begun(id) != begun || b.row(id, victim).State != fleet.Terminated {
			t.Errorf("%s ran %d times and is %s, %d began after the end; %v", victim, b.ran(id, victim), b.row(id, victim).State, b.begun(id)-begun, counts)
		}
		b.until("no host waits any more", func() bool { return b.nodes[victim].runner.Open() == 0 })
	})
}

// TestPacedCancel: what waits for its turn is over at once, by its host's word.
func TestPacedCancel(t *testing.T) {
	inBubble(t, 3, 3, func(t *testing.T, b *bubble, c *client.Client) {
		b.long(50 * time.Second)
		id := b.sendPaced(c, "2", "100%")
		b.until("two run", func() bool { return b.begun(id) == 2 })
		began := time.Now()
		if err := b.cancel(c, id); err != nil {
			t.Fatal(err)
		}
		if counts := b.judgePaced(id, 2); counts[fleet.Cancelled] != 6 || b.begun(id) != 2 || time.Since(began) > 20*time.Second {
			t.Errorf("%v, %d began, after %s", counts, b.begun(id), time.Since(began))
		}
	})
}

// TestPacedOutboundOnly: a host that cannot be dialled has its turn as the others
// have, also while the leader reaches it only through another voter.
func TestPacedOutboundOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := firewalled(t)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		id := b.sendPaced(c, "1", "0")
		if counts := b.judgePaced(id, 1); counts[fleet.Success] != 5 {
			t.Errorf("%v", counts)
		}
		leader := b.awaitLeader("")
		b.net.Cut(b.hosts[leader], b.hosts["n5"])
		id = b.sendPaced(c, "2", "0")
		if counts := b.judgePaced(id, 2); counts[fleet.Success] != 5 {
			t.Errorf("with its connection to the leader cut: %v", counts)
		}
	})
}

// TestPacedRestarts restarts agents in an orderly way while they wait and while
// it is their turn, as an upgrade does.
func TestPacedRestarts(t *testing.T) {
	inBubble(t, 1, 4, func(t *testing.T, b *bubble, c *client.Client) {
		id := b.sendPaced(c, "1", "100%")
		for _, name := range []string{"n2", "n3", "n4", "n5"} {
			begun := b.begun(id)
			b.until("another began", func() bool { return b.begun(id) > begun || b.begun(id) == 5 })
			b.crash(name)
			time.Sleep(time.Second)
			b.start(name)
			b.ready(name)
		}
		counts := b.judgePaced(id, 1)
		if counts[fleet.Success]+counts[fleet.Interrupted] != 5 || counts[fleet.Success] == 0 {
			t.Errorf("%v", counts)
		}
	})
}
