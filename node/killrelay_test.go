package node

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/failpoint"
	"fleet/node/fleet"
)

// relaySteps are the rows of the kill table's relay column: a host that carries
// a command to others is ended when it, or whoever it serves, is there.
var relaySteps = []step{
	{name: "S3", points: [2]failpoint.Point{failpoint.Relay, failpoint.Relayed}},
	{name: "S4", points: [2]failpoint.Point{failpoint.Arrived, failpoint.Arrived}},
	{name: "S5", points: [2]failpoint.Point{failpoint.Accept, failpoint.Accepted}},
	{name: "S6", points: [2]failpoint.Point{failpoint.Answer, failpoint.Answer}},
	{name: "S7", points: [2]failpoint.Point{failpoint.Start, failpoint.Started}},
	{name: "S8", points: [2]failpoint.Point{failpoint.Exec, failpoint.Runs}},
	{name: "S9", points: [2]failpoint.Point{failpoint.Exited, failpoint.Exited}},
	{name: "S10", points: [2]failpoint.Point{failpoint.Finish, failpoint.Finished}},
	{name: "S12", points: [2]failpoint.Point{failpoint.Forward, failpoint.Forward}},
	{name: "S13", points: [2]failpoint.Point{failpoint.Decide, failpoint.Decided}},
	{name: "S14", points: [2]failpoint.Point{failpoint.Acknowledge, failpoint.Known}},
}

// TestKillTableRelay ends a relay at each step of a command that travels through
// it, FLEET_KILLS times, once by default: every other host runs it once, and the
// relay itself does what its journal says.
func TestKillTableRelay(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	kills := 1
	if n, err := strconv.Atoi(os.Getenv("FLEET_KILLS")); err == nil && n > 0 {
		kills = n
	}
	seed := seedOf(t)
	var total tally
	for i, s := range relaySteps {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &killer{bubble: newBubbleOf(t, 3, 8, bubbleOptions{direct: 3}), step: s, leader: true, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
				defer k.stopAll()
				time.Sleep(time.Minute) // every host was dialled
				for round := range kills {
					k.relayRound(round)
					if t.Failed() {
						t.Fatalf("round %d; to repeat the schedule: FLEET_SEED=%d", round, seed)
					}
				}
				t.Logf("%s", &k.tally)
				total.add(&k.tally)
			})
		})
	}
	t.Logf("in all: %s", &total)
}

// relayRound is one kill of a relay that is no voter.
func (k *killer) relayRound(i int) {
	k.t.Helper()
	point, powerCut := k.step.points[i%2], k.rand.IntN(2) == 0
	leader := k.awaitLeader("")
	k.awaitTime()
	k.until("every host is fit to carry", func() bool {
		fit := k.nodes[leader].member.Load().fitForTree()
		for _, n := range k.nodes {
			if !fit(n.ID()) {
				return false
			}
		}
		return true
	})
	nodes := k.running()
	voter := []string{"n1", "n2", "n3"}
	struck := make(chan string, 1)
	relay := "" // the first that accepted an order and is no voter
	k.onStrike(func(name string, p failpoint.Point, _ fleet.CommandID) {
		k.mu.Lock()
		if (p == failpoint.Relay || p == failpoint.Relayed || p == failpoint.Forward) && relay == "" && !slices.Contains(voter, name) {
			relay = name
		}
		victim := relay
		hit := p == point && victim != "" && (k.step.name != "S3" && k.step.name != "S12" || name == victim)
		if hit {
			relay, point = "-", "" // once
		}
		k.mu.Unlock()
		if !hit {
			return
		}
		if err := k.end(nodes[victim], victim, powerCut); err != nil {
			k.t.Error(err)
		}
		struck <- victim
	})
	c := k.client()
	defer c.Close()
	var id fleet.CommandID
	var victim string
	for try := 0; victim == ""; try++ {
		var err error
		if id, err = k.send(c); err != nil {
			k.t.Fatal(err)
		}
		select {
		case victim = <-struck:
		case <-time.After(3 * time.Minute):
			// A leader that has blamed a relay lets it be for a while, and all that
			// are drawn then may be voters.
			k.judge(id)
			if try == 20 {
				k.t.Fatalf("%s was not reached with a relay that is no voter", k.step.points[i%2])
			}
		}
	}
	k.onStrike(nil)
	k.tally.kills++
	if powerCut {
		k.tally.powerCuts++
	}
	k.bury(victim)
	time.Sleep(time.Duration(k.rand.IntN(8000)) * time.Millisecond)
	k.start(victim)
	k.ready(victim)
	k.verdict(id, victim, i, false)
}
