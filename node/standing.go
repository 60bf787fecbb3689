package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
)

// This file is how a host learns that it is of the fleet no more. Whoever
// removes a host closes every door to it, so nobody tells it: a host whose
// heartbeats nobody answers asks, at the door for joiners, which needs no
// certificate. It believes k voters, as it does for a ticket: one stolen voter
// must not be able to send hosts away.

// WarnRemoved is the code of the warning that a host was removed.
const WarnRemoved = "Removed"

// maxGoneText bounds what a voter says about the end of this host.
const maxGoneText = 512

// askTimeout bounds one question to all voters.
const askTimeout = 20 * time.Second

// errGone is what a host says of itself that is of the fleet no more.
func errGone(g *enrol.Gone) error {
	return fleet.CodeErrorf(fleet.Denied, fleet.CodeNodeRemoved, "%s", g.Message)
}

// runStanding asks while no voter answers heartbeats.
func (n *Node) runStanding(ctx context.Context) error {
	every := n.heartbeatInterval()
	for {
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if n.gone.Load() != nil {
			return nil
		}
		heard := n.beats.LastHeard()
		if !heard.IsZero() && n.cfg.Now().Sub(heard) < 2*every {
			continue
		}
		n.seekTrust(ctx)
		n.askStanding(ctx)
	}
}

// askStanding asks every voter whether this host is still of the fleet. One
// whose certificate ended while it was off, or was issued by a key that counts no
// more, gets another.
func (n *Node) askStanding(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r := &enrol.Rejoiner{Dir: n.dir, Info: n.info, Key: n.key, Now: n.cfg.Now, Dial: n.cfg.Dial}
	trust := n.trust.Load()
	var mu sync.Mutex // guards said and renewal
	said := map[fleet.NodeID]string{}
	var renewal *enrol.Renewal
	var wg sync.WaitGroup
	for _, v := range trust.Voters {
		addrs := n.addresses(v.Node)
		if len(addrs) == 0 {
			continue
		}
		wg.Go(func() {
			who, got, err := r.Ask(ctx, addrs[:1])
			if who.Node != v.Node || who.Key != v.Key {
				return // another host answers there, or nobody
			}
			mu.Lock()
			defer mu.Unlock()
			var refused *fleet.Error
			switch {
			case err == nil:
				renewal = got
			case errors.As(err, &refused) && refused.Code == fleet.CodeNodeRemoved:
				said[v.Node] = refused.Message
			}
		})
	}
	wg.Wait()
	switch {
	case len(said) >= trust.K && n.member.Load() == nil: // hosts of the quorum cannot be removed
		for _, v := range trust.Voters { // the same text, whoever answered first
			if text, ok := said[v.Node]; ok {
				n.end(enrol.Gone{How: enrol.GoneRemoved, Message: text[:min(len(text), maxGoneText)]})
				return
			}
		}
	case renewal != nil:
		err := n.setTrust(renewal.Trust)
		now := n.cfg.Now()
		if err == nil && !now.After(n.agentTLS.Load().Leaf.NotAfter) && n.trust.Load().Issuer(n.issuedBy(), now) {
			return // it is in order: the voters do not answer for another reason
		}
		if err == nil {
			err = n.install(&rpc.RenewResponse{
				Certificate: renewal.Certificate, Issuer: renewal.Issuer, NodeRecord: renewal.NodeRecord,
			})
		}
		if err != nil {
			n.log.Warn("certificate counted no more and was not renewed", "err", err)
			return
		}
		n.log.Info("certificate counted no more and was renewed")
		n.beats.Kick()
	}
}

// end makes this host run nothing any more. It stays, to say why: a service
// that ended would be started again.
func (n *Node) end(g enrol.Gone) {
	g.At = fleet.InstantOf(n.cfg.Now().UnixNano())
	if !n.gone.CompareAndSwap(nil, &g) {
		return
	}
	n.leaveFleet()
	if err := n.dir.SaveGone(g); err != nil {
		n.log.Warn("the end of this host in the fleet is not written down", "err", err)
	}
	if g.How == enrol.GoneLeft {
		n.log.Info("this host left the fleet")
		return
	}
	n.log.Error("this host is of the fleet no more and runs nothing", "reason", g.Message)
}

// fleetTime is the time by which this host may start a command: none once it is
// of the fleet no more, or about to go, and none while its program has yet to
// prove itself, since going back would cut the command off.
type fleetTime struct{ n *Node }

func (t fleetTime) FleetTime() (time.Time, bool) {
	if t.n.gone.Load() != nil || t.n.leaving.Load() || t.n.proving.Load() {
		return time.Time{}, false
	}
	return t.n.clock.FleetTime()
}

// rejoin answers a host that asks whether it is still of the fleet.
func (m *member) rejoin(ctx context.Context, request []byte) (*fleet.Node, error) {
	p, err := identity.ParseRejoin(request)
	if err != nil {
		return nil, err
	}
	if p.Fleet != m.n.info.Fleet {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the host is of fleet %s, this is fleet %s", p.Fleet, m.n.info.Fleet)
	}
	id := fleet.NodeIDOf(p.Key)
	if err := m.refuseRemoved(id); err != nil {
		return nil, err // for good: no need to ask the quorum
	}
	if _, err := m.issuing(); err != nil {
		return nil, err
	}
	store, err := m.control.Read(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := m.refuseRemoved(id); err != nil {
		return nil, err
	}
	row := store.Node(id)
	if row == nil || row.Key != p.Key {
		return nil, fleet.Errorf(fleet.NotFound, "host %s is not enrolled in this fleet", id).
			WithHint("join with an activation: fleet join --token-file FILE")
	}
	return row, nil
}
