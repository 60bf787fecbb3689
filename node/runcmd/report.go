package runcmd

import (
	"context"
	"math/rand/v2"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
)

const (
	maxReports    = 4               // results that are on their way at once
	reportTimeout = 2 * time.Minute // of one try, blobs included

	firstBackoff = time.Second
	maxBackoff   = time.Minute

	// denialBackoff follows an answer that every voter would give: it may
	// change (a voter that was behind), but not soon.
	denialBackoff = 10 * time.Minute

	// keepHouseEvery is how often the journal is compacted, keepHouseCheck how
	// often it is looked whether it has grown so much that it cannot wait.
	keepHouseEvery = time.Hour
	keepHouseCheck = time.Minute
	compactAbove   = 4 << 20 // bytes
)

// backoff is how long to wait before try number tries+1 of a report, between
// half of it and all of it by chance (0 to 1), so that hosts that lost the
// quorum together do not come back together.
func backoff(tries int, kind fleet.Kind, chance float64) time.Duration {
	d := maxBackoff
	if tries < 8 {
		d = min(maxBackoff, firstBackoff<<(tries-1))
	}
	switch kind {
	case fleet.Denied, fleet.Invalid, fleet.NotFound, fleet.TooLarge:
		if tries > 3 {
			d = denialBackoff
		}
	}
	return d/2 + time.Duration(chance*float64(d/2))
}

// pending is a result that the quorum does not have.
type pending struct {
	due   time.Time
	tries int
	busy  bool
}

type reported struct {
	key   journal.Key
	index uint64
	err   error
	gone  bool // the journal has dropped it: the command's time, and the journal's for it, are long over
}

// report brings results to the quorum until ctx ends.
func (r *Runner) report(ctx context.Context) {
	waiting := map[journal.Key]*pending{}
	answers := make(chan reported, maxReports)
	busy := 0
	for {
		done := ctx.Done()
		stopping := ctx.Err() != nil // asked once: it may become true at any line
		if stopping {
			done = nil // only those that are on their way are awaited
		}
		for _, k := range r.takeFresh() {
			waiting[k] = &pending{due: time.Now().Add(r.climb(k))}
		}
		r.takeAcked(waiting)
		next := time.Hour
		for k, p := range waiting {
			wait := time.Until(p.due)
			switch {
			case p.busy:
			case wait > 0:
				next = min(next, wait)
			case busy < maxReports && !stopping:
				p.busy = true
				busy++
				go func() { answers <- r.send(ctx, k) }() // awaited below
			}
		}
		if stopping && busy == 0 {
			return
		}
		timer := time.NewTimer(next)
		select {
		case <-done:
		case <-r.news:
		case <-timer.C:
		case a := <-answers:
			busy--
			r.acknowledge(waiting, a)
		}
		timer.Stop()
	}
}

func (r *Runner) takeFresh() []journal.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	fresh := r.fresh
	r.fresh = nil
	return fresh
}

// send reports one result.
func (r *Runner) send(ctx context.Context, k journal.Key) reported {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	e, ok := r.cfg.Journal.Lookup(k)
	if !ok {
		return reported{key: k, gone: true}
	}
	if e.Finished == nil {
		return reported{key: k, err: fleet.Errorf(fleet.Corrupt, "the journal has no result of %s", k)}
	}
	blobs := make([]fleet.Digest, 0, len(e.Finished.Blobs))
	for _, d := range e.Finished.Blobs {
		// One that the disk lost must not keep the result from the quorum.
		if r.cfg.Blobs.Has(d) {
			blobs = append(blobs, d)
		}
	}
	index, err := r.cfg.Report(ctx, e.Finished.Result, e.Finished.Detail, blobs)
	if err == nil && index == 0 {
		err = fleet.Errorf(fleet.Unknown, "the quorum took the result without saying at which index")
	}
	return reported{key: k, index: index, err: err}
}

// acknowledge acts on the answer to a report.
func (r *Runner) acknowledge(waiting map[journal.Key]*pending, a reported) {
	p := waiting[a.key]
	p.busy = false
	if a.err == nil && !a.gone {
		a.err = r.cfg.Journal.Acknowledge(a.key, a.index)
		if r.fatal(a.err) {
			return
		}
	}
	if a.err != nil {
		p.tries++
		p.due = time.Now().Add(backoff(p.tries, fleet.KindOf(a.err), rand.Float64()))
		r.cfg.Logger.Warn("result not reported", "command", a.key.Command, "tries", p.tries, "err", a.err)
		return
	}
	delete(waiting, a.key)
	if e, ok := r.cfg.Journal.Lookup(a.key); ok {
		for _, d := range e.Finished.Blobs {
			r.cfg.Blobs.Unpin(d)
		}
	}
	r.mu.Lock()
	r.unreported--
	r.mu.Unlock()
	r.cfg.Logger.Debug("result acknowledged", "command", a.key.Command, "index", a.index)
}

// keepHouse begins a journal that was lost as soon as the time of the fleet is
// known, and compacts it from time to time.
func (r *Runner) keepHouse(ctx context.Context) {
	var last time.Time // of the last compaction
	var after int64    // size of the journal then
	for {
		wait := keepHouseCheck
		now, known := r.cfg.Clock.FleetTime()
		if r.cfg.Journal.Origin() == 0 {
			wait = again // the host takes no command until then
			if known {
				if err := r.cfg.Journal.Begin(now.UnixNano()); err != nil && !r.fatal(err) {
					r.cfg.Logger.Warn("new journal not begun", "err", err)
				}
			}
		}
		size := r.cfg.Journal.Size()
		if known && (time.Since(last) >= keepHouseEvery || size > compactAbove && size > 2*after) {
			if err := r.cfg.Journal.Compact(now.UnixNano()); err != nil && !r.fatal(err) {
				r.cfg.Logger.Warn("journal not compacted", "err", err)
			}
			last, after = time.Now(), r.cfg.Journal.Size()
		}
		if !pause(ctx, wait) {
			return
		}
	}
}
