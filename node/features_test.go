package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// TestFeatureLevel: while one host of the quorum is of an older release, nothing
// is put into the log that it could not read, and who asks for it hears who is
// behind; when all know it the level rises, and never falls again.
func TestFeatureLevel(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole fleet")
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubbleOf(t, 3, 1, bubbleOptions{levels: map[string]uint32{"n1": 1, "n2": 1, "n3": 1}})
		defer b.stopAll()
		marks := &entry.Marks{Stamp: time.Now().UnixNano(), Marks: []fleet.VoterMark{{Node: b.nodes["n1"].ID()}}}
		propose := func() error { return b.nodes[b.awaitLeader("")].Propose(t.Context(), marks) }
		level := func() uint32 { return b.nodes[b.awaitLeader("")].member.Load().fsm.Store().Features() }
		update := func(name string) {
			delete(b.levels, name)
			b.crash(name)
			b.start(name)
			b.ready(name)
		}
		time.Sleep(time.Minute)
		if err := propose(); fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "this host knows level 1") && !strings.Contains(err.Error(), "runs a release") {
			t.Errorf("with all of an older release: %v, want a conflict", err)
		}
		update("n1")
		update("n3")
		time.Sleep(time.Minute)
		if b.awaitLeader("") == "n2" {
			b.crash("n2")
			b.awaitLeader("n2")
			b.start("n2")
			b.ready("n2")
		}
		err := propose()
		if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "n2 of the quorum runs a release that does not know it") || fleet.HintOf(err) == "" {
			t.Errorf("with n2 of an older release: %v (hint %q), want a conflict that names it", err, fleet.HintOf(err))
		}
		if got := level(); got != 1 {
			t.Errorf("feature level %d while n2 knows only the first", got)
		}
		c := b.client()
		var status fleet.GetStatusResult
		if err := c.Call(t.Context(), "GetStatus", fleet.GetStatusRequest{}, &status); err != nil {
			t.Fatal(err)
		}
		if status.FeatureLevel != 1 || !slices.ContainsFunc(status.Warnings, func(w fleet.Warning) bool {
			return w.Code == "QuorumHostBehind" && strings.HasPrefix(w.Message, "n2 ")
		}) {
			t.Errorf("status: feature level %d, warnings %+v; want 1 and that n2 is behind", status.FeatureLevel, status.Warnings)
		}
		c.Close()
		update("n2")
		time.Sleep(2 * time.Second) // an answer counts for so long
		if err := propose(); err != nil {
			t.Errorf("with all updated: %v", err)
		}
		if got := level(); got != entry.MaxLevel {
			t.Errorf("feature level %d, want %d", got, entry.MaxLevel)
		}

		// It does not fall with a voter that goes back, and a host of an older
		// release is not let in.
		b.levels["n4"] = 1
		b.crash("n4")
		b.start("n4")
		b.ready("n4")
		c = b.client()
		defer c.Close()
		err = c.Call(t.Context(), "GetCandidate", fleet.GetCandidateRequest{InstanceId: b.nodes["n4"].ID()}, nil)
		if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "n4") {
			t.Errorf("a candidate of an older release: %v, want a conflict that names it", err)
		}
	})
}

// TestVoterWithAnOlderStore: a voter whose store is put back to what it was some
// commands ago, as a machine's snapshot is, ends before it votes, and comes back
// as an agent that says so.
func TestVoterWithAnOlderStore(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole fleet")
	}
	for _, all := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBubble(t, 3, 1)
			defer b.stopAll()
			c := b.client()
			defer func() { c.Close() }()
			victim := "n2"
			if b.awaitLeader("") == victim {
				victim = "n3"
			}
			b.crash(victim)
			old := filepath.Join(t.TempDir(), "old")
			if err := os.CopyFS(old, os.DirFS(filepath.Join(b.data(victim), "quorum"))); err != nil {
				t.Fatal(err)
			}
			b.start(victim)
			b.ready(victim)
			for range 3 {
				id, err := b.send(c)
				if err != nil {
					t.Fatal(err)
				}
				b.judge(id)
			}
			time.Sleep(2 * markEvery) // the log says how far they have come
			b.crash(victim)
			if all { // nobody remembers: what the log says counts
				for name := range b.nodes {
					b.crash(name)
				}
			}
			store := filepath.Join(b.data(victim), "quorum")
			if err := os.RemoveAll(store); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(store, os.DirFS(old)); err != nil {
				t.Fatal(err)
			}
			for name := range b.hosts {
				if b.nodes[name] == nil {
					b.start(name)
				}
			}
			n := b.nodes[victim]
			select {
			case <-n.Done():
			case <-time.After(time.Minute):
				t.Fatal("a voter with an older store goes on")
			}
			if err := n.Err(); fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(err.Error(), "older copy") {
				t.Errorf("it ended with %v", err)
			}
			b.hosts[victim].Kill()
			b.start(victim) // as its service does
			b.ready(victim)
			if ws := b.nodes[victim].LocalStatus().Warnings; !slices.ContainsFunc(ws, func(w fleet.Warning) bool {
				return w.Code == fleet.WarnQuorumStore && strings.Contains(w.Message, "older copy")
			}) {
				t.Errorf("its status warns of %+v, want that its store is an older copy", ws)
			}
			c.Close()
			c = b.client()
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.judge(id)[fleet.Success]; got != len(b.hosts) {
				t.Errorf("%d of %d hosts ran it", got, len(b.hosts))
			}
		})
	}
}
