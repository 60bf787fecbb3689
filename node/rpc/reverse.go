package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

// This file is how a quorum host calls a host that may not be dialled: over the
// connection that the host opened (transport.Reverse), on which the quorum host
// speaks HTTP/2 as the client, or through another quorum host that has one.
//
// A connection that the host opened is preferred to dialling, as in Nomad. It is
// there: no call waits for a handshake, or for a firewall that drops and does
// not say so, and a leader of thousands of hosts needs no second connection to
// each. What speaks against it is that such a connection may be half open. So a
// call that gets no answer on one within half of its time goes another way, the
// connection is doubted from then on (the other ways come first), and pings end
// it within half a minute. A call that arrives twice is harmless: see the package
// comment.

// A dial that failed is not repeated before another way was tried, for redial
// long. What was learnt is kept of maxWays hosts.
const (
	redial  = time.Minute
	maxWays = 16384
)

// way is what calls to one host taught.
type way struct {
	dialled time.Time    // when it was dialled last; zero for never
	fails   int          // dials in a row that failed since it last answered
	via     fleet.NodeID // the quorum host through which the last call went; "" for none
}

func (w way) dialFails() bool {
	return w.fails > 0 && time.Since(w.dialled) < redial
}

// UseRelays names the quorum hosts, other than this one, through which hosts may
// be reached that this client does not reach itself. It is called before the
// first call.
func (c *Client) UseRelays(relays func() []fleet.NodeID) { c.relays = relays }

// ServeReverse takes the connections that hosts open, until ctx is done, and
// closes l. peer tells whose connection it is; the newest of a host counts. The
// connections are closed by Close.
func (c *Client) ServeReverse(ctx context.Context, l net.Listener, peer func(net.Conn) (identity.Peer, bool)) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // ends Accept, which says so
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept reverse connections: %w", err)
		}
		p, ok := peer(conn)
		if !ok || p.Role != fleet.RoleAgent || !c.adopt(p.Node, conn) {
			_ = conn.Close() // nothing was said
		}
	}
}

// adopt makes a connection the way to the host that opened it; false when the
// client is closed.
func (c *Client) adopt(node fleet.NodeID, conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	pc := &peerConn{target: Target{Node: node, Role: fleet.RoleAgent}, ready: make(chan struct{})}
	c.all[pc] = struct{}{}
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithValue(c.ctx, connKey{}, conn), dialTimeout)
		defer cancel()
		cc, err := c.back.NewClientConn(ctx, "http", "peer:1")
		if err != nil {
			_ = conn.Close() // the peer sees that it was of no use
		}
		c.mu.Lock()
		pc.conn, pc.err = cc, err
		close(pc.ready)
		if err != nil {
			delete(c.all, pc)
		} else if c.ctx.Err() == nil {
			if old := c.reverse[node]; old != nil {
				c.retireLocked(old, false) // its calls may still be answered
			}
			c.reverse[node] = pc
		}
		c.closeIfDoneLocked(pc, c.ctx.Err() != nil)
		c.mu.Unlock()
		if err == nil {
			c.watch(pc)
		}
	})
	return true
}

// reverseTo is the connection that a host opened, counted as used; nil if there
// is none, or if it is doubted and that is not good enough.
func (c *Client) reverseTo(node fleet.NodeID, doubted bool) *peerConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	pc := c.reverse[node]
	switch {
	case pc == nil || pc.doubted && !doubted:
		return nil
	case pc.broken():
		c.retireLocked(pc, false)
		return nil
	}
	pc.calls++
	return pc
}

// doubt notes whether a call over a reverse connection got its answer. One that
// its caller broke off says nothing of the connection: a leader that is none any
// more breaks off all of them at once.
func (c *Client) doubt(call context.Context, pc *peerConn, answered bool) {
	if !answered && errors.Is(call.Err(), context.Canceled) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	pc.doubted = !answered
}

func (c *Client) wayTo(node fleet.NodeID) way {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ways[node]
}

// learnLocked changes what is known of the way to a host. Of too many, any one
// is forgotten: that costs a dial.
func (c *Client) learnLocked(node fleet.NodeID, change func(w *way)) {
	w, known := c.ways[node]
	if !known && len(c.ways) >= maxWays {
		for other := range c.ways {
			delete(c.ways, other)
			break
		}
	}
	change(&w)
	c.ways[node] = w
}

// noteDialLocked remembers whether a host could be dialled.
func (c *Client) noteDialLocked(to Target, err error) {
	if to.Role == fleet.RoleAgent {
		c.learnLocked(to.Node, func(w *way) {
			w.dialled = time.Now()
			if w.fails++; err == nil {
				w.fails = 0
			}
		})
	}
}

// trip is one call on its way to a host.
type trip struct {
	c     *Client
	ctx   context.Context
	to    Target
	m     Method
	frame []byte

	reversed     bool // the connection that the host opened was tried
	answer       []byte
	err          error // the host's own, once it answered
	sent, unsent error // of the last way that failed, after and before sending
}

// toHost calls a host by whatever way leads to it. If none does, the error is
// that of a way that got as far as sending, if there is one: the host may have
// done what it was asked.
func (c *Client) toHost(ctx context.Context, to Target, m Method, frame []byte) ([]byte, error) {
	t := &trip{c: c, ctx: ctx, to: to, m: m, frame: frame}
	known := c.wayTo(to.Node)
	done := t.overReverse(false)
	// Another voter is asked before a dial that may have to be waited for: it
	// says at once if it does not reach the host either.
	last := t.reversed || known.dialFails()
	done = done || !last && t.dial() || t.relay(known.via) || t.overReverse(true) || last && t.dial()
	switch {
	case done:
		return t.answer, t.err
	case t.sent != nil:
		return nil, t.sent
	case t.unsent != nil:
		return nil, t.unsent
	}
	return nil, fleet.Errorf(fleet.Unavailable, "reach %s: %w", to, context.Cause(ctx))
}

// over reports whether the host answered; an error that is not its own says
// why it did not.
func (t *trip) over(answer []byte, answered bool, err error) bool {
	switch {
	case answered:
		t.answer, t.err = answer, err
	case fleet.KindOf(err) == fleet.Unknown:
		t.sent = err
	default:
		t.unsent = err
	}
	return answered
}

func (t *trip) dial() bool {
	if t.ctx.Err() != nil {
		return false
	}
	return t.over(t.c.dialled(t.ctx, t.to, t.m, t.frame))
}

// overReverse tries the connection that the host opened, for half of the time
// that is left.
func (t *trip) overReverse(doubted bool) bool {
	if t.reversed || t.ctx.Err() != nil {
		return false
	}
	pc := t.c.reverseTo(t.to.Node, doubted)
	if pc == nil {
		return false
	}
	t.reversed = true
	ctx, cancel := partOfTime(t.ctx, 2)
	defer cancel()
	answer, answered, err := t.c.attempt(ctx, pc, t.m, t.frame)
	t.c.doubt(t.ctx, pc, answered)
	if !answered {
		err = noAnswer(t.to, t.m.Name, err)
	}
	return t.over(answer, answered, err)
}

// partOfTime gives one of n equal parts of the time that ctx leaves.
func partOfTime(ctx context.Context, n int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(n))
}

// relay asks the other quorum hosts to call the host, the one that could last
// time first. Each that has no connection says so at once.
func (t *trip) relay(first fleet.NodeID) bool {
	if t.c.relays == nil || !relayable(t.m) {
		return false
	}
	relays := slices.Clone(t.c.relays())
	AskFirst(relays, first)
	for i, by := range relays {
		if t.ctx.Err() != nil || by == t.to.Node {
			continue
		}
		ctx, cancel := partOfTime(t.ctx, len(relays)-i+1) // the last part is for what comes after
		answer, answered, err := t.c.relayThrough(ctx, by, t.to.Node, t.m, t.frame)
		cancel()
		if answered {
			t.c.mu.Lock()
			t.c.learnLocked(t.to.Node, func(w *way) { w.via = by })
			t.c.mu.Unlock()
			return t.over(answer, true, err)
		}
		if fleet.KindOf(err) == fleet.Unknown {
			t.sent = err // that it has no connection there is nothing to tell of
		}
	}
	return false
}

// relayable says which methods travel through another quorum host: what the
// quorum asks of hosts, in one frame, and not a second hop.
func relayable(m Method) bool {
	return !m.Stream && m.Name != MethodRelay && len(m.Roles) == 1 && m.Roles[0] == fleet.RoleQuorum && m.MaxRequest <= maxRelayed
}

func (c *Client) relayThrough(ctx context.Context, by, node fleet.NodeID, m Method, frame []byte) (answer []byte, answered bool, err error) {
	resp, err := Call[RelayRequest, RelayResponse](ctx, c, Target{Node: by, Role: fleet.RoleQuorum}, MethodRelay,
		&RelayRequest{Node: node, Method: m.Name, Body: frame[frameHeader:]})
	switch {
	case err != nil:
		return nil, false, err
	case !resp.Found:
		return nil, false, fleet.Errorf(fleet.Unavailable, "%s has no connection of %s", by, node)
	case resp.Error != nil:
		return nil, true, resp.Err()
	case len(resp.Body) > m.MaxResponse:
		return nil, true, fleet.Errorf(fleet.TooLarge, "answer of %s: %d bytes are over the limit of %d", node, len(resp.Body), m.MaxResponse)
	}
	if err := wire.Check(resp.Body); err != nil {
		return nil, true, fleet.Errorf(fleet.Invalid, "answer of %s: %w", node, err)
	}
	return resp.Body, true, nil
}

// Relay makes a call for another quorum host over the connection that a host
// opened to this one, and over no other. The bytes pass unread: the host that
// they are for judges them, and sees this host's identity.
func (c *Client) Relay(ctx context.Context, req *RelayRequest) (*RelayResponse, error) {
	m, known := c.table[req.Method]
	if !known || !relayable(m) {
		return nil, fleet.Errorf(fleet.Denied, "%.64q is not passed on to hosts", req.Method)
	}
	if len(req.Body) > m.MaxRequest {
		return nil, fleet.Errorf(fleet.TooLarge, "request %s of %d bytes: at most %d", m.Name, len(req.Body), m.MaxRequest)
	}
	pc := c.reverseTo(req.Node, true)
	if pc == nil {
		return &RelayResponse{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	body, answered, err := c.attempt(ctx, pc, m, frameBytes(req.Body))
	c.doubt(ctx, pc, answered)
	switch {
	case !answered:
		return nil, noAnswer(pc.target, m.Name, err)
	case err != nil:
		told := toBody(err)
		return &RelayResponse{Found: true, Error: &told}, nil
	}
	return &RelayResponse{Found: true, Body: body}, nil
}

// streamConn is the way of a stream, which is chosen once: it is not relayed.
func (c *Client) streamConn(ctx context.Context, to Target) (*peerConn, error) {
	if to.Role == fleet.RoleAgent {
		if pc := c.reverseTo(to.Node, c.wayTo(to.Node).dialFails()); pc != nil {
			return pc, nil
		}
	}
	pc, _, err := c.conn(ctx, to)
	return pc, err
}

// Reversed lists the hosts that keep a connection open to this one.
func (c *Client) Reversed() []fleet.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.reverse))
}

// Probe dials a host to find out whether it can be.
func (c *Client) Probe(ctx context.Context, node fleet.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	to := Target{Node: node, Role: fleet.RoleAgent}
	conn, err := c.dial(ctx, to.Node, to.Role)
	if err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return err // it says nothing of the host
	}
	c.mu.Lock()
	c.noteDialLocked(to, err)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return conn.Close()
}

// Undialled forgets what dialling a host taught: it came back, and that nobody
// answered while it was off says nothing of it.
func (c *Client) Undialled(node fleet.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.ways[node]; known {
		c.learnLocked(node, func(w *way) { w.dialled, w.fails = time.Time{}, 0 })
	}
}

// Reach is how calls from here get to a host.
type Reach struct {
	Reverse bool         // the host keeps a connection open to this one
	Dialled time.Time    // when it was dialled last; zero for never
	Fails   int          // dials in a row that failed since it last answered
	Via     fleet.NodeID // the quorum host through which the last call went
}

// Reach says what this client knows of the way to a host.
func (c *Client) Reach(node fleet.NodeID) Reach {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.ways[node]
	return Reach{Reverse: c.reverse[node] != nil, Dialled: w.dialled, Fails: w.fails, Via: w.via}
}
