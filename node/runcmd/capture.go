package runcmd

import (
	"crypto/sha256"
	"fmt"
	"hash"

	"fleet/node/blob"
	"fleet/node/fleet"
)

// capture takes one output of a step. A short one stays in memory, a long one
// goes to a blob as it comes. Writing to it never fails and never waits for
// more than the disk: a command is not to notice that it is watched.
type capture struct {
	blobs *blob.Store
	limit int64
	small []byte       // all of it, while w is nil
	w     *blob.Writer // from the byte on that does not fit in small
	err   error        // of the blob; then nothing is kept, but all is counted
	count *counter     // stands in for w after err
}

func newCapture(blobs *blob.Store, limit int64) *capture { return &capture{blobs: blobs, limit: limit} }

func (c *capture) Write(b []byte) (int, error) {
	switch {
	case c.w != nil:
		_, _ = c.w.Write(b) // reports at Commit
	case c.count != nil:
		c.count.add(b)
	case len(c.small)+len(b) <= MaxInline:
		c.small = append(c.small, b...)
	default:
		c.spill()
		return c.Write(b)
	}
	return len(b), nil
}

// spill moves what came so far out of memory.
func (c *capture) spill() {
	small := c.small
	c.small = nil
	if c.w, c.err = c.blobs.Create(c.limit); c.err != nil {
		c.w, c.count = nil, newCounter()
		c.count.add(small)
		return
	}
	c.w.Pin() // until the quorum has it
	_, _ = c.w.Write(small)
}

// finish ends the output. inline is how much may stand in the details; note
// says what was not kept, for a person.
func (c *capture) finish(name string, inline int) (s StreamDetail, note string) {
	if c.w == nil && c.count == nil && len(c.small) > inline {
		c.spill()
	}
	switch {
	case c.count != nil:
		s = StreamDetail{Total: c.count.total, Digest: c.count.sum()}
	case c.w != nil:
		var ref blob.Ref
		ref, c.err = c.w.Commit()
		s = StreamDetail{Total: uint64(ref.Total), Digest: ref.TotalDigest, Stored: uint64(ref.Size), Blob: ref.Digest}
	default:
		n := uint64(len(c.small))
		s = StreamDetail{Total: n, Digest: fleet.Sum(c.small), Stored: n, Inline: c.small}
	}
	if c.err != nil {
		s.Stored, s.Blob = 0, fleet.Digest{}
		note = fmt.Sprintf("%s was not kept: %v", name, c.err)
	}
	return s, note
}

// counter counts and hashes output that cannot be kept.
type counter struct {
	hash  hash.Hash
	total uint64
}

func newCounter() *counter { return &counter{hash: sha256.New()} }

func (c *counter) add(b []byte) {
	_, _ = c.hash.Write(b) // a hash never fails
	c.total += uint64(len(b))
}

func (c *counter) sum() fleet.Digest { return fleet.Digest(c.hash.Sum(nil)) }
