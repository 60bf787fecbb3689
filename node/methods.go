package node

import (
	"context"
	"io"
	"net"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/transport"
	"fleet/raftfsm/quorum"
)

// buildRPC gives every row of rpc.Methods its handler.
func (n *Node) buildRPC() {
	s := rpc.NewServer(n.log.With("component", "rpc"), rpc.Methods, peerOf)
	n.rpcServer = s

	// Of every host.
	rpc.HandleCarry(s, n.relay.Serve)
	rpc.Handle(s, rpc.MethodDeliver, n.deliver)
	rpc.Handle(s, rpc.MethodCancel, n.cancelCommand)
	rpc.Handle(s, rpc.MethodRelease, n.releaseCommand)
	rpc.Handle(s, rpc.MethodQueryCommand, n.query)
	rpc.Handle(s, rpc.MethodListed, n.listed)
	rpc.Handle(s, rpc.MethodTrust, func(_ context.Context, _ identity.Peer, req *rpc.TrustRequest) (*rpc.TrustResponse, error) {
		if err := n.setTrust(req.Trust); err != nil {
			return nil, err
		}
		return &rpc.TrustResponse{Trust: n.trust.Load().Raw()}, nil
	})
	rpc.Handle(s, rpc.MethodCandidate, func(_ context.Context, _ identity.Peer, req *rpc.CandidateRequest) (*rpc.CandidateResponse, error) {
		c, err := n.candidate(req.NewIssuer)
		return &rpc.CandidateResponse{Candidate: c, Level: n.level()}, err
	})
	rpc.Handle(s, rpc.MethodInstallQuorum, func(ctx context.Context, _ identity.Peer, req *rpc.InstallQuorumRequest) (*rpc.Empty, error) {
		return &rpc.Empty{}, n.installQuorum(ctx, req)
	})
	rpc.HandleStream(s, rpc.MethodGetBlob, n.getBlob)
	rpc.HandleStream(s, rpc.MethodFetchProgram, n.sendProgram)

	// Of a quorum host, asked by agents.
	rpc.Handle(s, rpc.MethodHeartbeat, asMember(n, func(_ context.Context, m *member, peer identity.Peer, req *rpc.HeartbeatRequest) (*rpc.HeartbeatResponse, error) {
		return m.answerHeartbeat(peer, req)
	}))
	rpc.Handle(s, rpc.MethodReport, asMember(n, func(ctx context.Context, m *member, peer identity.Peer, req *rpc.ReportRequest) (*rpc.ReportResponse, error) {
		return m.report(ctx, peer.Node, req)
	}))
	rpc.Handle(s, rpc.MethodRenew, asMember(n, func(_ context.Context, m *member, peer identity.Peer, _ *rpc.Empty) (*rpc.RenewResponse, error) {
		return m.renew(peer)
	}))
	rpc.Handle(s, rpc.MethodChangeAddress, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.ChangeAddressRequest) (*rpc.ChangeAddressResponse, error) {
		return m.changeAddress(ctx, req)
	}))
	rpc.Handle(s, rpc.MethodLeave, asMember(n, func(ctx context.Context, m *member, peer identity.Peer, req *rpc.LeaveRequest) (*rpc.LeaveResponse, error) {
		return m.farewell(ctx, peer, req)
	}))
	rpc.HandleStream(s, rpc.MethodPutBlob, n.putBlobHere)

	// Of a quorum host, asked by another.
	rpc.Handle(s, rpc.MethodForward, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.ForwardRequest) (*rpc.ForwardResponse, error) {
		return m.control.Forwarded(ctx, req)
	}))
	rpc.Handle(s, rpc.MethodForwardReport, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.ForwardReportRequest) (*rpc.ReportResponse, error) {
		return m.decideReport(ctx, req.Node, &req.Report)
	}))
	rpc.Handle(s, rpc.MethodCoSign, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.CoSignRequest) (*rpc.CoSignResponse, error) {
		return m.signer.Answer(ctx, req)
	}))
	rpc.Handle(s, rpc.MethodReadIndex, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, _ *rpc.Empty) (*rpc.ReadIndexResponse, error) {
		index, err := m.quorum.ReadIndex(ctx)
		return &rpc.ReadIndexResponse{Index: index}, err
	}))
	rpc.Handle(s, rpc.MethodApplied, asMember(n, func(_ context.Context, m *member, _ identity.Peer, _ *rpc.Empty) (*rpc.AppliedResponse, error) {
		return &rpc.AppliedResponse{Index: m.fsm.Applied(), Time: n.cfg.Now().UnixNano(), Level: n.level(), Expires: m.expires().UnixNano()}, nil
	}))
	rpc.Handle(s, rpc.MethodStateHash, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.StateHashRequest) (*rpc.StateHashResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, hashTime)
		defer cancel()
		if err := m.fsm.WaitApplied(ctx, req.Index); err != nil {
			return nil, fleet.Errorf(fleet.Unavailable, "%w", err)
		}
		hash, _ := m.fsm.HashAt(req.Index)
		return &rpc.StateHashResponse{Hash: hash}, nil
	}))
	rpc.Handle(s, rpc.MethodVouch, asMember(n, func(_ context.Context, m *member, peer identity.Peer, req *rpc.VouchRequest) (*rpc.VouchResponse, error) {
		missing, err := m.quorum.Vouch(peer.Node, quorum.Standing{Term: req.Term, Index: req.Index, Vote: req.Vote})
		return &rpc.VouchResponse{Missing: missing}, err
	}))
	rpc.Handle(s, rpc.MethodRelay, asMember(n, func(ctx context.Context, m *member, _ identity.Peer, req *rpc.RelayRequest) (*rpc.RelayResponse, error) {
		return m.rpc.Relay(ctx, req)
	}))
	rpc.Handle(s, rpc.MethodPresence, asMember(n, func(_ context.Context, m *member, _ identity.Peer, _ *rpc.Empty) (*rpc.PresenceResponse, error) {
		return m.presence(), nil
	}))
}

// peerOf is who speaks on a connection of the transport.
func peerOf(c net.Conn) (identity.Peer, bool) {
	conn, ok := c.(*transport.Conn)
	if !ok {
		return identity.Peer{}, false
	}
	peer := conn.Peer
	if host, _, err := net.SplitHostPort(conn.RemoteAddr().String()); err == nil {
		peer.Source = host
	}
	return peer, true
}

// asMember answers only on a host of the quorum, and to agents only if they
// are enrolled: a certificate alone, from a stolen issuing key, is no row.
func asMember[Req, Resp any](n *Node, f func(ctx context.Context, m *member, peer identity.Peer, req *Req) (*Resp, error)) func(context.Context, identity.Peer, *Req) (*Resp, error) {
	return func(ctx context.Context, peer identity.Peer, req *Req) (*Resp, error) {
		m, err := n.memberFor(peer)
		if err != nil {
			return nil, err
		}
		return f(ctx, m, peer, req)
	}
}

func (n *Node) memberFor(peer identity.Peer) (*member, error) {
	m := n.member.Load()
	if m == nil {
		return nil, fleet.CodeErrorf(fleet.Unavailable, fleet.CodeNotOfQuorum, "%s is not a host of the quorum", n.info.Node)
	}
	if peer.Role == fleet.RoleQuorum && !m.admitRaft(peer, n.trust.Load()) {
		return nil, fleet.CodeErrorf(fleet.Denied, fleet.CodeNotOfQuorum, "%s is not in this fleet's quorum", peer.Node)
	}
	if peer.Role == fleet.RoleAgent {
		row := m.fsm.Store().Node(peer.Node)
		if row == nil {
			if err := m.refuseRemoved(peer.Node); err != nil {
				return nil, err
			}
			return nil, fleet.Errorf(fleet.Unavailable, "%s is not in this host's copy of the registry", peer.Node)
		}
		if row.Key != peer.Key {
			return nil, fleet.Errorf(fleet.Denied, "the certificate of %s is not for its enrolled key", peer.Node)
		}
	}
	return m, nil
}

// getBlob sends a blob that is here.
func (n *Node) getBlob(_ context.Context, _ identity.Peer, head []byte, _ io.Reader, w io.Writer) (err error) {
	h, err := rpc.ParseBlobHead(head)
	if err != nil {
		return err
	}
	r, err := n.blobs.Get(h.Digest)
	if err != nil {
		return fleet.Errorf(fleet.NotFound, "blob %s is not on this host", h.Digest)
	}
	defer r.Close() //nolint:errcheck // read only
	_, err = io.Copy(w, r)
	return err
}

// putBlobHere takes a blob that a host brings with its result.
func (n *Node) putBlobHere(_ context.Context, peer identity.Peer, head []byte, body io.Reader, _ io.Writer) error {
	m, err := n.memberFor(peer)
	if err != nil {
		return err
	}
	h, err := rpc.ParseBlobHead(head)
	if err != nil {
		return err
	}
	return m.keepBlob(h, body)
}

// presence is what this voter heard of the hosts, and how it gets to them.
func (m *member) presence() *rpc.PresenceResponse {
	rows := map[fleet.NodeID]rpc.PresenceRow{}
	for id, s := range m.n.seen.All() {
		rows[id] = rpc.PresenceRow{ID: id, LastSeen: s.LastSeen.UnixNano(), Version: s.Version, Program: s.Program, Warnings: s.Warnings, Keys: s.Keys, Starts: uint32(m.n.seen.Starts(id, m.n.cfg.Now())), Clones: m.n.seen.Clones(id, m.n.cfg.Now())}
	}
	for _, id := range m.rpc.Reversed() { // it may have told others that it is there
		if _, heard := rows[id]; !heard {
			rows[id] = rpc.PresenceRow{ID: id}
		}
	}
	resp := &rpc.PresenceResponse{Rows: make([]rpc.PresenceRow, 0, len(rows))}
	for id, row := range rows {
		reach := m.reachOf(id)
		row.Reverse, row.Dial = reach.Reverse, uint8(reach.Dial)
		resp.Rows = append(resp.Rows, row)
	}
	return resp
}

// joinServer answers joiners: a quorum host enrols them, any other host says
// where the quorum is.
func (n *Node) joinServer() *enrol.Server {
	return enrol.NewServer(enrol.ServerConfig{
		Peers: n.quorumPeers,
		Enrol: func(ctx context.Context, request []byte) (*fleet.Node, error) {
			m := n.member.Load()
			if m == nil {
				return nil, fleet.Errorf(fleet.Unavailable, "this host is not of the quorum")
			}
			return m.enrol(ctx, request)
		},
		Rejoin: func(ctx context.Context, request []byte) (*fleet.Node, error) {
			m := n.member.Load()
			if m == nil {
				return nil, fleet.Errorf(fleet.Unavailable, "this host is not of the quorum")
			}
			return m.rejoin(ctx, request)
		},
		Twins: func(node *fleet.Node) []fleet.NodeID {
			m := n.member.Load()
			if m == nil {
				return nil
			}
			var twins []fleet.NodeID
			for _, other := range m.fsm.Store().Nodes() {
				if other.Name == node.Name && other.ID != node.ID {
					twins = append(twins, other.ID)
				}
			}
			return twins
		},
		Issuing: func() (*enrol.Issuing, error) {
			m := n.member.Load()
			if m == nil {
				return nil, fleet.Errorf(fleet.Unavailable, "this host is not of the quorum")
			}
			return m.issuing()
		},
		Reaches: n.transport.Reaches,
		Now:     n.cfg.Now, Logger: n.log.With("component", "join"),
	})
}
