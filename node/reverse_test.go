package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/rpc"
)

// quick sends a command to every host and holds that it succeeds on all of
// them within so long.
func (b *bubble) quick(what string, within time.Duration) {
	b.t.Helper()
	c := b.client()
	defer c.Close()
	began := time.Now()
	id, err := b.send(c)
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	counts := b.judge(id)
	if counts[fleet.Success] != len(b.hosts) {
		b.t.Errorf("%s: ended with %v, want %d successes", what, counts, len(b.hosts))
	}
	if took := time.Since(began); took > within {
		b.t.Errorf("%s: took %s, want %s at most", what, took, within)
	}
}

// firewalled is a fleet of three voters and two hosts, the last of which drops
// what others begin. It was started anew behind its firewall, so that nothing
// is open from before.
func firewalled(t *testing.T) *bubble {
	t.Helper()
	b := newBubble(t, 3, 2)
	b.crash("n5")
	b.hosts["n5"].Firewall(true)
	b.start("n5")
	b.ready("n5")
	b.awaitReverse("n5", "n1", "n2", "n3")
	return b
}

// awaitReverse waits until a host has its connections at the voters named.
func (b *bubble) awaitReverse(host string, voters ...string) {
	b.t.Helper()
	for _, v := range voters {
		for began := time.Now(); !b.nodes[v].member.Load().rpc.Reach(b.nodes[host].ID()).Reverse; time.Sleep(100 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				b.t.Fatalf("%s has no reverse connection at %s after a minute", host, v)
			}
		}
	}
}

// TestOutboundOnlyHost runs commands on a host that cannot be dialled, through
// everything that may happen to the hosts that it keeps connections to.
func TestOutboundOnlyHost(t *testing.T) {
	// A run takes 2 s; no delivery may wait for a dial that nobody answers.
	const soon = 2*runTime + time.Second
	t.Run("leaders come and go", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := firewalled(t)
			defer b.stopAll()
			b.quick("at first", soon)
			for range 3 {
				leader := b.awaitLeader("")
				b.crash(leader)
				next := b.awaitLeader(leader)
				if !b.nodes[next].member.Load().rpc.Reach(b.nodes["n5"].ID()).Reverse {
					t.Errorf("%s leads and has no connection of n5", next)
				}
				c := b.client()
				id, err := b.send(c)
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				time.Sleep(soon)
				m := b.nodes[next].member.Load()
				for _, inv := range m.fsm.Store().Invocations(id) {
					cmd := m.fsm.Store().Command(id)
					if cmd.Targets[inv.Index] == b.nodes["n5"].ID() && inv.State != fleet.Success {
						t.Errorf("n5 is %s %s after the command under a new leader", inv.State, soon)
					}
				}
				b.start(leader)
				b.ready(leader)
				b.awaitReverse("n5", leader)
				b.await(id)
				b.quick("with the old leader back", soon)
			}
		})
	})
	t.Run("its connection is half open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := firewalled(t)
			defer b.stopAll()
			leader := b.awaitLeader("")
			// The leader thinks that it has a connection; nothing comes through
			// it. The other voters reach the host.
			b.net.Cut(b.hosts[leader], b.hosts["n5"])
			reach := b.nodes[leader].member.Load().rpc.Reach(b.nodes["n5"].ID())
			if !reach.Reverse {
				t.Error("the leader has noticed the cut at once: the test does not reach what it is for")
			}
			b.quick("through another voter", 45*time.Second) // half of it n5 spends on telling the leader

			reach = b.nodes[leader].member.Load().rpc.Reach(b.nodes["n5"].ID())
			if reach.Via == "" {
				t.Errorf("the leader reaches n5 by %+v, want through another voter", reach)
			}
			time.Sleep(30 * time.Second)
			if b.nodes[leader].member.Load().rpc.Reach(b.nodes["n5"].ID()).Reverse {
				t.Error("the half-open connection is still believed in after a minute")
			}
			b.quick("through another voter, known", 15*time.Second)
			b.net.HealAll()
			b.awaitReverse("n5", leader)
			b.quick("after the cut healed", soon)
		})
	})
	t.Run("it loses power", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := firewalled(t)
			defer b.stopAll()
			for range 3 {
				b.crash("n5")
				b.start("n5")
				b.ready("n5")
				b.awaitReverse("n5", "n1", "n2", "n3")
				b.quick("after it came back", soon)
			}
		})
	})
	t.Run("all voters start anew", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := firewalled(t)
			defer b.stopAll()
			for _, v := range []string{"n1", "n2", "n3"} {
				b.crash(v)
			}
			for _, v := range []string{"n1", "n2", "n3"} {
				b.start(v)
			}
			b.awaitLeader("")
			b.awaitReverse("n5", "n1", "n2", "n3")
			b.quick("after all came back", soon)
		})
	})
}

// TestRelayRefuses asks a voter to pass on what it must not.
func TestRelayRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := firewalled(t)
		defer b.stopAll()
		from, by := b.nodes["n1"].member.Load(), b.nodes["n2"]
		relay := func(to fleet.NodeID, method string) (*rpc.RelayResponse, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			return rpc.Call[rpc.RelayRequest, rpc.RelayResponse](ctx, from.rpc, quorumHost(by.ID()), rpc.MethodRelay,
				&rpc.RelayRequest{Node: to, Method: method, Body: []byte{0x80}})
		}
		target := b.nodes["n5"].ID()
		for _, m := range []string{
			rpc.MethodRelay, rpc.MethodHeartbeat, rpc.MethodReport, rpc.MethodGetBlob, rpc.MethodForward, "None", "",
		} {
			if _, err := relay(target, m); fleet.KindOf(err) != fleet.Denied {
				t.Errorf("relay of %q: %v, want denied", m, err)
			}
		}
		if resp, err := relay(target, rpc.MethodCandidate); err != nil || !resp.Found || len(resp.Body) == 0 {
			t.Errorf("relay of Candidate: %+v, %v", resp, err)
		}
		if resp, err := relay("mi-0123456789abcdef0", rpc.MethodCandidate); err != nil || resp.Found {
			t.Errorf("relay to a host without a connection: %+v, %v; want not found", resp, err)
		}
	})
}

// reach is what the fleet says of the way to a host.
func (b *bubble) reach(c *client.Client, host string) (how string, via fleet.NodeID) {
	b.t.Helper()
	var got fleet.DescribeNodesResult
	if err := c.Call(b.t.Context(), "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{host}}, &got); err != nil {
		b.t.Fatal(err)
	}
	return got.Nodes[0].Reach, got.Nodes[0].ReachVia
}

func (b *bubble) awaitReach(host, want string, within time.Duration) (via fleet.NodeID) {
	b.t.Helper()
	c := b.client()
	defer c.Close()
	for began := time.Now(); ; time.Sleep(time.Second) {
		got, via := b.reach(c, host)
		if got == want {
			return via
		}
		if time.Since(began) > within {
			b.t.Fatalf("%s is reached %q after %s, want %q", host, got, within, want)
		}
	}
}

// gossiped is what another host's ring says of a host: a hint.
func (b *bubble) gossiped(by, of string) string {
	ring := b.nodes[by].ringRef.Load()
	if ring == nil {
		return ""
	}
	for _, m := range ring.Members() {
		if m.Node == b.nodes[of].ID() {
			return m.State.String()
		}
	}
	return ""
}

// TestReach follows what operators and the host itself are told of the way to
// it, and that a host that cannot be dialled keeps out of the ring.
func TestReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := firewalled(t)
		defer b.stopAll()
		leader := b.awaitLeader("")
		b.awaitReach("n4", fleet.ReachDirect, time.Minute)
		b.awaitReach(leader, fleet.ReachDirect, time.Minute)
		b.awaitReach("n5", fleet.ReachReverse, 2*time.Minute)
		// A host learns how it is reached with a heartbeat of its own.
		for host, want := range map[string]string{"n5": fleet.ReachReverse, "n4": fleet.ReachDirect} {
			own := func() string { return b.nodes[host].LocalStatus().Reach }
			for began := time.Now(); own() != want; time.Sleep(time.Second) {
				if time.Since(began) > time.Minute {
					t.Fatalf("%s says that it is reached %q", host, own())
				}
			}
		}

		// It is out of the ring, and stays out: nobody sees it come and go.
		time.Sleep(2 * time.Minute)
		for range 240 {
			if got := b.gossiped("n4", "n5"); got == "alive" {
				t.Fatalf("n4's ring has n5 as %s", got)
			}
			time.Sleep(time.Second)
		}
		if got := b.nodes["n4"].LocalStatus().RingAlive; got != 4 {
			t.Errorf("%d in the ring, want the other 4", got)
		}
		b.quick("out of the ring", 2*runTime+time.Second)

		// The leader is cut off from it: another voter has a connection.
		b.net.Cut(b.hosts[leader], b.hosts["n5"])
		if via := b.awaitReach("n5", fleet.ReachRelayed, time.Minute); via == "" || via == b.nodes[leader].ID() {
			t.Errorf("reached via %q", via)
		}
		b.net.HealAll()
		b.awaitReach("n5", fleet.ReachReverse, time.Minute)

		// It is off.
		b.hosts["n5"].Down()
		n5 := b.nodes["n5"]
		delete(b.nodes, "n5")
		n5.cancel(errStopped)
		<-n5.Done()
		b.awaitReach("n5", fleet.ReachUnreachable, 2*time.Minute)

		// It comes back without its firewall.
		b.hosts["n5"].Up()
		b.hosts["n5"].Firewall(false)
		b.start("n5")
		b.ready("n5")
		b.awaitReach("n5", fleet.ReachDirect, 6*time.Minute)
		for began := time.Now(); b.gossiped("n4", "n5") != "alive"; time.Sleep(time.Second) {
			if time.Since(began) > 5*time.Minute {
				t.Fatalf("n4's ring has n5 as %q", b.gossiped("n4", "n5"))
			}
		}
	})
}
