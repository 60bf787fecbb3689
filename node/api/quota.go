package api

import (
	"time"

	"fleet/node/fleet"
	"fleet/node/quota"
)

// What one operator may ask of one quorum host. A program that went wild, or a
// stolen key, shall not keep the other operators out.
var operatorRate = quota.Rate{PerSecond: 200, Burst: 400}

const (
	// maxOperators is how many operators are told apart by their keys.
	maxOperators = 4096

	// operatorConns is the share of all connections that one operator may hold.
	operatorConns = 2
)

// refuseOver is an error for an operator who asks too often.
func (s *Server) refuseOver(who caller) error {
	wait := s.quota.Take(who.key, time.Now()) // elapsed time, not the fleet's
	if wait == 0 {
		return nil
	}
	return fleet.CodeErrorf(fleet.Throttled, "ThrottlingException", "operator %s asks for more than %g things a second", who.operator, s.cfg.OperatorRate.PerSecond).
		WithHint("try again in a moment, or ask for less at once").RetryIn(wait)
}

// refuseConn is an error for an operator who holds his share of connections.
func (s *Server) refuseConn(who caller) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := 0
	for c := range s.open {
		if c.caller.key == who.key {
			held++
		}
	}
	if most := max(1, s.cfg.MaxConns/operatorConns); held >= most {
		return fleet.CodeErrorf(fleet.Throttled, "ThrottlingException", "operator %s holds %d connections to this host, his share", who.operator, held).
			WithHint("run fewer commands at once, or ask another host of the quorum: --connect").RetryIn(time.Second)
	}
	return nil
}
