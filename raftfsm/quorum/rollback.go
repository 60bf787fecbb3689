package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// A store that is an older copy of itself reads as whole. A voter that believed
// it would acknowledge and vote again for what it has forgotten: a minority that
// lacks acknowledged entries could elect a leader. So before a host of the
// quorum takes part it asks the others what they know of it, and takes no word
// of Raft's until it has heard:
//
//   - every other one answers, or enough for a majority with it have answered
//     and patience is over: it takes part;
//   - one says that its store lacks what it acknowledged: it never takes part
//     again with this store.
//
// What the others know is exact where they have it. A host acknowledges an entry
// or gives a vote in the term that its store is in, so a store in an older term
// is older, and one in that very term without the entry or the vote too; in a
// later term all is later. (Entries that a newer leader takes back are taken
// back in its term.) They have it in memory, from the answers and requests of
// the host, and from the log, into which leaders write it now and then (Marks).
//
// It comes up when it must: to answer needs no permission, so that a fleet that
// starts all at once asks itself and goes on, after patience also with a bare
// majority. The price is that what only a host knows that is gone too, and has
// not written into the log, is not found out: then two stores of three are lost
// at once, which no quorum survives.
const (
	askEvery    = 250 * time.Millisecond
	askTime     = 2 * time.Second
	askPatience = 3 * time.Second // from the first question
)

// Standing is how far a store had come when it was opened.
type Standing struct {
	Term  uint64 // the newest it was in
	Index uint64 // of its last entry, or what its snapshot covers
	Vote  uint64 // the last term in which it voted
}

// mark is what this host knows of another: what that one's store must hold.
type mark struct {
	term     uint64 // it was in
	ackTerm  uint64 // in which it stored the entry ack
	ack      uint64
	voteTerm uint64 // in which it voted for this host
	older    bool   // it answered this leader with a store that lacks what it acknowledged
}

func (m *mark) inTerm(term uint64) { m.term = max(m.term, term) }

func (m *mark) stored(term, index uint64) {
	m.inTerm(term)
	if index != 0 && (term > m.ackTerm || term == m.ackTerm && index > m.ack) {
		m.ackTerm, m.ack = term, index
	}
}

func (m *mark) voted(term uint64) {
	m.inTerm(term)
	m.voteTerm = max(m.voteTerm, term)
}

// missing says what a store lacks; "" if nothing.
func (m *mark) missing(s Standing) string {
	switch {
	case s.Term < m.term:
		return fmt.Sprintf("it was in term %d, and its store is in term %d", m.term, s.Term)
	case s.Term == m.ackTerm && s.Index < m.ack:
		return fmt.Sprintf("it had stored entry %d in term %d, and its store ends at entry %d", m.ack, m.ackTerm, s.Index)
	case s.Term == m.voteTerm && s.Vote < m.voteTerm:
		return fmt.Sprintf("it had voted in term %d, and its store does not know", m.voteTerm)
	}
	return ""
}

// marks is what this host knows of the others.
type marks struct {
	mu   sync.Mutex // guards rows
	rows map[fleet.NodeID]*mark
}

func (m *marks) note(id fleet.NodeID, what func(*mark)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rows == nil {
		m.rows = map[fleet.NodeID]*mark{}
	}
	if m.rows[id] == nil {
		m.rows[id] = &mark{}
	}
	what(m.rows[id])
}

func (m *marks) of(id fleet.NodeID) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	if row := m.rows[id]; row != nil {
		return *row
	}
	return mark{}
}

// keep forgets everyone else.
func (m *marks) keep(ids []fleet.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.rows {
		if !slices.Contains(ids, id) {
			delete(m.rows, id)
		}
	}
}

// standing reads how far stores have come, before Raft has them.
func standing(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) (s Standing, err error) {
	if s.Term, err = stable.GetUint64([]byte("CurrentTerm")); err != nil && !isNotFound(err) {
		return s, err
	}
	if s.Vote, err = stable.GetUint64(keyVoteTerm); err != nil && !isNotFound(err) {
		return s, err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return s, err
	}
	covered, err := newestSnapshot(snaps)
	if err != nil {
		return s, err
	}
	s.Index = max(last, covered)
	return s, nil
}

// logMarks are those that stand in the entries of a log.
func logMarks(logs raft.LogStore) (map[fleet.NodeID]*mark, error) {
	first, err := logs.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return nil, err
	}
	var newest *entry.Marks
	for i := last; i >= max(first, 1) && newest == nil; i-- {
		var l raft.Log
		if err := logs.GetLog(i, &l); err != nil {
			if isNotFound(err) {
				break // a snapshot from the leader took its place
			}
			return nil, err
		}
		if l.Type == raft.LogCommand && len(l.Data) > 2 && l.Data[1] == byte(entry.KindMarks) {
			if body, err := entry.Decode(l.Data); err == nil {
				newest, _ = body.(*entry.Marks)
			}
		}
	}
	rows := map[fleet.NodeID]*mark{}
	if newest != nil {
		for _, m := range newest.Marks {
			row := &mark{}
			row.stored(m.Term, m.Index)
			rows[m.Node] = row
		}
	}
	return rows, nil
}

// Vouch answers a host of the quorum that has just started: what its store
// lacks, as far as this one knows; "" if nothing. Of who does not vote there is
// nothing to know: nobody counts on it.
func (q *Quorum) Vouch(id fleet.NodeID, s Standing) (missing string, err error) {
	voters, _, err := q.voters()
	if err != nil {
		return "", err
	}
	q.marks.keep(voters)
	if !slices.Contains(voters, id) {
		return "", nil
	}
	m := q.marks.of(id)
	if q.cfg.Mark != nil {
		known := q.cfg.Mark(id)
		m.stored(known.Term, known.Index)
	}
	if missing = m.missing(s); missing != "" {
		q.log.Warn("a voter came back with an older store", "peer", id, "missing", missing)
	}
	return missing, nil
}

// Older is the voters that answered this leader with a store that lacks what
// they acknowledged: they do not count.
func (q *Quorum) Older() []fleet.NodeID {
	q.marks.mu.Lock()
	defer q.marks.mu.Unlock()
	var ids []fleet.NodeID
	for id, m := range q.marks.rows {
		if m.older {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Marks is what this host, which leads, knows of the voters, itself included.
func (q *Quorum) Marks() ([]fleet.VoterMark, error) {
	voters, _, err := q.voters()
	if err != nil {
		return nil, err
	}
	var all []fleet.VoterMark
	for _, id := range voters {
		m := q.marks.of(id)
		row := fleet.VoterMark{Node: id, Term: m.ackTerm, Index: m.ack}
		if id == q.cfg.Self {
			row.Term, row.Index = q.raft.CurrentTerm(), q.raft.LastIndex()
		}
		if row.Index == 0 {
			row.Term = 0
		}
		all = append(all, row)
	}
	return all, nil
}

// Voters is who votes by the newest configuration that this host knows.
func (q *Quorum) Voters() ([]fleet.NodeID, error) {
	voters, _, err := q.voters()
	return voters, err
}

// voters is who votes by the newest configuration that this host knows, and who
// else is in it.
func (q *Quorum) voters() (voters, others []fleet.NodeID, err error) {
	servers, err := q.Servers()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range servers {
		if s.Voter {
			voters = append(voters, s.ID)
		} else {
			others = append(others, s.ID)
		}
	}
	return voters, others, nil
}

// errWaits is what Raft hears of its peers, and they of it, until this host may
// take part.
var errWaits = errors.New("this host has not heard yet whether its store is an older copy")

// admission is whether this host may take part.
type admission struct {
	open chan struct{} // closed when it may

	mu    sync.Mutex // guards what follows
	since time.Time  // of the first question
	why   string     // it still waits
}

func (a *admission) opened() bool {
	select {
	case <-a.open:
		return true
	default:
		return false
	}
}

// Waits says why this host does not take part yet, and since when; "" if it
// does.
func (q *Quorum) Waits() (string, time.Time) {
	if q.admission.opened() {
		return "", time.Time{}
	}
	q.admission.mu.Lock()
	defer q.admission.mu.Unlock()
	return q.admission.why, q.admission.since
}

// seekAdmission asks the others until this host may take part, or never may.
func (q *Quorum) seekAdmission(s Standing) {
	began := time.Now()
	q.admission.mu.Lock()
	q.admission.since = began
	q.admission.mu.Unlock()
	for {
		voters, members, err := q.voters()
		if err != nil {
			return // Raft has ended
		}
		// Its own configuration may be as old as its store.
		others := append(members, voters...)
		if q.cfg.Voters != nil {
			others = append(others, q.cfg.Voters()...)
		}
		slices.Sort(others)
		others = slices.DeleteFunc(slices.Compact(others), func(id fleet.NodeID) bool { return id == q.cfg.Self })
		fresh := s.Index == 0
		need := len(voters) / 2 // with it, a majority
		if fresh && len(others) > 0 {
			need = max(need, 1) // whoever adds a host to a quorum is there
		}
		answered, behind, failure := q.askOthers(others, s)
		q.admission.mu.Lock()
		switch {
		case behind != "":
			q.admission.why = behind
		case failure != nil:
			q.admission.why = fmt.Sprintf("%d of %d others answered: %v", answered, len(others), failure)
		}
		q.admission.mu.Unlock()
		switch {
		case behind != "" && !fresh:
			q.fence(behind)
			return
		case behind != "":
			// An emptied store of a voter; or this host votes no more, is to be added
			// anew, and the one that answered has not heard: it will.
		case answered == len(others), answered >= need && time.Since(began) >= askPatience:
			close(q.admission.open)
			return
		}
		select {
		case <-time.After(askEvery):
		case <-q.ctx.Done():
			return
		case <-q.dead:
			return
		}
	}
}

// askOthers is one round of questions: how many answered, and the first of them
// by ID that knows of something that the store lacks.
func (q *Quorum) askOthers(others []fleet.NodeID, s Standing) (answered int, behind string, failure error) {
	ctx, cancel := context.WithTimeout(q.ctx, askTime)
	defer cancel()
	said := make([]string, len(others))
	errs := make([]error, len(others))
	var wg sync.WaitGroup
	for i, id := range others {
		wg.Go(func() { said[i], errs[i] = q.cfg.Ask(ctx, id, s) })
	}
	wg.Wait()
	for i, id := range others {
		switch {
		case errs[i] != nil:
			failure = fmt.Errorf("%s: %w", id, errs[i])
			continue
		case said[i] != "" && behind == "":
			behind = fmt.Sprintf("%s says of this host: %s", id, said[i])
		}
		answered++
	}
	return answered, behind, failure
}

// fencedFile in the quorum directory says that its store is an older copy, and
// how that was found out.
const fencedFile = "older-copy"

// fence ends this host's part for good: the store is marked, so that it is
// refused also when nobody is there to say so.
func (q *Quorum) fence(behind string) {
	err := damaged(q.cfg.Dir, "it is an older copy of itself: %s", behind)
	if !q.cfg.Memory && q.cfg.Dir != "" {
		path := filepath.Join(q.cfg.Dir, fencedFile)
		if werr := errors.Join(writeSynced(path, []byte(behind+"\n")), syncDir(q.cfg.Dir)); werr != nil && !errors.Is(werr, os.ErrExist) {
			err = errors.Join(err, werr)
		}
	}
	q.end(err)
}

// gatedTransport keeps Raft's words from and to the others back until this host
// may take part, and notes what they show of the others' stores.
type gatedTransport struct {
	provingTransport
	q   *Quorum
	rpc chan raft.RPC
}

// Consumer is where Raft takes requests of the others from.
func (t gatedTransport) Consumer() <-chan raft.RPC { return t.rpc }

// forward passes requests on.
func (t gatedTransport) forward() {
	for {
		select {
		case r := <-t.provingTransport.Consumer():
			if !t.q.admission.opened() {
				r.Respond(nil, errWaits)
				continue
			}
			t.note(r.Command)
			select {
			case t.rpc <- r:
			case <-t.q.ctx.Done():
				r.Respond(nil, raft.ErrRaftShutdown)
			case <-t.q.dead:
				r.Respond(nil, raft.ErrRaftShutdown)
			}
		case <-t.q.ctx.Done():
			return
		case <-t.q.dead:
			return
		}
	}
}

// SetHeartbeatHandler sets who answers heartbeats beside Raft's loop.
func (t gatedTransport) SetHeartbeatHandler(answer func(raft.RPC)) {
	t.provingTransport.SetHeartbeatHandler(func(r raft.RPC) {
		if !t.q.admission.opened() {
			r.Respond(nil, errWaits)
			return
		}
		answer(r)
	})
}

// note takes what a request shows of the store of who sent it. A leader stores
// what it sends first, and a candidate its term. (A pre-vote shows nothing: its
// term is one that might be.)
func (t gatedTransport) note(request any) {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		t.q.marks.note(fleet.NodeID(r.ID), func(m *mark) { m.stored(r.Term, r.PrevLogEntry+uint64(len(r.Entries))) })
	case *raft.InstallSnapshotRequest:
		t.q.marks.note(fleet.NodeID(r.ID), func(m *mark) { m.stored(r.Term, r.LastLogIndex) })
	case *raft.RequestVoteRequest:
		t.q.marks.note(fleet.NodeID(r.ID), func(m *mark) { m.inTerm(r.Term) }) // its own vote may not be stored yet
	}
}

// RequestVote asks for a vote.
func (t gatedTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !t.q.admission.opened() {
		return errWaits
	}
	if err := t.provingTransport.RequestVote(id, target, req, resp); err != nil {
		return err
	}
	t.q.marks.note(fleet.NodeID(id), func(m *mark) {
		m.inTerm(resp.Term)
		if resp.Granted {
			m.voted(req.Term)
		}
	})
	return nil
}

// RequestPreVote asks whether a vote would be given.
func (t gatedTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !t.q.admission.opened() {
		return errWaits
	}
	return t.provingTransport.RequestPreVote(id, target, req, resp)
}

// errOlder is what a leader makes of the answer of a voter that has lost what it
// acknowledged: its word counts no more.
var errOlder = errors.New("the store of this voter is older than what it acknowledged")

// AppendEntries sends entries and heartbeats.
func (t gatedTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress,
	req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if !t.q.admission.opened() { // a fleet's only voter elects itself, and what it says now would be held against what it asks
		return errWaits
	}
	if err := t.provingTransport.AppendEntries(id, target, req, resp); err != nil {
		return err
	}
	last := req.PrevLogEntry + uint64(len(req.Entries))
	if isHeartbeat(req) {
		return nil // its answer may be older than those to entries
	}
	lost := false
	t.q.marks.note(fleet.NodeID(id), func(m *mark) {
		switch {
		case resp.Success && resp.Term == req.Term:
			m.stored(req.Term, last)
		case resp.Term == req.Term && m.ackTerm == req.Term && resp.LastLog < m.ack:
			lost, m.older = true, true
		default:
			m.inTerm(resp.Term)
		}
	})
	if lost {
		if voters, _, err := t.q.voters(); err == nil && !slices.Contains(voters, fleet.NodeID(id)) {
			t.q.marks.keep(voters) // it was taken out, and comes with a new store
			return nil
		}
		t.q.log.Warn("a voter answers with an older store", "peer", string(id))
		return errOlder
	}
	return nil
}

// InstallSnapshot sends a snapshot.
func (t gatedTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress,
	req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if !t.q.admission.opened() {
		return errWaits
	}
	if err := t.provingTransport.InstallSnapshot(id, target, req, resp, data); err != nil {
		return err
	}
	if resp.Success && resp.Term == req.Term {
		t.q.marks.note(fleet.NodeID(id), func(m *mark) { m.stored(req.Term, req.LastLogIndex) })
	}
	return nil
}
