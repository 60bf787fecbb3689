package quorum

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

// Server is one host of Raft's configuration.
type Server struct {
	ID    fleet.NodeID
	Voter bool // false: follows the log without a vote
}

// Servers lists the newest configuration that this host knows, by ID. It may
// not be committed yet.
func (q *Quorum) Servers() ([]Server, error) {
	f := q.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("raft configuration: %w", err)
	}
	var servers []Server
	for _, s := range f.Configuration().Servers {
		servers = append(servers, Server{ID: fleet.NodeID(s.ID), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(servers, func(a, b Server) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return servers, nil
}

// AddNonvoter lets a host follow the log. It is no error if it does already,
// with or without a vote. The errors are those of Propose.
func (q *Quorum) AddNonvoter(ctx context.Context, id fleet.NodeID) error {
	return q.change(ctx, id, false)
}

// AddVoter gives a host a vote. See CaughtUp: a voter that lags by much can
// leave the others without a majority. It is no error if it has one already.
// The errors are those of Propose.
func (q *Quorum) AddVoter(ctx context.Context, id fleet.NodeID) error {
	return q.change(ctx, id, true)
}

// RemoveServer takes a host out of the configuration: it neither votes nor
// follows the log any more, and is not told. It is no error if it is not in it.
// The errors are those of Propose.
func (q *Quorum) RemoveServer(ctx context.Context, id fleet.NodeID) error {
	servers, err := q.Servers()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(servers, func(s Server) bool { return s.ID == id }) {
		return nil
	}
	err = q.await(ctx, func() raft.Future { return q.raft.RemoveServer(raft.ServerID(id), 0, enqueueTimeout) })
	if err != nil {
		return err
	}
	q.log.Info("quorum changed", "node", id, "removed", true)
	return nil
}

// Outside reports whether a host is surely not in Raft's configuration: this
// one leads, and the newest configuration that it knows is committed and does
// not name the host.
func (q *Quorum) Outside(id fleet.NodeID) bool {
	if !q.Ready() {
		return false
	}
	f := q.raft.GetConfiguration()
	if f.Error() != nil || f.Index() > q.raft.CommitIndex() {
		return false
	}
	return !slices.ContainsFunc(f.Configuration().Servers, func(s raft.Server) bool { return s.ID == raft.ServerID(id) })
}

func (q *Quorum) change(ctx context.Context, id fleet.NodeID, voter bool) error {
	servers, err := q.Servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.ID == id && (s.Voter || !voter) {
			return nil
		}
	}
	server, address := raft.ServerID(id), raft.ServerAddress(id)
	err = q.await(ctx, func() raft.Future {
		if voter {
			return q.raft.AddVoter(server, address, 0, enqueueTimeout)
		}
		return q.raft.AddNonvoter(server, address, 0, enqueueTimeout)
	})
	if err != nil {
		return err
	}
	q.log.Info("quorum changed", "node", id, "voter", voter)
	return nil
}

// await is wait with a context; errors are explained.
func (q *Quorum) await(ctx context.Context, call func() raft.Future) error {
	if err := ctx.Err(); err != nil {
		return fleet.Errorf(fleet.Unavailable, "not begun: %w", err)
	}
	done := make(chan error, 1) // explained
	if !q.calls.enter() {
		return errStopping()
	}
	go func() { // Close waits for it
		defer q.calls.leave()
		f := call()
		err := f.Error()
		if err != nil {
			i, ok := f.(raft.IndexFuture)
			err = q.explain(err, ok && i.Index() != 0)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fleet.Errorf(fleet.Unknown, "outcome unknown: %w", context.Cause(ctx))
	case <-q.dead:
		return fleet.Errorf(fleet.Unknown, "outcome unknown: the store of %s failed", q.cfg.Self)
	}
}

// CaughtUp waits until a host has applied what this one had applied when it
// was called. It asks the host itself.
func (q *Quorum) CaughtUp(ctx context.Context, id fleet.NodeID) error {
	want := q.cfg.FSM.Applied()
	if id == q.cfg.Self {
		return nil
	}
	ticker := time.NewTicker(retryDelay)
	defer ticker.Stop()
	var got uint64
	var err error
	for {
		if got, err = q.cfg.Applied(ctx, id); err == nil && got >= want {
			return nil
		}
		select {
		case <-ticker.C:
		case <-q.ctx.Done():
			return errStopping()
		case <-ctx.Done():
			if err != nil {
				return fleet.Errorf(fleet.Unavailable, "%s does not say how far it has come: %w", id, err)
			}
			return fleet.Errorf(fleet.Unavailable, "%s has applied the log up to %d of %d", id, got, want)
		}
	}
}

// TransferLeadership makes another voter the leader, for a planned stop. It is
// no error if this host does not lead; it is one if no other took over.
func (q *Quorum) TransferLeadership(ctx context.Context) error {
	if !q.IsLeader() {
		return nil
	}
	servers, err := q.Servers()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(servers, func(s Server) bool { return s.Voter && s.ID != q.cfg.Self }) {
		return fleet.Errorf(fleet.NoQuorum, "%s is the only voter", q.cfg.Self)
	}
	return q.transfer(ctx, q.raft.LeadershipTransfer)
}

// TransferTo is TransferLeadership to one voter.
func (q *Quorum) TransferTo(ctx context.Context, id fleet.NodeID) error {
	if !q.IsLeader() {
		return nil
	}
	return q.transfer(ctx, func() raft.Future {
		return q.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id))
	})
}

func (q *Quorum) transfer(ctx context.Context, call func() raft.Future) error {
	// The others may elect now while their answers to us say that we lead.
	q.doubt.raise(time.Now(), q.doubt.hold)
	defer func() { q.doubt.raise(time.Now(), q.doubt.hold) }()
	return q.await(ctx, call)
}
