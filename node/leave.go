package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/raftfsm"
)

// This file is how a host goes out of its fleet by itself: root asks for it on
// the local socket, the host signs it with its agent key, the quorum decides.

// Limits of a departure.
const (
	departTime = 30 * time.Second // for the ends of its commands and their way to the quorum
	askingTime = 60 * time.Second // for the quorum's answer
)

// Leave takes this host out of the fleet for good. When it succeeded, what is
// left is to call done, which stops the host: who asked should hear of it first.
func (n *Node) Leave(ctx context.Context, req fleet.LeaveRequest) (result *fleet.LeaveResult, done func(), err error) {
	if !n.leaveMu.TryLock() {
		return nil, nil, fleet.Errorf(fleet.Conflict, "this host is leaving already")
	}
	defer n.leaveMu.Unlock()
	if gone := n.gone.Load(); gone != nil {
		return nil, nil, errGone(gone)
	}
	if n.member.Load() != nil {
		return nil, nil, raftfsm.OfTheQuorum(&fleet.Node{ID: n.info.Node, Name: n.Name()})
	}
	if status := n.LocalStatus(); !status.QuorumReachable {
		return nil, nil, noFarewell(n.info.Name, 0, fleet.Errorf(fleet.NoQuorum, "no voter that knows a leader has answered lately"))
	}
	n.leaving.Store(true) // nothing is started from here on
	defer func() {
		if err != nil {
			n.leaving.Store(false)
		}
	}()
	if open := n.runner.Settled(); open > 0 && !req.Force {
		return nil, nil, fleet.Errorf(fleet.Conflict, "%d of the fleet's commands run or wait on this host", open).
			WithHint("wait for their end: fleet status shows how many there are; or cancel them: fleet leave --force")
	}
	departing, cancel := context.WithTimeout(ctx, departTime)
	ended, left := n.runner.Depart(departing)
	cancel()
	if left > 0 {
		n.log.Warn("the quorum has not taken all results", "results", left)
	}
	at, err := n.sayFarewell(ctx)
	if err != nil {
		return nil, nil, noFarewell(n.info.Name, ended, err)
	}
	n.gone.Store(nil) // what the host heard at the door was its own farewell
	n.end(enrol.Gone{
		How:     enrol.GoneLeft,
		Message: fmt.Sprintf("this host left fleet %s on %s", n.info.Name, time.Unix(0, at).UTC().Format(time.RFC3339)),
	})
	result = &fleet.LeaveResult{
		FleetName: n.info.Name, InstanceId: n.info.Node, Name: n.Name(), DataDir: n.dir.Path(), At: fleet.InstantOf(at),
		Cancelled: ended, Unreported: left,
	}
	return result, func() {
		n.stopping.Store(true)
		n.cancel(errStopped)
	}, nil
}

// noFarewell says that the host is still of its fleet.
func noFarewell(name string, cancelled int, err error) error {
	changed := "nothing changed"
	if cancelled > 0 {
		changed = fmt.Sprintf("its %d commands were cancelled, and nothing else changed", cancelled)
	}
	e := fleet.Errorf(fleet.KindOf(err), "this host is still of fleet %s, %s: %w", name, changed, err)
	if fleet.KindOf(err) == fleet.NoQuorum {
		return e.WithHint("only the quorum can let it go: try again when fleet status says that it is reached")
	}
	var said *fleet.Error
	if errors.As(err, &said) {
		e.Hint = said.Hint
	}
	return e
}

// sayFarewell asks the quorum to let this host go, and gives the time of the
// decision.
func (n *Node) sayFarewell(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askingTime)
	defer cancel()
	now := n.cfg.Now()
	if t, ok := n.clock.FleetTime(); ok { // this host's own clock may be off
		now = t
	}
	farewell, err := identity.NewLeave(identity.Leave{Fleet: n.info.Fleet, Node: n.info.Node, Epoch: uint32(now.Unix())}, n.key)
	if err != nil {
		return 0, err
	}
	var failures []error
	for _, voter := range n.voters() {
		resp, err := rpc.Call[rpc.LeaveRequest, rpc.LeaveResponse](ctx, n.rpc, quorumHost(voter), rpc.MethodLeave,
			&rpc.LeaveRequest{Farewell: farewell})
		if err == nil {
			return resp.At, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", voter, err))
		switch fleet.KindOf(err) {
		case fleet.Conflict, fleet.Invalid, fleet.NotFound, fleet.Expired:
			return 0, err // every voter would say so
		}
	}
	// The answer may be lost and the farewell decided: then k voters say so.
	if n.askStanding(ctx); n.gone.Load() != nil {
		return n.cfg.Now().UnixNano(), nil
	}
	return 0, fleet.Errorf(fleet.NoQuorum, "no voter let it go: %w", errors.Join(failures...))
}

// farewell is a voter's side: a host speaks for itself alone.
func (m *member) farewell(ctx context.Context, peer identity.Peer, req *rpc.LeaveRequest) (*rpc.LeaveResponse, error) {
	l, err := identity.ParseLeave(req.Farewell)
	if err != nil {
		return nil, err
	}
	if l.Node != peer.Node {
		return nil, fleet.Errorf(fleet.Denied, "%s does not speak for %s", peer.Node, l.Node)
	}
	r, err := m.control.Leave(ctx, req.Farewell)
	if err != nil {
		return nil, err
	}
	return &rpc.LeaveResponse{At: r.At}, nil
}
