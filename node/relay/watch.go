package relay

import (
	"sync"
	"time"
)

const (
	// Beat is how often a child says that it is there.
	Beat = time.Second

	missedBeats = 3 // then the child is given up

	minAccept = 300 * time.Millisecond
	maxAccept = 5 * time.Second

	// news is added to the time for the next word about a target: the journal of
	// a host, and its wait for a result before it sends a receipt.
	news = 500 * time.Millisecond
)

// Pace estimates how long children take to accept, and so how long to wait for
// one: three times that and a little. A host that has too much to do is slow
// with all its children at once; those that were given up double the estimate,
// once for all that were waited for at the same time.
// It is safe for concurrent use; the zero value begins with 300 ms.
type Pace struct {
	mu       sync.Mutex // guards what follows
	estimate time.Duration
	doubled  time.Time // when it was last
}

const firstEstimate = 300 * time.Millisecond

// Accept is how long to wait for a child to accept.
func (p *Pace) Accept() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(max(3*p.getLocked()+100*time.Millisecond, minAccept), maxAccept)
}

// Saw notes how long one took.
func (p *Pace) Saw(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.estimate = max((7*p.getLocked()+took)/8, time.Millisecond)
}

// Missed notes that one was given up that was waited for since a time.
func (p *Pace) Missed(since, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if since.Before(p.doubled) {
		return
	}
	p.estimate, p.doubled = min(2*p.getLocked(), maxAccept), now
}

func (p *Pace) getLocked() time.Duration {
	if p.estimate == 0 {
		return firstEstimate
	}
	return p.estimate
}

// Quiet is how long a child that accepted may take for the next word about a
// target that nothing was heard of: its own children may have to be given up
// first.
func Quiet(accept time.Duration) time.Duration { return 2*accept + news }

// watch is what a parent knows of a child at work; what it decides is pure.
type watch struct {
	accept   time.Duration // to wait for
	opened   time.Time
	accepted time.Time // zero: not yet
	message  time.Time // of the last message
	heard    time.Time // when something was last heard of a target for the first time
	missing  int       // targets that nothing was heard of
}

// got is a message in which something was heard of so many targets for the
// first time.
func (w *watch) got(now time.Time, fresh int) {
	if w.accepted.IsZero() {
		w.accepted, w.heard = now, now
	}
	w.message = now
	if fresh > 0 {
		w.heard, w.missing = now, w.missing-fresh
	}
}

// due is when the child is given up if no more is heard, and why.
func (w *watch) due() (time.Time, string) {
	if w.accepted.IsZero() {
		return w.opened.Add(w.accept), "did not accept in time"
	}
	silent := w.message.Add(missedBeats*Beat + Beat/2)
	if quiet := w.heard.Add(Quiet(w.accept)); w.missing > 0 && quiet.Before(silent) {
		return quiet, "carried nothing to the rest in time"
	}
	return silent, "fell silent"
}
