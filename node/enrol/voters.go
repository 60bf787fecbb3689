package enrol

import (
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// VoterPlan is what the root key is about to sign: shown to the operator
// before, sent as the request after.
type VoterPlan struct {
	Candidates []*identity.SignedCandidate // verified, in the order in which they were named
	Voters     []fleet.NodeID              // who votes afterwards
	Eligible   []fleet.NodeID              // who follows the log but does not vote afterwards
	next       *identity.Trust             // nil when nobody becomes a voter
}

// maxVoters is the largest quorum.
const maxVoters = 5

// PlanVoters decides who votes when candidates join a quorum: 1, 3 or 5 hosts
// can vote, so of an even number the last one stays eligible. eligible are
// those that a former call left so, with their requests made anew among
// candidates. keys gives the agent key of a node, by which its request is
// verified.
func PlanVoters(trust *identity.Trust, candidates [][]byte, keys func(fleet.NodeID) (fleet.PublicKey, error)) (*VoterPlan, error) {
	plan := &VoterPlan{}
	for _, b := range candidates {
		c, err := identity.ParseCandidate(b)
		if err != nil {
			return nil, err
		}
		key, err := keys(c.Node)
		if err != nil {
			return nil, err
		}
		if err := c.Verify(key); err != nil {
			return nil, err
		}
		if c.Fleet != trust.Fleet {
			return nil, fleet.Errorf(fleet.Denied, "%s asks to vote in fleet %s", c.Node, c.Fleet)
		}
		if slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == c.Node }) {
			return nil, fleet.Errorf(fleet.Conflict, "%s votes already", c.Node)
		}
		if slices.ContainsFunc(plan.Candidates, func(o *identity.SignedCandidate) bool { return o.Node == c.Node }) {
			return nil, fleet.Errorf(fleet.Conflict, "%s is named twice", c.Node)
		}
		plan.Candidates = append(plan.Candidates, c)
	}
	total := len(trust.Voters) + len(plan.Candidates)
	if total > maxVoters {
		return nil, fleet.Errorf(fleet.Invalid, "%d voters and %d candidates make %d: at most %d hosts vote", len(trust.Voters), len(plan.Candidates), total, maxVoters)
	}
	promoted := len(plan.Candidates)
	if total%2 == 0 {
		promoted--
	}
	for _, v := range trust.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	if promoted > 0 {
		next := *trust
		next.Version, next.FirstOperator = trust.Version+1, nil
		next.Voters, next.Issuers = slices.Clone(trust.Voters), slices.Clone(trust.Issuers)
		for _, c := range plan.Candidates[:promoted] {
			next.Voters = append(next.Voters, identity.TrustVoter{Node: c.Node, Key: c.Quorum})
			next.Issuers = append(next.Issuers, identity.TrustIssuer{Node: c.Node, Key: c.Issuer})
			plan.Voters = append(plan.Voters, c.Node)
		}
		next.K = identity.ThresholdFor(len(next.Voters))
		plan.next = &next
	}
	for _, c := range plan.Candidates[promoted:] {
		plan.Eligible = append(plan.Eligible, c.Node)
	}
	return plan, nil
}

// Sign makes the request: the candidates' certificates and, when somebody
// becomes a voter, the next trust.json, whose version is recorded in the
// root-key file before it leaves, so that an older one is never signed again.
func (p *VoterPlan) Sign(root identity.PrivateKey, file *identity.RootKeyFile, now time.Time) (*fleet.AddVotersRequest, error) {
	req := &fleet.AddVotersRequest{}
	for _, c := range p.Candidates {
		quorum, err := identity.IssueQuorum(root, file.Certificate, c.Node, c.Quorum, now)
		if err != nil {
			return nil, err
		}
		issuer, err := identity.IssueIssuer(root, file.Certificate, c.Node, c.Issuer, now)
		if err != nil {
			return nil, err
		}
		req.Candidates = append(req.Candidates, fleet.NewVoter{InstanceId: c.Node, QuorumCertificate: quorum, IssuerCertificate: issuer})
	}
	if p.next == nil {
		return req, nil
	}
	trust, err := identity.SignTrust(root, *p.next)
	if err != nil {
		return nil, err
	}
	if err := file.RecordTrust(p.next.Version); err != nil {
		return nil, err
	}
	req.Trust = trust
	return req, nil
}
