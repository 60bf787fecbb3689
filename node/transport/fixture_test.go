package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
)

// world is a fleet with a voter's issuing key.
type world struct {
	t       testing.TB
	id      fleet.ID
	root    identity.PrivateKey
	rootDER []byte
	issuer  identity.PrivateKey
	issDER  []byte
	issNode fleet.NodeID
}

func key(t testing.TB) identity.PrivateKey {
	t.Helper()
	k, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, root: key(t), issuer: key(t)}
	w.id = fleet.IDOf(w.root.Public())
	w.issNode = fleet.NodeIDOf(key(t).Public())
	w.rootDER = must[[]byte](t)(identity.NewRootCertificate(w.root, "test", time.Now()))
	w.issDER = must[[]byte](t)(identity.IssueIssuer(w.root, w.rootDER, w.issNode, w.issuer.Public(), time.Now()))
	return w
}

// host is an enrolled host with both identities.
type host struct {
	node          fleet.NodeID
	agentKey      identity.PrivateKey
	quorumKey     identity.PrivateKey
	agent, quorum *tls.Certificate
}

func (w *world) host() *host {
	h := &host{agentKey: key(w.t), quorumKey: key(w.t)}
	h.node = fleet.NodeIDOf(h.agentKey.Public())
	h.agent = w.agentCert(h, time.Now())
	der := must[[]byte](w.t)(identity.IssueQuorum(w.root, w.rootDER, h.node, h.quorumKey.Public(), time.Now()))
	cert := identity.TLSCertificate(h.quorumKey, der, w.rootDER)
	h.quorum = &cert
	return h
}

func (w *world) agentCert(h *host, now time.Time) *tls.Certificate {
	der := must[[]byte](w.t)(identity.IssueAgent(w.issuer, w.issDER, h.node, h.agentKey.Public(), now))
	cert := identity.TLSCertificate(h.agentKey, der, w.issDER, w.rootDER)
	return &cert
}

// forged is a certificate that the issuing key signs for a key of its own, as
// a stolen one could: any URI, any common name.
func (w *world) forged(uri, commonName string) *tls.Certificate {
	t := w.t
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u := must[*url.URL](t)(url.Parse(uri))
	parent := must[*x509.Certificate](t)(x509.ParseCertificate(w.issDER))
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{u},
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, parent, pub, w.issuer.Signer()))
	return &tls.Certificate{Certificate: [][]byte{der, w.issDER, w.rootDER}, PrivateKey: priv}
}

// serve runs a transport for a host on the network until the test ends.
func (w *world) serve(n *memnet.Network, ip string, h *host, change func(*Config)) *Transport {
	w.t.Helper()
	cfg := w.config(n, ip, h)
	if change != nil {
		change(&cfg)
	}
	tr := must[*Transport](w.t)(New(cfg))
	run(w.t, tr)
	return tr
}

func (w *world) config(n *memnet.Network, ip string, h *host) Config {
	w.t.Helper()
	return Config{
		Fleet:    w.id,
		Listener: must[net.Listener](w.t)(n.Host(ip).Listen("tcp", 7790)),
		Packet:   must[net.PacketConn](w.t)(n.Host(ip).ListenPacket(7790)),
		Dial:     n.Host(ip).DialContext,
		Agent:    func() *tls.Certificate { return h.agent },
		Quorum:   func() *tls.Certificate { return h.quorum },
		Logger:   slog.New(slog.DiscardHandler),
	}
}

func run(t testing.TB, tr *Transport) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// greet accepts on a protocol and writes one byte to each connection: a client
// that reads it was let in.
func greet(t testing.TB, l net.Listener) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{1})
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func admitted(c net.Conn) bool {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	var b [1]byte
	_, err := c.Read(b[:])
	return err == nil && b[0] == 1
}
