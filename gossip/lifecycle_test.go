package gossip

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

// A ring that was cut in two for long becomes one again; memberlist alone
// stays split for ever.
func TestPartitionHeals(t *testing.T) {
	for _, cut := range []time.Duration{20 * time.Second, 30 * time.Minute} {
		t.Run(cut.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t)
				rings := s.ring(6)
				converged(t, rings)
				for l := 1; l <= 3; l++ {
					for r := 4; r <= 6; r++ {
						s.net.Cut(s.host(l), s.host(r))
					}
				}
				time.Sleep(cut)
				if cut > time.Minute {
					for _, r := range rings {
						if got := alive(r); got != 3 {
							t.Errorf("%s sees %d alive while cut, want 3", r.cfg.Self, got)
						}
					}
				}
				s.net.HealAll()
				took := eventually(t, 2*time.Minute, "one ring again", func() bool {
					for _, r := range rings {
						if alive(r) != 6 {
							return false
						}
					}
					return true
				})
				t.Logf("one ring again after %s", took)
			})
		})
	}
}

// One host that nobody hears, then one that hears nobody.
func TestOneWayCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(5)
		converged(t, rings)
		for i := 2; i <= 5; i++ {
			s.net.CutOneWay(s.host(1), s.host(i))
		}
		eventually(t, 2*time.Minute, "the mute host is doubted", func() bool {
			m, _ := find(rings[2], 1)
			return m.State == Suspect
		})
		s.net.HealAll()
		for i := 2; i <= 5; i++ {
			s.net.CutOneWay(s.host(i), s.host(1))
		}
		time.Sleep(5 * time.Minute)
		s.net.HealAll()
		converged(t, rings)
	})
}

func TestLossyNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		s.net.SetLatency(5 * time.Millisecond)
		s.net.SetLoss(0.1)
		rings := s.ring(10)
		converged(t, rings)
		doubted := 0
		for range 600 {
			time.Sleep(500 * time.Millisecond)
			for _, r := range rings {
				if alive(r) != 10 {
					doubted++
				}
			}
		}
		if doubted > 0 {
			t.Errorf("with a tenth of the packets lost somebody was doubted in %d of 6000 looks", doubted)
		}
	})
}

func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		one := s.start(1, nil)
		two := s.start(2, nil)
		if n, err := two.Join(t.Context(), nil); n != 0 || err == nil {
			t.Errorf("join without seeds: %d, %v", n, err)
		}
		if n, err := two.Join(t.Context(), []Seed{seedOf(2)}); n != 0 || err == nil {
			t.Errorf("join through itself: %d, %v", n, err)
		}
		n, err := two.Join(t.Context(), []Seed{seedOf(2), {Node: nodeID(8), Address: "10.0.0.1:9"}})
		if n != 0 || err == nil || !strings.Contains(err.Error(), "10.0.0.1:9") || strings.Contains(err.Error(), placeholder) {
			t.Errorf("join through a closed port: %d, %v", n, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		n, err = two.Join(ctx, []Seed{{Node: nodeID(7), Address: "10.0.0.7:7790"}})
		if n != 0 || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("join through nobody: %d, %v after %s", n, err, time.Since(start))
		}
		// The exchange is bound to the context too, not only the dial.
		if _, err := s.host(5).Listen("tcp", 7790); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start = time.Now()
		n, err = two.Join(ctx, []Seed{seedOf(5)})
		if n != 0 || err == nil || time.Since(start) != 3*time.Second {
			t.Errorf("join through a silent host: %d, %v after %s", n, err, time.Since(start))
		}
		<-drained(two.Changed())
		if n, err := two.Join(t.Context(), []Seed{seedOf(1), seedOf(2)}); n != 1 || err != nil {
			t.Errorf("join: %d, %v", n, err)
		}
		select {
		case <-two.Changed():
		default:
			t.Error("no change was signalled")
		}
		time.Sleep(time.Second)
		if alive(one) != 2 || alive(two) != 2 {
			t.Errorf("%v\n%v", one.Members(), two.Members())
		}
		m, ok := find(one, 2)
		if !ok || m.Addr != hostAddr(2) || m.Role != fleet.RoleAgent || m.Epoch == 0 || m.Since.IsZero() {
			t.Errorf("%+v", m)
		}
		if got := one.Members(); got[0].Node > got[1].Node {
			t.Errorf("members are not in order: %v", got)
		}
	})
}

// drained empties a channel and returns a closed one.
func drained(ch <-chan struct{}) <-chan struct{} {
	select {
	case <-ch:
	default:
	}
	done := make(chan struct{})
	close(done)
	return done
}

func TestLeaveAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(4)
		converged(t, rings)
		leaver := rings[3]
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := leaver.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if err := leaver.Leave(ctx); err != nil {
			t.Errorf("second leave: %v", err)
		}
		if _, err := leaver.Join(ctx, []Seed{seedOf(1)}); !errors.Is(err, errNotRunning) {
			t.Errorf("join after leave: %v", err)
		}
		if err := leaver.UpdateRecord(); !errors.Is(err, errNotRunning) {
			t.Errorf("update after leave: %v", err)
		}
		if err := leaver.Close(); err != nil {
			t.Fatal(err)
		}
		if err := leaver.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if err := leaver.Leave(ctx); err != nil {
			t.Errorf("leave after close: %v", err)
		}
		if err := leaver.Start(); err == nil {
			t.Error("a closed ring was started")
		}
		eventually(t, time.Minute, "the others notice", func() bool {
			for _, r := range rings[:3] {
				if alive(r) != 3 {
					return false
				}
			}
			return true
		})
		// The packet socket is free for the next ring, the listener was closed.
		cfg := leaver.cfg
		if _, err := cfg.Listener.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
		l, err := s.host(4).Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listener = l
		again, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Start(); err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		rings[3] = again
		converged(t, rings)
		never := s.start(9, nil)
		if err := never.Start(); err == nil {
			t.Error("a ring was started twice")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		cases := map[string]func(*Config){
			"no fleet":            func(c *Config) { c.Fleet = "" },
			"no node":             func(c *Config) { c.Self = "" },
			"no keys":             func(c *Config) { c.Keys = nil },
			"short key":           func(c *Config) { c.Keys = [][]byte{make([]byte, 16)} },
			"no record":           func(c *Config) { c.Record = nil },
			"no socket":           func(c *Config) { c.Packet = nil },
			"no logger":           func(c *Config) { c.Logger = nil },
			"no address":          func(c *Config) { c.Advertise = netip.AddrPort{} },
			"unspecified address": func(c *Config) { c.Advertise = netip.MustParseAddrPort("0.0.0.0:7790") },
			"long cell":           func(c *Config) { c.Cell = "a-cell-name-of-17" },
		}
		i := 0
		for name, change := range cases {
			i++
			cfg := s.config(i)
			change(&cfg)
			if _, err := New(cfg); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		records := map[string]struct {
			change func(*identity.NodeRecord)
			kind   fleet.Kind
		}{
			"another address": {func(r *identity.NodeRecord) { r.Addr = hostAddr(1000) }, fleet.Conflict},
			"another node":    {func(r *identity.NodeRecord) { r.Node = nodeID(1000) }, fleet.Invalid},
			"another cell":    {func(r *identity.NodeRecord) { r.Cell = "b" }, fleet.Invalid},
			"expired": {func(r *identity.NodeRecord) {
				r.Epoch, r.Expiry = uint32(time.Now().Unix()-10), uint32(time.Now().Unix()-5)
			}, fleet.Expired},
		}
		for name, c := range records {
			i++
			cfg := s.config(i)
			raw := s.record(i, c.change)
			cfg.Record = func() []byte { return raw }
			r, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Start(); fleet.KindOf(err) != c.kind {
				t.Errorf("%s: %v, want %s", name, err, c.kind)
			}
			if err := r.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
		}
	})
}

func TestUpdateRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(5)
		converged(t, rings)
		set := func(change func(*identity.NodeRecord)) uint32 {
			time.Sleep(time.Minute)
			raw := s.record(1, change)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.records[1] = raw
			return mustParse(t, raw).Epoch
		}
		epoch := set(nil)
		for _, r := range rings {
			<-drained(r.Changed())
		}
		if err := rings[0].UpdateRecord(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "all hold the new record", func() bool {
			for _, r := range rings {
				if m, _ := find(r, 1); m.Epoch != epoch || m.State != Alive {
					return false
				}
			}
			return true
		})
		select {
		case <-rings[4].Changed():
		default:
			t.Error("no change was signalled")
		}
		moved := set(func(r *identity.NodeRecord) { r.Addr = hostAddr(1000) })
		if err := rings[0].UpdateRecord(); fleet.KindOf(err) != fleet.Conflict {
			t.Errorf("a record with another address: %v", err)
		}
		// The way to move: leave, close, and a new ring at the new address.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := rings[0].Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if err := rings[0].Close(); err != nil {
			t.Fatal(err)
		}
		cfg := s.config(1000)
		cfg.Self, cfg.Record, cfg.Seeds = nodeID(1), rings[0].cfg.Record, rings[0].cfg.Seeds
		r, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		rings[0] = r
		there := func() bool {
			for _, r := range rings {
				if m, _ := find(r, 1); m.Epoch != moved || m.Addr != hostAddr(1000) || m.State != Alive || alive(r) != 5 {
					return false
				}
			}
			return true
		}
		took := eventually(t, 3*time.Minute, "all see it at its new address", there)
		t.Logf("known to have moved after %s", took)
		// memberlist holds on to the old address until nobody answers there.
		var last time.Duration
		for start := time.Now(); time.Since(start) < 10*time.Minute; time.Sleep(100 * time.Millisecond) {
			if !there() {
				last = time.Since(start)
			}
		}
		t.Logf("settled after %s", last)
		if last > 2*time.Minute {
			t.Errorf("not settled after %s", last)
		}
	})
}

func TestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(3)
		converged(t, rings)
		second := identity.KeyFromSeed([32]byte{2})
		s.mu.Lock()
		s.trust = &identity.Trust{Issuers: []identity.TrustIssuer{{Key: s.issuer.Public()}, {Key: second.Public()}}}
		raw, err := identity.SignNodeRecord(second, identity.NodeRecord{
			Role: fleet.RoleAgent, Node: nodeID(4), Addr: hostAddr(4),
			Epoch: uint32(time.Now().Unix()), Expiry: uint32(time.Now().Unix()) + 1e6,
		})
		if err != nil {
			t.Fatal(err)
		}
		s.records[4] = raw
		s.mu.Unlock()
		four := s.start(4, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
		converged(t, append(rings[:3:3], four))
		s.mu.Lock()
		s.trust = &identity.Trust{Issuers: []identity.TrustIssuer{{Key: s.issuer.Public()}}}
		s.mu.Unlock()
		for _, r := range rings {
			<-drained(r.Changed())
			r.Recheck()
			if _, ok := find(r, 4); ok || alive(r) != 3 {
				t.Errorf("%s still has %v", r.cfg.Self, r.Members())
			}
			select {
			case <-r.Changed():
			default:
				t.Error("no change was signalled")
			}
		}
		time.Sleep(5 * time.Minute)
		for _, r := range rings {
			if _, ok := find(r, 4); ok {
				t.Errorf("%s took it in again", r.cfg.Self)
			}
		}
		// It comes back with a record that counts.
		s.mu.Lock()
		s.records[4] = s.record(4, nil)
		s.mu.Unlock()
		if err := four.UpdateRecord(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Minute, "it is back", func() bool {
			for _, r := range rings {
				if m, _ := find(r, 4); m.State != Alive {
					return false
				}
			}
			return true
		})
	})
}

// The key of a running ring is changed in two rounds, and nobody is doubted.
func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		rings := s.ring(4)
		converged(t, rings)
		old, next := testKeys[0], bytes.Repeat([]byte{9}, 32)
		for _, keys := range [][][]byte{{old, next}, {next, old}, {next}} {
			for _, r := range rings {
				if err := r.SetKeys(keys); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
			}
		}
		time.Sleep(time.Minute)
		for _, r := range rings {
			if st := r.Stats(); st.PacketsRefused > 0 || alive(r) != 4 {
				t.Errorf("%s: %+v, %d alive", r.cfg.Self, st, alive(r))
			}
		}
		if err := rings[0].SetKeys(nil); err == nil {
			t.Error("no keys were accepted")
		}
		// A host that keeps the old key is cut off.
		if err := rings[0].SetKeys([][]byte{old}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if rings[1].Stats().PacketsRefused == 0 {
			t.Error("packets under the old key were opened")
		}
	})
}

// Rings of two cells share a network and do not mix.
func TestCells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		seeds := []Seed{seedOf(1), seedOf(2), seedOf(3), seedOf(4)}
		var rings []*Ring
		for i := 1; i <= 4; i++ {
			cell := []string{"", "east"}[i%2]
			s.records[i] = s.record(i, func(r *identity.NodeRecord) { r.Cell = cell })
			rings = append(rings, s.start(i, func(c *Config) {
				c.Cell = cell
				c.Seeds = func() []Seed { return seeds }
			}))
		}
		time.Sleep(5 * time.Minute)
		for _, r := range rings {
			if alive(r) != 2 {
				t.Errorf("%s in cell %q sees %v", r.cfg.Self, r.cfg.Cell, r.Members())
			}
		}
	})
}

// The ring as a node runs it: over the one port, with certificates.
func TestOverTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t)
		root := identity.KeyFromSeed([32]byte{3})
		id := fleet.IDOf(root.Public())
		now := time.Now()
		rootDER, err := identity.NewRootCertificate(root, "test", now)
		if err != nil {
			t.Fatal(err)
		}
		issDER, err := identity.IssueIssuer(root, rootDER, nodeID(1), s.issuer.Public(), now)
		if err != nil {
			t.Fatal(err)
		}
		const n = 4
		nodes := make([]fleet.NodeID, n)
		var seeds []Seed
		for i := range n {
			nodes[i] = fleet.NodeIDOf(identity.KeyFromSeed([32]byte{4, byte(i)}).Public())
			seeds = append(seeds, Seed{Node: nodes[i], Address: hostAddr(i + 1).String()})
		}
		var rings []*Ring
		var ends sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(func() { cancel(); ends.Wait() })
		for i := range n {
			key := identity.KeyFromSeed([32]byte{4, byte(i)})
			der, err := identity.IssueAgent(s.issuer, issDER, nodes[i], key.Public(), now)
			if err != nil {
				t.Fatal(err)
			}
			cert := identity.TLSCertificate(key, der, issDER, rootDER)
			cfg := s.config(i + 1)
			tr, err := transport.New(transport.Config{
				Fleet: id, Listener: cfg.Listener, Packet: cfg.Packet, Dial: s.host(i + 1).DialContext,
				Agent: func() *tls.Certificate { return &cert }, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			ends.Go(func() { _ = tr.Run(ctx) })
			raw := s.record(i+1, func(r *identity.NodeRecord) { r.Node = nodes[i] })
			cfg.Fleet, cfg.Self, cfg.Record = id, nodes[i], func() []byte { return raw }
			cfg.Packet, cfg.Listener = tr.Packet(), tr.Listener(transport.Gossip)
			cfg.Dial = func(ctx context.Context, node fleet.NodeID, addr string) (net.Conn, error) {
				return tr.DialPeer(ctx, transport.Gossip, fleet.RoleAgent, addr, fleet.RoleAgent, node)
			}
			cfg.Seeds = func() []Seed { return seeds[:1] }
			r, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			rings = append(rings, r)
		}
		converged(t, rings)
		if _, err := rings[0].Join(t.Context(), []Seed{{Node: nodes[1], Address: hostAddr(3).String()}}); err == nil {
			t.Error("a join through another node than was meant succeeded")
		}
		time.Sleep(5 * time.Minute) // state exchanges
		for _, r := range rings {
			if st := r.Stats(); st.StreamsRefused+st.ClaimsRefused+st.RecordsRefused+st.PacketsRefused > 0 {
				t.Errorf("%s: %+v", r.cfg.Self, st)
			}
		}
	})
}

func TestPace(t *testing.T) {
	p := pace{first: time.Second, steady: 30 * time.Second, next: time.Second}
	got := []time.Duration{}
	for _, complete := range []bool{false, false, false, false, false, false, false, true, false} {
		got = append(got, p.after(complete, 0.5))
	}
	want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 30, 1}
	for i := range want {
		if got[i] != want[i]*time.Second {
			t.Fatalf("pauses %v, want %v seconds", got, want)
		}
	}
	if low, high := p.after(true, 0), p.after(true, 1); low != 22500*time.Millisecond || high != 37500*time.Millisecond {
		t.Errorf("jitter from %s to %s", low, high)
	}
	for _, c := range []struct {
		missing, alive int
		roll           float64
		want           bool
	}{
		{0, 1, 0, false}, {0, 100, 0, false}, {1, 1, 0.99, true}, {15, 15, 0.99, true}, {34, 100, 0.99, true},
		{1, 1000, 0.0029, true}, {1, 1000, 0.0031, false},
	} {
		if got := calls(c.missing, c.alive, c.roll); got != c.want {
			t.Errorf("missing %d of %d alive at %g: calls %v", c.missing, c.alive, c.roll, got)
		}
	}
	for n, want := range map[int]time.Duration{0: 0, 50: time.Second, 10000: longestJitter} {
		if got := startDelay(n, 1); got != want {
			t.Errorf("%d hosts start within %s, want %s", n, got, want)
		}
	}
}

func TestLogBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		bridge := newLogBridge(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})))
		cases := []struct{ line, want string }{
			{"[DEBUG] memberlist: detail\n", ""},
			{"[INFO] memberlist: Suspect x has failed\n", `level=INFO msg=memberlist text="Suspect x has failed"`},
			{"[WARN] memberlist: odd\n", `level=WARN msg=memberlist text=odd`},
			{"[ERR] memberlist: bad\n", `level=ERROR msg=memberlist text=bad`},
			{"[ERROR] memberlist: bad\n", `level=ERROR msg=memberlist text=bad`},
			{"Err: no level\n", `level=WARN msg=memberlist text="Err: no level"`},
			{"[odd] brackets", `level=WARN msg=memberlist text="[odd] brackets"`},
			{"[WARN] memberlist: two\nlines", `text="two\nlines"`},
			{"[WARN] memberlist: Binding to public address without encryption!\n", ""},
			{"[WARN] memberlist: " + strings.Repeat("x", 1000), strings.Repeat("x", logLine)},
		}
		for _, c := range cases {
			out.Reset()
			if n, err := bridge.Write([]byte(c.line)); n != len(c.line) || err != nil {
				t.Errorf("%q: %d, %v", c.line, n, err)
			}
			if got := out.String(); !strings.Contains(got, c.want) || (c.want == "") != (got == "") || len(got) > 700 {
				t.Errorf("%q: logged %q, want %q", c.line, got, c.want)
			}
		}
		time.Sleep(logInterval)
		out.Reset()
		for range 1000 {
			_, _ = bridge.Write([]byte("[WARN] memberlist: flood\n"))
		}
		if got := strings.Count(out.String(), "\n"); got != logBurst {
			t.Errorf("%d lines were logged, want %d", got, logBurst)
		}
		time.Sleep(logInterval)
		out.Reset()
		_, _ = bridge.Write([]byte("[WARN] memberlist: after\n"))
		if !strings.Contains(out.String(), "suppressed=980") {
			t.Errorf("logged %q", out.String())
		}
	})
}
