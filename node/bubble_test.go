package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/enrol"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
	"fleet/node/process"
	"fleet/node/ssm"
)

// bubble is a fleet of whole nodes in virtual time: real TLS, real Raft, real
// gossip, the real sequence of enrolment, over an in-memory network and with
// children that only sleep.
type bubble struct {
	t    *testing.T
	net  *memnet.Network
	dir  string
	cred identity.Credential
	host *memnet.Host // the operator's machine

	hosts map[string]*memnet.Host // by node name
	nodes map[string]*Node        // those that run

	config func(name string, c *Config) // changes what a host is told; nil changes nothing

	mu     sync.Mutex    // guards what follows
	takes  time.Duration // what a child takes; 0: runTime
	runs   map[string]int
	atWork map[fleet.CommandID]int  // children that run, over all hosts
	peak   map[fleet.CommandID]int  // the most at once
	fails  map[string]bool          // hosts whose children fail
	last   map[string]time.Time     // of the runs
	skewed map[string]time.Duration // how far a host's clock is off
	blows  blows
	bubbleOptions
}

// bubbleOptions change the hosts of a bubble.
type bubbleOptions struct {
	levels map[string]uint32 // feature level that a host says it knows; none: its release's
	direct int               // Config.Direct
}

const (
	bubblePort = 7790
	runTime    = 2 * time.Second // of a child
)

func newBubble(t *testing.T, voters, agents int) *bubble {
	t.Helper()
	return newBubbleOf(t, voters, agents, bubbleOptions{})
}

// newBubbleOf is newBubble with other hosts.
func newBubbleOf(t *testing.T, voters, agents int, o bubbleOptions) *bubble {
	t.Helper()
	b := &bubble{
		t: t, net: memnet.New(1), dir: t.TempDir(), hosts: map[string]*memnet.Host{}, nodes: map[string]*Node{}, runs: map[string]int{},
		atWork: map[fleet.CommandID]int{}, peak: map[fleet.CommandID]int{}, fails: map[string]bool{}, last: map[string]time.Time{},
		skewed: map[string]time.Duration{}, blows: newBlows(), bubbleOptions: o,
	}
	b.net.SetLatency(time.Millisecond)
	b.host = b.net.Host("10.0.9.9")
	ctx := t.Context()
	for i := range voters + agents {
		name := fmt.Sprintf("n%d", i+1)
		b.hosts[name] = b.net.Host(fmt.Sprintf("10.0.0.%d", i+1))
	}
	init, err := enrol.Init(ctx, enrol.InitOptions{
		DataDir: b.data("n1"), Name: "bubble", RootKeyPath: filepath.Join(b.dir, "root.key"), NodeName: "n1", Advertise: b.addr("n1"),
		Operator: "tester", CredentialPath: filepath.Join(b.dir, "credential"), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.cred = init.Credential
	b.start("n1")
	b.ready("n1")
	c := b.client()
	code, err := identity.NewCode()
	if err != nil {
		t.Fatal(err)
	}
	key := code.Key().Public()
	var made ssm.CreateActivationResult
	if err := c.Call(ctx, "CreateActivation", ssm.CreateActivationRequest{RegistrationLimit: 100, PublicKey: key[:]}, &made); err != nil {
		t.Fatal(err)
	}
	token := identity.JoinToken{
		Root: fleet.Sum(init.Root[:]), Activation: fleet.ActivationID(made.ActivationId), Code: code, Addresses: []string{b.addr("n1")},
	}
	for name, h := range b.hosts {
		if name == "n1" {
			continue
		}
		if _, err := enrol.Join(ctx, enrol.JoinOptions{
			DataDir: b.data(name), Token: token, NodeName: name, Advertise: b.addr(name), Now: time.Now, Dial: h.DialContext,
		}); err != nil {
			t.Fatal(err)
		}
		b.start(name)
	}
	for name := range b.hosts {
		b.ready(name)
	}
	if voters > 1 {
		b.addVoters(c, voters)
	}
	c.Close()
	return b
}

func (b *bubble) data(name string) string { return filepath.Join(b.dir, name) }

func (b *bubble) addr(name string) string {
	return net.JoinHostPort(b.hosts[name].Addr().String(), fmt.Sprint(bubblePort))
}

// start starts a host that was enrolled, or starts it again after crash.
func (b *bubble) start(name string) {
	b.t.Helper()
	b.revive(name)
	h := b.hosts[name]
	l, err := h.Listen("tcp", bubblePort)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := h.ListenPacket(bubblePort)
	if err != nil {
		b.t.Fatal(err)
	}
	out := io.Discard
	level := slog.LevelWarn
	if os.Getenv("FLEET_TEST_LOG") != "" {
		out, level = b.t.Output(), slog.LevelDebug
	}
	cfg := Config{
		DataDir: b.data(name), Listener: l, Packet: p, Dial: h.DialContext, Advertise: b.addr(name), Version: "test", Level: b.levels[name],
		Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})).With("host", name),
		Now:    b.clock(name),
		Starter: func(ctx context.Context, spec process.Spec) (process.Exit, error) {
			return b.child(ctx, name, spec)
		},
		Direct: b.direct,
		At:     func(p failpoint.Point, id fleet.CommandID) { b.atPoint(name, p, id) },
		Sync:   func(f *os.File) error { return b.sync(name, f) },
	}
	if b.config != nil {
		b.config(name, &cfg)
	}
	n, err := New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := n.Start(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[name] = n
}

// running is the hosts that run, for who is not the test's goroutine.
func (b *bubble) running() map[string]*Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.nodes)
}

// child is what runs in place of a shell: it takes runTime and counts.
func (b *bubble) child(ctx context.Context, name string, spec process.Spec) (process.Exit, error) {
	if spec.Spawned != nil {
		if err := spec.Spawned(process.Identity{PID: 1, Start: 1, Boot: "bubble"}); err != nil {
			return process.Exit{}, err
		}
	}
	b.mu.Lock()
	dead, takes := b.blows.dead[name], b.takes
	fails := b.fails[name]
	if !dead {
		b.runs[string(commandOf(spec.Env))+" "+name]++
		defer b.witness(commandOf(spec.Env))()
		b.last[string(commandOf(spec.Env))+" "+name] = time.Now()
	}
	b.mu.Unlock()
	if dead { // what goes on in its goroutines is no more of this world
		return process.Exit{}, errStopped
	}
	if takes == 0 {
		takes = runTime
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return process.Exit{Code: 137, Signal: 9, Cancelled: true}, nil
	}
	fmt.Fprintf(spec.Stdout, "hello from %s\n", name)
	if fails {
		return process.Exit{Code: 1}, nil
	}
	return process.Exit{}, nil
}

func (b *bubble) ready(name string) {
	b.t.Helper()
	select {
	case <-b.nodes[name].Ready():
	case <-b.nodes[name].Done():
		b.t.Fatalf("%s stopped: %v", name, b.nodes[name].Err())
	case <-time.After(time.Minute):
		b.t.Fatalf("%s is not ready after a minute", name)
	}
}

// crash takes a host off the network and ends it, without a farewell.
func (b *bubble) crash(name string) {
	b.hosts[name].Down()
	n := b.nodes[name]
	b.gone(name)
	n.cancel(errStopped)
	<-n.Done()
	b.hosts[name].Up()
}

func (b *bubble) gone(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, name)
}

func (b *bubble) stopAll() {
	for name, n := range b.nodes {
		n.cancel(errStopped)
		<-n.Done()
		delete(b.nodes, name)
	}
	b.net.Close()
	// memberlist and net/http leave timers behind; a bubble must see them end.
	time.Sleep(5 * time.Minute)
}

func (b *bubble) client() *client.Client {
	b.t.Helper()
	c, err := client.Open(b.t.Context(), b.cred, client.Options{Dial: b.host.DialContext, Now: b.clock(operators)})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// operators names the machine of the operator among those whose clock is off.
const operators = ""

// clock is the clock of a host.
func (b *bubble) clock(name string) func() time.Time {
	return func() time.Time {
		b.mu.Lock()
		defer b.mu.Unlock()
		return time.Now().Add(b.skewed[name])
	}
}

func (b *bubble) skew(name string, by time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.skewed[name] = by
}

func (b *bubble) addVoters(c *client.Client, voters int) {
	b.t.Helper()
	var done fleet.ChangeQuorumResult
	if err := c.Call(b.t.Context(), "ChangeQuorum", b.votersRequest(c, voters), &done); err != nil {
		b.t.Fatal(err)
	}
	if len(done.Voters) != voters {
		b.t.Fatalf("%d voters after quorum add, want %d", len(done.Voters), voters)
	}
}

// votersRequest is what the root key signs to make n2 and the next ones voters.
func (b *bubble) votersRequest(c *client.Client, voters int) *fleet.ChangeQuorumRequest {
	b.t.Helper()
	file, root, err := identity.OpenRootKeyFile(filepath.Join(b.dir, "root.key"), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	var trusted fleet.GetTrustResult
	if err := c.Call(b.t.Context(), "GetTrust", fleet.GetTrustRequest{}, &trusted); err != nil {
		b.t.Fatal(err)
	}
	trust, err := identity.ParseTrust(trusted.Trust, root.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	keys := map[fleet.NodeID]fleet.PublicKey{}
	var candidates [][]byte
	for i := 2; i <= voters; i++ {
		n := b.nodes[fmt.Sprintf("n%d", i)]
		keys[n.ID()] = n.key.Public()
		var got fleet.GetCandidateResult
		if err := c.Call(b.t.Context(), "GetCandidate", fleet.GetCandidateRequest{InstanceId: n.ID()}, &got); err != nil {
			b.t.Fatal(err)
		}
		candidates = append(candidates, got.Candidate)
		b.cred.Addresses = append(b.cred.Addresses, n.Address())
	}
	plan, err := enrol.PlanVoters(trust, candidates, func(id fleet.NodeID) (fleet.PublicKey, error) { return keys[id], nil })
	if err != nil {
		b.t.Fatal(err)
	}
	req, err := plan.Sign(root, file, time.Now())
	if err != nil {
		b.t.Fatal(err)
	}
	return req
}

// send sends a command to every host. It is called while the quorum is being
// disturbed, so its caller decides what an error means.
func (b *bubble) send(c *client.Client) (fleet.CommandID, error) {
	content, _, _ := document.Builtin("AWS-RunShellScript")
	var sent ssm.SendCommandResult
	err := c.Call(b.t.Context(), "SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {"true"}, "executionTimeout": {"60"}},
		MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 60,
	}, &sent)
	return fleet.CommandID(sent.Command.CommandId), err
}

// await waits until a command has ended and gives its row and the states of
// its targets by node name.
func (b *bubble) await(id fleet.CommandID) (*fleet.Command, map[string]fleet.InvocationState) {
	b.t.Helper()
	deadline := time.Now().Add(20 * time.Minute)
	for {
		for _, n := range b.nodes {
			m := n.member.Load()
			if m == nil {
				continue
			}
			store := m.fsm.Store().Snapshot()
			cmd := store.Command(id)
			if cmd == nil || cmd.Open() {
				continue
			}
			states := map[string]fleet.InvocationState{}
			for _, inv := range store.Invocations(id) {
				name := store.Node(cmd.Targets[inv.Index]).Name
				states[name] = inv.State
				if inv.State != fleet.Success {
					b.t.Logf("%s on %s: %s %s", id, name, inv.State, inv.Reason)
				}
			}
			return cmd, states
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("command %s has not ended after 20 minutes", id)
		}
		time.Sleep(time.Second)
	}
}

// judge holds what is promised of every command: each target has one final
// state, none ran twice, and what is called a success ran.
func (b *bubble) judge(id fleet.CommandID) map[fleet.InvocationState]int {
	b.t.Helper()
	_, states := b.await(id)
	counts := map[fleet.InvocationState]int{}
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, s := range states {
		counts[s]++
		runs := b.runs[string(id)+" "+name]
		if !s.Final() {
			b.t.Errorf("%s: target %s of an ended command is %s", id, name, s)
		}
		if runs > 1 {
			b.t.Errorf("%s ran %d times on %s", id, runs, name)
		}
		if s == fleet.Success && runs != 1 {
			b.t.Errorf("%s: %s says Success and ran %d times", id, name, runs)
		}
	}
	if len(states) != len(b.hosts) {
		b.t.Errorf("%s: %d targets, want %d", id, len(states), len(b.hosts))
	}
	return counts
}

func (b *bubble) leader() string {
	for name, n := range b.nodes {
		if n.Leads() {
			return name
		}
	}
	return ""
}

// awaitLeader waits for a leader other than the one named.
func (b *bubble) awaitLeader(other string) string {
	b.t.Helper()
	for range 600 {
		if l := b.leader(); l != "" && l != other {
			return l
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatal("no leader for a minute")
	return ""
}

func TestCommandOnEveryHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 2)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		var last fleet.CommandEvent
		outputs := map[string]string{}
		if err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id, Output: true}, func(e fleet.WatchEvent) error {
			if e.Command != nil {
				last = *e.Command
			}
			if e.Invocation != nil && e.Invocation.Final {
				outputs[e.Invocation.Name] = e.Invocation.Stdout.Text
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if last.SuccessCount != 5 || !last.Ended {
			t.Errorf("last event %+v, want 5 successes", last)
		}
		for name := range b.hosts {
			if want := "hello from " + name + "\n"; outputs[name] != want {
				t.Errorf("output of %s is %q, want %q", name, outputs[name], want)
			}
		}
		b.judge(id)
	})
}

// TestLeadersComeAndGo crashes and isolates leaders in the middle of commands.
func TestLeadersComeAndGo(t *testing.T) {
	for _, tc := range []struct {
		name    string
		disturb func(b *bubble, leader string) (mend func())
	}{
		{"crash", func(b *bubble, leader string) func() {
			b.crash(leader)
			return func() { b.start(leader) }
		}},
		{"isolated", func(b *bubble, leader string) func() {
			b.net.Isolate(b.hosts[leader])
			return b.net.HealAll
		}},
		{"cannot be heard", func(b *bubble, leader string) func() {
			for _, h := range b.hosts {
				if h != b.hosts[leader] {
					b.net.CutOneWay(b.hosts[leader], h)
				}
			}
			return b.net.HealAll
		}},
		{"alone with the operator and an agent", func(b *bubble, leader string) func() {
			var left, right []*memnet.Host
			for name, h := range b.hosts {
				if name == leader || name == "n4" {
					left = append(left, h)
				} else {
					right = append(right, h)
				}
			}
			b.net.Partition(append(left, b.host), right)
			return b.net.HealAll
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t, 3, 2)
				defer b.stopAll()
				for round := range 3 {
					// A point of time somewhere in the life of the command: before
					// delivery, while it runs, while the answers come in.
					c := b.client()
					id, err := b.send(c)
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Duration(rand.N(2500)) * time.Millisecond)
					leader := b.awaitLeader("")
					mend := tc.disturb(b, leader)
					time.Sleep(time.Duration(5+rand.N(10)) * time.Second)
					mend()
					b.awaitLeader("")
					counts := b.judge(id)
					t.Logf("round %d: %v", round, counts)
					c.Close()
				}
			})
		})
	}
}

// TestAgentCrashes crashes ordinary hosts in the middle of commands: what had
// started is Interrupted, and nothing starts twice.
func TestAgentCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 3)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		seen := map[fleet.InvocationState]int{}
		for range 12 {
			id, err := b.send(c)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.N(3000)) * time.Millisecond)
			b.crash("n3")
			time.Sleep(time.Duration(rand.N(5000)) * time.Millisecond)
			b.start("n3")
			for s, n := range b.judge(id) {
				seen[s] += n
			}
		}
		t.Log(seen)
		if seen[fleet.Interrupted] == 0 {
			t.Error("no run was interrupted in 12 crashes: the test does not reach what it is for")
		}
	})
}

// TestQuorumAddIsFinishedByTheNextLeader crashes the leader right after the new
// trust.json was committed: hosts that it names would else never vote, and the
// command could not be repeated, because they are voters already by its word.
func TestQuorumAddIsFinishedByTheNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 2)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		req := b.votersRequest(c, 3)
		answered := make(chan error, 1)
		go func() { answered <- c.Call(t.Context(), "ChangeQuorum", req, nil) }()
		first := b.nodes["n1"].member.Load()
		for first.fsm.Store().Trust().Version < 2 {
			select {
			case <-first.fsm.Store().WatchTrust():
			case <-time.After(time.Minute):
				t.Fatal("the new trust.json was not committed")
			}
		}
		b.crash("n1")
		<-answered // however it ended
		b.start("n1")
		deadline := time.Now().Add(5 * time.Minute)
		for {
			servers, err := b.nodes["n1"].member.Load().quorum.Servers()
			if err != nil {
				t.Fatal(err)
			}
			voters := 0
			for _, s := range servers {
				if s.Voter {
					voters++
				}
			}
			if voters == 3 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d voters of 3 five minutes after the crash", voters)
			}
			time.Sleep(time.Second)
		}
		c2 := b.client()
		defer c2.Close()
		id, err := b.send(c2)
		if err != nil {
			t.Fatal(err)
		}
		b.judge(id)
	})
}

// TestQuorumAddIsRepeatedWhileItRuns sends the same request again while the
// first one is still at work, as a client does whose connection broke: the
// repetition gets the same answer, and is not told of "another change".
func TestQuorumAddIsRepeatedWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 2)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		req := b.votersRequest(c, 3)
		const times = 3
		answered := make(chan error, times)
		for range times {
			go func() {
				var done fleet.ChangeQuorumResult
				err := c.Call(t.Context(), "ChangeQuorum", req, &done)
				if err == nil && len(done.Voters) != 3 {
					err = fmt.Errorf("%d voters in the answer", len(done.Voters))
				}
				answered <- err
			}()
		}
		for range times {
			if err := <-answered; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestLeaderWithAWrongClockDecidesNothing sets the leader's clock days ahead in
// the middle of a command. Stamps never fall: had it decided anything, every
// signed request of those days would be late.
func TestLeaderWithAWrongClockDecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		wrong := b.awaitLeader("")
		b.skew(wrong, 5*24*time.Hour)
		time.Sleep(2 * time.Minute)
		now := b.leader()
		if now == wrong || now == "" {
			t.Errorf("the leader is %q; %s has the wrong clock", now, wrong)
		}
		if counts := b.judge(id); counts[fleet.Success] != 4 {
			t.Errorf("the command ended with %v, want 4 successes", counts)
		}
		b.skew(wrong, 0)
		id, err = b.send(c)
		if err != nil {
			t.Fatalf("a command after the clock was set right: %v", err)
		}
		b.judge(id)
		if stamp := b.nodes[b.awaitLeader("")].member.Load().fsm.Store().LastStamp(); time.Until(time.Unix(0, stamp)) > time.Minute {
			t.Errorf("the last stamp is %s, in the future", time.Unix(0, stamp))
		}
	})
}

// TestMinorityDecidesNothing cuts a leader off and asks it to decide and to
// read: it must do neither.
// TestClonedIdentity is a host and a copy of its data directory: within a minute
// both are named, to operators and on the hosts, and nothing is delivered to
// either until the copy is gone.
func TestClonedIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		status := func() (found []fleet.Warning) {
			var s fleet.GetStatusResult
			if err := c.Call(t.Context(), "GetStatus", fleet.GetStatusRequest{}, &s); err != nil {
				t.Fatal(err)
			}
			for _, w := range s.Warnings {
				if w.Code == fleet.WarnCloned {
					found = append(found, w)
				}
			}
			return found
		}
		if ws := status(); len(ws) > 0 {
			t.Fatalf("one host: %+v", ws)
		}
		b.hosts["copy"] = b.net.Host("10.0.0.77")
		if err := os.CopyFS(b.data("copy"), os.DirFS(b.data("n2"))); err != nil {
			t.Fatal(err)
		}
		if err := filepath.WalkDir(b.data("copy"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				err = os.Chmod(path, 0o600) // CopyFS widens modes, and keys that others can read are refused
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		b.start("copy")
		time.Sleep(time.Minute)
		ws := status()
		if len(ws) != 1 || !strings.Contains(ws[0].Message, "10.0.0.2 and 10.0.0.77") || !strings.Contains(ws[0].Message, string(b.nodes["n2"].ID())) {
			t.Fatalf("after a minute: %+v", ws)
		}
		for _, name := range []string{"n2", "copy"} {
			if !slices.ContainsFunc(b.nodes[name].LocalStatus().Warnings, func(w fleet.Warning) bool { return w.Code == WarnCloned }) {
				t.Errorf("%s does not warn", name)
			}
		}
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, states := b.await(id); states["n2"] != fleet.DeliveryTimedOut || states["n1"] != fleet.Success {
			t.Errorf("states %v; want that only n1 got it", states)
		}
		b.mu.Lock()
		early := b.runs[string(id)+" n2"] + b.runs[string(id)+" copy"]
		b.mu.Unlock()
		if early != 0 {
			t.Errorf("the command ran %d times on hosts of which nobody knows which is meant", early)
		}
		b.crash("copy")
		delete(b.hosts, "copy")
		time.Sleep(2 * time.Minute)
		if id, err = b.send(c); err != nil {
			t.Fatal(err)
		}
		b.await(id)
		b.mu.Lock()
		runs := b.runs[string(id)+" n2"]
		b.mu.Unlock()
		if ws := status(); runs != 1 || len(ws) > 0 {
			t.Errorf("when the copy is gone: %d runs, %+v", runs, ws)
		}
	})
}

// TestRejoinAfterTwoMonths is hosts that were off until their certificates had
// ended: a running agent gets another by itself, a command line for one that
// does not run, and both are the nodes that they were.
func TestRejoinAfterTwoMonths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 2)
		defer b.stopAll()
		ids := map[string]fleet.NodeID{}
		for _, name := range []string{"n2", "n3"} {
			ids[name] = b.nodes[name].ID()
			b.crash(name)
		}
		const off = 60 * 24 * time.Hour
		for name := range b.hosts {
			b.skew(name, off)
		}
		later := func() time.Time { return time.Now().Add(off) }

		r, err := enrol.RejoinHost(t.Context(), enrol.RejoinOptions{DataDir: b.data("n3"), Now: later, Dial: b.hosts["n3"].DialContext})
		if err != nil || r.Node != ids["n3"] || r.NodeName != "n3" {
			t.Fatalf("rejoin: %+v, %v", r, err)
		}
		for _, name := range []string{"n2", "n3"} {
			b.start(name)
			b.ready(name)
			if id := b.nodes[name].ID(); id != ids[name] {
				t.Errorf("%s is %s now, it was %s", name, id, ids[name])
			}
			leaf := b.nodes[name].agentTLS.Load().Leaf
			if left := leaf.NotAfter.Sub(later()); left < 29*24*time.Hour {
				t.Errorf("%s has a certificate for another %s", name, left)
			}
		}
		// One that never enrolled here, and one that speaks with another's key.
		b.crash("n3")
		stranger, err := identity.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		dir, info, err := enrol.OpenDir(b.data("n3"))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = (&enrol.Rejoiner{Dir: dir, Info: info, Key: stranger, Now: later, Dial: b.hosts["n3"].DialContext}).Ask(t.Context(), []string{b.addr("n1")})
		if fleet.KindOf(err) != fleet.NotFound || !strings.Contains(err.Error(), "is not enrolled in this fleet") {
			t.Errorf("a stranger rejoins: %v", err)
		}
	})
}

func TestMinorityDecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 0)
		defer b.stopAll()
		leader := b.awaitLeader("")
		old := b.nodes[leader].member.Load()
		var others []*memnet.Host
		for name, h := range b.hosts {
			if name != leader {
				others = append(others, h)
			}
		}
		b.net.Partition([]*memnet.Host{b.hosts[leader], b.host}, others)
		time.Sleep(5 * time.Second)
		if _, err := old.control.Read(t.Context(), false); fleet.KindOf(err) != fleet.NoQuorum {
			t.Errorf("a read on the minority side: %v, want no quorum", err)
		}
		now := b.awaitLeader(leader)
		if _, err := b.nodes[now].member.Load().control.Read(t.Context(), false); err != nil {
			t.Errorf("a read on the majority side: %v", err)
		}
		c := b.client() // reaches only the old leader
		_, err := b.send(c)
		if fleet.KindOf(err) != fleet.NoQuorum {
			t.Errorf("a command on the minority side: %v, want no quorum", err)
		}
		c.Close()
		b.net.HealAll()
		time.Sleep(10 * time.Second)
		var hashes []string
		for name, n := range b.nodes {
			if _, err := n.member.Load().control.Read(t.Context(), false); err != nil {
				t.Errorf("a read on %s after the cut healed: %v", name, err)
			}
			hashes = append(hashes, n.member.Load().fsm.Hash().String())
		}
		for _, h := range hashes[1:] {
			if h != hashes[0] {
				t.Errorf("states differ after the cut healed: %v", hashes)
			}
		}
	})
}

// TestRepeatedRequestIsAnsweredOnce sends one signed request to every voter.
func TestRepeatedRequestIsAnsweredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 0)
		defer b.stopAll()
		content, _, _ := document.Builtin("AWS-RunShellScript")
		body, err := json.Marshal(ssm.SendCommandRequest{
			DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
			Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, Parameters: map[string][]string{"commands": {"true"}},
			MaxConcurrency: "100%", MaxErrors: "100%",
		})
		if err != nil {
			t.Fatal(err)
		}
		proof := identity.SignProof(b.cred.Key, identity.Proof{
			Fleet: b.cred.Fleet, Operator: b.cred.Operator, Key: b.cred.Key.Public().ID(), Operation: "SendCommand",
			Body: fleet.Sum(body), Nonce: [16]byte{1}, NotAfter: time.Now().Add(5 * time.Minute).UnixNano(),
		})
		ids := map[string]bool{}
		for range 2 {
			for _, n := range b.nodes {
				answer, err := n.member.Load().control.Mutate(t.Context(), "SendCommand", body, proof)
				if err != nil {
					t.Fatal(err)
				}
				var sent ssm.SendCommandResult
				if err := json.Unmarshal(answer, &sent); err != nil {
					t.Fatal(err)
				}
				ids[sent.Command.CommandId] = true
			}
		}
		if len(ids) != 1 {
			t.Errorf("one signed request became %d commands: %v", len(ids), ids)
		}
		for id := range ids {
			b.judge(fleet.CommandID(id))
		}
	})
}
