package raftfsm

import (
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

func createActivation(s *step, e *entry.CreateActivation, op *fleet.Operator) (string, error) {
	req, err := entry.ParseCreateActivation(e.Request)
	if err != nil {
		return "", err
	}
	if req.Replaces != "" {
		if err := s.replaceable(op, fleet.NodeID(req.Replaces)); err != nil {
			return "", err
		}
	}
	a, err := newActivation(fleet.ActivationID(e.ID), op.Name, s.stamp, req)
	if err != nil {
		return "", err
	}
	if s.Activation(a.ID) != nil || s.Request(entry.KindCreateActivation, e.ID) != nil {
		return "", fleet.Errorf(fleet.Conflict, "an activation %s existed already", a.ID)
	}
	s.PutActivation(a)
	s.keep(entry.KindCreateActivation, e.ID, &e.Authority)
	return e.ID, nil
}

// newActivation is the row that a request makes at stamp.
func newActivation(id fleet.ActivationID, op fleet.OperatorName, stamp int64,
	req *entry.CreateActivationV1) (*fleet.Activation, error) {
	expires, err := req.Expires(stamp)
	if err != nil {
		return nil, err
	}
	return &fleet.Activation{
		ID: id, Key: req.Key(), Limit: uint32(req.RegistrationLimit), Expires: expires,
		Labels: entry.Labels(req.Tags), DefaultName: req.DefaultInstanceName, Description: req.Description,
		Operator: op, Created: stamp, Replaces: fleet.NodeID(req.Replaces),
	}, nil
}

// answerActivation is the activation; only its ID is known once it was deleted.
func answerActivation(s *step, id string) any {
	if a := s.Activation(fleet.ActivationID(id)); a != nil {
		return a
	}
	return &fleet.Activation{ID: fleet.ActivationID(id)}
}

// deleteActivation ends an activation. Its nodes stay, and with them what the
// operator signed for it.
func deleteActivation(s *step, e *entry.DeleteActivation, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseDeleteActivation(e.Request)
	if err != nil {
		return "", err
	}
	a := s.Activation(fleet.ActivationID(req.ActivationId))
	if a == nil {
		return "", noActivation("InvalidActivationId", fleet.ActivationID(req.ActivationId))
	}
	s.DeleteActivation(a)
	if r := s.Request(entry.KindCreateActivation, string(a.ID)); r != nil && a.Used == 0 {
		s.DeleteRequest(r)
	}
	return string(a.ID), nil
}

func answerActivationID(_ *step, id string) any { return fleet.ActivationID(id) }

func noActivation(code string, id fleet.ActivationID) error {
	return fleet.CodeErrorf(fleet.NotFound, code, "there is no activation %s in this fleet", id).
		WithHint("it may have been deleted; see: fleet activation ls")
}
