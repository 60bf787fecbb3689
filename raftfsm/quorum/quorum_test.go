package quorum

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

func TestElectAndReplicate(t *testing.T) {
	bubble(t, "three voters", func(t *testing.T) {
		c := newCluster(t, 3)
		start := time.Now()
		l := c.leader()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("election took %v", took)
		}
		for i := range 50 {
			answer, err := l.q.Propose(t.Context(), set("k", i))
			if err != nil || answer.Err != nil {
				t.Fatalf("entry %d: %v, %v", i, answer.Err, err)
			}
			if want := strconv.Itoa(i - 1); i > 0 && answer.Value != want {
				t.Errorf("entry %d: the value before was %v, want %v", i, answer.Value, want)
			}
		}
		if answer, err := l.q.Propose(t.Context(), set("k", "refused")); err != nil || fleet.KindOf(answer.Err) != fleet.Conflict {
			t.Errorf("refused entry: answer %+v, error %v", answer, err)
		}
		if got := c.converge()["k"]; got != "49" {
			t.Errorf("k is %q, want 49", got)
		}
		for _, m := range c.nodes {
			if m.q.Leader() != l.id {
				t.Errorf("%s thinks that %q leads, not %s", m.id, m.q.Leader(), l.id)
			}
			if m == l {
				continue
			}
			_, err := m.q.Propose(t.Context(), set("k", 0))
			if fleet.KindOf(err) != fleet.NotLeader || LeaderOf(err) != l.id {
				t.Errorf("Propose on a follower: %v (leader %q), want not leader and %s", err, LeaderOf(err), l.id)
			}
			if _, err := m.q.ReadIndex(t.Context()); fleet.KindOf(err) != fleet.NotLeader {
				t.Errorf("ReadIndex on a follower: %v, want not leader", err)
			}
		}
	})
	bubble(t, "one voter", func(t *testing.T) {
		c := newCluster(t, 1)
		c.propose("k", 1)
		index, err := c.nodes[0].q.ReadIndex(t.Context())
		if err != nil || index != c.nodes[0].fsm.Applied() {
			t.Errorf("ReadIndex: %d, %v", index, err)
		}
	})
}

// TestWhatIsProposed: an entry that voters could not read would stop them.
func TestWhatIsProposed(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		c := newCluster(t, 1)
		l := c.leader()
		for _, test := range []struct {
			name string
			b    []byte
			want fleet.Kind
		}{
			{"too large", make([]byte, 256<<10+1), fleet.TooLarge},
			{"garbage", []byte("garbage"), fleet.Invalid},
			{"unknown kind", []byte{1, 200, 0x80}, fleet.Invalid},
			{"empty", nil, fleet.Invalid},
		} {
			if _, err := l.q.Propose(t.Context(), test.b); fleet.KindOf(err) != test.want {
				t.Errorf("%s: %v, want %v", test.name, err, test.want)
			}
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.q.Propose(done, set("k", 1)); fleet.KindOf(err) != fleet.Unavailable || l.fsm.get("k") != "" {
			t.Errorf("with a context that is done: %v, want unavailable and nothing proposed", err)
		}
	})
}

func TestLosses(t *testing.T) {
	bubble(t, "the leader crashes and comes back", func(t *testing.T) {
		c := newCluster(t, 3)
		for round := range 5 {
			l := c.leader()
			c.propose("round", round)
			l.crash()
			c.propose("after", round)
			l.start()
			c.propose("both", round)
			want := map[string]string{"round": strconv.Itoa(round), "after": strconv.Itoa(round), "both": strconv.Itoa(round)}
			if got := c.converge(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("round %d: %v, want %v", round, got, want)
			}
		}
	})
	bubble(t, "all crash", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", 1)
		for _, m := range c.nodes {
			m.crash()
		}
		for _, m := range c.nodes {
			m.start()
		}
		c.leader()
		if got := c.converge()["k"]; got != "1" {
			t.Errorf("k is %q after all restarted, want 1", got)
		}
	})
	bubble(t, "a leader alone decides and reads nothing", func(t *testing.T) {
		c := newCluster(t, 3)
		old := c.leader()
		c.propose("k", 1)
		c.net.Isolate(old.host)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := old.q.Propose(ctx, set("k", "alone"))
		if fleet.KindOf(err) != fleet.Unknown {
			t.Errorf("Propose: %v, want unknown outcome", err)
		}
		l := c.leader(old)
		if _, err := l.q.Propose(t.Context(), set("k", 2)); err != nil {
			t.Errorf("Propose on the other side: %v", err)
		}
		if _, err := old.q.ReadIndex(ctx); fleet.KindOf(err) != fleet.NoQuorum && fleet.KindOf(err) != fleet.NotLeader {
			t.Errorf("ReadIndex: %v, want no quorum", err)
		}
		if _, err := old.q.Propose(ctx, set("k", "alone")); fleet.KindOf(err) != fleet.NoQuorum {
			t.Errorf("Propose after it stepped down: %v, want no quorum", err)
		}
		c.net.HealAll()
		if got := c.converge()["k"]; got != "2" {
			t.Errorf("k is %q, want 2", got)
		}
	})
	bubble(t, "the leader stops in order", func(t *testing.T) {
		c := newCluster(t, 3)
		l := c.leader()
		c.propose("k", 1)
		start := time.Now()
		l.close(10 * time.Second)
		c.leader()
		if took := time.Since(start); took > time.Second {
			t.Errorf("a new leader after %v; leadership was not handed over", took)
		}
	})
}

// TestLinearizable writes a rising number through whoever leads, reads it
// everywhere, and moves partitions over the hosts meanwhile. No read may give
// less than what was acknowledged before it began, and what is acknowledged is
// there at the end.
func TestLinearizable(t *testing.T) {
	for _, voters := range []int{3, 5} {
		bubble(t, fmt.Sprintf("%d voters", voters), func(t *testing.T) {
			c := newCluster(t, voters)
			// One host is slow to see that it leads no more: it still thinks so
			// for seconds after the others have elected another leader.
			slow := c.nodes[0]
			slow.close(time.Minute)
			c.tune = func(m *member, rc *raft.Config) {
				if m == slow {
					rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 5*time.Second, 5*time.Second, 5*time.Second
				}
			}
			slow.start()
			ctx, cancel := context.WithCancel(t.Context())
			var acknowledged, reads, refused atomic.Int64
			var group sync.WaitGroup
			group.Go(func() { // the writer: one number at a time, each until it is acknowledged
				for n := int64(1); ctx.Err() == nil; {
					for _, m := range c.nodes {
						attempt, stop := context.WithTimeout(ctx, 2*time.Second)
						answer, err := m.q.Propose(attempt, set("n", n))
						stop()
						if err == nil && answer.Err == nil {
							acknowledged.Store(n)
							n++
						}
					}
					time.Sleep(40 * time.Millisecond)
				}
			})
			for _, m := range c.nodes {
				for range 3 {
					group.Go(func() { // reads on the host itself, also when it only thinks that it leads
						for ctx.Err() == nil {
							atLeast := acknowledged.Load()
							attempt, stop := context.WithTimeout(ctx, 2*time.Second)
							index, err := m.q.ReadIndex(attempt)
							stop()
							if err != nil {
								refused.Add(1)
							} else {
								if m.fsm.Applied() < index {
									t.Errorf("%s: applied %d after ReadIndex gave %d", m.id, m.fsm.Applied(), index)
								}
								got, _ := strconv.ParseInt("0"+m.fsm.get("n"), 10, 64)
								reads.Add(1)
								if got < atLeast {
									t.Errorf("%s read %d when %d was acknowledged before", m.id, got, atLeast)
								}
							}
							time.Sleep(53 * time.Millisecond)
						}
					})
				}
			}
			before := int64(0)
			for round := range 40 {
				l := c.leader()
				if round%3 == 0 && l != slow {
					_ = l.q.raft.LeadershipTransferToServer(raft.ServerID(slow.id), raft.ServerAddress(slow.id)).Error()
					l = c.leader()
				}
				victim := c.nodes[round%voters]
				if round%2 == 0 {
					victim = l
				}
				other := c.nodes[(round+1)%voters]
				switch round % 5 {
				case 0:
					c.net.Isolate(victim.host)
				case 1:
					for _, m := range c.nodes {
						if m != victim {
							c.net.CutOneWay(m.host, victim.host)
						}
					}
				case 2:
					for _, m := range c.nodes {
						if m != victim {
							c.net.CutOneWay(victim.host, m.host)
						}
					}
				case 3: // flapping
					for range 10 {
						c.net.Isolate(victim.host)
						time.Sleep(300 * time.Millisecond)
						c.net.HealAll()
						time.Sleep(300 * time.Millisecond)
					}
				case 4: // a bridge: two hosts that do not hear each other
					if victim != other {
						c.net.Cut(victim.host, other.host)
					}
				}
				time.Sleep(time.Duration(1+round%4) * 1500 * time.Millisecond)
				c.net.HealAll()
				healed := acknowledged.Load()
				eventually(t, "progress after the network healed", func() bool { return acknowledged.Load() > healed })
				if got := acknowledged.Load(); got < before {
					t.Errorf("acknowledged fell from %d to %d", before, got)
				}
			}
			last := acknowledged.Load()
			cancel()
			group.Wait()
			state := c.converge()
			if got, _ := strconv.ParseInt(state["n"], 10, 64); got < last {
				t.Errorf("the state ends with %d, and %d was acknowledged", got, last)
			}
			t.Logf("%d writes, %d reads, %d reads refused", last, reads.Load(), refused.Load())
			if reads.Load() < 1000 || last < 500 {
				t.Errorf("only %d reads and %d writes: the test shows little", reads.Load(), last)
			}
		})
	}
}

func TestReadBatches(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		var rounds atomic.Uint64
		goOn := make(chan struct{})
		r := &readBatches{verify: func() (uint64, error) {
			n := rounds.Add(1)
			<-goOn
			return n, nil
		}}
		var workers sync.WaitGroup
		var calls gate
		get := func() *readBatch {
			b, ok := r.join(&workers, &calls)
			if !ok {
				t.Fatal("closed")
			}
			return b
		}
		first := get()
		synctest.Wait() // its round has begun
		second, third := get(), get()
		if second != third || second == first {
			t.Error("callers that came during a round must share the next one")
		}
		goOn <- struct{}{}
		goOn <- struct{}{}
		<-second.done
		if first.index != 1 || second.index != 2 {
			t.Errorf("rounds %d and %d, want 1 and 2", first.index, second.index)
		}
		workers.Wait()
		get()
		goOn <- struct{}{}
		workers.Wait()
		if rounds.Load() != 3 || calls.inside != 0 {
			t.Errorf("%d rounds, %d inside; want 3 and 0", rounds.Load(), calls.inside)
		}
	})
}

func TestDoubt(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	p := &doubt{limit: 500 * time.Millisecond, hold: 10 * time.Second}
	tick := func(from, to time.Duration) {
		for d := from; d <= to; d += 125 * time.Millisecond {
			p.tick(at(d))
		}
	}
	tick(0, time.Second)
	if p.exists(at(time.Second)) {
		t.Error("doubts without a pause")
	}
	if !p.exists(at(3 * time.Second)) {
		t.Error("does not notice the pause that just ended")
	}
	tick(3*time.Second, 12*time.Second)
	if !p.exists(at(12 * time.Second)) {
		t.Error("forgets the pause while answers from before it may come")
	}
	tick(12*time.Second, 14*time.Second)
	if p.exists(at(14 * time.Second)) {
		t.Error("doubts for ever")
	}
	p.raise(at(14*time.Second), time.Second)
	p.raise(at(14*time.Second), time.Millisecond)
	if !p.exists(at(14500 * time.Millisecond)) {
		t.Error("a short doubt ends a longer one")
	}

	bubble(t, "in doubt reads go through the log", func(t *testing.T) {
		c := newCluster(t, 3)
		l := c.leader()
		last := l.q.raft.LastIndex()
		if _, err := l.q.ReadIndex(t.Context()); err != nil || l.q.raft.LastIndex() != last {
			t.Fatalf("plain read: %v, last index from %d to %d", err, last, l.q.raft.LastIndex())
		}
		l.q.doubt.raise(time.Now(), time.Second)
		if _, err := l.q.ReadIndex(t.Context()); err != nil || l.q.raft.LastIndex() != last+1 {
			t.Errorf("read in doubt: %v, last index from %d to %d, want a barrier", err, last, l.q.raft.LastIndex())
		}
	})
}

func TestLead(t *testing.T) {
	bubble(t, "one run at a time, where leadership is", func(t *testing.T) {
		c := newCluster(t, 3)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		var running, runs, lost atomic.Int32
		for _, m := range c.nodes {
			group.Go(func() {
				err := m.q.Lead(ctx, func(ctx context.Context) error {
					if !m.q.Ready() {
						t.Errorf("%s leads without being ready", m.id)
					}
					running.Add(1)
					runs.Add(1)
					<-ctx.Done()
					if errors.Is(context.Cause(ctx), errLost) {
						lost.Add(1)
					}
					running.Add(-1)
					return nil
				})
				if err != nil {
					t.Errorf("Lead: %v", err)
				}
			})
		}
		for range 5 {
			l := c.leader()
			eventually(t, "the leader's work runs", func() bool { return running.Load() == 1 })
			c.net.Isolate(l.host)
			c.leader(l)
			eventually(t, "the old leader's work ends", func() bool { return !l.q.IsLeader() && running.Load() == 1 })
			c.net.HealAll()
			c.converge()
		}
		if lost.Load() < 5 || runs.Load() < 6 {
			t.Errorf("%d runs, %d of them lost leadership; want 6 and 5", runs.Load(), lost.Load())
		}
		cancel()
		group.Wait()
		if running.Load() != 0 {
			t.Errorf("%d still run", running.Load())
		}
	})
	bubble(t, "work that fails is begun again", func(t *testing.T) {
		c := newCluster(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var runs atomic.Int32
		var group sync.WaitGroup
		group.Go(func() {
			_ = c.nodes[0].q.Lead(ctx, func(context.Context) error { runs.Add(1); return errors.New("broken") })
		})
		c.leader()
		time.Sleep(10*leadRetry + leadRetry/2)
		if got := runs.Load(); got < 9 || got > 12 {
			t.Errorf("%d runs in 10 s, want about 10", got)
		}
		cancel()
		group.Wait()
	})
}

func TestMembers(t *testing.T) {
	bubble(t, "from one voter to three", func(t *testing.T) {
		c := newCluster(t, 1)
		l := c.leader()
		for i := range 100 {
			c.propose("k", i)
		}
		for range 2 {
			m := c.add()
			m.start()
			if err := l.q.AddNonvoter(t.Context(), m.id); err != nil {
				t.Fatalf("AddNonvoter: %v", err)
			}
			if err := l.q.CaughtUp(t.Context(), m.id); err != nil {
				t.Fatalf("CaughtUp: %v", err)
			}
			if got := m.fsm.get("k"); got != "99" {
				t.Errorf("a host that caught up has k=%q, want 99", got)
			}
		}
		for _, m := range c.nodes[1:] {
			for range 2 { // again is no error
				if err := l.q.AddVoter(t.Context(), m.id); err != nil {
					t.Fatalf("AddVoter: %v", err)
				}
			}
			if err := l.q.AddNonvoter(t.Context(), m.id); err != nil {
				t.Fatalf("AddNonvoter of a voter: %v", err)
			}
		}
		for _, m := range c.nodes {
			eventually(t, "everyone knows three voters", func() bool {
				servers, err := m.q.Servers()
				voters := 0
				for _, s := range servers {
					if s.Voter {
						voters++
					}
				}
				return err == nil && voters == 3
			})
		}
		if err := c.nodes[1].q.AddVoter(t.Context(), nodeID(9)); fleet.KindOf(err) != fleet.NotLeader {
			t.Errorf("AddVoter on a follower: %v, want not leader", err)
		}
		l.crash()
		c.propose("k", "without the first")
	})
	bubble(t, "a host that does not follow is not caught up", func(t *testing.T) {
		c := newCluster(t, 1)
		c.propose("k", 1)
		m := c.add()
		m.start()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := c.leader().q.CaughtUp(ctx, m.id); fleet.KindOf(err) != fleet.Unavailable {
			t.Errorf("CaughtUp: %v, want unavailable", err)
		}
	})
	bubble(t, "transfer", func(t *testing.T) {
		c := newCluster(t, 3)
		l := c.leader()
		for _, m := range c.nodes {
			if m != l {
				if err := m.q.TransferLeadership(t.Context()); err != nil {
					t.Errorf("TransferLeadership on a follower: %v", err)
				}
			}
		}
		if err := l.q.TransferLeadership(t.Context()); err != nil {
			t.Fatalf("TransferLeadership: %v", err)
		}
		if next := c.leader(); next == l {
			t.Error("the same host leads")
		}
		alone := newCluster(t, 1)
		if err := alone.leader().q.TransferLeadership(t.Context()); fleet.KindOf(err) != fleet.NoQuorum {
			t.Errorf("TransferLeadership of the only voter: %v, want no quorum", err)
		}
	})
}

func TestSnapshots(t *testing.T) {
	bubble(t, "a new host gets one, an old one starts from it", func(t *testing.T) {
		c := newCluster(t, 1)
		c.nodes[0].close(time.Minute)
		c.tune = func(_ *member, rc *raft.Config) {
			rc.SnapshotThreshold, rc.TrailingLogs, rc.SnapshotInterval = 20, 5, time.Second
		}
		c.nodes[0].start()
		for i := range 100 {
			c.propose(fmt.Sprint("k", i%7), i)
			time.Sleep(100 * time.Millisecond)
		}
		l := c.leader()
		if first, err := l.mem.FirstIndex(); err != nil || first < 50 {
			t.Fatalf("the log begins at %d, %v: it was not cut", first, err)
		}
		m := c.add()
		m.start()
		if err := l.q.AddNonvoter(t.Context(), m.id); err != nil {
			t.Fatal(err)
		}
		if err := l.q.CaughtUp(t.Context(), m.id); err != nil {
			t.Fatal(err)
		}
		want := c.converge()
		l.crash()
		l.start()
		c.leader()
		if got := c.converge(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("after a restart %v, want %v", got, want)
		}
	})
}

// faultyLogs fails or hangs when a test says so.
type faultyLogs struct {
	raft.LogStore
	mu    sync.Mutex // guards what follows
	write func() error
	read  func() error
}

func (f *faultyLogs) fault(write bool) error {
	f.mu.Lock()
	hook := f.read
	if write {
		hook = f.write
	}
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook()
}

func (f *faultyLogs) StoreLogs(l []*raft.Log) error {
	if err := f.fault(true); err != nil {
		return err
	}
	return f.LogStore.StoreLogs(l)
}

func (f *faultyLogs) GetLog(i uint64, l *raft.Log) error {
	if err := f.fault(false); err != nil {
		return err
	}
	return f.LogStore.GetLog(i, l)
}

func (f *faultyLogs) set(write, read func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.write, f.read = write, read
}

func TestStoreFails(t *testing.T) {
	setup := func(t *testing.T) (*cluster, *member, *faultyLogs) {
		// Every host gets a store that can fail, so that whoever leads has one:
		// Raft chooses itself to whom leadership is transferred.
		c := newCluster(t, 3)
		c.leader()
		for _, m := range c.nodes {
			m.crash()
			m.logs = &faultyLogs{LogStore: m.mem}
			m.start()
			c.converge()
		}
		l := c.leader()
		return c, l, l.logs.(*faultyLogs)
	}
	check := func(t *testing.T, c *cluster, l *member, limit time.Duration) {
		start := time.Now()
		next := c.leader(l)
		if took := time.Since(start); took > limit {
			t.Errorf("another leader after %v, want within %v", took, limit)
		}
		if _, err := next.q.Propose(t.Context(), set("k", "new")); err != nil {
			t.Errorf("Propose on the new leader: %v", err)
		}
		if got := len(l.failed); got != 1 {
			t.Errorf("Fatal was called %d times, want once", got)
		}
		if _, err := l.q.Propose(t.Context(), set("k", "old")); err == nil {
			t.Error("the host with the failed store still decides")
		}
		if _, err := l.q.ReadIndex(t.Context()); err == nil {
			t.Error("the host with the failed store still answers reads")
		}
	}
	bubble(t, "a write fails", func(t *testing.T) {
		c, l, faults := setup(t)
		faults.set(func() error { return errors.New("input/output error") }, nil)
		if _, err := l.q.Propose(t.Context(), set("k", 1)); fleet.KindOf(err) != fleet.Unknown {
			t.Errorf("Propose: %v, want unknown outcome", err)
		}
		faults.set(nil, nil) // what the disk says now is not believed
		check(t, c, l, 10*time.Second)
	})
	bubble(t, "the disk hangs", func(t *testing.T) {
		c, l, faults := setup(t)
		goOn := make(chan struct{})
		faults.set(func() error { <-goOn; return nil }, nil)
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := l.q.Propose(t.Context(), set("k", 1)); fleet.KindOf(err) != fleet.Unknown {
				t.Errorf("Propose: %v, want unknown outcome", err)
			}
		})
		check(t, c, l, 15*time.Second)
		group.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.q.Close(ctx); err == nil {
			t.Error("Close of a host whose disk hangs says that all has ended")
		}
		l.q = nil
		close(goOn)
	})
	bubble(t, "an entry of a follower is damaged", func(t *testing.T) {
		c := newCluster(t, 3)
		c.propose("k", 1)
		c.converge()
		l := c.leader()
		victim := c.nodes[0]
		if victim == l {
			victim = c.nodes[1]
		}
		last, err := victim.mem.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		var e raft.Log
		if err := victim.mem.GetLog(last, &e); err != nil {
			t.Fatal(err)
		}
		e.Term++
		if err := victim.mem.StoreLog(&e); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the host finds the damage when it leads and has to send the entry", func() bool {
			if now := c.leader(); now != victim {
				_ = now.q.TransferLeadership(t.Context())
			}
			return len(victim.failed) > 0
		})
		check(t, c, victim, 10*time.Second)
		select {
		case err := <-victim.failed:
			if !strings.Contains(err.Error(), fmt.Sprintf("entry %d", last)) {
				t.Errorf("Fatal was told %q, which does not name entry %d", err, last)
			}
			if fleet.KindOf(err) != fleet.Corrupt || fleet.HintOf(err) == "" {
				t.Errorf("Fatal was told %v of kind %v with hint %q, want corrupt and what to do", err, fleet.KindOf(err), fleet.HintOf(err))
			}
		default:
		}
	})
}

func TestThrottled(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		c := newCluster(t, 3)
		l := c.leader()
		c.net.Isolate(l.host)
		var group sync.WaitGroup
		var throttled, unknown, other atomic.Int32
		for i := range maxProposals + 100 {
			group.Go(func() {
				_, err := l.q.Propose(t.Context(), set("k", i))
				switch fleet.KindOf(err) {
				case fleet.Throttled:
					throttled.Add(1)
				case fleet.Unknown:
					unknown.Add(1)
				default:
					other.Add(1)
				}
			})
		}
		group.Wait()
		synctest.Wait()
		if throttled.Load() != 100 || unknown.Load() != maxProposals {
			t.Errorf("%d throttled, %d unknown, %d other; want 100 and %d", throttled.Load(), unknown.Load(), other.Load(), maxProposals)
		}
		if n, b := l.q.proposals.Load(), l.q.proposalBytes.Load(); n != 0 || b != 0 {
			t.Errorf("counts left behind: %d proposals, %d bytes", n, b)
		}
	})
}

// TestClosed: nothing hangs after Close, and Close twice is one.
func TestClosed(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		c := newCluster(t, 1)
		l := c.leader()
		q := l.q
		for range 2 {
			if err := q.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, err := q.Propose(t.Context(), set("k", 1)); err == nil {
			t.Error("Propose after Close: no error")
		}
		if _, err := q.ReadIndex(t.Context()); err == nil {
			t.Error("ReadIndex after Close: no error")
		}
		if err := q.AddVoter(t.Context(), nodeID(2)); err == nil {
			t.Error("AddVoter after Close: no error")
		}
		if err := q.Lead(t.Context(), func(context.Context) error { t.Error("leads after Close"); return nil }); err != nil {
			t.Errorf("Lead after Close: %v", err)
		}
		l.q = nil
	})
}
