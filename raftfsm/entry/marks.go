package entry

import (
	"fleet/node/fleet"
)

// MaxMarks is how many voters one entry is about.
const MaxMarks = 16

// Marks says how far each voter's log has come, as far as the leader knows: a
// voter whose store is behind its mark later has lost what it acknowledged.
type Marks struct {
	Stamp int64             `msgpack:"s"`
	Marks []fleet.VoterMark `msgpack:"m"` // of every voter, ascending by node; zeros where the leader knows nothing
}

// Kind is KindMarks.
func (*Marks) Kind() Kind { return KindMarks }

// Check accepts the form.
func (e *Marks) Check() error {
	if len(e.Marks) == 0 || len(e.Marks) > MaxMarks {
		return fleet.Errorf(fleet.Invalid, "marks of %d voters are not between 1 and %d", len(e.Marks), MaxMarks)
	}
	for i, m := range e.Marks {
		if _, err := fleet.ParseNodeID(string(m.Node)); err != nil {
			return err
		}
		if i > 0 && m.Node <= e.Marks[i-1].Node {
			return fleet.Errorf(fleet.Invalid, "marks are not in ascending order at %s", m.Node)
		}
		if (m.Term == 0) != (m.Index == 0) {
			return fleet.Errorf(fleet.Invalid, "the mark of %s has a term or an index without the other", m.Node)
		}
	}
	return CheckStamp(e.Stamp)
}
