package quorum

import (
	"context"
	"sync"
	"time"

	"fleet/node/fleet"
)

// ReadIndex gives a log index for a linearizable read: a state machine whose
// Applied has reached it holds every entry that was acknowledged before the
// call, by whichever leader. Only the leader can say; elsewhere the error is
// NotLeader or NoQuorum. Callers that come together share one round of
// questions to the followers, always one that began after they came.
func (q *Quorum) ReadIndex(ctx context.Context) (uint64, error) {
	if q.readyTerm() == 0 {
		return 0, q.notLeader()
	}
	b, ok := q.reads.join(&q.workers, &q.calls)
	if !ok {
		return 0, errStopping()
	}
	select {
	case <-b.done:
		return b.index, b.err
	case <-ctx.Done():
		return 0, fleet.Errorf(fleet.Unavailable, "leadership not confirmed in time: %w", context.Cause(ctx))
	case <-q.dead:
		return 0, errStopping()
	}
}

// verify is one round: ready in this term, still leader in it, and then what
// the state machine has applied. No further wait is needed: what this leader
// acknowledged it has applied, and what earlier ones acknowledged is before
// the barrier of the term.
func (q *Quorum) verify() (uint64, error) {
	term := q.readyTerm()
	if term == 0 {
		return 0, q.notLeader()
	}
	strict := q.doubt.exists(time.Now())
	if !strict {
		if err := q.confirm(); err != nil {
			return 0, q.notLeader()
		}
		strict = q.doubt.exists(time.Now()) // it may have come with the answers
	}
	if strict {
		if err := q.barrier(); err != nil {
			return 0, q.notLeader()
		}
	}
	if q.readyTerm() != term {
		return 0, q.notLeader()
	}
	return q.cfg.FSM.Applied(), nil
}

// readBatches lets many callers wait for one round.
type readBatches struct {
	verify func() (uint64, error)

	mu      sync.Mutex // guards what follows
	next    *readBatch // the callers since the last round began; nil: none
	running bool       // a goroutine works the batches off
}

// readBatch is the callers of one round.
type readBatch struct {
	done  chan struct{} // closed when the rest is set
	index uint64
	err   error
}

// join gives the batch whose round has not begun yet.
func (r *readBatches) join(workers *sync.WaitGroup, calls *gate) (*readBatch, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil {
		r.next = &readBatch{done: make(chan struct{})}
	}
	if !r.running {
		if !calls.enter() {
			return nil, false
		}
		r.running = true
		workers.Go(func() {
			defer calls.leave()
			r.run()
		})
	}
	return r.next, true
}

// run works batches off, one round at a time, until none waits.
func (r *readBatches) run() {
	for {
		r.mu.Lock()
		b := r.next
		r.next = nil
		if b == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		b.index, b.err = r.verify()
		close(b.done)
	}
}
