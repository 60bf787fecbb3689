package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/runcmd"
	"fleet/node/transport"
	"fleet/raftfsm/state"
)

// fixture is a quorum host's door over real TLS on loopback, in front of a
// state that the test writes and a control that it directs.
type fixture struct {
	t       *testing.T
	store   *state.Store
	control *fakeControl
	cred    identity.Credential
	addr    string
	self    fleet.NodeID
	logged  *lockedBuffer

	mu  sync.Mutex // guards now
	now time.Time
}

var epoch = time.Date(2026, 7, 7, 12, 0, 0, 0, time.UTC)

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, store: state.New(), now: epoch, logged: &lockedBuffer{}}
	root, rootDER := newRoot(t)
	fleetID := fleet.IDOf(root.Public())
	quorumKey := newKey(t)
	f.self = nodeID(1)
	der, err := identity.IssueQuorum(root, rootDER, f.self, quorumKey.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	cert := identity.TLSCertificate(quorumKey, der, rootDER)
	log := slog.New(slog.NewTextHandler(f.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))

	tr, err := transport.New(transport.Config{
		Fleet: fleetID, Listen: "127.0.0.1:0", Quorum: func() *tls.Certificate { return &cert }, Now: f.clock, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.addr = tr.Addr().String()

	operator := newKey(t)
	f.cred = identity.Credential{Fleet: fleetID, Name: "acme", Operator: "root@host1", Key: operator, Addresses: []string{f.addr}}
	f.write(func(txn *state.Txn) {
		txn.PutFleet(state.Fleet{ID: fleetID, Name: "acme", Root: root.Public(), RootCertificate: rootDER, Genesis: true})
		txn.PutOperator(&fleet.Operator{Name: f.cred.Operator, Keys: []fleet.PublicKey{operator.Public()}, May: []string{"*"}})
		txn.PutTrust(newTrust(t, root, f.self, quorumKey.Public()))
	})
	f.control = &fakeControl{store: f.store, quorum: control.QuorumView{
		Leader: f.self, Servers: []control.ServerView{{ID: f.self, Voter: true, Reachable: true, Applied: 7}}, Trust: f.store.Trust(),
	}}

	cfg := Config{Self: f.self, Version: "1.2.3", Control: f.control, Heartbeat: 50 * time.Millisecond, Now: f.clock, Logger: log}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	door := tr.Listener(transport.API) // before the first connection can come
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := tr.Run(ctx); err != nil {
			t.Errorf("transport: %v", err)
		}
	})
	parts.Go(func() {
		if err := NewServer(cfg).Serve(ctx, door); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	return f
}

func (f *fixture) write(change func(*state.Txn)) {
	txn := f.store.Write()
	change(txn)
	txn.Commit()
}

// client opens a client of the fixture's operator.
func (f *fixture) client(change ...func(*identity.Credential, *client.Options)) *client.Client {
	f.t.Helper()
	c, err := f.open(change...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func (f *fixture) open(change ...func(*identity.Credential, *client.Options)) (*client.Client, error) {
	cred, opts := f.cred, client.Options{Now: f.clock, Timeout: 5 * time.Second}
	for _, ch := range change {
		ch(&cred, &opts)
	}
	return client.Open(f.t.Context(), cred, opts)
}

// dial opens a connection without a preamble.
func (f *fixture) dial() *transport.Conn {
	f.t.Helper()
	conn, err := transport.DialAPI(f.t.Context(), nil, f.addr, f.cred.Fleet, "", f.clock)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func newKey(t *testing.T) identity.PrivateKey {
	t.Helper()
	k, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newRoot(t *testing.T) (identity.PrivateKey, []byte) {
	t.Helper()
	root := newKey(t)
	der, err := identity.NewRootCertificate(root, "acme", epoch)
	if err != nil {
		t.Fatal(err)
	}
	return root, der
}

func newTrust(t *testing.T, root identity.PrivateKey, node fleet.NodeID, key fleet.PublicKey) *identity.Trust {
	t.Helper()
	raw, err := identity.SignTrust(root, identity.Trust{
		Fleet: fleet.IDOf(root.Public()), Epoch: 1, Version: 1, K: 1,
		Voters:        []identity.TrustVoter{{Node: node, Key: key}},
		Issuers:       []identity.TrustIssuer{{Node: node, Key: newKey(t).Public()}},
		FirstOperator: &identity.TrustOperator{Name: "first", Key: newKey(t).Public()},
	})
	if err != nil {
		t.Fatal(err)
	}
	trust, err := identity.ParseTrust(raw, root.Public())
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// fakeKey is an agent key that only its ID is needed of.
func fakeKey(i int) fleet.PublicKey { return fleet.PublicKey{byte(i), byte(i >> 8), 1} }

func nodeID(i int) fleet.NodeID { return fleet.NodeIDOf(fakeKey(i)) }

func newNode(i int, name string, labels map[string]string) *fleet.Node {
	return &fleet.Node{
		ID: nodeID(i), Name: name, Key: fakeKey(i), Address: net.JoinHostPort("10.0.0.1", "7790"), Labels: labels, Enrolled: epoch.UnixNano(),
	}
}

// fakeControl answers from a store and from what a test sets.
type fakeControl struct {
	store *state.Store

	mu       sync.Mutex // guards what follows
	mutate   func(operation string, body, proof []byte) ([]byte, error)
	readErr  error // of linearizable reads
	reads    int   // linearizable ones
	seen     map[fleet.NodeID]presence.Seen
	details  map[fleet.Digest]*runcmd.Detail
	blobs    map[fleet.Digest][]byte
	quorum   control.QuorumView
	eligible []fleet.NodeID
	state    []byte // of WriteState
	hold     chan struct{}
}

func (f *fakeControl) WriteState(ctx context.Context, stale bool, to io.Writer) error {
	if _, err := f.Read(ctx, stale); err != nil {
		return err
	}
	f.mu.Lock()
	state, hold := f.state, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := to.Write(state)
	return err
}

func (f *fakeControl) set(change func(*fakeControl)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeControl) Mutate(_ context.Context, operation string, body, proof []byte) ([]byte, error) {
	f.mu.Lock()
	mutate := f.mutate
	f.mu.Unlock()
	if mutate == nil {
		return []byte("{}"), nil
	}
	return mutate(operation, body, proof)
}

func (f *fakeControl) Read(_ context.Context, stale bool) (*state.Store, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if stale {
		return f.store, nil
	}
	f.reads++
	return f.store, f.readErr
}

func (f *fakeControl) Presence(context.Context) map[fleet.NodeID]presence.Seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

func (f *fakeControl) Detail(_ context.Context, _ *fleet.Command, inv *fleet.Invocation) (*runcmd.Detail, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if inv.Detail.IsZero() {
		return nil, nil
	}
	d, ok := f.details[inv.Detail]
	if !ok {
		return nil, fleet.Errorf(fleet.Unavailable, "on no host that answers")
	}
	return d, nil
}

func (f *fakeControl) Blob(_ context.Context, _ fleet.NodeID, d fleet.Digest) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[d]
	if !ok {
		return nil, fleet.Errorf(fleet.Unavailable, "on no host that answers")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (f *fakeControl) Quorum(context.Context) (control.QuorumView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.quorum, nil
}

func (f *fakeControl) Candidate(_ context.Context, node fleet.NodeID, _ bool) ([]byte, error) {
	return []byte("candidate of " + node), nil
}

func (f *fakeControl) Eligible(context.Context) ([]fleet.NodeID, error) { return f.eligible, nil }

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var errOurs = errors.New("disk /dev/sdb1 is on fire") // must not reach a caller

func encodeProof(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (f *fakeControl) HasProgram(d fleet.Digest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blobs[d] != nil
}

func (f *fakeControl) KeepProgram(_ context.Context, d fleet.Digest, size int64, body io.Reader) (int, error) {
	b, err := io.ReadAll(body)
	if err != nil {
		return 0, err
	}
	if fleet.Sum(b) != d || int64(len(b)) != size {
		return 0, fleet.Errorf(fleet.Invalid, "not what it says")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[d] = b
	return 1, nil
}
