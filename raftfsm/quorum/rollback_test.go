package quorum

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

// TestMissing: what of a store shows that it is an older copy, and what does
// not.
func TestMissing(t *testing.T) {
	for _, test := range []struct {
		name  string
		mark  mark
		store Standing
		lacks string
	}{
		{"nothing is known", mark{}, Standing{}, ""},
		{"all is there", mark{term: 5, ackTerm: 5, ack: 100, voteTerm: 5}, Standing{5, 100, 5}, ""},
		{"more is there", mark{term: 5, ackTerm: 5, ack: 100, voteTerm: 5}, Standing{6, 300, 6}, ""},
		{"an older term", mark{term: 5}, Standing{4, 900, 4}, "it was in term 5, and its store is in term 4"},
		{"an older term, after nothing was acknowledged", mark{term: 5, ackTerm: 3, ack: 7}, Standing{4, 7, 4}, "it was in term 5"},
		{"the term of the entry without it", mark{term: 5, ackTerm: 5, ack: 100}, Standing{5, 99, 5}, "it had stored entry 100 in term 5, and its store ends at entry 99"},
		{"the term of the vote without it", mark{term: 5, voteTerm: 5}, Standing{5, 10, 4}, "it had voted in term 5"},
		{"a newer leader took entries back", mark{term: 5, ackTerm: 5, ack: 100}, Standing{6, 50, 5}, ""},
		{"it voted for another since", mark{term: 5, voteTerm: 5}, Standing{7, 10, 7}, ""},
		{"an empty store", mark{term: 1, ackTerm: 1, ack: 1}, Standing{}, "it was in term 1"},
	} {
		got := test.mark.missing(test.store)
		if (got == "") != (test.lacks == "") || !strings.HasPrefix(got, test.lacks) {
			t.Errorf("%s: lacks %q, want %q", test.name, got, test.lacks)
		}
	}
}

// copyStore is a copy of what a host has stored, as it is now.
func (m *member) copyStore() *raft.InmemStore {
	m.c.t.Helper()
	to := raft.NewInmemStore()
	for _, key := range []string{"CurrentTerm", string(keyVote)} {
		if value, err := m.mem.Get([]byte(key)); err == nil {
			if err := to.Set([]byte(key), append([]byte(nil), value...)); err != nil {
				m.c.t.Fatal(err)
			}
		}
	}
	first, err1 := m.mem.FirstIndex()
	last, err2 := m.mem.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		m.c.t.Fatal(err)
	}
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if err := m.mem.GetLog(i, &l); err != nil {
			m.c.t.Fatal(err)
		}
		if err := to.StoreLog(&l); err != nil {
			m.c.t.Fatal(err)
		}
	}
	return to
}

func (m *member) restore(s *raft.InmemStore) { m.mem, m.logs, m.stable = s, s, s }

// fenced waits until a host has found out that its store is an older copy.
func (m *member) fenced(within time.Duration) error {
	m.c.t.Helper()
	select {
	case err := <-m.failed:
		return err
	case <-time.After(within):
		m.c.t.Errorf("%s takes part with an older store", m.id)
		return nil
	}
}

// TestRollback: a voter that comes back with an older copy of its store takes
// part no more, and nothing that was acknowledged is lost.
func TestRollback(t *testing.T) {
	check := func(t *testing.T, victim *member, says string) {
		t.Helper()
		err := victim.fenced(10 * time.Second)
		if fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(err.Error(), says) || fleet.HintOf(err) == "" {
			t.Errorf("it ended with %v (hint %q), want corrupt with %q and what to do", err, fleet.HintOf(err), says)
		}
		victim.close(10 * time.Second)
	}
	follower := func(c *cluster) *member {
		l := c.leader()
		for _, m := range c.nodes {
			if m != l {
				return m
			}
		}
		return nil
	}
	bubble(t, "a follower, and the leader dies", func(t *testing.T) {
		// The scenario of a store that was emptied, with one that is older: W is cut
		// off, L and V acknowledge, V forgets and L dies. W and V must not elect.
		c := newCluster(t, 3)
		c.propose("k", "before")
		c.converge()
		v := follower(c)
		l := c.leader()
		old := v.copyStore()
		var w *member
		for _, m := range c.nodes {
			if m != v && m != l {
				w = m
			}
		}
		c.net.Cut(w.host, l.host)
		c.net.Cut(w.host, v.host)
		for i := range 100 {
			if _, err := l.q.Propose(t.Context(), set("k", i)); err != nil {
				t.Fatal(err)
			}
		}
		v.crash()
		v.restore(old)
		v.start()
		check(t, v, "had stored entry")
		l.crash()
		c.net.HealAll()
		time.Sleep(time.Minute)
		if w.q.IsLeader() {
			t.Error("a host that lacks what was acknowledged leads")
		}
		l.start()
		c.propose("last", "1")
		if got := c.converge()["k"]; got != "99" {
			t.Errorf("k is %q, want 99", got)
		}
	})
	bubble(t, "the leader", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", "before")
		c.converge()
		l := c.leader()
		old := l.copyStore()
		for i := range 100 {
			if _, err := l.q.Propose(t.Context(), set("k", i)); err != nil {
				t.Fatal(err)
			}
		}
		l.crash()
		l.restore(old)
		c.leader()
		l.start()
		check(t, l, "says of this host: it")
		if got := c.converge()["k"]; got != "99" {
			t.Errorf("k is %q, want 99", got)
		}
	})
	bubble(t, "a whole fleet starts at once, and the log has the mark", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", "before")
		c.converge()
		v := follower(c)
		old := v.copyStore()
		c.propose("k", "after")
		c.converge()
		noted, err := c.leader().q.Marks()
		if err != nil || len(noted) != 3 {
			t.Fatalf("marks %v, %v; want three", noted, err)
		}
		for _, m := range c.nodes {
			m.crash()
		}
		v.restore(old)
		for _, m := range c.nodes {
			m.mark = func(id fleet.NodeID) fleet.VoterMark {
				for _, n := range noted {
					if n.Node == id {
						return n
					}
				}
				return fleet.VoterMark{}
			}
			m.start()
		}
		check(t, v, "had stored entry")
		c.propose("k", "again")
	})
	bubble(t, "an emptied store of a voter waits for ever", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", "before")
		c.converge()
		v := follower(c)
		v.crash()
		v.restore(raft.NewInmemStore())
		v.start()
		for i := range 20 {
			c.propose("k", i)
			time.Sleep(5 * time.Second)
		}
		if why, since := v.q.Waits(); why == "" || since.IsZero() {
			t.Error("a voter with an emptied store takes part")
		}
		if last := v.q.Stats().LastIndex; last != 0 {
			t.Errorf("it took entries up to %d", last)
		}
	})
	bubble(t, "a fleet's only voter, with others that follow", func(t *testing.T) {
		c := newCluster(t, 1)
		l := c.leader()
		for range 2 {
			m := c.add()
			c.trust = append(c.trust, m.id)
			m.start()
			if err := l.q.AddNonvoter(t.Context(), m.id); err != nil {
				t.Fatal(err)
			}
		}
		c.propose("k", "1")
		c.converge()
		c.net.Cut(l.host, c.nodes[2].host) // it has to be patient, and leads meanwhile
		l.crash()
		l.start()
		c.propose("k", "2")
		select {
		case err := <-l.failed:
			t.Errorf("it is taken for an older copy: %v", err)
		default:
		}
	})
	bubble(t, "who was taken out and added anew has no past", func(t *testing.T) {
		c := newCluster(t, 3)
		for i := range 50 {
			c.propose("k", i)
		}
		v := follower(c)
		v.crash()
		l := c.leader()
		if err := l.q.raft.RemoveServer(raft.ServerID(v.id), 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		v.restore(raft.NewInmemStore())
		v.start()
		if err := l.q.AddNonvoter(t.Context(), v.id); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := l.q.CaughtUp(ctx, v.id); err != nil {
			t.Fatal(err)
		}
		if err := l.q.AddVoter(t.Context(), v.id); err != nil {
			t.Fatal(err)
		}
		v.crash()
		v.start()
		c.propose("k", "last")
		if got := c.converge()["k"]; got != "last" {
			t.Errorf("k is %q, want last", got)
		}
		if why, _ := v.q.Waits(); why != "" {
			t.Errorf("it waits: %s", why)
		}
	})
	bubble(t, "nobody said so at the start: its leader does not count it", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", "before")
		c.converge()
		l, v := c.leader(), follower(c)
		old := v.copyStore()
		c.propose("k", "after")
		c.converge()
		v.crash()
		v.restore(old)
		l.up.Store(nil) // it does not answer questions, and leads
		v.start()
		eventually(t, "the leader says who is behind", func() bool { return len(l.q.Older()) == 1 && l.q.Older()[0] == v.id })
		c.propose("k", "on")
	})
}

// TestFleetComesUp: a fleet that starts all at once, or with a voter less, needs
// no word of anybody who is not there.
func TestFleetComesUp(t *testing.T) {
	for _, test := range []struct {
		voters, missing int
		within          time.Duration
	}{{1, 0, 10 * time.Second}, {3, 0, 10 * time.Second}, {3, 1, 15 * time.Second}, {5, 0, 10 * time.Second}, {5, 2, 15 * time.Second}} {
		bubble(t, fmt.Sprintf("%d of %d", test.voters-test.missing, test.voters), func(t *testing.T) {
			c := newCluster(t, test.voters)
			c.propose("k", 1)
			c.converge()
			for _, m := range c.nodes {
				m.crash()
			}
			start := time.Now()
			for _, m := range c.nodes[test.missing:] {
				m.start()
			}
			c.leader()
			took := time.Since(start)
			t.Logf("a leader after %v", took)
			if took > test.within {
				t.Errorf("a leader after %v, want within %v", took, test.within)
			}
			c.propose("k", 2)
			if got := c.converge()["k"]; got != "2" {
				t.Errorf("k is %q, want 2", got)
			}
		})
	}
}

// TestNobodyIsTakenForOlder: hosts that crash and are cut off at any moment are
// never taken for ones with an older store.
func TestNobodyIsTakenForOlder(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 60
	}
	bubble(t, "crashes and cuts", func(t *testing.T) {
		c := newCluster(t, 3)
		random := rand.New(rand.NewPCG(7, 8))
		starts := 0
		for i := range rounds {
			victim := c.nodes[random.IntN(3)]
			if l := c.leader(); random.IntN(2) == 0 {
				victim = l
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(200))*time.Millisecond)
			_, _ = c.leader().q.Propose(ctx, set("k", i)) // its outcome may be unknown
			cancel()
			switch random.IntN(4) {
			case 0:
				c.net.Isolate(victim.host)
				_, _ = victim.q.Propose(ctx, set("lost", i))
				time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
				victim.crash() // with entries that others will take back
				c.net.HealAll()
			default:
				victim.crash()
			}
			if random.IntN(5) == 0 {
				for _, m := range c.nodes {
					if m.q != nil {
						m.crash()
					}
				}
			}
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			for _, m := range c.nodes {
				if m.q == nil {
					m.start()
					starts++
				}
			}
			for _, m := range c.nodes {
				select {
				case err := <-m.failed:
					t.Fatalf("round %d: %s: %v", i, m.id, err)
				default:
				}
			}
		}
		c.propose("k", "last")
		if got := c.converge()["k"]; got != "last" {
			t.Errorf("k is %q, want last", got)
		}
		t.Logf("%d starts, none taken for an older store", starts)
	})
}
