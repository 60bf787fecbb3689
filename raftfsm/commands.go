package raftfsm

import (
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// countedStates is the length of Command.Counts. It stays what it is when a
// state is added, so that voters of two releases have equal rows; count grows
// it for a command that has such a state.
const countedStates = 11

func sendCommand(s *step, e *entry.SendCommand, op *fleet.Operator) (string, error) {
	req, err := entry.ParseSendCommand(e.Request)
	if err != nil {
		return "", err
	}
	targets, err := s.Resolve(req.InstanceIds, req.Targets)
	if err != nil {
		return "", err
	}
	if s.Command(fleet.CommandID(e.ID)) != nil {
		return "", fleet.Errorf(fleet.Conflict, "a command %s exists already", e.ID)
	}
	c, err := newCommand(e, req, op.Name, s.stamp, targets)
	if err != nil {
		return "", err
	}
	c.Index = s.index
	s.PutContent(e.Document)
	s.PutCommand(c)
	s.keep(entry.KindSendCommand, e.ID, &e.Authority)
	return e.ID, nil
}

// newCommand is the row that an entry, whose request is req, makes at stamp on
// resolved targets.
func newCommand(e *entry.SendCommand, req *entry.SendCommandV1, op fleet.OperatorName, stamp int64,
	targets []fleet.NodeID) (*fleet.Command, error) {
	digest := fleet.Sum(e.Document)
	if digest != req.Digest() {
		return nil, fleet.CodeErrorf(fleet.Invalid, "InvalidDocument",
			"the content of document %s has the SHA-256 %s, the request asks for %s", req.DocumentName, digest, req.DocumentHash)
	}
	if v := req.DocumentVersion; v != "" && v[0] != '$' && v != e.Version {
		return nil, fleet.CodeErrorf(fleet.Invalid, "InvalidDocumentVersion", "this is version %s of document %s, the request asks for %s",
			e.Version, req.DocumentName, v)
	}
	if req.Parameters == nil {
		req.Parameters = map[string][]string{}
	}
	parameters := wire.MustMarshal(wire.StringMap(req.Parameters))
	c := &fleet.Command{
		ID: fleet.CommandID(e.ID), Attempt: 1, Operator: op, Request: fleet.Sum(e.Request),
		DocumentName: req.DocumentName, DocumentVersion: e.Version, Document: digest,
		Parameters: parameters, ParametersDigest: fleet.Sum(parameters), RunAs: req.RunAs, Comment: req.Comment,
		Selectors: req.Targets, Targets: targets,
		Created: stamp, DeliverySeconds: uint32(req.TimeoutSeconds), ExecutionSeconds: e.ExecutionSeconds,
		MaxConcurrency: req.MaxConcurrency, MaxErrors: req.MaxErrors,
		Mint: fleet.Mint{N: 1, NotBefore: stamp}, Counts: make([]uint32, countedStates),
	}
	c.NotAfter = stamp + int64(c.DeliverySeconds)*int64(time.Second)
	if c.Staged() {
		c.NotAfter = lastTurn(c)
	}
	c.Expires = c.NotAfter + int64(c.ExecutionSeconds)*int64(time.Second) + int64(entry.ExpiryGrace)
	c.Counts[fleet.Pending] = uint32(len(targets))
	if len(targets) == 0 {
		c.Ended = stamp // NoInstancesInTag: there is nobody to wait for
	}
	return c, nil
}

func answerCommand(s *step, id string) any { return s.Command(fleet.CommandID(id)) }

// command is the command that an entry is about.
func (s *step) command(id fleet.CommandID, attempt uint32) (*fleet.Command, error) {
	c, err := s.FindCommand(id)
	if err != nil {
		return nil, err
	}
	if c.Attempt != attempt {
		return nil, fleet.Errorf(fleet.Conflict, "command %s is in attempt %d, not %d", id, c.Attempt, attempt)
	}
	return c, nil
}

// mint adds the next mint: the right to sign new tickets for the targets that
// have not been reached.
func mint(s *step, e *entry.Mint) (any, error) {
	s.at(e.Stamp)
	c, err := s.command(e.Command, e.Attempt)
	if err != nil {
		return nil, err
	}
	switch {
	case !c.Open():
		return nil, fleet.Errorf(fleet.Conflict, "command %s has ended", c.ID)
	case c.Cancelled():
		return nil, fleet.Errorf(fleet.Conflict, "command %s is cancelled", c.ID)
	case e.N != c.Mint.N+1:
		return nil, fleet.Errorf(fleet.Conflict, "mint %d of command %s cannot follow mint %d", e.N, c.ID, c.Mint.N)
	case s.stamp >= c.Expires:
		return nil, fleet.Errorf(fleet.Expired, "command %s expired at %s", c.ID, formatTime(c.Expires))
	case e.NotBefore < c.Created || e.NotBefore > s.stamp+int64(entry.Skew):
		return nil, fleet.Errorf(fleet.Invalid, "mint %d of command %s begins at %s, before the command or after this time",
			e.N, c.ID, formatTime(e.NotBefore))
	}
	changed := *c
	changed.Mint = fleet.Mint{N: e.N, NotBefore: e.NotBefore}
	changed.Index = s.index
	s.PutCommand(&changed)
	return &changed, nil
}

// results takes what hosts said. A final row never changes: what comes late is
// ignored and answered with the row that stands, so that its sender stops.
func results(s *step, e *entry.Results) (any, error) {
	s.at(e.Stamp)
	c, err := s.command(e.Command, e.Attempt)
	if err != nil {
		return nil, err
	}
	if last := e.Rows[len(e.Rows)-1].Index; uint64(last) >= uint64(len(c.Targets)) {
		return nil, fleet.Errorf(fleet.Invalid, "command %s has %d targets, there is none at %d", c.ID, len(c.Targets), last)
	}
	rows := slices.Clone(s.Shard(c.ID, e.Shard()))
	changed := s.changing(c)
	standing := make([]fleet.Invocation, 0, len(e.Rows))
	for _, r := range e.Rows {
		row := &rows[r.Index%fleet.ShardSize]
		switch {
		case row.State.Final():
		case r.State == fleet.Cancelled && row.State == fleet.Released && r.Started == 0 && c.Stopped():
			// No operator cancelled it: its host was told that it is not to begin.
			changed.move(row, notReleased(c, row.Index))
		case r.State.Final():
			changed.move(row, r)
		case c.Hear(row.State, r.State) != row.State:
			r.State = c.Hear(row.State, r.State) // a row that is cancelled stays so
			changed.move(row, r)
		}
		standing = append(standing, *row)
	}
	changed.put(e.Shard(), rows)
	changed.finish()
	return standing, nil
}

// Reasons of rows that the quorum ended itself.
const (
	reasonCancelled    = "cancelled; the host was not reached, or did not answer, before the time to deliver was over"
	reasonNotDelivered = "the host was not reached, or did not answer, before the time to deliver was over"
	reasonNotTaken     = "the host did not take the command before the time to deliver was over; its last answer: "
	reasonNotReported  = fleet.ReasonNotReported
	reasonNoTurn       = "its turn did not come before the time to begin was over"
	reasonNotReleased  = "it was not begun: %d failed, more than MaxErrors %s"
	reasonNotReleased2 = "it was not begun: %d failed or fell silent in their turn, more than MaxErrors %s"

	reasonSilentReleased = fleet.ReasonSilentReleased
	reasonSilentBegun    = fleet.ReasonSilentBegun
)

// silent reports whether a target had its turn and ended without a word of its
// host, which may be dead of it.
func silent(row *fleet.Invocation) bool {
	return row.Released != 0 && row.State == fleet.DeliveryTimedOut && fleet.FellSilent(row.Reason)
}

// expire ends the rows whose time has passed, and Skew: those that were never
// heard of when they may not begin any more, those that wait for their turn when
// it cannot come any more, all others when they must be over. A cancelled row
// ends as Cancelled only where the host can no longer begin: one that took the
// command and fell silent may have run it to its end.
func expire(s *step, e *entry.Expire) (any, error) {
	s.at(e.Stamp)
	c, err := s.command(e.Command, e.Attempt)
	if err != nil {
		return nil, err
	}
	passed := func(at int64) bool { return s.stamp > at+int64(entry.Skew) }
	undelivered := passed(c.ReachBy())
	if !c.Open() || !undelivered {
		return c, nil
	}
	said := make(map[uint32]string, len(e.Said))
	for _, answer := range e.Said {
		said[answer.Index] = answer.Text
	}
	changed := s.changing(c)
	for n := uint32(0); uint64(n)*fleet.ShardSize < uint64(len(c.Targets)); n++ {
		rows := slices.Clone(s.Shard(c.ID, n))
		for i := range rows {
			row := &rows[i]
			end := fleet.Invocation{Index: row.Index, State: fleet.DeliveryTimedOut, Code: -1}
			switch {
			case row.State == fleet.Pending && undelivered:
				end.Reason = reasonNotDelivered
				if text := said[row.Index]; text != "" {
					end.Reason = reasonNotTaken + text
				}
			case row.State == fleet.CancelPending && undelivered:
				// It may not start there any more, which is what was asked for.
				end.State, end.Reason = fleet.Cancelled, reasonCancelled
			case row.State == fleet.Staged && passed(c.NotAfter):
				end.Reason = reasonNoTurn
			case row.State.Holds() && passed(overBy(c, row)):
				// Whether a cancel came in time is not known: nobody claims it did.
				switch {
				case row.Released == 0:
					end.Reason = reasonNotReported
				case row.State == fleet.Released:
					end.Reason = reasonSilentReleased
				default:
					end.Reason = reasonSilentBegun
				}
				end.Started = row.Started
			default:
				continue
			}
			changed.move(row, end)
		}
		changed.put(n, rows)
	}
	return changed.finish(), nil
}

// change is a command some of whose rows change.
type change struct {
	s       *step
	command fleet.Command
	moved   int // rows since the last put
	any     bool
}

func (s *step) changing(c *fleet.Command) *change {
	ch := &change{s: s, command: *c}
	ch.command.Counts = slices.Clone(c.Counts)
	return ch
}

// move gives a row its next state. When it was released stays known.
func (ch *change) move(row *fleet.Invocation, next fleet.Invocation) {
	next.Released = max(next.Released, row.Released)
	count(&ch.command, row.State, -1)
	count(&ch.command, next.State, +1)
	*row = next
	if row.State.Final() {
		row.Decided = ch.s.index
	}
	if silent(row) {
		ch.command.Silent++
	}
	ch.moved++
}

// put stores a shard if one of its rows moved.
func (ch *change) put(n uint32, rows []fleet.Invocation) {
	if ch.moved > 0 {
		ch.s.PutShard(&state.Shard{Command: ch.command.ID, N: n, Rows: rows})
		ch.any = true
		ch.moved = 0
	}
}

// finish stores the command if a row moved, and ends it if that was the last.
func (ch *change) finish() *fleet.Command {
	c := &ch.command
	if !ch.any {
		return ch.s.Command(c.ID)
	}
	ch.stop()
	if c.Unfinished() == 0 {
		c.Ended = ch.s.stamp
	}
	c.Index = ch.s.index
	ch.s.PutCommand(c)
	return c
}

func count(c *fleet.Command, s fleet.InvocationState, by int) {
	for len(c.Counts) <= int(s) {
		c.Counts = append(c.Counts, 0)
	}
	c.Counts[s] = uint32(int(c.Counts[s]) + by)
}
