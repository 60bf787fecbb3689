package entry

import "time"

// What ended commands may stay in the state. Above, the oldest go.
const (
	KeptFor      = 30 * 24 * time.Hour // after their end
	KeptCommands = 10_000
	KeptTargets  = 1_000_000 // of all commands together: a target's row has up to half a kilobyte
	KeptAtLeast  = time.Hour // whatever there is: who sent a command can read what came of it
	MaxRetired   = 256       // commands that one entry removes
)

// Retire removes ended commands that have been kept long enough, oldest first,
// with their rows, documents and what was signed for them. Which ones, Apply
// decides by the stamp.
type Retire struct {
	Stamp int64 `msgpack:"s"`
}

// Kind is KindRetire.
func (*Retire) Kind() Kind { return KindRetire }

// Check accepts the form.
func (e *Retire) Check() error { return CheckStamp(e.Stamp) }
