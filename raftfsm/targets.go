package raftfsm

import (
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// putTarget saves a choice of nodes. It is a definition and selects nothing by
// itself: who uses it resolves it, and signs what came of that.
func putTarget(s *step, e *entry.PutTarget, op *fleet.Operator) (string, error) {
	req, err := entry.ParsePutTarget(e.Request)
	if err != nil {
		return "", err
	}
	t := newTarget(req, op.Name, s.stamp)
	if s.SavedTarget(t.Name) == nil && len(s.SavedTargets()) >= entry.MaxSavedTargets {
		return "", fleet.Errorf(fleet.TooLarge, "this fleet has %d saved targets, which is the limit", entry.MaxSavedTargets).
			WithHint("remove one: fleet target rm NAME")
	}
	s.PutSavedTarget(t)
	s.keep(entry.KindPutTarget, req.Name, &e.Authority)
	return req.Name, nil
}

// newTarget is the row that a request makes at stamp.
func newTarget(req *entry.PutTargetV1, op fleet.OperatorName, stamp int64) *fleet.SavedTarget {
	return &fleet.SavedTarget{
		Name: fleet.TargetName(req.Name), Description: req.Description, NodeSet: req.NodeSet, Selectors: req.Targets,
		Operator: op, Modified: stamp,
	}
}

// answerTarget is the target; only its name is known once it was deleted.
func answerTarget(s *step, name string) any {
	if t := s.SavedTarget(fleet.TargetName(name)); t != nil {
		return t
	}
	return &fleet.SavedTarget{Name: fleet.TargetName(name)}
}

func deleteTarget(s *step, e *entry.DeleteTarget, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseDeleteTarget(e.Request)
	if err != nil {
		return "", err
	}
	t := s.SavedTarget(fleet.TargetName(req.Name))
	if t == nil {
		return "", fleet.Errorf(fleet.NotFound, "there is no target %q", req.Name).WithHint("see which there are: fleet target ls")
	}
	s.DeleteSavedTarget(t)
	if r := s.Request(entry.KindPutTarget, req.Name); r != nil {
		s.DeleteRequest(r)
	}
	return req.Name, nil
}

func answerTargetName(_ *step, name string) any { return fleet.TargetName(name) }
