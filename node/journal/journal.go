// Package journal remembers which commands this host has accepted, started
// and finished, so that none runs twice: neither when it is delivered again,
// nor after a crash, nor when the leader changes.
//
// The file is the line "fleet journal v1" and then frames {u32 length, CRC32C,
// msgpack} of records, appended and, for those on which a promise rests,
// synced before the call returns: accepted (the quorum hears of it), started
// (the command runs next), cancelled (nothing of it starts any more) and
// finished (the result leaves next). Spawned and
// acknowledged are not synced: after a loss of power no child is left to be
// killed, and a result that is reported twice counts once.
//
//   - A frame that a crash has cut is at the end and is cut off. A bad frame
//     before one that was written when the bad one was on disk already is
//     damage, and the journal refuses to open: to skip it could run a command
//     twice. (Each record holds how much of the file was on disk by then. Damage
//     of the very last records cannot be told from a crash.)
//   - After an error of write or sync nothing is believed any more: the journal
//     fails every change, and its owner must exit. A full disk alone is
//     survived: what was half-written is taken back.
//   - A journal knows since when it is. Commands that were created before may
//     have run here under an older journal, which was lost: they are refused.
//   - Entries are kept until Retention after their command expires, then
//     dropped by Compact, which notes how far it went: a command that would
//     have been dropped is refused like a known one.
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"fleet/node/failpoint"
	"fleet/node/fleet"
)

const (
	// Retention is how long an entry is kept after its command expires.
	Retention = 48 * time.Hour

	// AnswerRetention is how long an entry is kept after its command expires
	// when the quorum has not acknowledged its result.
	AnswerRetention = 30 * 24 * time.Hour

	// compactAbove is the size of file from which Compact rewrites it when half
	// of it is of no use any more, in bytes.
	compactAbove = 1 << 20

	// syncAbove bounds the bytes that are not yet on disk.
	syncAbove = 64 << 10
)

// ErrFailed is wrapped by every change after the journal could not be written
// or synced: what is on disk is not known, and the process must exit.
var ErrFailed = errors.New("the journal failed and may no longer be believed")

// Key names one run of one command: the unit that happens at most once.
type Key struct {
	Command fleet.CommandID
	Attempt uint32
}

func (k Key) String() string { return fmt.Sprintf("%s attempt %d", k.Command, k.Attempt) }

// Accepted is all that is needed to run a command after a restart. The journal
// reads nothing in Ticket, Document and Parameters, and gives the latter two up
// when the command has finished.
type Accepted struct {
	Ticket       []byte // signed; nil for what was cancelled before it came
	Index        uint32 // of this host among the targets
	DocumentName string
	Document     []byte
	Parameters   []byte
	Created      int64 // stamp of the command
	Expires      int64 // stamp after which nothing of it happens
	At           int64 // by this host's clock

	By fleet.NodeID // the voter that cancelled what never came; else empty
}

// Spawned is a child of a started command (process.Identity).
type Spawned struct {
	PID   int    `msgpack:"p"`
	Start uint64 `msgpack:"s"`
	Boot  string `msgpack:"b"`
	Mark  string `msgpack:"m"`
}

// Finished is what the host answers.
type Finished struct {
	Result []byte         // signed
	Detail []byte         // of the steps; given up when acknowledged
	Blobs  []fleet.Digest // that Detail names
	At     int64          // by this host's clock
}

// Entry is what the journal knows of one key. Its slices must not be changed.
type Entry struct {
	Key
	Accepted
	Starts       int       // how often it was started: 0, 1, or more for what may be repeated
	Started      int64     // the last time, by this host's clock
	StartBy      int64     // of a started command that waited for its turn: by when it may begin again
	Spawned      []Spawned // children since the last start
	Cancel       []byte    // signed, when it was cancelled; nil again once it has finished
	Finished     *Finished // nil while it may still happen
	Acknowledged uint64    // log index of the result; 0 while the quorum does not have it
}

// Hooks let a test see what the journal does to its disk, and end the host
// there. The zero value is for production.
type Hooks struct {
	At   failpoint.Hook
	Sync func(*os.File) error // default: (*os.File).Sync
}

// Journal is one open journal file. It may be used concurrently.
type Journal struct {
	path  string
	hooks Hooks

	mu      sync.Mutex // guards what follows
	f       *os.File
	size    int64 // of the file
	synced  int64 // how much of it is on disk
	failed  error
	origin  int64 // stamp of the journal itself; 0 while not known
	expired int64 // Expires of the last command to expire that Compact dropped
	entries map[Key]*Entry
	order   []Key // in order of acceptance
}

// Create makes the journal of a host that was just enrolled. origin is the
// stamp of its enrolment: no command for it is older.
func Create(path string, origin int64) error {
	if origin <= 0 {
		return fmt.Errorf("journal: an origin of %d", origin)
	}
	f, err := createFile(path, encode(record{Kind: kindMarks, Origin: origin}), false)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return errors.Join(unlock(f), f.Close())
}

// Open opens a journal and reads it. If there is no file, the journal was lost:
// a new one is made, which refuses every command until Begin says what time it
// is. Damage is an error of kind Corrupt.
func Open(path string) (*Journal, error) { return OpenHooked(path, Hooks{}) }

// OpenHooked is Open for tests that watch.
func OpenHooked(path string, hooks Hooks) (*Journal, error) {
	if hooks.Sync == nil {
		hooks.Sync = (*os.File).Sync
	}
	j, err := open(path, hooks)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

func open(path string, hooks Hooks) (*Journal, error) {
	if err := os.Remove(newName(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := openFile(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = createFile(path, encode(record{Kind: kindMarks}), false)
	}
	if err != nil {
		return nil, err
	}
	j := &Journal{path: path, hooks: hooks, f: f, entries: map[Key]*Entry{}}
	if err := j.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// load locks, reads and mends the open file. Nobody else knows j yet.
func (j *Journal) load() error {
	if err := lock(j.f); err != nil {
		return fleet.Errorf(fleet.Conflict, "it is in use: another agent runs on this data directory (%w)", err)
	}
	b, err := os.ReadFile(j.path)
	if err != nil {
		return err
	}
	good, err := j.replay(b)
	if err != nil {
		return err
	}
	if good < len(b) {
		if err := j.f.Truncate(int64(good)); err != nil {
			return fmt.Errorf("cut off a torn record: %w", err)
		}
	}
	// What was read may be in the page cache only; acting on it needs more.
	if err := j.hooks.Sync(j.f); err != nil {
		return err
	}
	j.size, j.synced = int64(good), int64(good)
	// Says that all of it was on disk, so that damage to it is known as such.
	err = j.appendLocked(record{Kind: kindMarks, Origin: j.origin, Expired: j.expired})
	if fleet.KindOf(err) == fleet.Unavailable {
		return nil // a full disk: the host must come up, to say so
	}
	return err
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return nil
	}
	err := errors.Join(unlock(j.f), j.f.Close())
	j.f = nil
	if j.failed == nil {
		j.failed = fs.ErrClosed
	}
	return err
}

// Begin gives a journal that was lost its origin: the time of the fleet. On
// one that has an origin it does nothing.
func (j *Journal) Begin(now int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.origin != 0 {
		return nil
	}
	if now <= 0 {
		return fmt.Errorf("journal: an origin of %d", now)
	}
	return j.appendLocked(record{Kind: kindMarks, Origin: now, Expired: j.expired})
}

// Origin is the stamp since when this journal is; 0 while it is not known.
func (j *Journal) Origin() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.origin
}

// Admits says whether a command that the journal does not hold may be accepted:
// nil, an error of kind Unavailable (ask again later), or of kind Denied when
// it may have run here before.
func (j *Journal) Admits(created, expires int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.failed != nil:
		return fleet.Errorf(fleet.Unavailable, "%w", j.failed)
	case j.origin == 0:
		return fleet.Errorf(fleet.Unavailable, "this host lost its journal and waits for the time of the fleet to begin a new one")
	case created < j.origin:
		return fleet.Errorf(fleet.Denied,
			"the command was created %s, before this host's journal began (%s): it may have run here already",
			stampText(created), stampText(j.origin))
	case expires <= j.expired:
		return fleet.Errorf(fleet.Denied,
			"the command expired %s, and this host's journal of that time was given up: it may have run here already",
			stampText(expires))
	}
	return nil
}

func stampText(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }

// Accept records that a command will be run, and syncs.
func (j *Journal) Accept(k Key, a Accepted) error {
	return j.append(record{Kind: kindAccepted, Accepted: acceptedRecord(a), At: a.At}.of(k))
}

// Refuse records the answer to a command that will not be run, and syncs.
func (j *Journal) Refuse(k Key, a Accepted, f Finished) error {
	a.Document, a.Parameters = nil, nil
	return j.append(record{Kind: kindRefused, Accepted: acceptedRecord(a), Finished: finishedRecord(f), At: f.At}.of(k))
}

// Cancel records that an accepted command without an answer is cancelled, and
// syncs: from then on Start and Spawn are refused, across crashes too.
func (j *Journal) Cancel(k Key, signed []byte) error {
	return j.append(record{Kind: kindCancelled, Cancel: signed}.of(k))
}

// Unmet is how many entries are of commands that never came here: this voter
// cancelled them first.
func (j *Journal) Unmet(by fleet.NodeID) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, e := range j.entries {
		if e.Ticket == nil && e.By == by {
			n++
		}
	}
	return n
}

// Start records that the command runs now, and syncs. It must return before
// anything of it does. startBy is when it may begin at the latest, for who would
// begin it again after a crash; 0 is that the ticket says so.
func (j *Journal) Start(k Key, at, startBy int64) error {
	return j.append(record{Kind: kindStarted, At: at, StartBy: startBy}.of(k))
}

// Spawn records a child of a started command.
func (j *Journal) Spawn(k Key, s Spawned) error {
	return j.append(record{Kind: kindSpawned, Spawned: &s}.of(k))
}

// Finish records the answer, and syncs. It must return before the answer
// leaves this host.
func (j *Journal) Finish(k Key, f Finished) error {
	return j.append(record{Kind: kindFinished, Finished: finishedRecord(f), At: f.At}.of(k))
}

// Acknowledge records that the quorum has the answer at a log index above 0.
func (j *Journal) Acknowledge(k Key, index uint64) error {
	return j.append(record{Kind: kindAcknowledged, Index: index}.of(k))
}

// Lookup finds an entry.
func (j *Journal) Lookup(k Key) (Entry, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, ok := j.entries[k]
	if !ok {
		return Entry{}, false
	}
	return *e, true
}

// Entries are all entries, in the order of acceptance.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]Entry, 0, len(j.order))
	for _, k := range j.order {
		all = append(all, *j.entries[k])
	}
	return all
}

// Size is the size of the file in bytes.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

func (j *Journal) append(r record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.appendLocked(r)
}

// appendLocked writes a record, syncs if its kind demands it, and only then
// changes what the journal says it knows.
func (j *Journal) appendLocked(r record) error {
	if j.failed != nil {
		return fmt.Errorf("journal: %w", j.failed)
	}
	if err := j.check(r); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	at := points[r.Kind]
	j.hooks.At.Reach(at.before, r.Command)
	r.Durable = j.synced
	frame := encode(r)
	if len(frame) > maxFrame {
		return fleet.Errorf(fleet.TooLarge, "journal: a record of %d bytes, at most %d are possible", len(frame), maxFrame)
	}
	if _, err := j.f.WriteAt(frame, j.size); err != nil {
		return j.takeBackLocked(err)
	}
	j.size += int64(len(frame))
	if durableKinds[r.Kind] || j.size-j.synced > syncAbove {
		if err := j.syncLocked(); err != nil {
			return j.failLocked(err)
		}
		j.synced = j.size
	}
	j.apply(r)
	j.hooks.At.Reach(at.after, r.Command)
	return nil
}

// points are where a record stands in the life of a command. Those without a
// place in it are reached under the empty name, which nobody waits for.
var points = map[kind]struct{ before, after failpoint.Point }{
	kindAccepted:     {failpoint.Accept, failpoint.Accepted},
	kindStarted:      {failpoint.Start, failpoint.Started},
	kindFinished:     {failpoint.Finish, failpoint.Finished},
	kindAcknowledged: {failpoint.Acknowledge, failpoint.Known},
	kindCancelled:    {failpoint.Cancel, failpoint.Cancelled},
}

// takeBackLocked undoes a write that failed. If it was for want of space and
// nothing of it stays, the journal is as good as before.
func (j *Journal) takeBackLocked(cause error) error {
	if !errors.Is(cause, syscall.ENOSPC) && !errors.Is(cause, syscall.EDQUOT) {
		return j.failLocked(cause)
	}
	if err := j.f.Truncate(j.size); err != nil {
		return j.failLocked(errors.Join(cause, err))
	}
	return fleet.Errorf(fleet.Unavailable, "the disk of %s is full", filepath.Dir(j.path)).WithHint("free some space there")
}

func (j *Journal) failLocked(cause error) error {
	j.failed = fmt.Errorf("%w: %w", ErrFailed, cause)
	return fmt.Errorf("journal: %w", j.failed)
}

// Compact drops what is no longer needed at fleet time now, and rewrites the
// file if much of it is of no use. When it fails, the old file stays.
func (j *Journal) Compact(now int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return fmt.Errorf("journal: %w", j.failed)
	}
	drop := map[Key]bool{}
	expired := j.expired
	for k, e := range j.entries {
		if droppable(e, now) {
			drop[k] = true
			expired = max(expired, e.Expires)
		}
	}
	b := j.snapshot(expired, drop)
	if len(drop) == 0 && (j.size < compactAbove || 2*int64(len(b)) > j.size) {
		return nil
	}
	j.hooks.At.Reach(failpoint.Forget, "")
	f, err := createFile(j.path, b, true)
	if err != nil {
		return fmt.Errorf("compact journal: %w", err)
	}
	_ = j.f.Close() // an old file, replaced whole
	j.f, j.expired = f, expired
	j.size = int64(len(header) + len(b))
	j.synced = j.size
	maps.DeleteFunc(j.entries, func(k Key, _ *Entry) bool { return drop[k] })
	j.order = slices.DeleteFunc(j.order, func(k Key) bool { return drop[k] })
	j.hooks.At.Reach(failpoint.Forgotten, "")
	return nil
}

// droppable decides whether an entry may be forgotten at time now.
func droppable(e *Entry, now int64) bool {
	switch {
	case e.Finished == nil:
		return false
	case e.Acknowledged != 0 || e.Ticket == nil: // who cancels what never came takes the answer with him
		return now-e.Expires > int64(Retention)
	default:
		return now-e.Expires > int64(AnswerRetention)
	}
}

func newName(path string) string { return path + ".new" }

// createFile writes a journal's header and frames so that the file is either
// there whole or not at all, locks it and gives it open. An existing one is
// replaced only if replace is set.
func createFile(path string, frames []byte, replace bool) (_ *os.File, err error) {
	tmp := newName(path)
	f, err := openFile(tmp, true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			_ = os.Remove(tmp) // the first error says more
		}
	}()
	if err := lock(f); err != nil {
		return nil, err
	}
	if _, err := f.Write(append([]byte(header), frames...)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	if err := rename(tmp, path); err != nil {
		return nil, err
	}
	return f, syncDir(filepath.Dir(path))
}
