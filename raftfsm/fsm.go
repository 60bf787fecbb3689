// Package raftfsm turns the replicated log into the state of the fleet: for
// each kind of entry one function decides whether it is accepted and what it
// changes.
//
// An entry has one of three outcomes. It is accepted, and the answer has a
// value. It is refused, and the answer has an error; then the state is the
// same as before, bit for bit, and every replica refuses it. Or it cannot be
// read, because a newer release wrote it or it is damaged; then Apply panics,
// since a replica that went on would diverge from the others.
//
// What an operator asked for is verified here and not only by the leader that
// proposed it: the entry carries the exact signed request, and Apply checks it
// against the operator's row, so that a stolen leader can add no host, no
// activation and no command. What was signed is kept beside its object, and
// Restore verifies it again: a snapshot also comes from another host, and one
// that was believed would make Apply's checks worthless.
//
// Nothing here or in entry and state names a clock, randomness, the
// environment or a logger, or starts a goroutine. Apply changes the state and
// nothing else; who wants to react watches it.
package raftfsm

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// Answer is what Apply returns for an entry.
type Answer struct {
	// Value depends on the kind of entry; it is shared and must not be changed.
	//
	//	Genesis, Trust                 *identity.Trust
	//	CreateActivation               *fleet.Activation
	//	DeleteActivation               fleet.ActivationID
	//	Enrol, Address                 *fleet.Node
	//	AddTags, RemoveTags            *fleet.Node; nil when a retry finds it removed
	//	RemoveNode, Leave              *fleet.Removal
	//	RenameNode                     *fleet.Node; nil when a retry finds it removed
	//	CreateOperator                 *fleet.Operator
	//	DeleteOperator                 fleet.OperatorName
	//	SendCommand, Mint, Expire      *fleet.Command
	//	CancelCommand, Release         *fleet.Command
	//	Results                        []fleet.Invocation, the rows as they now stand
	//	PutTarget                      *fleet.SavedTarget
	//	DeleteTarget                   fleet.TargetName
	//	GossipKey                      *state.GossipKeys
	//	Retire                         int, how many commands are gone
	//	Features                       uint32, the level
	//	Marks                          nil
	Value any

	Err   error  // why the entry was refused; the same on every replica
	Index uint64 // of the entry in the log
}

// FSM is the state machine of one replica. Raft calls Apply, Snapshot and
// Restore one at a time; all else may be called at any time.
type FSM struct {
	fleet  fleet.ID
	store  atomic.Pointer[state.Store]
	marked atomic.Pointer[marked] // nil before the first Marks entry, and after a restore

	mu       sync.Mutex    // guards what follows
	applied  uint64        // index of the last entry that was applied
	advanced chan struct{} // closed and replaced when applied changes
}

var _ raft.FSM = (*FSM)(nil)

// New makes the state machine of a fleet, before its genesis.
func New(fleetID fleet.ID) *FSM {
	f := &FSM{fleet: fleetID, advanced: make(chan struct{})}
	f.store.Store(state.New())
	return f
}

// Store is the current state. It is another one after a restore; see
// state.Store.Abandoned.
func (f *FSM) Store() *state.Store { return f.store.Load() }

// Applied is the index of the last entry that was applied, refused ones
// included. Raft's own AppliedIndex runs ahead of it.
func (f *FSM) Applied() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

// WaitApplied waits until Applied has reached index. Wait only for an index
// that some replica's Applied has had: entries of Raft itself are never
// applied here, so that the log's last index may never come.
func (f *FSM) WaitApplied(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		applied, advanced := f.applied, f.advanced
		f.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("wait until entry %d is applied, %d is: %w", index, applied, context.Cause(ctx))
		}
	}
}

func (f *FSM) setApplied(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = index
	close(f.advanced)
	f.advanced = make(chan struct{})
}

// Apply applies one committed entry and returns an Answer. It panics if the
// entry cannot be read.
func (f *FSM) Apply(log *raft.Log) any {
	if log.Type != raft.LogCommand {
		return nil // Raft's own entries change nothing here
	}
	body, err := entry.Decode(log.Data)
	if err != nil {
		panic(fmt.Sprintf("log entry %d: %v; this voter stops rather than diverge from the others", log.Index, err))
	}
	answer := f.decide(f.Store(), log.Index, body, true)
	if body.Kind() == entry.KindMarks && answer.Err == nil {
		f.marked.Store(&marked{index: log.Index, store: f.Store().Snapshot()})
	}
	f.setApplied(log.Index)
	return answer
}

// Try answers as Apply would if this entry were the next one, and changes
// nothing. A proposer calls it to refuse early; only Apply decides.
func (f *FSM) Try(body entry.Body) Answer {
	return f.decide(f.Store().Snapshot(), f.Applied()+1, body, false)
}

func (f *FSM) decide(store *state.Store, index uint64, body entry.Body, commit bool) Answer {
	txn := store.Write()
	defer txn.Abort()
	s := &step{Txn: txn, fleet: f.fleet, index: index}
	value, err := s.run(body)
	if err != nil {
		return Answer{Err: err, Index: index}
	}
	if commit {
		txn.Commit()
	}
	return Answer{Value: value, Index: index}
}

// step is the application of one entry.
type step struct {
	*state.Txn
	fleet fleet.ID
	index uint64
	stamp int64 // the entry's, raised to the last one if it was below
}

// handler applies the entries of one kind.
type handler func(s *step, body entry.Body) (any, error)

var handlers = map[entry.Kind]handler{
	entry.KindGenesis:          on(genesis),
	entry.KindTrust:            on(trust),
	entry.KindCreateActivation: signed(createActivation, answerActivation),
	entry.KindDeleteActivation: signed(deleteActivation, answerActivationID),
	entry.KindEnrol:            on(enrol),
	entry.KindAddTags:          signed(addTags, answerNode),
	entry.KindRemoveTags:       signed(removeTags, answerNode),
	entry.KindSendCommand:      signed(sendCommand, answerCommand),
	entry.KindMint:             on(mint),
	entry.KindResults:          on(results),
	entry.KindExpire:           on(expire),
	entry.KindAddress:          on(address),
	entry.KindCancelCommand:    signed(cancelCommand, answerCommand),
	entry.KindRemoveNode:       signed(removeNode, answerRemoval),
	entry.KindLeave:            on(leave),
	entry.KindRenameNode:       signed(renameNode, answerNode),
	entry.KindCreateOperator:   signed(createOperator, answerOperator),
	entry.KindDeleteOperator:   signed(deleteOperator, answerOperatorName),
	entry.KindPutTarget:        signed(putTarget, answerTarget),
	entry.KindDeleteTarget:     signed(deleteTarget, answerTargetName),
	entry.KindGossipKey:        on(gossipKey),
	entry.KindRelease:          on(release),
	entry.KindRetire:           on(retire),
	entry.KindFeatures:         on(features),
	entry.KindMarks:            on(marks),
}

// on makes a handler of a typed function.
func on[B entry.Body](apply func(*step, B) (any, error)) handler {
	return func(s *step, body entry.Body) (any, error) { return apply(s, body.(B)) }
}

func (s *step) run(body entry.Body) (any, error) {
	if err := body.Check(); err != nil {
		return nil, err
	}
	if s.Fleet().Genesis == (body.Kind() == entry.KindGenesis) {
		if body.Kind() == entry.KindGenesis {
			return nil, fleet.Errorf(fleet.Conflict, "fleet %s has its genesis already", s.fleet)
		}
		return nil, fleet.Errorf(fleet.Invalid, "fleet %s has no genesis yet", s.fleet)
	}
	value, err := handlers[body.Kind()](s, body)
	if err != nil {
		return nil, err
	}
	s.SetStamp(s.stamp)
	return value, nil
}

// pruned is how many expired nonces one entry removes at most: more than one
// can add, and few enough to cost no time that anybody notices.
const pruned = 1024

// at sets the time of the step. Time never runs backwards: a stamp below the
// last one is raised to it.
func (s *step) at(stamp int64) {
	s.stamp = max(stampOf(stamp), s.LastStamp())
	s.PruneNonces(s.stamp, pruned)
}
