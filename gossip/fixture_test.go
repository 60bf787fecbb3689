package gossip

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/memnet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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

const testFleet = fleet.ID("00112233445566778899aabbccddeeff")

var testKeys = [][]byte{bytes.Repeat([]byte{7}, 32)}

// nodeID is the ID of the i-th test host.
func nodeID(i int) fleet.NodeID { return fleet.NodeID(fmt.Sprintf("mi-%017x", i)) }

func hostAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7790)
}

// sim is a network with hosts 1 to n, whose records one issuing key signs.
type sim struct {
	t      testing.TB
	net    *memnet.Network
	issuer identity.PrivateKey

	mu      sync.Mutex // guards the rest
	trust   *identity.Trust
	records map[int][]byte
	seeds   []Seed
}

// newSim is for tests in a bubble.
func newSim(t testing.TB) *sim {
	t.Helper()
	s := &sim{t: t, net: memnet.New(1), issuer: identity.KeyFromSeed([32]byte{1}), records: make(map[int][]byte)}
	s.trust = &identity.Trust{Issuers: []identity.TrustIssuer{{Key: s.issuer.Public()}}}
	t.Cleanup(func() { // runs last
		s.net.Close()
		// memberlist does not wait for its goroutines and timers, and a bubble's
		// clock stops with its test: let them run out.
		time.Sleep(10 * time.Minute)
	})
	return s
}

// record signs a record of host i; change may alter it first.
func (s *sim) record(i int, change func(*identity.NodeRecord)) []byte {
	s.t.Helper()
	r := identity.NodeRecord{
		Role: fleet.RoleAgent, Node: nodeID(i), Addr: hostAddr(i),
		Epoch: uint32(time.Now().Unix()), Expiry: uint32(time.Now().Add(30 * 24 * time.Hour).Unix()),
	}
	if change != nil {
		change(&r)
	}
	raw, err := identity.SignNodeRecord(s.issuer, r)
	if err != nil {
		s.t.Fatal(err)
	}
	return raw
}

func (s *sim) verify(raw []byte) (identity.NodeRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return identity.VerifyNodeRecord(raw, s.trust, time.Now())
}

func (s *sim) host(i int) *memnet.Host { return s.net.Host(hostAddr(i).Addr().String()) }

func (s *sim) config(i int) Config {
	s.t.Helper()
	h := s.host(i)
	l, err := h.Listen("tcp", 7790)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := h.ListenPacket(7790)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[i] == nil {
		s.records[i] = s.record(i, nil)
	}
	return Config{
		Fleet: testFleet, Self: nodeID(i), Keys: testKeys,
		Record: func() []byte {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.records[i]
		},
		Verify: s.verify, Packet: p, Listener: l, Advertise: hostAddr(i),
		Dial: func(ctx context.Context, _ fleet.NodeID, addr string) (net.Conn, error) {
			return h.DialContext(ctx, "tcp", addr)
		},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// start starts the ring of host i; change may alter its configuration first.
func (s *sim) start(i int, change func(*Config)) *Ring {
	s.t.Helper()
	cfg := s.config(i)
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = r.Close() })
	return r
}

func seedOf(i int) Seed { return Seed{Node: nodeID(i), Address: hostAddr(i).String()} }

// ring starts hosts 1 to n, each with a rejoin loop over all of them.
func (s *sim) ring(n int) []*Ring {
	s.t.Helper()
	for i := 1; i <= n; i++ {
		s.seeds = append(s.seeds, seedOf(i))
	}
	rings := make([]*Ring, n)
	for i := range rings {
		rings[i] = s.start(i+1, func(c *Config) { c.Seeds = func() []Seed { return s.seeds } })
	}
	return rings
}

// alive is how many members a ring sees alive.
func alive(r *Ring) int {
	n := 0
	for _, m := range r.Members() {
		if m.State == Alive {
			n++
		}
	}
	return n
}

func find(r *Ring, i int) (Member, bool) {
	for _, m := range r.Members() {
		if m.Node == nodeID(i) {
			return m, true
		}
	}
	return Member{}, false
}

// eventually waits, in the bubble's time, until ok holds and says how long that
// took.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) <= within {
		if ok() {
			return time.Since(start)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: not within %s", what, within)
	return 0
}
