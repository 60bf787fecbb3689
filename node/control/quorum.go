package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
	"fleet/raftfsm/state"
)

// Candidate asks a host for its request to become a voter. The host makes its
// quorum and issuing keys for it if it has none; with newIssuer, another issuing
// key beside the one that it uses.
func (c *Control) Candidate(ctx context.Context, node fleet.NodeID, newIssuer bool) ([]byte, error) {
	store, err := c.Read(ctx, false)
	if err != nil {
		return nil, err
	}
	n := store.Node(node)
	if n == nil {
		return nil, fleet.Errorf(fleet.NotFound, "no node %s", node)
	}
	resp, err := rpc.Call[rpc.CandidateRequest, rpc.CandidateResponse](ctx, c.cfg.RPC, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodCandidate,
		&rpc.CandidateRequest{NewIssuer: newIssuer})
	if err != nil {
		return nil, fleet.Errorf(fleet.Unavailable, "%s (%s) does not give its request to become a voter: %w", n.Name, n.Address, err).
			WithHint("check that fleet runs on %s and that %s can be reached from the quorum", n.Name, n.Address)
	}
	if level, need := max(resp.Level, entry.BaseLevel), store.Features(); level < need {
		return nil, fleet.Errorf(fleet.Conflict, "%s runs a release that knows feature level %d, and level %d is decided: it could not read the log", n.Name, level, need).
			WithHint("update fleet on %s, then try again", n.Name)
	}
	return resp.Candidate, nil
}

// changeQuorum gives hosts what the root key signed for them and, when the
// request brings the next trust.json, makes Raft's voters those that it names.
// It runs on the leader. Each step may be repeated, so the same request may be
// sent again after a failure: who votes does not change before the new
// trust.json is committed, and that happens after every candidate holds its
// certificates and the log, and when enough of those who are to vote answer.
func (c *Control) changeQuorum(ctx context.Context, body []byte) ([]byte, error) {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var req fleet.ChangeQuorumRequest
	if err := wire.StrictJSON(body, &req); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%w", err)
	}
	store := c.cfg.FSM.Store()
	next, err := c.nextTrust(store, req.Trust)
	if err != nil {
		return nil, err
	}
	if err := c.checkRemovals(next, req.Remove); err != nil {
		return nil, err
	}
	if len(req.Trust) > 0 {
		// Before anything is signed into a log by a leader that is none any more.
		if err := c.handOver(ctx, next); err != nil {
			return nil, err
		}
		if err := c.feasible(ctx, next, req.Candidates, req.Force); err != nil {
			return nil, err
		}
	}
	for _, cand := range req.Candidates {
		if err := c.admit(ctx, store, cand); err != nil {
			return nil, err
		}
	}
	if len(req.Trust) > 0 {
		if err := c.promote(ctx, store, next); err != nil {
			return nil, err
		}
	}
	for _, id := range req.Remove {
		if err := c.cfg.Quorum.RemoveServer(ctx, id); err != nil {
			return nil, fmt.Errorf("take %s out of the quorum: %w", id, err)
		}
	}
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	result := fleet.ChangeQuorumResult{TrustVersion: c.cfg.FSM.Store().Trust().Version}
	for _, s := range servers {
		if s.Voter {
			result.Voters = append(result.Voters, s.ID)
		} else {
			result.Eligible = append(result.Eligible, s.ID)
		}
	}
	slices.Sort(result.Voters)
	slices.Sort(result.Eligible)
	return json.Marshal(result)
}

// takeTurn waits for its turn to change who decides; done ends the turn. It
// does not refuse at once: what is under way is often the same request, whose
// caller lost its connection, or Reconcile on a leader that was elected in the
// middle of it.
func (c *Control) takeTurn(ctx context.Context) (done func(), _ error) {
	ctx, cancel := context.WithTimeout(ctx, membershipWait)
	defer cancel()
	select {
	case c.membership <- struct{}{}:
		return func() { <-c.membership }, nil
	case <-ctx.Done():
		return nil, fleet.Errorf(fleet.Conflict, "another change of the quorum is under way").WithHint("wait for it to end: fleet quorum ls")
	}
}

// nextTrust reads the trust.json of the request: a version after the committed
// one, or the committed one itself when the request is repeated. Without one it
// is the committed version.
func (c *Control) nextTrust(store *state.Store, raw []byte) (*identity.Trust, error) {
	current := store.Trust()
	if current == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "the fleet has not been founded yet")
	}
	if len(raw) == 0 || bytes.Equal(raw, current.Raw()) {
		return current, nil
	}
	next, err := identity.ParseTrust(raw, store.Fleet().Root)
	if err != nil {
		return nil, err
	}
	if next.Version <= current.Version {
		return nil, fleet.Errorf(fleet.Conflict, "the signed trust.json has version %d, and the fleet has version %d", next.Version, current.Version).
			WithHint("another change came first: run the command again")
	}
	if next.Epoch != current.Epoch {
		return nil, fleet.Errorf(fleet.Conflict, "the signed trust.json is of epoch %d, the fleet of epoch %d: epochs rise only when a fleet is recovered by force",
			next.Epoch, current.Epoch)
	}
	return next, nil
}

// checkRemovals accepts hosts that follow the log and neither vote nor will.
func (c *Control) checkRemovals(next *identity.Trust, remove []fleet.NodeID) error {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return err
	}
	for _, id := range remove {
		if votes(next, id) || slices.ContainsFunc(servers, func(s quorum.Server) bool { return s.ID == id && s.Voter }) {
			return fleet.Errorf(fleet.Invalid, "%s votes: only a trust.json that does not name it takes its vote", id)
		}
	}
	return nil
}

// handOver makes another host lead when this one is not to vote any more: its
// own signature would not count, and nobody can take himself out of the quorum.
// Nothing of the request is done yet; whoever leads now does all of it.
func (c *Control) handOver(ctx context.Context, next *identity.Trust) error {
	if votes(next, c.cfg.Self) {
		return nil
	}
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return err
	}
	voting := map[fleet.NodeID]bool{}
	for _, s := range servers {
		voting[s.ID] = s.Voter
	}
	var to []fleet.NodeID
	for _, v := range next.Voters {
		if voting[v.Node] {
			to = append(to, v.Node)
		}
	}
	answers := c.answers(ctx, to)
	for _, id := range to {
		if !answers[id] {
			continue
		}
		if err := c.cfg.Quorum.TransferTo(ctx, id); err != nil {
			c.cfg.Logger.Warn("leadership not handed over", "peer", id, "err", err)
			continue
		}
		c.cfg.Logger.Info("leadership handed over: this host is to leave the quorum", "peer", id)
		return fleet.Errorf(fleet.NotLeader, "%s does not lead any more", c.cfg.Self)
	}
	return nil // nobody who stays votes yet: seat hands over when somebody does
}

// answers asks hosts whether they are there.
func (c *Control) answers(ctx context.Context, ids []fleet.NodeID) map[fleet.NodeID]bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said := make([]bool, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if id == c.cfg.Self {
			said[i] = true
			continue
		}
		wg.Go(func() {
			_, err := rpc.Call[rpc.Empty, rpc.AppliedResponse](ctx, c.cfg.RPC, voter(id), rpc.MethodApplied, &rpc.Empty{})
			said[i] = err == nil
		})
	}
	wg.Wait()
	all := map[fleet.NodeID]bool{}
	for i, id := range ids {
		all[id] = said[i]
	}
	return all
}

// feasible refuses a change after which, or in the middle of which, fewer than
// a majority of the voters would answer. Candidates count: they are asked when
// they get their certificates.
func (c *Control) feasible(ctx context.Context, next *identity.Trust, candidates []fleet.NewVoter, force bool) error {
	now, err := c.votingNow()
	if err != nil {
		return err
	}
	answers := c.answers(ctx, now)
	for _, cand := range candidates {
		answers[cand.InstanceId] = true
	}
	_, err = steps(now, next, answers)
	if err != nil && force {
		c.cfg.Logger.Warn("change of the quorum is forced", "err", err)
		return nil
	}
	return err
}

func (c *Control) votingNow() ([]fleet.NodeID, error) {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	var ids []fleet.NodeID
	for _, s := range servers {
		if s.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}

// change is one step: a host gets a vote, or loses it.
type change struct {
	node fleet.NodeID
	add  bool
}

// steps orders a change of who votes: first whoever comes, then whoever goes,
// and of those first the ones that do not answer, which can only be in the way
// of a majority. The error says that one of the steps would leave no majority
// that answers; the steps are those all the same.
func steps(now []fleet.NodeID, next *identity.Trust, answers map[fleet.NodeID]bool) (all []change, err error) {
	for _, v := range next.Voters {
		if !slices.Contains(now, v.Node) {
			all = append(all, change{v.Node, true})
		}
	}
	for _, silent := range []bool{true, false} {
		for _, id := range now {
			if !votes(next, id) && answers[id] != silent {
				all = append(all, change{id, false})
			}
		}
	}
	voting := slices.Clone(now)
	for _, step := range all {
		if step.add {
			voting = append(voting, step.node)
		} else {
			voting = slices.DeleteFunc(voting, func(id fleet.NodeID) bool { return id == step.node })
		}
		var silent []string
		for _, id := range voting {
			if !answers[id] {
				silent = append(silent, string(id))
			}
		}
		if answering := len(voting) - len(silent); err == nil && answering < len(voting)/2+1 {
			err = fleet.Errorf(fleet.Conflict, "%d of %d voters would answer: nothing could be decided any more; no answer from %s",
				answering, len(voting), strings.Join(silent, ", ")).
				WithHint("start fleet there, or replace those first; --force goes on all the same: if they do not come back, " +
					"only fleet quorum recover helps, which may lose what was decided")
		}
	}
	return all, err
}

// admit gives a host its certificates and lets it follow the log.
func (c *Control) admit(ctx context.Context, store *state.Store, cand fleet.NewVoter) error {
	n := store.Node(cand.InstanceId)
	if n == nil {
		return fleet.Errorf(fleet.NotFound, "no node %s", cand.InstanceId)
	}
	_, err := rpc.Call[rpc.InstallQuorumRequest, rpc.Empty](ctx, c.cfg.RPC, rpc.Target{Node: n.ID, Role: fleet.RoleAgent}, rpc.MethodInstallQuorum,
		&rpc.InstallQuorumRequest{QuorumCert: cand.QuorumCertificate, IssuerCert: cand.IssuerCertificate, Trust: store.Trust().Raw()})
	if err != nil {
		return fleet.Errorf(fleet.KindOf(err), "%s (%s) did not take its quorum certificate: %w", n.Name, n.Address, err)
	}
	if err := c.cfg.Quorum.AddNonvoter(ctx, n.ID); err != nil {
		return fmt.Errorf("let %s follow the log: %w", n.Name, err)
	}
	c.cfg.Logger.Info("host holds certificates of the quorum", "peer", n.ID)
	return nil
}

// promote commits the new trust.json and makes Raft's voters those that it
// names.
func (c *Control) promote(ctx context.Context, store *state.Store, next *identity.Trust) error {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return err
	}
	voting := map[fleet.NodeID]bool{}
	for _, s := range servers {
		voting[s.ID] = s.Voter
	}
	for _, v := range next.Voters {
		votes, known := voting[v.Node]
		if !known {
			return fleet.Errorf(fleet.Invalid, "the signed trust.json names %s, which neither votes nor is among the candidates", v.Node)
		}
		if votes {
			continue // one that is away must not keep another from taking its place
		}
		if err := c.cfg.Quorum.CaughtUp(ctx, v.Node); err != nil {
			return fleet.Errorf(fleet.Unavailable, "%s has not caught up with the log: %w", v.Node, err)
		}
	}
	if next.Version != store.Trust().Version {
		// Once this is committed the rest happens, also if the caller goes away
		// or this leader does: Reconcile finishes it.
		if _, err := c.propose(ctx, &entry.Trust{Stamp: c.cfg.Now().UnixNano(), Trust: next.Raw()}); err != nil {
			return err
		}
	}
	return c.seat(ctx, next)
}

// seat makes those vote whom trust.json names, and nobody else. A leader that
// it does not name leads until somebody else can.
func (c *Control) seat(ctx context.Context, trust *identity.Trust) error {
	now, err := c.votingNow()
	if err != nil {
		return err
	}
	ask := slices.Clone(now)
	for _, v := range trust.Voters {
		if !slices.Contains(ask, v.Node) {
			ask = append(ask, v.Node)
		}
	}
	todo, _ := steps(now, trust, nil)
	if len(todo) == 0 {
		return nil
	}
	todo, risk := steps(now, trust, c.answers(ctx, ask))
	if risk != nil {
		c.cfg.Logger.Warn("the quorum changes while voters are away", "err", risk)
	}
	for _, step := range todo {
		switch {
		case step.add:
			if err := c.cfg.Quorum.CaughtUp(ctx, step.node); err != nil {
				return fleet.Errorf(fleet.Unavailable, "%s has not caught up with the log: %w", step.node, err)
			}
			if err := c.cfg.Quorum.AddVoter(ctx, step.node); err != nil {
				return fmt.Errorf("make %s a voter: %w", step.node, err)
			}
			c.cfg.Logger.Info("host became a voter", "peer", step.node)
		case step.node == c.cfg.Self:
			c.cfg.Farewell(ctx)
			if err := c.handOver(ctx, trust); err != nil {
				return err // the next leader goes on: see Reconcile
			}
			return fleet.Errorf(fleet.Unavailable, "no other voter answers that could lead in the place of %s, which is to leave the quorum", c.cfg.Self)
		default:
			if err := c.cfg.Quorum.RemoveServer(ctx, step.node); err != nil {
				return fmt.Errorf("take the vote of %s: %w", step.node, err)
			}
			c.cfg.Logger.Info("host votes no more", "peer", step.node)
		}
	}
	return nil
}

// Reconcile holds, on a leader, that Raft's voters are those of trust.json: it
// finishes a change that was cut short after its trust.json was committed. It
// returns when ctx is done.
func (c *Control) Reconcile(ctx context.Context) {
	for {
		store := c.cfg.FSM.Store()
		changed, abandoned := store.WatchTrust(), store.Abandoned()
		err := c.reconcile(ctx)
		if ctx.Err() != nil {
			return
		}
		var again <-chan time.Time
		if err != nil {
			c.cfg.Logger.Warn("trust.json and Raft do not agree yet on who votes", "err", err)
			again = time.After(reconcileRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-changed:
		case <-abandoned:
		}
	}
}

func (c *Control) reconcile(ctx context.Context) error {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, reconcileTry)
	defer cancel()
	return c.seat(ctx, c.cfg.FSM.Store().Trust())
}

const (
	// reconcileTry bounds one try of Reconcile, so that a host that does not
	// answer keeps no other change of the quorum waiting.
	reconcileTry = 10 * time.Second

	// reconcileRetry is how long Reconcile waits for a host that does not answer.
	reconcileRetry = 5 * time.Second

	// membershipWait is how long one change of the quorum waits for another:
	// less than its caller waits, who is told why.
	membershipWait = time.Minute
)

func votes(trust *identity.Trust, id fleet.NodeID) bool {
	return trust != nil && slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id })
}

// CertificateWarning is how long before its end a quorum certificate is warned
// of: it lasts 400 days, and the root key that signs the next one is offline.
const CertificateWarning = 60 * 24 * time.Hour

// CertificateEnds is the warning that a host's quorum certificate ends, or did.
func CertificateEnds(name string, left time.Duration) fleet.Warning {
	text := fmt.Sprintf("the quorum certificate of %s expires in %d days", name, int(left.Hours()/24))
	if left < 0 {
		text = fmt.Sprintf("the quorum certificate of %s has expired", name)
	}
	return fleet.Warning{Code: "QuorumCertificateExpiring", Message: text, Remedy: "fleet quorum renew --root-key FILE"}
}
