package raftfsm

import (
	"errors"
	"fmt"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// features raises the feature level.
func features(s *step, e *entry.Features) (any, error) {
	s.at(e.Stamp)
	if level := s.Features(); e.Level <= level {
		return nil, fleet.Errorf(fleet.Conflict, "feature level %d cannot follow level %d", e.Level, level)
	}
	s.SetFeatures(e.Level)
	return e.Level, nil
}

// marks keeps how far each voter has come. A mark never goes back: a leader that
// has just begun knows less than the one before it. One that is not among the
// voters any more has none.
func marks(s *step, e *entry.Marks) (any, error) {
	s.at(e.Stamp)
	voter := map[fleet.NodeID]bool{}
	for _, m := range e.Marks {
		voter[m.Node] = true
		if old := s.Mark(m.Node); old == nil || old.Term < m.Term || old.Term == m.Term && old.Index < m.Index {
			s.PutMark(&m)
		}
	}
	for _, old := range s.Marks() {
		if !voter[old.Node] {
			s.DeleteMark(old)
		}
	}
	return nil, nil
}

type featuresRow struct {
	Level uint32 `msgpack:"l"`
}

func (r *restorer) loadFeatures(row *featuresRow) error {
	if r.step.Features() != entry.BaseLevel {
		return errTwice
	}
	if row.Level <= entry.BaseLevel || row.Level > entry.MaxLevel {
		return fmt.Errorf("it has feature level %d, this release knows %d", row.Level, entry.MaxLevel)
	}
	r.step.SetFeatures(row.Level)
	return nil
}

func (r *restorer) loadMark(row *fleet.VoterMark) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.Mark(row.Node) != nil {
		return errTwice
	}
	if len(r.step.Marks()) == entry.MaxMarks {
		return errors.New("it has more marks than there can be voters")
	}
	if _, err := fleet.ParseNodeID(string(row.Node)); err != nil {
		return err
	}
	r.step.PutMark(row)
	return nil
}
