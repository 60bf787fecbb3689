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
	Removed    []fleet.NodeID              // who votes no more
	next       *identity.Trust             // of the version that the fleet has; nil when trust.json stays as it is
}

// maxVoters is the largest quorum.
const maxVoters = 5

// IssuerOverlap is how long what an issuing key signed counts after the key was
// taken out of use: long enough for every host that is on to get another
// certificate, several times over.
const IssuerOverlap = 7 * 24 * time.Hour

// KeyOf gives the agent key of a node, by which its request is verified.
type KeyOf func(fleet.NodeID) (fleet.PublicKey, error)

// PlanVoters decides who votes when candidates join a quorum: 1, 3 or 5 hosts
// can vote, so of an even number the last one stays eligible. Those that a
// former call left eligible are among candidates, with requests made anew.
func PlanVoters(trust *identity.Trust, candidates [][]byte, keys KeyOf) (*VoterPlan, error) {
	plan := &VoterPlan{}
	for _, b := range candidates {
		c, err := plan.take(trust, b, keys)
		if err != nil {
			return nil, err
		}
		if isVoter(trust, c.Node) {
			return nil, fleet.Errorf(fleet.Conflict, "%s votes already", c.Node)
		}
	}
	total := len(trust.Voters) + len(plan.Candidates)
	if total > maxVoters {
		return nil, fleet.Errorf(fleet.Invalid, "%d voters and %d candidates make %d: at most %d hosts vote", len(trust.Voters), len(plan.Candidates), total, maxVoters)
	}
	promoted := len(plan.Candidates)
	if total%2 == 0 {
		promoted--
	}
	if promoted > 0 {
		plan.begin(trust)
		for _, c := range plan.Candidates[:promoted] {
			plan.seat(c)
		}
	}
	for _, v := range trust.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	for _, c := range plan.Candidates[:promoted] {
		plan.Voters = append(plan.Voters, c.Node)
	}
	for _, c := range plan.Candidates[promoted:] {
		plan.Eligible = append(plan.Eligible, c.Node)
	}
	return plan, nil
}

// PlanRemoval decides who votes when hosts vote no more. What they certified
// counts for IssuerOverlap, or from now on not at all if they are compromised.
// 1, 3 or 5 hosts vote: an even number survives no more losses than one less,
// and a quorum that shrinks to one host needs one signature for a ticket, so
// neither happens unasked.
func PlanRemoval(trust *identity.Trust, remove []fleet.NodeID, compromised bool, now time.Time) (*VoterPlan, error) {
	plan := &VoterPlan{}
	plan.begin(trust)
	for _, id := range remove {
		if !isVoter(trust, id) {
			return nil, fleet.Errorf(fleet.Conflict, "%s does not vote", id)
		}
		plan.unseat(id, compromised, now)
	}
	switch left := len(plan.next.Voters); left {
	case 1, 3:
	case 0:
		return nil, fleet.Errorf(fleet.Invalid, "nobody would vote any more").
			WithHint("replace the voter by another host: fleet quorum replace OLD NEW --root-key FILE")
	default:
		return nil, fleet.Errorf(fleet.Invalid, "%d of %d voters would be left: 1, 3 or 5 hosts vote, since an even number survives no more losses than one less",
			left, len(trust.Voters)).
			WithHint("replace it (fleet quorum replace OLD NEW --root-key FILE), or name so many that %d vote afterwards", left-1)
	}
	for _, v := range plan.next.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	return plan, nil
}

// PlanReplacement decides that a candidate votes in the place of a voter, in
// one version of trust.json.
func PlanReplacement(trust *identity.Trust, old fleet.NodeID, candidate []byte, keys KeyOf, compromised bool, now time.Time) (*VoterPlan, error) {
	plan := &VoterPlan{}
	c, err := plan.take(trust, candidate, keys)
	if err != nil {
		return nil, err
	}
	switch {
	case !isVoter(trust, old):
		return nil, fleet.Errorf(fleet.Conflict, "%s does not vote", old).WithHint("make a host a voter: fleet quorum add NODE --root-key FILE")
	case isVoter(trust, c.Node):
		return nil, fleet.Errorf(fleet.Conflict, "%s votes already", c.Node)
	}
	plan.begin(trust)
	plan.unseat(old, compromised, now)
	plan.seat(c)
	for _, v := range plan.next.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	return plan, nil
}

// PlanRenewal signs new certificates for the keys that voters have.
func PlanRenewal(trust *identity.Trust, candidates [][]byte, keys KeyOf) (*VoterPlan, error) {
	plan := &VoterPlan{}
	for _, b := range candidates {
		c, err := plan.take(trust, b, keys)
		if err != nil {
			return nil, err
		}
		if !trust.IsVoter(c.Node, c.Quorum) {
			return nil, fleet.Errorf(fleet.Conflict, "%s does not vote with the key that it names", c.Node)
		}
		if !slices.ContainsFunc(trust.Issuers, func(i identity.TrustIssuer) bool { return i.Key == c.Issuer && i.Until == 0 }) {
			return nil, fleet.Errorf(fleet.Conflict, "the issuing key that %s names is not its current one", c.Node)
		}
	}
	for _, v := range trust.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	return plan, nil
}

// PlanRotation decides that voters issue with new keys; what the old ones
// signed counts for IssuerOverlap.
func PlanRotation(trust *identity.Trust, candidates [][]byte, keys KeyOf, now time.Time) (*VoterPlan, error) {
	plan := &VoterPlan{}
	plan.begin(trust)
	for _, b := range candidates {
		c, err := plan.take(trust, b, keys)
		if err != nil {
			return nil, err
		}
		if !trust.IsVoter(c.Node, c.Quorum) {
			return nil, fleet.Errorf(fleet.Conflict, "%s does not vote with the key that it names", c.Node)
		}
		if slices.ContainsFunc(trust.Issuers, func(i identity.TrustIssuer) bool { return i.Key == c.Issuer }) {
			return nil, fleet.Errorf(fleet.Conflict, "the issuing key that %s names is not new", c.Node)
		}
		plan.retireIssuers(c.Node, false, now)
		plan.next.Issuers = append(plan.next.Issuers, identity.TrustIssuer{Node: c.Node, Key: c.Issuer})
	}
	for _, v := range trust.Voters {
		plan.Voters = append(plan.Voters, v.Node)
	}
	return plan, nil
}

// PlanRecovery decides that one host votes alone, in the next epoch: whatever
// the others decide or sign from then on counts nowhere.
func PlanRecovery(trust *identity.Trust, self fleet.NodeID, issuer fleet.PublicKey, now time.Time) (*VoterPlan, error) {
	if !isVoter(trust, self) {
		return nil, fleet.Errorf(fleet.Conflict, "%s does not vote: only a voter has the whole of the log", self).
			WithHint("run it on one of the voters")
	}
	plan := &VoterPlan{Voters: []fleet.NodeID{self}}
	plan.begin(trust)
	plan.next.Epoch++
	for _, v := range trust.Voters {
		if v.Node != self {
			plan.unseat(v.Node, false, now)
		}
	}
	// The key that the host has, if its change to another was cut short.
	if !slices.Contains(plan.next.Issuers, identity.TrustIssuer{Node: self, Key: issuer}) {
		plan.retireIssuers(self, false, now)
		plan.next.Issuers = slices.DeleteFunc(plan.next.Issuers, func(i identity.TrustIssuer) bool { return i.Key == issuer })
		plan.next.Issuers = append(plan.next.Issuers, identity.TrustIssuer{Node: self, Key: issuer})
	}
	return plan, nil
}

// take verifies a candidate's request.
func (p *VoterPlan) take(trust *identity.Trust, b []byte, keys KeyOf) (*identity.SignedCandidate, error) {
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
	if slices.ContainsFunc(p.Candidates, func(o *identity.SignedCandidate) bool { return o.Node == c.Node }) {
		return nil, fleet.Errorf(fleet.Conflict, "%s is named twice", c.Node)
	}
	p.Candidates = append(p.Candidates, c)
	return c, nil
}

// begin makes the next trust.json a copy of the one that the fleet has.
func (p *VoterPlan) begin(trust *identity.Trust) {
	next := *trust
	next.FirstOperator = nil
	next.Voters, next.Issuers = slices.Clone(trust.Voters), slices.Clone(trust.Issuers)
	p.next = &next
}

func (p *VoterPlan) seat(c *identity.SignedCandidate) {
	// A host that voted before comes back with a key that is still listed.
	p.next.Issuers = slices.DeleteFunc(p.next.Issuers, func(i identity.TrustIssuer) bool { return i.Key == c.Issuer })
	p.next.Voters = append(p.next.Voters, identity.TrustVoter{Node: c.Node, Key: c.Quorum})
	p.next.Issuers = append(p.next.Issuers, identity.TrustIssuer{Node: c.Node, Key: c.Issuer})
	p.next.K = identity.ThresholdFor(len(p.next.Voters))
}

func (p *VoterPlan) unseat(id fleet.NodeID, compromised bool, now time.Time) {
	p.next.Voters = slices.DeleteFunc(p.next.Voters, func(v identity.TrustVoter) bool { return v.Node == id })
	p.next.K = identity.ThresholdFor(len(p.next.Voters))
	p.retireIssuers(id, compromised, now)
	if !slices.Contains(p.Removed, id) {
		p.Removed = append(p.Removed, id)
	}
}

// retireIssuers ends a host's issuing keys: after the overlap, or now. One that
// ends already does not end later.
func (p *VoterPlan) retireIssuers(id fleet.NodeID, compromised bool, now time.Time) {
	var left []identity.TrustIssuer
	for _, i := range p.next.Issuers {
		if i.Node == id && compromised {
			continue
		}
		if i.Node == id && i.Until == 0 {
			i.Until = now.Add(IssuerOverlap).UnixNano()
		}
		left = append(left, i)
	}
	p.next.Issuers = left
}

// Changes reports whether trust.json changes, and so whether the root key has
// more to sign than certificates.
func (p *VoterPlan) Changes() bool { return p.next != nil }

// Sign makes the request: the candidates' certificates and, when trust.json
// changes, the next one, which the root-key file remembers before it leaves (see
// identity.RootKeyFile.SignTrust).
func (p *VoterPlan) Sign(root identity.PrivateKey, file *identity.RootKeyFile, now time.Time) (*fleet.ChangeQuorumRequest, error) {
	req := &fleet.ChangeQuorumRequest{}
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
	// Keys whose time is over say nothing any more, and there is room for so many.
	p.next.Issuers = slices.DeleteFunc(p.next.Issuers, func(i identity.TrustIssuer) bool {
		return i.Until != 0 && i.Until < now.UnixNano()
	})
	for len(p.next.Issuers) > identity.MaxIssuers {
		// A change must not fail for want of room: the key that would end first
		// ends now, and what hosts have of it they renew at once.
		first := -1
		for n, i := range p.next.Issuers {
			if i.Until != 0 && (first < 0 || i.Until < p.next.Issuers[first].Until) {
				first = n
			}
		}
		if first < 0 {
			break
		}
		p.next.Issuers = slices.Delete(p.next.Issuers, first, first+1)
	}
	trust, err := file.SignTrust(root, *p.next)
	if err != nil {
		return nil, err
	}
	req.Trust = trust
	return req, nil
}

func isVoter(trust *identity.Trust, id fleet.NodeID) bool {
	return slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id })
}
