package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/transport"
)

const (
	// spliceStagger is how long one quorum host is waited for before the next is
	// tried beside it.
	spliceStagger = time.Second

	// provedFor is how long an address counts as proved. Strangers can ask for
	// splices (node/transport: Config.Splice): a proof for each would let them
	// make the hosts of a fleet do two handshakes with the leader for each hello.
	provedFor = 10 * time.Second
)

// proofs are the addresses at which quorum hosts proved their identity lately.
type proofs struct {
	mu sync.Mutex // guards at
	at map[fleet.NodeID]proof
}

type proof struct {
	addr string
	when time.Time
}

func (p *proofs) get(voter fleet.NodeID) (addr string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.at[voter]
	if !ok || time.Since(last.when) >= provedFor {
		delete(p.at, voter)
		return "", false
	}
	return last.addr, true
}

func (p *proofs) set(voter fleet.NodeID, addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[fleet.NodeID]proof{} // voters only: a handful
	}
	p.at[voter] = proof{addr, time.Now()}
}

// Splice opens a connection to a quorum host's port, for an operator on this
// host (node/api: ServeLocal): to this host itself if it is of the quorum, else
// to the leader, else to whoever answers. An address is only taken when the
// quorum host that is meant has just proved its identity there: what gossip or a
// voter says of an address must not turn the socket into a way to other places.
func (n *Node) Splice(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	order := n.voters()
	first := n.leader()
	if n.member.Load() != nil {
		first = n.info.Node
		if !slices.Contains(order, first) {
			order = append(order, first)
		}
	}
	rpc.AskFirst(order, first)
	type outcome struct {
		conn net.Conn
		err  error
	}
	outcomes := make(chan outcome, len(order))
	open := 0
	defer func() {
		cancel()
		for range open {
			if late := <-outcomes; late.conn != nil {
				_ = late.conn.Close() // another was faster
			}
		}
	}()
	var failures []error
	for next := 0; next < len(order) || open > 0; {
		if next < len(order) {
			voter := order[next]
			next++
			open++
			go func() {
				conn, err := n.spliceTo(ctx, voter)
				outcomes <- outcome{conn, err}
			}()
		}
		timer := time.NewTimer(spliceStagger)
		select {
		case o := <-outcomes:
			open--
			if o.err == nil {
				timer.Stop()
				return o.conn, nil
			}
			failures = append(failures, o.err)
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil, fleet.Errorf(fleet.NoQuorum, "this host reaches no quorum host: %w", errors.Join(failures...)).
		WithHint("check that the quorum hosts run and that this host reaches their port; fleet node ls names them")
}

func (n *Node) spliceTo(ctx context.Context, voter fleet.NodeID) (net.Conn, error) {
	if addr, ok := n.proved.get(voter); ok {
		if conn, err := n.transport.DialPlain(ctx, addr); err == nil {
			return conn, nil
		}
		// It may answer at another by now.
	}
	proved, err := n.dial(ctx, transport.RPC, fleet.RoleAgent, voter, fleet.RoleQuorum)
	if err != nil {
		return nil, err
	}
	addr := proved.RemoteAddr().String()
	if err := proved.Close(); err != nil {
		return nil, fmt.Errorf("end the connection that proved %s: %w", voter, err)
	}
	n.proved.set(voter, addr)
	return n.transport.DialPlain(ctx, addr)
}
