package quorum

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// guard watches the stores of one Quorum: the first failure, or the first
// operation that lasts too long, ends it.
type guard struct {
	limit time.Duration // of one operation; 0: none

	mu     sync.Mutex // guards what follows
	die    func(error)
	failed error
}

// errFailed is what a store answers after it failed once: what the disk says
// after a failed write cannot be believed.
var errFailed = errors.New("the store failed before")

// errDamaged is in the chain of every error about bytes that are not those that
// were written.
var errDamaged = errors.New("it is not what was written")

// arm sets what is called at the first failure, and calls it if that has been.
// Until then errors are only returned: whoever opens the stores reports them.
func (g *guard) arm(die func(error)) {
	g.mu.Lock()
	g.die = die
	failed := g.failed
	g.mu.Unlock()
	if failed != nil {
		die(failed)
	}
}

func (g *guard) armed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.die != nil
}

func (g *guard) fail(err error) {
	g.mu.Lock()
	first, die := g.failed == nil, g.die
	if first {
		g.failed = err
	}
	g.mu.Unlock()
	if first && die != nil {
		die(err)
	}
}

// do runs one operation of a store.
func (g *guard) do(what string, op func() error) error {
	g.mu.Lock()
	failed := g.failed
	g.mu.Unlock()
	if failed != nil {
		return fmt.Errorf("%s: %w", what, errFailed)
	}
	if g.limit > 0 {
		late := time.AfterFunc(g.limit, func() {
			g.fail(fmt.Errorf("%s: the disk has not answered for %s", what, g.limit))
		})
		defer late.Stop()
	}
	err := believed(op())
	if err == nil || isNotFound(err) {
		return err
	}
	err = fmt.Errorf("%s: %w", what, err)
	g.fail(err)
	return err
}

// mustDo is do for operations after whose failure Raft would panic and take
// with it whatever else stops in order. Its goroutine ends here instead.
func (g *guard) mustDo(what string, op func() error) error {
	err := g.do(what, op)
	if err != nil && !isNotFound(err) && g.armed() {
		runtime.Goexit()
	}
	return err
}

// isNotFound tells the two answers that are no failure. For the second Raft
// itself compares the text.
func isNotFound(err error) bool {
	return errors.Is(err, raft.ErrLogNotFound) || err.Error() == "not found"
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logStore adds a checksum to each entry: bbolt has none for its data pages.
// It is the last four bytes of Extensions, made anew on each host.
type logStore struct {
	raft.LogStore
	guard *guard
}

func (s *logStore) FirstIndex() (i uint64, err error) {
	err = s.guard.do("first log index", func() error { i, err = s.LogStore.FirstIndex(); return err })
	return i, err
}

func (s *logStore) LastIndex() (i uint64, err error) {
	err = s.guard.do("last log index", func() error { i, err = s.LogStore.LastIndex(); return err })
	return i, err
}

func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	return s.guard.mustDo(fmt.Sprintf("read log entry %d", index), func() error {
		var got raft.Log
		if err := s.LogStore.GetLog(index, &got); err != nil {
			return err
		}
		n := len(got.Extensions) - crc32.Size
		if n < 0 {
			return fmt.Errorf("it has no checksum: %w", errDamaged)
		}
		sum := binary.BigEndian.Uint32(got.Extensions[n:])
		if got.Extensions = got.Extensions[:n:n]; n == 0 {
			got.Extensions = nil
		}
		if got.Index != index || sum != logSum(&got) {
			return errDamaged
		}
		*l = got
		return nil
	})
}

func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *logStore) StoreLogs(logs []*raft.Log) error {
	return s.guard.do("write log entries", func() error {
		summed := make([]*raft.Log, len(logs))
		for i, l := range logs {
			c := *l // Raft goes on to use its own
			c.Extensions = binary.BigEndian.AppendUint32(append([]byte(nil), l.Extensions...), logSum(l))
			summed[i] = &c
		}
		return s.LogStore.StoreLogs(summed)
	})
}

func (s *logStore) DeleteRange(min, max uint64) error {
	return s.guard.do("delete log entries", func() error { return s.LogStore.DeleteRange(min, max) })
}

// logSum covers everything that is stored of an entry.
func logSum(l *raft.Log) uint32 {
	head := make([]byte, 0, 64)
	head = binary.BigEndian.AppendUint64(head, l.Index)
	head = binary.BigEndian.AppendUint64(head, l.Term)
	head = append(head, byte(l.Type))
	head = binary.BigEndian.AppendUint64(head, uint64(l.AppendedAt.Unix()))
	head = binary.BigEndian.AppendUint32(head, uint32(l.AppendedAt.Nanosecond()))
	head = binary.BigEndian.AppendUint64(head, uint64(len(l.Data)))
	sum := crc32.Update(0, castagnoli, head)
	sum = crc32.Update(sum, castagnoli, l.Data)
	return crc32.Update(sum, castagnoli, l.Extensions)
}

// stableStore adds a checksum to what Raft keeps beside the log: its term and
// its vote. A vote is two keys to Raft, the term first; here it is one record,
// since each write waits for the disk and an election waits for them all.
type stableStore struct {
	raft.StableStore
	guard *guard

	mu       sync.Mutex // guards what follows
	voteTerm []byte     // given and not written yet: Raft gives the candidate next
}

// Raft's names, and that of the record: the term in 8 bytes, then the candidate.
var (
	keyVoteTerm      = []byte("LastVoteTerm")
	keyVoteCandidate = []byte("LastVoteCand")
	keyVote          = []byte("FleetVote")
)

func (s *stableStore) Set(key, value []byte) error {
	switch {
	case bytes.Equal(key, keyVoteTerm):
		s.mu.Lock()
		defer s.mu.Unlock()
		s.voteTerm = bytes.Clone(value)
		return nil
	case bytes.Equal(key, keyVoteCandidate):
		s.mu.Lock()
		term := s.voteTerm
		s.mu.Unlock()
		if len(term) != 8 {
			return fmt.Errorf("write %s: its term was not given before", key)
		}
		return s.set(keyVote, append(bytes.Clone(term), value...))
	}
	return s.set(key, value)
}

func (s *stableStore) set(key, value []byte) error {
	return s.guard.mustDo(fmt.Sprintf("write %s", key), func() error {
		return s.StableStore.Set(key, binary.BigEndian.AppendUint32(append([]byte(nil), value...), stableSum(key, value)))
	})
}

func (s *stableStore) Get(key []byte) ([]byte, error) {
	isTerm, isCandidate := bytes.Equal(key, keyVoteTerm), bytes.Equal(key, keyVoteCandidate)
	if !isTerm && !isCandidate {
		return s.get(key)
	}
	vote, err := s.get(keyVote)
	switch {
	case err != nil:
		return nil, err
	case len(vote) < 8:
		return nil, fmt.Errorf("read %s: %d bytes: %w", keyVote, len(vote), errDamaged)
	case isTerm:
		return vote[:8:8], nil
	}
	return vote[8:], nil
}

func (s *stableStore) get(key []byte) (value []byte, err error) {
	err = s.guard.mustDo(fmt.Sprintf("read %s", key), func() error {
		got, err := s.StableStore.Get(key)
		if err != nil {
			return err
		}
		n := len(got) - crc32.Size
		if n < 0 || binary.BigEndian.Uint32(got[n:]) != stableSum(key, got[:n]) {
			return errDamaged
		}
		value = got[:n:n]
		return nil
	})
	return value, err
}

func (s *stableStore) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("read %s: %d bytes where 8 belong: %w", key, len(b), errDamaged)
	}
	return binary.BigEndian.Uint64(b), nil
}

func stableSum(key, value []byte) uint32 {
	sum := crc32.Update(0, castagnoli, key)
	return crc32.Update(sum, castagnoli, append([]byte{0}, value...))
}

// snapshotStore tells the guard about failures. Snapshots have checksums of
// their own.
type snapshotStore struct {
	raft.SnapshotStore
	guard *guard
}

func (s *snapshotStore) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, configIndex uint64,
	t raft.Transport) (raft.SnapshotSink, error) {
	var sink raft.SnapshotSink
	err := s.guard.do("begin snapshot", func() (err error) {
		sink, err = s.SnapshotStore.Create(v, index, term, c, configIndex, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &snapshotSink{sink, s.guard}, nil
}

func (s *snapshotStore) List() (metas []*raft.SnapshotMeta, err error) {
	err = s.guard.do("list snapshots", func() error { metas, err = s.SnapshotStore.List(); return err })
	return metas, err
}

func (s *snapshotStore) Open(id string) (meta *raft.SnapshotMeta, r io.ReadCloser, err error) {
	// No limit of time: opening reads all of it.
	meta, r, err = s.SnapshotStore.Open(id)
	_, inMemory := s.SnapshotStore.(*raft.InmemSnapshotStore)
	replaced := inMemory || errors.Is(err, fs.ErrNotExist) // since it was listed: no failure
	if err != nil && !replaced && s.guard.armed() {
		s.guard.fail(fmt.Errorf("open snapshot %s: %w", id, err))
	}
	return meta, r, err
}

type snapshotSink struct {
	raft.SnapshotSink
	guard *guard
}

func (s *snapshotSink) Write(b []byte) (n int, err error) {
	err = s.guard.do("write snapshot", func() error { n, err = s.SnapshotSink.Write(b); return err })
	return n, err
}

func (s *snapshotSink) Close() error {
	return s.guard.do("finish snapshot", s.SnapshotSink.Close)
}
