package rpc

import (
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/quota"
)

// What one agent may ask of one host in a second, all its connections together.
// Beside the calls that it may have running, this bounds what a stolen agent key
// can cost: an honest host sends a few heartbeats a minute, results as commands
// end, and a change of its address now and then. Quorum hosts are not limited by
// rate: they are few, and what they carry is the work of the whole fleet.
var (
	askRate    = quota.Rate{PerSecond: 20, Burst: 60}
	resultRate = quota.Rate{PerSecond: 50, Burst: 500} // after a time without the quorum, all that it kept
	decideRate = quota.Rate{PerSecond: 0.1, Burst: 10} // what costs a log entry or a certificate
)

// maxQuotas is how many agents a host tells apart; every host of a fleet has a
// place.
const maxQuotas = 32 << 10

// quotas are the buckets of a server.
type quotas struct {
	ask, result, decide *quota.Limiter[fleet.NodeID]
}

func newQuotas() quotas {
	return quotas{
		ask: quota.New[fleet.NodeID](askRate, maxQuotas), result: quota.New[fleet.NodeID](resultRate, maxQuotas),
		decide: quota.New[fleet.NodeID](decideRate, maxQuotas),
	}
}

// of is the bucket of a method that agents call. What quorum hosts may ask too is
// the work of the fleet, which an agent passes on.
func (q quotas) of(m Method) (*quota.Limiter[fleet.NodeID], quota.Rate) {
	if allowed(m, fleet.RoleQuorum) {
		return q.result, resultRate
	}
	switch m.Name {
	case MethodReport, MethodPutBlob:
		return q.result, resultRate
	case MethodRenew, MethodChangeAddress, MethodLeave:
		return q.decide, decideRate
	}
	return q.ask, askRate
}

// take counts one more call of a peer, or refuses it.
func (q quotas) take(m Method, peer identity.Peer, now time.Time) error {
	if peer.Role != fleet.RoleAgent {
		return nil
	}
	bucket, rate := q.of(m)
	wait := bucket.Take(peer.Node, now)
	if wait == 0 {
		return nil
	}
	return fleet.Errorf(fleet.Throttled, "%s asked for %s more often than %g times a second", peer.Node, m.Name, rate.PerSecond).
		WithHint("try again in %s", max(wait.Round(time.Second), time.Second)).RetryIn(wait)
}
