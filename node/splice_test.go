package node

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestStrangersCostTheQuorumNoProofs opens splices as anybody may: they must
// not make this host prove the leader's address for each.
func TestStrangersCostTheQuorumNoProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 1)
		defer b.stopAll()
		voter, n := b.nodes["n1"], b.nodes["n2"]
		splice := func() {
			t.Helper()
			conn, err := n.Splice(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, want := conn.RemoteAddr().String(), b.addr("n1"); got != want {
				t.Errorf("spliced to %s, want %s", got, want)
			}
			_ = conn.Close()
		}
		handshakes := func(splices int) int {
			before := voter.transport.Stats().Accepted
			for range splices {
				splice()
			}
			return int(voter.transport.Stats().Accepted - before)
		}
		if got := handshakes(1); got < 1 {
			t.Errorf("the first splice cost %d handshakes, want a proof", got)
		}
		if got := handshakes(20); got > 2 { // a heartbeat may dial meanwhile
			t.Errorf("20 splices cost %d handshakes with the leader, want none", got)
		}
		time.Sleep(provedFor)
		if got := handshakes(1); got < 1 {
			t.Error("a proof of long ago still counts")
		}
		n.proved.set(voter.ID(), "10.0.0.99:7790") // where it no longer is
		splice()
	})
}
