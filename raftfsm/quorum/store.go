package quorum

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"fleet/node/fleet"
)

// Names in the quorum directory. Raft adds snapshots/.
const (
	uuidFile = "store.uuid"
	boltFile = "raft.db"
)

// keptSnapshots is how many are kept: if the newest is damaged, the one before
// it and the log can stand in.
const keptSnapshots = 2

// storeKey is where raft.db holds what store.uuid holds beside it.
var storeKey = []byte("FleetStore")

// stores is what Raft keeps.
type stores struct {
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	closer func() error
}

func (s *stores) close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer()
}

// guarded is the stores as Raft uses them: with checksums, and with every
// failure told to g.
func (s *stores) guarded(g *guard) (raft.LogStore, raft.StableStore, raft.SnapshotStore) {
	return &logStore{s.logs, g}, &stableStore{StableStore: s.stable, guard: g}, &snapshotStore{s.snaps, g}
}

// Create makes the quorum directory of a host; with bootstrap, as the only
// voter of a new fleet. It refuses with Kind Conflict if dir exists: a store
// is never made anew where one was.
func Create(dir string, bootstrap bool, self fleet.NodeID) error {
	return create(dir, func(made string) error { return fill(made, bootstrap, self) })
}

func create(dir string, fill func(made string) error) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fleet.Errorf(fleet.Conflict, "quorum store %s exists already", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make quorum store: %w", err)
	}
	// Made aside and moved into place, so that a crash leaves none or all.
	made := dir + ".new"
	if err := os.RemoveAll(made); err != nil {
		return fmt.Errorf("make quorum store: remove an unfinished one: %w", err)
	}
	if err := fill(made); err != nil {
		return fmt.Errorf("make quorum store %s: %w", dir, err)
	}
	if err := os.Rename(made, dir); err != nil {
		return fmt.Errorf("make quorum store: %w", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("make quorum store: %w", err)
	}
	return nil
}

func fill(dir string, bootstrap bool, self fleet.NodeID) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	mark := storeMark(id, self)
	s, err := openFiles(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	logs, stable, snaps := s.guarded(&guard{})
	if err := stable.Set(storeKey, mark); err != nil {
		return err
	}
	if bootstrap {
		if err := bootstrapOne(self, logs, stable, snaps); err != nil {
			return err
		}
	}
	if err := writeSynced(filepath.Join(dir, uuidFile), mark); err != nil {
		return err
	}
	return syncDir(dir)
}

// bootstrapOne writes the first entry of a log: a configuration with one voter.
func bootstrapOne(self fleet.NodeID, logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) error {
	config := raftConfig(Config{Self: self, Timing: DefaultTiming})
	config.Logger = bridge(slog.New(slog.DiscardHandler))
	return raft.BootstrapCluster(config, logs, stable, snaps, nil, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self), Address: raft.ServerAddress(self)}},
	})
}

// storeMark is the content of store.uuid: which store this is and whose.
func storeMark(id [16]byte, self fleet.NodeID) []byte {
	return fmt.Appendf(nil, "fleet quorum store v2\n%s\n%s\n", hex.EncodeToString(id[:]), self)
}

// memoryStores are stores that end with the process.
func memoryStores(self fleet.NodeID, bootstrap bool) (*stores, error) {
	mem := raft.NewInmemStore()
	s := &stores{logs: mem, stable: mem, snaps: raft.NewInmemSnapshotStore()}
	if bootstrap {
		if err := bootstrapOne(self, &logStore{mem, &guard{}}, &stableStore{StableStore: mem, guard: &guard{}}, s.snaps); err != nil {
			return nil, fmt.Errorf("bootstrap in memory: %w", err)
		}
	}
	return s, nil
}

// openStores opens the quorum directory after it has been found whole: by
// plain reads first, because bbolt takes an empty file for a new store and
// dies of a cut one, then entry by entry.
func openStores(dir string, self fleet.NodeID, log *slog.Logger) (*stores, error) {
	mark, err := checkMark(dir, self)
	if err != nil {
		return nil, err
	}
	if how, err := os.ReadFile(filepath.Join(dir, fencedFile)); err == nil {
		return nil, damaged(dir, "it is an older copy of itself: %.300s", strings.TrimSpace(string(how)))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open quorum store: %w", err)
	}
	path := filepath.Join(dir, boltFile)
	if err := checkClosed(path); err != nil {
		return nil, err
	}
	if emptyIsNew(path) {
		return openFiles(dir, log)
	}
	if err := checkBolt(path); err != nil {
		return nil, damaged(dir, "%w", err)
	}
	s, err := openFiles(dir, log)
	if err != nil {
		return nil, err
	}
	if err := checkContent(dir, s, mark); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openFiles opens (or, in an empty directory, makes) the stores.
func openFiles(dir string, log *slog.Logger) (*stores, error) {
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(dir, boltFile), MsgpackUseNewTimeFormat: true,
		// The file never shrinks; a free list that is written at each commit
		// would grow with every burst of entries. It is rebuilt at the start.
		BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errInUse(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(dir, boltFile), err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, bridge(log))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots in %s: %w", dir, err), bolt.Close())
	}
	return &stores{logs: bolt, stable: bolt, snaps: snaps, closer: bolt.Close}, nil
}

func errInUse(dir string) error {
	return fleet.Errorf(fleet.Conflict,
		"quorum store %s is open in another process: fleet is already running with this data directory", dir).
		WithHint("stop the other process, or start this one with its own --data-dir")
}

// damaged says that a store is not to be believed, and what to do.
func damaged(dir, format string, args ...any) error {
	e := fleet.Errorf(fleet.Corrupt, format, args...)
	e.Message = fmt.Sprintf("quorum store %s must not be used: %s", dir, e.Message)
	return e.WithHint("%s", anew(dir))
}

// anew is what to do about a store that is not to be used.
func anew(dir string) string {
	return fmt.Sprintf("this host runs on without a vote, and the other voters have the data. Take it out of the quorum, "+
		"move %s aside if it is there, start fleet again and add it to the quorum anew; never put an older copy in its place", dir)
}

// checkMark checks that there is a store, and that it is this host's.
func checkMark(dir string, self fleet.NodeID) ([]byte, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fleet.Errorf(fleet.NotFound, "there is no quorum store %s", dir).WithHint("%s", anew(dir))
	}
	mark, err := os.ReadFile(filepath.Join(dir, uuidFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(dir, "%s is missing", uuidFile)
	}
	if err != nil {
		return nil, fmt.Errorf("open quorum store: %w", err)
	}
	lines := strings.Split(string(mark), "\n")
	if len(lines) != 4 || len(lines[1]) != 32 || lines[3] != "" || lines[0] != "fleet quorum store v2" {
		return nil, damaged(dir, "%s does not hold what this release writes there", uuidFile)
	}
	if owner := lines[2]; owner != string(self) {
		return nil, damaged(dir, "it is the store of %.40q and this host is %s", owner, self)
	}
	return mark, nil
}

// checkContent checks what is in a store that reads as one: that it is the one
// that store.uuid means, and that every entry after a good snapshot is there
// and as it was written.
func checkContent(dir string, s *stores, mark []byte) error {
	logs, stable, _ := s.guarded(&guard{})
	inside, err := stable.Get(storeKey)
	if err != nil || !bytes.Equal(inside, mark) {
		if err == nil || isNotFound(err) {
			return damaged(dir, "%s and %s are not of the same store", boltFile, uuidFile)
		}
		return damaged(dir, "%w", err)
	}
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} {
		if _, err := stable.GetUint64([]byte(key)); err != nil && !isNotFound(err) {
			return damaged(dir, "%w", err)
		}
	}
	if _, err := stable.Get([]byte("LastVoteCand")); err != nil && !isNotFound(err) {
		return damaged(dir, "%w", err)
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return damaged(dir, "%w", err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return damaged(dir, "%w", err)
	}
	covered, err := newestSnapshot(s.snaps)
	if err != nil {
		return damaged(dir, "%w", err)
	}
	if first == 0 {
		return nil // nothing, or nothing behind the snapshot: raft-boltdb gives 0 for an empty log
	}
	for i := first; i <= last; i++ {
		var l raft.Log
		err := logs.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) && i <= covered {
			continue // a snapshot from the leader took its place
		}
		if err != nil {
			return damaged(dir, "log entry %d of %d to %d: %w", i, first, last, err)
		}
	}
	if first > covered+1 {
		return damaged(dir, "the log begins at entry %d and no whole snapshot holds those before it", first)
	}
	return nil
}

// newestSnapshot is the index that the newest whole snapshot holds; 0 if there
// is none at all. Raft falls back on an older one if the newest is damaged.
func newestSnapshot(snaps raft.SnapshotStore) (uint64, error) {
	metas, err := snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	var failures error
	for _, meta := range metas {
		_, r, err := snaps.Open(meta.ID)
		if err == nil {
			return meta.Index, r.Close()
		}
		failures = errors.Join(failures, fmt.Errorf("snapshot %s: %w", meta.ID, err))
	}
	return 0, failures
}

func writeSynced(path string, b []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) (err error) {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}
