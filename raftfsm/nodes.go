package raftfsm

import (
	"maps"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// maxEpochAhead is how far the epoch of an address may lie ahead of the stamp:
// a host whose clock runs ahead could else shut itself out of later changes.
const maxEpochAhead = 10 * time.Minute

// enrol makes the row of a host. The same agent key gets the same row again,
// whatever became of the activation: the host may have missed the answer.
func enrol(s *step, e *entry.Enrol) (any, error) {
	s.at(e.Stamp)
	p, req, err := identity.ParseJoinRequest(e.Request)
	if err != nil {
		return nil, err
	}
	if p.Fleet != s.fleet {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the join request is for fleet %s, this is fleet %s", p.Fleet, s.fleet)
	}
	if n := s.NodeByKey(p.Key); n != nil {
		if !identity.Verify(p.Key, identity.UseJoin, req.Payload, req.AgentSig) {
			return nil, fleet.Errorf(fleet.Unauthenticated, "the join request is not signed by its agent key")
		}
		return n, nil
	}
	id := fleet.NodeIDOf(p.Key)
	if err := s.refuseRemoved(id); err != nil {
		return nil, err
	}
	if s.Node(id) != nil {
		return nil, fleet.Errorf(fleet.Conflict, "node %s is enrolled with another key", id).
			WithHint("remove this host's data directory and join again: it will make another key")
	}
	a := s.Activation(p.Activation)
	if a == nil {
		return nil, noActivation("InvalidActivation", p.Activation)
	}
	if err := req.Verify(a.Key); err != nil {
		return nil, err
	}
	if s.stamp >= a.Expires {
		return nil, fleet.CodeErrorf(fleet.Expired, "InvalidActivation", "activation %s expired at %s; the fleet's time is %s",
			a.ID, formatTime(a.Expires), formatTime(s.stamp)).WithHint("make another with: fleet activation create")
	}
	if a.Used >= a.Limit {
		return nil, fleet.CodeErrorf(fleet.Throttled, "InvalidActivation", "activation %s is spent: %d of %d hosts enrolled with it",
			a.ID, a.Used, a.Limit).WithHint("make another with: fleet activation create --limit N")
	}
	used := *a
	used.Used++
	s.PutActivation(&used)
	n := newNode(&p, a.DefaultName, s.stamp)
	n.Labels = maps.Clone(a.Labels)
	n.Index = s.index
	if a.Replaces != "" {
		if err := s.replace(a, n); err != nil {
			return nil, err
		}
	}
	s.PutNode(n)
	s.PutRequest(&state.Request{Kind: entry.KindEnrol, Object: string(n.ID), Stamp: s.stamp, Request: e.Request})
	return n, nil
}

// newNode is the row that a join request makes at stamp, without labels.
func newNode(p *identity.JoinPayload, defaultName string, stamp int64) *fleet.Node {
	n := &fleet.Node{
		ID: fleet.NodeIDOf(p.Key), Name: p.Name, Key: p.Key, Address: p.Address, AddressEpoch: p.Epoch,
		Activation: p.Activation, Enrolled: stamp,
	}
	if n.Name == "" {
		n.Name = defaultName
	}
	if n.Name == "" {
		n.Name = string(n.ID)
	}
	// A host may enrol with any clock, but its next change of address must be
	// able to follow.
	n.AddressEpoch = uint32(min(int64(p.Epoch), stamp/int64(time.Second)))
	return n
}

// address records where a host says it answers.
func address(s *step, e *entry.Address) (any, error) {
	s.at(e.Stamp)
	c, err := identity.ParseAddressChange(e.Request)
	if err != nil {
		return nil, err
	}
	if c.Fleet != s.fleet {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the change of address is for fleet %s, this is fleet %s", c.Fleet, s.fleet)
	}
	n, err := s.FindNode(c.Node)
	if err != nil {
		return nil, err
	}
	if err := c.Verify(n.Key); err != nil {
		return nil, err
	}
	if c.Epoch == n.AddressEpoch && c.Address == n.Address {
		return n, nil
	}
	if c.Epoch <= n.AddressEpoch {
		return nil, fleet.Errorf(fleet.Conflict, "the change of address of %s is older than the address that is known", n.ID)
	}
	if int64(c.Epoch) > (s.stamp+int64(maxEpochAhead))/int64(time.Second) {
		return nil, fleet.Errorf(fleet.Invalid, "the change of address of %s was made at %s, and the fleet's time is %s",
			n.ID, formatTime(int64(c.Epoch)*int64(time.Second)), formatTime(s.stamp)).WithHint("set the clock of %s", n.ID)
	}
	changed := *n
	changed.Address, changed.AddressEpoch, changed.Index = c.Address, c.Epoch, s.index
	s.PutNode(&changed)
	return &changed, nil
}

func addTags(s *step, e *entry.AddTags, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseAddTags(e.Request)
	if err != nil {
		return "", err
	}
	return s.relabel(req.ResourceId, func(labels map[string]string) error {
		for _, t := range req.Tags {
			labels[t.Key] = t.Value
		}
		if len(labels) > entry.MaxLabels {
			return fleet.CodeErrorf(fleet.Invalid, "TooManyTagsError", "node %s would have %d labels, over the limit of %d",
				req.ResourceId, len(labels), entry.MaxLabels)
		}
		return nil
	})
}

func removeTags(s *step, e *entry.RemoveTags, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseRemoveTags(e.Request)
	if err != nil {
		return "", err
	}
	return s.relabel(req.ResourceId, func(labels map[string]string) error {
		for _, key := range req.TagKeys {
			delete(labels, key)
		}
		return nil
	})
}

// relabel changes the labels of a node.
func (s *step) relabel(id string, change func(labels map[string]string) error) (string, error) {
	n := s.Node(fleet.NodeID(id))
	if n == nil {
		if r := s.Removal(fleet.NodeID(id)); r != nil {
			return "", fleet.CodeErrorf(fleet.NotFound, "InvalidResourceId", "%s", state.RemovedText(r))
		}
		return "", fleet.CodeErrorf(fleet.NotFound, "InvalidResourceId", "node %s is not enrolled in this fleet", id)
	}
	changed := *n
	changed.Labels = maps.Clone(n.Labels)
	if changed.Labels == nil {
		changed.Labels = map[string]string{}
	}
	if err := change(changed.Labels); err != nil {
		return "", err
	}
	if len(changed.Labels) == 0 {
		changed.Labels = nil
	}
	changed.Index = s.index
	s.PutNode(&changed)
	return id, nil
}

func answerNode(s *step, id string) any { return s.Node(fleet.NodeID(id)) }
