package raftfsm

import (
	"slices"
	"strings"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// retire removes ended commands that have been kept long enough, and answers how
// many. Nothing that is open goes, and nothing that ended within the last hour.
// The nonces of proofs live ten minutes, so what is gone is not sent again.
func retire(s *step, e *entry.Retire) (any, error) {
	s.at(e.Stamp)
	gone := retired(s.Commands(0, ""), s.stamp)
	for _, c := range gone {
		s.DeleteCommand(c)
		s.DeleteRequest(s.Request(entry.KindSendCommand, string(c.ID)))
	}
	if len(gone) == 0 {
		return 0, nil
	}
	kept := map[fleet.Digest]bool{}
	for _, c := range s.Commands(0, "") {
		kept[c.Document] = true
	}
	for _, c := range gone {
		if !kept[c.Document] {
			s.DeleteContent(c.Document)
		}
	}
	for _, row := range s.Requests() {
		if id, _, _ := strings.Cut(row.Object, "/"); row.Kind == entry.KindCancelCommand && s.Command(fleet.CommandID(id)) == nil {
			s.DeleteRequest(row)
		}
	}
	return len(gone), nil
}

// retired is which of all commands, newest first, go at stamp.
func retired(all []*fleet.Command, stamp int64) (gone []*fleet.Command) {
	commands, targets := len(all), 0
	for _, c := range all {
		targets += len(c.Targets)
	}
	for _, c := range slices.Backward(all) {
		if len(gone) == entry.MaxRetired {
			break
		}
		over := commands > entry.KeptCommands || targets > entry.KeptTargets
		old := stamp >= c.Ended+int64(entry.KeptFor)
		if c.Open() || !old && (!over || stamp < c.Ended+int64(entry.KeptAtLeast)) {
			continue
		}
		gone = append(gone, c)
		commands--
		targets -= len(c.Targets)
	}
	return gone
}
