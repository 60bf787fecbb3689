package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

const document = `{"schemaVersion":"2.2","mainSteps":[]}`

var (
	rootKey     = key('R', 0)
	fleetID     = fleet.IDOf(rootKey.Public())
	operatorKey = key('O', 0)
	errStale    = errors.New("the newest mint is too old to sign")
)

// key is the key number n of a kind; the same in every run.
func key(kind byte, n int) identity.PrivateKey {
	return identity.KeyFromSeed([32]byte{kind, byte(n), byte(n >> 8)})
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// world is the leader's log and state, and the hosts as it sees them.
type world struct {
	t     testing.TB
	hosts map[fleet.NodeID]int // number of each host, which is that of its key

	mu sync.Mutex // guards what follows; set changes the functions

	host    func(n int, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) // a host's answer to a delivery
	stop    func(n int, req *rpc.CancelRequest) (*rpc.DeliverResponse, error)  // and to a cancel
	turn    func(n int, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) // and to a release
	propose func(entry.Body) error                                             // fails a proposal; nil: none fails
	keep    func([]byte) error                                                 // fails to keep details; nil: none fails

	fsm        *raftfsm.FSM
	index      uint64
	begin      time.Time
	entries    []proposed
	deliveries []delivery
	cancels    []cancelled
	kept       [][]byte
}

type proposed struct {
	at   time.Duration // since begin
	body entry.Body
}

type delivery struct {
	at   time.Duration
	host int
	req  *rpc.DeliverRequest
}

type cancelled struct {
	at   time.Duration
	host int
	req  *rpc.CancelRequest
}

// bubble runs a test in fake time with a fleet of n hosts; number 0 leads.
func bubble(t *testing.T, name string, n int, f func(t *testing.T, w *world)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, n)) })
	})
}

func newWorld(t testing.TB, n int) *world {
	t.Helper()
	w := &world{t: t, fsm: raftfsm.New(fleetID), hosts: map[fleet.NodeID]int{}, begin: time.Now()}
	w.host = func(int, *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
		return nil, errors.New("nobody there")
	}
	w.stop = func(int, *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
		return nil, errors.New("nobody there")
	}
	w.turn = func(int, *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
		return nil, errors.New("nobody there")
	}
	now := time.Now()
	cert, err := identity.NewRootCertificate(rootKey, "test", now)
	if err != nil {
		t.Fatal(err)
	}
	genesis := identity.SignGenesis(rootKey, identity.GenesisPayload{
		Trust: trustJSON(t, 1, 1), RootCertificate: cert, FleetName: "test",
		Operator:  fleet.Operator{Name: "ada", Keys: []fleet.PublicKey{operatorKey.Public()}, May: []string{"*"}, Created: now.UnixNano()},
		Node:      w.row(0),
		GossipKey: bytes.Repeat([]byte{9}, 32),
	})
	w.must(&entry.Genesis{Payload: genesis})
	txn := w.fsm.Store().Write() // enrolment is not what is tested here
	for i := range n {
		row := w.row(i)
		w.hosts[row.ID] = i
		if i > 0 {
			txn.PutNode(&row)
		}
	}
	txn.Commit()
	w.entries = nil
	return w
}

func (w *world) row(n int) fleet.Node {
	k := key('A', n).Public()
	return fleet.Node{
		ID: fleet.NodeIDOf(k), Name: fmt.Sprintf("host%d", n), Key: k, Address: fmt.Sprintf("10.0.%d.%d:7790", n>>8, n&255),
		AddressEpoch: uint32(w.begin.Unix()), Enrolled: w.begin.UnixNano(),
	}
}

// trustJSON is a version of trust.json with this many voters.
func trustJSON(t testing.TB, version uint32, voters int) []byte {
	t.Helper()
	tr := identity.Trust{Fleet: fleetID, Version: version, K: identity.ThresholdFor(voters)}
	for i := range voters {
		id := fleet.NodeIDOf(key('A', i).Public())
		tr.Voters = append(tr.Voters, identity.TrustVoter{Node: id, Key: key('Q', i).Public()})
		tr.Issuers = append(tr.Issuers, identity.TrustIssuer{Node: id, Key: key('I', i).Public()})
	}
	if version == 1 {
		tr.FirstOperator = &identity.TrustOperator{Name: "ada", Key: operatorKey.Public()}
	}
	b, err := identity.SignTrust(rootKey, tr)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) store() *state.Store { return w.fsm.Store() }

// set changes how the world answers while the dispatcher works.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) now() time.Duration { return time.Since(w.begin) }

// decide applies an entry, as the log would.
func (w *world) decide(_ context.Context, body entry.Body) (raftfsm.Answer, error) {
	b, err := entry.Encode(body)
	if err != nil {
		return raftfsm.Answer{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = append(w.entries, proposed{w.now(), body})
	if w.propose != nil {
		if err := w.propose(body); err != nil {
			return raftfsm.Answer{}, err
		}
	}
	w.index++
	return w.fsm.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: b}).(raftfsm.Answer), nil
}

func (w *world) must(body entry.Body) any {
	w.t.Helper()
	a, err := w.decide(w.t.Context(), body)
	if err == nil {
		err = a.Err
	}
	if err != nil {
		w.t.Fatalf("%s: %v", body.Kind(), err)
	}
	return a.Value
}

// send makes a command for all hosts, with a minute to deliver it and 100 s to
// run.
func (w *world) send(n int) *fleet.Command {
	w.t.Helper()
	return w.sendWith(n, func(*entry.SendCommandV1) {})
}

// sendWith is send; change edits the request.
func (w *world) sendWith(n int, change func(*entry.SendCommandV1)) *fleet.Command {
	w.t.Helper()
	req := entry.SendCommandV1{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum([]byte(document)).String(), DocumentHashType: "Sha256",
		Targets:    []fleet.Target{{Key: "InstanceIds", Values: []string{"*"}}},
		Parameters: map[string][]string{"commands": {"true"}}, TimeoutSeconds: 60, MaxConcurrency: "100%", MaxErrors: "100%",
	}
	change(&req)
	request, err := json.Marshal(req)
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now()
	proof := identity.SignProof(operatorKey, identity.Proof{
		Fleet: fleetID, Operator: "ada", Operation: "SendCommand", Body: fleet.Sum(request), Nonce: [16]byte{byte(n), byte(n >> 8), byte(n >> 16)},
		NotAfter: now.Add(5 * time.Minute).UnixNano(),
	})
	return w.must(&entry.SendCommand{
		Authority: entry.Authority{Stamp: now.UnixNano(), ID: fmt.Sprintf("00000000-0000-4000-8000-%012x", n), Request: request, Proof: proof},
		Document:  []byte(document), Version: "1", ExecutionSeconds: 100,
	}).(*fleet.Command)
}

// collect signs with as many quorum keys as the newest trust.json asks for,
// if the mint is fresh.
func (w *world) collect(_ context.Context, c *fleet.Command) (*ticket.Signed, error) {
	if time.Since(time.Unix(0, c.Mint.NotBefore)) > time.Minute {
		return nil, fmt.Errorf("mint %d: %w", c.Mint.N, errStale)
	}
	trust := w.store().Trust()
	b := ticket.ForCommand(c, trust.Fleet, trust.Epoch).Bytes()
	s := &ticket.Signed{Ticket: b}
	for i := range trust.K {
		s.Signatures = append(s.Signatures, ticket.Sign(key('Q', i), b))
	}
	return s, nil
}

// config is what a new leader dispatches with.
func (w *world) config() Config {
	return Config{
		Store: w.store, Propose: w.decide, Collect: w.collect, StaleMint: errStale,
		Deliver: func(_ context.Context, to fleet.NodeID, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			n := w.hosts[to]
			w.mu.Lock()
			w.deliveries = append(w.deliveries, delivery{w.now(), n, req})
			host := w.host
			w.mu.Unlock()
			return host(n, req)
		},
		SignCancel: func(c *fleet.Command, indexes []uint32) ([]byte, error) {
			trust := w.store().Trust()
			return ticket.SignCancel(key('Q', 0), ticket.CancelOf(c, trust.Fleet, trust.Epoch, indexes)), nil
		},
		Cancel: func(_ context.Context, to fleet.NodeID, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			n := w.hosts[to]
			w.mu.Lock()
			w.cancels = append(w.cancels, cancelled{w.now(), n, req})
			stop := w.stop
			w.mu.Unlock()
			return stop(n, req)
		},
		SignRelease: func(c *fleet.Command, released int64, indexes []uint32) ([]byte, error) {
			trust := w.store().Trust()
			return ticket.SignRelease(key('Q', 0), ticket.ReleaseOf(c, trust.Fleet, trust.Epoch, released, indexes)), nil
		},
		Release: func(_ context.Context, to fleet.NodeID, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
			w.mu.Lock()
			turn := w.turn
			w.mu.Unlock()
			return turn(w.hosts[to], req)
		},
		Keep: func(b []byte) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.keep != nil {
				return w.keep(b)
			}
			w.kept = append(w.kept, b)
			return nil
		},
		Now: time.Now, Logger: quiet(),
	}
}

// lead makes a new leader; stop ends its leadership and waits for it.
func (w *world) lead() (d *Dispatcher, stop func()) {
	d = New(w.config())
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Lead(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Lead: %v", err)
		}
		if n := len(d.slots); n != 0 {
			w.t.Errorf("%d slots for deliveries are still taken", n)
		}
	})
	w.t.Cleanup(stop)
	return d, stop
}

// result is host n's word about its own invocation of c.
func (w *world) result(c *fleet.Command, n int, change ...func(*ticket.Result)) []byte {
	id := fleet.NodeIDOf(key('A', n).Public())
	index, _ := state.TargetIndex(c, id)
	now := time.Now().UnixNano()
	r := ticket.Result{
		Fleet: fleetID, Command: c.ID, Attempt: c.Attempt, Index: index, Node: id, State: fleet.Success, Started: now, Ended: now,
	}
	for _, f := range change {
		f(&r)
	}
	return ticket.SignResult(key('A', n), r)
}

// accepts is a host that takes the command.
func accepts(int, *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
	return &rpc.DeliverResponse{State: rpc.DeliverAccepted}, nil
}

// states is how many rows of a command are in each state.
func (w *world) states(c *fleet.Command) map[fleet.InvocationState]int {
	m := map[fleet.InvocationState]int{}
	for _, inv := range w.store().Invocations(c.ID) {
		m[inv.State]++
	}
	return m
}

func (w *world) state(c *fleet.Command, n int) fleet.InvocationState {
	w.t.Helper()
	index, ok := state.TargetIndex(c, fleet.NodeIDOf(key('A', n).Public()))
	if !ok {
		w.t.Fatalf("host %d is no target", n)
	}
	return w.store().Invocation(c.ID, index).State
}

// delivered is when deliveries to a host were made.
func (w *world) delivered(n int) (at []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.deliveries {
		if d.host == n {
			at = append(at, d.at)
		}
	}
	return at
}

// proposals is when entries of a kind were proposed.
func (w *world) proposals(kind entry.Kind) (all []proposed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.entries {
		if p.body.Kind() == kind {
			all = append(all, p)
		}
	}
	return all
}

// until waits, at most a day, until a condition holds that only the dispatcher
// brings about.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	for range 24 * 3600 * 10 {
		synctest.Wait()
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("%s: still not so after a day", what)
}

func (w *world) ended(c *fleet.Command) func() bool {
	return func() bool { return !w.store().Command(c.ID).Open() }
}

func seconds(values ...float64) (d []time.Duration) {
	for _, v := range values {
		d = append(d, time.Duration(v*float64(time.Second)))
	}
	return d
}

func wantTimes(t *testing.T, what string, got, want []time.Duration) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s at %v, want %v", what, got, want)
	}
}
