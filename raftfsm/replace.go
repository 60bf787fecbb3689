package raftfsm

import (
	"errors"
	"fmt"
	"maps"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// This file is the replacement of a host by another, which enrols with an
// activation that says so: one entry lets in the new one and takes out the old
// one, so that at no index both are of the fleet, or neither.

// mayReplace accepts an operator who may also remove hosts: else the right to
// let hosts in would be enough to take others out.
func mayReplace(op *fleet.Operator) error {
	if word, ok := lacks(op, []string{entry.KindRemoveNode.Operation()}); ok {
		return fleet.CodeErrorf(fleet.Denied, "AccessDeniedException",
			"operator %q may not %s, and an activation that replaces a host removes it", op.Name, word)
	}
	return nil
}

// replaceable accepts the node that an activation is to replace.
func (s *step) replaceable(op *fleet.Operator, id fleet.NodeID) error {
	if err := mayReplace(op); err != nil {
		return err
	}
	_, err := s.removable(id)
	return err
}

// replace puts a host that enrols in the place of the one that its activation
// names. All is looked at again: days may lie between the activation and its
// use, and in them the host can have gone, or its operator.
func (s *step) replace(a *fleet.Activation, n *fleet.Node) error {
	if r := s.Removal(a.Replaces); r != nil {
		return fleet.CodeErrorf(fleet.Conflict, "InvalidActivation", "activation %s replaces a host that is gone: %s", a.ID, state.RemovedText(r)).
			WithHint("join with an activation of its own: fleet activation create")
	}
	old, err := s.removable(a.Replaces)
	if err != nil {
		return err
	}
	if err := s.stillMayReplace(a); err != nil {
		return err
	}
	n.Name, n.Labels, n.Replaces = inherited(old.Name, n.Name), maps.Clone(old.Labels), old.ID
	s.remove(&fleet.Removal{Node: *old, At: s.stamp, Operator: a.Operator, ReplacedBy: n.ID, Index: s.index})
	return nil
}

// stillMayReplace accepts an activation whose operator could make it now: who
// may remove no hosts any more does not do it by what he left behind.
func (s *step) stillMayReplace(a *fleet.Activation) error {
	ev := s.Request(entry.KindCreateActivation, string(a.ID))
	if ev == nil {
		return fmt.Errorf("nobody signed for activation %s", a.ID)
	}
	p, err := identity.ParseProof(ev.Proof)
	if err != nil {
		return err
	}
	op := s.OperatorByKey(p.Key)
	if op == nil || op.Name != a.Operator {
		return fleet.CodeErrorf(fleet.Denied, "InvalidActivation", "activation %s replaces a host, and operator %q, who made it, has no rights any more",
			a.ID, a.Operator).WithHint("ask another operator for one: fleet activation create --replaces %s", a.Replaces)
	}
	return mayReplace(op)
}

// inherited is the name of a host that takes the place of another. A host that
// nobody named is called by its ID, which no other host may be called.
func inherited(old, own string) string {
	if _, err := fleet.ParseNodeID(old); err == nil {
		return own
	}
	return old
}

// checkMayReplace verifies that who signed for an activation could have it
// replace a host.
func checkMayReplace(row *state.Request, op *fleet.Operator) error {
	if row.Kind != entry.KindCreateActivation {
		return nil
	}
	req, err := entry.ParseCreateActivation(row.Request)
	if err != nil || req.Replaces == "" {
		return err
	}
	return mayReplace(op)
}

// checkReplaced verifies that the host that took the place of a removed one had
// an activation for that, of somebody who might then.
func (r *restorer) checkReplaced(row *fleet.Removal) error {
	n, err := r.enrolled(row.ReplacedBy)
	if err != nil {
		return err
	}
	activation, name, err := r.signedBy(entry.KindCreateActivation, string(n.Activation))
	if err != nil {
		return err
	}
	if n.Replaces != row.Node.ID || n.Enrolled != row.At || name != row.Operator {
		return fmt.Errorf("node %s did not replace node %s as it is said", row.ReplacedBy, row.Node.ID)
	}
	p, err := identity.ParseProof(activation.Proof)
	if err != nil {
		return err
	}
	op, err := r.operatorAt(row.At)(name, p.Key)
	if err != nil {
		return err
	}
	if err := mayReplace(op); err != nil {
		return err
	}
	return r.refuseUnseen(r.step.Request(entry.KindEnrol, string(row.ReplacedBy)))
}

// checkReplacements holds that who took a place and whose place was taken say
// the same.
func (r *restorer) checkReplacements() error {
	s := r.step
	took := func(n *fleet.Node) error {
		if n.Replaces == "" {
			return nil
		}
		if old := s.Removal(n.Replaces); old == nil || old.ReplacedBy != n.ID {
			return fmt.Errorf("node %s took the place of node %s, of which that is not known", n.ID, n.Replaces)
		}
		return nil
	}
	for _, n := range s.Nodes() {
		if err := took(n); err != nil {
			return err
		}
	}
	for _, gone := range s.Removals() {
		if err := took(&gone.Node); err != nil {
			return err
		}
		if by := gone.ReplacedBy; by != "" && s.Node(by) == nil && s.Removal(by) == nil {
			return fmt.Errorf("node %s was replaced by node %s, which there is not", gone.Node.ID, by)
		}
	}
	return nil
}

// named is the name that a host has, or had at its end, of its row as it
// enrolled: the one that an operator gave it, that of the host that it replaced,
// or its own.
func (r *restorer) named(n *fleet.Node) (string, error) {
	if name, ok := r.names[n.ID]; ok {
		if name == nil {
			return "", errors.New("hosts replaced each other in a circle")
		}
		return *name, nil
	}
	r.names[n.ID] = nil
	name, given, err := r.renamed(n.ID)
	if err == nil && !given {
		name = n.Name
		if n.Replaces != "" {
			name, err = r.nameInherited(n)
		}
	}
	if err != nil {
		return "", err
	}
	r.names[n.ID] = &name
	return name, nil
}

func (r *restorer) nameInherited(n *fleet.Node) (string, error) {
	old := &r.genesis.Node
	if n.Replaces != old.ID {
		var err error
		if old, err = r.enrolled(n.Replaces); err != nil {
			return "", err
		}
	}
	name, err := r.named(old)
	return inherited(name, n.Name), err
}
