package node

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/transport"
)

// This file keeps a connection open from this host to every voter, over which
// the quorum calls it when it cannot be dialled, or need not be (node/rpc:
// Client). To every voter and not to two of them: there are five at most, and
// so the next leader has its connections at once when the last one is gone.
// It costs a voter one idle connection a host, which its limits are made for.

// Pauses before a lost connection is opened again. A voter that starts anew is
// called by the whole fleet, so the first pause is spread too.
const (
	reverseFirst  = time.Second
	reverseLong   = 15 * time.Second
	reverseSteady = 30 * time.Second // a connection that lasted this long was in order
)

// runReverse keeps the connections and serves the calls that come over them.
func (n *Node) runReverse(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var keepers sync.WaitGroup
	defer keepers.Wait()
	defer cancel()
	opened := &openedConns{conns: make(chan net.Conn), closed: make(chan struct{}), addr: n.transport.Addr()}
	keepers.Go(func() { n.keepReverse(ctx, opened) })
	return n.rpcServer.ServeReverse(ctx, opened)
}

// keepReverse has one keeper run for each voter that trust.json names.
func (n *Node) keepReverse(ctx context.Context, to *openedConns) {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[fleet.NodeID]context.CancelFunc{}
	for {
		changed := n.trustChanged()
		voters := n.voters()
		for id, stop := range running {
			if !slices.Contains(voters, id) {
				stop()
				delete(running, id)
			}
		}
		for _, id := range voters {
			if running[id] != nil || id == n.info.Node {
				continue
			}
			keeping, stop := context.WithCancel(ctx)
			running[id] = stop
			wg.Go(func() { n.keepReverseTo(keeping, id, to) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, stop := range running {
				stop()
			}
			return
		}
	}
}

// keepReverseTo keeps one connection to one voter.
func (n *Node) keepReverseTo(ctx context.Context, voter fleet.NodeID, to *openedConns) {
	pause := time.Duration(0)
	for {
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-n.inFleet.Done(): // no voter takes it
			timer.Stop()
			return
		case <-timer.C:
		}
		began := time.Now() // elapsed time, not the fleet's
		if err := n.openReverse(ctx, voter, to); err != nil && ctx.Err() == nil {
			n.log.Debug("no reverse connection", "peer", voter, "err", err)
		}
		if time.Since(began) >= reverseSteady {
			pause = 0
		}
		pause = min(max(2*pause, reverseFirst), reverseLong)
	}
}

// openReverse opens one connection and returns when it has ended.
func (n *Node) openReverse(ctx context.Context, voter fleet.NodeID, to *openedConns) error {
	c, err := n.dial(ctx, transport.Reverse, fleet.RoleAgent, voter, fleet.RoleQuorum)
	if err != nil {
		return err
	}
	conn := c.(*transport.Conn)
	if !to.offer(ctx, conn) {
		return conn.Close()
	}
	select {
	case <-conn.Done():
		return nil
	case <-ctx.Done():
		return conn.Close() // the voter is none any more, or this host stops: calls had their grace
	}
}

// openedConns is a listener of connections that were dialled.
type openedConns struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{} // closed by Close
	addr   net.Addr
}

func (o *openedConns) offer(ctx context.Context, c net.Conn) bool {
	select {
	case o.conns <- c:
		return true
	case <-o.closed:
	case <-ctx.Done():
	}
	return false
}

func (o *openedConns) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

func (o *openedConns) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}

func (o *openedConns) Addr() net.Addr { return o.addr }
