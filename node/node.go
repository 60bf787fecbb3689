// Package node is one running host: New builds it from its data directory,
// Start starts it, Stop stops it. It decides nothing itself; it gives each
// part what it needs (the port, the stores, the way to the other hosts) and
// runs what belongs to every host: gossip, heartbeats, the agent, renewal.
// What only a host of the quorum runs is in member.go and may start while the
// host runs, when it is made eligible.
package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fleet/gossip"
	"fleet/node/api"
	"fleet/node/blob"
	"fleet/node/disk"
	"fleet/node/enrol"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/logging"
	"fleet/node/presence"
	"fleet/node/process"
	"fleet/node/relay"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/service"
	"fleet/node/transport"
)

// Timing is how fast a host does what it does again and again. The zero value
// is for production.
type Timing struct {
	Heartbeat time.Duration // presence.DefaultInterval when zero
	Fast      bool          // gossip and Raft for one machine: short timeouts
}

// Config is what a host is told.
type Config struct {
	DataDir   string
	Listen    string // "host:port" of the one port, TCP and UDP
	Advertise string // "ip:port" where others reach it; "" keeps what it enrolled with
	Socket    string // path of the local socket; "" opens none
	// DiskBudget is how many bytes outputs and journal may take in all;
	// DefaultDiskBudget when zero.
	DiskBudget int64
	Version    string // of the program
	Logger     *slog.Logger
	Levels     *logging.Levels // of Logger, to be changed at run time; nil: they are not ours
	Timing     Timing

	// Keeper finds the manager of the service that this agent is, under which
	// its program can be exchanged; nil: it is none. Signers are builders who
	// must all have signed a program that a command brings.
	Keeper  func() (service.Keeper, error)
	Signers []fleet.PublicKey

	// Program is the path of the file of the running program; "" finds it.
	Program string

	// Cgroups is where commands have control groups; nil makes none. Limits
	// bind each of them.
	Cgroups *process.Cgroups
	Limits  process.Limits

	// For tests: an in-memory network, in-memory Raft stores, other clocks and
	// children. Nil and false are the real ones.
	Listener net.Listener
	Packet   net.PacketConn
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Memory   bool
	Level    uint32 // the newest feature level that this host says it knows; 0: its release's
	Now      func() time.Time
	Starter  process.Starter
	// At is told of every step in the life of a command, Sync replaces the sync
	// of the journal.
	At failpoint.Hook
	// Direct is up to how many targets this host, as the leader, delivers itself.
	Direct int
	Sync   func(*os.File) error
}

// DefaultDiskBudget is how many bytes outputs and journal of one host may take.
const DefaultDiskBudget = 1 << 30

// stopTimeout bounds an orderly stop.
const stopTimeout = 15 * time.Second

// endTimeout is how long the parts have to end, each of which has a bound of
// its own.
const endTimeout = stopTimeout + 5*time.Second

// Node is one host.
type Node struct {
	cfg  Config
	log  *slog.Logger
	dir  *enrol.Dir
	info *enrol.Fleet
	root fleet.PublicKey
	key  identity.PrivateKey // agent key

	agentTLS  atomic.Pointer[tls.Certificate]
	quorumTLS atomic.Pointer[tls.Certificate] // nil until certified
	trustMu   sync.Mutex                      // held to replace trust, not to read it
	trust     atomic.Pointer[identity.Trust]
	retrust   chan struct{} // closed and replaced, under trustMu, when trust has changed
	installMu sync.Mutex    // held while this host becomes a quorum host
	record    atomic.Pointer[[]byte]
	member    atomic.Pointer[member] // nil on an ordinary host

	transport *transport.Transport
	rpcServer *rpc.Server
	rpc       *rpc.Client // speaks as an agent; a member has another
	disk      *disk.Budget
	blobs     *blob.Store
	journal   *journal.Journal
	runner    *runcmd.Runner
	relay     *relay.Relay
	direct    atomic.Bool // for comparison: as a leader it uses no relays
	clock     *presence.Clock
	beats     *presence.Beats
	touch     touch
	seen      *presence.Table
	ringLog   *slog.Logger
	ringRef   atomic.Pointer[gossip.Ring] // nil until this host has its node record
	ringKeys  ringKeys
	view      *view
	boot      string      // names this run of the agent
	unseat    chan string // why the quorum half is to end; see seat.go
	retired   atomic.Pointer[enrol.Retired]
	clones    atomic.Pointer[[]string] // where other hosts with this identity are heard from, as a voter says

	nodeName atomic.Pointer[string] // this host's, as the registry has it

	fenced atomic.Pointer[fleet.Warning] // nil unless the quorum store of this host was refused

	gone       atomic.Pointer[enrol.Gone] // nil while this host is of the fleet
	inFleet    context.Context            // ends with that, or when the host stops
	leaveFleet context.CancelFunc
	leaving    atomic.Bool // it is about to: nothing is started
	proving    atomic.Bool // the program is new and has to be confirmed: nothing is started
	leaveMu    sync.Mutex  // held while it does
	program    program
	inbound    inbound
	started    time.Time // when New was called
	proved     proofs

	ctx    context.Context // ends when the host stops
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	parts  sync.Mutex // guards closed
	closed bool       // no part is started any more

	stopping  atomic.Bool   // Stop was called
	ready     chan struct{} // closed when a voter has answered for the first time
	readyOnce sync.Once
	done      chan struct{} // closed when everything has ended, or has had its time to
}

// New opens the data directory and builds the host. It takes the port, the
// journal and the blobs, and starts nothing. On error it gives back what it took.
func New(cfg Config) (_ *Node, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.DiskBudget == 0 {
		cfg.DiskBudget = DefaultDiskBudget
	}
	prove, err := beginUpgraded(cfg)
	if err != nil {
		return nil, err
	}
	dir, info, err := enrol.OpenDir(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, dir: dir, info: info, root: info.Root(),
		log: cfg.Logger, started: cfg.Now(),
		seen:  presence.NewTable(cloneBeats * cmp.Or(cfg.Timing.Heartbeat, presence.DefaultInterval)),
		ready: make(chan struct{}), done: make(chan struct{}), retrust: make(chan struct{}), unseat: make(chan string, 1),
	}
	n.nodeName.Store(&info.NodeName)
	n.program = newProgram(cfg)
	n.proving.Store(prove)
	n.view = newView(n.cfg.Now)
	n.inbound.changed = make(chan struct{})
	n.ringLog = n.calmly("gossip") // made now, so that its level can be set before there is a ring
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	n.inFleet, n.leaveFleet = context.WithCancel(n.ctx)
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		n.cancel(err)
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	if err := n.loadIdentities(); err != nil {
		return nil, err
	}
	gone, err := dir.Gone()
	if err != nil {
		return nil, err
	}
	if gone != nil {
		n.gone.Store(gone)
		n.leaveFleet()
	}
	if n.boot, err = newInstance(); err != nil {
		return nil, err
	}
	if n.transport, err = transport.New(transport.Config{
		Fleet: info.Fleet, Listen: cfg.Listen, Listener: cfg.Listener, Packet: cfg.Packet, Dial: cfg.Dial,
		Agent: n.agentTLS.Load, Quorum: n.quorumTLS.Load, Admit: n.admit, Splice: n.Splice, Now: cfg.Now,
		Logger: n.log.With("component", "transport"),
	}); err != nil {
		return nil, err
	}
	undo = append(undo, n.transport.Close)
	n.rpc = rpc.NewClient(n.dialRPC(fleet.RoleAgent))
	undo = append(undo, n.rpc.Close)
	if err := n.openBlobs(); err != nil {
		return nil, err
	}
	if n.journal, err = journal.OpenHooked(dir.File("journal"), journal.Hooks{At: cfg.At, Sync: cfg.Sync}); err != nil {
		return nil, err
	}
	undo = append(undo, n.journal.Close)
	if err := n.buildAgent(); err != nil {
		return nil, err
	}
	n.buildRelay()
	n.buildRPC()
	return n, nil
}

// cloneBeats is for how many heartbeats two hosts of one identity are
// remembered as such.
const cloneBeats = 4

// newInstance names a run of the agent: the boot of the system, and a number
// that is drawn, since two hosts may share a kernel.
func newInstance() (string, error) {
	boot, err := process.BootID()
	if err != nil {
		return "", err
	}
	var drawn [8]byte
	if _, err := rand.Read(drawn[:]); err != nil {
		return "", fmt.Errorf("name this run: %w", err)
	}
	sum := fleet.Sum([]byte(boot))
	return hex.EncodeToString(sum[:8]) + "-" + hex.EncodeToString(drawn[:]), nil
}

func (n *Node) loadIdentities() error {
	if err := n.dir.FinishRetiring(); err != nil {
		return err
	}
	retired, err := n.dir.Retired()
	if err != nil {
		return err
	}
	n.retired.Store(retired)
	agent, err := n.dir.LoadIdentity(enrol.Agent)
	if err != nil {
		return fmt.Errorf("agent identity: %w", err)
	}
	n.key = agent.Key
	if id := fleet.NodeIDOf(agent.Key.Public()); id != n.info.Node {
		return fleet.Errorf(fleet.Corrupt, "the agent key in %s belongs to %s, fleet.json names %s", n.dir.Path(), id, n.info.Node)
	}
	cert := agent.TLS()
	n.agentTLS.Store(&cert)
	trust, err := n.dir.Trust(n.root)
	if err != nil {
		return err
	}
	n.trust.Store(trust)
	peers, err := n.dir.Peers()
	if err != nil {
		return err
	}
	n.view.setPeers(peers)
	if record, err := os.ReadFile(n.dir.File("keys/node.record")); err == nil {
		n.record.Store(&record)
	}
	quorum, err := n.dir.LoadIdentity(enrol.Quorum)
	switch {
	case err == nil:
		cert := quorum.TLS()
		n.quorumTLS.Store(&cert)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("quorum identity: %w", err)
	}
	return nil
}

// Start starts every part and returns; Ready tells when a voter has answered.
func (n *Node) Start(context.Context) error {
	if err := n.listenLocal(); err != nil {
		return err
	}
	go n.finish(n.carry())
	n.run("rpc", func(ctx context.Context) error { return n.rpcServer.Serve(ctx, n.transport.Listener(transport.RPC)) })
	n.run("join", func(ctx context.Context) error {
		return n.joinServer().Serve(ctx, n.transport.Listener(transport.Join))
	})
	n.run("seat", n.runSeat)
	if n.quorumTLS.Load() != nil && !n.recoveredWithout() {
		err := n.startMember()
		var refused *refusedStore
		if errors.As(err, &refused) {
			n.fence(refused.error)
		} else if err != nil {
			return errors.Join(err, n.Stop(context.Background()))
		}
	}
	n.run("agent", n.runner.Run)
	n.run("heartbeats", n.beats.Run)
	n.run("disk", n.runDisk)
	n.run("reverse connections", n.runReverse)
	n.run("gossip", n.runRing)
	n.run("renewal", n.runRenewal)
	n.run("standing", n.runStanding)
	n.run("upgrade", n.runUpgraded)
	n.run("recheck", n.runRecheck)
	if gone := n.gone.Load(); gone != nil {
		n.log.Error("this host is of the fleet no more and runs nothing", "reason", gone.Message)
	}
	return nil
}

// run runs a part until the host stops. A part that ends with an error stops
// the host: a host that lives on without one of its parts would lie about it.
// It reports false when the host has stopped and the part was not started.
func (n *Node) run(component string, part func(ctx context.Context) error) (started bool) {
	n.parts.Lock()
	defer n.parts.Unlock()
	if n.closed {
		return false
	}
	n.wg.Go(func() {
		if err := part(n.ctx); err != nil && n.ctx.Err() == nil {
			n.log.Error("part ended", "component", component, "err", err)
			n.cancel(fmt.Errorf("%s: %w", component, err))
		}
	})
	return true
}

// calmly is the logger of a part that is not ours and calls its end an error.
func (n *Node) calmly(component string) *slog.Logger {
	return n.calmlyUntil(component, n.stopping.Load)
}

// calmlyUntil is calmly for a part that may end before the host.
func (n *Node) calmlyUntil(component string, ending func() bool) *slog.Logger {
	return logging.Calm(n.log.With(logging.ComponentKey, component), ending)
}

// fatal stops the host after an error that it must not survive.
func (n *Node) fatal(err error) {
	n.log.Error("stopping", "err", err)
	n.cancel(err)
}

// carry runs the transport, which outlives every part that says farewell over
// it. It answers how to end it.
func (n *Node) carry() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.transport.Run(ctx); err != nil && ctx.Err() == nil {
			n.fatal(fmt.Errorf("transport: %w", err))
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// finish waits for the end and closes what is open. A part that a disk holds
// fast cannot end: then the host has ended without it, so that its process does
// and is started again.
func (n *Node) finish(endTransport func()) {
	<-n.ctx.Done()
	n.parts.Lock()
	n.closed = true
	n.parts.Unlock()
	ended := make(chan struct{})
	go func() { // ends with the last part, or with the process
		defer close(ended)
		n.wg.Wait()
		endTransport()
		if err := errors.Join(n.rpc.Close(), n.transport.Close(), n.journal.Close()); err != nil {
			n.log.Warn("not closed in order", "err", err)
		}
	}()
	late := time.NewTimer(endTimeout)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		n.log.Error("some parts did not end", "after", endTimeout.String())
	}
	close(n.done)
}

// errStopped is the cause of an ordered stop.
var errStopped = errors.New("stopped")

// Stop hands leadership over if this host leads, stops every part and waits.
// It may be called more than once.
func (n *Node) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	n.stopping.Store(true)
	if m := n.member.Load(); m != nil && n.ctx.Err() == nil {
		m.handOver(ctx)
	}
	n.cancel(errStopped)
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop: parts are still running: %w", context.Cause(ctx))
	}
}

// Ready is closed when a voter has answered this host for the first time.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Done is closed when the host has stopped.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the host stopped: nil while it runs and after Stop.
func (n *Node) Err() error {
	if err := context.Cause(n.ctx); err != nil && !errors.Is(err, errStopped) {
		return err
	}
	return nil
}

// ID is the host's node ID.
func (n *Node) ID() fleet.NodeID { return n.info.Node }

// Name is the host's name.
func (n *Node) Name() string { return *n.nodeName.Load() }

// Address is where others reach the host.
func (n *Node) Address() string { return n.advertised() }

// Leads reports whether this host leads the quorum now.
func (n *Node) Leads() bool {
	m := n.member.Load()
	return m != nil && m.quorum.Ready()
}

func (n *Node) role() string {
	m := n.member.Load()
	switch {
	case m == nil:
		return fleet.RoleNameAgent
	case n.trust.Load().IsVoter(n.info.Node, m.key.Public()):
		return fleet.RoleNameVoter
	default:
		return fleet.RoleNameEligible
	}
}

// admit is this host's check of a peer whose certificate is in order: an agent
// certificate counts only if its issuing key stands in trust.json and, where
// the registry is, if it is for the key in the node's row; Raft speaks only
// with hosts that trust.json or the configuration names.
func (n *Node) admit(p transport.Proto, peer identity.Peer) error {
	trust := n.trust.Load()
	m := n.member.Load()
	switch peer.Role {
	case fleet.RoleAgent:
		if m != nil {
			return m.admitAgent(p, peer, trust, n.cfg.Now())
		}
		if n.isRemoved(peer.Node) {
			return fleet.Errorf(fleet.Denied, "%s was removed from the fleet", peer.Node)
		}
		if !trust.Issuer(peer.Issuer, n.cfg.Now()) {
			return fleet.Errorf(fleet.Denied, "the certificate of %s was issued by a key that trust.json version %d does not name", peer.Node, trust.Version)
		}
	case fleet.RoleQuorum:
		for _, v := range trust.Voters {
			if v.Node == peer.Node && v.Key != peer.Key {
				return fleet.Errorf(fleet.Denied, "the quorum certificate of %s is not for the key that trust.json version %d names", peer.Node, trust.Version)
			}
		}
		// A certificate of the quorum lasts 400 days: who counts says trust.json,
		// and on hosts of the quorum Raft's configuration, which knows those that
		// are on their way in or out.
		if !trust.IsVoter(peer.Node, peer.Key) && (m == nil || !m.inConfiguration(peer.Node)) {
			return fleet.Errorf(fleet.Denied, "%s is not in this fleet's quorum by trust.json version %d", peer.Node, trust.Version)
		}
	}
	return nil
}

// setTrust follows trust.json by version. The bytes come from anyone: the root
// key's signature makes them true.
func (n *Node) setTrust(raw []byte) error {
	n.trustMu.Lock()
	defer n.trustMu.Unlock()
	next, err := identity.ParseTrust(raw, n.root)
	if err != nil {
		return err
	}
	held := n.trust.Load()
	if !next.NewerThan(held.Epoch, held.Version) {
		return nil
	}
	if err := n.dir.SaveTrust(next); err != nil {
		return err
	}
	n.trust.Store(next)
	close(n.retrust)
	n.retrust = make(chan struct{})
	n.log.Info("trust changed", "trust", next.Version, "epoch", next.Epoch, "voters", len(next.Voters), "k", next.K)
	if n.member.Load() == nil {
		n.recheck() // on a host of the quorum a moment later: see runRecheck
	}
	n.followTrust(held, next)
	return nil
}

// trustChanged is closed when a newer trust.json than now is held.
func (n *Node) trustChanged() <-chan struct{} {
	n.trustMu.Lock()
	defer n.trustMu.Unlock()
	return n.retrust
}

// recheck closes the connections of whoever does not count any more, and
// forgets them in the ring.
func (n *Node) recheck() {
	n.transport.Recheck()
	if ring := n.ringRef.Load(); ring != nil {
		ring.Recheck()
	}
}

const (
	// recheckEvery is how often every open connection is judged anew.
	recheckEvery = 10 * time.Second

	// trustGrace is how long a host of the quorum keeps connections that a new
	// trust.json ends: over them the hosts hear of it, and those whose
	// certificate counts no more get another. No new one is let in meanwhile.
	trustGrace = 5 * time.Second
)

// runRecheck judges open connections again and again: certificates end, and
// issuing keys, and Raft's configuration changes, without anybody saying so.
func (n *Node) runRecheck(ctx context.Context) error {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	var soon <-chan time.Time // nil while trust.json has not just changed
	for {
		changed := n.trustChanged()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			soon = time.After(trustGrace)
			ticker.Reset(recheckEvery)
		case <-soon:
			soon = nil
			n.recheck()
		case <-ticker.C:
			n.recheck()
		}
	}
}

// isRemoved reports whether a host is known here to be of the fleet no more. An
// ordinary host has it from a voter, which may lie: nothing but gossip and the
// connections of agents rests on it, and what trust.json names stands above it.
func (n *Node) isRemoved(id fleet.NodeID) bool {
	if m := n.member.Load(); m != nil {
		return m.fsm.Store().Removal(id) != nil
	}
	return n.view.isRemoved(id) && !slices.Contains(n.voters(), id)
}

// noUnixSockets is WSAEAFNOSUPPORT: Windows before 2018, and Wine.
const noUnixSockets = syscall.Errno(10047)

// listenLocal opens the local socket.
func (n *Node) listenLocal() error {
	if n.cfg.Socket == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(n.cfg.Socket), 0o755); err != nil {
		return fmt.Errorf("open local socket: %w", err)
	}
	l, err := api.ListenLocal(n.cfg.Socket)
	if runtime.GOOS == "windows" && errors.Is(err, noUnixSockets) {
		n.log.Warn("this Windows has no local sockets: commands on this host cannot ask its agent", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	n.run("local socket", func(ctx context.Context) error {
		return api.ServeLocal(ctx, l, n, n.log.With("component", "api"))
	})
	return nil
}
