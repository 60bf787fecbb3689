package entry

import (
	"fleet/node/fleet"
)

// MaxReleased is how many targets one entry releases.
const MaxReleased = 4096

// Release says that the turn of some targets of a staged command has come. It
// is decided before any host hears of it, so that whoever leads next knows whom
// to count as running.
type Release struct {
	Stamp   int64           `msgpack:"s"`
	Command fleet.CommandID `msgpack:"c"`
	Attempt uint32          `msgpack:"a"`
	Indexes []uint32        `msgpack:"i"` // of the targets, 1 to MaxReleased, ascending
}

// Kind is KindRelease.
func (*Release) Kind() Kind { return KindRelease }

// Check accepts the form.
func (e *Release) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	if len(e.Indexes) == 0 || len(e.Indexes) > MaxReleased {
		return fleet.Errorf(fleet.Invalid, "%d targets to release are not between 1 and %d", len(e.Indexes), MaxReleased)
	}
	for i, index := range e.Indexes {
		if i > 0 && index <= e.Indexes[i-1] {
			return fleet.Errorf(fleet.Invalid, "targets to release are not in ascending order at index %d", index)
		}
	}
	_, err := fleet.ParseCommandID(string(e.Command))
	return err
}
