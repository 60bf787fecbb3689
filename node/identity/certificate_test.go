package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

func TestVerifyChainAccepts(t *testing.T) {
	w := newWorld(t, 1)
	quorum, err := VerifyChain([]*x509.Certificate{w.quorumCert, w.rootCert}, w.fleet, w.now)
	if err != nil {
		t.Fatal(err)
	}
	want := Peer{Fleet: w.fleet, Role: fleet.RoleQuorum, Node: w.node, Key: w.quorum.Public(),
		NotBefore: w.now.Add(-NotBeforeSlack), NotAfter: w.now.Add(QuorumValidity)}
	if quorum != want {
		t.Errorf("quorum peer = %+v, want %+v", quorum, want)
	}
	agent, err := VerifyChain([]*x509.Certificate{w.agentCert, w.issuerCert, w.rootCert}, w.fleet, w.now)
	if err != nil {
		t.Fatal(err)
	}
	want = Peer{Fleet: w.fleet, Role: fleet.RoleAgent, Node: w.node, Key: w.agent.Public(), Issuer: w.issuer.Public(),
		NotBefore: w.now.Add(-NotBeforeSlack), NotAfter: w.now.Add(AgentValidity)}
	if agent != want {
		t.Errorf("agent peer = %+v, want %+v", agent, want)
	}
	for _, at := range []time.Duration{-NotBeforeSlack, AgentValidity} {
		if _, err := VerifyChain([]*x509.Certificate{w.agentCert, w.issuerCert, w.rootCert}, w.fleet, w.now.Add(at)); err != nil {
			t.Errorf("at the edge %s: %v", at, err)
		}
	}
}

// sanExtension writes names as given; crypto/x509 would check and sort them.
func sanExtension(t *testing.T, names ...asn1.RawValue) pkix.Extension {
	t.Helper()
	b, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: subjectAltName, Value: b}
}

func uriName(s string) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(s)}
}

func TestVerifyChainRefuses(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	type chain = []*x509.Certificate
	// quorum and agent change one thing of a good leaf; issuer one of a good issuer.
	quorum := func(change func(*x509.Certificate)) chain {
		return chain{forge(t, w.quorumCert, w.rootCert, w.quorum.Public(), w.root, change), w.rootCert}
	}
	agent := func(change func(*x509.Certificate)) chain {
		return chain{forge(t, w.agentCert, w.issuerCert, w.agent.Public(), w.issuer, change), w.issuerCert, w.rootCert}
	}
	issuer := func(change func(*x509.Certificate)) chain {
		i := forge(t, w.issuerCert, w.rootCert, w.issuer.Public(), w.root, change)
		return chain{forge(t, w.agentCert, i, w.agent.Public(), w.issuer, nil), i, w.rootCert}
	}
	named := func(uri string) chain {
		return quorum(func(c *x509.Certificate) {
			c.URIs = nil
			c.ExtraExtensions = []pkix.Extension{sanExtension(t, uriName(uri))}
		})
	}
	for what, ok := range map[string]chain{
		"quorum": quorum(nil), "agent": agent(nil), "issuer": issuer(nil), "named": named(w.quorumCert.URIs[0].String()),
	} {
		if _, err := VerifyChain(ok, w.fleet, w.now); err != nil {
			t.Fatalf("the unchanged %s is refused, so its changes prove nothing: %v", what, err)
		}
	}
	uri := func(f fleet.ID, role string, n fleet.NodeID) string {
		return "fleet://" + string(f) + "/" + role + "/" + string(n)
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecdsaSelf := func() *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: w.rootCert.Subject, NotBefore: w.rootCert.NotBefore, NotAfter: w.rootCert.NotAfter,
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		}, &x509.Certificate{Subject: w.rootCert.Subject}, ecdsaKey.Public(), ecdsaKey)
		if err != nil {
			t.Fatal(err)
		}
		return parseCert(t, der)
	}
	// A stranger's root that calls itself by our root's name.
	mallory := testKey(99)
	fakeRoot := forge(t, w.rootCert, w.rootCert, mallory.Public(), mallory, nil)
	sameSubject := forge(t, w.issuerCert, w.rootCert, w.issuer.Public(), w.issuer, func(c *x509.Certificate) {
		c.Subject = w.rootCert.Subject
	})
	secondIssuer := forge(t, w.issuerCert, w.issuerCert, mallory.Public(), w.issuer, nil)

	const day = 24 * time.Hour
	cases := []struct {
		name, part string
		chain      chain
	}{
		{"no certificate", "0 certificates", nil},
		{"one certificate", "1 certificates", chain{w.rootCert}},
		{"four certificates", "4 certificates", chain{w.agentCert, w.issuerCert, w.issuerCert, w.rootCert}},
		{"missing certificate", "missing", chain{nil, w.rootCert}},
		{"root first", "belongs to fleet", chain{w.rootCert, w.quorumCert}},
		{"root as leaf", "exactly one name", chain{w.rootCert, w.rootCert}},
		{"agent without its issuer", "role agent where quorum", chain{w.agentCert, w.rootCert}},

		{"leaf as CA", "plain leaf",
			quorum(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })},
		{"leaf as CA that may also sign", "plain leaf",
			agent(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign })},
		{"leaf without constraints", "plain leaf",
			agent(func(c *x509.Certificate) { c.BasicConstraintsValid = false })},
		{"leaf that may certify", "plain leaf",
			quorum(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })},
		{"agent used as issuer", "role agent where issuer",
			chain{forge(t, w.agentCert, w.agentCert, mallory.Public(), w.agent, nil), w.agentCert, w.rootCert}},
		{"quorum used as issuer", "role quorum where issuer",
			chain{forge(t, w.agentCert, w.quorumCert, w.agent.Public(), w.quorum, nil), w.quorumCert, w.rootCert}},
		{"issuer as leaf of two", "role issuer where quorum", chain{w.issuerCert, w.rootCert}},
		{"issuer as leaf of three", "role issuer where agent", chain{w.issuerCert, w.issuerCert, w.rootCert}},
		{"issuer made by an issuer", "another issuer than the next",
			chain{forge(t, w.agentCert, secondIssuer, w.agent.Public(), mallory, nil), secondIssuer, w.rootCert}},
		{"issuer without path length", "authority for leaves alone",
			issuer(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false })},
		{"issuer with a longer path", "authority for leaves alone",
			issuer(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false })},
		{"issuer that is no CA", "authority for leaves alone",
			issuer(func(c *x509.Certificate) {
				c.IsCA, c.MaxPathLen, c.MaxPathLenZero = false, 0, false
				c.KeyUsage = x509.KeyUsageDigitalSignature
			})},
		{"issuer that may also serve", "authority for leaves alone",
			issuer(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature })},
		{"quorum signed by an issuer", "role quorum where agent",
			chain{forge(t, w.quorumCert, w.issuerCert, w.quorum.Public(), w.issuer, nil), w.issuerCert, w.rootCert}},
		{"quorum signed by an issuer, issuer left out", "another issuer than the next",
			chain{forge(t, w.quorumCert, w.issuerCert, w.quorum.Public(), w.issuer, nil), w.rootCert}},
		{"quorum signed by an issuer in the root's name", "not signed",
			chain{forge(t, w.quorumCert, w.rootCert, w.quorum.Public(), w.issuer, nil), w.rootCert}},
		{"agent signed by another key in the issuer's name", "not signed",
			chain{forge(t, w.agentCert, w.issuerCert, w.agent.Public(), mallory, nil), w.issuerCert, w.rootCert}},

		{"CN only", "exactly one name",
			quorum(func(c *x509.Certificate) {
				c.URIs, c.Subject = nil, pkix.Name{CommonName: uri(w.fleet, "quorum", w.node)}
			})},
		{"CN says quorum, name says agent", "role agent where quorum",
			chain{forge(t, w.agentCert, w.rootCert, w.agent.Public(), w.root, func(c *x509.Certificate) {
				c.Subject.CommonName = "quorum"
			}), w.rootCert}},
		{"two URIs", "exactly one name",
			quorum(func(c *x509.Certificate) { c.URIs = append([]*url.URL{}, c.URIs[0], w.agentCert.URIs[0]) })},
		{"the URI twice", "exactly one name",
			quorum(func(c *x509.Certificate) { c.URIs = append([]*url.URL{}, c.URIs[0], c.URIs[0]) })},
		{"extra DNS name", "exactly one name", quorum(func(c *x509.Certificate) { c.DNSNames = []string{"host1"} })},
		{"extra IP address", "exactly one name",
			agent(func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1).To4()} })},
		{"extra email", "exactly one name",
			agent(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} })},
		{"extra name of a kind that the parser drops", "exactly one name",
			quorum(func(c *x509.Certificate) {
				registered := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{42, 3, 4}}
				c.URIs, c.ExtraExtensions = nil, []pkix.Extension{sanExtension(t, uriName(uri(w.fleet, "quorum", w.node)), registered)}
			})},
		{"DNS name instead of a URI", "exactly one name",
			quorum(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"quorum." + string(w.node)} })},
		{"very long URI", "exactly one name", named("fleet://" + strings.Repeat("a", 300))},
		{"upper-case scheme", "is not fleet://", named("FLEET" + uri(w.fleet, "quorum", w.node)[5:])},
		{"upper-case fleet", "fleet ID", named(uri(fleet.ID(strings.ToUpper(string(w.fleet))), "quorum", w.node))},
		{"upper-case role", "no known role", named(uri(w.fleet, "QUORUM", w.node))},
		{"upper-case node", "node ID", named(uri(w.fleet, "quorum", fleet.NodeID(strings.ToUpper(string(w.node)))))},
		{"trailing slash", "is not fleet://", named(uri(w.fleet, "quorum", w.node) + "/")},
		{"trailing dot", "node ID", named(uri(w.fleet, "quorum", w.node) + ".")},
		{"query", "node ID", named(uri(w.fleet, "quorum", w.node) + "?role=quorum")},
		{"fragment", "node ID", named(uri(w.fleet, "quorum", w.node) + "#a")},
		{"user", "fleet ID", named("fleet://a@" + uri(w.fleet, "quorum", w.node)[8:])},
		{"port", "fleet ID", named(uri(w.fleet+":1", "quorum", w.node))},
		{"escaped role", "no known role", named(uri(w.fleet, "%71uorum", w.node))},
		{"empty segment", "is not fleet://", named(uri(w.fleet, "/quorum", w.node))},
		{"dot segment", "is not fleet://", named(uri(w.fleet, "agent/../quorum", w.node))},
		{"wildcard", "node ID", named(uri(w.fleet, "quorum", "*"))},
		{"no node", "node ID", named(uri(w.fleet, "quorum", ""))},
		{"role none", "no known role", named(uri(w.fleet, "none", w.node))},
		{"other scheme", "is not fleet://", named("spiffe" + uri(w.fleet, "quorum", w.node)[5:])},

		{"other fleet", "belongs to fleet", chain{other.quorumCert, other.rootCert}},
		{"other fleet under our root", "a certificate of fleet", chain{other.quorumCert, w.rootCert}},
		{"other fleet's agent with our issuer", "a certificate of fleet",
			chain{other.agentCert, w.issuerCert, w.rootCert}},
		{"our leaf names another fleet", "a certificate of fleet", named(uri(other.fleet, "quorum", w.node))},
		{"agent ID of another key", "not the node ID of the agent's key",
			chain{forge(t, w.agentCert, w.issuerCert, mallory.Public(), w.issuer, nil), w.issuerCert, w.rootCert}},

		{"ECDSA leaf", "not Ed25519",
			chain{forge(t, w.quorumCert, w.rootCert, ecdsaKey.Public(), w.root, nil), w.rootCert}},
		{"ECDSA root", "not Ed25519", chain{w.quorumCert, ecdsaSelf()}},
		{"issuer with the root's key", "uses the root key",
			chain{
				forge(t, w.agentCert, forge(t, w.issuerCert, w.rootCert, w.root.Public(), w.root, nil), w.agent.Public(), w.root, nil),
				forge(t, w.issuerCert, w.rootCert, w.root.Public(), w.root, nil), w.rootCert}},
		{"quorum with the root's key", "uses the key of its issuer",
			chain{forge(t, w.quorumCert, w.rootCert, w.root.Public(), w.root, nil), w.rootCert}},
		{"unknown critical extension", "critical extension",
			quorum(func(c *x509.Certificate) {
				c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
			})},

		{"self-issued root of the same subject", "belongs to fleet",
			chain{forge(t, w.quorumCert, fakeRoot, w.quorum.Public(), mallory, nil), fakeRoot}},
		{"leaf of that root under ours", "not signed",
			chain{forge(t, w.quorumCert, fakeRoot, w.quorum.Public(), mallory, nil), w.rootCert}},
		{"that root as issuer", "exactly one name", chain{w.agentCert, fakeRoot, w.rootCert}},
		{"self-issued issuer of the root's subject", "not signed",
			chain{forge(t, w.agentCert, sameSubject, w.agent.Public(), w.issuer, nil), sameSubject, w.rootCert}},
		{"root that is no CA", "self-signed authority",
			chain{w.quorumCert, forge(t, w.rootCert, w.rootCert, w.root.Public(), w.root, func(c *x509.Certificate) {
				c.IsCA, c.MaxPathLen = false, -1
			})}},
		{"root issued by another name", "self-signed authority",
			chain{w.quorumCert, forge(t, w.rootCert, other.rootCert, w.root.Public(), w.root, func(c *x509.Certificate) {
				c.Subject.CommonName = "x"
			})}},
		{"root signed by another key", "not signed",
			chain{w.quorumCert, forge(t, w.rootCert, w.rootCert, w.root.Public(), mallory, nil)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			peer, err := VerifyChain(c.chain, w.fleet, w.now)
			wantKind(t, err, fleet.Unauthenticated, c.part)
			if peer != (Peer{}) {
				t.Errorf("a refused chain gave the peer %+v", peer)
			}
		})
	}

	times := []struct {
		name  string
		kind  fleet.Kind
		now   time.Time
		part  string
		chain chain
	}{
		{"expired agent", fleet.Expired, w.now.Add(AgentValidity + time.Second),
			"the agent certificate was valid until 2026-03-31T12:00:00Z, but here it is 2026-03-31T12:00:01Z",
			agent(nil)},
		{"agent not yet valid", fleet.Expired, w.now.Add(-NotBeforeSlack - time.Second),
			"the agent certificate is valid from 2026-02-28T12:00:00Z, but here it is 2026-02-28T11:59:59Z",
			agent(nil)},
		{"expired quorum", fleet.Expired, w.now.Add(401 * day),
			"quorum certificate was valid until",
			quorum(nil)},
		{"clock at 1970", fleet.Expired, time.Unix(0, 0),
			"but here it is 1970-01-01",
			quorum(nil)},
		{"expired issuer", fleet.Expired, w.now,
			"issuer certificate was valid until",
			issuer(func(c *x509.Certificate) { c.NotAfter = w.now.Add(-time.Hour) })},
		{"issuer not yet valid", fleet.Expired, w.now,
			"issuer certificate is valid from",
			issuer(func(c *x509.Certificate) { c.NotBefore = w.now.Add(time.Hour) })},
		{"expired root", fleet.Expired, w.now,
			"root certificate was valid until",
			chain{w.quorumCert, forge(t, w.rootCert, w.rootCert, w.root.Public(), w.root, func(c *x509.Certificate) {
				c.NotAfter = w.now.Add(-time.Hour)
			})}},
		{"expired and of another fleet", fleet.Unauthenticated, w.now.Add(500 * day),
			"belongs to fleet",
			chain{other.quorumCert, other.rootCert}},
	}
	for _, c := range times {
		t.Run(c.name, func(t *testing.T) {
			peer, err := VerifyChain(c.chain, w.fleet, c.now)
			wantKind(t, err, c.kind, c.part)
			if peer != (Peer{}) {
				t.Errorf("a refused chain gave the peer %+v", peer)
			}
			if c.kind == fleet.Expired && !strings.Contains(fleet.HintOf(err), "clock") {
				t.Errorf("hint %q does not mention the clock", fleet.HintOf(err))
			}
		})
	}
}

// Every byte of a certificate counts: none can change without the chain being
// refused.
func TestVerifyChainFlippedBytes(t *testing.T) {
	w := newWorld(t, 1)
	for i := range w.agentDER {
		b := bytes.Clone(w.agentDER)
		b[i] ^= 0x20
		c, err := x509.ParseCertificate(b)
		if err != nil {
			continue
		}
		if _, err := VerifyChain([]*x509.Certificate{c, w.issuerCert, w.rootCert}, w.fleet, w.now); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	w := newWorld(t, 1)
	cases := []struct {
		name string
		make func() ([]byte, error)
	}{
		{"no root key", func() ([]byte, error) { return NewRootCertificate(PrivateKey{}, "x", w.now) }},
		{"no signing key", func() ([]byte, error) {
			return IssueQuorum(PrivateKey{}, w.rootDER, w.node, w.quorum.Public(), w.now)
		}},
		{"no subject key", func() ([]byte, error) {
			return IssueQuorum(w.root, w.rootDER, w.node, fleet.PublicKey{}, w.now)
		}},
		{"certificate of another key", func() ([]byte, error) {
			return IssueQuorum(w.issuer, w.rootDER, w.node, w.quorum.Public(), w.now)
		}},
		{"root's own key", func() ([]byte, error) { return IssueQuorum(w.root, w.rootDER, w.node, w.root.Public(), w.now) }},
		{"malformed certificate", func() ([]byte, error) {
			return IssueQuorum(w.root, []byte("x"), w.node, w.quorum.Public(), w.now)
		}},
		{"malformed node ID", func() ([]byte, error) { return IssueQuorum(w.root, w.rootDER, "host1", w.quorum.Public(), w.now) }},
		{"node ID of another agent", func() ([]byte, error) {
			return IssueAgent(w.issuer, w.issuerDER, w.node, testKey(77).Public(), w.now)
		}},
		{"quorum by an issuer", func() ([]byte, error) {
			return IssueQuorum(w.issuer, w.issuerDER, w.node, w.quorum.Public(), w.now)
		}},
		{"agent by the root", func() ([]byte, error) { return IssueAgent(w.root, w.rootDER, w.node, w.agent.Public(), w.now) }},
		{"agent by a quorum key", func() ([]byte, error) {
			return IssueAgent(w.quorum, w.quorumDER, w.node, w.agent.Public(), w.now)
		}},
		{"expired issuer", func() ([]byte, error) {
			return IssueAgent(w.issuer, w.issuerDER, w.node, w.agent.Public(), w.now.Add(QuorumValidity))
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if der, err := c.make(); err == nil {
				t.Errorf("made a certificate of %d bytes", len(der))
			}
		})
	}
}

func TestAgentNeverOutlivesIssuer(t *testing.T) {
	w := newWorld(t, 1)
	now := w.now.Add(QuorumValidity - 10*24*time.Hour)
	der, err := IssueAgent(w.issuer, w.issuerDER, w.node, w.agent.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	if c := parseCert(t, der); !c.NotAfter.Equal(w.issuerCert.NotAfter) {
		t.Errorf("agent until %s, issuer until %s", c.NotAfter, w.issuerCert.NotAfter)
	}
}

func TestTLSCertificateHandshake(t *testing.T) {
	w := newWorld(t, 1)
	clientConn, serverConn := net.Pipe()
	config := func(c tls.Certificate, peer *Peer) *tls.Config {
		return &tls.Config{
			Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
			ClientAuth: tls.RequireAnyClientCert,
			VerifyConnection: func(s tls.ConnectionState) (err error) {
				*peer, err = VerifyChain(s.PeerCertificates, w.fleet, w.now)
				return err
			},
		}
	}
	var atServer, atClient Peer
	server := tls.Server(serverConn, config(TLSCertificate(w.quorum, w.quorumDER, w.rootDER), &atServer))
	client := tls.Client(clientConn, config(TLSCertificate(w.agent, w.agentDER, w.issuerDER, w.rootDER), &atClient))
	done := make(chan error, 1)
	go func() { done <- server.HandshakeContext(context.Background()) }()
	if err := errors.Join(client.HandshakeContext(context.Background()), <-done); err != nil {
		t.Fatal(err)
	}
	if atServer.Role != fleet.RoleAgent || atClient.Role != fleet.RoleQuorum {
		t.Errorf("server saw %s, client saw %s", atServer.Role, atClient.Role)
	}
}
