package node

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

// TestTreeOfWholeNodes: commands for more hosts than the leader delivers to
// itself travel through relays, over real TLS and HTTP/2; hosts that are off
// are not missed, and one that is cut off from the relays only is reached.
func TestTreeOfWholeNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("a fleet of 80 whole nodes")
	}
	synctest.Test(t, func(t *testing.T) {
		const hosts = 80
		b := newBubble(t, 1, hosts-1)
		defer b.stopAll()
		time.Sleep(time.Minute) // every host is in gossip and was dialled
		c := b.client()
		defer c.Close()

		carried := func() (orders int64) {
			for _, n := range b.nodes {
				orders += n.relay.Carried()
			}
			return orders
		}
		send := func(dead int) {
			t.Helper()
			before := carried()
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			cmd, _ := b.await(id)
			if got := b.judge(id); got[fleet.Success] != hosts-dead {
				t.Errorf("states %v, want %d successes", got, hosts-dead)
			}
			took := time.Duration(cmd.Ended - cmd.Created)
			t.Logf("%d orders, %s", carried()-before, took)
			if n := carried() - before; n < hosts/2 {
				t.Errorf("%d orders through the tree", n)
			}
			if dead == 0 && took > 3*runTime {
				t.Errorf("it took %s", took)
			}
		}
		send(0)
		if blamed := b.nodes["n1"].member.Load().dispatch.Blamed(); len(blamed) > 0 {
			t.Errorf("blamed %+v", blamed)
		}
		for i := range 8 {
			b.crash(fmt.Sprintf("n%d", 10+i))
		}
		send(8)
	})
}
