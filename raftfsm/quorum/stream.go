package quorum

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
)

// nodeAddr is a host's address in Raft: its ID. Where that is, Dial knows.
type nodeAddr fleet.NodeID

func (nodeAddr) Network() string  { return "fleet-raft" }
func (a nodeAddr) String() string { return string(a) }

// Limits of what one request of a peer may bring. Raft decodes it with a
// library that allocates as it reads, so that bytes bound memory.
const (
	maxRequest  = maxAppendEntries*(256<<10) + 1<<20
	maxSnapshot = 4 << 30 // goes to disk

	rpcInstallSnapshot = 2 // first byte of that request on the wire
)

// streamLayer carries Raft's connections over those that are given to it, and
// can end them all: Raft itself leaves those it accepted open.
type streamLayer struct {
	net.Listener
	ctx  context.Context // done when dials must end
	self fleet.NodeID
	dial func(ctx context.Context, node fleet.NodeID) (net.Conn, error)

	users sync.WaitGroup // one for each accepted connection until its handler closes it, and for closes of ours

	mu     sync.Mutex // guards what follows
	conns  map[*streamConn]struct{}
	closed bool
}

func newStreamLayer(ctx context.Context, cfg Config) *streamLayer {
	return &streamLayer{Listener: cfg.Listener, ctx: ctx, self: cfg.Self, dial: cfg.Dial, conns: map[*streamConn]struct{}{}}
}

// Addr is this host's address in Raft.
func (s *streamLayer) Addr() net.Addr { return nodeAddr(s.self) }

// Accept gives Raft the next connection of a peer.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.add(c, true)
}

// Dial opens a connection to a peer.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.dial(ctx, fleet.NodeID(address))
	if err != nil {
		return nil, err
	}
	return s.add(c, false)
}

func (s *streamLayer) add(inner net.Conn, accepted bool) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = inner.Close() // nothing was said on it
		return nil, net.ErrClosed
	}
	c := &streamConn{Conn: inner, layer: s, accepted: accepted}
	s.conns[c] = struct{}{}
	if accepted {
		s.users.Add(1)
	}
	return c, nil
}

// Close ends all connections, and Accept and Dial with them.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	err := s.Listener.Close()
	for c := range conns {
		s.users.Go(func() { _ = c.Conn.Close() }) // TLS may wait for a peer here; whoever uses it finds out
	}
	return err
}

// wait returns when nobody uses a connection any more, after Close.
func (s *streamLayer) wait() { s.users.Wait() }

// streamConn is one connection of Raft.
type streamConn struct {
	net.Conn
	layer    *streamLayer
	accepted bool
	once     sync.Once

	// Of an accepted connection, used only by its handler: what the request
	// that is being read may still bring. A request ends with our answer.
	inRequest bool
	left      int64
}

// Read holds a peer to the size of one request.
func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.accepted || n == 0 {
		return n, err
	}
	if !c.inRequest {
		c.inRequest, c.left = true, maxRequest
		if b[0] == rpcInstallSnapshot {
			c.left = maxSnapshot
		}
	}
	if c.left -= int64(n); c.left < 0 {
		return 0, fmt.Errorf("request of a peer is over the limit of %d bytes", maxRequest)
	}
	return n, err
}

// Write sends an answer, or on a connection that was dialled a request.
func (c *streamConn) Write(b []byte) (int, error) {
	c.inRequest = false
	return c.Conn.Write(b)
}

// Close is called by whoever uses the connection.
func (c *streamConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.layer.mu.Lock()
		delete(c.layer.conns, c)
		c.layer.mu.Unlock()
		if c.accepted {
			c.layer.users.Done()
		}
	})
	return err
}
