package quorum

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// CreateFrom makes the quorum directory of a host that alone votes from then
// on, with a state that was kept outside of the fleet: write writes it, as a
// snapshot of index. body is the first entry behind it, and the empty state
// machine fsm holds what was decided afterwards. As Create, it makes all or
// nothing and refuses what is there.
func CreateFrom(dir string, self fleet.NodeID, index uint64, write func(io.Writer) error, fsm raft.FSM, body entry.Body, now time.Time) error {
	return create(dir, func(made string) error {
		if err := fill(made, false, self); err != nil {
			return err
		}
		if err := addSnapshot(made, self, index, write); err != nil {
			return err
		}
		r, err := OpenRecovery(made, self)
		if err != nil {
			return err
		}
		return errors.Join(r.Run(fsm, body, now), r.Close())
	})
}

// addSnapshot puts a first snapshot into a store.
func addSnapshot(dir string, self fleet.NodeID, index uint64, write func(io.Writer) error) (err error) {
	s, err := openStores(dir, self, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	_, _, snaps := s.guarded(&guard{})
	_, transport := raft.NewInmemTransport(raft.ServerAddress(self)) // only encodes this host's address
	sink, err := snaps.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self), Address: raft.ServerAddress(self)}},
	}, index, transport)
	if err != nil {
		return fmt.Errorf("begin a snapshot: %w", err)
	}
	if err := write(sink); err != nil {
		return errors.Join(fmt.Errorf("write a snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}
