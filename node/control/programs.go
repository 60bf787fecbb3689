package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"fleet/node/fleet"
)

// maxPrograms is how many programs that operators sent are kept from being given
// up for room on one host; those of a longer time ago are blobs as others.
const maxPrograms = 4

// programs are those that were sent to this host, the newest last.
type programs struct {
	mu     sync.Mutex // guards pinned
	pinned []fleet.Digest
}

// HasProgram reports whether a program is on this host.
func (c *Control) HasProgram(d fleet.Digest) bool { return c.cfg.Blobs.Has(d) }

// KeepProgram takes a program from an operator, if it is what he says, and
// brings it to other voters until two have it, or all if there are fewer.
func (c *Control) KeepProgram(ctx context.Context, d fleet.Digest, size int64, body io.Reader) (copies int, err error) {
	if err := c.takeProgram(d, size, body); err != nil {
		return 0, err
	}
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return 0, err
	}
	due, voters := 0, []fleet.NodeID{}
	for _, s := range servers {
		switch {
		case !s.Voter:
		case s.ID == c.cfg.Self:
			copies++
			due++
		default:
			voters = append(voters, s.ID)
			due++
		}
	}
	due = min(2, due)
	var failures []error
	for _, v := range voters {
		if copies >= due {
			break
		}
		if err := c.cfg.Spread(ctx, v, d); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", v, err))
			continue
		}
		copies++
	}
	if copies < due {
		return copies, fleet.Errorf(fleet.Unavailable, "the program is on %d voters, and should be on %d: %w", copies, due, errors.Join(failures...))
	}
	return copies, nil
}

// takeProgram stores what is sent. It also reads to the end what is here
// already: whoever sends does not know that.
func (c *Control) takeProgram(d fleet.Digest, size int64, body io.Reader) error {
	if c.cfg.Blobs.Has(d) {
		c.pinProgram(d)
		_, err := io.Copy(io.Discard, body)
		return ended(err)
	}
	w, err := c.cfg.Blobs.Create(size)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, body)
	if err = ended(err); err == nil && (n != size || w.Digest() != d) {
		err = fleet.Errorf(fleet.Invalid, "the program that came is %s with %d bytes, and not %s with %d", w.Digest(), n, d, size)
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	if _, err := w.Commit(); err != nil {
		return err
	}
	c.pinProgram(d)
	return nil
}

func ended(err error) error {
	if err != nil {
		return fleet.Errorf(fleet.Unknown, "the program did not come whole: %w", err)
	}
	return nil
}

// pinProgram keeps a program until others were sent after it.
func (c *Control) pinProgram(d fleet.Digest) {
	p := &c.programs
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.pinned, d); i >= 0 {
		p.pinned = append(slices.Delete(p.pinned, i, i+1), d)
		return
	}
	if !c.cfg.Blobs.Pin(d) {
		return // given up in this moment: it is sent again when it is missed
	}
	p.pinned = append(p.pinned, d)
	if len(p.pinned) > maxPrograms {
		c.cfg.Blobs.Unpin(p.pinned[0])
		p.pinned = slices.Delete(p.pinned, 0, 1)
	}
}
