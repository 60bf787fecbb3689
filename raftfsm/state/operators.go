package state

import (
	"strconv"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// Appointment is one change of who may sign requests, as it was signed: the
// making or the end of an operator. All are kept, in the order of the log: who
// the operators are is their sum, and what somebody signed is judged by who he
// was then.
//
// None is ever dropped, also not of operators who are long gone: hosts that they
// let in or removed and targets that they saved are kept as they signed it and
// verified again by every replica that restores a snapshot, and a key that was
// revoked is known as such for ever. They grow by about a kilobyte for each
// operator that comes and goes, and only operators who may make others add any.
type Appointment struct {
	Index   uint64     `msgpack:"ix"` // in the log
	Kind    entry.Kind `msgpack:"k"`
	Stamp   int64      `msgpack:"s"` // of the entry, as applied
	Request []byte     `msgpack:"q"`
	Proof   []byte     `msgpack:"p"`
}

// Appointments is all of them, in the order of the log.
func (v View) Appointments() []*Appointment { return all[Appointment](v, "appointments", "id") }

// PutAppointment adds a change of who may sign.
func (t *Txn) PutAppointment(a *Appointment) { t.put("appointments", a) }

// FormerOperator is an operator whose rights have ended. It is not in a
// snapshot: the appointments tell it again.
type FormerOperator struct {
	fleet.Operator
	Ended int64 // stamp
	Index uint64
}

// FormerOperators is all operators whose rights have ended, in the order in
// which they did.
func (v View) FormerOperators() []*FormerOperator {
	return all[FormerOperator](v, "formeroperators", "id")
}

// WatchOperators is closed when an operator is made or ends.
func (v View) WatchOperators() <-chan struct{} { return v.watch("operators") }

// EndOperator takes an operator's rights and remembers that he had them.
func (t *Txn) EndOperator(f *FormerOperator) {
	t.remove("operators", &f.Operator)
	t.put("formeroperators", f)
}

func indexKey(n uint64) string { return ordered(int64(n)) + strconv.FormatUint(n, 10) }
