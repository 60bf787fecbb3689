package enrol

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
	"fleet/node/transport"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// golden compares got with testdata/name, or writes it there with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", name, got, want)
	}
}

// hexLines writes bytes for a golden file that a person can compare.
func hexLines(b []byte) []byte {
	var out strings.Builder
	for len(b) > 0 {
		n := min(32, len(b))
		out.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return []byte(out.String())
}

// testKey is a key that is the same in each run.
func testKey(kind byte, n int) identity.PrivateKey {
	return identity.KeyFromSeed([32]byte{kind, byte(n)})
}

// must is the value; an error ends the test.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantError(t *testing.T, err error, kind fleet.Kind, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want an error of kind %s with %q", kind, part)
	}
	if fleet.KindOf(err) != kind {
		t.Errorf("kind of %q is %s, want %s", err, fleet.KindOf(err), kind)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("error %q does not contain %q", err, part)
	}
}

func initOptions(base string) InitOptions {
	return InitOptions{
		DataDir: filepath.Join(base, "data"), Name: "acme", RootKeyPath: filepath.Join(base, "root.key"),
		NodeName: "host1", Advertise: "10.0.0.1:7790", Operator: "ada", CredentialPath: filepath.Join(base, "cred", "ada.json"),
		Now: time.Now,
	}
}

// world is a fleet that Init made, with its log, on an in-memory network.
type world struct {
	t       *testing.T
	net     *memnet.Network
	options InitOptions
	result  *InitResult
	dir     *Dir
	fsm     *raftfsm.FSM
	index   uint64
	nonce   byte
}

func newWorld(t *testing.T, n *memnet.Network) *world {
	t.Helper()
	w := &world{t: t, net: n, options: initOptions(t.TempDir())}
	w.result = must[*InitResult](t)(Init(t.Context(), w.options))
	dir, _, err := OpenDir(w.options.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	w.dir = dir
	w.fsm = raftfsm.New(w.result.Fleet)
	genesis := must[[]byte](t)(os.ReadFile(dir.File(GenesisFile)))
	if a := w.apply(&entry.Genesis{Payload: genesis}); a.Err != nil {
		t.Fatal(a.Err)
	}
	return w
}

func (w *world) apply(body entry.Body) raftfsm.Answer {
	w.t.Helper()
	w.index++
	return w.fsm.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: must[[]byte](w.t)(entry.Encode(body))}).(raftfsm.Answer)
}

// activation makes an activation and the token for it.
func (w *world) activation(limit int64, life time.Duration, addrs ...string) identity.JoinToken {
	w.t.Helper()
	w.nonce++
	code := identity.Code{'C', w.nonce}
	public := code.Key().Public()
	now := time.Now()
	request := must[[]byte](w.t)(json.Marshal(entry.CreateActivationV1{
		RegistrationLimit: limit, DefaultInstanceName: "box", PublicKey: base64.StdEncoding.EncodeToString(public[:]),
		ExpirationDate: float64(now.Add(life).Unix()), Tags: []entry.Tag{{Key: "role", Value: "web"}},
	}))
	id := fmt.Sprintf("00000000-0000-4000-8000-0000000000%02x", w.nonce)
	proof := identity.SignProof(w.result.Credential.Key, identity.Proof{
		Fleet: w.result.Fleet, Operator: w.options.Operator, Operation: "CreateActivation", Body: fleet.Sum(request),
		Nonce: [16]byte{w.nonce}, NotAfter: now.Add(5 * time.Minute).UnixNano(),
	})
	if a := w.apply(&entry.CreateActivation{Authority: entry.Authority{Stamp: now.UnixNano(), ID: id, Request: request, Proof: proof}}); a.Err != nil {
		w.t.Fatal(a.Err)
	}
	root := w.result.Root
	return identity.JoinToken{Root: fleet.Sum(root[:]), Activation: fleet.ActivationID(id), Code: code, Addresses: addrs}
}

func (w *world) used(token identity.JoinToken) uint32 {
	return w.fsm.Store().Activation(token.Activation).Used
}

// enrol is what the quorum does with a join request.
func (w *world) enrol(_ context.Context, request []byte) (*fleet.Node, error) {
	a := w.apply(&entry.Enrol{Stamp: time.Now().UnixNano(), Request: request})
	if a.Err != nil {
		return nil, a.Err
	}
	return a.Value.(*fleet.Node), nil
}

func (w *world) issuing() (*Issuing, error) {
	id, err := w.dir.LoadIdentity(Issuer)
	if err != nil {
		return nil, err
	}
	info := w.fsm.Store().Fleet()
	return &Issuing{
		FleetName: info.Name, Key: id.Key, Issuer: id.Chain[0], Root: id.Chain[1], Trust: w.fsm.Store().Trust().Raw(),
		GossipKeys: w.fsm.Store().GossipKeys().Raw(),
	}, nil
}

// config is a quorum host's.
func (w *world) config() ServerConfig {
	return ServerConfig{
		Peers: func() []Peer { return []Peer{{Node: w.result.Node, Address: "10.0.0.1:7790"}} },
		Enrol: w.enrol, Issuing: w.issuing, Now: time.Now, Logger: quiet(),
	}
}

// quorumCert is the first host's quorum identity.
func (w *world) quorumCert() *tls.Certificate {
	c := must[*Identity](w.t)(w.dir.LoadIdentity(Quorum)).TLS()
	return &c
}

// agentCert is the identity of some ordinary host.
func (w *world) agentCert() *tls.Certificate {
	issuer := must[*Identity](w.t)(w.dir.LoadIdentity(Issuer))
	key := testKey('A', 77)
	der := must[[]byte](w.t)(identity.IssueAgent(issuer.Key, issuer.Chain[0], fleet.NodeIDOf(key.Public()), key.Public(), time.Now()))
	c := identity.TLSCertificate(key, der, issuer.Chain[0], issuer.Chain[1])
	return &c
}

// listen opens the port of a host that holds one identity and gives the
// listener of its joiners.
func (w *world) listen(ip string, quorum, agent *tls.Certificate) net.Listener {
	w.t.Helper()
	h := w.net.Host(ip)
	tr := must[*transport.Transport](w.t)(transport.New(transport.Config{
		Fleet: w.result.Fleet, Listener: must[net.Listener](w.t)(h.Listen("tcp", 7790)), Packet: must[net.PacketConn](w.t)(h.ListenPacket(7790)),
		Dial: h.DialContext, Now: time.Now, Logger: quiet(),
		Quorum: func() *tls.Certificate { return quorum }, Agent: func() *tls.Certificate { return agent },
	}))
	l := tr.Listener(transport.Join)
	w.run(tr.Run)
	return l
}

// run runs f until the test ends.
func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("ended with %v", err)
		}
	})
}

// quorumHost serves joiners at 10.0.0.1.
func (w *world) quorumHost(change ...func(*ServerConfig)) {
	w.serve("10.0.0.1", w.quorumCert(), nil, change...)
}

func (w *world) serve(ip string, quorum, agent *tls.Certificate, change ...func(*ServerConfig)) {
	w.t.Helper()
	cfg := w.config()
	for _, c := range change {
		c(&cfg)
	}
	l := w.listen(ip, quorum, agent)
	s := NewServer(cfg)
	w.run(func(ctx context.Context) error { return s.Serve(ctx, l) })
}

// answering serves joiners with a function instead of a server.
func (w *world) answering(ip string, quorum, agent *tls.Certificate, f func(net.Conn)) {
	w.t.Helper()
	l := w.listen(ip, quorum, agent)
	w.run(func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { l.Close() })
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			f(conn)
			conn.Close()
		}
	})
}

// joinOptions are those of a host at 10.0.0.9 that was not enrolled before.
func (w *world) joinOptions(token identity.JoinToken) JoinOptions {
	return JoinOptions{
		DataDir: filepath.Join(w.t.TempDir(), "data"), Token: token, NodeName: "web01", Advertise: "10.0.0.9:7790",
		Now: time.Now, Dial: w.net.Host("10.0.0.9").DialContext,
	}
}

// notEnrolled checks that a directory is not one of an enrolled host.
func notEnrolled(t *testing.T, path string) {
	t.Helper()
	if _, _, err := OpenDir(path); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("after a failure: %v; want a host that is not enrolled", err)
	}
}

// files lists what is below a directory.
func files(t *testing.T, path string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(path, p); err == nil && rel != "." {
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
