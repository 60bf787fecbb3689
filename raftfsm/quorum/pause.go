package quorum

import (
	"sync"
	"time"
)

// pauseDetector notices that the process did not run for a while (stopped,
// suspended with its machine, starved).
//
// Raft's VerifyLeader counts any answer to a heartbeat that arrives after the
// question. While the process runs, that is safe: an answer belongs to a
// heartbeat of the last moments, in which nobody else can have been elected. A
// process that was paused finds answers from before the pause in its sockets,
// and others may have elected a leader and acknowledged entries since. Then,
// and for as long as a request of that time may still be answered, reads go
// through the log instead.
type pauseDetector struct {
	limit time.Duration // a gap that is a pause: Raft's lease
	hold  time.Duration // how long after one answers from before it may come in

	mu    sync.Mutex // guards what follows
	last  time.Time  // the last tick
	until time.Time  // end of the suspicion
}

// tick notes that the process runs. It must be called several times in limit.
func (p *pauseDetector) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checkLocked(now)
	p.last = now
}

// suspect reports whether answers from before a pause may be about. It notices
// a pause that ended just now, before any tick.
func (p *pauseDetector) suspect(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checkLocked(now)
	return now.Before(p.until)
}

// checkLocked compares both clocks: the monotonic one stands still while the
// machine is suspended, the other can be set.
func (p *pauseDetector) checkLocked(now time.Time) {
	if p.last.IsZero() {
		return
	}
	if now.Sub(p.last) > p.limit || now.Round(0).Sub(p.last.Round(0)) > p.limit {
		p.until = now.Add(p.hold)
	}
}

// watchPauses ticks.
func (q *Quorum) watchPauses() {
	ticker := time.NewTicker(q.cfg.Timing.Lease / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			q.pause.tick(time.Now())
		case <-q.ctx.Done():
			return
		case <-q.dead:
			return
		}
	}
}
