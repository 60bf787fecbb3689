package node

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fleet/node/api"
	"fleet/node/control"
	"fleet/node/cosign"
	"fleet/node/dispatch"
	"fleet/node/enrol"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/rpc"
	"fleet/node/transport"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
	"fleet/raftfsm/state"
)

// member is what only a host of the quorum has: an eligible host follows the
// log and answers for the fleet, a voter decides and signs too.
type member struct {
	n        *Node
	key      identity.PrivateKey            // quorum key
	issuer   atomic.Pointer[enrol.Identity] // issuing key
	issuerMu sync.Mutex                     // held while issuer is replaced
	fsm      *raftfsm.FSM
	quorum   *quorum.Quorum
	rpc      *rpc.Client // speaks as a quorum host
	control  *control.Control
	signer   *cosign.Signer
	dispatch *dispatch.Dispatcher
	api      *api.Server
	clock    atomic.Pointer[clockState] // of the time in which this host leads; nil before the first comparison
	states   atomic.Pointer[comparison] // the last one; nil before the first
	doubt    chan struct{}              // asks for a comparison now
	made     time.Time                  // when it was started, by this host's clock
	settled  atomic.Bool                // trust.json or Raft's configuration has named it
	fresh    bool                       // its certificates came while this host ran

	ctx     context.Context // ends when this host stops or is of the quorum no more
	cancel  context.CancelFunc
	parts   sync.WaitGroup
	abandon atomic.Bool // it ends because it is of the quorum no more: nothing is handed over
}

// startMember starts the quorum half of this host.
func (n *Node) startMember() error { return n.openMember(false) }

// startFresh is startMember for a host that has just been made a quorum host.
func (n *Node) startFresh() error { return n.openMember(true) }

func (n *Node) openMember(fresh bool) error {
	quorumID, err := n.dir.LoadIdentity(enrol.Quorum)
	if err != nil {
		return fmt.Errorf("quorum identity: %w", err)
	}
	issuer, err := n.dir.LoadIssuer()
	if err != nil {
		return fmt.Errorf("issuing key: %w", err)
	}
	genesis, err := n.prepareStore()
	if err != nil {
		return err
	}
	m := &member{n: n, key: quorumID.Key, fsm: raftfsm.New(n.info.Fleet), doubt: make(chan struct{}, 1), made: n.cfg.Now(), fresh: fresh}
	m.issuer.Store(issuer)
	m.ctx, m.cancel = context.WithCancel(n.ctx)
	m.rpc = rpc.NewClient(n.dialRPC(fleet.RoleQuorum))
	m.rpc.UseRelays(m.otherVoters)
	m.quorum, err = quorum.Open(quorum.Config{
		Dir: n.dir.File("quorum"), Self: n.info.Node, FSM: m.fsm, Listener: n.transport.Listener(transport.Raft),
		Dial: func(ctx context.Context, node fleet.NodeID) (net.Conn, error) {
			return n.dial(ctx, transport.Raft, fleet.RoleQuorum, node, fleet.RoleQuorum)
		},
		Applied: m.applied, Ask: m.askVouch, Voters: n.voters, Mark: func(node fleet.NodeID) fleet.VoterMark {
			if mark := m.fsm.Store().Mark(node); mark != nil {
				return *mark
			}
			return fleet.VoterMark{}
		},
		Timing: n.raftTiming(), Memory: n.cfg.Memory, Bootstrap: n.cfg.Memory && genesis != nil,
		Fatal: n.fatal, Logger: n.calmlyUntil("quorum", func() bool { return n.stopping.Load() || m.abandon.Load() }),
	})
	if err != nil {
		err = errors.Join(err, m.rpc.Close())
		m.cancel()
	}
	if kind := fleet.KindOf(err); kind == fleet.Corrupt || kind == fleet.NotFound {
		return &refusedStore{err}
	}
	if err != nil {
		return err
	}
	m.control = control.New(control.Config{
		Self: n.info.Node, Quorum: m.quorum, FSM: m.fsm, RPC: m.rpc, Presence: m.presence, Blobs: n.blobs,
		Expires: m.expires, Clock: m.mayStamp, Level: n.level(), At: n.cfg.At, Spread: n.putBlob, Farewell: m.tellAll,
		Now: n.cfg.Now, Logger: n.log.With("component", "control"),
	})
	m.signer = cosign.New(cosign.Config{
		Self: n.info.Node, Key: func() identity.PrivateKey { return m.key }, Store: m.fsm.Store, WaitApplied: m.fsm.WaitApplied,
		Ask: func(ctx context.Context, voter fleet.NodeID, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
			return rpc.Call[rpc.CoSignRequest, rpc.CoSignResponse](ctx, m.rpc, quorumHost(voter), rpc.MethodCoSign, req)
		},
		Now: n.cfg.Now, Logger: n.log.With("component", "cosign"),
	})
	m.dispatch = dispatch.New(dispatch.Config{
		Store: m.fsm.Store, Propose: m.control.Propose, Collect: m.signer.Collect, StaleMint: cosign.ErrStaleMint,
		Deliver: func(ctx context.Context, node fleet.NodeID, req *rpc.DeliverRequest) (*rpc.DeliverResponse, error) {
			n.atTicket(failpoint.Dispatch, req.Ticket)
			resp, err := rpc.Call[rpc.DeliverRequest, rpc.DeliverResponse](ctx, m.rpc, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodDeliver, req)
			if err == nil {
				n.atTicket(failpoint.Heard, req.Ticket)
			}
			return resp, err
		},
		SignCancel: m.signer.Cancel,
		Cancel: func(ctx context.Context, node fleet.NodeID, req *rpc.CancelRequest) (*rpc.DeliverResponse, error) {
			return rpc.Call[rpc.CancelRequest, rpc.DeliverResponse](ctx, m.rpc, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodCancel, req)
		},
		SignRelease: m.signer.Release,
		Release: func(ctx context.Context, node fleet.NodeID, req *rpc.ReleaseRequest) (*rpc.DeliverResponse, error) {
			return rpc.Call[rpc.ReleaseRequest, rpc.DeliverResponse](ctx, m.rpc, rpc.Target{Node: node, Role: fleet.RoleAgent}, rpc.MethodRelease, req)
		},
		Hold: func(node fleet.NodeID) bool { return m.n.seen.Clones(node, n.cfg.Now()) != nil },
		Tree: m.tree(),
		// The host that made it keeps its own copy, on disk: this one may be lost.
		Keep: func(b []byte) error { _, err := n.blobs.Cache(b); return err },
		Now:  n.cfg.Now, Logger: n.log.With("component", "dispatch"),
	})
	m.api = api.NewServer(api.Config{
		Control: m.control, Self: n.info.Node, Version: n.cfg.Version, Warnings: m.warnings,
		Lost: 3 * n.heartbeatInterval(), Now: n.cfg.Now, Logger: n.log.With("component", "api"),
	})
	n.member.Store(m)
	m.run("quorum", func(ctx context.Context) error {
		<-ctx.Done()
		closing, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		end := m.quorum.Close
		if m.abandon.Load() {
			end = m.quorum.Abandon
		}
		return errors.Join(end(closing), m.rpc.Close())
	})
	m.run("leader", func(ctx context.Context) error {
		return m.quorum.Lead(ctx, func(ctx context.Context) error { return m.lead(ctx, genesis) })
	})
	m.run("trust", m.followTrust)
	m.run("reverse", func(ctx context.Context) error {
		return m.rpc.ServeReverse(ctx, n.transport.Listener(transport.Reverse), peerOf)
	})
	m.run("removals", m.followRemovals)
	m.run("states", m.compareStates)
	m.run("api", func(ctx context.Context) error { return m.api.Serve(ctx, n.transport.Listener(transport.API)) })
	n.followTrust(nil, n.trust.Load())
	return nil
}

// refusedStore is that this host's store must not be believed.
type refusedStore struct{ error }

func (r *refusedStore) Unwrap() error { return r.error }

// fence lets this host run on as an agent whose store was refused: it has no
// part in the quorum and shows no quorum certificate, but whoever mends it still
// reaches it.
func (n *Node) fence(err error) {
	n.quorumTLS.Store(nil)
	n.fenced.Store(&fleet.Warning{Code: fleet.WarnQuorumStore, Message: err.Error() + "; this host does not vote", Remedy: fleet.HintOf(err)})
	n.log.Error("this host does not vote: its quorum store is refused", "err", err, "next", fleet.HintOf(err))
}

// run is Node.run for a part that ends with the member. It ends before, with an
// error, only as a part of the host does.
func (m *member) run(component string, part func(ctx context.Context) error) {
	m.parts.Add(1)
	started := m.n.run(component, func(context.Context) error {
		defer m.parts.Done()
		err := part(m.ctx)
		if err != nil && m.ctx.Err() != nil {
			m.n.log.Debug("part ended with the quorum half", "component", component, "err", err)
			return nil
		}
		return err
	})
	if !started {
		m.parts.Done()
	}
}

// prepareStore makes Raft's stores where they may be made: for a fleet that
// has not been founded yet. Anywhere else a missing store is a loss, and
// quorum.Open refuses it.
func (n *Node) prepareStore() (genesis []byte, err error) {
	genesis, err = os.ReadFile(n.dir.File(enrol.GenesisFile))
	if errors.Is(err, fs.ErrNotExist) || n.cfg.Memory {
		return genesis, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read genesis: %w", err)
	}
	if _, err := os.Stat(n.dir.File("quorum")); !errors.Is(err, fs.ErrNotExist) {
		return genesis, err
	}
	return genesis, quorum.Create(n.dir.File("quorum"), true, n.info.Node)
}

func (n *Node) raftTiming() quorum.Timing {
	if n.cfg.Timing.Fast {
		return quorum.FastTiming
	}
	return quorum.DefaultTiming
}

// lead is what only the leader does, until ctx is done.
func (m *member) lead(ctx context.Context, genesis []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	m.clock.Store(nil)
	wg.Go(func() { m.watchClock(ctx) })
	if !m.fsm.Store().Fleet().Genesis {
		if genesis == nil {
			return fleet.Errorf(fleet.Corrupt, "this host leads a quorum without a fleet in its log, and has no genesis to found one")
		}
		a, err := m.control.Propose(ctx, &entry.Genesis{Payload: genesis})
		if err = errors.Join(err, a.Err); err != nil {
			return fmt.Errorf("found the fleet: %w", err)
		}
		m.n.log.Info("fleet founded", "fleet", m.n.info.Name)
	}
	// From here on a missing store is a loss: without the file it cannot be
	// mistaken for a new fleet.
	if err := os.Remove(m.n.dir.File(enrol.GenesisFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove genesis: %w", err)
	}
	m.n.beats.Kick()
	wg.Go(func() { m.control.Reconcile(ctx) })
	wg.Go(func() { m.tellFormer(ctx) })
	wg.Go(func() { m.probe(ctx) })
	wg.Go(func() { m.rotateGossipKeys(ctx) })
	wg.Go(func() { m.control.RaiseFeatures(ctx) })
	wg.Go(func() { m.noteMarks(ctx) })
	wg.Go(func() { m.retire(ctx) })
	return m.dispatch.Lead(ctx)
}

// handOver gives leadership away before a planned stop.
func (m *member) handOver(ctx context.Context) {
	if m.quorum.Leader() != m.n.info.Node {
		return
	}
	if err := m.quorum.TransferLeadership(ctx); err != nil {
		m.n.log.Debug("leadership not handed over", "err", err)
	}
}

// followTrust takes each committed trust.json into use on this host.
func (m *member) followTrust(ctx context.Context) error {
	for {
		store := m.fsm.Store()
		changed, abandoned := store.WatchTrust(), store.Abandoned()
		if t := store.Trust(); t != nil {
			if err := m.n.setTrust(t.Raw()); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-abandoned:
		}
	}
}

// otherVoters are the voters besides this host.
func (m *member) otherVoters() []fleet.NodeID {
	return slices.DeleteFunc(m.n.voters(), func(id fleet.NodeID) bool { return id == m.n.info.Node })
}

// admitAgent compares an agent's certificate with the registry.
func (m *member) admitAgent(p transport.Proto, peer identity.Peer, trust *identity.Trust, now time.Time) error {
	if !trust.Issuer(peer.Issuer, now) {
		return fleet.Errorf(fleet.Denied, "the certificate of %s was issued by a key that trust.json version %d does not name", peer.Node, trust.Version)
	}
	store := m.fsm.Store()
	if err := m.refuseRemoved(peer.Node); err != nil {
		return err
	}
	row := store.Node(peer.Node)
	if row == nil {
		// A host that follows the log may hear of a new node from the node. A
		// reverse connection is for calls to a node that is in the registry.
		if p == transport.Reverse || m.quorum.Ready() {
			return m.noRow(peer.Node)
		}
		return nil
	}
	if row.Key != peer.Key {
		return fleet.Errorf(fleet.Denied, "the certificate of %s is not for its enrolled key", peer.Node)
	}
	return nil
}

// noRow says that a host is not in the registry. Only a leader that has read its
// log knows; a voter that has just started holds an older copy, or none.
func (m *member) noRow(id fleet.NodeID) error {
	if m.quorum.Ready() {
		return fleet.Errorf(fleet.Denied, "%s is not enrolled", id)
	}
	return fleet.Errorf(fleet.Unavailable, "%s is not in this voter's copy of the registry, which may not be read yet", id)
}

// refuseRemoved is an error if a host was removed from the fleet.
func (m *member) refuseRemoved(id fleet.NodeID) error {
	if r := m.fsm.Store().Removal(id); r != nil {
		return state.Removed(r)
	}
	return nil
}

// partingTime is how long the connections of a host that left by itself stay
// open: it still has to hear that it did.
const partingTime = time.Second

// followRemovals closes every connection of a host at once when its removal is
// applied here, and forgets what it said. No new one is let in from then on.
func (m *member) followRemovals(ctx context.Context) error {
	known := map[fleet.NodeID]bool{}
	var parted <-chan time.Time // nil while nobody is on his way out
	for {
		store := m.fsm.Store()
		changed, abandoned := store.WatchRemovals(), store.Abandoned()
		any := false
		for _, r := range store.Removals() {
			if !known[r.Node.ID] {
				known[r.Node.ID] = true
				if r.Operator == "" {
					parted = time.After(partingTime)
				} else {
					any = true
				}
				m.n.seen.Forget(r.Node.ID)
			}
		}
		if any {
			m.n.recheck()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-abandoned:
		case <-parted:
			parted = nil
			m.n.recheck()
		}
	}
}

// admitRaft lets in who votes or follows, by trust.json or by Raft's own
// configuration (candidates are in it before trust.json names them).
func (m *member) admitRaft(peer identity.Peer, trust *identity.Trust) bool {
	return trust.IsVoter(peer.Node, peer.Key) || m.inConfiguration(peer.Node)
}

// inConfiguration reports whether Raft's configuration names a host that is of
// the fleet.
func (m *member) inConfiguration(id fleet.NodeID) bool {
	if m.refuseRemoved(id) != nil {
		return false
	}
	servers, err := m.quorum.Servers()
	return err == nil && slices.ContainsFunc(servers, func(s quorum.Server) bool { return s.ID == id })
}

// applied asks another host of the quorum how far it has applied the log.
func (m *member) applied(ctx context.Context, node fleet.NodeID) (uint64, error) {
	resp, err := rpc.Call[rpc.Empty, rpc.AppliedResponse](ctx, m.rpc, quorumHost(node), rpc.MethodApplied, &rpc.Empty{})
	if err != nil {
		return 0, err
	}
	return resp.Index, nil
}

// answerHeartbeat is a voter's side of a heartbeat.
func (m *member) answerHeartbeat(peer identity.Peer, req *rpc.HeartbeatRequest) (*rpc.HeartbeatResponse, error) {
	store := m.fsm.Store()
	if store.Node(peer.Node) == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "%s is not in this voter's copy of the registry", peer.Node)
	}
	now := m.n.cfg.Now()
	if before, heard := m.n.seen.Get(peer.Node); !heard || before.Boot != req.Boot || !m.n.isLive(before, now) {
		m.rpc.Undialled(peer.Node)
	}
	m.n.seen.Record(peer.Node, presence.Seen{
		LastSeen: now, Version: req.Version, Program: req.Program, Boot: req.Boot, Trust: req.TrustVersion, Warnings: req.Warnings, Keys: req.Keys,
	})
	m.n.seen.Hear(peer.Node, req.Boot, peer.Source, now)
	resp := &rpc.HeartbeatResponse{
		Nonce: req.Nonce, Time: now.UnixNano(), Leader: m.quorum.Leader(), Clones: m.n.seen.Clones(peer.Node, now), Version: m.n.cfg.Version,
	}
	if resp.Leader == m.n.info.Node {
		resp.Dial = uint8(m.reachOf(peer.Node).Dial)
	}
	if t := store.Trust(); t != nil && t.NewerThan(req.TrustEpoch, req.TrustVersion) {
		resp.Trust = t.Raw()
	}
	if g := store.GossipKeys(); g != nil && g.Version > req.Keys {
		resp.Keys = &rpc.GossipKeys{Version: g.Version, Keys: g.Raw()}
	}
	resp.Outside = req.Quorum && m.quorum.Outside(peer.Node)
	resp.View, resp.ViewIndex = viewSince(store.Nodes(), store.Removals(), req.ViewIndex)
	return resp, nil
}

// maxView bounds the rows that one heartbeat answer carries, maxViewBytes their
// text; the next answer brings more.
const (
	maxView      = 1000
	maxViewBytes = 1 << 20
)

// viewSince lists the rows that changed after an index, oldest change first:
// those of hosts, and the ends of those that were removed.
func viewSince(nodes []*fleet.Node, removals []*fleet.Removal, since uint64) (rows []rpc.ViewRow, index uint64) {
	type change struct {
		index uint64
		row   rpc.ViewRow
	}
	var changes []change
	for _, n := range nodes {
		if n.Index > since {
			changes = append(changes, change{n.Index, rpc.ViewRow{ID: n.ID, Name: n.Name, Labels: n.Labels, Address: n.Address}})
		}
	}
	for _, r := range removals {
		if r.Index > since {
			changes = append(changes, change{r.Index, rpc.ViewRow{ID: r.Node.ID, Removed: true}})
		}
	}
	slices.SortFunc(changes, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.row.ID, b.row.ID))
	})
	index = since
	size := 0
	for _, c := range changes {
		// Rows changed by one entry must travel together: the next answer
		// begins after the index of the last.
		if (len(rows) >= maxView || size >= maxViewBytes) && c.index != index {
			break
		}
		size += sizeOf(c.row)
		rows = append(rows, c.row)
		index = c.index
	}
	return rows, index
}

// sizeOf is how many bytes of text a row has.
func sizeOf(row rpc.ViewRow) int {
	size := len(row.ID) + len(row.Name) + len(row.Address)
	for k, v := range row.Labels {
		size += len(k) + len(v)
	}
	return size
}

// report decides a host's result here, or brings it to the leader.
func (m *member) report(ctx context.Context, node fleet.NodeID, req *rpc.ReportRequest) (*rpc.ReportResponse, error) {
	leader := m.quorum.Leader()
	switch leader {
	case "":
		return nil, fleet.Errorf(fleet.Unavailable, "no leader")
	case m.n.info.Node:
		return m.decideReport(ctx, node, req)
	}
	return rpc.Call[rpc.ForwardReportRequest, rpc.ReportResponse](ctx, m.rpc, quorumHost(leader), rpc.MethodForwardReport,
		&rpc.ForwardReportRequest{Node: node, Report: *req})
}

func (m *member) decideReport(ctx context.Context, node fleet.NodeID, req *rpc.ReportRequest) (*rpc.ReportResponse, error) {
	if !m.quorum.Ready() {
		return nil, fleet.Errorf(fleet.Unavailable, "%s does not lead", m.n.info.Node)
	}
	m.n.atResult(failpoint.Received, req.Result)
	index, err := m.dispatch.Report(ctx, node, req.Result, req.Detail)
	if err != nil {
		return nil, err
	}
	return &rpc.ReportResponse{Index: index}, nil
}

// keepBlob stores what a host brings, if it is what the host says.
func (m *member) keepBlob(head rpc.BlobHead, body io.Reader) error {
	if m.n.blobs.Has(head.Digest) {
		return nil
	}
	w, err := m.n.blobs.Create(head.Size)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, io.LimitReader(body, head.Size+1)); err != nil {
		return errors.Join(err, w.Abort())
	}
	if got := w.Digest(); got != head.Digest {
		return errors.Join(fleet.Errorf(fleet.Invalid, "the blob is %s, not %s", got, head.Digest), w.Abort())
	}
	_, err = w.Commit()
	return err
}

// issuing is what this host signs the certificates of agents with.
func (m *member) issuing() (*enrol.Issuing, error) {
	store := m.fsm.Store()
	trust, issuer := store.Trust(), m.issuer.Load()
	if trust == nil || !trust.Issuer(issuer.Key.Public(), m.n.cfg.Now()) {
		return nil, fleet.Errorf(fleet.Unavailable, "this host does not vote yet: its issuing key is not in trust.json")
	}
	info := store.Fleet()
	return &enrol.Issuing{
		FleetName: info.Name, Key: issuer.Key, Issuer: issuer.Chain[0], Root: info.RootCertificate,
		Trust: trust.Raw(), GossipKeys: store.GossipKeys().Raw(),
	}, nil
}

// enrol decides a join request.
func (m *member) enrol(ctx context.Context, request []byte) (*fleet.Node, error) {
	node, err := m.control.Enrol(ctx, request)
	if err != nil {
		return nil, err
	}
	// The certificate that follows is signed from this host's own state.
	_, err = m.control.Read(ctx, false)
	return node, err
}

// renew signs a new certificate for a host whose row stands.
func (m *member) renew(peer identity.Peer) (*rpc.RenewResponse, error) {
	row := m.fsm.Store().Node(peer.Node)
	if row == nil {
		return nil, m.noRow(peer.Node)
	}
	issuing, err := m.issuing()
	if err != nil {
		return nil, err
	}
	certificate, record, err := issuing.Certify(row, m.n.cfg.Now())
	if err != nil {
		return nil, err
	}
	return &rpc.RenewResponse{Certificate: certificate, Issuer: issuing.Issuer, NodeRecord: record}, nil
}

func (m *member) changeAddress(ctx context.Context, req *rpc.ChangeAddressRequest) (*rpc.ChangeAddressResponse, error) {
	row, err := m.control.ChangeAddress(ctx, req.Change)
	if err != nil {
		return nil, err
	}
	issuing, err := m.issuing()
	if err != nil {
		return nil, err
	}
	_, record, err := issuing.Certify(row, m.n.cfg.Now())
	if err != nil {
		return nil, err
	}
	return &rpc.ChangeAddressResponse{NodeRecord: record}, nil
}

// parseChain parses certificates, leaf first.
func parseChain(ders ...[]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fleet.Errorf(fleet.Invalid, "a certificate cannot be read: %w", err)
		}
		chain[i] = cert
	}
	return chain, nil
}
