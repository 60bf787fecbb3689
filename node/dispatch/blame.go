package dispatch

import (
	"cmp"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/relay"
)

const (
	// unfitTime is how long a host that did not carry what it was asked is not
	// given anything to carry.
	unfitTime = 5 * time.Minute

	blamedTime = time.Hour // how long it is shown
	maxBlamed  = 256
)

// Blame is what a relay did wrong lately. It was survived: another way was
// taken each time.
type Blame struct {
	Relay   fleet.NodeID
	Command fleet.CommandID // the last for which it did
	Why     string          // of that
	Taken   int             // targets that were taken over from it
	False   int             // words of its that were refused
	Again   int             // words that it said more than once
	At      time.Time       // of the last
}

// blame notes what a relay did wrong.
func (d *Dispatcher) blame(f relay.Failure, command fleet.CommandID) {
	now := d.cfg.Now()
	d.blameMu.Lock()
	defer d.blameMu.Unlock()
	b := d.blamed[f.Child]
	if b == nil {
		if len(d.blamed) >= maxBlamed {
			oldest := ""
			for id, other := range d.blamed {
				if oldest == "" || other.At.Before(d.blamed[fleet.NodeID(oldest)].At) {
					oldest = string(id)
				}
			}
			delete(d.blamed, fleet.NodeID(oldest))
		}
		b = &Blame{Relay: f.Child}
		d.blamed[f.Child] = b
	}
	if b.Command != command {
		d.cfg.Logger.Warn("relay did not do its part", "relay", f.Child, "command", command, "reason", f.Why,
			"taken", f.Taken, "false", f.False, "again", f.Again)
	}
	b.Command, b.Why, b.At = command, f.Why, now
	b.Taken, b.False, b.Again = b.Taken+f.Taken, b.False+f.False, b.Again+f.Again
}

// unfit reports whether a host failed as a relay just now.
func (d *Dispatcher) unfit(node fleet.NodeID) bool {
	d.blameMu.Lock()
	defer d.blameMu.Unlock()
	b := d.blamed[node]
	return b != nil && d.cfg.Now().Sub(b.At) < unfitTime
}

// Blamed are the relays that did something wrong within the last hour.
func (d *Dispatcher) Blamed() []Blame {
	now := d.cfg.Now()
	d.blameMu.Lock()
	defer d.blameMu.Unlock()
	var all []Blame
	for id, b := range d.blamed {
		if now.Sub(b.At) > blamedTime {
			delete(d.blamed, id)
			continue
		}
		all = append(all, *b)
	}
	slices.SortFunc(all, func(a, b Blame) int { return cmp.Compare(a.Relay, b.Relay) })
	return all
}
