package upgrade

import (
	"fmt"
	"time"

	"fleet/node/fleet"
)

// Numbers of starts after which a new program is given up.
const (
	maxEnds  = 3 // that the guard sees: each within seconds of the last
	maxTries = 6 // that the new program counts itself, should the guard be gone
)

// Course is what an agent that starts has to do about its last upgrade.
type Course uint8

// Courses.
const (
	Nothing Course = iota // there is none, or it is over
	Prove                 // this is the new program: it has to be confirmed
	PutBack               // it was started too often: this program gives itself up
	WasBack               // the old program runs again, and nobody has written that down
)

// Wake decides it from the record and the digest of the program that starts.
func Wake(r *Record, self fleet.Digest) (Course, string) {
	switch {
	case r == nil || r.Stage != Pending:
		return Nothing, ""
	case r.To.Digest != self.String():
		return WasBack, "the host ended before the new program had run, or the program was replaced by hand"
	case r.Tries >= maxTries:
		return PutBack, fmt.Sprintf("it was started %d times and was never well", r.Tries)
	}
	return Prove, ""
}

// sight is what the guard sees at one look.
type sight struct {
	stage   Stage
	ends    int           // of the service's process since the guard began, the ordered one among them
	elapsed time.Duration // since then
	healthy time.Duration // that the new program may take
}

// orderlyStop is what the old program may take to end, on top.
const orderlyStop = 30 * time.Second

// judge is the guard's decision: over (nothing is to be done any more), or the
// reason for which the old program goes back; neither while it is to be waited.
func judge(s sight) (over bool, reason string) {
	switch {
	case s.stage != Pending:
		return true, ""
	case s.ends > maxEnds: // one of them was that of the old program
		return false, fmt.Sprintf("it ended %d times before it was well", s.ends-1)
	case s.elapsed > s.healthy+orderlyStop:
		return false, fmt.Sprintf("the quorum had not answered it within %s", s.healthy)
	}
	return false, ""
}
