package node

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/document"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/runcmd"
	"fleet/node/ssm"
	"fleet/node/ticket"
)

// The kill table: for every step in the life of a command, and each of the
// leader and a host that runs it, that one is ended at exactly that step; and
// what must come of it. The witness is what children count (bubble.runs), not
// what fleet says of itself.

// fate is what must come of the command on the host that was ended.
type fate uint8

const (
	runsOnce    fate = iota // Success and one run; DeliveryTimedOut and none if it comes back too late
	interrupted             // and never run again
	kept                    // Success, with the result that it had
	cancelled               // Cancelled, whatever it was doing
	byJournal               // any of the first three, by what its journal said
)

// step is a row of the table. A kill in an even round is at the first point, in
// an odd one at the second.
type step struct {
	name     string
	points   [2]failpoint.Point
	onLeader [2]bool // the point is one of the leader, else of the host
	agent    [2]fate // of the host, if it is the one that is ended
}

var steps = []step{
	{"S1", [2]failpoint.Point{failpoint.Propose, failpoint.Committed}, [2]bool{true, true}, [2]fate{runsOnce, runsOnce}},
	{"S2", [2]failpoint.Point{failpoint.Dispatch, failpoint.Dispatch}, [2]bool{true, true}, [2]fate{byJournal, byJournal}}, // of any of the targets
	{"S4", [2]failpoint.Point{failpoint.Arrived, failpoint.Arrived}, [2]bool{}, [2]fate{runsOnce, runsOnce}},
	{"S5", [2]failpoint.Point{failpoint.Accept, failpoint.Accepted}, [2]bool{}, [2]fate{runsOnce, runsOnce}},
	{"S6", [2]failpoint.Point{failpoint.Answer, failpoint.Heard}, [2]bool{false, true}, [2]fate{byJournal, byJournal}}, // it may have started meanwhile
	{"S7", [2]failpoint.Point{failpoint.Start, failpoint.Started}, [2]bool{}, [2]fate{runsOnce, interrupted}},
	{"S8", [2]failpoint.Point{failpoint.Exec, failpoint.Runs}, [2]bool{}, [2]fate{interrupted, interrupted}},
	{"S9", [2]failpoint.Point{failpoint.Exited, failpoint.Exited}, [2]bool{}, [2]fate{interrupted, interrupted}},
	{"S10", [2]failpoint.Point{failpoint.Finish, failpoint.Finished}, [2]bool{}, [2]fate{interrupted, kept}},
	{"S11", [2]failpoint.Point{failpoint.Send, failpoint.Received}, [2]bool{false, true}, [2]fate{kept, byJournal}},
	{"S13", [2]failpoint.Point{failpoint.Decide, failpoint.Decided}, [2]bool{true, true}, [2]fate{byJournal, byJournal}},
	{"S14", [2]failpoint.Point{failpoint.Acknowledge, failpoint.Known}, [2]bool{}, [2]fate{kept, kept}},
	{"S15", [2]failpoint.Point{failpoint.Forget, failpoint.Forgotten}, [2]bool{}, [2]fate{kept, kept}},
	{"cancel", [2]failpoint.Point{failpoint.Cancel, failpoint.Cancelled}, [2]bool{}, [2]fate{interrupted, cancelled}},
}

const (
	theHost   = "n4" // the host that is watched, and ended
	otherHost = "n5"
)

// TestKillTable ends FLEET_KILLS hosts in each cell, two by default. FLEET_SEED
// repeats the schedule of an earlier run.
func TestKillTable(t *testing.T) {
	kills := 2
	if v := os.Getenv("FLEET_KILLS"); v != "" {
		var err error
		if kills, err = strconv.Atoi(v); err != nil || kills < 1 {
			t.Fatalf("FLEET_KILLS=%q is no number of kills", v)
		}
	}
	seed := seedOf(t)
	var total tally
	for _, p := range failpoint.All {
		if !slices.ContainsFunc(slices.Concat(steps, relaySteps), func(s step) bool { return slices.Contains(s.points[:], p) }) {
			t.Errorf("no cell of the table ends a host at %s", p)
		}
	}
	for i, s := range steps {
		for j, victim := range []string{"leader", "agent"} {
			if testing.Short() && (i*2+j)%5 != 0 {
				continue
			}
			t.Run(s.name+"/"+victim, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := &killer{bubble: newBubble(t, 3, 2), step: s, leader: victim == "leader", rand: rand.New(rand.NewPCG(seed, uint64(i*2+j)))}
					defer k.stopAll()
					for round := range kills {
						k.round(round)
						if t.Failed() {
							t.Fatalf("round %d; to repeat the schedule: FLEET_SEED=%d", round, seed)
						}
					}
					t.Logf("%s", &k.tally)
					total.add(&k.tally)
				})
			})
		}
	}
	t.Logf("in all: %s", &total)
}

// seedOf is the seed of a schedule: FLEET_SEED, or a new one.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("FLEET_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("FLEET_SEED=%q is no number", v)
		}
	}
	t.Logf("FLEET_SEED=%d", seed)
	return seed
}

// tally is what came of the kills of a cell.
type tally struct {
	kills, powerCuts, commands, doubles, open int
	states                                    map[fleet.InvocationState]int // of the victim's row
}

func (a *tally) add(b *tally) {
	a.kills += b.kills
	a.powerCuts += b.powerCuts
	a.commands += b.commands
	a.doubles += b.doubles
	a.open += b.open
	for s, n := range b.states {
		a.count(s, n)
	}
}

func (a *tally) count(s fleet.InvocationState, n int) {
	if a.states == nil {
		a.states = map[fleet.InvocationState]int{}
	}
	a.states[s] += n
}

func (a *tally) String() string {
	var states []string
	for s, n := range a.states {
		states = append(states, fmt.Sprintf("%d %s", n, s))
	}
	slices.Sort(states)
	return fmt.Sprintf("%d kills (%d of them power cuts), %d commands, %d double runs, %d rows without an end; who was ended says %s",
		a.kills, a.powerCuts, a.commands, a.doubles, a.open, strings.Join(states, ", "))
}

// killer works on one cell.
type killer struct {
	*bubble
	step   step
	leader bool // the leader is ended, not the host
	rand   *rand.Rand
	tally  tally
}

// round is one kill.
func (k *killer) round(i int) {
	k.t.Helper()
	point, onLeader := k.step.points[i%2], k.step.onLeader[i%2]
	powerCut := k.rand.IntN(2) == 0
	late := !k.leader && k.step.agent[i%2] == runsOnce && i%4 >= 2 // it comes back when the command is over
	leader := k.awaitLeader("")
	k.awaitTime()
	watched, victim := theHost, theHost
	if onLeader {
		watched = leader
	}
	if k.leader {
		victim = leader
	}
	k.long(0)
	if k.step.name == "cancel" {
		k.long(50 * time.Second)
	}
	before := k.commands(leader)

	struck := make(chan fleet.CommandID, 1)
	skip := 0 // of the deliveries of S2 any may be the host's
	if point == failpoint.Dispatch {
		skip = k.rand.IntN(5)
	}
	dying := k.nodes[victim]
	strike := func(name string, p failpoint.Point, id fleet.CommandID) {
		k.mu.Lock()
		hit := p == point && name == watched && skip == 0
		if p == point && name == watched {
			skip--
		}
		k.mu.Unlock()
		if !hit {
			return
		}
		if err := k.end(dying, victim, powerCut && point != failpoint.Forgotten); err != nil {
			k.t.Error(err)
		}
		struck <- id
	}
	if k.step.name != "S15" {
		k.onStrike(strike)
	}
	id := k.order(i, leader)
	switch k.step.name {
	case "cancel":
		k.until("it runs", func() bool { return slices.Contains(k.met(id, theHost), failpoint.Runs) })
		c := k.client()
		if err := k.cancel(c, id); err != nil {
			k.t.Fatal(err)
		}
		c.Close()
	case "S15":
		k.judge(id)
		k.later(journal.Retention + time.Hour)
		k.crash(theHost) // a host that starts looks at once what it may forget
		k.onStrike(strike)
		k.start(theHost)
		dying = k.nodes[victim]
	}
	select {
	case <-struck:
	case <-time.After(2 * time.Hour):
		k.t.Fatalf("%s was not reached", point)
	}
	k.onStrike(nil)
	k.tally.kills++
	if powerCut {
		k.tally.powerCuts++
	}
	k.bury(victim)
	rest := time.Duration(k.rand.IntN(8000)) * time.Millisecond
	if late {
		rest = 3 * time.Minute
	}
	time.Sleep(rest)
	k.start(victim)
	k.ready(victim)
	now := k.awaitLeader("")
	if id == "" { // the client was told nothing certain
		id = k.only(before, now)
	}
	k.verdict(id, victim, i, late)
	k.replay(id)
	if got := k.commands(now); got != before+1 {
		k.t.Errorf("%d commands came of one request", got-before)
	}
}

// awaitTime waits until the host knows the time of the fleet.
func (k *killer) awaitTime() {
	k.until("the time of the fleet", func() bool {
		for _, n := range k.nodes {
			if _, ok := n.clock.FleetTime(); !ok {
				return false
			}
		}
		return true
	})
}

// order sends the command. In the cells of S1, where the leader may be ended
// before it answers, the request goes to the leader itself, and then, with the
// same proof, to whoever leads next: the ID is what that one says.
func (k *killer) order(i int, leader string) fleet.CommandID {
	k.t.Helper()
	if k.step.name != "S1" {
		c := k.client()
		defer c.Close()
		id, err := k.send(c)
		if err != nil {
			k.t.Fatal(err)
		}
		return id
	}
	content, _, _ := document.Builtin("AWS-RunShellScript")
	body, err := json.Marshal(ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {"true"}, "executionTimeout": {"60"}},
		MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 60,
	})
	if err != nil {
		k.t.Fatal(err)
	}
	proof := identity.SignProof(k.cred.Key, identity.Proof{
		Fleet: k.cred.Fleet, Operator: k.cred.Operator, Key: k.cred.Key.Public().ID(), Operation: "SendCommand",
		Body: fleet.Sum(body), Nonce: [16]byte{byte(i), byte(k.rand.Uint32())}, NotAfter: time.Now().Add(identity.ProofLifetime).UnixNano(),
	})
	ask := func(name string) (fleet.CommandID, error) {
		ctx, cancel := context.WithTimeout(k.t.Context(), 20*time.Second)
		defer cancel()
		answer, err := k.nodes[name].member.Load().control.Mutate(ctx, "SendCommand", body, proof)
		if err != nil {
			return "", err
		}
		var sent ssm.SendCommandResult
		err = json.Unmarshal(answer, &sent)
		return fleet.CommandID(sent.Command.CommandId), err
	}
	first, err := ask(leader)
	if !k.leader {
		if err != nil {
			k.t.Fatal(err)
		}
		return first
	}
	switch kind := fleet.KindOf(err); {
	case err == nil: // it was told to a caller that no network could have reached
	case kind == fleet.Unknown, kind == fleet.Unavailable, kind == fleet.NoQuorum, kind == fleet.NotLeader:
	default:
		k.t.Errorf("the caller of a leader that ends is told %v, want that it is not known", err)
	}
	second, err := ask(k.awaitLeader(leader))
	if err != nil {
		k.t.Fatalf("the same request again: %v", err)
	}
	if first != "" && second != first && k.step.points[i%2] == failpoint.Committed {
		k.t.Errorf("a committed request was answered %s and then %s", first, second)
	}
	return second
}

// only is the one command that there is more than before.
func (k *killer) only(before int, name string) fleet.CommandID {
	all := k.nodes[name].member.Load().fsm.Store().Commands(1<<20, "")
	if len(all) != before+1 {
		k.t.Fatalf("%d commands came of one request", len(all)-before)
	}
	newest := all[0]
	for _, c := range all {
		if c.Created > newest.Created {
			newest = c
		}
	}
	return newest.ID
}

// later moves the clocks of all hosts at once.
func (k *killer) later(by time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name := range k.hosts {
		k.skewed[name] += by
	}
	k.skewed[operators] += by
}

// verdict is what the table demands.
func (k *killer) verdict(id fleet.CommandID, victim string, round int, late bool) {
	k.t.Helper()
	_, states := k.await(id)
	k.tally.commands++
	if len(states) != len(k.hosts) {
		k.t.Errorf("%s has %d rows for %d targets", id, len(states), len(k.hosts))
	}
	for name, s := range states {
		runs := k.ran(id, name)
		if runs > 1 {
			k.tally.doubles++
			k.t.Errorf("%s ran %d times on %s", id, runs, name)
		}
		if !s.Final() {
			k.tally.open++
			k.t.Errorf("%s on %s is %s for ever", id, name, s)
		}
		want := k.wanted(name, victim, id, round, late)
		if !slices.Contains(want, outcome{s, runs}) {
			k.t.Errorf("%s on %s, which was%s ended: %s and %d runs, want one of %v (it met %v)",
				id, name, map[bool]string{false: " not"}[name == victim], s, runs, want, k.met(id, name))
		}
	}
	k.tally.count(states[victim], 1)
}

// outcome is the final state of a row and what the witness counted.
type outcome struct {
	state fleet.InvocationState
	runs  int
}

var wasCancelled = []outcome{{fleet.Cancelled, 0}, {fleet.Cancelled, 1}}

// wanted are the outcomes that the table allows on a host.
func (k *killer) wanted(name, victim string, id fleet.CommandID, round int, late bool) []outcome {
	var e journal.Entry
	if name == victim {
		e = k.atEnd(id, name)
	}
	f := byJournal
	switch {
	case name != victim && k.step.name == "cancel":
		f = cancelled
	case name != victim:
		f = runsOnce
	case !k.leader:
		f = k.step.agent[round%2]
	}
	if f == byJournal {
		switch {
		case e.Finished != nil:
			f = kept
		case e.Cancel != nil:
			f = cancelled
		case e.Starts > 0:
			f = interrupted
		}
	}
	switch {
	case f == cancelled || f == kept && k.step.name == "cancel":
		return wasCancelled
	case f == interrupted:
		return []outcome{{fleet.Interrupted, 0}, {fleet.Interrupted, 1}}
	case late && name == victim:
		return []outcome{{fleet.DeliveryTimedOut, 0}}
	}
	return []outcome{{fleet.Success, 1}}
}

// replay brings the host its own ticket once more, as a thief or a leader that
// has forgotten might: nothing runs.
func (k *killer) replay(id fleet.CommandID) {
	k.t.Helper()
	n, key := k.nodes[theHost], journal.Key{Command: id, Attempt: 1}
	k.until("the host has done with it", func() bool {
		e, ok := n.journal.Lookup(key)
		return !ok || e.Finished != nil
	})
	e, ok := n.journal.Lookup(key)
	store := k.nodes[k.awaitLeader("")].member.Load().fsm.Store()
	cmd := store.Command(id)
	if !ok || e.Ticket == nil {
		return // it never came here, or is forgotten: its time is over
	}
	runs := k.ran(id, theHost)
	a, err := n.runner.Deliver(k.t.Context(), runcmd.Delivery{
		Ticket: e.Ticket, Index: e.Index, Path: ticket.NewTree(cmd.Targets).Path(int(e.Index)),
		Document: store.Content(cmd.Document), DocumentName: cmd.DocumentName, Parameters: cmd.Parameters,
	})
	if err != nil || a.State != runcmd.Done {
		k.t.Errorf("the same ticket again: %+v, %v", a, err)
	}
	time.Sleep(runTime + time.Second)
	if now := k.ran(id, theHost); now != runs {
		k.t.Errorf("the same ticket again made %d runs of %d", now, runs)
	}
}
