package node

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/api/client"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ssm"
	"fleet/node/transport"
)

// later restarts the whole fleet after a time in which all of it was off, and
// gives an operator whose clock agrees.
func (b *bubble) later(off time.Duration) (*client.Client, func() time.Time) {
	b.t.Helper()
	for name := range b.hosts {
		if b.nodes[name] != nil {
			b.crash(name)
		}
		b.skew(name, off)
	}
	for name := range b.hosts {
		b.start(name)
	}
	for name := range b.hosts {
		b.ready(name)
	}
	b.awaitLeader("")
	now := func() time.Time { return time.Now().Add(off) }
	c, err := client.Open(b.t.Context(), b.cred, client.Options{Dial: b.host.DialContext, Now: now})
	if err != nil {
		b.t.Fatal(err)
	}
	return c, now
}

// TestQuorumRenew is a fleet that was off until 50 days before the end of its
// quorum certificates: every host gets an agent certificate by itself, status
// names the voters whose certificates end, and one command renews them.
func TestQuorumRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		c, now := b.later(350 * 24 * time.Hour)
		defer c.Close()
		warned := func() (names []string) {
			var s fleet.GetStatusResult
			if err := c.Call(t.Context(), "GetStatus", fleet.GetStatusRequest{}, &s); err != nil {
				t.Fatal(err)
			}
			for _, w := range s.Warnings {
				if w.Code == "QuorumCertificateExpiring" {
					names = append(names, strings.Fields(w.Message)[4])
				}
			}
			slices.Sort(names)
			return names
		}
		if names := warned(); !slices.Equal(names, []string{"n1", "n2", "n3"}) {
			t.Errorf("status warns of the certificates of %v", names)
		}
		var candidates [][]byte
		for _, name := range []string{"n1", "n2", "n3"} {
			candidates = append(candidates, b.candidate(c, name, false))
		}
		plan, err := enrol.PlanRenewal(b.trust(c), candidates, b.keyOf)
		if err != nil {
			t.Fatal(err)
		}
		file, root := b.rootKey()
		req, err := plan.Sign(root, file, now())
		if err != nil {
			t.Fatal(err)
		}
		if req.Trust != nil {
			t.Error("a renewal signs a trust.json")
		}
		b.mustChange(c, req)
		if names := warned(); len(names) > 0 {
			t.Errorf("after the renewal status warns of %v", names)
		}
		for _, name := range []string{"n1", "n2", "n3"} {
			if left := b.nodes[name].quorumTLS.Load().Leaf.NotAfter.Sub(now()); left < 399*24*time.Hour {
				t.Errorf("the certificate of %s lasts another %s", name, left)
			}
			b.crash(name)
			b.start(name) // with what is on disk
		}
		b.awaitLeader("")
		var q fleet.DescribeQuorumResult
		if err := c.Call(t.Context(), "DescribeQuorum", fleet.DescribeQuorumRequest{}, &q); err != nil {
			t.Fatal(err)
		}
		for _, m := range q.Members {
			if m.Role != fleet.RoleNameVoter {
				t.Errorf("%s is %s", m.Name, m.Role)
			}
		}
	})
}

// TestCARotate gives the voters new issuing keys: what the old ones signed goes
// on counting, every host gets a certificate by a new one in time, and then the
// old ones count no more.
func TestCARotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		c := b.client()
		old := b.nodes["n4"].issuedBy()
		var candidates [][]byte
		for _, name := range []string{"n1", "n2", "n3"} {
			candidates = append(candidates, b.candidate(c, name, true))
		}
		b.mustChange(c, b.sign(enrol.PlanRotation(b.trust(c), candidates, b.keyOf, time.Now())))
		trust := b.trust(c)
		current := map[fleet.PublicKey]bool{}
		for _, i := range trust.Issuers {
			current[i.Key] = i.Until == 0
		}
		if len(current) != 6 || current[old] {
			t.Errorf("issuing keys after the rotation: %+v", trust.Issuers)
		}
		b.wait(time.Minute, "the voters issue with their new keys", func() bool {
			return !slices.ContainsFunc([]string{"n1", "n2", "n3"}, func(name string) bool {
				return !current[b.nodes[name].member.Load().issuer.Load().Key.Public()]
			})
		})
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 4 {
			t.Errorf("right after the rotation: %v", counts)
		}
		if b.nodes["n4"].issuedBy() != old {
			t.Error("n4 renewed at once: whole fleets would")
		}
		c.Close()

		c, now := b.later(5 * 24 * time.Hour)
		defer c.Close()
		b.wait(2*time.Hour, "every host has a certificate by a new key", func() bool {
			for name := range b.hosts {
				if !current[b.nodes[name].issuedBy()] {
					return false
				}
			}
			return true
		})
		if b.trust(c).Issuer(old, now().Add(3*24*time.Hour)) {
			t.Error("the old key counts after its week")
		}
	})
}

func TestIssuerDue(t *testing.T) {
	now := time.Unix(1e9, 0)
	issuer := identity.KeyFromSeed([32]byte{1}).Public()
	trust := func(until int64) *identity.Trust {
		return &identity.Trust{Issuers: []identity.TrustIssuer{{Key: issuer, Until: until}}}
	}
	end := now.Add(enrol.IssuerOverlap)
	if issuerDue("mi-1", trust(0), issuer, now) {
		t.Error("due under a key that is in use")
	}
	if !issuerDue("mi-1", &identity.Trust{}, issuer, now) {
		t.Error("not due under a key that counts no more")
	}
	var first, last time.Duration
	for n := range 200 {
		id := fleet.NodeIDOf(identity.KeyFromSeed([32]byte{2, byte(n)}).Public())
		at := time.Duration(0)
		for at < enrol.IssuerOverlap && !issuerDue(id, trust(end.UnixNano()), issuer, now.Add(at)) {
			at += time.Hour
		}
		if n == 0 || at < first {
			first = at
		}
		last = max(last, at)
	}
	if first < 24*time.Hour || last > 4*24*time.Hour+time.Hour || last-first < 48*time.Hour {
		t.Errorf("hosts renew from %s to %s after the key was retired", first, last)
	}
}

// TestRevocation is T-95: a voter was stolen, and the thief holds its keys and,
// with them, every kind of connection that they open; an operator was dismissed
// who watches a command. All of it ends within 30 seconds of the word of those
// who may, and opens nowhere again. The hosts whose certificates the stolen
// voter had signed get others by themselves.
func TestRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 2)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		key, err := identity.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		public := key.Public()
		if err := c.Call(t.Context(), "CreateOperator", fleet.CreateOperatorRequest{Name: "eve", PublicKey: public[:], May: []string{"SendCommand"}}, nil); err != nil {
			t.Fatal(err)
		}
		cred := b.cred
		cred.Operator, cred.Key = "eve", key
		far := b.net.Host("10.0.7.7")
		eve, err := client.Open(t.Context(), cred, client.Options{Dial: far.DialContext})
		if err != nil {
			t.Fatal(err)
		}
		defer eve.Close()

		// n1 certified every host: the worst of the three to lose.
		b.net.Host("10.0.6.6")
		th := b.thief("n1")
		b.crash("n1")
		b.awaitLeader("")
		to := map[string]fleet.NodeID{"n2": b.id("n2"), "n3": b.id("n3"), "n4": b.id("n4")}
		th.hold(t, "Raft", transport.Raft, fleet.RoleQuorum, b.addr("n2"), fleet.RoleQuorum, to["n2"])
		th.hold(t, "the reverse connection", transport.Reverse, fleet.RoleAgent, b.addr("n2"), fleet.RoleQuorum, to["n2"])
		th.call(t, "calls of the quorum to a voter", fleet.RoleQuorum, b.addr("n2"), rpc.Target{Node: to["n2"], Role: fleet.RoleQuorum})
		th.call(t, "calls of the quorum to a host", fleet.RoleQuorum, b.addr("n4"), rpc.Target{Node: to["n4"], Role: fleet.RoleAgent})
		th.call(t, "calls of a host to a voter", fleet.RoleAgent, b.addr("n3"), rpc.Target{Node: to["n3"], Role: fleet.RoleQuorum})
		th.call(t, "calls of a host to a host", fleet.RoleAgent, b.addr("n4"), rpc.Target{Node: to["n4"], Role: fleet.RoleAgent})
		b.mu.Lock()
		b.takes = time.Hour
		b.mu.Unlock()
		id, err := b.send(eve)
		if err != nil {
			t.Fatal(err)
		}
		watching, stop := context.WithCancel(t.Context())
		defer stop()
		watched := make(chan error, 1)
		go func() {
			watched <- eve.Watch(watching, fleet.WatchCommandRequest{CommandId: id}, func(fleet.WatchEvent) error { return nil })
		}()
		connected := func() (n int) {
			for name := range b.nodes {
				for _, conn := range b.nodes[name].transport.Open() {
					if host, _, _ := net.SplitHostPort(conn.RemoteAddr().String()); conn.Proto == transport.API && host == "10.0.7.7" {
						n++
					}
				}
			}
			return n
		}
		time.Sleep(10 * time.Second)
		for what, conn := range th.held {
			select {
			case <-conn.Done():
				t.Errorf("%s ended before it was revoked: the test does not reach what it is for", what)
			default:
			}
		}
		if connected() == 0 {
			t.Error("the operator watches over no connection: the test does not reach what it is for")
		}

		b.mustChange(c, b.replaceVoter(c, "n1", "n5", true))
		if err := c.Call(t.Context(), "DeregisterManagedInstance", ssm.DeregisterManagedInstanceRequest{InstanceId: string(b.id("n1"))}, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Call(t.Context(), "DeleteOperator", fleet.DeleteOperatorRequest{Name: "eve"}, nil); err != nil {
			t.Fatal(err)
		}
		revoked := time.Now()
		worst := time.Duration(0)
		for what, conn := range th.held {
			select {
			case <-conn.Done():
				worst = max(worst, time.Since(revoked))
			case <-time.After(30*time.Second - time.Since(revoked)):
				t.Errorf("%s is open 30 seconds after it was revoked", what)
			}
		}
		b.wait(30*time.Second-time.Since(revoked), "the dismissed operator has no connection", func() bool { return connected() == 0 })
		worst = max(worst, time.Since(revoked))
		stop()
		if err := <-watched; err == nil {
			t.Error("the watch of a dismissed operator ended as if all were said")
		}
		t.Logf("all had ended %s after the last word", worst)
		// Nothing opens again.
		for _, try := range []struct {
			as   fleet.Role
			name string
			role fleet.Role
		}{
			{fleet.RoleQuorum, "n2", fleet.RoleQuorum}, {fleet.RoleQuorum, "n4", fleet.RoleAgent},
			{fleet.RoleAgent, "n3", fleet.RoleQuorum}, {fleet.RoleAgent, "n4", fleet.RoleAgent},
		} {
			if err := th.ask(try.as, b.addr(try.name), rpc.Target{Node: to[try.name], Role: try.role}); err == nil {
				t.Errorf("as %s at the %s identity of %s: it is answered", try.as, try.role, try.name)
			}
		}
		if _, err := client.Open(t.Context(), cred, client.Options{Dial: b.host.DialContext, Timeout: 10 * time.Second}); err == nil {
			t.Error("the dismissed operator connects")
		}
		delete(b.hosts, "n1")
		b.wait(2*time.Minute, "every host has a certificate that counts", func() bool {
			for name := range b.hosts {
				if n := b.nodes[name]; !n.trust.Load().Issuer(n.issuedBy(), time.Now()) {
					return false
				}
			}
			return true
		})
		b.mu.Lock()
		b.takes = 0
		b.mu.Unlock()
		if id, err = b.send(c); err != nil {
			t.Fatal(err)
		}
		if counts := b.judge(id); counts[fleet.Success] != 4 {
			t.Errorf("the fleet without the stolen voter: %v", counts)
		}
	})
}

// burglar has the keys of a host and speaks with them from elsewhere.
type burglar struct {
	transport *transport.Transport
	held      map[string]*transport.Conn
}

func (b *bubble) thief(name string) *burglar {
	b.t.Helper()
	dir, info, err := enrol.OpenDir(b.data(name))
	if err != nil {
		b.t.Fatal(err)
	}
	certs := map[string]tls.Certificate{}
	for _, id := range []string{enrol.Agent, enrol.Quorum} {
		loaded, err := dir.LoadIdentity(id)
		if err != nil {
			b.t.Fatal(err)
		}
		certs[id] = loaded.TLS()
	}
	h := b.net.Host("10.0.6.6")
	l, err := h.Listen("tcp", bubblePort)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := h.ListenPacket(bubblePort)
	if err != nil {
		b.t.Fatal(err)
	}
	tr, err := transport.New(transport.Config{
		Fleet: info.Fleet, Listener: l, Packet: p, Dial: h.DialContext, Logger: slog.New(slog.DiscardHandler),
		Agent:  func() *tls.Certificate { c := certs[enrol.Agent]; return &c },
		Quorum: func() *tls.Certificate { c := certs[enrol.Quorum]; return &c },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = tr.Close() }) // nobody listens
	return &burglar{transport: tr, held: map[string]*transport.Conn{}}
}

// hold opens a connection and keeps it.
func (th *burglar) hold(t *testing.T, what string, p transport.Proto, as fleet.Role, addr string, role fleet.Role, node fleet.NodeID) {
	t.Helper()
	conn, err := th.transport.DialPeer(t.Context(), p, as, addr, role, node)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, conn) // until the other side ends it
		_ = conn.Close()
	}()
	th.held[what] = conn
}

// call opens a connection for calls, has one answered and keeps it.
func (th *burglar) call(t *testing.T, what string, as fleet.Role, addr string, to rpc.Target) {
	t.Helper()
	var conn *transport.Conn
	c := rpc.NewClient(func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
		var err error
		conn, err = th.transport.DialPeer(ctx, transport.RPC, as, addr, role, node)
		return conn, err
	})
	t.Cleanup(func() { _ = c.Close() })
	if _, err := rpc.Call[rpc.TrustRequest, rpc.TrustResponse](t.Context(), c, to, rpc.MethodTrust, &rpc.TrustRequest{Trust: []byte("{}")}); fleet.KindOf(err) != fleet.Invalid &&
		fleet.KindOf(err) != fleet.Unauthenticated {
		t.Fatalf("%s: %v; want that it is answered", what, err)
	}
	th.held[what] = conn
}

// ask makes one call and reports whether anybody answered, whatever he said.
func (th *burglar) ask(as fleet.Role, addr string, to rpc.Target) error {
	c := rpc.NewClient(func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
		return th.transport.DialPeer(ctx, transport.RPC, as, addr, role, node)
	})
	defer c.Close() //nolint:errcheck // it has no error
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := rpc.Call[rpc.TrustRequest, rpc.TrustResponse](ctx, c, to, rpc.MethodTrust, &rpc.TrustRequest{Trust: []byte("{}")})
	if kind := fleet.KindOf(err); kind == fleet.Unknown || kind == fleet.Unavailable {
		return err
	}
	return nil
}
