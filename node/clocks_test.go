package node

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/dispatch"
	"fleet/node/fleet"
)

// skews are how far clocks are off, ahead and behind: what a clock drifts, time
// zones, a month (an agent's certificate), a dead battery.
var skews = []time.Duration{
	time.Second, 61 * time.Second, 10 * time.Minute, time.Hour, 25 * time.Hour, 31 * 24 * time.Hour, 366 * 24 * time.Hour, 3650 * 24 * time.Hour,
}

// TestClocks sets the clock of a host, a voter, the leader or the operator's
// machine while a command is under way, before a host starts, or while a host is
// away until it is too late: nothing runs before the command was or after it may
// begin, by the true time. FLEET_SKEWS clocks, twelve by default.
//
// The limit is dispatch.Skew beyond both: by so much a voter's clock may be off
// before the others disagree with it.
func TestClocks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("FLEET_SKEWS")); err == nil && n > 0 {
		rounds = n
	}
	seed := seedOf(t)
	early, late, ran, refused, elections := 0, 0, 0, 0, 0
	const batch = 24 // in one fleet
	for done := 0; done < rounds && !t.Failed(); done += batch {
		synctest.Test(t, func(t *testing.T) {
			b := newBubble(t, 3, 2)
			defer b.stopAll()
			r := rand.New(rand.NewPCG(seed, uint64(done)))
			for i := done; i < min(done+batch, rounds); i++ {
				leader := b.awaitLeader("")
				wrong := []string{theHost, "n1", leader, operators}[i%4]
				if wrong == "n1" && leader == "n1" {
					wrong = "n2"
				}
				by := skews[i%len(skews)]
				if r.IntN(2) == 0 {
					by = -by
				}
				how := []string{"while it runs", "before it starts", "while it is away"}[r.IntN(3)]
				if wrong != theHost && how != "while it runs" {
					how = "before"
				}
				b.long(time.Second)
				switch how {
				case "before it starts":
					b.crash(theHost)
					b.skew(theHost, by)
					b.start(theHost)
				case "while it is away":
					by = -by.Abs()
					b.net.Isolate(b.hosts[theHost])
				case "before":
					b.skew(wrong, by)
				}
				var id fleet.CommandID
				c, err := client.Open(t.Context(), b.cred, client.Options{Dial: b.host.DialContext, Now: b.clock(operators), Timeout: time.Minute})
				if err == nil {
					id, err = b.send(c)
					c.Close()
				}
				switch kind := fleet.KindOf(err); {
				case err == nil:
				case wrong == operators && (kind == fleet.Expired || kind == fleet.Unauthenticated || kind == fleet.Unavailable),
					wrong == leader && by.Abs() > time.Minute && kind != fleet.Other:
					refused++
				default:
					t.Fatalf("clock of %s off by %s, %s: %v", wrong, by, how, err)
				}
				time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
				switch how {
				case "while it runs":
					b.skew(wrong, by)
				case "while it is away":
					time.Sleep(90 * time.Second) // it may begin for 60
					b.skew(wrong, by)
					b.net.HealAll()
				}
				if id != "" {
					time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
					if now := b.leader(); wrong != leader && now != leader {
						elections++
						t.Errorf("%s led before the clock of %s was off by %s, now it is %q", leader, wrong, by, now)
					}
					cmd, states := b.await(id)
					for name, s := range states {
						at, n := b.ranAt(id, name)
						ran += n
						created, end := time.Unix(0, cmd.Created).Add(-dispatch.Skew), time.Unix(0, cmd.NotAfter).Add(dispatch.Skew)
						if how == "while it is away" && name == theHost {
							end = time.Unix(0, cmd.NotAfter)
						}
						if n > 0 && at.Before(created) {
							early++
						}
						if n > 0 && at.After(end) {
							late++
						}
						if n > 1 || n > 0 && (at.Before(created) || at.After(end)) || !s.Final() {
							t.Errorf("clock of %s off by %s, %s: %s is %s, ran %d times at %s, may begin from %s to %s",
								wrong, by, how, name, s, n, at, time.Unix(0, cmd.Created), time.Unix(0, cmd.NotAfter))
						}
						if name != wrong && s != fleet.Success {
							t.Errorf("clock of %s off by %s, %s: on %s, whose clock is right, it is %s", wrong, by, how, name, s)
						}
					}
				}
				b.skew(wrong, 0)
				time.Sleep(2 * time.Minute)
			}
			// Whoever was wrong is as good as before.
			c := b.client()
			defer c.Close()
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			if counts := b.judge(id); counts[fleet.Success] != len(b.hosts) {
				t.Errorf("when all clocks are right again: %v", counts)
			}
		})
	}
	t.Logf("%d clocks set: %d runs, %d of them early, %d late; %d requests refused for the clock; %d elections for another's clock",
		rounds, ran, early, late, refused, elections)
}
