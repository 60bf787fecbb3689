package node

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"fleet/node/enrol"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/rpc"
	"fleet/node/runcmd"
)

// This file is what every host does for itself: it says that it is there,
// takes orders and brings answers.

// Codes of the warnings that a host sends with its heartbeats.
const (
	WarnClock       = "ClockOff"
	WarnCertificate = "CertificateExpiring"
	WarnCloned      = fleet.WarnCloned
)

func (n *Node) buildAgent() error {
	n.clock = presence.NewClock(n.cfg.Now, func() ([]fleet.NodeID, int) { return n.voters(), n.trust.Load().K })
	n.beats = presence.NewBeats(presence.BeatsConfig{
		Self: n.info.Node, Interval: n.cfg.Timing.Heartbeat, Voters: n.voters, Leader: n.leader,
		Send: n.heartbeat, Clock: n.clock, Now: n.cfg.Now, Logger: n.log.With("component", "heartbeats"),
	})
	var err error
	n.runner, err = runcmd.New(runcmd.Config{
		Self: n.info.Node, Fleet: n.info.Fleet, Key: n.key, Journal: n.journal, Blobs: n.blobs, Dir: n.dir.File("work"),
		Trust: n.trust.Load, Clock: fleetTime{n}, Report: n.report, Starter: n.starter(), Now: n.cfg.Now,
		Cgroups: n.cfg.Cgroups, Limits: n.cfg.Limits,
		Space: n.disk.Check, Plugins: n.plugins(),
		Logger: n.log.With("component", "runcmd"),
	})
	return err
}

// heartbeat tells one voter that this host is there and takes what is new.
func (n *Node) heartbeat(ctx context.Context, voter fleet.NodeID) (time.Time, error) {
	if gone := n.gone.Load(); gone != nil {
		return time.Time{}, errGone(gone)
	}
	said, err := n.askVoter(ctx, voter)
	n.touch.note(voter, n.cfg.Now(), err)
	return said, err
}

func (n *Node) askVoter(ctx context.Context, voter fleet.NodeID) (time.Time, error) {
	trust := n.trust.Load()
	req := &rpc.HeartbeatRequest{
		Version: n.cfg.Version, TrustVersion: trust.Version, TrustEpoch: trust.Epoch, ViewIndex: n.view.at(voter), Boot: n.boot, Warnings: n.warnings(),
		Quorum:  n.member.Load() != nil,
		Program: n.programDigest(),
		Keys:    n.ringKeys.wanted(n.gossipStats(), n.cfg.Now()),
	}
	if _, err := rand.Read(req.Nonce[:]); err != nil {
		return time.Time{}, fmt.Errorf("make nonce: %w", err)
	}
	resp, err := rpc.Call[rpc.HeartbeatRequest, rpc.HeartbeatResponse](ctx, n.rpc, quorumHost(voter), rpc.MethodHeartbeat, req)
	var told *fleet.Error
	if errors.As(err, &told) && told.Code == fleet.CodeNotOfQuorum {
		// It voted once, and knows who does now.
		return time.Time{}, errors.Join(err, n.exchangeTrust(ctx, n.rpc, rpc.Target{Node: voter, Role: fleet.RoleAgent}))
	}
	if err != nil {
		return time.Time{}, err
	}
	if resp.Nonce != req.Nonce {
		return time.Time{}, fleet.Errorf(fleet.Invalid, "%s answered another heartbeat", voter)
	}
	if len(resp.Trust) > 0 {
		if err := n.setTrust(resp.Trust); err != nil {
			n.log.Warn("trust.json from a voter not taken", "peer", voter, "err", err)
		}
	}
	n.takeGossipKeys(resp.Keys, req.Keys)
	if n.view.merge(voter, resp) {
		n.recheck()
	}
	n.heardOutside(voter, resp)
	n.takeName()
	n.clones.Store(&resp.Clones)
	if n.view.leads(voter, n.trust.Load().K) && n.inbound.set(presence.Dial(resp.Dial)) {
		n.log.Info("the leader has dialled this host", "answered", presence.Dial(resp.Dial) == presence.Answers)
	}
	n.touch.runs(voter, resp.Version)
	if len(resp.NodeRecord) > 0 {
		n.setRecord(resp.NodeRecord)
	}
	if err := n.savePeers(); err != nil {
		n.log.Warn("addresses of the quorum not written down", "err", err)
	}
	n.readyOnce.Do(func() { close(n.ready) })
	return time.Unix(0, resp.Time), nil
}

// takeName follows the registry's name for this host, and writes it down for a
// start without the quorum.
func (n *Node) takeName() {
	name, was := n.view.name(n.info.Node), n.Name()
	if name == "" || name == was {
		return
	}
	n.nodeName.Store(&name)
	n.log.Info("this host has another name now", "name", name, "was", was)
	if err := n.dir.SaveName(n.info, name); err != nil {
		n.log.Warn("name not written down", "err", err)
	}
}

// report brings a result to the quorum: first the blobs that it names, if they
// can be brought, then the result, both to the same voter, the leader if it
// answers. It gives the log index that holds the result.
func (n *Node) report(ctx context.Context, result, detail []byte, blobs []fleet.Digest) (uint64, error) {
	n.atResult(failpoint.Send, result)
	order := n.voters()
	rpc.AskFirst(order, n.leader())
	var failures []error
	for _, voter := range order {
		index, err := n.reportTo(ctx, voter, result, detail, blobs)
		if err == nil {
			return index, nil
		}
		switch fleet.KindOf(err) {
		case fleet.Denied, fleet.Invalid, fleet.NotFound, fleet.TooLarge:
			return 0, err // every voter would say so
		}
		failures = append(failures, fmt.Errorf("%s: %w", voter, err))
	}
	return 0, fleet.Errorf(fleet.Unavailable, "no voter took the result: %w", errors.Join(failures...))
}

// voterTime bounds the wait for one voter's answer, so that one that fell silent
// does not keep a result from the others. A result that comes twice counts once.
const voterTime = 5 * time.Second

func (n *Node) reportTo(ctx context.Context, voter fleet.NodeID, result, detail []byte, blobs []fleet.Digest) (uint64, error) {
	if len(blobs) > 0 {
		// They may take long: first whether anybody is there to take them.
		asking, cancel := context.WithTimeout(ctx, voterTime)
		defer cancel()
		_, err := n.heartbeat(asking, voter)
		if kind := fleet.KindOf(err); kind == fleet.Unknown || kind == fleet.Unavailable {
			return 0, err
		}
	}
	for _, d := range blobs {
		if err := n.putBlob(ctx, voter, d); err != nil {
			// Output that cannot be read here, or not be taken there, must not
			// keep the result back: this host keeps its copy, which is asked for
			// when somebody wants to read it.
			n.log.Warn("output stays on this host", "peer", voter, "err", err)
			break
		}
	}
	ctx, cancel := context.WithTimeout(ctx, voterTime)
	defer cancel()
	resp, err := rpc.Call[rpc.ReportRequest, rpc.ReportResponse](ctx, n.rpc, quorumHost(voter), rpc.MethodReport,
		&rpc.ReportRequest{Result: result, Detail: detail})
	if err != nil {
		return 0, err
	}
	return resp.Index, nil
}

// blobTime bounds the way of one blob to a voter.
const blobTime = 45 * time.Second

func (n *Node) putBlob(ctx context.Context, voter fleet.NodeID, d fleet.Digest) (err error) {
	ctx, cancel := context.WithTimeout(ctx, blobTime)
	defer cancel()
	r, err := n.blobs.Get(d)
	if err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	answer, err := rpc.CallStream(ctx, n.rpc, quorumHost(voter), rpc.MethodPutBlob, rpc.BlobHead{Digest: d, Size: r.Size()}, r)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}

// deliver takes a command from the quorum. What counts is the ticket, not who
// brought it.
func (n *Node) deliver(ctx context.Context, _ identity.Peer, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
	if len(req.Trust) > 0 {
		if err := n.setTrust(req.Trust); err != nil {
			return notNow(err)
		}
	}
	if _, ok := n.clock.FleetTime(); !ok {
		n.beats.Kick()
	}
	n.atTicket(failpoint.Arrived, req.Ticket)
	a, err := n.runner.Deliver(ctx, runcmd.Delivery{
		Ticket: req.Ticket, Index: req.Index, Path: req.Path,
		Document: req.Document, DocumentName: req.DocumentName, Parameters: req.Parameters,
	})
	if err != nil {
		return notNow(err)
	}
	n.atTicket(failpoint.Answer, req.Ticket)
	return deliverResponse(a), nil
}

// cancelCommand takes a voter's word that a command is cancelled. What counts is
// the signature, not who brought it.
func (n *Node) cancelCommand(ctx context.Context, _ identity.Peer, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
	if len(req.Trust) > 0 {
		if err := n.setTrust(req.Trust); err != nil {
			return notNow(err)
		}
	}
	if _, ok := n.clock.FleetTime(); !ok {
		n.beats.Kick()
	}
	a, err := n.runner.Cancel(ctx, runcmd.Cancellation{Cancel: req.Cancel, Index: req.Index, Path: req.Path})
	if err != nil {
		return notNow(err)
	}
	return deliverResponse(a), nil
}

// releaseCommand takes a voter's word that the turn of a staged command has come.
// What counts is the signature, not who brought it.
func (n *Node) releaseCommand(ctx context.Context, _ identity.Peer, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
	if len(req.Trust) > 0 {
		if err := n.setTrust(req.Trust); err != nil {
			return notNow(err)
		}
	}
	if _, ok := n.clock.FleetTime(); !ok {
		n.beats.Kick()
	}
	a, err := n.runner.Release(ctx, req.Release)
	if err != nil {
		return notNow(err)
	}
	return deliverResponse(a), nil
}

func (n *Node) query(_ context.Context, _ identity.Peer, req *rpc.QueryCommandRequest) (*rpc.DeliverResponse, error) {
	a, ok := n.runner.Query(req.Command, req.Attempt)
	if !ok {
		return nil, fleet.Errorf(fleet.NotFound, "command %s attempt %d is not known here", req.Command, req.Attempt)
	}
	return deliverResponse(a), nil
}

// notNow is the answer of a host that cannot take an order because something is
// wrong with itself, such as a full disk: whoever waits for it is told what. What
// is wrong with the order is an error.
func notNow(err error) (*rpc.DeliverResponse, error) {
	switch fleet.KindOf(err) {
	case fleet.Other, fleet.Unavailable, fleet.Unknown:
	default:
		return nil, err
	}
	reason := err.Error()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		reason = "the disk is full: " + reason
	}
	return deliverResponse(runcmd.NotReadyAnswer(reason)), nil
}

func deliverResponse(a runcmd.Answer) *rpc.DeliverResponse {
	return &rpc.DeliverResponse{State: rpc.DeliverState(a.State), Result: a.Result, Detail: a.Detail, Reason: a.Reason}
}

// warnings says what is wrong with this host, as codes.
func (n *Node) warnings() []string {
	var codes []string
	for _, w := range n.hostWarnings() {
		if len(codes) < rpc.MaxWarnings {
			codes = append(codes, w.Code)
		}
	}
	return codes
}

// renewCheck is how often a host looks whether its certificate is due.
const renewCheck = time.Hour

// runRenewal renews the certificate and the node record when two thirds of the
// certificate's life have passed, and tells the quorum when this host answers
// at another address than the registry says.
func (n *Node) runRenewal(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.ready:
	}
	wait := time.Duration(0)
	for {
		changed := n.trustChanged()
		if wait > time.Minute && !n.trust.Load().Issuer(n.issuedBy(), n.cfg.Now()) {
			// Its certificate counts no more. For a moment the voters still hear
			// it; after that it asks as a host does that was off (standing.go).
			wait = time.Duration(fleet.Sum([]byte(n.info.Node))[2]) * (trustGrace / 2) / 256
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-changed:
			timer.Stop()
			continue
		}
		wait = renewCheck
		if err := n.renew(ctx); err != nil {
			n.log.Warn("certificate or address not renewed", "err", err)
			wait = time.Minute
		}
	}
}

func (n *Node) renew(ctx context.Context) error {
	if err := n.renewCertificate(ctx); err != nil {
		return err
	}
	return n.renewAddress(ctx)
}

// RenewalDue reports whether a certificate valid from notBefore to notAfter is
// to be renewed: after two thirds of its life, spread by up to a sixth that
// depends on the host, so that hosts enrolled together do not renew together.
func RenewalDue(node fleet.NodeID, notBefore, notAfter, now time.Time) bool {
	life := notAfter.Sub(notBefore)
	spread := time.Duration(fleet.Sum([]byte(node))[0]) * (life / 6) / 256
	return now.After(notBefore.Add(life*2/3 + spread))
}

func (n *Node) renewCertificate(ctx context.Context) error {
	leaf, now := n.agentTLS.Load().Leaf, n.cfg.Now()
	if !RenewalDue(n.info.Node, leaf.NotBefore, leaf.NotAfter, now) && !issuerDue(n.info.Node, n.trust.Load(), n.issuedBy(), now) {
		return nil
	}
	return n.renewRecord(ctx)
}

// issuerDue reports whether a certificate is to be renewed because the key that
// issued it is being taken out of use: from a day after that on, spread over
// three days by the host. The key counts for seven (enrol.IssuerOverlap).
func issuerDue(node fleet.NodeID, trust *identity.Trust, issuer fleet.PublicKey, now time.Time) bool {
	for _, i := range trust.Issuers {
		if i.Key == issuer {
			spread := time.Duration(fleet.Sum([]byte(node))[1]) * (3 * 24 * time.Hour) / 256
			return i.Until != 0 && now.After(time.Unix(0, i.Until).Add(24*time.Hour-enrol.IssuerOverlap+spread))
		}
	}
	return true
}

// issuedBy is the key that issued this host's certificate.
func (n *Node) issuedBy() fleet.PublicKey {
	chain := n.agentTLS.Load().Certificate
	if len(chain) < 2 {
		return fleet.PublicKey{}
	}
	cert, err := x509.ParseCertificate(chain[1])
	if err != nil {
		return fleet.PublicKey{}
	}
	key, err := identity.CertificateKey(cert)
	if err != nil {
		return fleet.PublicKey{}
	}
	return key
}

// renewRecord fetches a certificate and a node record of now. A record's epoch is
// the second in which it was made, so that it outranks all before it.
func (n *Node) renewRecord(ctx context.Context) error {
	var failures []error
	for _, voter := range n.voters() {
		resp, err := rpc.Call[rpc.Empty, rpc.RenewResponse](ctx, n.rpc, quorumHost(voter), rpc.MethodRenew, &rpc.Empty{})
		if err == nil {
			err = n.install(resp)
		}
		if err == nil {
			n.log.Info("certificate renewed", "peer", voter)
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", voter, err))
	}
	return errors.Join(failures...)
}

// install takes a renewed certificate into use.
func (n *Node) install(resp *rpc.RenewResponse) error {
	chain, err := parseChain(resp.Certificate, resp.Issuer, n.info.RootCertificate)
	if err != nil {
		return err
	}
	peer, err := identity.VerifyChain(chain, n.info.Fleet, n.cfg.Now())
	if err != nil {
		return err
	}
	if peer.Key != n.key.Public() || peer.Role != fleet.RoleAgent {
		return fleet.Errorf(fleet.Invalid, "the renewed certificate is for another key")
	}
	if err := n.dir.SaveChain(enrol.Agent, resp.Certificate, resp.Issuer, n.info.RootCertificate); err != nil {
		return err
	}
	cert := identity.TLSCertificate(n.key, resp.Certificate, resp.Issuer, n.info.RootCertificate)
	n.agentTLS.Store(&cert)
	n.setRecord(resp.NodeRecord)
	return nil
}

// advertised is where others reach this host: as configured, else as enrolled.
func (n *Node) advertised() string {
	if n.cfg.Advertise != "" {
		return n.cfg.Advertise
	}
	if record := n.record.Load(); record != nil {
		if r, err := identity.ParseNodeRecord(*record); err == nil {
			return r.Addr.String()
		}
	}
	return n.view.peer(n.info.Node)
}

// renewAddress has the quorum decide a changed address. The signed node record
// of this host tells what was decided last.
func (n *Node) renewAddress(ctx context.Context) error {
	record := n.record.Load()
	if record != nil {
		r, err := identity.ParseNodeRecord(*record)
		expiring := err == nil && n.cfg.Now().After(time.Unix(int64(r.Expiry), 0).Add(-enrol.RecordValidity/3))
		if err == nil && !expiring && r.Addr.String() == n.advertised() {
			return nil
		}
	}
	change, err := identity.NewAddressChange(identity.AddressChange{
		Fleet: n.info.Fleet, Node: n.info.Node, Address: n.advertised(), Epoch: uint32(n.cfg.Now().Unix()),
	}, n.key)
	if err != nil {
		return err
	}
	var failures []error
	for _, voter := range n.voters() {
		resp, err := rpc.Call[rpc.ChangeAddressRequest, rpc.ChangeAddressResponse](ctx, n.rpc, quorumHost(voter), rpc.MethodChangeAddress,
			&rpc.ChangeAddressRequest{Change: change})
		if err == nil {
			n.setRecord(resp.NodeRecord)
			n.log.Info("address decided", "addr", n.advertised())
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", voter, err))
	}
	return errors.Join(failures...)
}

// setRecord takes a new node record of this host into use.
func (n *Node) setRecord(b []byte) {
	r, err := identity.VerifyNodeRecord(b, n.trust.Load(), n.cfg.Now())
	if err != nil || r.Node != n.info.Node {
		n.log.Warn("node record not taken", "err", err)
		return
	}
	if err := n.dir.SaveNodeRecord(b); err != nil {
		n.log.Warn("node record not written down", "err", err)
	}
	n.record.Store(&b)
	if ring := n.ringRef.Load(); ring != nil {
		if err := ring.UpdateRecord(); err != nil {
			n.log.Warn("node record not gossiped", "err", err)
		}
	}
}

func quorumHost(id fleet.NodeID) rpc.Target { return rpc.Target{Node: id, Role: fleet.RoleQuorum} }
