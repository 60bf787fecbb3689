package quorum

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// This file makes a quorum of one host out of a store whose quorum is lost. It
// is the one place where something becomes decided without a majority, and a
// person has to have asked for it.

// Recovery is a store that is open to be recovered; nobody else can open it
// meanwhile.
type Recovery struct {
	dir    string
	self   fleet.NodeID
	stores *stores
	logs   raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore

	// The newest entry: its index and term, and when a leader made it; the time
	// is zero if all that there is is a snapshot.
	Index, Term uint64
	Written     time.Time
}

// OpenRecovery opens the store of a host whose agent does not run. The errors
// are those of Open: a damaged store is not recovered from.
func OpenRecovery(dir string, self fleet.NodeID) (*Recovery, error) {
	s, err := openStores(dir, self, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	r := &Recovery{dir: dir, self: self, stores: s}
	r.logs, r.stable, r.snaps = s.guarded(&guard{})
	if err := r.findLast(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return r, nil
}

func (r *Recovery) findLast() error {
	metas, err := r.snaps.List()
	if err != nil {
		return damaged(r.dir, "%w", err)
	}
	if len(metas) > 0 {
		r.Index, r.Term = metas[0].Index, metas[0].Term
	}
	last, err := r.logs.LastIndex()
	if err != nil {
		return damaged(r.dir, "%w", err)
	}
	if last <= r.Index {
		if r.Index == 0 {
			return fleet.Errorf(fleet.NotFound, "quorum store %s is empty: this host has nothing to recover the fleet from", r.dir).
				WithHint("run it on a voter that has the log")
		}
		return nil
	}
	var l raft.Log
	if err := r.logs.GetLog(last, &l); err != nil {
		return damaged(r.dir, "%w", err)
	}
	r.Index, r.Term, r.Written = l.Index, l.Term, l.AppendedAt
	return nil
}

// Load brings an empty state machine to where the store ends: everything in the
// log counts, whether or not a majority ever had it.
func (r *Recovery) Load(fsm raft.FSM) error {
	metas, err := r.snaps.List()
	if err != nil {
		return damaged(r.dir, "%w", err)
	}
	covered := uint64(0)
	for _, meta := range metas {
		_, snapshot, err := r.snaps.Open(meta.ID)
		if err == nil {
			err = fsm.Restore(snapshot)
		}
		if err == nil {
			covered = meta.Index
			break
		}
	}
	if len(metas) > 0 && covered == 0 {
		return damaged(r.dir, "no snapshot can be read")
	}
	last, err := r.logs.LastIndex()
	if err != nil {
		return damaged(r.dir, "%w", err)
	}
	for i := covered + 1; i <= last; i++ {
		var l raft.Log
		if err := r.logs.GetLog(i, &l); err != nil {
			return damaged(r.dir, "log entry %d: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			fsm.Apply(&l)
		}
	}
	return nil
}

// Run adds one entry and makes this host the only one in Raft's configuration.
// The state machine must be empty; it holds what was decided afterwards. The
// entry comes first: cut short behind it, the store is that of a voter of the
// lost quorum with an entry that nobody else has, and Run may be called again.
// The other way round it would be a quorum of one that believes the old
// trust.json.
func (r *Recovery) Run(fsm raft.FSM, body entry.Body, now time.Time) error {
	data, err := entry.Encode(body)
	if err != nil {
		return err
	}
	if err := r.logs.StoreLog(&raft.Log{Index: r.Index + 1, Term: max(r.Term, 1), Type: raft.LogCommand, Data: data, AppendedAt: now}); err != nil {
		return fmt.Errorf("recover %s: %w", r.dir, err)
	}
	config := raftConfig(Config{Self: r.self, Timing: DefaultTiming})
	config.Logger = bridge(slog.New(slog.DiscardHandler))
	_, transport := raft.NewInmemTransport(raft.ServerAddress(r.self)) // only encodes this host's address
	if err := raft.RecoverCluster(config, fsm, r.logs, r.stable, r.snaps, transport, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(r.self), Address: raft.ServerAddress(r.self)}},
	}); err != nil {
		return fmt.Errorf("recover %s: %w", r.dir, err)
	}
	return nil
}

// Close lets others open the store.
func (r *Recovery) Close() error { return r.stores.close() }
