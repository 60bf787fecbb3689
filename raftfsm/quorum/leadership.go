package quorum

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

// retryDelay is how long a step that a leader must take waits before it is
// tried again.
const retryDelay = 100 * time.Millisecond

// leadRetry is how long leader-only work that failed waits before it is
// started again.
const leadRetry = time.Second

// errLost is the cause of the contexts of leader-only work.
var errLost = errors.New("leadership lost")

// Leader is the host that leads as far as this one knows; "" if none is known.
func (q *Quorum) Leader() fleet.NodeID {
	_, id := q.raft.LeaderWithID()
	return fleet.NodeID(id)
}

// IsLeader reports whether Raft leads here. Its state machine may lag: see Ready.
func (q *Quorum) IsLeader() bool { return q.raft.State() == raft.Leader }

// Ready reports whether this host leads and its state machine holds all that
// earlier leaders acknowledged.
func (q *Quorum) Ready() bool { return q.readyTerm() != 0 }

// readyTerm is the term in which this host is ready, checked now; 0 if none.
func (q *Quorum) readyTerm() uint64 {
	term, _ := q.leadership()
	if term == 0 || !q.IsLeader() || q.raft.CurrentTerm() != term {
		return 0
	}
	return term
}

// leadership is the term in which this host was last seen ready, and a channel
// that is closed when that changes.
func (q *Quorum) leadership() (term uint64, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.term, q.changed
}

func (q *Quorum) setReady(term uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.term == term {
		return
	}
	q.term = term
	close(q.changed)
	q.changed = make(chan struct{})
}

// followLeadership turns Raft's signals into readiness. Raft's channel keeps
// only the newest signal, so that "gained" may mean lost and gained: each one
// ends what was.
func (q *Quorum) followLeadership() {
	for {
		select {
		case leads := <-q.raft.LeaderCh():
			q.setReady(0)
			if leads {
				q.gain()
			}
		case <-q.ctx.Done():
			q.setReady(0)
			return
		case <-q.dead:
			q.setReady(0)
			return
		}
	}
}

// gain waits for the barrier of the term: only behind it does the state
// machine hold what earlier leaders acknowledged.
func (q *Quorum) gain() {
	select {
	case <-q.admission.open: // a fleet's only voter leads without a word of others
	case <-q.ctx.Done():
		return
	case <-q.dead:
		return
	}
	term := q.raft.CurrentTerm()
	for q.IsLeader() && q.raft.CurrentTerm() == term {
		err := q.barrier()
		if err == nil {
			if q.IsLeader() && q.raft.CurrentTerm() == term {
				q.setReady(term)
				q.log.Info("leads the fleet", "term", term, "index", q.cfg.FSM.Applied())
			}
			return
		}
		q.log.Debug("barrier", "term", term, "err", err)
		select {
		case <-time.After(retryDelay): // a transfer of leadership is under way
		case <-q.ctx.Done():
			return
		case <-q.dead:
			return
		}
	}
}

// barrier returns when the state machine has applied everything that was in
// the log before it.
func (q *Quorum) barrier() error {
	return q.wait(func() raft.Future { return q.raft.Barrier(enqueueTimeout) })
}

// wait makes a call of Raft and waits for its answer. Raft answers every call
// unless it is shut down, which Close does only when none waits, or its store
// hangs: then q.dead is closed and the goroutine ends with the process.
func (q *Quorum) wait(call func() raft.Future) error {
	if !q.calls.enter() {
		return raft.ErrRaftShutdown
	}
	done := make(chan error, 1)
	go func() {
		defer q.calls.leave()
		done <- call().Error()
	}()
	select {
	case err := <-done:
		return err
	case <-q.dead:
		return raft.ErrRaftShutdown
	}
}

// giveUpTime is how long a host that must not lead on waits for its last word to
// arrive.
const giveUpTime = 500 * time.Millisecond

// giveUp tells the voter that has most of this leader's log to stand for
// election at once. Raft's own transfer needs the log that has failed; without a
// word the others would wait until they miss this leader. It decides nothing any
// more: its store takes no entry, and q.dead is closed.
func (q *Quorum) giveUp() {
	if !q.IsLeader() {
		return
	}
	voters, _, err := q.voters()
	if err != nil {
		return
	}
	var next fleet.NodeID
	var most mark
	for _, id := range voters {
		if m := q.marks.of(id); id != q.cfg.Self && (m.ackTerm > most.ackTerm || m.ackTerm == most.ackTerm && m.ack > most.ack) {
			next, most = id, m
		}
	}
	if next == "" {
		return
	}
	said := make(chan struct{})
	go func() { // ends with its answer, or with the transport, which is closed next
		defer close(said)
		req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(q.cfg.Self), Addr: []byte(q.cfg.Self)}}
		_ = q.trans.TimeoutNow(raft.ServerID(next), raft.ServerAddress(next), req, &raft.TimeoutNowResponse{}) // then they will miss it
	}()
	select {
	case <-said:
	case <-time.After(giveUpTime):
	}
}

// Lead runs f while this host leads and is ready, until ctx is done. f's
// context is cancelled when leadership is lost, and Lead waits for f before it
// runs it again; f must return soon then. If f returns an error while it
// leads, it is run again after a moment.
func (q *Quorum) Lead(ctx context.Context, f func(ctx context.Context) error) error {
	for {
		term, changed := q.leadership()
		var again <-chan time.Time
		if term != 0 {
			if err := lead(ctx, changed, f); err != nil {
				q.log.Error("leader's work ended", "term", term, "err", err)
				again = time.After(leadRetry)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-q.ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// lead runs f once; its error counts only if f ended by itself.
func lead(ctx context.Context, lost <-chan struct{}, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	case <-lost:
		cancel(errLost)
	}
	<-done
	return nil
}
