package node

import (
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/runcmd"
	"fleet/node/ticket"
)

// TestReplayedTickets keeps the genuine ticket of a command that has run, and
// brings it again: at once, a second, 23 and 25 hours later, after the host was
// started again, after its journal has forgotten the command, with another
// host's place, to a host that it does not name, and to a host of another fleet.
// Nothing runs.
func TestReplayedTickets(t *testing.T) {
	inBubble(t, 3, 2, func(t *testing.T, b *bubble, c *client.Client) {
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 5 {
			t.Fatalf("the command: %v", counts)
		}
		key := journal.Key{Command: id, Attempt: 1}
		e, ok := b.nodes[theHost].journal.Lookup(key)
		if !ok {
			t.Fatal("the host's journal does not have the command")
		}
		store := b.nodes[b.awaitLeader("")].member.Load().fsm.Store()
		cmd := store.Command(id)
		caught := runcmd.Delivery{
			Ticket: e.Ticket, Index: e.Index, Path: ticket.NewTree(cmd.Targets).Path(int(e.Index)),
			Document: store.Content(cmd.Document), DocumentName: cmd.DocumentName, Parameters: cmd.Parameters,
		}
		bring := func(when, name string, d runcmd.Delivery, want ...runcmd.State) {
			t.Helper()
			b.until(name+" knows the time", func() bool { _, ok := b.nodes[name].clock.FleetTime(); return ok })
			a, err := b.nodes[name].runner.Deliver(t.Context(), d)
			good := false
			for _, s := range want {
				good = good || a.State == s
			}
			if err != nil || !good {
				t.Errorf("%s, to %s: %+v, %v; want one of the states %v", when, name, a, err, want)
			}
		}
		const done, refused = runcmd.Done, runcmd.Refused
		bring("at once", theHost, caught, done)
		time.Sleep(time.Second)
		bring("after a second", theHost, caught, done)
		b.crash(theHost)
		b.start(theHost)
		b.ready(theHost)
		bring("after a restart", theHost, caught, done)
		for name := range b.hosts {
			if name == theHost {
				continue
			}
			// It ran there by an order of its own. As another's it is no order.
			bring("with another's place", name, caught, done, refused)
		}
		later := func(d time.Duration) {
			for name := range b.hosts {
				b.skew(name, d)
			}
			time.Sleep(time.Minute)
		}
		later(23 * time.Hour)
		bring("after 23 hours", theHost, caught, done)
		later(25 * time.Hour)
		bring("after 25 hours", theHost, caught, done)
		later(50 * time.Hour)
		b.crash(theHost) // a host that starts forgets what it may
		b.start(theHost)
		b.ready(theHost)
		b.until("the journal has forgotten the command", func() bool { _, ok := b.nodes[theHost].journal.Lookup(key); return !ok })
		bring("when it is forgotten", theHost, caught, refused)
		time.Sleep(time.Minute)
		for name := range b.hosts {
			if n := b.ran(id, name); n != 1 {
				t.Errorf("it ran %d times on %s", n, name)
			}
		}
		other := newBubble(t, 1, 0)
		defer other.stopAll()
		other.until("the time", func() bool { _, ok := other.nodes["n1"].clock.FleetTime(); return ok })
		if a, err := other.nodes["n1"].runner.Deliver(t.Context(), caught); err != nil || a.State != refused || len(a.Result) > 0 {
			t.Errorf("to a host of another fleet: %+v, %v", a, err)
		}
		if n := other.ran(id, "n1"); n != 0 {
			t.Errorf("it ran %d times in another fleet", n)
		}
	})
}
