package quorum

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A leader proves that it still leads by a majority of answers to its
// heartbeats (Raft's VerifyLeader). A follower that answered gives its vote to
// nobody else for a heartbeat timeout, so an answer proves what it says only
// if it is about a heartbeat of the last moments. Raft does not look: it counts
// any answer that comes in after the question, also one that the network or a
// pause of this process held back while others elected a leader and
// acknowledged entries. Therefore:
//
//   - the answer to a heartbeat that took longer than the lease is dropped;
//   - while an answer that took longer and cannot be dropped (it acknowledges
//     entries) may be counted, after a pause of the process, and while
//     leadership is being handed over (then followers do vote for another),
//     reads go through the log instead: there is doubt.
//
// The lease is shorter than the heartbeat timeout, on every voter.

// errLate is a heartbeat's answer that proves nothing any more.
var errLate = errors.New("the answer came too late to prove anything")

// provingTransport measures how old answers are.
type provingTransport struct {
	*raft.NetworkTransport
	doubt *doubt
}

// AppendEntries is how Raft sends entries and heartbeats.
func (t provingTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress,
	req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := time.Now()
	if err := t.NetworkTransport.AppendEntries(id, target, req, resp); err != nil {
		return err
	}
	if elapsed(sent, time.Now()) <= t.doubt.limit || resp.Term > req.Term { // a newer term is always news
		return nil
	}
	if isHeartbeat(req) {
		return errLate
	}
	t.doubt.raise(time.Now(), t.doubt.limit)
	return nil
}

// isHeartbeat tells what Raft sends beside the entries.
func isHeartbeat(req *raft.AppendEntriesRequest) bool {
	return req.PrevLogEntry == 0 && req.LeaderCommitIndex == 0 && len(req.Entries) == 0
}

// InstallSnapshot takes as long as it takes, and its answer counts too.
func (t provingTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress,
	req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	err := t.NetworkTransport.InstallSnapshot(id, target, req, resp, data)
	t.doubt.raise(time.Now(), t.doubt.limit)
	return err
}

// elapsed goes by the clock that counts more: the monotonic one stands still
// while the machine is suspended, the other can be set.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// doubt says whether old answers may be about.
type doubt struct {
	limit time.Duration // an answer older than this proves nothing; a gap longer than this is a pause
	hold  time.Duration // how long after a pause an answer from before it may still come

	mu    sync.Mutex // guards what follows
	last  time.Time  // the last tick
	until time.Time  // end of the doubt
}

// raise begins doubt that lasts for d.
func (d *doubt) raise(now time.Time, lasts time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.raiseLocked(now, lasts)
}

func (d *doubt) raiseLocked(now time.Time, lasts time.Duration) {
	if until := now.Add(lasts); until.After(d.until) {
		d.until = until
	}
}

// tick notes that the process runs. It must be called several times in limit.
func (d *doubt) tick(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pausedLocked(now)
	d.last = now
}

// exists reports doubt. It notices a pause that ended just now, before any tick.
func (d *doubt) exists(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pausedLocked(now)
	return now.Before(d.until)
}

func (d *doubt) pausedLocked(now time.Time) {
	if !d.last.IsZero() && elapsed(d.last, now) > d.limit {
		d.raiseLocked(now, d.hold)
	}
}

// watchPauses ticks.
func (q *Quorum) watchPauses() {
	ticker := time.NewTicker(q.doubt.limit / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			q.doubt.tick(time.Now())
		case <-q.ctx.Done():
			return
		case <-q.dead:
			return
		}
	}
}
