package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
	"fleet/node/ssm"
)

// rootKey opens the root-key file.
func (b *bubble) rootKey() (*identity.RootKeyFile, identity.PrivateKey) {
	b.t.Helper()
	file, root, err := identity.OpenRootKeyFile(filepath.Join(b.dir, "root.key"), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return file, root
}

// trust is the trust.json that the fleet shows.
func (b *bubble) trust(c *client.Client) *identity.Trust {
	b.t.Helper()
	_, root := b.rootKey()
	var got fleet.GetTrustResult
	if err := c.Call(b.t.Context(), "GetTrust", fleet.GetTrustRequest{}, &got); err != nil {
		b.t.Fatal(err)
	}
	trust, err := identity.ParseTrust(got.Trust, root.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	return trust
}

func (b *bubble) candidate(c *client.Client, name string, newIssuer bool) []byte {
	b.t.Helper()
	var got fleet.GetCandidateResult
	if err := c.Call(b.t.Context(), "GetCandidate", fleet.GetCandidateRequest{InstanceId: b.id(name), NewIssuer: newIssuer}, &got); err != nil {
		b.t.Fatalf("candidate %s: %v", name, err)
	}
	return got.Candidate
}

// id is a host's ID, also while it does not run.
func (b *bubble) id(name string) fleet.NodeID {
	b.t.Helper()
	_, info, err := enrol.OpenDir(b.data(name))
	if err != nil {
		b.t.Fatal(err)
	}
	return info.Node
}

func (b *bubble) keyOf(id fleet.NodeID) (fleet.PublicKey, error) {
	for name := range b.hosts {
		dir, info, err := enrol.OpenDir(b.data(name))
		if err == nil && info.Node == id {
			agent, err := dir.LoadIdentity(enrol.Agent)
			return agent.Key.Public(), err
		}
	}
	return fleet.PublicKey{}, fmt.Errorf("no host %s", id)
}

// sign has the root key sign what plan decides.
func (b *bubble) sign(plan *enrol.VoterPlan, err error) *fleet.ChangeQuorumRequest {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	file, root := b.rootKey()
	req, err := plan.Sign(root, file, time.Now())
	if err != nil {
		b.t.Fatal(err)
	}
	return req
}

func (b *bubble) change(c *client.Client, req *fleet.ChangeQuorumRequest) (*fleet.ChangeQuorumResult, error) {
	var done fleet.ChangeQuorumResult
	return &done, c.Call(b.t.Context(), "ChangeQuorum", req, &done)
}

func (b *bubble) mustChange(c *client.Client, req *fleet.ChangeQuorumRequest) {
	b.t.Helper()
	if _, err := b.change(c, req); err != nil {
		b.t.Fatalf("change of the quorum: %v", err)
	}
}

func (b *bubble) removeVoters(c *client.Client, names ...string) *fleet.ChangeQuorumRequest {
	b.t.Helper()
	var ids []fleet.NodeID
	for _, name := range names {
		ids = append(ids, b.id(name))
	}
	return b.sign(enrol.PlanRemoval(b.trust(c), ids, false, time.Now()))
}

func (b *bubble) replaceVoter(c *client.Client, old, by string, compromised bool) *fleet.ChangeQuorumRequest {
	b.t.Helper()
	return b.sign(enrol.PlanReplacement(b.trust(c), b.id(old), b.candidate(c, by, false), b.keyOf, compromised, time.Now()))
}

// wait waits for a condition in virtual time.
func (b *bubble) wait(limit time.Duration, what string, cond func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(limit); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// voting is the names of Raft's voters, as a host's configuration has them.
func (b *bubble) voting(name string) []string {
	m := b.nodes[name].member.Load()
	if m == nil {
		return nil
	}
	servers, err := m.quorum.Servers()
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range servers {
		if s.Voter {
			for other := range b.hosts {
				if b.id(other) == s.ID {
					names = append(names, other)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

func (b *bubble) votes(want ...string) func() bool {
	return func() bool {
		l := b.leader()
		return l != "" && slices.Equal(b.voting(l), want)
	}
}

// speaksWith reports whether a host has a connection with another in a role.
func (b *bubble) speaksWith(name string, peer fleet.NodeID, role fleet.Role) bool {
	for _, c := range b.nodes[name].transport.Open() {
		if c.Peer.Node == peer && c.Peer.Role == role {
			return true
		}
	}
	return false
}

// TestQuorumRemove takes two of five voters out, the leader among them, and then
// two of three: the fleet decides before and after, and the hosts go on as
// ordinary ones.
func TestQuorumRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 5, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		leader := b.awaitLeader("")
		other := "n1"
		if leader == other {
			other = "n2"
		}
		req := b.removeVoters(c, leader, other)
		began := time.Now()
		b.mustChange(c, req)
		stay := []string{}
		for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
			if name != leader && name != other {
				stay = append(stay, name)
			}
		}
		if !b.votes(stay...)() {
			t.Errorf("%v vote, want %v", b.voting(b.leader()), stay)
		}
		b.mustChange(c, req) // the same again
		for _, gone := range []string{leader, other} {
			b.wait(30*time.Second-time.Since(began), gone+" is an ordinary host that no host speaks with as of the quorum", func() bool {
				if b.nodes[gone].member.Load() != nil || b.nodes[gone].role() != fleet.RoleNameAgent {
					return false
				}
				for name := range b.hosts {
					if b.speaksWith(name, b.id(gone), fleet.RoleQuorum) {
						return false
					}
				}
				return true
			})
			if ws := b.nodes[gone].LocalStatus().Warnings; slices.ContainsFunc(ws, func(w fleet.Warning) bool { return w.Code == WarnFenced }) {
				t.Errorf("%s warns as if the fleet had been recovered: %+v", gone, ws)
			}
		}
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 6 {
			t.Errorf("after 5 became 3: %v", counts)
		}
		// What a removed voter certified counts for a week.
		trust := b.trust(c)
		for _, i := range trust.Issuers {
			wantUntil := !slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == i.Node })
			if (i.Until != 0) != wantUntil || wantUntil && time.Until(time.Unix(0, i.Until)) > enrol.IssuerOverlap {
				t.Errorf("issuing key of %s until %d", i.Node, i.Until)
			}
		}
		// They may come back, with new keys, in a log made anew.
		b.mustChange(c, b.sign(enrol.PlanVoters(b.trust(c), [][]byte{b.candidate(c, leader, false), b.candidate(c, other, false)}, b.keyOf)))
		if len(b.voting(b.leader())) != 5 {
			t.Errorf("%v vote after the two came back", b.voting(b.leader()))
		}
		b.mustChange(c, b.removeVoters(c, leader, other))
		b.wait(30*time.Second, "they are ordinary hosts again", func() bool {
			return b.nodes[leader].member.Load() == nil && b.nodes[other].member.Load() == nil
		})
		last := stay[0]
		b.mustChange(c, b.removeVoters(c, stay[1], stay[2]))
		b.wait(30*time.Second, "one voter is left", b.votes(last))
		if id, err = b.send(c); err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 6 {
			t.Errorf("after 3 became 1: %v", counts)
		}
	})
}

// TestQuorumReplace has a host take the place of a voter: of a live one, of the
// leader, of a dead one, of the only one; under load.
func TestQuorumReplace(t *testing.T) {
	for _, tc := range []struct {
		name   string
		voters int
		old    func(b *bubble) string
	}{
		{"a follower", 3, func(b *bubble) string {
			if b.awaitLeader("") == "n2" {
				return "n3"
			}
			return "n2"
		}},
		{"the leader", 3, func(b *bubble) string { return b.awaitLeader("") }},
		{"a dead one", 3, func(b *bubble) string {
			b.crash("n3")
			b.awaitLeader("")
			return "n3"
		}},
		{"the only one", 1, func(*bubble) string { return "n1" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t, tc.voters, 2)
				defer b.stopAll()
				by := fmt.Sprintf("n%d", tc.voters+1)
				b.cred.Addresses = append(b.cred.Addresses, b.addr(by))
				c := b.client()
				defer c.Close()
				old := tc.old(b)
				id, err := b.send(c)
				if err != nil {
					t.Fatal(err)
				}
				before := b.trust(c).Version
				b.mustChange(c, b.replaceVoter(c, old, by, false))
				want := []string{by}
				for i := range tc.voters {
					if name := fmt.Sprintf("n%d", i+1); name != old {
						want = append(want, name)
					}
				}
				slices.Sort(want)
				b.wait(30*time.Second, strings.Join(want, ", ")+" vote", b.votes(want...))
				if v := b.trust(c).Version; v != before+1 {
					t.Errorf("trust.json went from version %d to %d", before, v)
				}
				if b.nodes[old] == nil {
					b.start(old) // it comes back and has to learn it
				}
				b.wait(time.Minute, old+" is an ordinary host", func() bool { return b.nodes[old].member.Load() == nil })
				b.judge(id)
				if id, err = b.send(c); err != nil {
					t.Fatal(err)
				}
				if counts := b.judge(id); counts[fleet.Success] != tc.voters+2 {
					t.Errorf("after the replacement: %v", counts)
				}
			})
		})
	}
}

// TestQuorumChangeIsRefused is what would leave no majority that answers.
func TestQuorumChangeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 5, 0)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		leader := b.awaitLeader("")
		var others []string
		for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
			if name != leader {
				others = append(others, name)
			}
		}
		b.crash(others[0])
		b.crash(others[1])
		req := b.removeVoters(c, others[2], others[3])
		before := b.trust(c).Version
		_, err := b.change(c, req)
		if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "voters would answer") || !strings.Contains(fleet.HintOf(err), "--force") {
			t.Errorf("removing two of the three that answer: %v", err)
		}
		if v := b.trust(c).Version; v != before {
			t.Errorf("trust.json of version %d was committed all the same", v)
		}
		// The two that are away may go.
		b.mustChange(c, b.removeVoters(c, others[0], others[1]))
		if len(b.voting(b.leader())) != 3 {
			t.Errorf("%v vote", b.voting(b.leader()))
		}
		b.start(others[0])
		b.start(others[1])
	})
}

// TestQuorumRemoveIsFinishedByTheNextLeader crashes the leader right after the
// trust.json was committed that takes two voters their votes.
func TestQuorumRemoveIsFinishedByTheNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 5, 0)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		leader := b.awaitLeader("")
		var others []string
		for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
			if name != leader {
				others = append(others, name)
			}
		}
		req := b.removeVoters(c, others[0], others[1])
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		answered := make(chan error, 1)
		go func() { answered <- c.Call(ctx, "ChangeQuorum", req, nil) }()
		m := b.nodes[leader].member.Load()
		for version := m.fsm.Store().Trust().Version; m.fsm.Store().Trust().Version == version; {
			select {
			case <-m.fsm.Store().WatchTrust():
			case <-time.After(time.Minute):
				t.Fatal("the new trust.json was not committed")
			}
		}
		b.crash(leader)
		<-answered // however it ended
		want := append([]string{leader}, others[2:]...)
		slices.Sort(want)
		b.wait(time.Minute, "those of trust.json vote", b.votes(want...))
		b.start(leader)
		b.wait(time.Minute, "they are ordinary hosts", func() bool {
			return b.nodes[others[0]].member.Load() == nil && b.nodes[others[1]].member.Load() == nil
		})
	})
}

// recover recovers the fleet from a host that does not run.
func (b *bubble) recover(name string, force bool) (*enrol.Recovered, error) {
	b.t.Helper()
	file, root := b.rootKey()
	return enrol.RecoverFleet(b.t.Context(), enrol.RecoverOptions{
		DataDir: b.data(name), Root: root, File: file, Force: force, Now: time.Now, Dial: b.hosts[name].DialContext,
		Confirm: func(*enrol.Recoverable) error { return nil },
	})
}

// ask has one host of the quorum decide, or bring to its leader, an operator's
// request. It reports the activation that was made.
func (b *bubble) ask(name string) (fleet.ActivationID, error) { return b.askNode(b.nodes[name]) }

func (b *bubble) askNode(n *Node) (fleet.ActivationID, error) {
	m := n.member.Load()
	if m == nil {
		return "", fmt.Errorf("%s is not of the quorum", n.Name())
	}
	code, err := identity.NewCode()
	if err != nil {
		return "", err
	}
	key := code.Key().Public()
	body, err := json.Marshal(ssm.CreateActivationRequest{RegistrationLimit: 1, PublicKey: key[:]})
	if err != nil {
		return "", err
	}
	proof := identity.SignProof(b.cred.Key, identity.Proof{
		Fleet: b.cred.Fleet, Operator: b.cred.Operator, Key: b.cred.Key.Public().ID(), Operation: "CreateActivation",
		Body: fleet.Sum(body), Nonce: [16]byte(key[:16]), NotAfter: time.Now().Add(5 * time.Minute).UnixNano(),
	})
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	answer, err := m.control.Mutate(ctx, "CreateActivation", body, proof)
	if err != nil {
		return "", err
	}
	var made ssm.CreateActivationResult
	err = json.Unmarshal(answer, &made)
	return fleet.ActivationID(made.ActivationId), err
}

// TestQuorumRecover loses two of three voters again and again, recovers the
// fleet from the third, and has the lost ones come back, together, with logs of
// their own: whatever anybody acknowledged from then on is in the one fleet
// there is. In every third round they come back where they do not see the
// survivor at first, and find together: they are fenced when the cut is healed.
func TestQuorumRecover(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	if n, err := strconv.Atoi(os.Getenv("FLEET_TEST_RECOVERIES")); err == nil {
		rounds = n
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		all := []string{"n1", "n2", "n3"}
		fenced, splits := 0, 0
		for round := range rounds {
			survivor := all[rand.N(3)]
			var lost []string
			for _, name := range all {
				if name != survivor {
					lost = append(lost, name)
				}
			}
			// The first dies a while before the others: what they decide meanwhile
			// is only with them, or not with the survivor.
			if round%2 == 0 {
				b.crash(lost[0])
				b.awaitLeader("")
				if _, err := b.ask(survivor); err != nil {
					t.Fatal(err)
				}
			} else {
				b.net.Isolate(b.hosts[survivor])
				b.wait(time.Minute, "the others decide without the survivor", func() bool {
					_, err := b.ask(lost[1])
					return err == nil
				})
				b.crash(lost[0])
			}
			b.crash(lost[1])
			b.net.HealAll()
			b.wait(time.Minute, "the survivor leads no more", func() bool { return !b.nodes[survivor].Leads() })
			if _, err := b.recover(survivor, false); fleet.KindOf(err) != fleet.Conflict {
				t.Fatalf("recovery of a host that runs: %v", err)
			}
			b.crash(survivor)
			r, err := b.recover(survivor, false)
			if err != nil {
				t.Fatal(err)
			}
			if r.Epoch != uint32(round)+2 || len(r.Voters) != 2 {
				t.Errorf("round %d: %+v", round, r)
			}
			b.start(survivor)
			b.wait(time.Minute, "the survivor decides alone", b.votes(survivor))
			acknowledged := []fleet.ActivationID{}
			note := func(name string) {
				if id, err := b.ask(name); err == nil {
					acknowledged = append(acknowledged, id)
				}
			}
			note(survivor)
			if ws := b.nodes[survivor].LocalStatus().Warnings; !slices.ContainsFunc(ws, func(w fleet.Warning) bool { return w.Code == WarnRecovered }) {
				t.Errorf("the survivor does not warn: %+v", ws)
			}
			apart := round%3 == 2
			if apart {
				b.net.Isolate(b.hosts[survivor])
			}
			for _, name := range lost {
				b.start(name)
			}
			if apart {
				time.Sleep(30 * time.Second)
				b.net.HealAll()
				time.Sleep(2 * tellEvery)
			}
			for range 20 {
				for _, name := range all {
					note(name)
				}
				time.Sleep(time.Second)
			}
			b.wait(30*time.Second, "the lost ones are ordinary hosts", func() bool {
				return b.nodes[lost[0]].member.Load() == nil && b.nodes[lost[1]].member.Load() == nil
			})
			for _, name := range lost {
				if ws := b.nodes[name].LocalStatus().Warnings; slices.ContainsFunc(ws, func(w fleet.Warning) bool { return w.Code == WarnFenced }) {
					fenced++
				}
			}
			store := b.nodes[survivor].member.Load().fsm.Store()
			for _, id := range acknowledged {
				if store.Activation(id) == nil {
					splits++
					t.Errorf("round %d: what was acknowledged is not in the fleet", round)
				}
			}
			if len(acknowledged) < 15 {
				t.Errorf("round %d: %d requests were acknowledged", round, len(acknowledged))
			}
			c := b.client()
			b.mustChange(c, b.sign(enrol.PlanVoters(b.trust(c), [][]byte{b.candidate(c, lost[0], false), b.candidate(c, lost[1], false)}, b.keyOf)))
			b.wait(time.Minute, "three vote again", b.votes(all...))
			if ws := b.nodes[survivor].LocalStatus().Warnings; slices.ContainsFunc(ws, func(w fleet.Warning) bool { return w.Code == WarnRecovered }) {
				t.Errorf("three vote, and it still warns: %+v", ws)
			}
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			if counts := b.judge(id); counts[fleet.Success] != 4 {
				t.Errorf("round %d: %v", round, counts)
			}
			t.Logf("round %d: %s recovered, %d requests acknowledged", round, survivor, len(acknowledged))
			c.Close()
		}
		if fenced != 2*rounds {
			t.Errorf("%d of %d hosts that came back said that they are fenced", fenced, 2*rounds)
		}
		t.Logf("%d recoveries, %d hosts came back fenced, %d split brains", rounds, fenced, splits)
	})
}

// TestQuorumRecoverRefuses is where a recovery would make two fleets of one, or
// has nothing to begin with.
func TestQuorumRecoverRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		b.awaitLeader("")
		refused := func(name, want string) {
			t.Helper()
			if _, err := b.recover(name, false); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("recovery of %s: %v; want %q", name, err, want)
			}
		}
		b.crash("n4")
		refused("n4", "this host is no voter")
		b.crash("n3")
		refused("n3", "there is a quorum: n1, n2 of the 3 voters run")
		b.crash("n2")
		refused("n2", "there is a quorum: n1 of the 3 voters run")
		b.crash("n1")
		before, err := b.recover("n1", false)
		if err != nil {
			t.Fatal(err)
		}
		// The same again, from another one that does not know of the first.
		refused("n2", "this host is behind")
		again, err := b.recover("n1", false) // cut short after it was done, as far as its caller knows
		if err != nil || again.Epoch != before.Epoch+1 {
			t.Errorf("the same host again: %+v, %v", again, err)
		}
		b.start("n1")
		b.wait(time.Minute, "n1 decides alone", b.votes("n1"))
		for _, name := range []string{"n2", "n3", "n4"} {
			b.start(name)
		}
		c := b.client()
		defer c.Close()
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 4 {
			t.Errorf("after the recovery: %v", counts)
		}
	})
}

// TestQuorumChanges changes who votes again and again under load: hosts come,
// go and take each other's place, the leader too, dead ones and ones that are
// cut off. There is never more than one leader of a term, and nothing that was
// acknowledged is lost.
func TestQuorumChanges(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	if n, err := strconv.Atoi(os.Getenv("FLEET_TEST_CHANGES")); err == nil {
		rounds = n
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 2)
		defer b.stopAll()
		all := []string{"n1", "n2", "n3", "n4", "n5"}
		for _, name := range all {
			if !slices.Contains(b.cred.Addresses, b.addr(name)) {
				b.cred.Addresses = append(b.cred.Addresses, b.addr(name))
			}
		}
		// The load sees a copy of the hosts that run. (Nothing may be waited for
		// under a lock that it takes: time would stand still.)
		var running atomic.Pointer[map[string]*Node]
		publish := func(but string) {
			nodes := maps.Clone(b.nodes)
			delete(nodes, but)
			running.Store(&nodes)
		}
		publish("")
		var mu sync.Mutex // guards what follows
		var acknowledged []fleet.ActivationID
		leaders := map[uint64]string{} // used by one goroutine until it has ended
		ctx, end := context.WithCancel(t.Context())
		var load sync.WaitGroup
		for i := range all {
			load.Go(func() {
				for tick := 0; ctx.Err() == nil; tick++ {
					n := (*running.Load())[all[(i+tick)%len(all)]]
					if n != nil && n.member.Load() != nil {
						if id, err := b.askNode(n); err == nil {
							mu.Lock()
							acknowledged = append(acknowledged, id)
							mu.Unlock()
						}
					}
					time.Sleep(300 * time.Millisecond)
				}
			})
		}
		load.Go(func() {
			for ctx.Err() == nil {
				for name, n := range *running.Load() {
					if m := n.member.Load(); m != nil && m.quorum.IsLeader() {
						term := m.quorum.Stats().Term
						if other := leaders[term]; other != "" && other != name {
							t.Errorf("%s and %s lead in term %d", other, name, term)
						}
						leaders[term] = name
					}
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
		done := 0
		for round := range rounds {
			c := b.client()
			var voting []string
			for _, v := range b.trust(c).Voters {
				for _, name := range all {
					if b.id(name) == v.Node {
						voting = append(voting, name)
					}
				}
			}
			slices.Sort(voting)
			rand.Shuffle(len(voting), func(i, j int) { voting[i], voting[j] = voting[j], voting[i] })
			var others []string
			for _, name := range all {
				if !slices.Contains(voting, name) {
					others = append(others, name)
				}
			}
			mend := func() {}
			switch sick := rand.N(3); {
			case sick == 0: // the one that goes is dead
				publish(voting[0])
				b.crash(voting[0])
				mend = func() {
					b.start(voting[0])
					publish("")
				}
			case sick == 1 && b.leader() != voting[0]: // or cut off
				var rest []*memnet.Host
				for _, name := range all {
					if name != voting[0] {
						rest = append(rest, b.hosts[name])
					}
				}
				b.net.Partition([]*memnet.Host{b.hosts[voting[0]]}, rest)
				mend = b.net.HealAll
			}
			b.awaitLeader("")
			var req *fleet.ChangeQuorumRequest
			var what string
			switch {
			case len(voting) == 5:
				what = "remove " + voting[0] + " " + voting[1]
				req = b.removeVoters(c, voting[0], voting[1])
			case rand.N(3) == 0:
				what = "add " + strings.Join(others, " ")
				req = b.sign(enrol.PlanVoters(b.trust(c), [][]byte{b.candidate(c, others[0], false), b.candidate(c, others[1], false)}, b.keyOf))
			default:
				what = "replace " + voting[0] + " by " + others[0]
				req = b.replaceVoter(c, voting[0], others[0], false)
			}
			_, err := b.change(c, req)
			mend()
			if err != nil {
				t.Logf("round %d: %s: %v", round, what, err) // refused, or not known whether
			} else {
				done++
			}
			c.Close()
			b.wait(2*time.Minute, "trust.json and Raft agree: "+what, func() bool {
				l := b.leader()
				if l == "" {
					return false
				}
				trust := b.nodes[l].member.Load().fsm.Store().Trust()
				for _, name := range all {
					m := b.nodes[name].member.Load()
					votes := slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == b.nodes[name].ID() })
					if votes != slices.Contains(b.voting(l), name) || votes != (m != nil) {
						return false
					}
				}
				return true
			})
		}
		end()
		load.Wait()
		last := b.nodes[b.awaitLeader("")].member.Load()
		if _, err := last.control.Read(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		lost := 0
		for _, id := range acknowledged {
			if last.fsm.Store().Activation(id) == nil {
				lost++
			}
		}
		if lost > 0 || done < rounds/2 {
			t.Errorf("%d of %d acknowledged requests are lost, %d of %d changes were made", lost, len(acknowledged), done, rounds)
		}
		t.Logf("%d changes, %d terms, %d requests acknowledged, %d lost", done, len(leaders), len(acknowledged), lost)
	})
}
