package devfleet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/process"
	"fleet/node/rpc"
	"fleet/node/ssm"
	"fleet/node/ticket"
	"fleet/node/transport"
	"fleet/node/wire"
)

const (
	patience  = time.Minute      // bounds every wait for a condition
	alertWait = 10 * time.Second // for a refusal in a handshake
)

// await waits until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// undecided reports whether an answer says that nothing was decided: a busy
// machine changes leaders. The same is then asked again.
func undecided(err error) bool {
	switch fleet.KindOf(err) {
	case fleet.NoQuorum, fleet.NotLeader, fleet.Unavailable, fleet.Unknown:
		return true
	}
	return false
}

// witness counts what the hosts of a fleet start, by host and command, and
// then starts it: nothing that runs escapes it.
type witness struct {
	mu   sync.Mutex
	runs map[string]int
}

func (w *witness) start(ctx context.Context, spec process.Spec) (process.Exit, error) {
	env := map[string]string{}
	for _, v := range spec.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	w.mu.Lock()
	w.runs[env["FLEET_NODE_ID"]+" "+env["FLEET_COMMAND_ID"]]++
	w.mu.Unlock()
	return process.Run(ctx, spec)
}

// of is how often a host started a command.
func (w *witness) of(host fleet.NodeID, command fleet.CommandID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs[string(host)+" "+string(command)]
}

// all is how often anything was started anywhere.
func (w *witness) all() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	sum := 0
	for _, n := range w.runs {
		sum += n
	}
	return sum
}

// scene is a fleet with its operator and a witness.
type scene struct {
	*Fleet
	seen   witness
	dir    string         // for files of the commands
	client *client.Client // the operator's
}

// newScene starts a fleet of three voters and two agents and has every host
// run something, so that all of them know the fleet's time and the witness is
// known to see.
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{seen: witness{runs: map[string]int{}}, dir: t.TempDir()}
	level := slog.LevelError
	if os.Getenv("FLEET_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	var err error
	s.Fleet, err = Start(t.Context(), Options{
		Dir: filepath.Join(t.TempDir(), "fleet"), Nodes: 5, Quorum: 3, Starter: s.seen.start,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.connect(t)
	var all []fleet.NodeID
	for _, n := range s.Nodes() {
		all = append(all, n.ID())
	}
	id := s.send(t, s.sign(t, "SendCommand", s.script("true", all...)))
	s.finished(t, id)
	for _, n := range s.Nodes() {
		if got := s.seen.of(n.ID(), id); got != 1 {
			t.Fatalf("the witness saw %s run the first command %d times", n.Name(), got)
		}
	}
	return s
}

// connect opens the operator's connection, anew after the voters were restarted.
func (s *scene) connect(t *testing.T) {
	t.Helper()
	if s.client != nil {
		s.client.Close()
	}
	await(t, "the operator reaches the quorum", func() bool {
		c, err := client.Open(t.Context(), s.Credential(), client.Options{Timeout: patience})
		if err == nil {
			s.client = c
		}
		return err == nil
	})
	t.Cleanup(s.client.Close)
}

func (s *scene) call(t *testing.T, operation string, req, resp any) {
	t.Helper()
	if err := s.client.Call(t.Context(), operation, req, resp); err != nil {
		t.Fatalf("%s: %v", operation, err)
	}
}

// host is a running node by its name.
func (s *scene) host(name string) *node.Node {
	for _, n := range s.Nodes() {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

func (s *scene) voters() []*node.Node {
	return slices.DeleteFunc(s.Nodes(), func(n *node.Node) bool { return index(n.Name()) > s.opts.Quorum })
}

// request is an operator's signed request as it travels.
type request struct {
	operation   string
	body, proof []byte
}

// proof is what the operator signs for a body, with a nonce of its own.
func (s *scene) proof(t *testing.T, operation string, body []byte) identity.Proof {
	t.Helper()
	p := identity.Proof{
		Fleet: s.cred.Fleet, Operator: s.cred.Operator, Key: s.cred.Key.Public().ID(), Operation: operation,
		Body: fleet.Sum(body), NotAfter: time.Now().Add(client.ProofValid).UnixNano(),
	}
	if _, err := rand.Read(p.Nonce[:]); err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *scene) sign(t *testing.T, operation string, req any) request {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return request{operation, body, identity.SignProof(s.cred.Key, s.proof(t, operation, body))}
}

// script is a request to run a script on hosts.
func (s *scene) script(script string, hosts ...fleet.NodeID) ssm.SendCommandRequest {
	content, _, _ := document.Builtin("AWS-RunShellScript")
	req := ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Parameters: map[string][]string{"commands": {script}}, TimeoutSeconds: 600, MaxConcurrency: "100%", MaxErrors: "100%",
	}
	for _, id := range hosts {
		req.InstanceIds = append(req.InstanceIds, string(id))
	}
	return req
}

// send gives a request to the fleet as the operator does and answers the ID of
// the command.
func (s *scene) send(t *testing.T, r request) fleet.CommandID {
	t.Helper()
	id, err := s.sendTo(t, s.voters()[0].Address(), r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sendTo gives a request to one quorum host until it is decided.
func (s *scene) sendTo(t *testing.T, addr string, r request) (id fleet.CommandID, err error) {
	t.Helper()
	await(t, "the quorum decides a request", func() bool {
		var d *door
		if d, err = enter(t.Context(), addr, s.Credential(), fleet.KeyID{}); err != nil {
			return !undecided(err)
		}
		defer d.conn.Close() //nolint:errcheck // the answer was read
		var b []byte
		if b, err = d.post(r); err == nil {
			id = commandOf(t, b)
		}
		return !undecided(err)
	})
	return id, err
}

func commandOf(t *testing.T, answer []byte) fleet.CommandID {
	t.Helper()
	var sent ssm.SendCommandResult
	if err := json.Unmarshal(answer, &sent); err != nil {
		t.Fatal(err)
	}
	return fleet.CommandID(sent.Command.CommandId)
}

// states are the states of a command's targets, each with what is said of it.
func (s *scene) states(t *testing.T, id fleet.CommandID) map[fleet.NodeID]string {
	t.Helper()
	var list ssm.ListCommandInvocationsResult
	s.call(t, "ListCommandInvocations", ssm.ListCommandInvocationsRequest{CommandId: string(id)}, &list)
	states := map[fleet.NodeID]string{}
	for _, inv := range list.CommandInvocations {
		states[fleet.NodeID(inv.InstanceId)] = strings.TrimSpace(inv.Status + " " + inv.TraceOutput)
	}
	return states
}

// finished waits until every target of a command has succeeded.
func (s *scene) finished(t *testing.T, id fleet.CommandID) {
	t.Helper()
	await(t, "the command succeeds on every target", func() bool {
		states := s.states(t, id)
		for host, state := range states {
			if state != "Success" && state != "Pending" && state != "InProgress" {
				t.Fatalf("command %s is %s on %s", id, state, host)
			}
			if state != "Success" {
				return false
			}
		}
		return len(states) > 0
	})
}

// image is everything decided that an operator can see.
func (s *scene) image(t *testing.T) string {
	t.Helper()
	var all struct {
		Nodes       []fleet.NodeView
		Activations []ssm.Activation
		Commands    []ssm.Command
		Invocations []ssm.CommandInvocation
		Trust       fleet.GetTrustResult
		Roles       map[fleet.NodeID]string
		Threshold   int
	}
	var nodes fleet.DescribeNodesResult
	s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Brief: true}, &nodes)
	all.Nodes = nodes.Nodes
	var activations ssm.DescribeActivationsResult
	s.call(t, "DescribeActivations", ssm.DescribeActivationsRequest{MaxResults: 50}, &activations)
	all.Activations = activations.ActivationList
	var commands ssm.ListCommandsResult
	s.call(t, "ListCommands", ssm.ListCommandsRequest{MaxResults: 50}, &commands)
	all.Commands = commands.Commands
	for _, c := range all.Commands {
		var list ssm.ListCommandInvocationsResult
		s.call(t, "ListCommandInvocations", ssm.ListCommandInvocationsRequest{CommandId: c.CommandId, MaxResults: 50}, &list)
		all.Invocations = append(all.Invocations, list.CommandInvocations...)
	}
	if nodes.NextToken+activations.NextToken+commands.NextToken != "" {
		t.Fatal("the image of this fleet needs more than a page")
	}
	s.call(t, "GetTrust", fleet.GetTrustRequest{}, &all.Trust)
	var quorum fleet.DescribeQuorumResult
	s.call(t, "DescribeQuorum", fleet.DescribeQuorumRequest{}, &quorum)
	all.Threshold, all.Roles = quorum.Threshold, map[fleet.NodeID]string{}
	for _, m := range quorum.Members {
		all.Roles[m.InstanceId] = m.Role
	}
	b, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unchanged compares two images.
func unchanged(t *testing.T, before, after string) {
	t.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			t.Errorf("the state changed: line %d was %s, is %s", i, was[i], is[i])
			return
		}
	}
	if len(was) != len(is) {
		t.Errorf("the state changed: it had %d lines and has %d", len(was), len(is))
	}
}

// door is one connection of an operator, by hand: the client signs each
// request anew, and what was signed once could not be sent twice through it.
type door struct {
	conn *transport.Conn
	r    *bufio.Reader
}

// enter opens a connection and proves who cred says that it is, in the name of
// a key, which is cred's own when it is zero.
func enter(ctx context.Context, addr string, cred identity.Credential, key fleet.KeyID) (_ *door, err error) {
	conn, err := transport.DialAPI(ctx, nil, addr, cred.Fleet, "", nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	binding, err := client.Binding(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	if err := wire.WriteFrame(conn, identity.SignProof(cred.Key, identity.Proof{
		Fleet: cred.Fleet, Operator: cred.Operator, Key: key, Operation: identity.OperationConnect, Body: binding,
		NotAfter: time.Now().Add(client.ProofValid).UnixNano(),
	})); err != nil {
		return nil, err
	}
	b, err := wire.ReadFrame(conn, client.MaxPreamble)
	if err != nil {
		return nil, fleet.Errorf(fleet.Unavailable, "no welcome: %w", err)
	}
	var w client.Welcome
	if err := wire.Unmarshal(b, &w); err != nil {
		return nil, err
	}
	if !w.OK {
		return nil, fleet.Errorf(w.Kind, "%s", w.Message)
	}
	return &door{conn, bufio.NewReader(conn)}, nil
}

func (d *door) post(r request) ([]byte, error) {
	req, err := http.NewRequest(http.MethodPost, "http://fleet"+client.PathPrefix+r.operation, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(client.ProofHeader, base64.RawURLEncoding.EncodeToString(r.proof))
	if err := req.Write(d.conn); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(d.r, req)
	if err != nil {
		return nil, fleet.Errorf(fleet.Unknown, "no answer: %w", err)
	}
	b, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, client.ParseError(res.StatusCode, b)
	}
	return b, nil
}

// loot is what lies in the data directory of a host that was broken into.
type loot struct {
	info           *enrol.Fleet
	agent          *enrol.Identity
	quorum, issuer *enrol.Identity // nil on an ordinary host
	trust          *identity.Trust
}

func (s *scene) steal(t *testing.T, name string) loot {
	t.Helper()
	dir, info, err := enrol.OpenDir(s.dataDir(index(name)))
	if err != nil {
		t.Fatal(err)
	}
	l := loot{info: info}
	if l.agent, err = dir.LoadIdentity(enrol.Agent); err != nil {
		t.Fatal(err)
	}
	if l.trust, err = dir.Trust(info.Root()); err != nil {
		t.Fatal(err)
	}
	if index(name) > s.opts.Quorum {
		return l
	}
	if l.quorum, err = dir.LoadIdentity(enrol.Quorum); err != nil {
		t.Fatal(err)
	}
	if l.issuer, err = dir.LoadIdentity(enrol.Issuer); err != nil {
		t.Fatal(err)
	}
	return l
}

// thief speaks with one stolen identity, in its own way: it keeps to none of
// the rules that transport and rpc have for those who dial.
type thief struct {
	loot
	as   fleet.Role
	key  identity.PrivateKey // of the identity
	cert tls.Certificate
	rpc  *rpc.Client
}

func (s *scene) thief(t *testing.T, l loot, as fleet.Role, id *enrol.Identity) *thief {
	t.Helper()
	th := &thief{loot: l, as: as, key: id.Key, cert: id.TLS()}
	addrs := map[fleet.NodeID]string{}
	for _, n := range s.Nodes() {
		addrs[n.ID()] = n.Address()
	}
	th.rpc = rpc.NewClient(func(ctx context.Context, to fleet.NodeID, role fleet.Role) (net.Conn, error) {
		return dialTLS(ctx, addrs[to], transport.RPC, role.String()+"."+string(to), &th.cert)
	})
	t.Cleanup(func() {
		if err := th.rpc.Close(); err != nil {
			t.Error(err)
		}
	})
	return th
}

// dialTLS opens a connection without any check. cert may be nil.
func dialTLS(ctx context.Context, addr string, p transport.Proto, name string, cert *tls.Certificate) (*tls.Conn, error) {
	raw, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, NextProtos: []string{string(p)}, InsecureSkipVerify: true}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

// closed reports what is wrong if a host does not refuse an identity in the
// handshake, where nothing of the protocol has been read yet. A server's
// refusal of a certificate reaches a client of TLS 1.3 after its own part of
// the handshake, as an alert.
func closed(ctx context.Context, addr string, p transport.Proto, name string, cert *tls.Certificate) error {
	conn, err := dialTLS(ctx, addr, p, name, cert)
	if err == nil {
		defer conn.Close() //nolint:errcheck // it is refused
		if err := conn.SetDeadline(time.Now().Add(alertWait)); err != nil {
			return err
		}
		var n int
		if n, err = conn.Read(make([]byte, 1)); n > 0 {
			return errors.New("the host answered")
		}
	}
	var refused *net.OpError
	if !errors.As(err, &refused) || refused.Op != "remote error" {
		return fmt.Errorf("not refused by an alert: %w", err)
	}
	return nil
}

// impersonate takes a host's place: what listens at its address from now on is
// the thief's. It gives the deliveries that come.
func (s *scene) impersonate(t *testing.T, name string, l loot) <-chan *rpc.DeliverRequest {
	t.Helper()
	n := s.host(name)
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	port, err := portAt(n.Address())
	if err != nil {
		t.Fatal(err)
	}
	cert := l.agent.TLS()
	log := slog.New(slog.DiscardHandler)
	tr, err := transport.New(transport.Config{
		Fleet: l.info.Fleet, Listener: port.tcp, Packet: port.udp, Agent: func() *tls.Certificate { return &cert }, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan *rpc.DeliverRequest, 16)
	server := rpc.NewServer(log, rpc.Methods, func(c net.Conn) (identity.Peer, bool) { return c.(*transport.Conn).Peer, true })
	deliver := func(_ context.Context, _ identity.Peer, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
		select {
		case came <- req:
		default:
		}
		return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
	}
	rpc.Handle(server, rpc.MethodDeliver, deliver)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	listener := tr.Listener(transport.RPC)
	wg.Go(func() {
		if err := tr.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := server.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return came
}

// portAt takes an address that a node has given back.
func portAt(addr string) (*port, error) {
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return &port{tcp, udp}, nil
}

// order is a command of the operator that is under way while a thief tries: it
// waits on the honest target, and the delivery to the other one was caught.
type order struct {
	request
	id      fleet.CommandID
	targets []fleet.NodeID // ascending, as in the ticket
	caught  *rpc.DeliverRequest
	signed  *ticket.Signed // the ticket in it
	release func()         // lets the command end
}

// order has the operator send a command to an honest host and to one that the
// thief holds.
func (s *scene) order(t *testing.T, honest, held fleet.NodeID, came <-chan *rpc.DeliverRequest) *order {
	t.Helper()
	gate := filepath.Join(s.dir, "gate")
	o := &order{targets: []fleet.NodeID{honest, held}}
	o.release = sync.OnceFunc(func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(o.release)
	slices.Sort(o.targets)
	o.request = s.sign(t, "SendCommand", s.script(fmt.Sprintf("until [ -e '%s' ]; do sleep 0.05; done", gate), honest, held))
	o.id = s.send(t, o.request)
	select {
	case o.caught = <-came:
	case <-time.After(patience):
		t.Fatal("the thief was not given the command")
	}
	var err error
	if o.signed, err = ticket.ParseSigned(o.caught.Ticket); err != nil {
		t.Fatal(err)
	}
	await(t, "both targets have accepted the command", func() bool {
		states := s.states(t, o.id)
		return states[honest] == "InProgress" && states[held] == "InProgress" && s.seen.of(honest, o.id) == 1
	})
	return o
}
