package node

import (
	"testing"
	"testing/synctest"
	"time"

	"fleet/raftfsm/entry"
)

// TestEndedCommandsGo: a leader removes what ended thirty days ago, and nothing
// else.
func TestEndedCommandsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		old, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		b.judge(old)
		time.Sleep(retireEvery + 2*retireFirst)
		store := b.nodes["n1"].member.Load().fsm.Store()
		if store.Command(old) == nil {
			t.Fatal("a command is gone that ended an hour ago")
		}
		b.skew("n1", entry.KeptFor)
		time.Sleep(retireEvery + 2*retireFirst)
		if store.Command(old) != nil {
			t.Error("a command is there that ended thirty days ago")
		}
	})
}
