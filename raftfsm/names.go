package raftfsm

import (
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// renameNode gives a node another name. Names are for people: several nodes may
// have one.
func renameNode(s *step, e *entry.RenameNode, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseRenameNode(e.Request)
	if err != nil {
		return "", err
	}
	n, err := s.FindNode(fleet.NodeID(req.InstanceId))
	if err != nil {
		return "", err
	}
	changed := *n
	changed.Name, changed.Index = req.Name, s.index
	s.PutNode(&changed)
	s.keep(entry.KindRenameNode, req.InstanceId, &e.Authority)
	return req.InstanceId, nil
}

// renamed is the name that an operator gave a node last; false if none did.
func (r *restorer) renamed(id fleet.NodeID) (string, bool, error) {
	ev := r.step.Request(entry.KindRenameNode, string(id))
	if ev == nil {
		return "", false, nil
	}
	req, err := entry.ParseRenameNode(ev.Request)
	if err != nil {
		return "", false, err
	}
	return req.Name, req.InstanceId == string(id), nil
}
