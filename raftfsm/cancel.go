package raftfsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// cancelCommand marks targets of a command as cancelled. What has ended stays
// as it ended, so cancelling twice, or too late, changes nothing and is no
// error.
func cancelCommand(s *step, e *entry.CancelCommand, _ *fleet.Operator) (string, error) {
	req, err := entry.ParseCancelCommand(e.Request)
	if err != nil {
		return "", err
	}
	c, err := s.FindCommand(fleet.CommandID(req.CommandId))
	if err != nil {
		return "", err
	}
	covered, err := cancelScope(c, req)
	if err != nil {
		return "", err
	}
	changed := s.changing(c)
	for n := uint32(0); uint64(n)*fleet.ShardSize < uint64(len(c.Targets)); n++ {
		rows := slices.Clone(s.Shard(c.ID, n))
		for i := range rows {
			row := &rows[i]
			if next := row.State.Cancel(); next != row.State && covered(row.Index) {
				moved := *row
				moved.State = next
				changed.move(row, moved)
			}
		}
		changed.put(n, rows)
	}
	if changed.any {
		// One that changed nothing is not kept: so there are at most as many as
		// the command has targets.
		s.keep(entry.KindCancelCommand, cancelObject(c.ID, e.Proof), &e.Authority)
	}
	changed.finish()
	return string(c.ID), nil
}

// cancelScope is which targets of a command a request cancels.
func cancelScope(c *fleet.Command, req *entry.CancelCommandV1) (func(index uint32) bool, error) {
	if len(req.InstanceIds) == 0 {
		return func(uint32) bool { return true }, nil
	}
	named := make(map[uint32]bool, len(req.InstanceIds))
	for _, id := range req.InstanceIds {
		index, ok := state.TargetIndex(c, fleet.NodeID(id))
		if !ok {
			return nil, fleet.CodeErrorf(fleet.Invalid, "InvalidInstanceId", "node %s is not a target of command %s", id, c.ID).
				WithHint("see its targets with: fleet command show %s", c.ID)
		}
		named[index] = true
	}
	return func(index uint32) bool { return named[index] }, nil
}

// cancelObject names what was signed to cancel a command: there can be several
// for one command, and each proof is one.
func cancelObject(id fleet.CommandID, proof []byte) string {
	return string(id) + "/" + fleet.Sum(proof).String()
}

// readCancel reads what is kept of a cancel; its proof is verified already.
func readCancel(row *state.Request) (*entry.CancelCommandV1, error) {
	req, err := entry.ParseCancelCommand(row.Request)
	if err != nil {
		return nil, err
	}
	if row.Object != cancelObject(fleet.CommandID(req.CommandId), row.Proof) {
		return nil, fmt.Errorf("what was signed to cancel command %s is kept as %s", req.CommandId, row.Object)
	}
	return req, nil
}

// checkCancels accepts rows that are cancelled exactly where an operator signed
// that they be. How cancelled rows ended is believed, as all outcomes are.
func (r *restorer) checkCancels() error {
	covered := map[fleet.CommandID][]func(uint32) bool{}
	for _, ev := range r.step.Requests() {
		if ev.Kind != entry.KindCancelCommand {
			continue
		}
		req, err := readCancel(ev)
		if err != nil {
			return err
		}
		c := r.step.Command(fleet.CommandID(req.CommandId))
		if c == nil {
			return fmt.Errorf("command %s was cancelled and is not there", req.CommandId)
		}
		if ev.Stamp < c.Created {
			return fmt.Errorf("command %s was cancelled before it was made", c.ID)
		}
		scope, err := cancelScope(c, req)
		if err != nil {
			return err
		}
		covered[c.ID] = append(covered[c.ID], scope)
	}
	for _, c := range r.step.OpenCommands() {
		scopes := covered[c.ID]
		if len(scopes) == 0 && c.Count(fleet.CancelPending, fleet.CancelInProgress) == 0 {
			continue
		}
		for _, row := range r.step.Invocations(c.ID) {
			cancelled := slices.ContainsFunc(scopes, func(covers func(uint32) bool) bool { return covers(row.Index) })
			if !row.State.Final() && cancelled != row.State.Cancelling() {
				return fmt.Errorf("target %d of command %s is %s, which is not what was signed", row.Index, c.ID, row.State)
			}
		}
	}
	return r.checkCancelsKept()
}

// checkCancelsKept refuses a snapshot that has a command and not the cancel of
// it that this replica knows.
func (r *restorer) checkCancelsKept() error {
	for _, ev := range r.old.Requests() {
		if ev.Kind != entry.KindCancelCommand || r.step.Request(ev.Kind, ev.Object) != nil {
			continue
		}
		id, _, _ := strings.Cut(ev.Object, "/")
		if r.step.Command(fleet.CommandID(id)) != nil {
			return errors.New("command " + id + " was cancelled, and it says otherwise")
		}
	}
	return nil
}
