package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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

func fromHex(t testing.TB, b []byte) []byte {
	t.Helper()
	out, err := hex.DecodeString(strings.Join(strings.Fields(string(b)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// testKey is a key that is the same in each run.
func testKey(n byte) PrivateKey {
	var seed [32]byte
	for i := range seed {
		seed[i] = n
	}
	return KeyFromSeed(seed)
}

// world is one fleet with one host of each kind.
type world struct {
	now                                         time.Time
	root, quorum, issuer, agent, operator       PrivateKey
	fleet                                       fleet.ID
	node                                        fleet.NodeID // of agent; also the voter
	rootDER, quorumDER, issuerDER, agentDER     []byte
	rootCert, quorumCert, issuerCert, agentCert *x509.Certificate
}

func newWorld(t testing.TB, seed byte) *world {
	t.Helper()
	w := &world{
		now:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		root: testKey(seed), quorum: testKey(seed + 1), issuer: testKey(seed + 2),
		agent: testKey(seed + 3), operator: testKey(seed + 4),
	}
	w.fleet = fleet.IDOf(w.root.Public())
	w.node = fleet.NodeIDOf(w.agent.Public())
	der := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	w.rootDER = der(NewRootCertificate(w.root, "acme", w.now))
	w.quorumDER = der(IssueQuorum(w.root, w.rootDER, w.node, w.quorum.Public(), w.now))
	w.issuerDER = der(IssueIssuer(w.root, w.rootDER, w.node, w.issuer.Public(), w.now))
	w.agentDER = der(IssueAgent(w.issuer, w.issuerDER, w.node, w.agent.Public(), w.now))
	w.rootCert, w.quorumCert = parseCert(t, w.rootDER), parseCert(t, w.quorumDER)
	w.issuerCert, w.agentCert = parseCert(t, w.issuerDER), parseCert(t, w.agentDER)
	return w
}

// trust is version 1 with the one host as its voter.
func (w *world) trust() Trust {
	return Trust{
		Fleet: w.fleet, Epoch: 1, Version: 1, K: 1,
		Voters:        []TrustVoter{{Node: w.node, Key: w.quorum.Public()}},
		Issuers:       []TrustIssuer{{Node: w.node, Key: w.issuer.Public()}},
		FirstOperator: &TrustOperator{Name: "root@host1", Key: w.operator.Public()},
	}
}

func (w *world) signedTrust(t testing.TB) []byte {
	t.Helper()
	b, err := SignTrust(w.root, w.trust())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) genesis(t testing.TB, rootDER []byte) GenesisPayload {
	return GenesisPayload{
		Trust: w.signedTrust(t), RootCertificate: rootDER, FleetName: "acme",
		Operator: fleet.Operator{
			Name: "root@host1", Keys: []fleet.PublicKey{w.operator.Public()}, May: []string{"*"}, Created: w.now.UnixNano(),
		},
		Node: fleet.Node{
			ID: w.node, Name: "host1", Key: w.agent.Public(), Address: "10.0.0.1:7790",
			AddressEpoch: uint32(w.now.Unix()), Labels: map[string]string{"env": "prod", "rack": "a"}, Enrolled: w.now.UnixNano(),
		},
		GossipKey: bytes.Repeat([]byte{7}, 32),
	}
}

func (w *world) joinPayload() JoinPayload {
	return JoinPayload{
		Fleet: w.fleet, Activation: "11111111-2222-3333-4444-555555555555", Key: w.agent.Public(),
		Name: "web01", Address: "10.0.0.7:7790", Epoch: uint32(w.now.Unix()),
	}
}

func (w *world) proof() Proof {
	return Proof{
		Fleet: w.fleet, Operator: "root@host1", Operation: "SendCommand", Body: fleet.Sum([]byte("body")),
		Nonce: [16]byte{1, 2, 3}, NotAfter: w.now.Add(ProofLifetime).UnixNano(),
	}
}

func (w *world) nodeRecord() NodeRecord {
	return NodeRecord{
		Role: fleet.RoleAgent, Node: w.node, Addr: netip.MustParseAddrPort("10.0.0.7:7790"),
		Epoch: uint32(w.now.Unix()), Expiry: uint32(w.now.Add(AgentValidity).Unix()), Cell: "default",
	}
}

func parseCert(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// forge makes a certificate like the model, changed, for key and signed by by
// in the name of parent.
func forge(t testing.TB, model, parent *x509.Certificate, key any, by PrivateKey,
	change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := *model
	// What the parser read would be written beside what the change sets.
	c.Extensions, c.ExtraExtensions, c.RawSubject = nil, nil, nil
	c.SubjectKeyId, c.AuthorityKeyId = nil, nil
	c.SignatureAlgorithm = 0
	if change != nil {
		change(&c)
	}
	if p, ok := key.(fleet.PublicKey); ok {
		key = ed25519.PublicKey(p[:])
	}
	name := *parent
	name.PublicKey = nil // the library would insist that the parent's key signs
	der, err := x509.CreateCertificate(rand.Reader, &c, &name, key, by.Signer())
	if err != nil {
		t.Fatal(err)
	}
	return parseCert(t, der)
}

func wantKind(t *testing.T, err error, kind fleet.Kind, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want %s", kind)
	}
	if fleet.KindOf(err) != kind {
		t.Errorf("kind of %q = %s, want %s", err, fleet.KindOf(err), kind)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("error %q does not contain %q", err, part)
	}
}
