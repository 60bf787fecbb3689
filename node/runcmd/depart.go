package runcmd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"
)

// departPoll is how often Depart looks whether all is over.
const departPoll = 50 * time.Millisecond

// Settled is Open after the deliveries that are being decided now: with a Clock
// that gives no time any more, nothing is added to it.
func (r *Runner) Settled() int {
	r.deliveries.Lock()
	defer r.deliveries.Unlock()
	return r.Open()
}

// Depart ends every command of this host that has no result yet, as Cancelled,
// and waits until the quorum has all results or ctx ends. It is for a host that
// leaves its fleet: its Clock must give no time any more, so that nothing
// starts. It answers how many it ended and how many results are still here.
func (r *Runner) Depart(ctx context.Context) (ended, left int) {
	ended = r.Settled()
	r.mu.Lock()
	for _, stop := range r.running {
		stop(errCancelled)
	}
	waiting := slices.AppendSeq(slices.Clone(r.queue), maps.Keys(r.staged))
	r.mu.Unlock()
	for _, k := range waiting {
		r.finishWaiting(ctx, k, cancelledOutcome(""))
	}
	for {
		r.mu.Lock()
		// A worker may have taken one from the queue in between.
		for stop := range maps.Values(r.running) {
			stop(errCancelled)
		}
		left = r.open + r.unreported
		r.mu.Unlock()
		if left == 0 || !pause(ctx, departPoll) {
			return ended, left
		}
	}
}

// departed reports whether the context of a command ended because it was
// cancelled, by a voter's word or because the host leaves.
func departed(running context.Context) bool { return errors.Is(context.Cause(running), errCancelled) }
