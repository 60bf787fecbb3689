package node

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

func TestOdd(t *testing.T) {
	a, b, c := fleet.Sum([]byte("a")), fleet.Sum([]byte("b")), fleet.Sum([]byte("c"))
	for _, test := range []struct {
		name string
		said map[fleet.NodeID]fleet.Digest
		want []fleet.NodeID
	}{
		{"nobody", nil, nil},
		{"all alike", map[fleet.NodeID]fleet.Digest{"1": a, "2": a, "3": a}, nil},
		{"one of three", map[fleet.NodeID]fleet.Digest{"1": a, "2": b, "3": a}, []fleet.NodeID{"2"}},
		{"two of five, each its own", map[fleet.NodeID]fleet.Digest{"1": a, "2": b, "3": a, "4": a, "5": c}, []fleet.NodeID{"2", "5"}},
		{"two that differ", map[fleet.NodeID]fleet.Digest{"1": a, "2": b}, []fleet.NodeID{"1", "2"}},
		{"three that differ", map[fleet.NodeID]fleet.Digest{"1": a, "2": b, "3": c}, []fleet.NodeID{"1", "2", "3"}},
	} {
		if got := odd(test.said); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestStatesAreCompared: a voter whose state was changed beside the log is named
// within a minute or so, by whichever voter is asked, and not after it has read
// its log again.
func TestStatesAreCompared(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole fleet")
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		named := func() (by []string) {
			for _, name := range []string{"n1", "n2", "n3"} {
				for _, w := range b.nodes[name].LocalStatus().Warnings {
					if w.Code == warnStates && strings.HasPrefix(w.Message, "the state of n2 differs") && w.Remedy != "" {
						by = append(by, name)
					} else if w.Code == warnStates {
						t.Errorf("%s warns: %s", name, w.Message)
					}
				}
			}
			return by
		}
		time.Sleep(5 * time.Minute)
		if by := named(); by != nil {
			t.Errorf("%v say that a state differs, and none does", by)
		}
		if c := b.nodes["n1"].member.Load().states.Load(); c == nil || c.of != 3 {
			t.Errorf("the last comparison was %+v, want one of three", c)
		}
		txn := b.nodes["n2"].member.Load().fsm.Store().Write()
		row := *txn.Node(b.nodes["n4"].ID())
		row.Labels = map[string]string{"role": "db"}
		txn.PutNode(&row)
		txn.Commit()
		began := time.Now()
		for len(named()) < 3 && time.Since(began) < 5*time.Minute {
			time.Sleep(time.Second)
		}
		took := time.Since(began)
		t.Logf("named by all after %v", took)
		if took > markEvery+hashTime {
			t.Errorf("named by %v after %v, want all within %v", named(), took, markEvery+hashTime)
		}
		if b.awaitLeader("") == "n2" {
			t.Error("a voter whose state differs leads on")
		}
		b.crash("n2")
		b.start("n2")
		b.ready("n2")
		time.Sleep(2*markEvery + hashTime)
		if by := named(); by != nil {
			t.Errorf("%v say that a state differs after a restart", by)
		}
	})
}
