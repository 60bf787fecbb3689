// Package runcmd runs the commands that the quorum orders on this host: it
// takes deliveries, keeps each in the journal, runs the document's steps, and
// reports the signed result until the quorum has it.
//
//   - Nothing runs without a ticket that enough voters signed, that names this
//     host, and that is for now by the time of the fleet. Who brought it does
//     not count.
//   - Nothing runs twice. A command is in the journal before it is accepted,
//     marked started there, on disk, before its first process exists, and its
//     result is there before it leaves. A second delivery gets the state of
//     the first. What a crash cut off is Interrupted and is not run again,
//     unless its document says that it may be.
//   - Every accepted command gets exactly one result, and this host says it:
//     also that it came too late, that it was refused, or that it was cut off.
//   - What a voter's signed word cancelled does not start, and what it finds
//     running is ended: the journal has it first, so that no crash brings it
//     back. What had ended by itself keeps its result.
//   - A staged command waits in the journal until a voter's signed word says that
//     its turn has come, and begins by the time that stands there or never. The
//     journal holds nothing of that word: what a crash took comes again, and
//     whoever sends it asks until this host says that it began.
//   - Everything is bounded: deliveries that wait, commands that run, output
//     that is kept, results that wait for the quorum. What is over a bound is
//     answered NotReady and comes again.
//
// What decides is pure and stands apart: judge.go (may it run), flow.go (which
// step is next, what does its end mean). An error of the journal's disk ends
// Run, and the process with it: what is on disk is not known then.
package runcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
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

// Defaults of a Config.
const (
	DefaultMaxParallel = 5 // as SSM's agent
	DefaultMaxQueue    = 200
	DefaultStreamCap   = 10 << 20 // bytes
)

// Limits that are not configured.
const (
	maxUnreported = 1000      // results that wait for the quorum
	maxParallelIn = 64        // Config.MaxParallel
	maxDelivery   = 512 << 10 // bytes of document, parameters and ticket
)

// Clock is the time of the fleet: what enough voters said within the last
// minutes, or false.
type Clock interface {
	FleetTime() (time.Time, bool)
}

// Report brings a result to the quorum: first the blobs, then the result with
// its details. It answers the log index that holds the result. It is called
// again until it succeeds, for the same result too.
type Report func(ctx context.Context, result, detail []byte, blobs []fleet.Digest) (index uint64, err error)

// Config is what a Runner is made of. What has no default must be set.
type Config struct {
	Self    fleet.NodeID
	Fleet   fleet.ID
	Key     identity.PrivateKey // agent key: signs results
	Journal *journal.Journal
	Blobs   *blob.Store

	// Dir is where commands have their directories, each 0700 and gone after
	// the command; it is made if it does not exist. For commands that run as
	// another user, that user must be able to pass through its parents.
	Dir string

	// Cgroups is where each command has a control group of its own, which has
	// Limits as far as they bind a control group; nil makes none.
	Cgroups *process.Cgroups
	Limits  process.Limits

	// Space is nil unless the disk is so full that no command may be begun; nil
	// does not ask.
	Space func() error

	Trust  func() *identity.Trust // newest held
	Clock  Clock
	Report Report

	Plugins Plugins                                                     // default: StandardPlugins
	Starter process.Starter                                             // default: process.Run
	Kill    func(ctx context.Context, id process.Identity) (int, error) // default: Cgroups.KillLeftover
	Boot    func() (string, error)                                      // default: process.BootID
	Account func(name string) (process.Account, error)                  // default: process.LookupUser
	Now     func() time.Time                                            // this host's clock; default: time.Now
	Logger  *slog.Logger                                                // default: none

	MaxParallel int   // commands that run at once, at most 64
	MaxQueue    int   // commands that wait for their turn
	StreamCap   int64 // bytes kept of each output of a step
}

// StandardPlugins are the plugins of this release on this platform.
func StandardPlugins() Plugins {
	p := Plugins{ActionShell: Shell{}, ActionPowerShell: PowerShell{}, ActionScript: Script{}}
	if runtime.GOOS == "windows" {
		p[ActionShell] = nil
	}
	return p
}

func platform() string {
	switch runtime.GOOS {
	case "windows":
		return document.PlatformWindows
	case "darwin":
		return document.PlatformMacOS
	}
	return document.PlatformLinux
}

// Delivery is a command as it reaches the host.
type Delivery struct {
	Ticket       []byte     // ticket.Signed
	Index        uint32     // of this host among the targets
	Path         [][32]byte // shows that the ticket's targets hold this host there
	Document     []byte
	DocumentName string
	Parameters   []byte // canonical msgpack of map[string][]string
}

// Answer is what the host has to say about a command.
type Answer struct {
	State  State
	Result []byte // signed; with Done, and with Refused when the ticket was genuine
	Detail []byte // with Result; nil once the quorum has it and the blob is gone
	Reason string // for a person, at most 256 bytes
}

// Runner runs commands. Deliver and Query may be used from New on.
type Runner struct {
	cfg  Config
	dir  *os.Root
	wake chan struct{} // a worker may find something in queue
	more chan struct{} // there may be something new in staged
	news chan struct{} // the reporter may find something in fresh
	dead chan error    // the journal failed

	deliveries sync.Mutex // one decision about a delivery at a time
	documents  parsed

	mu         sync.Mutex // guards what follows
	queue      []journal.Key
	staged     map[journal.Key]int64                   // accepted, waiting for a Release until this time
	turns      map[journal.Key]*turn                   // of what was released since this host started
	running    map[journal.Key]context.CancelCauseFunc // out of the queue, with a worker
	open       int                                     // accepted, without a result
	fresh      []journal.Key                           // finished, the reporter has not seen them yet
	unreported int                                     // finished and not acknowledged
	sole       chan struct{}                           // nil unless a step is alone or waits to be; told when a command has left
	climbers   map[journal.Key][]*Climber              // who sends results up through relays
	acked      []acked                                 // the reporter has not seen them yet
}

// New opens the runner's directory and takes up what the journal holds. It
// starts nothing.
func New(cfg Config) (*Runner, error) {
	if cfg.Journal == nil || cfg.Blobs == nil || cfg.Trust == nil || cfg.Clock == nil || cfg.Report == nil ||
		cfg.Key.IsZero() || cfg.Dir == "" {
		return nil, errors.New("runcmd: an incomplete configuration")
	}
	cfg = cfg.withDefaults()
	if cfg.MaxParallel < 1 || cfg.MaxParallel > maxParallelIn || cfg.MaxQueue < 1 || cfg.StreamCap < MaxInline {
		return nil, fmt.Errorf("runcmd: limits of %d, %d and %d", cfg.MaxParallel, cfg.MaxQueue, cfg.StreamCap)
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("runcmd: %w", err)
	}
	// Others may pass through, to directories of their own, and see nothing.
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("runcmd: %w", err)
	}
	if err := process.CheckOwnDir(cfg.Dir); err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("runcmd: %w", err)
	}
	r := &Runner{
		cfg: cfg, dir: dir,
		wake: make(chan struct{}, 1), more: make(chan struct{}, 1), news: make(chan struct{}, 1), dead: make(chan error, 1),
		staged: map[journal.Key]int64{}, turns: map[journal.Key]*turn{}, running: map[journal.Key]context.CancelCauseFunc{},
	}
	for _, e := range cfg.Journal.Entries() {
		switch {
		case e.Finished == nil:
			if until, ok := waits(&e); ok {
				r.staged[e.Key] = until
			} else {
				r.queue = append(r.queue, e.Key)
			}
			r.open++
		case e.Acknowledged == 0 && e.Ticket != nil: // else: see cancelUnmet
			r.fresh = append(r.fresh, e.Key)
			r.unreported++
			for _, d := range e.Finished.Blobs {
				cfg.Blobs.Pin(d)
			}
		}
	}
	return r, nil
}

func (c Config) withDefaults() Config {
	if c.Plugins == nil {
		c.Plugins = StandardPlugins()
	}
	if c.Starter == nil {
		c.Starter = process.Run
	}
	if c.Kill == nil {
		c.Kill = c.Cgroups.KillLeftover
	}
	if c.Boot == nil {
		c.Boot = process.BootID
	}
	if c.Account == nil {
		c.Account = process.LookupUser
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxParallel == 0 {
		c.MaxParallel = DefaultMaxParallel
	}
	if c.MaxQueue == 0 {
		c.MaxQueue = DefaultMaxQueue
	}
	if c.StreamCap == 0 {
		c.StreamCap = DefaultStreamCap
	}
	return c
}

// Run runs what is delivered, first what a crash left, until ctx ends; then it
// ends what is running, journals that, and returns nil. An error says that the
// journal failed: the process must exit.
func (r *Runner) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.sweep()
	var wg sync.WaitGroup
	for range r.cfg.MaxParallel {
		wg.Go(func() { r.work(ctx) })
	}
	wg.Go(func() { r.report(ctx) })
	wg.Go(func() { r.keepHouse(ctx) })
	wg.Go(func() { r.giveUpTurns(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-r.dead:
		cancel(err)
	}
	wg.Wait()
	if err == nil {
		select { // while the last commands were being ended
		case err = <-r.dead:
		default:
		}
	}
	if cerr := r.dir.Close(); err == nil && cerr != nil {
		r.cfg.Logger.Warn("directory of commands not closed", "err", cerr)
	}
	return err
}

// Deliver takes a command from the quorum. It returns when the command is on
// disk or was refused, not when it has run. The error says that the journal
// failed.
func (r *Runner) Deliver(_ context.Context, d Delivery) (Answer, error) {
	signed, err := ticket.ParseSigned(d.Ticket)
	if err != nil {
		return refusal(err.Error()), nil
	}
	t, err := ticket.Parse(signed.Ticket)
	if err != nil {
		return refusal(err.Error()), nil
	}
	if a, ok := r.Query(t.Command, t.Attempt); ok {
		return a, nil
	}
	if err := r.genuine(signed, d); err != nil {
		r.cfg.Logger.Warn("delivery refused", "command", t.Command, "err", err)
		return refusal(err.Error()), nil
	}
	// Before the lock: a directory service that is asked for the user may take
	// seconds, in which other deliveries, and cancels, must go on.
	_, unfit := r.prepare(d.Document, d.Parameters, t)
	r.deliveries.Lock()
	defer r.deliveries.Unlock()
	if a, ok := r.Query(t.Command, t.Attempt); ok { // it came twice at once, or was cancelled meanwhile
		return a, nil
	}
	now, known := r.cfg.Clock.FleetTime()
	rule := judge(t, now, known, r.cfg.Journal.Admits(t.Created, t.Expires))
	if rule.state == Accepted {
		rule = r.capable(t, unfit)
	}
	switch rule.state {
	case Accepted:
		return r.accept(t, d)
	case Refused:
		return r.refuse(t, d, rule)
	default:
		return Answer{State: rule.state, Reason: cut(rule.reason, maxReason)}, nil
	}
}

// refusal is the answer to what this host does not put its name to.
func refusal(reason string) Answer { return Answer{State: Refused, Reason: cut(reason, maxReason)} }

// genuine checks that the quorum ordered exactly this of this host.
func (r *Runner) genuine(signed *ticket.Signed, d Delivery) error {
	t, err := signed.Verify(r.cfg.Trust())
	if err != nil {
		return err
	}
	switch {
	case t.Fleet != r.cfg.Fleet:
		return fleet.Errorf(fleet.Denied, "the ticket is of another fleet")
	case !ticket.VerifyPath(t.Root, t.Targets, d.Index, r.cfg.Self, d.Path):
		return fleet.Errorf(fleet.Denied, "the ticket does not name this host")
	case fleet.Sum(d.Document) != t.Document:
		return fleet.Errorf(fleet.Denied, "the document is not the one that the ticket names")
	case fleet.Sum(d.Parameters) != t.Parameters:
		return fleet.Errorf(fleet.Denied, "the parameters are not those that the ticket names")
	case len(d.Document)+len(d.Parameters)+len(d.Ticket) > maxDelivery:
		return fleet.Errorf(fleet.TooLarge, "the command has more than %d bytes", maxDelivery)
	}
	return nil
}

// capable decides whether this host can run what the quorum ordered; unfit is
// what is wrong with that itself.
func (r *Runner) capable(t *ticket.Ticket, unfit error) ruling {
	if len(t.Nested) > 0 {
		const reason = "documents that run documents are not supported by this version of fleet"
		return ruling{state: Refused, result: fleet.Undeliverable, reason: reason}
	}
	if fleet.KindOf(unfit) == fleet.Unavailable { // a directory of users that does not answer
		return ruling{state: NotReady, reason: unfit.Error()}
	}
	if unfit != nil {
		return ruling{state: Refused, result: fleet.Undeliverable, reason: unfit.Error()}
	}
	if r.cfg.Space != nil {
		if err := r.cfg.Space(); err != nil {
			// Said at once, not after the time of the command has passed. To keep
			// the answer would need the space that there is not.
			return ruling{state: Refused, result: fleet.Undeliverable, reason: err.Error(), forget: true}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	waiting := len(r.queue)
	if t.Staged() {
		waiting = len(r.staged)
	}
	switch {
	case waiting >= r.cfg.MaxQueue:
		return ruling{state: NotReady, reason: fmt.Sprintf("%d commands wait for their turn on this host", waiting)}
	case r.unreported >= maxUnreported:
		return ruling{state: NotReady, reason: fmt.Sprintf("%d results of this host wait for the quorum", r.unreported)}
	}
	return ruling{state: Accepted}
}

func acceptedOf(t *ticket.Ticket, d Delivery, now time.Time) journal.Accepted {
	return journal.Accepted{
		Ticket: d.Ticket, Index: d.Index, DocumentName: cut(d.DocumentName, 256), Document: d.Document, Parameters: d.Parameters,
		Created: t.Created, Expires: t.Expires, At: now.UnixNano(),
	}
}

func keyOf(t *ticket.Ticket) journal.Key { return journal.Key{Command: t.Command, Attempt: t.Attempt} }

func (r *Runner) accept(t *ticket.Ticket, d Delivery) (Answer, error) {
	if err := r.cfg.Journal.Accept(keyOf(t), acceptedOf(t, d, r.cfg.Now())); err != nil {
		return r.notWritten(err)
	}
	r.cfg.Logger.Info("command accepted", "command", t.Command, "document", d.DocumentName, "staged", t.Staged())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	if t.Staged() {
		r.staged[keyOf(t)] = t.NotAfter
		signal(r.more)
		return Answer{State: Staged}, nil
	}
	r.queue = append(r.queue, keyOf(t))
	signal(r.wake)
	return Answer{State: Accepted}, nil
}

// refuse signs that the command does not run here. Unless the same follows
// again from what is known anyway, the journal keeps it: a host that refused
// must not run the command when it is delivered once more.
func (r *Runner) refuse(t *ticket.Ticket, d Delivery, rule ruling) (Answer, error) {
	now := r.cfg.Now()
	result := r.sign(keyOf(t), d.Index, Outcome{State: rule.result, Code: -1, Reason: rule.reason}, nil, 0, now)
	a := Answer{State: Refused, Result: result, Reason: cut(rule.reason, maxReason)}
	r.cfg.Logger.Warn("command refused", "command", t.Command, "document", d.DocumentName, "state", rule.result.Details(),
		"reason", a.Reason)
	if rule.forget {
		return a, nil
	}
	if err := r.cfg.Journal.Refuse(keyOf(t), acceptedOf(t, d, now), journal.Finished{Result: result, At: now.UnixNano()}); err != nil {
		return r.notWritten(err)
	}
	r.mu.Lock()
	r.open++ // finished takes it back
	r.mu.Unlock()
	r.finished(keyOf(t))
	return a, nil
}

// notWritten is the answer when the journal did not take a record.
func (r *Runner) notWritten(err error) (Answer, error) {
	if r.fatal(err) {
		return Answer{}, err
	}
	return NotReadyAnswer(err.Error()), nil
}

// NotReadyAnswer is that this host cannot take a command now.
func NotReadyAnswer(reason string) Answer {
	return Answer{State: NotReady, Reason: cut(reason, maxReason)}
}

// Query says what became of a command; false if this host never took it.
func (r *Runner) Query(command fleet.CommandID, attempt uint32) (Answer, bool) {
	e, ok := r.cfg.Journal.Lookup(journal.Key{Command: command, Attempt: attempt})
	switch {
	case !ok:
		return Answer{}, false
	case e.Finished == nil && e.Starts == 0 && e.Cancel == nil && ticket.IsStaged(e.Ticket):
		return Answer{State: Staged}, true
	case e.Finished == nil:
		return Answer{State: Accepted}, true
	}
	return Answer{State: Done, Result: e.Finished.Result, Detail: r.detailOf(&e)}, true
}

// Open is how many commands were accepted and have no result yet.
func (r *Runner) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// detailOf finds the details of a finished command: in the journal until they
// are acknowledged, then among the blobs as long as there is room.
func (r *Runner) detailOf(e *journal.Entry) []byte {
	if e.Finished.Detail != nil {
		return e.Finished.Detail
	}
	signed, err := ticket.ParseResult(e.Finished.Result)
	if err != nil || signed.Detail.IsZero() {
		return nil
	}
	b, err := r.cfg.Blobs.Bytes(signed.Detail, MaxDetail)
	if err != nil {
		return nil // given up for room: the quorum has it
	}
	return b
}

// sign makes the signed result of a command.
func (r *Runner) sign(k journal.Key, index uint32, o Outcome, detail []byte, started int64, ended time.Time) []byte {
	result := ticket.Result{
		Fleet: r.cfg.Fleet, Command: k.Command, Attempt: k.Attempt, Index: index, Node: r.cfg.Self,
		State: o.State, Code: o.Code, Started: started, Ended: ended.UnixNano(), Reason: cut(o.Reason, maxReason),
	}
	if detail != nil {
		result.Detail, result.DetailSize = fleet.Sum(detail), uint32(len(detail))
	}
	return ticket.SignResult(r.cfg.Key, result)
}

// job is a command that is ready to run.
type job struct {
	doc     *document.Document
	steps   []document.Step
	env     []string
	account process.Account
}

// prepare reads a document and its parameters. Whatever is wrong with them is
// wrong on every try.
func (r *Runner) prepare(content, parameters []byte, t *ticket.Ticket) (*job, error) {
	doc, err := r.documents.parse(content)
	if err != nil {
		return nil, err
	}
	var values wire.StringMap
	if len(parameters) > 0 {
		if err := wire.UnmarshalStrict(parameters, &values); err != nil {
			return nil, fmt.Errorf("parameters: %w", err)
		}
	}
	j := &job{doc: doc}
	if j.account, err = r.cfg.Account(t.RunAs); err != nil {
		return nil, err
	}
	steps, env, err := document.Resolve(doc, values)
	if err != nil {
		return nil, err
	}
	j.steps = steps
	j.env = append(scriptEnvironment(runtime.GOOS, j.account, os.Getenv),
		"FLEET_COMMAND_ID="+string(t.Command), "FLEET_NODE_ID="+string(r.cfg.Self),
		"AWS_SSM_INSTANCE_ID="+string(r.cfg.Self), "SSM_COMMAND_ID="+string(t.Command))
	j.env = append(j.env, env...)
	return j, process.CheckEnv(j.env)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// fatal reports whether an error means that the journal failed, and ends Run
// if so.
func (r *Runner) fatal(err error) bool {
	if !errors.Is(err, journal.ErrFailed) {
		return false
	}
	select {
	case r.dead <- err:
	default: // one is enough
	}
	return true
}

// finished hands a command's result to the reporter.
func (r *Runner) finished(k journal.Key) {
	r.mu.Lock()
	r.fresh = append(r.fresh, k)
	r.open--
	r.unreported++
	r.begunLocked(k)
	delete(r.turns, k)
	r.mu.Unlock()
	signal(r.news)
}

// signal wakes whoever waits on c; one signal is enough for all that is there.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
