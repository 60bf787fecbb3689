package api

import (
	"context"
	"net"
	"time"

	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

func describeOperators(_ context.Context, _ *call, store *state.Store,
	_ *fleet.DescribeOperatorsRequest) (*fleet.DescribeOperatorsResult, error) {
	result := &fleet.DescribeOperatorsResult{Operators: []fleet.OperatorView{}}
	for _, o := range store.Operators() {
		result.Operators = append(result.Operators, control.OperatorView(o))
	}
	for _, f := range store.FormerOperators() {
		v := control.OperatorView(&f.Operator)
		v.Ended = fleet.InstantOf(f.Ended)
		result.Former = append(result.Former, v)
	}
	return result, nil
}

// farewell is how long an answer may take that is on its way when the rights of
// whom it is for have ended: he may have ended them himself.
const farewell = time.Second

// endConnections closes the connections of operators whose rights have ended,
// once this host has applied it. (A request on one is refused from then on:
// this ends streams, and gives the place back.)
func (s *Server) endConnections(ctx context.Context) {
	for {
		store, err := s.cfg.Control.Read(ctx, true)
		if err != nil {
			return // stopped: a stale read has no other error
		}
		changed, abandoned := store.WatchOperators(), store.Abandoned()
		var ended []*provedConn
		for _, c := range s.connections() {
			if o := store.Operator(c.caller.operator); o != nil && holds(o, c.caller.key) || !store.Fleet().Genesis {
				continue
			}
			ended = append(ended, c)
		}
		if len(ended) > 0 {
			timer := time.NewTimer(farewell)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
		}
		for _, c := range ended {
			s.cfg.Logger.Info("connection closed: the operator's rights have ended", "operator", c.caller.operator, "addr", c.RemoteAddr())
			c.abort()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-abandoned:
		}
	}
}

// connections is those past their preamble.
func (s *Server) connections() []*provedConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*provedConn, 0, len(s.open))
	for c := range s.open {
		all = append(all, c)
	}
	return all
}

// track keeps a connection among them until it is closed.
func (s *Server) track(c *provedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[c] = struct{}{}
}

func (s *Server) untrack(c *provedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// abort closes a connection without a word to the client, which may not read.
func (c *provedConn) abort() {
	if t, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		_ = t.NetConn().Close() // it is being thrown away
	}
	_ = c.Close() // gives its place back; the connection is gone already
}
