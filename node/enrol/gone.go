package enrol

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fleet/node/fleet"
)

// GoneFile stands in the data directory of a host that is of the fleet no more.
const GoneFile = "gone.json"

// How a host came to be of the fleet no more.
const (
	GoneRemoved = "removed" // by an operator
	GoneLeft    = "left"    // by its own word
)

// Gone says that the host whose data directory this is is of the fleet no more.
type Gone struct {
	Version int           `json:"version"` // 1
	How     string        `json:"how"`
	Message string        `json:"message"` // for a person: who, when
	At      fleet.Instant `json:"at"`      // when this host learnt of it, by its own clock
}

// Gone is what the directory says about the end of its host; nil while the
// host is of the fleet.
func (d *Dir) Gone() (*Gone, error) {
	var g Gone
	err := d.readJSON(GoneFile, &g)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case g.Version != 1 || g.How != GoneRemoved && g.How != GoneLeft:
		return nil, fleet.Errorf(fleet.Corrupt, "%s has version %d and says %.20q; this program reads version 1", d.File(GoneFile), g.Version, g.How)
	}
	return &g, nil
}

// SaveGone writes down that the host is of the fleet no more.
func (d *Dir) SaveGone(g Gone) error {
	g.Version = 1
	return d.writeJSON(GoneFile, &g, 0o600)
}

// forgetGone empties the directory of a host that is of the fleet no more, so that
// another can be enrolled in it, with keys of its own. FORMAT goes first: what
// is cut short is a directory that holds no host.
func (d *Dir) forgetGone() error {
	if gone, err := d.Gone(); err != nil || gone == nil {
		return err
	}
	for _, name := range []string{
		"FORMAT", "fleet.json", "keys", "trust.json", "gossip.keys", "peers.json", "journal", "work", "blob", "quorum", RetiredFile, RetiredDir, GoneFile,
	} {
		if err := os.RemoveAll(d.File(name)); err != nil {
			return fmt.Errorf("empty the data directory: %w", err)
		}
	}
	return nil
}
