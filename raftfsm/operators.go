package raftfsm

import (
	"fmt"
	"slices"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// createOperator makes an operator. Nobody grants what he lacks: a key that may
// make operators must not be worth more than its owner.
func createOperator(s *step, e *entry.CreateOperator, by *fleet.Operator) (string, error) {
	req, err := entry.ParseCreateOperator(e.Request)
	if err != nil {
		return "", err
	}
	name, key := fleet.OperatorName(req.Name), req.Key()
	if word, ok := lacks(by, req.May); ok {
		return "", fleet.CodeErrorf(fleet.Denied, "AccessDeniedException", "operator %q may not grant %q: he may not do it himself", by.Name, word)
	}
	if s.Operator(name) != nil {
		return "", fleet.Errorf(fleet.Conflict, "there is an operator %q already", name).
			WithHint("choose another name, or end that one first: fleet operator rm %s", name)
	}
	all := s.Operators()
	if len(all) >= entry.MaxOperators {
		return "", fleet.Errorf(fleet.TooLarge, "this fleet has %d operators, which is the limit", entry.MaxOperators).
			WithHint("end one's rights first: fleet operator rm NAME")
	}
	for _, o := range all {
		if slices.Contains(o.Keys, key) {
			return "", fleet.Errorf(fleet.Conflict, "the key is that of operator %q already", o.Name).
				WithHint("each operator has a key of his own: make another")
		}
	}
	for _, o := range s.FormerOperators() {
		if slices.Contains(o.Keys, key) {
			return "", fleet.Errorf(fleet.Conflict, "the key was that of operator %q, whose rights ended at %s", o.Name, formatTime(o.Ended)).
				WithHint("a key that was revoked does not come back: make another")
		}
	}
	s.PutOperator(&fleet.Operator{Name: name, Keys: []fleet.PublicKey{key}, May: req.May, Created: s.stamp})
	s.appoint(entry.KindCreateOperator, &e.Authority)
	return req.Name, nil
}

// answerOperator is the operator; only the name is known once his rights ended.
func answerOperator(s *step, name string) any {
	if o := s.Operator(fleet.OperatorName(name)); o != nil {
		return o
	}
	return &fleet.Operator{Name: fleet.OperatorName(name)}
}

// deleteOperator ends an operator's rights. Who ends another must not have
// less: else the least of those who may would be above all others.
func deleteOperator(s *step, e *entry.DeleteOperator, by *fleet.Operator) (string, error) {
	req, err := entry.ParseDeleteOperator(e.Request)
	if err != nil {
		return "", err
	}
	o := s.Operator(fleet.OperatorName(req.Name))
	if o == nil {
		return "", noOperator(s.View, fleet.OperatorName(req.Name))
	}
	if word, ok := lacks(by, o.May); ok && o.Name != by.Name {
		return "", fleet.CodeErrorf(fleet.Denied, "AccessDeniedException",
			"operator %q may not end the rights of %q, who may more than he (%q)", by.Name, o.Name, word)
	}
	if slices.Contains(o.May, entry.AllOperations) && !slices.ContainsFunc(s.Operators(), func(other *fleet.Operator) bool {
		return other.Name != o.Name && slices.Contains(other.May, entry.AllOperations)
	}) {
		return "", fleet.Errorf(fleet.Conflict, "%q is the last operator who may do everything", o.Name).
			WithHint("make another first: fleet operator add NAME --admin --key PUBLICKEY")
	}
	s.EndOperator(&state.FormerOperator{Operator: *o, Ended: s.stamp, Index: s.index})
	s.appoint(entry.KindDeleteOperator, &e.Authority)
	return req.Name, nil
}

func answerOperatorName(_ *step, name string) any { return fleet.OperatorName(name) }

func noOperator(v state.View, name fleet.OperatorName) error {
	former := v.FormerOperators()
	for _, o := range slices.Backward(former) {
		if o.Name == name {
			return fleet.Errorf(fleet.NotFound, "the rights of operator %q ended at %s", name, formatTime(o.Ended))
		}
	}
	return fleet.Errorf(fleet.NotFound, "there is no operator %q", name).WithHint("see which there are: fleet operator ls")
}

// lacks is a word of may that an operator's own row does not cover.
func lacks(o *fleet.Operator, may []string) (word string, any bool) {
	if slices.Contains(o.May, entry.AllOperations) {
		return "", false
	}
	for _, word := range may {
		if !slices.Contains(o.May, word) {
			return word, true
		}
	}
	return "", false
}

// appoint keeps what was signed about an operator.
func (s *step) appoint(kind entry.Kind, a *entry.Authority) {
	s.PutAppointment(&state.Appointment{Index: s.index, Kind: kind, Stamp: s.stamp, Request: a.Request, Proof: a.Proof})
}

// loadAppointment makes a change of who may sign again, with the code that made
// it the first time and in the same order: each is judged by who the operators
// were just before it.
func (r *restorer) loadAppointment(row *state.Appointment) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if err := entry.CheckStamp(row.Stamp); err != nil {
		return err
	}
	if all := r.step.Appointments(); len(all) > 0 {
		if last := all[len(all)-1]; row.Index <= last.Index || row.Stamp < last.Stamp {
			return fmt.Errorf("it stands after entry %d, which came later", last.Index)
		}
	}
	if row.Stamp > r.step.LastStamp() {
		return fmt.Errorf("it was applied after the state's last entry")
	}
	a := entry.Authority{Stamp: row.Stamp, Request: row.Request, Proof: row.Proof}
	var body authority
	switch row.Kind {
	case entry.KindCreateOperator:
		body = &entry.CreateOperator{Authority: a}
	case entry.KindDeleteOperator:
		body = &entry.DeleteOperator{Authority: a}
	default:
		return fmt.Errorf("%s makes no operator", row.Kind)
	}
	if err := body.Check(); err != nil {
		return err
	}
	p, by, err := Authorize(r.step.View, row.Kind.Operation(), row.Stamp, row.Request, row.Proof)
	if err != nil {
		return err
	}
	if err := r.once(proofID{p.Key, p.Nonce}, objectID{row.Kind, fmt.Sprint("entry ", row.Index)}); err != nil {
		return err
	}
	s := &step{Txn: r.step.Txn, fleet: r.step.fleet, index: row.Index, stamp: row.Stamp}
	switch body := body.(type) {
	case *entry.CreateOperator:
		_, err = createOperator(s, body, by)
	case *entry.DeleteOperator:
		_, err = deleteOperator(s, body, by)
	}
	return err
}

// checkAppointments holds that nothing was taken back that this replica knows,
// and that nothing was added to a time of which it knows all: a request that an
// operator signed and that was never decided would else count after its end.
func (r *restorer) checkAppointments() error {
	now := r.step.Appointments()
	for i, known := range r.old.Appointments() {
		if i >= len(now) || same("appointment", fmt.Sprint(known.Index), now[i], known) != nil {
			return fmt.Errorf("it knows nothing of entry %d, which made or ended an operator", known.Index)
		}
	}
	for _, row := range now[len(r.old.Appointments()):] {
		if row.Stamp < r.old.LastStamp() { // as for other requests, see loadRequest
			return fmt.Errorf("%s in entry %d is of %s, and this replica has not seen it", row.Kind, row.Index, formatTime(row.Stamp))
		}
	}
	return nil
}

// operatorAt finds an operator by name as he was at a time, with a key: rows
// that were signed long ago stand when who signed them has gone.
func (r *restorer) operatorAt(stamp int64) func(name fleet.OperatorName, key fleet.KeyID) (*fleet.Operator, error) {
	return func(name fleet.OperatorName, key fleet.KeyID) (*fleet.Operator, error) {
		for _, f := range r.step.FormerOperators() {
			if f.Name == name && f.Created <= stamp && stamp <= f.Ended && holds(&f.Operator, key) {
				return &f.Operator, nil
			}
		}
		o, err := r.step.FindOperator(name)
		if err == nil && o.Created > stamp {
			err = fleet.Errorf(fleet.Unauthenticated, "operator %q had no rights yet at %s", name, formatTime(stamp))
		}
		if err == nil && !holds(o, key) { // another of that name
			err = fleet.Errorf(fleet.Unauthenticated, "key %s is not one of operator %q", key, name)
		}
		return o, err
	}
}

func holds(o *fleet.Operator, key fleet.KeyID) bool {
	return slices.ContainsFunc(o.Keys, func(k fleet.PublicKey) bool { return k.ID() == key })
}
