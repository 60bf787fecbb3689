package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
)

// Limits of a client.
const (
	maxConns       = 512             // kept connections; a leader delivers to a few hundred hosts at a time
	connIdle       = 2 * time.Minute // without a call, then it is closed
	dialTimeout    = 10 * time.Second
	maxHeaderBytes = 4 << 10
)

// AskFirst puts one host before the others, whose order stays. One that is not
// among them, or none, changes nothing.
func AskFirst(order []fleet.NodeID, first fleet.NodeID) {
	slices.SortStableFunc(order, func(a, b fleet.NodeID) int {
		switch first {
		case a:
			return -1
		case b:
			return 1
		}
		return 0
	})
}

// Target is a peer as the caller means it: the connection is refused unless
// the other end proves exactly this node with a certificate of this role.
type Target struct {
	Node fleet.NodeID
	Role fleet.Role
}

func (t Target) String() string { return t.Role.String() + " " + t.Node.String() }

// Client calls peers. It keeps connections warm, one per target, and closes
// them when they are idle, broken or the least recently used of too many. It
// is safe for concurrent use; Close ends it.
type Client struct {
	table     map[string]Method
	dial      func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error)
	transport *http.Transport // of connections that are dialled
	back      *http.Transport // of connections that hosts opened: see reverse.go
	relays    func() []fleet.NodeID
	ctx       context.Context // done when Close was called: ends dials
	cancel    context.CancelFunc
	work      sync.WaitGroup // dials and closes under way

	mu    sync.Mutex             // guards what follows
	conns map[Target]*peerConn   // the one that new calls use
	all   map[*peerConn]struct{} // not closed yet
	clock uint64                 // counts uses, to find the least recent

	reverse map[fleet.NodeID]*peerConn // the connection that the host opened
	ways    map[fleet.NodeID]way       // what was learnt of hosts that could not be dialled
}

// peerConn is one kept connection, or the attempt to make it.
type peerConn struct {
	target Target
	ready  chan struct{}    // closed when conn or err is set
	conn   *http.ClientConn // set before ready is closed, with err nil
	err    error

	// Guarded by Client.mu:
	used    uint64 // by Client.clock
	calls   int    // using or waiting for it
	retired bool   // not in Client.conns or reverse: closed when the last call is done
	doubted bool   // of a reverse connection: a call got no answer; it may be half open
	closed  bool
}

// NewClient makes a client. dial opens an authenticated HTTP/2 connection to
// the given identity of a node; which identity of ours it shows is the
// caller's choice, so a quorum host has a client for each of its two.
func NewClient(dial func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error)) *Client {
	return newClient(Methods, dial)
}

func newClient(methods []Method, dial func(context.Context, fleet.NodeID, fleet.Role) (net.Conn, error)) *Client {
	c := &Client{table: byName(methods), dial: dial, conns: map[Target]*peerConn{}, all: map[*peerConn]struct{}{},
		reverse: map[fleet.NodeID]*peerConn{}, ways: map[fleet.NodeID]way{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.transport = newTransport(connIdle, func(ctx context.Context) (net.Conn, error) {
		t := ctx.Value(targetKey{}).(Target)
		return dial(ctx, t.Node, t.Role)
	})
	c.back = newTransport(0, func(ctx context.Context) (net.Conn, error) {
		return ctx.Value(connKey{}).(net.Conn), nil
	})
	return c
}

// newTransport speaks HTTP/2 over what open gives. Connections end when they
// have been idle for a while (0: never) or when a ping is not answered.
func newTransport(idle time.Duration, open func(ctx context.Context) (net.Conn, error)) *http.Transport {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // what open returns is TLS already
	return &http.Transport{
		Protocols:              &protocols,
		DisableCompression:     true,
		IdleConnTimeout:        idle,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := open(ctx)
			if err != nil {
				return nil, err
			}
			return plainConn{Conn: conn}, nil
		},
		HTTP2: &http.HTTP2Config{
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              writeTimeout,
		},
	}
}

type (
	targetKey struct{} // of the Target that a dial is for
	connKey   struct{} // of the connection that a host opened
)

// Close closes every connection, which breaks off the calls that run on them,
// and returns when nothing of the client's own is under way.
func (c *Client) Close() error {
	c.cancel()
	c.mu.Lock()
	for pc := range c.all {
		c.retireLocked(pc, true)
	}
	c.mu.Unlock()
	c.work.Wait()
	return nil
}

// Call asks a peer. The context may shorten the method's timeout. The error is
// the peer's own (*fleet.Error with its kind, text escaped), or Unavailable if
// the call was not sent, or Unknown if it was and no answer came.
func Call[Req, Resp any](ctx context.Context, c *Client, to Target, name string, req *Req) (*Resp, error) {
	m, ok := c.table[name]
	if !ok || m.Stream {
		panic("rpc: " + name + " is not a method with one answer")
	}
	frame, err := encodeFrame(req)
	if err != nil {
		return nil, err
	}
	if len(frame)-frameHeader > m.MaxRequest {
		return nil, fleet.Errorf(fleet.TooLarge, "request %s of %d bytes: at most %d", name, len(frame)-frameHeader, m.MaxRequest)
	}
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	var answer []byte
	if to.Role == fleet.RoleAgent {
		answer, err = c.toHost(ctx, to, m, frame)
	} else {
		answer, _, err = c.dialled(ctx, to, m, frame)
	}
	if err != nil {
		return nil, err
	}
	resp := new(Resp)
	if err := decodeBody(answer, resp); err != nil {
		return nil, fmt.Errorf("answer of %s to %s: %w", to, name, err)
	}
	return resp, nil
}

// dialled sends one frame and reads one over a connection of our own. A kept
// connection may have died unnoticed, so a call that got no answer on one is
// repeated once on another. answered says that result or error are the peer's.
func (c *Client) dialled(ctx context.Context, to Target, m Method, frame []byte) (answer []byte, answered bool, err error) {
	for again := true; ; again = false {
		pc, kept, err := c.conn(ctx, to)
		if err != nil {
			return nil, false, err
		}
		answer, answered, err := c.attempt(ctx, pc, m, frame)
		if answered {
			return answer, true, err
		}
		if !again || !kept || !pc.broken() || ctx.Err() != nil {
			return nil, false, noAnswer(to, m.Name, err)
		}
	}
}

// attempt uses a connection once and gives it back.
func (c *Client) attempt(ctx context.Context, pc *peerConn, m Method, frame []byte) (answer []byte, answered bool, err error) {
	answer, err = c.exchange(ctx, pc, m, frame)
	if pc.broken() {
		c.retire(pc)
	}
	c.release(pc)
	var told *fleet.Error
	return answer, err == nil || errors.As(err, &told), err
}

// exchange is one attempt; an error that is no *fleet.Error means no answer.
func (c *Client) exchange(ctx context.Context, pc *peerConn, m Method, frame []byte) ([]byte, error) {
	resp, err := roundTrip(ctx, pc, m, int64(len(frame)), bytes.NewReader(frame))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, readError(resp)
	}
	answer, err := readFrame(resp.Body, m.MaxResponse)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return answer, err
}

// CallStream sends head and, after it, what body yields until io.EOF (nil:
// nothing), and returns the answer's bytes. A nil error means that the peer
// has begun to answer; for a method that answers nothing, that it is done. The
// answer ends with io.EOF only if it is whole. The caller closes it, and ends a
// body that blocks: a Read of it may be under way when the call has failed.
func CallStream(ctx context.Context, c *Client, to Target, name string, head any, body io.Reader) (io.ReadCloser, error) {
	m, ok := c.table[name]
	if !ok || !m.Stream {
		panic("rpc: " + name + " is not a stream")
	}
	frame, err := encodeFrame(head)
	if err != nil {
		return nil, err
	}
	if len(frame)-frameHeader > maxHead {
		return nil, fleet.Errorf(fleet.TooLarge, "head of %s of %d bytes: at most %d", name, len(frame)-frameHeader, maxHead)
	}
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	pc, err := c.streamConn(ctx, to)
	if err != nil {
		cancel()
		return nil, err
	}
	end := sync.OnceFunc(func() {
		cancel() // before the answer is closed: closing waits for a Read of body unless the call is cancelled
		c.release(pc)
	})
	content, length := io.Reader(bytes.NewReader(frame)), int64(len(frame))
	if body != nil {
		content, length = io.MultiReader(content, body), -1
	}
	resp, err := roundTrip(ctx, pc, m, length, content)
	if err != nil {
		end()
		return nil, noAnswer(to, name, err)
	}
	if resp.StatusCode != http.StatusOK {
		err := readError(resp)
		end()
		_ = resp.Body.Close() // the error frame was all we wanted
		return nil, err
	}
	return &answerReader{body: resp.Body, limit: bodyReader{r: resp.Body, left: m.MaxResponse}, end: end,
		fail: func(err error) error { return noAnswer(to, name, err) }}, nil
}

// answerReader is the answer of a stream.
type answerReader struct {
	body  io.Closer
	limit bodyReader
	end   func()
	fail  func(error) error
}

func (a *answerReader) Read(p []byte) (int, error) {
	n, err := a.limit.Read(p)
	var known *fleet.Error
	if err != nil && err != io.EOF && !errors.As(err, &known) {
		err = a.fail(err)
	}
	return n, err
}

func (a *answerReader) Close() error {
	a.end()
	return a.body.Close()
}

func roundTrip(ctx context.Context, pc *peerConn, m Method, length int64, content io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+string(pc.target.Node)+pathPrefix+m.Name, content)
	if err != nil {
		return nil, err
	}
	req.ContentLength = length
	req.Header["User-Agent"] = []string{""} // sends none
	resp, err := pc.conn.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// readError reads the error of an answer. A peer that cannot even say that is
// treated as one that did not answer.
func readError(resp *http.Response) error {
	body, err := readFrame(resp.Body, maxErrorBody)
	if err != nil {
		return fmt.Errorf("status %d without an error frame: %w", resp.StatusCode, errors.New(err.Error()))
	}
	var b errorBody
	if err := decodeBody(body, &b); err != nil {
		return fmt.Errorf("status %d with a malformed error: %w", resp.StatusCode, errors.New(err.Error()))
	}
	return b.toError()
}

func noAnswer(to Target, name string, err error) error {
	return fleet.Errorf(fleet.Unknown, "no answer from %s to %s: %w", to, name, err)
}

// conn gives a connection to a target, made now or kept. The caller gives it
// back with release.
func (c *Client) conn(ctx context.Context, to Target) (pc *peerConn, kept bool, err error) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, false, fleet.Errorf(fleet.Unavailable, "call to %s: the client is closed", to)
	}
	pc = c.conns[to]
	kept = pc != nil
	if kept && pc.broken() {
		c.retireLocked(pc, false)
		kept = false
	}
	if !kept {
		if !c.makeRoomLocked() {
			c.mu.Unlock()
			return nil, false, fleet.Errorf(fleet.Throttled, "call to %s: all %d connections to peers are in use", to, maxConns)
		}
		pc = &peerConn{target: to, ready: make(chan struct{})}
		c.conns[to] = pc
		c.all[pc] = struct{}{}
		c.work.Add(1)
		go c.open(pc)
	}
	c.clock++
	pc.used = c.clock
	pc.calls++
	c.mu.Unlock()

	select {
	case <-pc.ready:
		err = pc.err
	case <-ctx.Done():
		err = fmt.Errorf("connection not ready: %w", context.Cause(ctx))
	}
	if err != nil {
		c.release(pc)
		return nil, false, fleet.Errorf(fleet.Unavailable, "reach %s: %w", to, err)
	}
	return pc, kept, nil
}

// open dials for everybody who waits for pc: it outlives the call that asked
// first.
func (c *Client) open(pc *peerConn) {
	defer c.work.Done()
	ctx, cancel := context.WithTimeout(context.WithValue(c.ctx, targetKey{}, pc.target), dialTimeout)
	defer cancel()
	conn, err := c.transport.NewClientConn(ctx, "http", "peer:1") // the dial looks at the target in ctx
	c.mu.Lock()
	pc.conn, pc.err = conn, err
	close(pc.ready)
	if err != nil {
		delete(c.all, pc)
		c.retireLocked(pc, false)
	}
	c.noteDialLocked(pc.target, err)
	c.closeIfDoneLocked(pc, c.ctx.Err() != nil)
	c.mu.Unlock()
	if err == nil {
		c.watch(pc)
	}
}

// watch takes a connection out of use when it breaks.
func (c *Client) watch(pc *peerConn) {
	pc.conn.SetStateHook(func(cc *http.ClientConn) {
		if cc.Err() != nil {
			c.retire(pc)
		}
	})
}

// release ends the use of a connection that conn gave.
func (c *Client) release(pc *peerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pc.calls--
	c.closeIfDoneLocked(pc, false)
}

// retire takes a connection out of use; calls that run on it may end.
func (c *Client) retire(pc *peerConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retireLocked(pc, false)
}

func (c *Client) retireLocked(pc *peerConn, now bool) {
	if c.conns[pc.target] == pc {
		delete(c.conns, pc.target)
	}
	if c.reverse[pc.target.Node] == pc {
		delete(c.reverse, pc.target.Node)
	}
	pc.retired = true
	c.closeIfDoneLocked(pc, now)
}

// closeIfDoneLocked closes a retired connection that no call uses, or that is
// to be closed in any case. Closing TLS writes to the peer, which may take
// seconds, so it happens aside.
func (c *Client) closeIfDoneLocked(pc *peerConn, now bool) {
	if pc.closed || !pc.isReady() || pc.conn == nil || !now && (!pc.retired || pc.calls > 0) {
		return
	}
	pc.closed = true
	delete(c.all, pc)
	c.work.Go(func() { _ = pc.conn.Close() }) // broken or unused: nobody waits for the outcome
}

// makeRoomLocked retires the least recently used connection without a call if
// there are too many; false if all have calls.
func (c *Client) makeRoomLocked() bool {
	if len(c.conns) < maxConns {
		return true
	}
	var oldest *peerConn
	for _, pc := range c.conns {
		if pc.calls == 0 && (oldest == nil || pc.used < oldest.used) {
			oldest = pc
		}
	}
	if oldest == nil {
		return false
	}
	c.retireLocked(oldest, false)
	return true
}

func (pc *peerConn) isReady() bool {
	select {
	case <-pc.ready:
		return true
	default:
		return false
	}
}

// broken reports a connection that takes no more calls. (One that is full also
// has none available, but has some in flight.)
func (pc *peerConn) broken() bool {
	if !pc.isReady() {
		return false
	}
	return pc.err != nil || pc.conn.Err() != nil || pc.conn.Available() == 0 && pc.conn.InFlight() == 0
}
