// Package quorum owns Raft: it makes and opens the stores, proposes entries,
// answers linearizable reads, and says who leads.
//
// Invariants:
//   - A store that is missing, emptied, cut off, damaged or another host's is
//     refused, never believed: a voter with an empty log would let a minority
//     elect a leader that lacks acknowledged entries. What cannot be told from
//     a crash is refused too.
//   - After any error of a store, or silence of the disk, this host votes and
//     leads no more: its Raft is cut off from the network at once and Fatal
//     asks for the end of the process. (After a failed fsync bbolt's next
//     commit claims success, and a leader with a hung disk would lead for ever,
//     since heartbeats need no disk.)
//   - A store that is an older copy of itself is found out by the others before
//     this host votes or acknowledges anything (rollback.go).
//   - Propose tells apart what was not proposed (safe to try elsewhere) from
//     what has an unknown outcome (safe to try again only with the same nonce).
//   - ReadIndex gives an index that covers every entry acknowledged anywhere
//     before it was called, or an error.
//   - Leader-only work runs only between the barrier of a term and its end, one
//     run at a time.
//
// Why not Raft's own notion of things: VerifyLeader accepts answers however old
// they are (see proof.go); AppliedIndex runs ahead of the state machine;
// entries of Raft itself never reach the state machine, so waiting for the
// commit index can last for ever. Pipelining is off: with it, a follower's
// stalled disk can wedge replication until the leader restarts.
package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// FSM is the state machine: *raftfsm.FSM outside tests. Apply returns a
// raftfsm.Answer.
type FSM interface {
	raft.FSM

	// Applied is the index of the last entry that Apply has completed, or that
	// Restore has brought.
	Applied() uint64
}

// Timing is how fast Raft notices that a peer is gone, and how patient it is.
// All must hold on every voter of a fleet; a slow network needs all larger
// together.
type Timing struct {
	Heartbeat time.Duration // a follower without a leader for 1 to 2 times this stands for election
	Lease     time.Duration // a leader without a majority for this steps down; at most Heartbeat
	Commit    time.Duration // followers learn within 1 to 2 times this what is committed when nothing follows
	RPC       time.Duration // one request to a peer, its disk included; a snapshot may take longer with its size
	Disk      time.Duration // a disk that has not answered for this is given up
}

// Timings for hosts, and for many nodes in one process.
var (
	DefaultTiming = Timing{
		Heartbeat: time.Second, Lease: 500 * time.Millisecond, Commit: 50 * time.Millisecond,
		RPC: 5 * time.Second, Disk: 10 * time.Second,
	}
	FastTiming = Timing{
		Heartbeat: 400 * time.Millisecond, Lease: 200 * time.Millisecond, Commit: 10 * time.Millisecond,
		RPC: 2 * time.Second, Disk: 10 * time.Second,
	}
)

// Raft's log is cut when a snapshot holds it. With entries of at most 256 KiB
// and usually far less than 1 KiB, the log stays within tens of megabytes.
const (
	snapshotThreshold = 8192 // entries since the last snapshot before the next is taken
	snapshotInterval  = 2 * time.Minute
	trailingLogs      = 8192 // entries kept behind a snapshot for followers that lag
	maxAppendEntries  = 64
)

// Limits of what is proposed and not decided yet. Above, Propose answers
// Throttled instead of queueing.
const (
	maxProposals     = 1024
	maxProposalBytes = 64 << 20
	enqueueTimeout   = 5 * time.Second // for Raft's main loop to take a proposal
)

// Config is what a Quorum needs. All fields without a default are required.
type Config struct {
	// Dir is the quorum directory (store.uuid, raft.db, snapshots/), made by
	// Create. Unused with Memory.
	Dir  string
	Self fleet.NodeID // also this host's address in Raft
	FSM  FSM

	// Listener yields authenticated connections of other quorum hosts; Dial
	// opens one to a host by its ID. Both must be restricted to identities with
	// the role quorum: who speaks here can stop or rewrite the fleet.
	Listener net.Listener
	Dial     func(ctx context.Context, node fleet.NodeID) (net.Conn, error)

	// Ask asks another quorum host what this one's store lacks (Vouch there); ""
	// is nothing. Voters are those of trust.json. Mark is what the state machine
	// has of a voter. Without Ask this host takes part at once, which is for
	// tests.
	Ask    func(ctx context.Context, node fleet.NodeID, s Standing) (missing string, err error)
	Voters func() []fleet.NodeID
	Mark   func(node fleet.NodeID) fleet.VoterMark

	// Applied asks another quorum host for its FSM's Applied. CaughtUp needs it.
	Applied func(ctx context.Context, node fleet.NodeID) (uint64, error)

	Timing Timing // zero: DefaultTiming

	// Memory keeps the stores in memory, for tests. Bootstrap, with Memory,
	// makes this host the only voter; on disk Create does.
	Memory    bool
	Bootstrap bool

	// Probe writes a few bytes to the disk of the store and returns when they are
	// there. Nil: to a file in Dir; with Memory none is written.
	Probe func() error

	// Fatal is called once when a store failed. The process must exit; until
	// then this Quorum decides nothing. It must not block and may be called
	// from any goroutine.
	Fatal func(error)

	Logger *slog.Logger
}

// Quorum is this host's part of the quorum. It is safe for concurrent use.
type Quorum struct {
	cfg     Config
	log     *slog.Logger
	raft    *raft.Raft
	trans   *raft.NetworkTransport
	stream  *streamLayer
	stores  *stores
	doubt   doubt
	reads   readBatches
	ctx     context.Context // done when Close has begun to end Raft
	cancel  context.CancelFunc
	workers sync.WaitGroup // own loops
	calls   gate           // calls of Raft that it must answer before it may be shut down
	dead    chan struct{}  // closed when a store failed
	ending  sync.Once      // of the end by a store

	admission admission
	marks     marks

	proposals     atomic.Int64
	proposalBytes atomic.Int64

	mu      sync.Mutex      // guards what follows
	term    uint64          // this host leads in and has passed the barrier of; 0: does not
	changed chan struct{}   // closed and replaced when term changes
	ended   raft.Future     // set when Raft was told to end
	writes  []time.Duration // what the last three writes of watchDisk took

	closeOnce sync.Once
	closeErr  error
}

// Open starts this host's part of the quorum from its stores. It returns an
// error with Kind Corrupt for a store that must not be believed, NotFound if
// there is none, and Conflict if another process has it open.
func Open(cfg Config) (*Quorum, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = DefaultTiming
	}
	var s *stores
	var err error
	if cfg.Memory {
		s, err = memoryStores(cfg.Self, cfg.Bootstrap)
	} else {
		s, err = openStores(cfg.Dir, cfg.Self, cfg.Logger)
	}
	if err != nil {
		return nil, err
	}
	return open(cfg, s, raftConfig(cfg))
}

// raftConfig is what all voters of a fleet have in common.
func raftConfig(cfg Config) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(cfg.Self)
	c.HeartbeatTimeout = cfg.Timing.Heartbeat
	// A candidate waits longer for votes than a follower for its leader: each of
	// the two writes twice before the vote counts, and a slow disk must not let
	// every election fail.
	c.ElectionTimeout = 2 * cfg.Timing.Heartbeat
	c.LeaderLeaseTimeout = cfg.Timing.Lease
	c.CommitTimeout = cfg.Timing.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.SnapshotThreshold = snapshotThreshold
	c.SnapshotInterval = snapshotInterval
	c.TrailingLogs = trailingLogs
	c.NoLegacyTelemetry = true
	c.ShutdownOnRemove = false // a removed host is told by its operator, and must be able to answer until then
	return c
}

func open(cfg Config, s *stores, rc *raft.Config) (q *Quorum, err error) {
	q = &Quorum{cfg: cfg, log: cfg.Logger, stores: s, dead: make(chan struct{}), changed: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	q.admission.open = make(chan struct{})
	q.doubt = doubt{limit: cfg.Timing.Lease, hold: 2 * cfg.Timing.RPC}
	q.reads.verify = q.verify
	q.stream = newStreamLayer(q.ctx, cfg)
	logger := bridge(cfg.Logger)
	rc.Logger = logger
	q.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: q.stream, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: cfg.Timing.RPC, Logger: logger, MsgpackUseNewTimeFormat: true,
	})
	defer func() {
		if p := recover(); p != nil { // how Raft says that its log has a hole
			err = damaged(cfg.Dir, "raft cannot start from it: %v", p)
		}
		if err != nil {
			q.cancel()
			err = errors.Join(err, q.trans.Close(), s.close())
			q.stream.wait()
		}
	}()
	guard := &guard{limit: cfg.Timing.Disk}
	logs, stable, snaps := s.guarded(guard)
	came, err := standing(logs, stable, snaps)
	if err != nil {
		return nil, fmt.Errorf("read how far the store has come: %w", err)
	}
	if q.marks.rows, err = logMarks(logs); err != nil {
		return nil, fmt.Errorf("read the marks in the log: %w", err)
	}
	gate := gatedTransport{provingTransport{q.trans, &q.doubt}, q, make(chan raft.RPC)}
	q.raft, err = raft.NewRaft(rc, cfg.FSM, logs, stable, snaps, gate)
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	guard.arm(q.die)
	q.workers.Go(gate.forward)
	if cfg.Ask == nil {
		close(q.admission.open)
	} else {
		q.workers.Go(func() { q.seekAdmission(came) })
	}
	q.doubt.tick(time.Now())
	q.workers.Go(q.followLeadership)
	q.workers.Go(q.watchPauses)
	probe := cfg.Probe
	if probe == nil && !cfg.Memory && cfg.Dir != "" {
		probe = diskProbe(cfg.Dir)
	}
	if probe != nil {
		q.workers.Go(func() { q.watchDisk(guard, probe) })
	}
	return q, nil
}

// storeError says what ended the store in dir and, where a person can do
// something, what.
func storeError(dir string, err error) error {
	if errors.Is(err, errDamaged) {
		return damaged(dir, "%w", err)
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fleet.Errorf(fleet.Unavailable, "quorum store: %w", err).
			WithHint("free some space on the disk of the data directory: the service starts again by itself, an agent in a terminal with fleet agent")
	}
	return fmt.Errorf("quorum store: %w", err)
}

// die ends this host's part in the quorum after a store failed.
func (q *Quorum) die(err error) { q.end(storeError(q.cfg.Dir, err)) }

// end ends this host's part in the quorum because of its store.
func (q *Quorum) end(err error) {
	q.ending.Do(func() {
		close(q.dead)
		q.giveUp()
		q.shutdown()        // no more votes
		_ = q.trans.Close() // no more heartbeats, so that the others elect; it never fails
		q.cfg.Fatal(err)
	})
}

// shutdown tells Raft to end and gives the one future that waits for it: of a
// second Shutdown, Raft returns one that does not.
func (q *Quorum) shutdown() raft.Future {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended == nil {
		q.ended = q.raft.Shutdown()
	}
	return q.ended
}

// Close hands leadership over, lets calls end and stops Raft. It returns when
// all has ended, or with an error when ctx is done first; then the process
// must exit without opening the store again.
func (q *Quorum) Close(ctx context.Context) error {
	q.closeOnce.Do(func() { q.closeErr = q.close(ctx) })
	return q.closeErr
}

// Abandon is Close without a farewell: for a host that is of the quorum no more.
// Its connections end first, so that nobody hears or counts it meanwhile, and if
// it leads it soon does no more, which answers the calls that are under way.
func (q *Quorum) Abandon(ctx context.Context) error {
	q.closeOnce.Do(func() {
		err := q.trans.Close()
		q.trans.CloseStreams()
		q.closeErr = errors.Join(err, q.finish(ctx))
	})
	return q.closeErr
}

func (q *Quorum) close(ctx context.Context) error {
	if q.IsLeader() {
		if err := q.TransferLeadership(ctx); err != nil {
			q.log.Debug("leadership not handed over", "err", err)
		}
	}
	return q.finish(ctx)
}

// finish lets calls end and stops Raft.
func (q *Quorum) finish(ctx context.Context) error {
	// Raft drops what is queued when it is shut down, and whoever waits for an
	// answer then waits for ever: no call may be under way.
	if err := q.calls.close(ctx, q.dead); err != nil {
		return fmt.Errorf("close quorum: calls under way: %w", err)
	}
	q.cancel()
	ended := q.shutdown()
	err := q.trans.Close()
	q.trans.CloseStreams()
	done := make(chan struct{})
	go func() { // ends with Raft, or with the process
		defer close(done)
		_ = ended.Error() // waits; always nil
		q.workers.Wait()
		q.stream.wait()
	}()
	select {
	case <-done:
		return errors.Join(err, q.stores.close())
	case <-ctx.Done():
		return fmt.Errorf("close quorum: %w", context.Cause(ctx))
	}
}

// Propose puts an entry into the log and returns what the state machine
// answered; the answer's Err is its refusal, with which every replica agrees.
// The error says that there is no answer:
//
//	NotLeader    another host leads (LeaderOf); nothing was proposed
//	NoQuorum     nobody is known to lead; nothing was proposed
//	Unavailable  Raft is stopping or busy; nothing was proposed
//	Throttled    too much is under way; nothing was proposed
//	TooLarge, Invalid  not an entry of this release; nothing was proposed
//	Unknown      it may be decided now, later or never
func (q *Quorum) Propose(ctx context.Context, b []byte) (raftfsm.Answer, error) {
	if len(b) > entry.MaxSize {
		return raftfsm.Answer{}, fleet.Errorf(fleet.TooLarge, "log entry of %d bytes: at most %d", len(b), entry.MaxSize)
	}
	// An entry that no voter can read would stop them all.
	if _, err := entry.Decode(b); err != nil {
		return raftfsm.Answer{}, fleet.Errorf(fleet.Invalid, "%w", err)
	}
	if err := ctx.Err(); err != nil {
		return raftfsm.Answer{}, fleet.Errorf(fleet.Unavailable, "not proposed: %w", err)
	}
	if !q.reserve(len(b)) {
		return raftfsm.Answer{}, fleet.Errorf(fleet.Throttled, "too many proposals are under way").
			WithHint("try again in a moment").RetryIn(time.Second)
	}
	if !q.calls.enter() {
		q.unreserve(len(b))
		return raftfsm.Answer{}, errStopping()
	}
	type outcome struct {
		answer raftfsm.Answer
		err    error
	}
	done := make(chan outcome, 1)
	go func() { // Close waits for it
		defer q.calls.leave()
		defer q.unreserve(len(b))
		answer, err := q.apply(b)
		done <- outcome{answer, err}
	}()
	select {
	case o := <-done:
		return o.answer, o.err
	case <-ctx.Done():
		return raftfsm.Answer{}, fleet.Errorf(fleet.Unknown, "proposed, and not decided in time: %w", context.Cause(ctx))
	case <-q.dead:
		return raftfsm.Answer{}, fleet.Errorf(fleet.Unknown, "proposed, then the store of %s failed", q.cfg.Self)
	}
}

func (q *Quorum) apply(b []byte) (raftfsm.Answer, error) {
	f := q.raft.ApplyLog(raft.Log{Data: b}, enqueueTimeout)
	if err := f.Error(); err != nil {
		return raftfsm.Answer{}, q.explain(err, f.Index() != 0)
	}
	answer, ok := f.Response().(raftfsm.Answer)
	if !ok {
		return raftfsm.Answer{}, fmt.Errorf("state machine answered entry %d with a %T", f.Index(), f.Response())
	}
	return answer, nil
}

func (q *Quorum) reserve(size int) bool {
	n, bytes := q.proposals.Add(1), q.proposalBytes.Add(int64(size))
	if n > maxProposals || bytes > maxProposalBytes {
		q.unreserve(size)
		return false
	}
	return true
}

func (q *Quorum) unreserve(size int) {
	q.proposals.Add(-1)
	q.proposalBytes.Add(-int64(size))
}

// explain turns an error of Raft into one of ours. inLog says that an entry of
// the call may be in the log.
func (q *Quorum) explain(err error, inLog bool) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return q.notLeader()
	case inLog:
		return fleet.Errorf(fleet.Unknown, "outcome unknown: %w", err)
	case errors.Is(err, raft.ErrRaftShutdown):
		return errStopping()
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fleet.Errorf(fleet.Unavailable, "raft did not take the call within %s: %w", enqueueTimeout, err)
	}
	return fleet.Errorf(fleet.Unknown, "outcome unknown: %w", err)
}

func errStopping() error { return fleet.Errorf(fleet.Unavailable, "this host is stopping") }

// NotLeaderError is in the chain of every error of Kind NotLeader.
type NotLeaderError struct {
	Leader fleet.NodeID // who leads, as far as this host knows
}

func (e *NotLeaderError) Error() string { return "the leader is " + string(e.Leader) }

// LeaderOf is the leader that a NotLeader error names; "" if err is none.
func LeaderOf(err error) fleet.NodeID {
	var e *NotLeaderError
	if errors.As(err, &e) {
		return e.Leader
	}
	return ""
}

func (q *Quorum) notLeader() error {
	leader := q.Leader()
	if leader == "" || leader == q.cfg.Self {
		return fleet.Errorf(fleet.NoQuorum, "no leader is elected").
			WithHint("try again in a moment; if it lasts, fewer than half of the voters reach each other")
	}
	return &fleet.Error{Kind: fleet.NotLeader, Message: fmt.Sprintf("%s does not lead", q.cfg.Self), Err: &NotLeaderError{Leader: leader}}
}

// Stats is for people; nothing is decided by it.
type Stats struct {
	State         string // "Leader", "Follower", "Candidate" or "Shutdown"
	Term          uint64
	LastIndex     uint64 // of the log
	CommitIndex   uint64
	Applied       uint64 // by the state machine
	LastContact   time.Time
	ProposalsOpen int64
}

// Stats tells how this host's part stands.
func (q *Quorum) Stats() Stats {
	return Stats{
		State: q.raft.State().String(), Term: q.raft.CurrentTerm(), LastIndex: q.raft.LastIndex(),
		CommitIndex: q.raft.CommitIndex(), Applied: q.cfg.FSM.Applied(), LastContact: q.LastContact(),
		ProposalsOpen: q.proposals.Load(),
	}
}

// LastContact is when a leader was last heard of; now if this host leads, zero
// if none ever was.
func (q *Quorum) LastContact() time.Time {
	if q.IsLeader() {
		return time.Now()
	}
	return q.raft.LastContact()
}

// gate counts calls and can be closed: then it lets none in and waits for
// those inside.
type gate struct {
	mu     sync.Mutex // guards what follows
	inside int
	closed bool
	empty  chan struct{} // closed by the last to leave a closed gate
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.closed && g.inside == 0 {
		close(g.empty)
	}
}

// close waits until all have left, or dead is closed and nobody will answer
// them.
func (g *gate) close(ctx context.Context, dead <-chan struct{}) error {
	g.mu.Lock()
	g.closed, g.empty = true, make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	select {
	case <-g.empty:
		return nil
	case <-dead:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
