package entry

import (
	"fleet/node/fleet"
)

// Authority is the part that all entries share which an operator must have
// asked for: the exact signed request, and what the proposer decided.
type Authority struct {
	Stamp int64 `msgpack:"s"` // the proposer's time, Unix nanoseconds; raised to the last one if below it

	// ID is the ID of the object that the entry creates, drawn by the
	// proposer; empty for entries that create none.
	ID string `msgpack:"i"`

	// Random is what a decision needs at random, drawn by the proposer; at
	// most MaxRandom bytes. No kind of this version uses it.
	Random []byte `msgpack:"r"`

	Request []byte `msgpack:"q"` // JSON, as it was signed
	Proof   []byte `msgpack:"p"` // identity.SignedProof, encoded
}

// Signed is the authority itself: entries that embed one thereby say so.
func (a *Authority) Signed() *Authority { return a }

// check accepts the form; id is whether the entry must carry an ID.
func (a *Authority) check(id bool) error {
	if err := CheckStamp(a.Stamp); err != nil {
		return err
	}
	if id {
		if _, err := fleet.ParseCommandID(a.ID); err != nil {
			return fleet.Errorf(fleet.Invalid, "the entry's ID %.64q is not a lower-case UUID", a.ID)
		}
	} else if a.ID != "" {
		return fleet.Errorf(fleet.Invalid, "the entry creates nothing but carries the ID %.64q", a.ID)
	}
	if len(a.Random) > MaxRandom {
		return fleet.Errorf(fleet.Invalid, "%d random bytes are over the limit of %d", len(a.Random), MaxRandom)
	}
	if err := checkBytes("request", a.Request, MaxRequest); err != nil {
		return err
	}
	return checkBytes("proof", a.Proof, MaxProof)
}
