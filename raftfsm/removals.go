package raftfsm

import (
	"slices"

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

// OfTheQuorum is the refusal to remove a host that decides.
func OfTheQuorum(n *fleet.Node) error {
	return fleet.Errorf(fleet.Conflict, "%s (%s) is of the quorum: it cannot leave the fleet or be removed", n.Name, n.ID).
		WithHint("this release does not take hosts out of the quorum")
}

func votes(t *identity.Trust, id fleet.NodeID) bool {
	return t != nil && slices.ContainsFunc(t.Voters, func(v identity.TrustVoter) bool { return v.Node == id })
}

// Reasons of rows that end because their host is of the fleet no more.
const (
	reasonRemovedBefore = "the host was removed from the fleet before it was known to have the command"
	reasonRemovedWithin = "the host was removed from the fleet before its result came"
)

// remove takes a node out of the fleet. Whatever was still open on it ends: no
// word of it counts any more, so no other end could come.
func (s *step) remove(r *fleet.Removal) {
	s.RemoveNode(r)
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
		case fleet.Pending, fleet.CancelPending:
			end.State, end.Reason = fleet.Undeliverable, reasonRemovedBefore
		case fleet.InProgress, fleet.CancelInProgress:
			end.State, end.Reason = fleet.Interrupted, reasonRemovedWithin
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
