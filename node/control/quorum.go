package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// Candidate asks a host for its request to become a voter. The host makes its
// quorum and issuing keys for it if it has none.
func (c *Control) Candidate(ctx context.Context, node fleet.NodeID) ([]byte, error) {
	store, err := c.Read(ctx, false)
	if err != nil {
		return nil, err
	}
	n := store.Node(node)
	if n == nil {
		return nil, fleet.Errorf(fleet.NotFound, "no node %s", node)
	}
	resp, err := rpc.Call[rpc.Empty, rpc.CandidateResponse](ctx, c.cfg.RPC, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodCandidate, &rpc.Empty{})
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

// addVoters makes hosts eligible and, when the request brings the next version
// of trust.json, voters. It runs on the leader. Each step may be repeated, so
// the same request may be sent again after a failure: nothing votes before the
// new trust.json is committed, and that happens after every candidate holds
// its certificates and the log.
func (c *Control) addVoters(ctx context.Context, body []byte) ([]byte, error) {
	changed, err := c.changeQuorum(ctx)
	if err != nil {
		return nil, err
	}
	defer changed()
	var req fleet.AddVotersRequest
	if err := wire.StrictJSON(body, &req); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "%w", err)
	}
	store := c.cfg.FSM.Store()
	next, err := c.nextTrust(store, req.Trust)
	if err != nil {
		return nil, err
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
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	var result fleet.AddVotersResult
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

// changeQuorum waits for its turn to change who decides; done ends the turn.
// It does not refuse at once: what is under way is often the same request,
// whose caller lost its connection, or Reconcile on a leader that was elected
// in the middle of it.
func (c *Control) changeQuorum(ctx context.Context) (done func(), _ error) {
	ctx, cancel := context.WithTimeout(ctx, membershipWait)
	defer cancel()
	select {
	case c.membership <- struct{}{}:
		return func() { <-c.membership }, nil
	case <-ctx.Done():
		return nil, fleet.Errorf(fleet.Conflict, "another change of the quorum is under way").WithHint("wait for it to end: fleet quorum ls")
	}
}

// nextTrust reads the trust.json of the request: the version after the
// committed one, or the committed one itself when the request is repeated.
// Without one it is the committed version.
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
	if next.Version != current.Version+1 {
		return nil, fleet.Errorf(fleet.Conflict, "the signed trust.json has version %d; after version %d comes %d", next.Version, current.Version, current.Version+1).
			WithHint("another change came first: run the command again")
	}
	return next, nil
}

// admit gives a candidate its certificates and lets it follow the log.
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
	c.cfg.Logger.Info("host became eligible", "peer", n.ID)
	return nil
}

// promote commits the new trust.json and makes everyone in it a voter.
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
		if _, known := voting[v.Node]; !known {
			return fleet.Errorf(fleet.Invalid, "the signed trust.json names %s, which neither votes nor is among the candidates", v.Node)
		}
		if err := c.cfg.Quorum.CaughtUp(ctx, v.Node); err != nil {
			return fleet.Errorf(fleet.Unavailable, "%s has not caught up with the log: %w", v.Node, err)
		}
	}
	for _, s := range servers {
		if s.Voter && !votes(next, s.ID) {
			return fleet.Errorf(fleet.Invalid, "the signed trust.json leaves out the voter %s; removing voters is not part of this operation", s.ID)
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

// seat makes those voters whom trust.json names and who do not vote yet.
func (c *Control) seat(ctx context.Context, trust *identity.Trust) error {
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.Voter || !votes(trust, s.ID) {
			continue
		}
		if err := c.cfg.Quorum.CaughtUp(ctx, s.ID); err != nil {
			return fleet.Errorf(fleet.Unavailable, "%s has not caught up with the log: %w", s.ID, err)
		}
		if err := c.cfg.Quorum.AddVoter(ctx, s.ID); err != nil {
			return fmt.Errorf("make %s a voter: %w", s.ID, err)
		}
		c.cfg.Logger.Info("host became a voter", "peer", s.ID)
	}
	return nil
}

// Reconcile finishes, on a leader, a change of the quorum that was cut short
// after its trust.json was committed. It returns when trust.json and Raft agree
// on who votes, or when ctx is done.
func (c *Control) Reconcile(ctx context.Context) {
	for {
		err := c.reconcile(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		c.cfg.Logger.Warn("trust.json names voters who do not vote yet", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconcileRetry):
		}
	}
}

func (c *Control) reconcile(ctx context.Context) error {
	done, err := c.changeQuorum(ctx)
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
