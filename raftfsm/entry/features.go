package entry

import (
	"fmt"

	"fleet/node/fleet"
)

// A voter stops at an entry of a kind that it does not know. So that voters of
// two releases can work together, the log says which kinds may be proposed: a
// feature level, which the leader raises when every host of the quorum has said
// that it knows it, and which never falls.

// Feature levels. A release that adds kinds of entries, or changes what one
// means, has the next.
const (
	BaseLevel uint32 = 1 // before any Features entry
	MaxLevel  uint32 = 2 // what this release knows
)

// levels is the level that a kind needs; kinds that are not here are of
// BaseLevel.
var levels = map[Kind]uint32{
	KindRelease:   2,
	KindRetire:    2,
	KindFeatures:  2,
	KindMarks:     2,
	KindGossipKey: 2,
}

// Level is the feature level that must be decided before an entry of this kind
// may be proposed. Features itself may be proposed before.
func (k Kind) Level() uint32 {
	if level, ok := levels[k]; ok {
		return level
	}
	return BaseLevel
}

// Features raises the feature level. It is proposed when every host of the
// quorum knows it.
type Features struct {
	Stamp int64  `msgpack:"s"`
	Level uint32 `msgpack:"l"`
}

// Kind is KindFeatures.
func (*Features) Kind() Kind { return KindFeatures }

// Check accepts the form.
func (e *Features) Check() error {
	if e.Level <= BaseLevel {
		return fleet.Errorf(fleet.Invalid, "feature level %d is not above the first", e.Level)
	}
	return CheckStamp(e.Stamp)
}

// decodeFeatures stops at a level that this release does not know: what is
// decided from there on it could not follow.
func decodeFeatures(b []byte) (Body, error) {
	body, err := decode[Features](b)
	if err != nil {
		return nil, err
	}
	if level := body.(*Features).Level; level > MaxLevel {
		return nil, fmt.Errorf("feature level %d, this release knows %d", level, MaxLevel)
	}
	return body, nil
}
