package quorum

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/memnet"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// registers is a small state machine: keys with values. An entry is an Address
// whose request is "key=value"; the answer's value is what the key had before.
type registers struct {
	mu      sync.Mutex // guards what follows
	values  map[string]string
	applied uint64
}

func newRegisters() *registers { return &registers{values: map[string]string{}} }

func set(key string, value any) []byte {
	b, err := entry.Encode(&entry.Address{Stamp: 1, Request: fmt.Appendf(nil, "%s=%v", key, value)})
	if err != nil {
		panic(err)
	}
	return b
}

func (r *registers) Apply(l *raft.Log) any {
	body, err := entry.Decode(l.Data)
	if err != nil {
		panic(err)
	}
	key, value, _ := strings.Cut(string(body.(*entry.Address).Request), "=")
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.values[key]
	r.applied = l.Index
	if value == "refused" {
		return raftfsm.Answer{Err: fleet.Errorf(fleet.Conflict, "refused"), Index: l.Index}
	}
	r.values[key] = value
	return raftfsm.Answer{Value: before, Index: l.Index}
}

func (r *registers) Applied() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied
}

func (r *registers) get(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.values[key]
}

func (r *registers) all() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.values)
}

type registersSnapshot struct {
	Values  map[string]string
	Applied uint64
}

func (r *registers) Snapshot() (raft.FSMSnapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return registersSnapshot{maps.Clone(r.values), r.applied}, nil
}

func (s registersSnapshot) Persist(sink raft.SnapshotSink) error {
	b, err := json.Marshal(s)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (registersSnapshot) Release() {}

func (r *registers) Restore(in io.ReadCloser) error {
	var s registersSnapshot
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.values, r.applied = s.Values, s.Applied
	return nil
}

// cluster is some hosts with a quorum over an in-memory network. What they
// store survives their restarts.
type cluster struct {
	t     *testing.T
	net   *memnet.Network
	nodes []*member
	log   *slog.Logger
	tune  func(*member, *raft.Config)
	trust []fleet.NodeID // voters of trust.json
}

type member struct {
	c      *cluster
	id     fleet.NodeID
	host   *memnet.Host
	mem    *raft.InmemStore
	snaps  *raft.InmemSnapshotStore
	logs   raft.LogStore // mem, or what a test puts before it
	stable raft.StableStore
	probe  func() error // nil: none
	fsm    *registers
	q      *Quorum
	up     atomic.Pointer[Quorum] // q while others may ask it
	mark   func(fleet.NodeID) fleet.VoterMark
	failed chan error // what Fatal was told
}

const raftPort = 7790

func nodeID(i int) fleet.NodeID { return fleet.NodeID(fmt.Sprintf("mi-%017x", i)) }

// newCluster starts n hosts, all of them voters.
func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, net: memnet.New(1), log: slog.New(slog.DiscardHandler)}
	if os.Getenv("QUORUM_LOG") != "" {
		c.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	c.net.SetLatency(time.Millisecond)
	var servers []raft.Server
	for range n {
		m := c.add()
		c.trust = append(c.trust, m.id)
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.id), Address: raft.ServerAddress(m.id)})
	}
	for _, m := range c.nodes {
		config := raftConfig(Config{Self: m.id, Timing: DefaultTiming})
		config.Logger = bridge(c.log)
		err := raft.BootstrapCluster(config, &logStore{m.mem, &guard{}}, &stableStore{StableStore: m.mem, guard: &guard{}}, m.snaps, nil,
			raft.Configuration{Servers: servers})
		if err != nil {
			t.Fatal(err)
		}
		m.start()
	}
	t.Cleanup(c.stop)
	return c
}

// add makes a host with empty stores; start starts it.
func (c *cluster) add() *member {
	i := len(c.nodes) + 1
	m := &member{c: c, id: nodeID(i), host: c.net.Host(fmt.Sprintf("10.0.0.%d", i)),
		mem: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
	m.logs, m.stable = m.mem, m.mem
	c.nodes = append(c.nodes, m)
	return m
}

func (c *cluster) byID(id fleet.NodeID) *member {
	for _, m := range c.nodes {
		if m.id == id {
			return m
		}
	}
	return nil
}

func (m *member) start() {
	m.c.t.Helper()
	l, err := m.host.Listen("tcp", raftPort)
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.fsm = newRegisters()
	m.failed = make(chan error, 10)
	failed := m.failed
	cfg := Config{
		Self: m.id, FSM: m.fsm, Listener: l, Timing: DefaultTiming, Logger: m.c.log.With("node", m.id),
		Dial: func(ctx context.Context, node fleet.NodeID) (net.Conn, error) {
			to := m.c.byID(node)
			if to == nil {
				return nil, fmt.Errorf("no node %s", node)
			}
			return m.host.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", to.host.Addr(), raftPort))
		},
		Applied: func(_ context.Context, node fleet.NodeID) (uint64, error) {
			return m.c.byID(node).fsm.Applied(), nil
		},
		Probe: m.probe,
		Ask:   m.ask, Mark: m.mark, Voters: func() []fleet.NodeID { return m.c.trust },
		Fatal: func(err error) { failed <- err },
	}
	rc := raftConfig(cfg)
	if m.c.tune != nil {
		m.c.tune(m, rc)
	}
	m.q, err = open(cfg, &stores{logs: m.logs, stable: m.stable, snaps: m.snaps}, rc)
	if err != nil {
		m.c.t.Fatalf("start %s: %v", m.id, err)
	}
	m.up.Store(m.q)
}

// ask is a host's question to another, if it gets there.
func (m *member) ask(ctx context.Context, node fleet.NodeID, s Standing) (string, error) {
	to := m.c.byID(node)
	if to == nil {
		return "", fmt.Errorf("no node %s", node)
	}
	conn, err := m.host.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", to.host.Addr(), raftPort))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	q := to.up.Load()
	if q == nil {
		return "", fmt.Errorf("%s is not up", node)
	}
	return q.Vouch(m.id, s)
}

// crash ends a host as a power cut does: nobody hears of it. (What its
// goroutines do until they notice stays on the host.)
func (m *member) crash() {
	m.host.Down()
	m.close(10 * time.Second)
	m.host.Up()
}

func (m *member) close(limit time.Duration) {
	m.c.t.Helper()
	if m.q == nil {
		return
	}
	m.up.Store(nil)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := m.q.Close(ctx); err != nil {
		m.c.t.Errorf("close %s: %v", m.id, err)
	}
	m.q = nil
}

func (c *cluster) stop() {
	c.net.HealAll()
	for _, m := range c.nodes {
		m.close(time.Minute)
	}
	c.net.Close()
	time.Sleep(time.Minute) // timers of Raft's that nobody stops
}

// leader waits until some host is ready to lead.
func (c *cluster) leader(except ...*member) *member {
	c.t.Helper()
	for range 600 {
	nodes:
		for _, m := range c.nodes {
			for _, e := range except {
				if m == e {
					continue nodes
				}
			}
			if m.q != nil && m.q.Ready() {
				return m
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatal("no leader within a minute")
	return nil
}

// propose decides one entry through whoever leads, and fails the test if that
// takes long.
func (c *cluster) propose(key string, value any) {
	c.t.Helper()
	for range 100 {
		m := c.leader()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		answer, err := m.q.Propose(ctx, set(key, value))
		cancel()
		if err == nil && answer.Err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("%s=%v was not decided", key, value)
}

// converge waits until all running hosts have the same values.
func (c *cluster) converge() map[string]string {
	c.t.Helper()
	var states []map[string]string
	for range 600 {
		states = states[:0]
		same := true
		for _, m := range c.nodes {
			if m.q == nil {
				continue
			}
			states = append(states, m.fsm.all())
			same = same && maps.Equal(states[0], states[len(states)-1])
		}
		if same {
			return states[0]
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("states differ: %v", states)
	return nil
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 600 {
		if cond() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not within a minute: %s", what)
}
