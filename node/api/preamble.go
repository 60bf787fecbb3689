package api

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"fleet/node/api/client"
	"fleet/node/authz"
	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm/state"
)

// prove runs the preamble: it reads the operator's proof, checks it against
// the operator's row and answers. The connection stays open only if it returns
// no error.
func (s *Server) prove(ctx context.Context, conn net.Conn) (_ caller, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	// Real time, as the connection counts it; Now is the fleet's clock.
	if err := conn.SetDeadline(time.Now().Add(preambleTimeout)); err != nil {
		return caller{}, fmt.Errorf("set deadline: %w", err)
	}
	b, err := wire.ReadFrame(conn, client.MaxPreamble)
	if err != nil {
		return caller{}, fmt.Errorf("preamble: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, preambleTimeout)
	defer cancel()
	c, store, err := s.check(ctx, conn, b)
	if err == nil {
		err = s.refuseConn(c)
	}
	w := client.Welcome{OK: err == nil, Time: s.cfg.Now().UnixNano()}
	if err == nil {
		w.Quorum = voterAddresses(store)
	} else {
		e := public(err)
		w.Kind, w.Message, w.Hint = e.Kind, e.Message, fleet.HintOf(e)
	}
	answer, encodeErr := wire.Marshal(w)
	if encodeErr != nil {
		return caller{}, encodeErr
	}
	if writeErr := wire.WriteFrame(conn, answer); err == nil && writeErr != nil {
		return caller{}, fmt.Errorf("preamble: %w", writeErr)
	}
	if err != nil {
		return caller{}, err
	}
	return c, conn.SetDeadline(time.Time{})
}

func (s *Server) check(ctx context.Context, conn net.Conn, proof []byte) (caller, *state.Store, error) {
	t, ok := conn.(tlsConn)
	if !ok {
		return caller{}, nil, fmt.Errorf("connection of type %T is not TLS", conn)
	}
	binding, err := client.Binding(t.ConnectionState())
	if err != nil {
		return caller{}, nil, err
	}
	p, err := identity.ParseProof(proof)
	if err != nil {
		return caller{}, nil, err
	}
	store, operator, err := s.operator(ctx, p.Operator, p.Key)
	if err != nil {
		return caller{}, nil, err
	}
	now := s.cfg.Now()
	err = control.VerifyProof(p, store.Fleet().ID, operator, identity.OperationConnect, binding, now)
	if fleet.KindOf(err) == fleet.Expired {
		return caller{}, nil, clockError(p.NotAfter, now)
	}
	if err != nil {
		return caller{}, nil, err
	}
	return caller{operator: p.Operator, key: p.Key}, store, nil
}

// voterAddresses is where the voters answer.
func voterAddresses(store *state.Store) []string {
	trust := store.Trust()
	if trust == nil {
		return nil
	}
	var all []string
	for _, v := range trust.Voters {
		if n := store.Node(v.Node); n != nil {
			all = append(all, n.Address)
		}
	}
	return all
}

// clockError says how far the client's clock is off: a client makes its proof
// when it sends it.
func clockError(notAfter int64, now time.Time) error {
	offset := time.Unix(0, notAfter).Add(-client.ProofValid).Sub(now).Round(time.Second)
	direction := "ahead of"
	if offset < 0 {
		offset, direction = -offset, "behind"
	}
	return fleet.Errorf(fleet.Expired, "this machine's clock is %s %s the fleet's (%s): set it, then retry",
		offset, direction, now.UTC().Format("2006-01-02 15:04:05 UTC")).
		WithHint("on this machine: timedatectl set-ntp true, or set the time by hand")
}

// operator finds the row that has the key: in what this host has and, since
// that may be old, in what the quorum has.
func (s *Server) operator(ctx context.Context, name fleet.OperatorName, key fleet.KeyID) (*state.Store, *fleet.Operator, error) {
	for _, stale := range []bool{true, false} {
		store, err := s.cfg.Control.Read(ctx, stale)
		if err != nil {
			return nil, nil, err
		}
		if o := store.Operator(name); o != nil && holds(o, key) {
			return store, o, nil
		}
	}
	return nil, nil, fleet.Errorf(fleet.Unauthenticated, "the key of operator %q is not known to the fleet", name).
		WithHint("the credential was revoked or belongs to a fleet that was made anew: use another with --credential FILE, or become an operator again: fleet logout, then fleet login")
}

func holds(o *fleet.Operator, key fleet.KeyID) bool {
	for _, k := range o.Keys {
		if k.ID() == key {
			return true
		}
	}
	return false
}

// authorize asks anew whether the caller is an operator and may do op. It
// reads what this host has: a revocation counts here when it has arrived here.
func (s *Server) authorize(ctx context.Context, c caller, op authz.Operation) error {
	store, err := s.cfg.Control.Read(ctx, true)
	if err != nil {
		return err
	}
	o := store.Operator(c.operator)
	if o == nil || !holds(o, c.key) {
		return fleet.Errorf(fleet.Unauthenticated, "the key of operator %q is no longer known to the fleet", c.operator)
	}
	return authz.Allowed(*o, op.Name)
}
