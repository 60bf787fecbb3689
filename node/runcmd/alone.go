package runcmd

import (
	"context"

	"fleet/node/fleet"
)

// alone is Task.Alone: the command of the step that calls it is the one that
// may run.
func (r *Runner) alone(ctx context.Context) (release func(), err error) {
	r.mu.Lock()
	if r.sole != nil {
		r.mu.Unlock()
		return nil, fleet.Errorf(fleet.Conflict, "another command of this host waits to be alone, or is")
	}
	left := make(chan struct{}, 1)
	r.sole = left
	r.mu.Unlock()
	release = func() {
		r.mu.Lock()
		r.sole = nil
		r.mu.Unlock()
		// Each worker that found the queue shut waits for a word.
		signal(r.wake)
	}
	for {
		r.mu.Lock()
		others := len(r.running) - 1
		r.mu.Unlock()
		if others == 0 {
			return release, nil
		}
		select {
		case <-left:
		case <-ctx.Done():
			release()
			return nil, context.Cause(ctx)
		}
	}
}
