package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/raftfsm/quorum"
)

// This file is a host's place in the quorum: how it is made a quorum host, takes
// renewed certificates and keys into use, and how it stops being one.
//
// A host is out of the quorum when the root key says so (trust.json does not
// name it) and the change is complete (Raft's configuration does not name it
// either). The second it is told by the leader, in the answer to a heartbeat,
// because the others do not speak Raft with it any more. Until then it goes on
// voting: its vote may be needed to complete the change.
//
// A fleet that was recovered by force is another matter: in the new epoch no
// change has to be completed, and two voters who come back would, by their own
// log, be a majority. So a host that learns of a newer epoch which does not name
// it ends its part at once, and a host that starts asks the others first.

// WarnFenced is the code of the warning of a host that the fleet was recovered
// without.
const WarnFenced = "Fenced"

const (
	// settling is how long after its certificates came a host may be missing in
	// Raft's configuration without having been in it: it is just being put there.
	settling = 2 * time.Minute

	// fenceTime bounds the question to other voters before this one takes part.
	fenceTime = 3 * time.Second

	// tellEvery is how often a leader tells former voters of the trust.json that
	// does not name them, until they have it.
	tellEvery = 5 * time.Second
	tellTime  = 3 * time.Second

	tellAtOnce = 64 // hosts that are told at a time
	seekHosts  = 3  // hosts of the ring that are asked at a time
)

// followTrust is what a host with a quorum half does about another trust.json;
// held is nil at its start. It must not wait for parts of the member: one of
// them calls it.
func (n *Node) followTrust(held, next *identity.Trust) {
	n.beats.Kick() // other voters may have to be heard; who is out of the quorum hears of it
	m := n.member.Load()
	if m == nil {
		return
	}
	if held != nil && next.Epoch > held.Epoch && !next.IsVoter(n.info.Node, m.key.Public()) {
		n.endSeat(fencedText(next))
		return
	}
	if next.IsVoter(n.info.Node, m.key.Public()) {
		m.settled.Store(true)
	}
	if err := m.followIssuer(next); err != nil {
		n.log.Error("new issuing key not taken into use", "err", err)
	}
}

func fencedText(trust *identity.Trust) string {
	return fmt.Sprintf("the fleet was recovered by force without this host, as epoch %d: what it decided since counts nowhere", trust.Epoch)
}

// heardOutside takes the word of a leader that this host is in Raft's
// configuration no more. The root key must have said it first.
func (n *Node) heardOutside(voter fleet.NodeID, resp *rpc.HeartbeatResponse) {
	m := n.member.Load()
	if m == nil {
		return
	}
	if m.inConfiguration(n.info.Node) {
		m.settled.Store(true)
	}
	if !resp.Outside || resp.Leader != voter || m.fresh && !m.settled.Load() && n.cfg.Now().Sub(m.made) < settling {
		return
	}
	if n.trust.Load().IsVoter(n.info.Node, m.key.Public()) {
		return
	}
	n.endSeat("an operator took this host out of the quorum")
}

// endSeat asks runSeat to end the quorum half.
func (n *Node) endSeat(why string) {
	select {
	case n.unseat <- why:
	default: // asked for already
	}
}

// runSeat ends the quorum half of this host when that is asked for.
func (n *Node) runSeat(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case why := <-n.unseat:
			if err := n.leaveQuorum(why); err != nil {
				return err
			}
		}
	}
}

// leaveQuorum ends the quorum half: from the first line on no new connection
// finds it, then its parts end, then its keys and its log are put away. The host
// goes on as an ordinary one.
func (n *Node) leaveQuorum(why string) error {
	n.installMu.Lock()
	defer n.installMu.Unlock()
	m := n.member.Load()
	if m == nil || n.trust.Load().IsVoter(n.info.Node, m.key.Public()) {
		return nil
	}
	n.member.Store(nil)
	n.quorumTLS.Store(nil)
	m.abandon.Store(true)
	m.cancel()
	m.parts.Wait()
	n.recheck()
	return n.retire(why)
}

func (n *Node) retire(why string) error {
	r := enrol.Retired{Message: why, Fenced: strings.HasPrefix(why, "the fleet was recovered"), At: fleet.InstantOf(n.cfg.Now().UnixNano())}
	if err := n.dir.Retire(r); err != nil {
		return fmt.Errorf("leave the quorum: %w", err)
	}
	n.retired.Store(&r)
	n.log.Warn("this host is of the quorum no more", "reason", why)
	return nil
}

// recoveredWithout asks the other voters, before this host takes part in the quorum,
// whether the fleet was recovered without it. Without an answer it takes part:
// voters who are all down and start again one by one must find together.
func (n *Node) recoveredWithout() bool {
	before := n.trust.Load()
	var others []fleet.NodeID
	for _, v := range before.Voters {
		if v.Node != n.info.Node {
			others = append(others, v.Node)
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, fenceTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range others {
		wg.Go(func() { _ = n.exchangeTrust(ctx, n.rpc, quorumHost(id)) }) // one that does not answer says nothing
	}
	wg.Wait()
	now := n.trust.Load()
	if now.Epoch <= before.Epoch {
		return false
	}
	if id, err := n.dir.LoadIdentity(enrol.Quorum); err == nil && now.IsVoter(n.info.Node, id.Key.Public()) {
		return false
	}
	n.quorumTLS.Store(nil)
	if err := n.retire(fencedText(now)); err != nil {
		n.fatal(err)
	}
	return true
}

// exchangeTrust tells a host which trust.json this one holds, and takes its if
// that is newer.
func (n *Node) exchangeTrust(ctx context.Context, by *rpc.Client, to rpc.Target) error {
	resp, err := rpc.Call[rpc.TrustRequest, rpc.TrustResponse](ctx, by, to, rpc.MethodTrust, &rpc.TrustRequest{Trust: n.trust.Load().Raw()})
	if err != nil {
		return err
	}
	return n.setTrust(resp.Trust)
}

// tellFormer has the leader tell every host of a new trust.json at once, and
// hosts that were voters, as the issuing keys in trust.json show, until they have
// it: they do not listen to its Raft any more.
func (m *member) tellFormer(ctx context.Context) {
	told := map[fleet.NodeID]*identity.Trust{}
	var last *identity.Trust
	for {
		changed := m.n.trustChanged()
		trust := m.n.trust.Load()
		if last != nil && trust != last {
			m.tellAll(ctx)
		}
		last = trust
		var wg sync.WaitGroup
		var mu sync.Mutex // guards told
		asking, cancel := context.WithTimeout(ctx, tellTime)
		for _, i := range trust.Issuers {
			id := i.Node
			if i.Until == 0 || told[id] == trust || slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id }) {
				continue
			}
			wg.Go(func() {
				if m.n.exchangeTrust(asking, m.rpc, rpc.Target{Node: id, Role: fleet.RoleAgent}) != nil {
					return // again in a moment
				}
				mu.Lock()
				defer mu.Unlock()
				told[id] = trust
			})
		}
		wg.Wait()
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(tellEvery):
		}
	}
}

// tellAll tells the hosts that keep a connection open to this voter which
// trust.json the fleet has now: they believe its new voters, and its former ones
// no more, without waiting for their next heartbeat. A leader that is about to
// leave the quorum does so too: hosts may know no other voter. What does not get
// through is repaired by the hosts themselves (heartbeats, and Node.seekTrust).
func (m *member) tellAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	slots := make(chan struct{}, tellAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	heard, trust := m.n.seen.All(), m.n.trust.Load()
	for _, id := range m.rpc.Reversed() {
		if heard[id].Trust == trust.Version {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			_ = m.n.exchangeTrust(ctx, m.rpc, rpc.Target{Node: id, Role: fleet.RoleAgent}) // see above
		})
	}
}

// seekTrust asks some other hosts which trust.json they hold. A host does so
// that no voter answers: all that it knows may have been replaced. It may ask
// anybody, since the root key signed the answer.
func (n *Node) seekTrust(ctx context.Context) {
	var ids []fleet.NodeID
	if ring := n.ringRef.Load(); ring != nil {
		for _, other := range ring.Members() {
			if other.Node != n.info.Node {
				ids = append(ids, other.Node)
			}
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	ids = append(n.voters(), ids[:min(len(ids), seekHosts)]...) // a former voter is a host as any other
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, id := range ids {
		if id == n.info.Node {
			continue
		}
		wg.Go(func() {
			if err := n.exchangeTrust(ctx, n.rpc, rpc.Target{Node: id, Role: fleet.RoleAgent}); err != nil {
				n.log.Debug("another host does not tell its trust.json", "peer", id, "err", err)
			}
		})
	}
}

// followIssuer takes a waiting issuing key into use once trust.json names it.
func (m *member) followIssuer(trust *identity.Trust) error {
	m.issuerMu.Lock()
	defer m.issuerMu.Unlock()
	next, err := m.n.dir.LoadIdentity(enrol.NextIssuer)
	if err != nil {
		return nil //nolint:nilerr // none waits, or it has no certificate yet
	}
	if !slices.Contains(trust.Issuers, identity.TrustIssuer{Node: m.n.info.Node, Key: next.Key.Public()}) {
		return nil
	}
	if err := m.n.dir.UseNextIssuer(); err != nil {
		return err
	}
	m.issuer.Store(next)
	m.n.log.Info("new issuing key in use", "key", next.Key.Public().Fingerprint())
	return nil
}

// candidate makes this host's request to become a voter, or as a voter to issue
// with a new key.
func (n *Node) candidate(newIssuer bool) ([]byte, error) {
	quorumKey, err := n.dir.LoadOrCreateKey(enrol.Quorum)
	if err != nil {
		return nil, err
	}
	name := enrol.Issuer
	if newIssuer {
		if n.member.Load() == nil {
			return nil, fleet.Errorf(fleet.Conflict, "%s issues nothing: it is not of the quorum", n.Name())
		}
		name = enrol.NextIssuer
	}
	issuerKey, err := n.dir.LoadOrCreateKey(name)
	if err != nil {
		return nil, err
	}
	return identity.NewCandidate(identity.Candidate{
		Fleet: n.info.Fleet, Node: n.info.Node, Quorum: quorumKey.Public(), Issuer: issuerKey.Public(),
	}, n.key, quorumKey, issuerKey)
}

// fingerprint is what a person compares before the root key signs for this host.
func (n *Node) fingerprint() (string, error) {
	b, err := n.candidate(false)
	if err != nil {
		return "", err
	}
	c, err := identity.ParseCandidate(b)
	if err != nil {
		return "", err
	}
	return c.Fingerprint(), nil
}

// installQuorum makes this host eligible, or gives a quorum host other
// certificates. They prove themselves: the root key signed them for keys that
// lie here.
func (n *Node) installQuorum(_ context.Context, req *rpc.InstallQuorumRequest) error {
	n.installMu.Lock()
	defer n.installMu.Unlock()
	now := n.cfg.Now()
	key, err := n.dir.LoadOrCreateKey(enrol.Quorum)
	if err != nil {
		return err
	}
	if err := identity.CheckIssued(req.QuorumCert, n.info.RootCertificate, fleet.RoleQuorum, n.info.Node, key.Public(), now); err != nil {
		return err
	}
	issuer, err := n.issuerOf(req.IssuerCert, now)
	if err != nil {
		return err
	}
	m := n.member.Load()
	if m == nil && !n.cfg.Memory {
		if err := quorum.Create(n.dir.File("quorum"), false, n.info.Node); err != nil && fleet.KindOf(err) != fleet.Conflict {
			return err
		}
	}
	if err := errors.Join(
		n.dir.SaveChain(issuer, req.IssuerCert, n.info.RootCertificate),
		n.dir.SaveChain(enrol.Quorum, req.QuorumCert, n.info.RootCertificate)); err != nil {
		return err
	}
	id, err := n.dir.LoadIdentity(enrol.Quorum)
	if err != nil {
		return err
	}
	cert := id.TLS()
	n.quorumTLS.Store(&cert)
	if m == nil {
		if err := n.dir.ForgetRetired(); err != nil {
			return err
		}
		n.retired.Store(nil)
		if err := n.startFresh(); err != nil {
			if n.fenced.Load() != nil {
				n.quorumTLS.Store(nil)
			}
			return err
		}
		n.fenced.Store(nil)
		return nil
	}
	n.log.Info("quorum certificate renewed", "until", cert.Leaf.NotAfter)
	if issuer == enrol.Issuer {
		renewed, err := n.dir.LoadIssuer()
		if err != nil {
			return err
		}
		m.issuer.Store(renewed)
		return nil
	}
	return m.followIssuer(n.trust.Load()) // a repeated request: trust.json may name it already
}

// issuerOf is the name of the issuing key here that a certificate is for.
func (n *Node) issuerOf(der []byte, now time.Time) (name string, err error) {
	for _, name = range []string{enrol.Issuer, enrol.NextIssuer} {
		var key identity.PrivateKey
		if name == enrol.Issuer {
			key, err = n.dir.LoadOrCreateKey(name)
		} else {
			key, err = identity.LoadKey(n.dir.File("keys/" + name + ".key"))
		}
		if err == nil {
			if err = identity.CheckIssued(der, n.info.RootCertificate, fleet.RoleIssuer, n.info.Node, key.Public(), now); err == nil {
				return name, nil
			}
		}
	}
	return "", fleet.Errorf(fleet.Invalid, "the issuing certificate is for no key of this host")
}
