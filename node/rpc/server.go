package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/logging"
)

// Limits of a server that are not in the table.
const (
	maxConcurrentStreams = 100              // of one connection
	idleTimeout          = 3 * time.Minute  // longer than the client's, which then closes first
	headTimeout          = 5 * time.Second  // to the end of the HTTP/2 preface
	errorGrace           = 5 * time.Second  // past a call's deadline, to say that it passed
	stopGrace            = 3 * time.Second  // for calls that run when Serve is told to end
	pingAfter            = 15 * time.Second // of silence
	pingTimeout          = 10 * time.Second
	writeTimeout         = 15 * time.Second // without a byte accepted by the peer
)

// statusError is the HTTP status of every answer whose frame is an error; the
// kind is in the frame.
const statusError = http.StatusInternalServerError

// Server answers the methods of a table.
type Server struct {
	log      *slog.Logger
	table    map[string]Method
	peer     func(net.Conn) (identity.Peer, bool)
	handlers map[string]streamHandler // complete before Serve is called

	quotas quotas

	refusals logging.Sometimes // of calls that a peer may make as often as it likes

	mu       sync.Mutex        // guards inFlight
	inFlight map[callerKey]int // calls by peer and method, however they came; only entries above zero
}

// service is one Serve at work: the calls that run on the connections of its
// listener.
type service struct {
	*Server

	mu      sync.Mutex    // guards what follows
	running int           // calls
	ending  bool          // no call begins any more
	ended   chan struct{} // closed by the last call after ending
}

// callerKey counts what one peer has running.
type callerKey struct {
	role   fleet.Role
	node   fleet.NodeID
	method string
}

// streamHandler answers one call: head is the request's checked frame, body
// what follows it, w takes the answer.
type streamHandler func(ctx context.Context, peer identity.Peer, head []byte, body io.Reader, w io.Writer) error

// NewServer makes a server for a table (Methods, outside tests). peer tells
// whose connection the listener yielded; one it does not know is closed.
// A table that contradicts itself panics.
func NewServer(log *slog.Logger, methods []Method, peer func(net.Conn) (identity.Peer, bool)) *Server {
	return &Server{log: log, table: byName(methods), peer: peer, handlers: map[string]streamHandler{},
		quotas: newQuotas(), inFlight: map[callerKey]int{}}
}

// Handle sets the handler of one method. It panics if the table has no such
// method or the method has a handler: both are mistakes of ours. A method of
// the table without a handler answers NotFound.
func Handle[Req, Resp any](s *Server, name string, f func(ctx context.Context, peer identity.Peer, req *Req) (*Resp, error)) {
	m := s.register(name, false)
	s.handlers[name] = func(ctx context.Context, peer identity.Peer, head []byte, body io.Reader, w io.Writer) error {
		if _, err := io.Copy(io.Discard, body); err != nil { // the row allows nothing after the frame
			return err
		}
		req := new(Req)
		if err := decodeBody(head, req); err != nil {
			return err
		}
		resp, err := f(ctx, peer, req)
		if err != nil {
			return err
		}
		frame, err := encodeFrame(resp)
		if err != nil {
			return err
		}
		if len(frame)-frameHeader > m.MaxResponse {
			return fmt.Errorf("answer of %s: %d bytes are over the limit of %d", name, len(frame)-frameHeader, m.MaxResponse)
		}
		_, err = w.Write(frame)
		return err
	}
}

// HandleStream sets the handler of a stream. head is msgpack whose structure
// was checked; body ends where the caller's bytes end and fails past the
// method's limit; what is written to w is the answer. Once a byte was written
// an error can only break the stream off, and the caller sees that.
func HandleStream(s *Server, name string,
	f func(ctx context.Context, peer identity.Peer, head []byte, body io.Reader, w io.Writer) error) {
	s.register(name, true)
	s.handlers[name] = f
}

func (s *Server) register(name string, stream bool) Method {
	m, ok := s.table[name]
	switch {
	case !ok:
		panic("rpc: a handler for " + name + ", which is not in the table")
	case m.Stream != stream:
		panic("rpc: the handler of " + name + " does not fit the table (stream or not)")
	case s.handlers[name] != nil:
		panic("rpc: two handlers for " + name)
	}
	return m
}

// Serve answers calls on the connections that l yields until ctx is done, then
// lets running calls end for a short while, and returns when all have. It
// closes l. It returns early, with the reason, only if l fails. It may run for
// several listeners at once: what one peer may have running counts for all.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, idleTimeout)
}

// ServeReverse is Serve for connections that this host opened for its peers to
// call over: they are meant to be idle, and end when a ping is not answered.
func (s *Server) ServeReverse(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, -1)
}

func (s *Server) serve(ctx context.Context, l net.Listener, idle time.Duration) error {
	work := &service{Server: s, ended: make(chan struct{})}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	var longest time.Duration
	for _, m := range s.table {
		longest = max(longest, m.Timeout)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // the connections are TLS already: see plainConn
	server := &http.Server{
		Handler:           http.HandlerFunc(work.serveHTTP),
		Protocols:         &protocols,
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       longest, // both are set shorter for each call
		WriteTimeout:      longest,
		IdleTimeout:       idle,
		MaxHeaderBytes:    4 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c.(plainConn).peer)
		},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxConcurrentStreams,
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
			WriteByteTimeout:              writeTimeout,
		},
	}

	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(&peerListener{Listener: l, server: s}) }()
	var err error
	select {
	case err = <-stopped:
		err = fmt.Errorf("accept peer connections: %w", err)
	case <-ctx.Done():
		grace, stop := context.WithTimeout(base, stopGrace)
		_ = server.Shutdown(grace) // what is left after the grace is closed next
		stop()
		<-stopped
	}
	cancel()
	_ = server.Close() // only repeats what the listener reported, if anything
	work.wait()
	return err
}

// begin counts a call in; false when the server is ending.
func (s *service) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.running++
	return true
}

func (s *service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running--; s.ending && s.running == 0 {
		close(s.ended)
	}
}

// wait lets no further call begin and returns when none runs.
func (s *service) wait() {
	s.mu.Lock()
	s.ending = true
	if s.running == 0 {
		close(s.ended)
	}
	s.mu.Unlock()
	<-s.ended
}

type peerKey struct{}

// plainConn is an authenticated connection as net/http may see it: without
// ConnectionState, because for connections with TLS it wants *tls.Conn itself
// and answers others with HTTP/1; without, it speaks HTTP/2 from the first byte.
type plainConn struct {
	net.Conn
	peer identity.Peer
}

// peerListener yields only connections whose peer is known.
type peerListener struct {
	net.Listener
	server *Server
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := l.server.peer(c); ok {
			return plainConn{Conn: c, peer: peer}, nil
		}
		l.server.log.Warn("connection without an authenticated peer closed", "addr", c.RemoteAddr())
		_ = c.Close() // nobody is told: we did not speak with it
	}
}

// serveHTTP is the one way in: it finds the method, compares the role, counts,
// limits, runs the handler and turns its error into a frame.
func (s *service) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.end()
	peer, _ := r.Context().Value(peerKey{}).(identity.Peer) // zero: RoleNone, which no row names
	name := strings.TrimPrefix(r.URL.Path, pathPrefix)
	answer := &answerWriter{w: w}
	err := s.call(r, peer, name, answer)
	if err == nil {
		if !answer.begun {
			w.WriteHeader(http.StatusOK)
		}
		return
	}
	if r.Context().Err() == nil { // else the caller has gone, and was told nothing
		s.logError(name, peer, err)
	}
	if answer.begun {
		panic(http.ErrAbortHandler) // resets the stream: the caller must not take what it got for all
	}
	frame, encodeErr := encodeFrame(toBody(err))
	if encodeErr != nil {
		panic(encodeErr)
	}
	w.WriteHeader(statusError)
	_, _ = w.Write(frame) // fails only if the caller has gone
}

func (s *Server) call(r *http.Request, peer identity.Peer, name string, w *answerWriter) (err error) {
	m, ok := s.table[name]
	if !ok || r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, pathPrefix) {
		return fleet.Errorf(fleet.NotFound, "no method %.64q", name)
	}
	if !allowed(m, peer.Role) {
		return fleet.Errorf(fleet.Denied, "%s is not for a peer with the role %s", name, peer.Role)
	}
	handler := s.handlers[name]
	if handler == nil {
		return fleet.Errorf(fleet.NotFound, "this host does not serve %s", name)
	}
	if err := s.quotas.take(m, peer, time.Now()); err != nil {
		return err
	}
	leave, err := s.enter(m, peer)
	if err != nil {
		return err
	}
	defer leave()

	ctx, cancel := context.WithTimeout(r.Context(), m.Timeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	control := http.NewResponseController(w.w)
	if err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline.Add(errorGrace))); err != nil {
		return fmt.Errorf("set deadlines of %s: %w", name, err)
	}
	maxHeadSize, maxBody := m.MaxRequest, 0
	w.left = frameHeader + m.MaxResponse
	if m.Stream {
		maxHeadSize, maxBody, w.left = maxHead, m.MaxRequest, m.MaxResponse
	}
	head, err := readFrame(r.Body, maxHeadSize)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return handler(ctx, peer, head, &bodyReader{r: r.Body, left: maxBody}, w)
}

// logError logs what a caller got as an answer. What it can provoke at will is
// Debug; what only we can be to blame for is an error.
func (s *Server) logError(name string, peer identity.Peer, err error) {
	attrs := []any{"method", clean(name, maxErrorCode), "peer", peer.Node, "role", peer.Role.String(), "err", err}
	level := slog.LevelDebug
	switch fleet.Kind(toBody(err).Kind) {
	case fleet.Denied, fleet.Throttled:
		s.refusals.Log(time.Now(), func(suppressed int) {
			level = slog.LevelWarn
			attrs = append(attrs, "suppressed", suppressed)
		})
	case fleet.Other:
		level = slog.LevelError
	}
	s.log.Log(context.Background(), level, "call not answered", attrs...)
}

func allowed(m Method, role fleet.Role) bool {
	for _, r := range m.Roles {
		if r == role {
			return true
		}
	}
	return false
}

// enter counts one more call of a peer, or refuses it.
func (s *Server) enter(m Method, peer identity.Peer) (leave func(), err error) {
	key := callerKey{peer.Role, peer.Node, m.Name}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inFlight[key] >= m.InFlightPerPeer {
		return nil, fleet.Errorf(fleet.Throttled, "%d calls of %s are running for this peer", m.InFlightPerPeer, m.Name).
			WithHint("wait for one of them to end").RetryIn(time.Second)
	}
	s.inFlight[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inFlight[key]--; s.inFlight[key] == 0 {
			delete(s.inFlight, key)
		}
	}, nil
}

// answerWriter notes that the answer has begun, after which no error frame can
// be sent, and holds the method's limit.
type answerWriter struct {
	w     http.ResponseWriter
	begun bool
	left  int // bytes that may still be written
}

func (a *answerWriter) Write(p []byte) (int, error) {
	if len(p) > a.left {
		return 0, fleet.Errorf(fleet.TooLarge, "the answer is over the method's limit")
	}
	a.begun = true
	n, err := a.w.Write(p)
	a.left -= n
	return n, err
}

// flush sends what was written, without waiting for more.
func (a *answerWriter) flush() error { return http.NewResponseController(a.w).Flush() }

// bodyReader reads at most left bytes and fails at the next one, where an
// io.LimitedReader would pretend that the body ended.
type bodyReader struct {
	r    io.Reader
	left int
}

func (b *bodyReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if n > b.left {
		n, b.left = b.left, 0
		return n, fleet.Errorf(fleet.TooLarge, "the body is over the method's limit")
	}
	b.left -= n
	return n, err
}
