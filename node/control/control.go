// Package control is the only writer of decided truth. Every change, from
// whichever door it comes, passes Mutate: it is decoded strictly, its proof
// and its operator's rights are checked, the leader stamps it and proposes it
// as a log entry that carries the request exactly as it was signed. Apply
// checks the proof again on every voter, so what control adds is not trust but
// manners: a refusal before the log, answers for a person, and the way to the
// leader from any host of the quorum.
//
// Reads pass Read, which says when the local state covers every acknowledged
// write. No other package proposes operators' requests.
package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"time"

	"fleet/node/authz"
	"fleet/node/blob"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/rpc"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
	"fleet/raftfsm/state"
)

const (
	// leaderWait is how long a request waits for an election to end.
	leaderWait = 8 * time.Second
	leaderPoll = 50 * time.Millisecond
	// hopeAfter is when a request that still waits asks whether enough voters
	// answer for an election to end at all, and hopeTime how long they have.
	hopeAfter  = 2500 * time.Millisecond
	hopeTime   = 1500 * time.Millisecond
	askTimeout = 2 * time.Second // for what another voter only knows
)

// Config is what control works with.
type Config struct {
	Self     fleet.NodeID
	Quorum   *quorum.Quorum
	FSM      *raftfsm.FSM
	RPC      *rpc.Client
	Presence func() *rpc.PresenceResponse // what this host heard, as it would answer another
	Blobs    *blob.Store
	Spread   func(ctx context.Context, voter fleet.NodeID, d fleet.Digest) error // brings a blob of this host to another voter
	Now      func() time.Time
	Logger   *slog.Logger

	// Expires is when this host's quorum certificate ends.
	Expires func() time.Time

	// Farewell is called when this host leads, is to leave the quorum and another
	// is about to lead: the hosts may know no other voter. It must return within
	// seconds.
	Farewell func(ctx context.Context)

	// Clock is nil while this host's clock agrees with the other voters'. Stamps
	// never fall: one entry of a leader whose clock is days ahead would make
	// every signed request of those days look expired.
	Clock func() error

	Level uint32 // the newest feature level that this host knows

	// At is nil but in tests.
	At failpoint.Hook
}

// Control serves the quorum host that it runs on.
type Control struct {
	cfg Config

	membership chan struct{} // holds a token while the quorum changes: one change at a time
	programs   programs
	raising    raising
}

// New makes a control.
func New(cfg Config) *Control {
	return &Control{cfg: cfg, membership: make(chan struct{}, 1), raising: raising{turn: make(chan struct{}, 1)}}
}

// Names of what hosts, not operators, ask to be decided. They carry their own
// signatures; no door for operators accepts them.
const (
	opEnrol         = "fleet:Enrol"
	opChangeAddress = "fleet:ChangeAddress"
	opLeave         = "fleet:Leave"

	opChangeQuorum = "ChangeQuorum" // the one signed operation that is more than a log entry
)

// Mutate decides an operator's signed request, here or on the leader, and
// gives the operation's answer in JSON. A repeated request, that is one with
// the same proof, gets its first answer again.
func (c *Control) Mutate(ctx context.Context, operation string, body, proof []byte) ([]byte, error) {
	if op, ok := authz.Lookup(operation); !ok || op.Class != authz.Signed {
		return nil, fleet.Errorf(fleet.NotFound, "there is no signed operation %.64q", operation)
	}
	return c.route(ctx, operation, body, proof)
}

// Forwarded decides what another quorum host forwarded. It is not forwarded
// again.
func (c *Control) Forwarded(ctx context.Context, req *rpc.ForwardRequest) (*rpc.ForwardResponse, error) {
	body, err := c.decide(ctx, req.Operation, req.Body, req.Proof)
	if err != nil {
		return nil, err
	}
	return &rpc.ForwardResponse{Body: body}, nil
}

// route decides on the leader: this host, or the one that it knows of. It
// waits out an election.
func (c *Control) route(ctx context.Context, operation string, body, proof []byte) ([]byte, error) {
	hope, end := c.hope(ctx)
	defer end()
	deadline, cancel := context.WithTimeout(hope, leaderWait)
	defer cancel()
	forward := hope // a leader that does not answer is not waited for when there can be no other
	if operation == opChangeQuorum {
		forward = ctx
	}
	for {
		leader := c.cfg.Quorum.Leader()
		var err error
		var answer []byte
		switch {
		case leader == c.cfg.Self:
			answer, err = c.decide(ctx, operation, body, proof)
		case leader != "":
			var resp *rpc.ForwardResponse
			resp, err = rpc.Call[rpc.ForwardRequest, rpc.ForwardResponse](forward, c.cfg.RPC, voter(leader), rpc.MethodForward,
				&rpc.ForwardRequest{Operation: operation, Body: body, Proof: proof})
			if err == nil {
				answer = resp.Body
			}
		default:
			err = fleet.Errorf(fleet.NotLeader, "no leader")
		}
		var told *fleet.Error
		switch kind := fleet.KindOf(err); {
		case kind == fleet.Denied && errors.As(err, &told) && told.Code == fleet.CodeNotOfQuorum:
			// The change that this host passes on may be its own end.
			return nil, fleet.Errorf(fleet.Unavailable, "this host is of the quorum no more").WithHint("ask another host of the quorum")
		case kind == fleet.NotLeader, kind == fleet.NoQuorum, kind == fleet.Unavailable && operation != opChangeQuorum:
			// The leader changed or is gone; nothing was decided by this try.
			// (A change of the quorum asks other hosts, whose silence is an answer.)
		default:
			return answer, err
		}
		select {
		case <-deadline.Done():
			return nil, c.noQuorum(deadline, err)
		case <-time.After(leaderPoll):
		}
	}
}

// hope gives a context that ends when so many voters do not answer that waiting
// for an election is in vain; its cause says who.
func (c *Control) hope(ctx context.Context) (context.Context, func()) {
	ctx, give := context.WithCancelCause(ctx)
	doubt := time.AfterFunc(hopeAfter, func() {
		asking, cancel := context.WithTimeout(ctx, hopeTime)
		defer cancel()
		view, err := c.Quorum(asking)
		if err != nil || ctx.Err() != nil {
			return
		}
		if voters, reachable, silent := c.answering(view); reachable < voters/2+1 {
			give(noMajority(voters, reachable, silent))
		}
	})
	return ctx, func() {
		doubt.Stop()
		give(nil)
	}
}

// decide decides on this host, which must lead.
func (c *Control) decide(ctx context.Context, operation string, body, proof []byte) ([]byte, error) {
	if !c.cfg.Quorum.Ready() {
		return nil, fleet.Errorf(fleet.NotLeader, "%s does not lead", c.cfg.Self)
	}
	switch operation {
	case opEnrol:
		return c.enrol(ctx, body)
	case opChangeAddress:
		return c.changeAddress(ctx, body)
	case opLeave:
		return c.leave(ctx, body)
	}
	if err := c.authenticate(operation, body, proof); err != nil {
		return nil, err
	}
	if operation == opChangeQuorum {
		return c.changeQuorum(ctx, body)
	}
	mutation, ok := mutations[operation]
	if !ok {
		return nil, fleet.Errorf(fleet.NotFound, "there is no operation %.64q", operation)
	}
	return mutation(c, ctx, body, proof)
}

// authenticate refuses what Apply would refuse, before it costs a log entry.
func (c *Control) authenticate(operation string, body, proof []byte) error {
	p, err := identity.ParseProof(proof)
	if err != nil {
		return err
	}
	store := c.cfg.FSM.Store()
	operator := store.Operator(p.Operator)
	if operator == nil {
		return fleet.Errorf(fleet.Unauthenticated, "no operator %.64q in this fleet", p.Operator)
	}
	if err := VerifyProof(p, store.Fleet().ID, operator, operation, fleet.Sum(body), c.cfg.Now()); err != nil {
		return err
	}
	return authz.Allowed(*operator, operation)
}

// VerifyProof checks everything about a proof except whether it was used
// before: that one of the operator's keys made it, for this fleet, operation
// and body, and that it is valid at now, with an error that names the clock
// when the clocks disagree.
func VerifyProof(p *identity.SignedProof, id fleet.ID, operator *fleet.Operator, operation string, body fleet.Digest, now time.Time) error {
	var key fleet.PublicKey
	for _, k := range operator.Keys {
		if k.ID() == p.Key {
			key = k
		}
	}
	if key.IsZero() {
		return fleet.Errorf(fleet.Unauthenticated, "operator %s has no key %s", operator.Name, p.Key)
	}
	if err := p.Verify(key); err != nil {
		return err
	}
	switch {
	case p.Fleet != id:
		return fleet.Errorf(fleet.Unauthenticated, "the request is for another fleet (%s)", p.Fleet)
	case p.Operation != operation:
		return fleet.Errorf(fleet.Unauthenticated, "the request was signed for %.64s, not %s", p.Operation, operation)
	case p.Body != body:
		return fleet.Errorf(fleet.Unauthenticated, "the request is not the one that was signed")
	}
	left := time.Unix(0, p.NotAfter).Sub(now)
	if left < 0 {
		return fleet.Errorf(fleet.Expired, "the signed request expired %s ago by the fleet's clock (%s)", (-left).Round(time.Second), clock(now)).
			WithHint("set the clock of the machine that signs, then try again")
	}
	if left > identity.ProofLifetime {
		return fleet.Errorf(fleet.Expired, "the signed request is from the future: the clock that signed it is at least %s ahead of the fleet's (%s)",
			(left - identity.ProofLifetime).Round(time.Second), clock(now)).WithHint("set the clock of the machine that signs, then try again")
	}
	return nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// propose puts an entry that somebody signed into the log and gives what Apply
// answered. What Apply would refuse is refused here, before it costs an entry.
func (c *Control) propose(ctx context.Context, body entry.Body) (any, error) {
	log, err := entry.Encode(body)
	if err != nil {
		return nil, err
	}
	if err := c.cfg.Clock(); err != nil {
		return nil, err
	}
	if err := c.mayPropose(ctx, body.Kind()); err != nil {
		return nil, err
	}
	if c.cfg.FSM.Try(body).Err != nil {
		// A refusal says what is so, "there is no target t", and must cover every
		// acknowledged write, as any answer: a leader that was paused does not
		// know yet what another has decided since.
		index, err := c.cfg.Quorum.ReadIndex(ctx)
		if err != nil {
			return nil, err
		}
		if err := c.cfg.FSM.WaitApplied(ctx, index); err != nil {
			return nil, fleet.Errorf(fleet.Unavailable, "this host has not caught up with what was decided: %w", err)
		}
		if a := c.cfg.FSM.Try(body); a.Err != nil {
			return nil, a.Err
		}
	}
	command, at := pointsOf(body)
	c.cfg.At.Reach(at.before, command)
	a, err := c.commit(ctx, body, log)
	if err != nil {
		return nil, err
	}
	c.cfg.At.Reach(at.after, command)
	return a.Value, a.Err
}

// Propose puts the leader's own entries into the log (results, mints,
// expiries): what needs no operator's word.
func (c *Control) Propose(ctx context.Context, body entry.Body) (raftfsm.Answer, error) {
	if err := body.Check(); err != nil {
		return raftfsm.Answer{}, err
	}
	if err := c.cfg.Clock(); err != nil {
		return raftfsm.Answer{}, err
	}
	if err := c.mayPropose(ctx, body.Kind()); err != nil {
		return raftfsm.Answer{}, err
	}
	log, err := entry.Encode(body)
	if err != nil {
		return raftfsm.Answer{}, err
	}
	command, at := pointsOf(body)
	c.cfg.At.Reach(at.before, command)
	a, err := c.commit(ctx, body, log)
	if err == nil {
		c.cfg.At.Reach(at.after, command)
	}
	return a, err
}

// points are where the leader stands when it proposes an entry.
type points struct{ before, after failpoint.Point }

// pointsOf says where an entry stands in the life of a command, and of which.
func pointsOf(body entry.Body) (fleet.CommandID, points) {
	switch e := body.(type) {
	case *entry.SendCommand:
		return fleet.CommandID(e.ID), points{failpoint.Propose, failpoint.Committed}
	case *entry.Results:
		for _, row := range e.Rows {
			if row.State.Final() { // not that a host has accepted it
				return e.Command, points{failpoint.Decide, failpoint.Decided}
			}
		}
	}
	return "", points{}
}

// Read gives a state that covers every write acknowledged before the call;
// with stale, whatever this host has.
func (c *Control) Read(ctx context.Context, stale bool) (*state.Store, error) {
	if stale {
		return c.cfg.FSM.Store(), nil
	}
	hope, end := c.hope(ctx)
	defer end()
	deadline, cancel := context.WithTimeout(hope, leaderWait)
	defer cancel()
	for {
		index, err := c.readIndex(deadline)
		if err == nil {
			if err = c.cfg.FSM.WaitApplied(ctx, index); err != nil {
				return nil, fleet.Errorf(fleet.Unavailable, "this host has not caught up with the leader: %w", err)
			}
			return c.cfg.FSM.Store(), nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-deadline.Done():
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, c.noQuorum(deadline, err)
		case <-time.After(leaderPoll):
		}
	}
}

// WriteState writes a snapshot of a state that covers every write acknowledged
// before the call, or with stale of what this host has.
func (c *Control) WriteState(ctx context.Context, stale bool, to io.Writer) error {
	if _, err := c.Read(ctx, stale); err != nil {
		return err
	}
	return c.cfg.FSM.WriteState(to)
}

func (c *Control) readIndex(ctx context.Context) (uint64, error) {
	leader := c.cfg.Quorum.Leader()
	switch leader {
	case "":
		return 0, fleet.Errorf(fleet.NotLeader, "no leader")
	case c.cfg.Self:
		return c.cfg.Quorum.ReadIndex(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := rpc.Call[rpc.Empty, rpc.ReadIndexResponse](ctx, c.cfg.RPC, voter(leader), rpc.MethodReadIndex, &rpc.Empty{})
	if err != nil {
		return 0, err
	}
	return resp.Index, nil
}

// noQuorum says who answers and who does not, because that is what the reader
// has to mend. ctx is that of the waiting, which has ended.
func (c *Control) noQuorum(ctx context.Context, cause error) error {
	var known *fleet.Error
	if errors.As(context.Cause(ctx), &known) && known.Kind == fleet.NoQuorum {
		return known
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	view, err := c.Quorum(ctx)
	if err != nil {
		return fleet.Errorf(fleet.NoQuorum, "nothing can be decided now: %w", errors.Join(cause, err))
	}
	voters, reachable, silent := c.answering(view)
	if len(silent) == 0 {
		return fleet.Errorf(fleet.NoQuorum, "the voters have not elected a leader: %w", cause).WithHint("try again in a moment")
	}
	return noMajority(voters, reachable, silent)
}

// answering counts the voters, and names those that do not answer.
func (c *Control) answering(view QuorumView) (voters, reachable int, silent []string) {
	store := c.cfg.FSM.Store()
	for _, s := range view.Servers {
		if !s.Voter {
			continue
		}
		voters++
		if s.Reachable {
			reachable++
			continue
		}
		name := string(s.ID)
		if n := store.Node(s.ID); n != nil {
			name = n.Name
		}
		silent = append(silent, name)
	}
	sort.Strings(silent)
	return voters, reachable, silent
}

func noMajority(voters, reachable int, silent []string) error {
	return fleet.Errorf(fleet.NoQuorum, "no quorum: %d of %d voters can be reached from here; no answer from %s", reachable, voters, strings.Join(silent, ", ")).
		WithHint("nothing can be decided until %d voters run and reach each other: start fleet on %s", voters/2+1, strings.Join(silent, ", "))
}

// QuorumView is who decides, as this host sees it.
type QuorumView struct {
	Leader  fleet.NodeID // empty when there is none
	Servers []ServerView // by ID
	Trust   *identity.Trust
}

// ServerView is one voter or eligible host.
type ServerView struct {
	ID        fleet.NodeID
	Voter     bool
	Reachable bool
	Applied   uint64    // last log index that it has applied
	Expires   time.Time // of its quorum certificate; zero for not known
	Level     uint32    // the newest feature level that it knows; 0 when it did not answer
}

// Quorum asks every host of the quorum how far it is.
func (c *Control) Quorum(ctx context.Context) (QuorumView, error) {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return QuorumView{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	view := QuorumView{Leader: c.cfg.Quorum.Leader(), Trust: c.cfg.FSM.Store().Trust(), Servers: make([]ServerView, len(servers))}
	var wg sync.WaitGroup
	for i, s := range servers {
		view.Servers[i] = ServerView{ID: s.ID, Voter: s.Voter}
		if s.ID == c.cfg.Self {
			view.Servers[i].Reachable, view.Servers[i].Applied, view.Servers[i].Level = true, c.cfg.FSM.Applied(), c.cfg.Level
			view.Servers[i].Expires = c.cfg.Expires()
			continue
		}
		wg.Go(func() {
			resp, err := rpc.Call[rpc.Empty, rpc.AppliedResponse](ctx, c.cfg.RPC, voter(s.ID), rpc.MethodApplied, &rpc.Empty{})
			if err == nil {
				view.Servers[i].Reachable, view.Servers[i].Applied = true, resp.Index
				view.Servers[i].Level = max(resp.Level, entry.BaseLevel)
				if resp.Expires > 0 {
					view.Servers[i].Expires = time.Unix(0, resp.Expires)
				}
			}
		})
	}
	wg.Wait()
	sort.Slice(view.Servers, func(i, j int) bool { return view.Servers[i].ID < view.Servers[j].ID })
	return view, nil
}

// Eligible lists the hosts that hold a quorum certificate but do not vote and
// are not about to: see Reconcile.
func (c *Control) Eligible(context.Context) ([]fleet.NodeID, error) {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	var ids []fleet.NodeID
	trust := c.cfg.FSM.Store().Trust()
	for _, s := range servers {
		if !s.Voter && !votes(trust, s.ID) {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}

// Presence merges what the voters that answer have heard.
func (c *Control) Presence(ctx context.Context) map[fleet.NodeID]presence.Seen {
	all := map[fleet.NodeID]presence.Seen{}
	merge := func(voter fleet.NodeID, resp *rpc.PresenceResponse) {
		for _, row := range resp.Rows {
			s := presence.Seen{Version: row.Version, Program: row.Program, Warnings: row.Warnings, Keys: row.Keys, Starts: int(row.Starts), Clones: row.Clones, Reach: map[fleet.NodeID]presence.Reach{
				voter: {Reverse: row.Reverse, Dial: presence.Dial(row.Dial)}}}
			if row.LastSeen != 0 {
				s.LastSeen = time.Unix(0, row.LastSeen)
			}
			presence.Merge(all, row.ID, s)
		}
	}
	merge(c.cfg.Self, c.cfg.Presence())
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		c.cfg.Logger.Warn("presence of other voters not asked", "err", err)
		return all
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make([]*rpc.PresenceResponse, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		if s.ID == c.cfg.Self {
			continue
		}
		wg.Go(func() {
			resp, err := rpc.Call[rpc.Empty, rpc.PresenceResponse](ctx, c.cfg.RPC, voter(s.ID), rpc.MethodPresence, &rpc.Empty{})
			if err == nil {
				answers[i] = resp
			}
		})
	}
	wg.Wait()
	for i, a := range answers {
		if a != nil {
			merge(servers[i].ID, a)
		}
	}
	return all
}

func voter(id fleet.NodeID) rpc.Target { return rpc.Target{Node: id, Role: fleet.RoleQuorum} }

// newUUID makes a random (version 4) UUID.
func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make an ID: %w", err)
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]), nil
}
