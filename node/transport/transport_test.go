package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
)

var protos = []Proto{RPC, Raft, Gossip, Reverse, API, Join}

// The matrix tries every identity with every server name on every protocol
// against a host that holds both of its own identities, through plain crypto/tls
// so that no check of our own dialler helps. What may pass is written down here
// a second time, by hand.
func TestMatrix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		n := memnet.New(1)
		server, peer, stranger := w.host(), w.host(), other.host()
		tr := w.serve(n, "10.0.0.1", server, nil)
		for _, p := range protos {
			greet(t, tr.Listener(p))
		}
		old := *peer
		expired := w.agentCert(&old, time.Now().Add(-identity.AgentValidity-time.Hour))
		future := w.agentCert(&old, time.Now().Add(identity.NotBeforeSlack+time.Hour))
		issuer := identity.TLSCertificate(w.issuer, w.issDER, w.rootDER)
		halfChain := *peer.agent
		halfChain.Certificate = halfChain.Certificate[:2]
		wrongKey := *peer.quorum
		wrongKey.PrivateKey = peer.agent.PrivateKey
		uri := func(role string, node fleet.NodeID) string { return fmt.Sprintf("fleet://%s/%s/%s", w.id, role, node) }

		identities := []struct {
			name string
			cert *tls.Certificate
			pass map[Proto]bool
		}{
			{"none", nil, map[Proto]bool{API: true, Join: true}},
			{"agent", peer.agent, map[Proto]bool{RPC: true, Gossip: true, Reverse: true, API: true, Join: true}},
			{"quorum", peer.quorum, map[Proto]bool{RPC: true, Raft: true, API: true, Join: true}},
			{"issuer as leaf", &issuer, map[Proto]bool{API: true, Join: true}},
			{"agent of another fleet", stranger.agent, map[Proto]bool{API: true, Join: true}},
			{"quorum of another fleet", stranger.quorum, map[Proto]bool{API: true, Join: true}},
			{"expired agent", expired, map[Proto]bool{API: true, Join: true}},
			{"agent from the future", future, map[Proto]bool{API: true, Join: true}},
			{"agent without the root", &halfChain, map[Proto]bool{API: true, Join: true}},
			{"key of another", &wrongKey, map[Proto]bool{API: true, Join: true}},
			{"agent named quorum", w.forged(uri("agent", peer.node), "quorum"), map[Proto]bool{API: true, Join: true}},
			{"quorum from an issuer", w.forged(uri("quorum", peer.node), "quorum"), map[Proto]bool{API: true, Join: true}},
		}
		names := []struct {
			name string
			pass []Proto
		}{
			{"agent." + string(server.node), []Proto{RPC, Gossip}},
			{"quorum." + string(server.node), []Proto{RPC, Raft, Reverse, API}},
			{"quorum", []Proto{API}},
			{"join", []Proto{Join}},
			{"agent." + string(peer.node), nil},
			{"quorum." + string(peer.node), nil},
			{"agent", nil},
			{"agent.", nil},
			{"localhost", nil},
			{"", nil},
		}
		for _, p := range protos {
			for _, id := range identities {
				for _, name := range names {
					// A protocol without client certificates never asks for one.
					want := id.pass[p] && slices.Contains(name.pass, p)
					got := tryTLS(t, n, id.cert, name.name, string(p))
					if got != want {
						t.Errorf("%s as %s to %q: let in %v, want %v", p, id.name, name.name, got, want)
					}
				}
			}
		}
		for _, offer := range [][]string{
			nil, {"http/1.1"}, {"fleet-other"}, {"h2", "fleet-raft"}, {"fleet-reverse", "h2"}, {"fleet-api", "http/1.1"}, {"fleet-join", "fleet-join"},
		} {
			for _, name := range names {
				if tryTLS(t, n, peer.quorum, name.name, offer...) {
					t.Errorf("offer %q to %q was let in", offer, name.name)
				}
			}
		}
	})
}

// tryTLS opens a connection with bare crypto/tls and says whether the server's
// listener yielded it.
func tryTLS(t *testing.T, n *memnet.Network, cert *tls.Certificate, name string, offer ...string) bool {
	t.Helper()
	raw, err := n.Host("10.0.0.99").DialContext(t.Context(), "tcp", "10.0.0.1:7790")
	if err != nil {
		t.Fatal(err)
	}
	cfg := &tls.Config{ServerName: name, NextProtos: offer, InsecureSkipVerify: true}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return admitted(tls.Client(raw, cfg))
}

func TestOnlyTLS13AndNoTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		tr := w.serve(n, "10.0.0.1", w.host(), nil)
		greet(t, tr.Listener(API))
		raw, err := n.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7790")
		if err != nil {
			t.Fatal(err)
		}
		if admitted(tls.Client(raw, &tls.Config{
			ServerName: "quorum", NextProtos: []string{string(API)}, InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12,
		})) {
			t.Error("TLS 1.2 was let in")
		}
		cache := tls.NewLRUClientSessionCache(1)
		raw, err = n.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7790")
		if err != nil {
			t.Fatal(err)
		}
		if !admitted(tls.Client(raw, &tls.Config{
			ServerName: "quorum", NextProtos: []string{string(API)}, InsecureSkipVerify: true, ClientSessionCache: cache,
		})) {
			t.Error("TLS 1.3 was not let in")
		}
		if _, ok := cache.Get("quorum"); ok {
			t.Error("the server gave a session ticket")
		}
	})
}

// An ordinary host presents no quorum identity whatever it is asked.
func TestOrdinaryHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		h, peer := w.host(), w.host()
		h.quorum = nil
		tr := w.serve(n, "10.0.0.1", h, nil)
		for _, p := range protos {
			greet(t, tr.Listener(p))
		}
		cases := []struct {
			proto Proto
			name  string
			want  bool
		}{
			{RPC, "agent." + string(h.node), true},
			{RPC, "quorum." + string(h.node), false},
			{Raft, "quorum." + string(h.node), false},
			{Reverse, "quorum." + string(h.node), false},
			{Reverse, "agent." + string(h.node), false},
			{API, "quorum", false},
			{Join, "join", true},
		}
		for _, c := range cases {
			if got := tryTLS(t, n, peer.quorum, c.name, string(c.proto)); got != c.want {
				t.Errorf("%s to %s: let in %v, want %v", c.proto, c.name, got, c.want)
			}
		}
	})
}

func TestDialPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		n := memnet.New(1)
		server, client := w.host(), w.host()
		st := w.serve(n, "10.0.0.1", server, nil)
		got := make(chan *Conn, 10)
		for _, p := range protos {
			l := st.Listener(p)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					got <- c.(*Conn)
				}
			}()
		}
		ct := w.serve(n, "10.0.0.2", client, nil)

		c, err := ct.DialPeer(t.Context(), RPC, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleAgent, server.node)
		if err != nil {
			t.Fatal(err)
		}
		s := <-got
		if c.Peer.Node != server.node || c.Peer.Role != fleet.RoleAgent || c.Proto != RPC || c.Peer.Key != server.agentKey.Public() {
			t.Errorf("dialled %+v", c.Peer)
		}
		if s.Peer.Node != client.node || s.Peer.Role != fleet.RoleQuorum || s.Proto != RPC {
			t.Errorf("accepted %+v", s.Peer)
		}
		go func() { _, _ = c.Write([]byte("over")); _ = c.Close() }()
		if b, err := io.ReadAll(s); err != nil || string(b) != "over" {
			t.Errorf("read %q, %v", b, err)
		}
		_ = s.Close()

		ordinary := w.host()
		ordinary.quorum = nil
		ot := w.serve(n, "10.0.0.3", ordinary, nil)
		foreign := other.serve(n, "10.0.0.4", other.host(), nil)
		greet(t, foreign.Listener(RPC))
		cases := []struct {
			name  string
			from  *Transport
			proto Proto
			as    fleet.Role
			addr  string
			want  fleet.Role
			node  fleet.NodeID
			kind  fleet.Kind
		}{
			{"agent on raft", ct, Raft, fleet.RoleAgent, "10.0.0.1:7790", fleet.RoleQuorum, server.node, fleet.Invalid},
			{"raft to an agent", ct, Raft, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleAgent, server.node, fleet.Invalid},
			{"reverse to an agent", ct, Reverse, fleet.RoleAgent, "10.0.0.1:7790", fleet.RoleAgent, server.node, fleet.Invalid},
			{"reverse of a quorum host", ct, Reverse, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleQuorum, server.node, fleet.Invalid},
			{"api between hosts", ct, API, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleQuorum, server.node, fleet.Invalid},
			{"join between hosts", ct, Join, fleet.RoleNone, "10.0.0.1:7790", fleet.RoleQuorum, server.node, fleet.Invalid},
			{"unknown protocol", ct, "x", fleet.RoleAgent, "10.0.0.1:7790", fleet.RoleAgent, server.node, fleet.Invalid},
			{"not held", ot, RPC, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleAgent, server.node, fleet.Unavailable},
			{"another host at the address", ct, RPC, fleet.RoleAgent, "10.0.0.1:7790", fleet.RoleAgent, client.node, fleet.Unavailable},
			{"closed port", ct, RPC, fleet.RoleAgent, "10.0.0.1:1", fleet.RoleAgent, server.node, fleet.Unavailable},
			{"no host", ct, RPC, fleet.RoleAgent, "10.0.0.77:7790", fleet.RoleAgent, server.node, fleet.Unavailable},
		}
		for _, c := range cases {
			conn, err := c.from.DialPeer(t.Context(), c.proto, c.as, c.addr, c.want, c.node)
			if err == nil {
				_ = conn.Close()
			}
			if fleet.KindOf(err) != c.kind {
				t.Errorf("%s: %v (%s), want %s", c.name, err, fleet.KindOf(err), c.kind)
			}
		}
	})
}

// A host that presents another identity than it was asked for is caught by the
// dialler, whatever it would have let in.
func TestDialChecksTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		n := memnet.New(1)
		client, server, foreign := w.host(), w.host(), other.host()
		ct := w.serve(n, "10.0.0.2", client, nil)
		issuer := identity.TLSCertificate(w.issuer, w.issDER, w.rootDER)
		cases := []struct {
			name string
			cert *tls.Certificate
			kind fleet.Kind
			text string
		}{
			{"right", server.quorum, fleet.Other, ""},
			{"agent for quorum", server.agent, fleet.Unauthenticated, "agent identity"},
			{"another host", client.quorum, fleet.Unauthenticated, string(client.node)},
			{"another fleet", foreign.quorum, fleet.Unauthenticated, "another fleet"},
			{"issuer", &issuer, fleet.Unauthenticated, ""},
			{"forged", w.forged(fmt.Sprintf("fleet://%s/quorum/%s", w.id, server.node), "q"), fleet.Unauthenticated, ""},
			{"expired", w.agentCert(server, time.Now().Add(-identity.AgentValidity-time.Hour)), fleet.Expired, "clock"},
		}
		l, err := n.Host("10.0.0.1").Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			go func() {
				raw, err := l.Accept()
				if err != nil {
					return
				}
				_ = tls.Server(raw, &tls.Config{
					Certificates: []tls.Certificate{*c.cert}, NextProtos: []string{string(RPC), string(API), string(Join)},
					ClientAuth: tls.RequestClientCert,
				}).Handshake()
				_ = raw.Close()
			}()
			conn, err := ct.DialPeer(t.Context(), RPC, fleet.RoleQuorum, "10.0.0.1:7790", fleet.RoleQuorum, server.node)
			if err == nil {
				_ = conn.Close()
			}
			if c.kind == fleet.Other {
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
				continue
			}
			told := ""
			if err != nil {
				told = err.Error() + " " + fleet.HintOf(err)
			}
			if fleet.KindOf(err) != c.kind || !strings.Contains(told, c.text) {
				t.Errorf("%s: %v (%s, hint %q), want %s with %q", c.name, err, fleet.KindOf(err), fleet.HintOf(err), c.kind, c.text)
			}
		}
	})
}

func TestStandAloneDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		n := memnet.New(1)
		voter, ordinary, foreign := w.host(), w.host(), other.host()
		ordinary.quorum = nil
		for ip, s := range map[string]struct {
			w *world
			h *host
		}{"10.0.0.1": {w, voter}, "10.0.0.2": {w, ordinary}, "10.0.0.3": {other, foreign}} {
			tr := s.w.serve(n, ip, s.h, nil)
			greet(t, tr.Listener(API))
			greet(t, tr.Listener(Join))
		}
		dial := n.Host("10.0.0.9").DialContext
		rootPub, otherPub := w.root.Public(), other.root.Public()
		root, otherRoot := fleet.Sum(rootPub[:]), fleet.Sum(otherPub[:])
		dayBehind := func() time.Time { return time.Now().Add(-25 * time.Hour) }

		// Who asks a host which fleet it is of learns what its certificates prove.
		for addr, want := range map[string]Seen{
			"10.0.0.1:7790": {Root: rootPub, Name: "test", Node: voter.node},
			"10.0.0.3:7790": {Root: otherPub, Name: "test", Node: foreign.node},
		} {
			if got, err := Peek(t.Context(), dial, addr, nil); err != nil || got != want {
				t.Errorf("peek at %s: got %+v, %v, want %+v", addr, got, err, want)
			}
		}
		if got, err := Peek(t.Context(), dial, "10.0.0.2:7790", nil); !errors.Is(err, ErrOtherProtocol) {
			t.Errorf("peek at an ordinary host: got %+v, %v", got, err)
		}
		if got, err := Peek(t.Context(), dial, "10.0.0.1:7790", dayBehind); fleet.KindOf(err) != fleet.Expired {
			t.Errorf("peek with a clock a day behind: got %+v, %v", got, err)
		}
		cases := []struct {
			name string
			open func() (*Conn, error)
			kind fleet.Kind // Other: it must succeed
			role fleet.Role
			text string
		}{
			{"api", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, "", nil)
			}, fleet.Other, fleet.RoleQuorum, ""},
			{"api by node", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, voter.node, nil)
			}, fleet.Other, fleet.RoleQuorum, ""},
			{"api at another node", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, ordinary.node, nil)
			}, fleet.Unavailable, 0, "refused"},
			{"api at an ordinary host", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.2:7790", w.id, "", nil)
			}, fleet.Unavailable, 0, "refused"},
			{"api of another fleet", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.3:7790", w.id, "", nil)
			}, fleet.Unauthenticated, 0, "another fleet (root fingerprint " + otherPub.Fingerprint()},
			{"api with a clock a day behind", func() (*Conn, error) {
				return DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, "", dayBehind)
			}, fleet.Expired, 0, "clock"},
			{"join at a voter", func() (*Conn, error) {
				return DialJoin(t.Context(), dial, "10.0.0.1:7790", root, nil)
			}, fleet.Other, fleet.RoleQuorum, ""},
			{"join at an ordinary host", func() (*Conn, error) {
				return DialJoin(t.Context(), dial, "10.0.0.2:7790", root, nil)
			}, fleet.Other, fleet.RoleAgent, ""},
			{"join with another fleet's token", func() (*Conn, error) {
				return DialJoin(t.Context(), dial, "10.0.0.1:7790", otherRoot, nil)
			}, fleet.Unauthenticated, 0, "another fleet"},
		}
		for _, c := range cases {
			conn, err := c.open()
			if err == nil {
				if conn.Peer.Role != c.role {
					t.Errorf("%s: the peer is %s, want %s", c.name, conn.Peer.Role, c.role)
				}
				if !admitted(conn) {
					t.Errorf("%s: not let in", c.name)
				}
			}
			told := ""
			if err != nil {
				told = err.Error() + " " + fleet.HintOf(err)
			}
			if (err == nil) != (c.kind == fleet.Other) || fleet.KindOf(err) != c.kind || !strings.Contains(told, c.text) {
				t.Errorf("%s: %v (%s), want %s with %q", c.name, err, fleet.KindOf(err), c.kind, c.text)
			}
		}
	})
}

// Who stands in the middle may show a root certificate that is not his, but
// cannot prove to be of its quorum.
func TestPeekIsNotFooled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, other := newWorld(t), newWorld(t)
		n := memnet.New(1)
		server, thief := w.host(), other.host()
		borrowed := identity.TLSCertificate(thief.quorumKey, thief.quorum.Certificate[0], w.rootDER)
		stolenRoot := identity.TLSCertificate(thief.quorumKey, w.rootDER)
		cases := []struct {
			name string
			cert *tls.Certificate
		}{
			{"another fleet's quorum certificate under this root", &borrowed},
			{"the root certificate alone", &stolenRoot},
			{"an ordinary host", server.agent},
			{"a quorum certificate that the issuing key signed", w.forged(fmt.Sprintf("fleet://%s/quorum/%s", w.id, server.node), "q")},
		}
		l, err := n.Host("10.0.0.1").Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			go func() {
				raw, err := l.Accept()
				if err != nil {
					return
				}
				_ = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*c.cert}, NextProtos: []string{string(API)}}).Handshake()
				_ = raw.Close()
			}()
			if got, err := Peek(t.Context(), n.Host("10.0.0.9").DialContext, "10.0.0.1:7790", nil); err == nil {
				t.Errorf("%s: believed to be %+v", c.name, got)
			}
		}
	})
}

func TestAdmitAndRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		server, client := w.host(), w.host()
		var mu sync.Mutex
		revoked := map[fleet.NodeID]bool{}
		admit := func(_ Proto, p identity.Peer) error {
			mu.Lock()
			defer mu.Unlock()
			if revoked[p.Node] {
				return fleet.Errorf(fleet.Denied, "%s is revoked", p.Node)
			}
			return nil
		}
		set := func(node fleet.NodeID, r bool) {
			mu.Lock()
			defer mu.Unlock()
			revoked[node] = r
		}
		st := w.serve(n, "10.0.0.1", server, func(c *Config) { c.Admit = admit })
		ct := w.serve(n, "10.0.0.2", client, func(c *Config) { c.Admit = admit })
		l := st.Listener(RPC)
		dial := func() (*Conn, error) {
			return ct.DialPeer(t.Context(), RPC, fleet.RoleAgent, "10.0.0.1:7790", fleet.RoleQuorum, server.node)
		}
		set(server.node, true)
		if _, err := dial(); fleet.KindOf(err) != fleet.Denied {
			t.Errorf("dial to a revoked host: %v", err)
		}
		set(server.node, false)
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		st.Recheck()
		ct.Recheck()
		go func() { _, _ = s.Write([]byte{1}) }()
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("recheck closed a good connection: %v", err)
		}
		set(client.node, true)
		st.Recheck()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("server side after the revocation: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("client side after the revocation reads on")
		}
		before := st.Stats().Accepted
		c, err = dial() // TLS 1.3 tells the client only when it reads
		if err == nil {
			if _, err = c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("a revoked host reads %v", err)
			}
		}
		if got := st.Stats().Accepted; got != before {
			t.Error("a revoked host was let in")
		}
		set(client.node, false)
		if _, err := dial(); err != nil {
			t.Fatal(err)
		}
		s, err = l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(identity.AgentValidity + time.Hour) // the certificate runs out under an open connection
		st.Recheck()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("server side after the certificate ran out: %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	const apiNet, addr = "10.0.0.9", "10.0.0.1:7790"
	setup := func(t *testing.T, l Limits) (*world, *memnet.Network, *host, *Transport) {
		w := newWorld(t)
		n := memnet.New(1)
		t.Cleanup(n.Close)
		h := w.host()
		return w, n, h, w.serve(n, "10.0.0.1", h, func(c *Config) { c.Limits = l })
	}
	// closed says whether the server closes a connection within a minute.
	closed := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		_, err := c.Read(make([]byte, 1))
		return err != nil && !isTimeout(err)
	}
	t.Run("silent strangers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, n, _, tr := setup(t, Limits{PerSource: 10, Handshakes: 15})
			greet(t, tr.Listener(API))
			silent := func(ip string) net.Conn {
				c, err := n.Host(ip).DialContext(t.Context(), "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				return c
			}
			for range 10 {
				silent("10.9.0.1")
			}
			if got := tr.Stats(); got.Handshaking != 10 || got.Refused != 0 {
				t.Errorf("%+v", got)
			}
			if !closed(silent("10.9.0.1")) {
				t.Error("an eleventh connection of one source was kept")
			}
			start := time.Now()
			c, err := DialAPI(t.Context(), n.Host(apiNet).DialContext, addr, w.id, "", nil)
			if err != nil || !admitted(c) {
				t.Errorf("another source was not served: %v", err)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("another source waited for %s", d)
			}
			for range 5 {
				silent("10.9.0.2")
			}
			if !closed(silent("10.9.0.3")) {
				t.Error("more handshakes than allowed")
			}
			time.Sleep(5*time.Second + time.Millisecond)
			if got := tr.Stats(); got.Handshaking != 0 || got.Open != 0 {
				t.Errorf("after the handshake deadline: %+v", got)
			}
		})
	})
	t.Run("operators", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, n, _, tr := setup(t, Limits{PerProto: map[Proto]int{API: 3}, PerSource: 2})
			l := tr.Listener(API)
			open := func(ip string) bool {
				c, err := DialAPI(t.Context(), n.Host(ip).DialContext, addr, w.id, "", nil)
				if err != nil {
					return false
				}
				synctest.Wait()
				return !closed(c)
			}
			if !open("10.0.0.5") || !open("10.0.0.5") || open("10.0.0.5") {
				t.Error("the limit of 2 for one source does not hold")
			}
			if !open("10.0.0.6") || open("10.0.0.7") {
				t.Error("the limit of 3 for the protocol does not hold")
			}
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
			if !open("10.0.0.7") {
				t.Error("a closed connection keeps its place")
			}
		})
	})
	t.Run("peers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, n, h, tr := setup(t, Limits{PerPeer: 3, PerPeerProto: map[Proto]int{Gossip: 2}, PerSource: 1})
			rpc, ring := tr.Listener(RPC), tr.Listener(Gossip)
			peer, second := w.host(), w.host()
			// Both peers share one address: only their identities count.
			pt := w.serve(n, "10.0.0.2", peer, nil)
			cfg := w.config(n, "10.0.0.3", second)
			cfg.Dial = n.Host("10.0.0.2").DialContext
			st := must[*Transport](t)(New(cfg))
			run(t, st)
			open := func(from *Transport, p Proto) bool {
				c, err := from.DialPeer(t.Context(), p, fleet.RoleAgent, addr, fleet.RoleAgent, h.node)
				if err != nil {
					return false
				}
				synctest.Wait()
				return !closed(c)
			}
			if !open(pt, Gossip) || !open(pt, Gossip) || open(pt, Gossip) {
				t.Error("the limit of 2 on one protocol does not hold")
			}
			if !open(pt, RPC) || open(pt, RPC) {
				t.Error("the limit of 3 for one peer does not hold")
			}
			if !open(st, Gossip) {
				t.Error("another peer at the same address was refused")
			}
			for _, l := range []net.Listener{ring, ring, ring, rpc} {
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
			}
			if got := tr.Stats(); got.Open != 0 || len(tr.limits.peers)+len(tr.limits.sources)+len(tr.limits.protos) != 0 {
				t.Errorf("after all closed: %+v, %v %v %v", got, tr.limits.peers, tr.limits.sources, tr.limits.protos)
			}
		})
	})
	t.Run("backlog", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, n, _, tr := setup(t, Limits{})
			l := tr.Listener(API)
			var last *Conn
			for range listenBacklog + 1 {
				var err error
				if last, err = DialAPI(t.Context(), n.Host(apiNet).DialContext, addr, w.id, "", nil); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			if !closed(last) {
				t.Error("a connection over the backlog was kept")
			}
			if s := tr.Stats(); s.Accepted != listenBacklog || s.Refused != 1 {
				t.Errorf("%+v", s)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if s := tr.Stats(); s.Open != 0 {
				t.Errorf("a closed listener keeps %d connections", s.Open)
			}
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept after close: %v", err)
			}
			if _, err := DialAPI(t.Context(), n.Host(apiNet).DialContext, addr, w.id, "", nil); fleet.KindOf(err) != fleet.Unavailable {
				t.Errorf("dial to a detached protocol: %v", err)
			}
			greet(t, tr.Listener(API)) // a new listener attaches it again
			c, err := DialAPI(t.Context(), n.Host(apiNet).DialContext, addr, w.id, "", nil)
			if err != nil || !admitted(c) {
				t.Errorf("after it was attached again: %v", err)
			}
		})
	})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		h := w.host()
		tr := must[*Transport](t)(New(w.config(n, "10.0.0.1", h)))
		l := tr.Listener(API)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tr.Run(ctx) }()
		dial := n.Host("10.0.0.9").DialContext
		kept, err := DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		yielded, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		waiting, err := DialAPI(t.Context(), dial, "10.0.0.1:7790", w.id, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		silent, err := dial(t.Context(), "tcp", "10.0.0.1:7790")
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		start := time.Now()
		if err := <-done; err != nil || time.Since(start) > time.Second {
			t.Errorf("run: %v after %s", err, time.Since(start))
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		for name, c := range map[string]net.Conn{"waiting": waiting, "silent": silent} {
			if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		go func() { _, _ = yielded.Write([]byte{1}) }()
		if !admitted(kept) {
			t.Error("a connection that was yielded did not stay open")
		}
		_ = yielded.Close()
		if _, _, err := tr.Packet().ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("packet socket: %v", err)
		}
		if s := tr.Stats(); s.Open != 0 || s.Handshaking != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestListen(t *testing.T) {
	w := newWorld(t)
	h := w.host()
	cfg := Config{Fleet: w.id, Listen: "127.0.0.1:0", Agent: func() *tls.Certificate { return h.agent },
		Logger: w.config(memnet.New(1), "10.0.0.1", h).Logger}
	tr := must[*Transport](t)(New(cfg))
	defer tr.Close()
	if tcp, udp := tr.Addr().(*net.TCPAddr).Port, tr.Packet().LocalAddr().(*net.UDPAddr).Port; tcp != udp {
		t.Errorf("TCP port %d, UDP port %d", tcp, udp)
	}
	cfg.Listen = tr.Addr().String()
	_, err := New(cfg)
	if fleet.KindOf(err) != fleet.Conflict || fleet.HintOf(err) == "" {
		t.Errorf("a taken port: %v", err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(cfg)
	if err != nil {
		t.Fatalf("the port after Close: %v", err)
	}
	defer again.Close()
	// A UDP port that is taken gives the TCP port back.
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	cfg.Listen = udp.LocalAddr().String()
	if _, err := New(cfg); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("a taken UDP port: %v", err)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Errorf("the TCP port was kept: %v", err)
	} else {
		_ = l.Close()
	}
	cfg.Listen = "nonsense"
	if _, err := New(cfg); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("a malformed address: %v", err)
	}
}

func TestSourceOf(t *testing.T) {
	cases := []struct{ addr, want string }{
		{"192.0.2.1:1000", "192.0.2.1"},
		{"192.0.2.1:2000", "192.0.2.1"},
		{"[::ffff:192.0.2.1]:1", "192.0.2.1"},
		{"[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::"},
		{"[2001:db8:1:2:ffff::1]:1", "2001:db8:1:2::"},
		{"[fe80::1%eth0]:1", "fe80::"},
	}
	for _, c := range cases {
		addr, err := net.ResolveTCPAddr("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := SourceOf(addr).String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.addr, got, c.want)
		}
	}
}

// Whatever a ClientHello names, choose never panics and gives only what was asked.
func FuzzServerName(f *testing.F) {
	w := newWorld(f)
	h := w.host()
	held := func(r fleet.Role) *tls.Certificate {
		if r == fleet.RoleQuorum {
			return h.quorum
		}
		return h.agent
	}
	for _, name := range []string{"", "join", "quorum", "agent." + string(h.node), "quorum." + string(h.node), "agent.", "."} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for p, r := range table {
			cert := r.choose(name, w.id, held)
			switch {
			case cert == nil:
			case slices.Contains(r.names, name):
			case cert == h.agent && name == "agent."+string(h.node) && slices.Contains(r.servers, fleet.RoleAgent):
			case cert == h.quorum && name == "quorum."+string(h.node) && slices.Contains(r.servers, fleet.RoleQuorum):
			default:
				t.Errorf("%s: %q was given an identity", p, name)
			}
		}
	})
}
