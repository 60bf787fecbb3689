package runcmd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"fleet/node/blob"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/process"
	"fleet/node/ticket"
	"fleet/node/wire"
)

// world is a fleet of three voters as one of its hosts sees it. All of its keys
// and times follow from nothing else, so that a second process can be in it.
type world struct {
	fleet   fleet.ID
	trust   *identity.Trust
	voters  []identity.PrivateKey
	host    identity.PrivateKey
	targets []fleet.NodeID
	index   uint32
	begin   time.Time
}

func keyOfSeed(n byte) identity.PrivateKey { return identity.KeyFromSeed([32]byte{n}) }

func newWorld(begin time.Time) *world {
	// The host is another one each time: processes of commands are found by its
	// ID, and tests of two checkouts may run on one machine.
	host := identity.KeyFromSeed(sha256.Sum256([]byte(strconv.FormatInt(begin.UnixNano(), 10))))
	w := &world{fleet: fleet.IDOf(keyOfSeed(1).Public()), host: host, begin: begin}
	w.trust = &identity.Trust{Fleet: w.fleet, Epoch: 1, Version: 3, K: 2}
	for n := byte(10); n < 13; n++ {
		voter := keyOfSeed(n)
		w.voters = append(w.voters, voter)
		w.trust.Voters = append(w.trust.Voters, identity.TrustVoter{Node: fleet.NodeIDOf(keyOfSeed(n + 100).Public()), Key: voter.Public()})
	}
	for n := byte(20); n < 25; n++ {
		w.targets = append(w.targets, fleet.NodeIDOf(keyOfSeed(n).Public()))
	}
	w.index = 3
	w.targets[w.index] = w.self()
	return w
}

func (w *world) self() fleet.NodeID { return fleet.NodeIDOf(w.host.Public()) }

func commandID(n int) fleet.CommandID {
	return fleet.CommandID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

func commandKey(n int) journal.Key { return journal.Key{Command: commandID(n), Attempt: 1} }

// order is a command before it is signed.
type order struct {
	ticket     ticket.Ticket
	document   []byte
	parameters []byte
}

// order makes the n-th command: a document with parameters, for a minute from
// the beginning of the world on.
func (w *world) order(n int, doc string, parameters map[string][]string) *order {
	o := &order{document: []byte(doc), parameters: wire.MustMarshal(wire.StringMap(parameters))}
	o.ticket = ticket.Ticket{
		Version: ticket.Version, Kind: ticket.KindCommand, Fleet: w.fleet, Epoch: 1, Command: commandID(n), Attempt: 1,
		Document: fleet.Sum(o.document), Parameters: fleet.Sum(o.parameters), Targets: uint32(len(w.targets)), Root: ticket.Root(w.targets),
		Created: w.begin.UnixNano(), Mint: 1, NotBefore: w.begin.UnixNano(), NotAfter: w.begin.Add(time.Minute).UnixNano(),
		Expires: w.begin.Add(time.Hour).UnixNano(),
	}
	return o
}

// shell orders the built-in document with a script.
func (w *world) shell(n int, script string) *order {
	content, _, _ := document.Builtin("AWS-RunShellScript")
	return w.order(n, string(content), map[string][]string{"commands": {script}, "executionTimeout": {"60"}})
}

// delivery is the order as it reaches the host, signed by the voters.
func (w *world) delivery(o *order, voters ...identity.PrivateKey) Delivery {
	if voters == nil {
		voters = w.voters[:2]
	}
	signed := ticket.Signed{Ticket: o.ticket.Bytes()}
	for _, v := range voters {
		signed.Signatures = append(signed.Signatures, ticket.Sign(v, signed.Ticket))
	}
	return Delivery{
		Ticket: signed.Encode(), Index: w.index, Path: ticket.Path(w.targets, int(w.index)),
		Document: o.document, DocumentName: "Test", Parameters: o.parameters,
	}
}

// clock is a fleet time that a test sets; now nil is the real one.
type clock struct {
	mu     sync.Mutex // guards what follows
	now    func() time.Time
	offset time.Duration
	lost   bool
}

func (c *clock) FleetTime() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost {
		return time.Time{}, false
	}
	return c.now().Add(c.offset), true
}

func (c *clock) set(offset time.Duration, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset, c.lost = offset, lost
}

// quorum takes reports.
type quorum struct {
	mu      sync.Mutex // guards what follows
	err     error      // answer to reports
	results []*ticket.SignedResult
	details []*Detail
	blobs   [][]fleet.Digest
	tries   int
}

func (q *quorum) report(_ context.Context, result, detail []byte, blobs []fleet.Digest) (uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tries++
	if q.err != nil {
		return 0, q.err
	}
	r, err := ticket.ParseResult(result)
	if err != nil {
		return 0, err
	}
	var d *Detail
	if len(detail) > 0 {
		if fleet.Sum(detail) != r.Detail || int(r.DetailSize) != len(detail) {
			return 0, fmt.Errorf("the details are not those of the result")
		}
		if d, err = ParseDetail(detail); err != nil {
			return 0, err
		}
	}
	q.results = append(q.results, r)
	q.details = append(q.details, d)
	q.blobs = append(q.blobs, blobs)
	return uint64(100 + len(q.results)), nil
}

func (q *quorum) refuse(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
}

func (q *quorum) got() ([]*ticket.SignedResult, []*Detail) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]*ticket.SignedResult(nil), q.results...), append([]*Detail(nil), q.details...)
}

// host is one runner of a world, with what it stands on.
type host struct {
	*Runner
	w       *world
	dir     string
	clock   *clock
	quorum  *quorum
	journal *journal.Journal
	blobs   *blob.Store
	log     *bytes.Buffer
	logMu   sync.Mutex // guards log
	stop    context.CancelFunc
	ended   chan error
}

func (h *host) Write(b []byte) (int, error) {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	return h.log.Write(b)
}

// newHost opens a host in dir, which keeps what was there; it does not run yet.
func (w *world) newHost(t testing.TB, dir string, change func(*Config)) *host {
	t.Helper()
	path := filepath.Join(dir, "journal")
	if _, err := os.Stat(path); err != nil {
		if err := journal.Create(path, w.begin.UnixNano()); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{w: w, dir: dir, clock: &clock{now: time.Now}, quorum: &quorum{}, log: &bytes.Buffer{}}
	var err error
	if h.journal, err = journal.Open(path); err != nil {
		t.Fatal(err)
	}
	if h.blobs, err = blob.Open(filepath.Join(dir, "blob"), 64<<20); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Self: w.self(), Fleet: w.fleet, Key: w.host, Journal: h.journal, Blobs: h.blobs, Dir: filepath.Join(dir, "work"),
		Trust: func() *identity.Trust { return w.trust }, Clock: h.clock, Report: h.quorum.report,
		Logger: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	if h.Runner, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.stop != nil {
			h.halt(t)
		}
		_ = h.journal.Close()
		_ = h.blobs.Close()
	})
	return h
}

// start runs the host.
func (h *host) start() {
	ctx, cancel := context.WithCancel(context.Background())
	h.stop, h.ended = cancel, make(chan error, 1)
	go func() { h.ended <- h.Run(ctx) }()
}

// halt stops the host as an orderly stop does, and closes what it has.
func (h *host) halt(t testing.TB) {
	t.Helper()
	h.stop()
	if err := <-h.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	h.stop = nil
	_ = h.journal.Close()
	_ = h.blobs.Close()
}

func (h *host) deliver(t testing.TB, d Delivery) Answer {
	t.Helper()
	a, err := h.Deliver(t.Context(), d)
	if err != nil {
		t.Fatalf("deliver: %v", err)
	}
	return a
}

// reports waits until the quorum has n results.
func (h *host) reports(t testing.TB, n int) ([]*ticket.SignedResult, []*Detail) {
	t.Helper()
	for range 200_000 {
		if results, details := h.quorum.got(); len(results) >= n {
			for _, r := range results {
				if err := r.Verify(h.w.host.Public()); err != nil {
					t.Errorf("result: %v", err)
				}
				if r.Index != h.w.index || r.Fleet != h.w.fleet || r.Attempt != 1 {
					t.Errorf("result %+v", r.Result)
				}
			}
			return results, details
		}
		time.Sleep(time.Millisecond)
	}
	h.logMu.Lock()
	defer h.logMu.Unlock()
	t.Fatalf("the quorum does not have %d results; log:\n%s", n, h.log)
	return nil, nil
}

// children are the processes of a test, which are not started.
type children struct {
	mu   sync.Mutex // guards what follows
	runs int
	now  int // running
	peak int
	do   func(ctx context.Context, spec process.Spec) process.Exit
}

func (c *children) start(ctx context.Context, spec process.Spec) (process.Exit, error) {
	if spec.Spawned != nil {
		if err := spec.Spawned(process.Identity{PID: 4242, Start: 1, Boot: "boot", Mark: spec.Mark}); err != nil {
			return process.Exit{}, err
		}
	}
	c.mu.Lock()
	c.runs++
	c.now++
	c.peak = max(c.peak, c.now)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.now--
		c.mu.Unlock()
	}()
	if c.do == nil {
		return process.Exit{}, nil
	}
	return c.do(ctx, spec), nil
}

func (c *children) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.runs
}

// sleeping is a child that takes d unless it is cancelled.
func sleeping(d time.Duration) func(ctx context.Context, spec process.Spec) process.Exit {
	return func(ctx context.Context, spec process.Spec) process.Exit {
		timer := time.NewTimer(min(d, spec.Timeout))
		defer timer.Stop()
		select {
		case <-timer.C:
			if d > spec.Timeout {
				return process.Exit{Code: 143, Signal: 15, TimedOut: true}
			}
			return process.Exit{}
		case <-ctx.Done():
			_, _ = spec.Stdout.Write([]byte("cut off"))
			return process.Exit{Code: 143, Signal: 15, Cancelled: true}
		}
	}
}
