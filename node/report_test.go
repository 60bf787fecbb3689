package node

import (
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

// TestResultsPassASilentLeader: a host that believes in a leader which fell
// silent brings its result by another voter soon.
func TestResultsPassASilentLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		b.takes = 10 * time.Second
		time.Sleep(time.Minute) // every host has heard who votes
		c := b.client()
		defer c.Close()
		leader := b.awaitLeader("")
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(9800 * time.Millisecond) // all run, for a moment more
		b.net.Isolate(b.hosts[leader])
		b.awaitLeader(leader)
		began := time.Now()
		for b.row(id, "n4").State != fleet.Success {
			if took := time.Since(began); took > 12*time.Second {
				t.Fatalf("no result of n4 %s after there is a new leader", took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("after %s", time.Since(began))
		b.net.HealAll()
		b.judge(id)
	})
}
