package quorum

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Raft notices a disk that hangs only by its own reads and writes, and a leader
// of an idle fleet makes none: it would go on to lead, since heartbeats need no
// disk, and the first entry would find out. So a few bytes are written, as a
// log entry is, and the guard times that like everything else.

const (
	probeFile = "probe"

	leaderProbe = time.Second      // between two writes of a leader
	otherProbe  = 10 * time.Second // of any other host of the quorum

	// SlowDisk is how long writes take of a disk that is called slow: an election
	// needs three, one after the other, within its timeout of a second or two.
	SlowDisk = 300 * time.Millisecond
)

// diskProbe writes to the disk of a directory and waits until it is there. The
// file keeps its size, so that a full disk is told by what must grow.
func diskProbe(dir string) func() error {
	path := filepath.Join(dir, probeFile)
	return func() (err error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if _, err := fmt.Fprintf(f, "%020d\n", time.Now().UnixNano()); err != nil {
			return err
		}
		return f.Sync()
	}
}

// watchDisk writes now and then, and ends with the first write that fails.
func (q *Quorum) watchDisk(g *guard, probe func() error) {
	for {
		every := otherProbe
		if q.IsLeader() {
			every = leaderProbe
		}
		select {
		case <-time.After(every):
		case <-q.ctx.Done():
			return
		case <-q.dead:
			return
		}
		began := time.Now()
		if err := g.do("write to the disk", probe); err != nil {
			return
		}
		q.mu.Lock()
		q.writes = append(q.writes[max(0, len(q.writes)-2):len(q.writes):len(q.writes)], time.Since(began))
		q.mu.Unlock()
	}
}

// DiskDelay is the least that the last three writes to the disk took; 0 before
// there were three. Above SlowDisk the quorum is slow, and elections may fail.
func (q *Quorum) DiskDelay() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.writes) < 3 {
		return 0
	}
	return slices.Min(q.writes)
}
