package quorum

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

// sickDisk delays every write of a host, or holds it until it is mended.
type sickDisk struct {
	raft.LogStore
	raft.StableStore
	delay time.Duration
}

func (d *sickDisk) StoreLogs(l []*raft.Log) error {
	time.Sleep(d.delay)
	return d.LogStore.StoreLogs(l)
}

func (d *sickDisk) DeleteRange(min, max uint64) error {
	time.Sleep(d.delay)
	return d.LogStore.DeleteRange(min, max)
}

func (d *sickDisk) Set(key, value []byte) error {
	time.Sleep(d.delay)
	return d.StableStore.Set(key, value)
}

// TestHungDisk: a leader whose disk hangs while nobody asks for anything is
// followed by another within 15 s, and a follower does not vote for ever.
func TestHungDisk(t *testing.T) {
	bubble(t, "of an idle leader", func(t *testing.T) {
		c := newCluster(t, 3)
		hung := map[*member]chan struct{}{}
		for _, m := range c.nodes {
			m.crash()
			m.probe = func() error {
				if wait := hung[m]; wait != nil {
					<-wait
				}
				return nil
			}
			m.start()
			c.leader()
		}
		l := c.leader()
		time.Sleep(time.Minute)
		hung[l] = make(chan struct{})
		start := time.Now()
		next := c.leader(l)
		took := time.Since(start)
		t.Logf("another leader after %v", took)
		if took > 15*time.Second {
			t.Errorf("another leader after %v, want within 15s", took)
		}
		if len(l.failed) != 1 {
			t.Errorf("Fatal was called %d times, want once", len(l.failed))
		}
		if _, err := next.q.Propose(t.Context(), set("k", "new")); err != nil {
			t.Errorf("Propose on the new leader: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.q.Close(ctx); err == nil {
			t.Error("Close of a host whose disk hangs says that all has ended")
		}
		l.q = nil
		close(hung[l])
	})
	bubble(t, "of a follower", func(t *testing.T) {
		c := newCluster(t, 3)
		l := c.leader()
		victim := c.nodes[0]
		if victim == l {
			victim = c.nodes[1]
		}
		victim.crash()
		hang := make(chan struct{})
		victim.probe = func() error { <-hang; return nil }
		victim.start()
		select {
		case <-victim.failed:
		case <-time.After(25 * time.Second):
			t.Error("a follower with a hung disk goes on")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = victim.q.Close(ctx)
		victim.q = nil
		close(hang)
		c.propose("k", "on")
	})
}

// TestSlowDisks: with every write of every voter taking 700 ms the fleet is
// slow, and its leaders do not come and go.
func TestSlowDisks(t *testing.T) {
	bubble(t, "700 ms", func(t *testing.T) {
		c := newCluster(t, 3)
		c.leader()
		for _, m := range c.nodes { // one after the other, as disks do not fall sick at once
			m.crash()
			d := &sickDisk{LogStore: m.mem, StableStore: m.mem, delay: 700 * time.Millisecond}
			m.logs, m.stable = d, d
			m.probe = func() error { time.Sleep(d.delay); return nil }
			m.start()
			c.leader()
		}
		time.Sleep(time.Minute)
		l := c.leader()
		before := l.q.Stats().Term
		decided, slowest := 0, time.Duration(0)
		for start := time.Now(); time.Since(start) < 10*time.Minute; {
			began := time.Now()
			c.propose("k", decided)
			slowest = max(slowest, time.Since(began))
			decided++
			time.Sleep(3 * time.Second)
		}
		l = c.leader()
		t.Logf("%d elections in 10 minutes; %d entries decided, the slowest in %v", l.q.Stats().Term-before, decided, slowest)
		if elections := l.q.Stats().Term - before; elections > 3 {
			t.Errorf("%d elections in 10 minutes, want at most 3", elections)
		}
		if delay := l.q.DiskDelay(); delay < SlowDisk {
			t.Errorf("the disk is said to take %v, want %v or more", delay, SlowDisk)
		}
		// Elections take longer, and end.
		l.crash()
		start := time.Now()
		c.leader()
		took := time.Since(start)
		t.Logf("another leader %v after the leader was lost", took)
		if took > 30*time.Second {
			t.Errorf("an election with slow disks took %v, want within 30s", took)
		}
		l.start()
	})
}

// TestDiskProbe: what is written to the real disk stays one small file.
func TestDiskProbe(t *testing.T) {
	dir := t.TempDir()
	probe := diskProbe(dir)
	for range 3 {
		if err := probe(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, probeFile))
	if err != nil || info.Size() != 21 {
		t.Errorf("the file: %v, %v; want 21 bytes", info, err)
	}
	if err := diskProbe(filepath.Join(dir, "none"))(); err == nil {
		t.Error("a directory that is not there is written to")
	}
}

// TestFullDiskHandsOver: a leader that can write no more gives leadership to a
// follower that has everything, at once, and votes again when there is room.
func TestFullDiskHandsOver(t *testing.T) {
	bubble(t, "the leader's", func(t *testing.T) {
		c := newCluster(t, 3)
		for _, m := range c.nodes {
			m.crash()
			m.logs = &faultyLogs{LogStore: m.mem}
			m.start()
			c.leader()
		}
		time.Sleep(10 * time.Second)
		l := c.leader()
		l.logs.(*faultyLogs).set(func() error { return syscall.ENOSPC }, nil)
		start := time.Now()
		if _, err := l.q.Propose(t.Context(), set("k", 1)); fleet.KindOf(err) != fleet.Unknown {
			t.Errorf("Propose: %v, want unknown outcome", err)
		}
		next := c.leader(l)
		took := time.Since(start)
		t.Logf("another leader after %v", took)
		if took > 500*time.Millisecond { // without a word it takes one to two seconds
			t.Errorf("another leader after %v, want within 500ms", took)
		}
		if err := <-l.failed; fleet.HintOf(err) == "" {
			t.Errorf("it ended with %v and does not say what to do", err)
		}
		if _, err := next.q.Propose(t.Context(), set("k", 2)); err != nil {
			t.Errorf("Propose on the new leader: %v", err)
		}
		// Its service starts it again and again until there is room.
		l.close(10 * time.Second)
		terms := next.q.Stats().Term
		for range 5 {
			l.start()
			c.propose("k", 3)
			<-l.failed
			l.close(10 * time.Second)
		}
		if got := c.leader(l).q.Stats().Term; got != terms {
			t.Errorf("the term went from %d to %d while a full voter came and went", terms, got)
		}
		l.logs.(*faultyLogs).set(nil, nil)
		l.start()
		c.propose("k", 4)
		if got := c.converge()["k"]; got != "4" {
			t.Errorf("k is %q, want 4", got)
		}
	})
}
