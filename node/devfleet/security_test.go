package devfleet

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ssm"
	"fleet/node/ticket"
	"fleet/node/transport"
	"fleet/node/wire"
)

// heldHost is the host whose place the thief takes, honestHost the agent that
// stays what it is.
const (
	honestHost = "node04"
	heldHost   = "node05"
)

// TestSecurity tries on one fleet of whole nodes what somebody may try who has
// a host's keys, a captured request, an activation or a wrong clock.
func TestSecurity(t *testing.T) {
	s := newScene(t)
	t.Run("clock", s.testClock)
	t.Run("activation", s.testActivation)
	t.Run("replay", s.testReplay)
	t.Run("theft", s.testTheft)
}

// testClock is an operator whose clock is an hour off: he is told so, at the
// door and, if it goes wrong later, at the request.
func (s *scene) testClock(t *testing.T) {
	before := s.image(t)
	for _, c := range []struct {
		off            time.Duration
		door, mutation *regexp.Regexp // the time until it is judged shows in the seconds
	}{
		{
			-time.Hour, regexp.MustCompile(`this machine's clock is 1h0m[0-9]+s behind the fleet's`),
			regexp.MustCompile(`expired 55m[0-9]+s ago by the fleet's clock`),
		},
		{
			time.Hour, regexp.MustCompile(`this machine's clock is (1h0m0s|59m[0-9]+s) ahead of the fleet's`),
			regexp.MustCompile(`the clock that signed it is at least 5[45]m[0-9]+s ahead of the fleet's`),
		},
	} {
		t.Run(c.off.String(), func(t *testing.T) {
			var off atomic.Int64 // of the operator's clock
			now := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			off.Store(int64(c.off))
			var err error
			await(t, "the operator's clock is judged", func() bool {
				_, err = client.Open(t.Context(), s.Credential(), client.Options{Now: now})
				return !undecided(err)
			})
			if fleet.KindOf(err) != fleet.Expired || !c.door.MatchString(fmt.Sprint(err)) || !strings.Contains(fleet.HintOf(err), "time") {
				t.Errorf("Open: %v (hint %q); want %q", err, fleet.HintOf(err), c.door)
			}
			off.Store(0)
			var later *client.Client
			await(t, "the operator reaches the quorum", func() bool {
				later, err = client.Open(t.Context(), s.Credential(), client.Options{Now: now, Timeout: patience})
				return err == nil
			})
			defer later.Close()
			off.Store(int64(c.off))
			err = later.Call(t.Context(), "SendCommand", s.script("true", s.host(honestHost).ID()), nil)
			if fleet.KindOf(err) != fleet.Expired || !c.mutation.MatchString(fmt.Sprint(err)) || !strings.Contains(fleet.HintOf(err), "clock") {
				t.Errorf("SendCommand: %v (hint %q); want %q", err, fleet.HintOf(err), c.mutation)
			}
		})
	}
	unchanged(t, before, s.image(t))
}

// testActivation has a hundred hosts race for an activation that is for one.
func (s *scene) testActivation(t *testing.T) {
	const racers = 100
	token, err := s.token(t.Context(), s.client, 1)
	if err != nil {
		t.Fatal(err)
	}
	token.Addresses = s.Credential().Addresses
	join := func(i int) (*enrol.JoinResult, error) {
		return enrol.Join(t.Context(), enrol.JoinOptions{
			DataDir: filepath.Join(s.dir, fmt.Sprintf("racer%d", i)), Token: token, NodeName: fmt.Sprintf("racer%d", i),
			Advertise: fmt.Sprintf("127.0.0.1:%d", 10001+i), Now: time.Now,
		})
	}
	// decided joins until the quorum has decided: a host that is turned away
	// because too many knock at once tries again.
	decided := func(i int) (r *enrol.JoinResult, err error) {
		for deadline := time.Now().Add(patience); ; {
			if r, err = join(i); !undecided(err) || time.Now().After(deadline) {
				return r, err
			}
		}
	}
	spent := func(i int, err error) {
		t.Helper()
		var e *fleet.Error
		if !errors.As(err, &e) || e.Kind != fleet.Throttled || e.Code != "InvalidActivation" ||
			!strings.Contains(e.Message, fmt.Sprintf("activation %s is spent: 1 of 1 hosts enrolled with it", token.Activation)) ||
			!strings.Contains(fleet.HintOf(err), "fleet activation create") {
			t.Errorf("racer %d: %+v", i, err)
		}
	}
	results := make([]*enrol.JoinResult, racers)
	failures := make([]error, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			<-start
			results[i], failures[i] = decided(i)
		})
	}
	close(start)
	wg.Wait()
	winner := -1
	for i := range racers {
		switch {
		case failures[i] != nil:
			spent(i, failures[i])
		case winner >= 0:
			t.Errorf("racers %d and %d both enrolled", winner, i)
		default:
			winner = i
		}
	}
	if winner < 0 {
		t.Fatal("nobody enrolled")
	}
	counted := func() {
		t.Helper()
		var activations ssm.DescribeActivationsResult
		s.call(t, "DescribeActivations", ssm.DescribeActivationsRequest{MaxResults: 50}, &activations)
		i := slices.IndexFunc(activations.ActivationList, func(a ssm.Activation) bool {
			return a.ActivationId == string(token.Activation)
		})
		if i < 0 || activations.ActivationList[i].RegistrationsCount != 1 {
			t.Errorf("activations %+v; want %s counted once", activations.ActivationList, token.Activation)
		}
		var nodes fleet.DescribeNodesResult
		s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Brief: true}, &nodes)
		enrolled := slices.DeleteFunc(nodes.Nodes, func(n fleet.NodeView) bool { return n.ActivationId != token.Activation })
		if len(enrolled) != 1 || enrolled[0].InstanceId != results[winner].Node {
			t.Errorf("enrolled %+v; want only %s", enrolled, results[winner].Node)
		}
	}
	counted()

	// A host whose enrolment was cut short, here before the end of its data
	// directory was written, keeps its key and its row.
	for i, racer := range []int{winner, (winner + 1) % racers} {
		err := os.Remove(filepath.Join(s.dir, fmt.Sprintf("racer%d", racer), "FORMAT"))
		if i == 0 && err != nil || i == 1 && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("FORMAT of racer %d: %v", racer, err)
		}
		r, err := decided(racer)
		switch {
		case i == 1:
			spent(racer, err)
		case err != nil:
			t.Errorf("the winner could not join again: %v", err)
		case r.Node != results[winner].Node:
			t.Errorf("the winner became %s; was %s", r.Node, results[winner].Node)
		}
	}
	counted()
}

// testReplay sends one captured request again, through every voter, with other
// contents, and after all voters were started anew.
func (s *scene) testReplay(t *testing.T) {
	out := filepath.Join(s.dir, "replayed")
	targets := []fleet.NodeID{s.host("node01").ID(), s.host(honestHost).ID()}
	captured := s.sign(t, "SendCommand", s.script(fmt.Sprintf("echo $FLEET_NODE_ID >> '%s'", out), targets...))
	id := s.send(t, captured)
	again := func(when string) {
		t.Helper()
		for _, n := range s.voters() {
			if got, err := s.sendTo(t, n.Address(), captured); err != nil || got != id {
				t.Errorf("%s at %s: command %s, %v; want %s", when, n.Name(), got, err, id)
			}
		}
	}
	once := func(when string) {
		t.Helper()
		for _, host := range targets {
			if n := s.seen.of(host, id); n != 1 {
				t.Errorf("%s: ran %d times on %s", when, n, host)
			}
		}
		b, err := os.ReadFile(out)
		lines := strings.Fields(string(b))
		slices.Sort(lines)
		want := []string{string(targets[0]), string(targets[1])}
		slices.Sort(want)
		if err != nil || !slices.Equal(lines, want) {
			t.Errorf("%s: the script wrote %q, %v; want %q", when, lines, err, want)
		}
	}
	again("at once")
	s.finished(t, id)
	once("at once")

	before, ran := s.image(t), s.seen.all()
	proof, err := identity.ParseProof(captured.proof)
	if err != nil {
		t.Fatal(err)
	}
	other := s.sign(t, "SendCommand", s.script("echo other >> '"+out+"'", targets...))
	sameNonce := s.proof(t, "SendCommand", other.body)
	sameNonce.Nonce = proof.Nonce
	tags := s.sign(t, "AddTagsToResource", ssm.AddTagsToResourceRequest{
		ResourceType: "ManagedInstance", ResourceId: string(targets[1]), Tags: []ssm.Tag{{Key: "stolen", Value: "yes"}},
	})
	sameNonceTags := s.proof(t, tags.operation, tags.body)
	sameNonceTags.Nonce = proof.Nonce
	resigned := func(r request, p identity.Proof) request {
		return request{r.operation, r.body, identity.SignProof(s.cred.Key, p)}
	}
	for _, c := range []struct {
		name string
		r    request
		want fleet.Kind
	}{
		{"another body", request{captured.operation, other.body, captured.proof}, fleet.Unauthenticated},
		{"a space more", request{captured.operation, append(slices.Clone(captured.body), ' '), captured.proof}, fleet.Unauthenticated},
		{"another operation", request{"CreateActivation", captured.body, captured.proof}, fleet.Unauthenticated},
		{"no proof", request{captured.operation, captured.body, nil}, fleet.Unauthenticated},
		{"another body signed with its nonce", resigned(other, sameNonce), fleet.Conflict},
		{"another operation signed with its nonce", resigned(tags, sameNonceTags), fleet.Conflict},
	} {
		for _, n := range s.voters() {
			if _, err := s.sendTo(t, n.Address(), c.r); fleet.KindOf(err) != c.want {
				t.Errorf("%s at %s: %v; want an error of kind %s", c.name, n.Name(), err, c.want)
			}
		}
	}
	again("later")
	unchanged(t, before, s.image(t))

	s.restartVoters(t)
	again("after the restart")
	unchanged(t, before, s.image(t))
	s.finished(t, s.send(t, s.sign(t, "SendCommand", s.script("true", targets...)))) // by then a second run would have begun
	once("after the restart")
	if n := s.seen.all(); n != ran+len(targets) {
		t.Errorf("%d things ran since the command; want the last command alone", n-ran)
	}
}

// restartVoters stops all voters and starts them again where they were.
func (s *scene) restartVoters(t *testing.T) {
	t.Helper()
	voters := s.voters()
	var wg sync.WaitGroup
	for _, n := range voters {
		wg.Go(func() {
			if err := n.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	s.nodes = slices.DeleteFunc(s.nodes, func(n *node.Node) bool { return slices.Contains(voters, n) })
	s.mu.Unlock()
	for _, n := range voters {
		port, err := portAt(n.Address())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.start(t.Context(), index(n.Name()), port); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range s.voters() {
		if err := waitReady(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the voters elect a leader", func() bool { return s.Leader() != nil })
	s.connect(t)
}

// testTheft has the keys of an agent, of a voter, and of a host that the quorum
// does not know, tried on every protocol and method of every other host.
// Nobody runs anything, and nothing is decided.
func (s *scene) testTheft(t *testing.T) {
	agentLoot := s.steal(t, heldHost)
	// One that does not lead: so the leader is among those that are tried.
	var voter *node.Node
	await(t, "one of the voters leads", func() bool {
		i := slices.IndexFunc(s.voters(), func(n *node.Node) bool { return n != s.Leader() })
		voter = s.voters()[max(i, 0)]
		return s.Leader() != nil && i >= 0
	})
	voterLoot := s.steal(t, voter.Name())
	honest := s.steal(t, honestHost)
	came := s.impersonate(t, heldHost, agentLoot)
	o := s.order(t, honest.info.Node, agentLoot.info.Node, came)
	before, ran := s.image(t), s.seen.all()
	nothing := func(t *testing.T) {
		t.Helper()
		unchanged(t, before, s.image(t))
		if n := s.seen.all(); n != ran {
			t.Errorf("%d things were started", n-ran)
		}
		if b, err := os.ReadFile(s.baitFile()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the bait was taken by %q, %v", b, err)
		}
	}

	agent := &raid{scene: s, thief: s.thief(t, agentLoot, fleet.RoleAgent, agentLoot.agent), order: o, honest: honest}
	t.Run("agent key", func(t *testing.T) {
		agent.walk(t, byAgent())
		agent.protocols(t)
		nothing(t)
	})
	t.Run("quorum key", func(t *testing.T) {
		r := &raid{scene: s, thief: s.thief(t, voterLoot, fleet.RoleQuorum, voterLoot.quorum), order: o, honest: honest}
		r.walk(t, byQuorum())
		r.protocols(t)
		nothing(t)
	})
	t.Run("quorum key of a stranger", func(t *testing.T) {
		// The root key certified a host that is neither in trust.json nor in
		// Raft's configuration, as one is that was removed.
		l := agentLoot
		l.quorum = s.certify(t, agentLoot)
		r := &raid{scene: s, thief: s.thief(t, l, fleet.RoleQuorum, l.quorum), order: o, honest: honest}
		for _, at := range r.places() {
			protos := []transport.Proto{transport.RPC}
			if at.to.Role == fleet.RoleQuorum {
				protos = append(protos, transport.Raft)
			}
			for _, p := range protos {
				if err := closed(t.Context(), s.host(at.name).Address(), p, at.to.Role.String()+"."+string(at.to.Node), &r.cert); err != nil {
					t.Errorf("%s at the %s identity of %s: %v", p, at.to.Role, at.name, err)
				}
			}
		}
		nothing(t)
	})

	// What was the order of the operator all the while ends as ordered, and
	// what the thief's host says of itself counts.
	o.release()
	own := agent.result(agentLoot.info.Node)
	own.State, own.Reason = fleet.Success, ""
	await(t, "a host's own result is decided", func() bool {
		to := rpc.Target{Node: s.voters()[0].ID(), Role: fleet.RoleQuorum}
		_, err := rpc.Call[rpc.ReportRequest, rpc.ReportResponse](t.Context(), agent.rpc, to, rpc.MethodReport,
			&rpc.ReportRequest{Result: ticket.SignResult(agent.key, own)})
		if err != nil && !undecided(err) {
			t.Fatalf("a host's own result: %v", err)
		}
		return err == nil
	})
	s.finished(t, o.id)
	if n := s.seen.of(honest.info.Node, o.id); n != 1 || s.seen.all() != ran {
		t.Errorf("the order ran %d times, and %d other things", n, s.seen.all()-ran)
	}
}

// certify has the root key sign a new quorum key for a host.
func (s *scene) certify(t *testing.T, l loot) *enrol.Identity {
	t.Helper()
	file, root, err := identity.OpenRootKeyFile(s.root, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := identity.IssueQuorum(root, file.Certificate, l.info.Node, key.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &enrol.Identity{Key: key, Chain: [][]byte{der, file.Certificate}}
}

// protocols tries every protocol of the port on every host.
func (r *raid) protocols(t *testing.T) {
	t.Helper()
	tries := map[transport.Proto]func(ctx context.Context, at place, addr string) error{
		transport.RPC:     func(context.Context, place, string) error { return nil }, // walk has been there
		transport.Raft:    r.raftPort,
		transport.Gossip:  r.gossipPort,
		transport.Reverse: r.reversePort,
		transport.API:     r.apiPort,
		transport.Join:    r.joinPort,
	}
	for _, p := range protosOfTransport(t) {
		try := tries[p]
		if try == nil {
			t.Errorf("protocol %s is not attacked: say here what a thief may get from it", p)
			continue
		}
		for _, at := range r.places() {
			var err error
			await(t, fmt.Sprintf("%s is answered by %s", p, at.name), func() bool {
				err = try(t.Context(), at, r.host(at.name).Address())
				return !undecided(err)
			})
			if err != nil {
				t.Errorf("%s at the %s identity of %s: %v", p, at.to.Role, at.name, err)
			}
		}
	}
}

// protosOfTransport reads the constants of type Proto from the source, so that
// none can be added without being tried here.
func protosOfTransport(t *testing.T) []transport.Proto {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "transport", "proto.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []transport.Proto
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Proto" {
			for _, v := range spec.Values {
				lit, ok := v.(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s: not a literal", spec.Names[0].Name)
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, transport.Proto(text))
			}
		}
		return true
	})
	if len(all) < 5 {
		t.Fatalf("only the protocols %q were found", all)
	}
	return all
}

// raftPort: an agent's certificate is refused before a byte is read. A voter's
// is not, which shows that this would see it.
func (r *raid) raftPort(ctx context.Context, at place, addr string) error {
	name := at.to.Role.String() + "." + string(at.to.Node)
	if r.as == fleet.RoleAgent || at.to.Role == fleet.RoleAgent {
		return closed(ctx, addr, transport.Raft, name, &r.cert)
	}
	wire := raft.NewNetworkTransport(&raftStream{r: r, name: name, done: make(chan struct{})}, 1, patience, io.Discard)
	defer wire.Close() //nolint:errcheck // it closes what is answered already
	var vote raft.RequestVoteResponse
	err := wire.RequestVote(raft.ServerID(at.to.Node), raft.ServerAddress(addr), &raft.RequestVoteRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.info.Node), Addr: []byte(r.info.Node)},
	}, &vote)
	if err != nil || vote.Granted {
		return fmt.Errorf("a voter was answered %+v, %w", vote, err)
	}
	return nil
}

// raftStream dials Raft with the stolen identity and accepts nothing.
type raftStream struct {
	r    *raid
	name string
	done chan struct{}
}

func (s *raftStream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return dialTLS(ctx, string(addr), transport.Raft, s.name, &s.r.cert)
}

func (s *raftStream) Accept() (net.Conn, error) { <-s.done; return nil, net.ErrClosed }
func (s *raftStream) Close() error              { close(s.done); return nil }
func (s *raftStream) Addr() net.Addr            { return &net.TCPAddr{} }

// gossipPort: an agent belongs there; what it says is a hint, so garbage must
// only do no harm. A quorum certificate does not belong there.
func (r *raid) gossipPort(ctx context.Context, at place, addr string) error {
	name := at.to.Role.String() + "." + string(at.to.Node)
	if r.as != fleet.RoleAgent || at.to.Role != fleet.RoleAgent {
		return closed(ctx, addr, transport.Gossip, name, &r.cert)
	}
	conn, err := dialTLS(ctx, addr, transport.Gossip, name, &r.cert)
	if err != nil {
		return err
	}
	_, _ = conn.Write(make([]byte, 4<<10)) // the host hangs up at the first bytes that it does not know
	_ = conn.Close()
	return nil
}

// reversePort: an agent may open it at a voter, to be called there as the host
// that it is. It can ask nothing over it, and holds no more than a few places.
func (r *raid) reversePort(ctx context.Context, at place, addr string) error {
	name := at.to.Role.String() + "." + string(at.to.Node)
	if r.as != fleet.RoleAgent || at.to.Role != fleet.RoleQuorum {
		return closed(ctx, addr, transport.Reverse, name, &r.cert)
	}
	// A call in the wrong direction, as it would be made on the protocol h2.
	asking := rpc.NewClient(func(ctx context.Context, _ fleet.NodeID, _ fleet.Role) (net.Conn, error) {
		return dialTLS(ctx, addr, transport.Reverse, name, &r.cert)
	})
	defer asking.Close() //nolint:errcheck // the call's error counts
	_, err := rpc.Call[rpc.HeartbeatRequest, rpc.HeartbeatResponse](ctx, asking, at.to, rpc.MethodHeartbeat, &rpc.HeartbeatRequest{Version: "x"})
	if kind := fleet.KindOf(err); kind != fleet.Unknown && kind != fleet.Unavailable {
		return fmt.Errorf("a call in the wrong direction: %w", err)
	}
	// Many at once: the newest counts, older ones are let go.
	const many = 12
	ended := make(chan error, many)
	for range many {
		conn, err := dialTLS(ctx, addr, transport.Reverse, name, &r.cert)
		if err != nil {
			ended <- nil
			continue
		}
		defer conn.Close() //nolint:errcheck // it is the thief's
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		go func() {
			_, err := io.Copy(io.Discard, conn)
			ended <- err
		}()
	}
	for range many - transport.DefaultLimits().PerPeerProto[transport.Reverse] {
		var timeout net.Error
		if err := <-ended; errors.As(err, &timeout) && timeout.Timeout() {
			return errors.New("one host holds more reverse connections than the limit")
		}
	}
	return nil
}

// apiPort: a host's key is no operator's, under whatever name. An ordinary host
// passes him on to a quorum host, which says so.
func (r *raid) apiPort(ctx context.Context, at place, addr string) error {
	if !at.member {
		if err := closed(ctx, addr, transport.API, "quorum."+string(at.to.Node), nil); err != nil {
			return err
		}
	}
	cred := r.cred
	cred.Key = r.key
	for _, key := range []fleet.KeyID{r.key.Public().ID(), r.cred.Key.Public().ID()} {
		_, err := enter(ctx, addr, cred, key)
		if fleet.KindOf(err) != fleet.Unauthenticated {
			return fmt.Errorf("not refused as the key of nobody: %w", err)
		}
	}
	return nil
}

// joinPort: nobody enrols without an activation, or as somebody else.
func (r *raid) joinPort(ctx context.Context, at place, addr string) error {
	stranger, err := r.joinRequest()
	if err != nil {
		return err
	}
	asAnother, err := r.joinAs(r.honest.agent.Key.Public())
	if err != nil {
		return err
	}
	for name, c := range map[string]struct {
		request []byte
		want    fleet.Kind
	}{
		"with no activation": {stranger, fleet.NotFound},
		"as another host":    {asAnother, fleet.Unauthenticated},
		"with garbage":       {[]byte("x"), fleet.Invalid},
	} {
		conn, err := transport.DialJoin(ctx, nil, addr, fleet.Sum(r.info.RootKey), nil)
		if err != nil {
			return err
		}
		kind, certificate, err := askToJoin(conn, c.request)
		if err = errors.Join(err, conn.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(certificate) > 0 || at.member && kind != c.want {
			return fleet.Errorf(kind, "%s: answered with kind %s and a certificate of %d bytes", name, kind, len(certificate))
		}
	}
	return nil
}

// joinAs asks to be enrolled with the key of another host, which the thief
// cannot sign with.
func (r *raid) joinAs(key fleet.PublicKey) ([]byte, error) {
	b, err := r.joinRequest()
	if err != nil {
		return nil, err
	}
	p, req, err := identity.ParseJoinRequest(b)
	if err != nil {
		return nil, err
	}
	forged := strings.Replace(string(req.Payload), string(p.Key[:]), string(key[:]), 1)
	sig := r.key.Sign(identity.UseJoin, []byte(forged))
	return wire.Marshal(&identity.JoinRequest{Payload: []byte(forged), AgentSig: sig, CodeSig: sig})
}

// askToJoin sends one message of the join protocol, as it is on the wire.
func askToJoin(conn *transport.Conn, request []byte) (kind fleet.Kind, certificate []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, err
	}
	b, err := wire.Marshal(struct {
		Version int    `msgpack:"v"`
		Request []byte `msgpack:"r"`
	}{1, request})
	if err != nil {
		return 0, nil, err
	}
	if err := wire.WriteFrame(conn, b); err != nil {
		return 0, nil, err
	}
	if b, err = wire.ReadFrame(conn, 1<<20); err != nil {
		return 0, nil, err
	}
	var answer struct {
		Kind        uint8  `msgpack:"k"`
		Certificate []byte `msgpack:"ce"`
	}
	err = wire.Unmarshal(b, &answer)
	return fleet.Kind(answer.Kind), answer.Certificate, err
}
