package raftfsm

import (
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

func removeNode(s *step, e *entry.RemoveNode, op *fleet.Operator) (string, error) {
	req, err := entry.ParseRemoveNode(e.Request)
	if err != nil {
		return "", err
	}
	n, err := s.removable(fleet.NodeID(req.InstanceId))
	if err != nil {
		return "", err
	}
	s.remove(&fleet.Removal{Node: *n, At: s.stamp, Operator: op.Name, Index: s.index})
	s.keep(entry.KindRemoveNode, req.InstanceId, &e.Authority)
	return req.InstanceId, nil
}

// maxFarewellAge is how far the time of a farewell may lie from the stamp. Who
// was told that nothing was decided must not be gone a year later, because
// somebody kept his word and brought it then.
const maxFarewellAge = 10 * time.Minute

// leave takes out a host that said so itself. The same host gets the same
// answer again: it may have missed the first.
func leave(s *step, e *entry.Leave) (any, error) {
	s.at(e.Stamp)
	l, err := identity.ParseLeave(e.Request)
	if err != nil {
		return nil, err
	}
	if l.Fleet != s.fleet {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the farewell is to fleet %s, this is fleet %s", l.Fleet, s.fleet)
	}
	if r := s.Removal(l.Node); r != nil {
		if err := l.Verify(r.Node.Key); err != nil {
			return nil, err
		}
		if r.Operator != "" {
			return nil, state.Removed(r)
		}
		return r, nil
	}
	n, err := s.FindNode(l.Node)
	if err != nil {
		return nil, err
	}
	if err := l.Verify(n.Key); err != nil {
		return nil, err
	}
	if votes(s.Trust(), n.ID) {
		return nil, OfTheQuorum(n)
	}
	if err := checkFarewellAge(l, s.stamp); err != nil {
		return nil, err
	}
	r := &fleet.Removal{Node: *n, At: s.stamp, Index: s.index}
	s.remove(r)
	s.PutRequest(&state.Request{Kind: entry.KindLeave, Object: string(n.ID), Stamp: s.stamp, Request: e.Request})
	return r, nil
}

// checkFarewellAge accepts a farewell that was signed near stamp.
func checkFarewellAge(l *identity.SignedLeave, stamp int64) error {
	at := int64(l.Epoch) * int64(time.Second)
	if at > stamp+int64(maxFarewellAge) || at < stamp-int64(maxFarewellAge) {
		return fleet.Errorf(fleet.Expired, "the farewell of %s was signed at %s, and the fleet's time is %s", l.Node, formatTime(at), formatTime(stamp)).
			WithHint("set the clock of %s", l.Node)
	}
	return nil
}

func answerRemoval(s *step, id string) any { return s.Removal(fleet.NodeID(id)) }

// removable is the row of a node that may be removed. A voter may not: trust.json
// names it, and only the root key changes that.
func (s *step) removable(id fleet.NodeID) (*fleet.Node, error) {
	n, err := s.FindNode(id)
	if err != nil {
		return nil, err
	}
	if votes(s.Trust(), id) {
		return nil, OfTheQuorum(n)
	}
	return n, nil
}

// OfTheQuorum is the refusal to remove or replace a host that decides.
func OfTheQuorum(n *fleet.Node) error {
	return fleet.Errorf(fleet.Conflict, "%s (%s) is of the quorum: it cannot leave the fleet, be removed or be replaced", n.Name, n.ID).
		WithHint("take it out of the quorum first: fleet quorum remove or replace, with the root key")
}

func votes(t *identity.Trust, id fleet.NodeID) bool {
	return t != nil && slices.ContainsFunc(t.Voters, func(v identity.TrustVoter) bool { return v.Node == id })
}

// Reasons of rows that end because their host is of the fleet no more.
const (
	reasonRemovedBefore = "the host was removed from the fleet before it was known to have begun the command"
	reasonRemovedWithin = "the host was removed from the fleet before its result came"
	reasonLeftBefore    = "the host left the fleet before it was known to have begun the command"
	reasonLeftWithin    = "the host left the fleet before its result came"

	reasonReplacedBefore = "the host was replaced by another before it was known to have begun the command"
	reasonReplacedWithin = "the host was replaced by another before its result came"
)

// remove takes a node out of the fleet. Whatever was still open on it ends: no
// word of it counts any more, so no other end could come.
func (s *step) remove(r *fleet.Removal) {
	s.RemoveNode(r)
	before, within := reasonRemovedBefore, reasonRemovedWithin
	switch {
	case r.ReplacedBy != "":
		before, within = reasonReplacedBefore, reasonReplacedWithin
	case r.Operator == "":
		before, within = reasonLeftBefore, reasonLeftWithin
	}
	for _, c := range s.OpenCommands() {
		at, target := slices.BinarySearch(c.Targets, r.Node.ID)
		if !target {
			continue
		}
		shard := uint32(at) / fleet.ShardSize
		rows := slices.Clone(s.Shard(c.ID, shard))
		row := &rows[at%fleet.ShardSize]
		end := fleet.Invocation{Index: row.Index, Code: -1, Started: row.Started}
		switch row.State {
		case fleet.Pending, fleet.CancelPending, fleet.Staged, fleet.Released:
			// Also where its turn had come: that it goes is somebody's wish and no
			// failure of the command, which is not to end everywhere by it.
			end.State, end.Reason = fleet.Undeliverable, before
		case fleet.InProgress, fleet.CancelInProgress:
			end.State, end.Reason = fleet.Interrupted, within
		default:
			continue
		}
		changed := s.changing(c)
		changed.move(row, end)
		changed.put(shard, rows)
		changed.finish()
	}
}

// refuseRemoved is an error if the agent key or the ID of a joining host was
// that of a removed one.
func (s *step) refuseRemoved(id fleet.NodeID) error {
	if r := s.Removal(id); r != nil {
		return state.Removed(r)
	}
	return nil
}
