package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/dispatch"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

// long makes every child take so long.
func (b *bubble) long(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.takes = d
}

func (b *bubble) cancel(c *client.Client, id fleet.CommandID, names ...string) error {
	req := ssm.CancelCommandRequest{CommandId: string(id)}
	for _, name := range names {
		req.InstanceIds = append(req.InstanceIds, string(b.nodes[name].ID()))
	}
	return c.Call(b.t.Context(), "CancelCommand", req, nil)
}

func (b *bubble) ran(id fleet.CommandID, name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[string(id)+" "+name]
}

// ranAt is when a command began on a host last, and how often it did.
func (b *bubble) ranAt(id fleet.CommandID, name string) (time.Time, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[string(id)+" "+name], b.runs[string(id)+" "+name]
}

// row is the newest that any voter knows of a command on a host.
func (b *bubble) row(id fleet.CommandID, name string) (row fleet.Invocation) {
	for _, n := range b.nodes {
		m := n.member.Load()
		if m == nil {
			continue
		}
		store := m.fsm.Store().Snapshot()
		cmd := store.Command(id)
		if cmd == nil {
			continue
		}
		for _, inv := range store.Invocations(id) {
			if store.Node(cmd.Targets[inv.Index]).Name == name && (inv.State.Final() || row.State.Cancel() == row.State || inv.State != fleet.Pending) {
				row = inv
			}
		}
	}
	return row
}

// until waits until a condition holds, ten minutes at most.
func (b *bubble) until(what string, holds func() bool) {
	b.t.Helper()
	for range 6000 {
		if holds() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("not after ten minutes: %s", what)
}

// started sends a command that takes a while, and waits until hosts run it.
func (b *bubble) started(c *client.Client, names ...string) fleet.CommandID {
	b.t.Helper()
	b.long(50 * time.Second)
	id, err := b.send(c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.until("it runs", func() bool {
		for _, name := range names {
			if b.row(id, name).State != fleet.InProgress {
				return false
			}
		}
		return true
	})
	return id
}

func inBubble(t *testing.T, voters, agents int, f func(t *testing.T, b *bubble, c *client.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, voters, agents)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		f(t, b, c)
	})
}

func TestCancelARunningCommand(t *testing.T) {
	inBubble(t, 3, 2, func(t *testing.T, b *bubble, c *client.Client) {
		id := b.started(c, "n1", "n2", "n3", "n4", "n5")
		watched := make(chan map[string]bool, 1)
		go func() {
			seen := map[string]bool{}
			if err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(e fleet.WatchEvent) error {
				if e.Command != nil {
					seen[e.Command.Status] = true
				}
				if e.Invocation != nil {
					seen["of a host: "+e.Invocation.Status] = true
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			watched <- seen
		}()
		time.Sleep(time.Second)
		begin := time.Now()
		if err := b.cancel(c, id, "n4"); err != nil {
			t.Fatal(err)
		}
		b.until("it has ended on one host", func() bool { return b.row(id, "n4").State == fleet.Cancelled })
		if s := b.row(id, "n5").State; s != fleet.InProgress {
			t.Errorf("where it was not cancelled it is %s", s)
		}
		for range 2 {
			if err := b.cancel(c, id); err != nil {
				t.Fatal(err)
			}
		}
		counts := b.judge(id)
		if counts[fleet.Cancelled] != 5 || time.Since(begin) > 10*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), counts)
		}
		if err := b.cancel(c, id); err != nil {
			t.Errorf("cancelled after its end: %v", err)
		}
		seen := <-watched
		for _, want := range []string{"Cancelling", "Cancelled", "of a host: Cancelling", "of a host: Cancelled"} {
			if !seen[want] {
				t.Errorf("who watched saw %v, and not %s", seen, want)
			}
		}
		if err := b.cancel(c, "00000000-0000-4000-8000-000000000000"); fleet.KindOf(err) != fleet.NotFound {
			t.Errorf("a command that is not there: %v", err)
		}
	})
}

// A host that was down when the command was sent and cancelled never starts it,
// and says so itself. (One that is only cut off may find the delivery in its
// connection when that heals, and begins before it hears of the cancel.)
func TestCancelBeforeDelivery(t *testing.T) {
	inBubble(t, 1, 2, func(t *testing.T, b *bubble, c *client.Client) {
		b.crash("n3")
		id := b.started(c, "n1", "n2")
		if err := b.cancel(c, id); err != nil {
			t.Fatal(err)
		}
		b.until("it is being cancelled", func() bool { return b.row(id, "n3").State == fleet.CancelPending })
		time.Sleep(5 * time.Second)
		b.start("n3")
		counts := b.judge(id)
		row := b.row(id, "n3")
		if counts[fleet.Cancelled] != 3 || b.ran(id, "n3") != 0 || len(row.Signature) == 0 {
			t.Errorf("%v; the host that was away ran it %d times, row %+v", counts, b.ran(id, "n3"), row)
		}
	})
}

// A host that is away for good: Cancelling until it may not begin any more, or,
// if it had the command, until its time is over.
func TestCancelOfALostHost(t *testing.T) {
	inBubble(t, 1, 2, func(t *testing.T, b *bubble, c *client.Client) {
		b.net.Isolate(b.hosts["n3"])
		id := b.started(c, "n1", "n2")
		b.net.Isolate(b.hosts["n2"])
		if err := b.cancel(c, id); err != nil {
			t.Fatal(err)
		}
		cmd := b.nodes["n1"].member.Load().fsm.Store().Command(id)
		at := map[string]time.Time{}
		for !b.row(id, "n2").State.Final() || !b.row(id, "n3").State.Final() {
			for _, name := range []string{"n2", "n3"} {
				if s := b.row(id, name).State; s.Final() && at[name].IsZero() {
					at[name] = time.Now()
				} else if !s.Final() && !s.Cancelling() {
					t.Fatalf("%s is %s", name, s)
				}
			}
			if time.Since(time.Unix(0, cmd.Expires)) > 10*time.Minute {
				t.Fatal("it does not end")
			}
			time.Sleep(time.Second)
		}
		if at["n2"].IsZero() {
			at["n2"] = time.Now()
		}
		if s, early := b.row(id, "n3").State, at["n3"].Before(time.Unix(0, cmd.NotAfter).Add(dispatch.Skew)); s != fleet.Cancelled || early {
			t.Errorf("the host that never had it is %s after %s", s, at["n3"].Sub(time.Unix(0, cmd.Created)))
		}
		if s, early := b.row(id, "n2").State, at["n2"].Before(time.Unix(0, cmd.Expires).Add(dispatch.Skew)); s != fleet.DeliveryTimedOut || early {
			t.Errorf("the host that had it is %s after %s", s, at["n2"].Sub(time.Unix(0, cmd.Created)))
		}
		b.net.HealAll()
	})
}

// The leader commits the cancel and is lost before a host that it cannot reach
// hears of it: the next leader tells it.
func TestCancelAndTheLeaderIsLost(t *testing.T) {
	inBubble(t, 3, 2, func(t *testing.T, b *bubble, c *client.Client) {
		id := b.started(c, "n4", "n5")
		leader := b.awaitLeader("")
		// Neither itself nor through another voter's connection: the host is cut
		// off until the leader is gone.
		b.net.Isolate(b.hosts["n5"])
		if err := b.cancel(c, id); err != nil {
			t.Fatal(err)
		}
		b.crash(leader)
		b.net.HealAll()
		b.awaitLeader(leader)
		b.start(leader)
		_, states := b.await(id)
		for name, s := range states {
			if name != leader && s != fleet.Cancelled {
				t.Errorf("%s is %s", name, s)
			}
		}
		b.judge(id)
	})
}

// A host that crashed while it ran the command comes back after the cancel: its
// journal says started and not cancelled, so it was Interrupted.
func TestCancelWhileAHostIsDown(t *testing.T) {
	inBubble(t, 1, 2, func(t *testing.T, b *bubble, c *client.Client) {
		id := b.started(c, "n1", "n2", "n3")
		b.crash("n2")
		if err := b.cancel(c, id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		b.start("n2")
		_, states := b.await(id)
		want := map[string]fleet.InvocationState{"n1": fleet.Cancelled, "n2": fleet.Interrupted, "n3": fleet.Cancelled}
		for name, s := range want {
			if states[name] != s {
				t.Errorf("%s is %s, want %s", name, states[name], s)
			}
		}
		b.judge(id)
	})
}

// TestCancelInDisorder cancels at random times while leaders, hosts and
// messages are lost. What is promised of each row holds.
func TestCancelInDisorder(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	inBubble(t, 3, 3, func(t *testing.T, b *bubble, _ *client.Client) {
		seen := map[fleet.InvocationState]int{}
		for round := range 8 {
			c := b.client()
			b.long(time.Duration(rand.N(12000)) * time.Millisecond)
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			b.net.SetLoss(0.2)
			time.Sleep(time.Duration(rand.N(4000)) * time.Millisecond)
			agent := fmt.Sprintf("n%d", 4+rand.N(3))
			some := []string{agent, "n1"}
			if round%2 == 0 {
				some = nil
			}
			disturbed := ""
			switch rand.N(4) {
			case 0:
				b.net.Isolate(b.hosts[agent])
			case 1:
				disturbed = agent
			case 2:
				disturbed = b.awaitLeader("")
			}
			ctx, give := context.WithTimeout(t.Context(), time.Minute)
			for b.cancel(c, id, some...) != nil && ctx.Err() == nil {
				time.Sleep(time.Second)
			}
			give()
			if disturbed != "" {
				time.Sleep(time.Duration(rand.N(500)) * time.Millisecond)
				b.crash(disturbed)
			}
			time.Sleep(time.Duration(rand.N(8000)) * time.Millisecond)
			b.net.SetLoss(0)
			b.net.HealAll()
			if disturbed != "" {
				b.start(disturbed)
			}
			b.awaitLeader("")
			for s, n := range b.judge(id) {
				seen[s] += n
			}
			c.Close()
		}
		t.Log(seen)
		if seen[fleet.Cancelled] == 0 || seen[fleet.Success] == 0 {
			t.Errorf("the disorder shows too little: %v", seen)
		}
	})
}
