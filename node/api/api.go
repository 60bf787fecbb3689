// Package api is the door for operators: one table of operations (routes.go),
// served over connections of the protocol fleet-api, and a second, small door
// for whoever may open the local socket.
//
// A connection begins with a preamble: the operator proves a key, bound to
// this TLS connection, and hears the fleet's time. HTTP/1.1 follows, POST
// /v1/<Operation> with JSON both ways. Reads are covered by the connection's
// proof; a mutation carries a proof of its own, which travels on into the log.
//
// Invariants: nothing of HTTP is parsed before the preamble is proved; every
// request is authorised anew, so that a right that ends, ends on open
// connections too, and a stream asks again at every heartbeat; bodies,
// connections, times and answers are bounded in one wrapper and nowhere else;
// an error without a kind is logged and its text stays here. The package
// decides nothing: mutations are package control's.
//
// HTTP/1.1 and not HTTP/2, because one connection is one operator's command
// line: multiplexing would only add a second layer of flow control to it.
package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"fleet/node/authz"
	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/presence"
	"fleet/node/quota"
	"fleet/node/runcmd"
	"fleet/raftfsm/state"
)

// Control is what the operations need of package control.
type Control interface {
	// Mutate decides a signed request and gives the operation's answer in
	// JSON. It verifies the proof and the operator's rights itself.
	Mutate(ctx context.Context, operation string, body, proof []byte) ([]byte, error)

	// Read gives a state that covers every write acknowledged before the call,
	// or with stale what this host has.
	Read(ctx context.Context, stale bool) (*state.Store, error)

	// WriteState writes a snapshot of what Read gives.
	WriteState(ctx context.Context, stale bool, to io.Writer) error

	// Presence merges what the voters have heard. It must return within
	// seconds also when voters do not answer.
	Presence(ctx context.Context) map[fleet.NodeID]presence.Seen

	// Detail is nil when the invocation has no details.
	Detail(ctx context.Context, cmd *fleet.Command, inv *fleet.Invocation) (*runcmd.Detail, error)

	// Blob finds content; host is who made it. The caller closes it.
	Blob(ctx context.Context, host fleet.NodeID, digest fleet.Digest) (io.ReadCloser, error)

	// HasProgram reports whether a program is on this host, KeepProgram takes one
	// and brings it to as many voters as is due, which it counts.
	HasProgram(d fleet.Digest) bool
	KeepProgram(ctx context.Context, d fleet.Digest, size int64, body io.Reader) (copies int, err error)

	Quorum(ctx context.Context) (control.QuorumView, error)
	Candidate(ctx context.Context, node fleet.NodeID, newIssuer bool) ([]byte, error)
	Eligible(ctx context.Context) ([]fleet.NodeID, error)
}

const (
	defaultMaxConns = 256
	maxBody         = 1 << 20
	preambleTimeout = 5 * time.Second
	shutdownTimeout = 3 * time.Second

	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = time.Minute
	idleTimeout       = 2 * time.Minute

	// readTime and mutateTime bound the work on one request.
	readTime   = 20 * time.Second
	mutateTime = 30 * time.Second
	// membershipTime is for ChangeQuorum, which waits for logs to be copied.
	membershipTime = 2 * time.Minute
)

// Config is what the operators' door needs.
type Config struct {
	Self    fleet.NodeID // this quorum host
	Version string       // of the program
	Control Control

	// Warnings is what the host itself knows to be wrong with the quorum; nil
	// for nothing.
	Warnings func() []fleet.Warning

	// MaxConns bounds the connections of operators; 0 is 256.
	MaxConns int

	// OperatorRate is what one operator may ask for; zero is 200 a second, and
	// 400 at once after a rest.
	OperatorRate quota.Rate

	// Lost is how long after its last heartbeat a host counts as lost; 0 is
	// three heartbeats of the default interval.
	Lost time.Duration

	// Heartbeat is how often a stream says that it lives; 0 is 5 s.
	Heartbeat time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

// Server serves operators.
type Server struct {
	cfg     Config
	mux     *http.ServeMux
	quota   *quota.Limiter[fleet.KeyID]
	backups chan struct{} // a token for each backup that is being written

	mu   sync.Mutex // guards open
	open map[*provedConn]struct{}
}

// NewServer makes a server; Serve starts it.
func NewServer(cfg Config) *Server {
	if cfg.Lost == 0 {
		cfg.Lost = 3 * presence.DefaultInterval
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = defaultMaxConns
	}
	if cfg.OperatorRate == (quota.Rate{}) {
		cfg.OperatorRate = operatorRate
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 5 * time.Second
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), backups: make(chan struct{}, maxBackups), quota: quota.New[fleet.KeyID](cfg.OperatorRate, maxOperators), open: map[*provedConn]struct{}{}}
	for _, r := range routes {
		op, _ := authz.Lookup(r.name) // a test holds that every route is in the table
		s.mux.Handle("POST "+pathOf(r.name), s.wrap(op, r))
	}
	s.mux.Handle("/", http.HandlerFunc(s.notFound))
	return s
}

// Serve accepts connections of l, which must be TLS, until ctx is done, and
// returns when all have ended. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	proved := newGate(l.Addr())
	server := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(*provedConn).caller)
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
	}
	var parts sync.WaitGroup
	parts.Go(func() {
		// It ends with ErrServerClosed or with the gate.
		if err := server.Serve(proved); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.cfg.Logger.Error("api stopped", "err", err)
		}
	})
	parts.Go(func() { s.endConnections(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	err := s.accept(ctx, l, proved, &parts)
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		err = nil // whoever closed l knows why
	}
	cancel() // ends streams and preambles
	stop()
	_ = l.Close()      // it may be closed already
	_ = proved.Close() // it has no error
	within, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer done()
	if server.Shutdown(within) != nil {
		_ = server.Close() // the requests had their time
	}
	parts.Wait()
	return err
}

// accept runs a preamble for each connection, at most MaxConns of them open at
// a time; one more is closed, because a queue would only make its client wait
// for a timeout.
func (s *Server) accept(ctx context.Context, l net.Listener, proved *gate, parts *sync.WaitGroup) error {
	slots := make(chan struct{}, s.cfg.MaxConns)
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.cfg.Logger.Warn("connection refused: too many operators are connected", "addr", conn.RemoteAddr())
			_ = conn.Close()
			continue
		}
		release := sync.OnceFunc(func() { <-slots })
		parts.Go(func() {
			c, err := s.prove(ctx, conn)
			if err != nil {
				s.cfg.Logger.Info("operator refused", "addr", conn.RemoteAddr(), "err", err)
				_ = conn.Close()
				release()
				return
			}
			pc := &provedConn{Conn: conn, caller: c}
			pc.release = func() { s.untrack(pc); release() }
			s.track(pc)
			if !proved.offer(ctx, pc) {
				_ = pc.Close()
			}
		})
	}
}

// caller is who proved the connection.
type caller struct {
	operator fleet.OperatorName
	key      fleet.KeyID
}

type callerKey struct{}

// provedConn is a connection past its preamble.
type provedConn struct {
	net.Conn
	caller  caller
	release func()
}

// Close closes the connection and frees its place.
func (c *provedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// gate is a listener of connections that were proved elsewhere.
type gate struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{} // closed by Close
}

func newGate(addr net.Addr) *gate {
	return &gate{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// offer hands over a connection; false when nobody accepts any more.
func (g *gate) offer(ctx context.Context, c net.Conn) bool {
	select {
	case g.conns <- c:
		return true
	case <-g.done:
		return false
	case <-ctx.Done():
		return false
	}
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.conns:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

func (g *gate) Addr() net.Addr { return g.addr }

// tlsConn is what the preamble needs of a connection (*transport.Conn has it).
type tlsConn interface {
	net.Conn
	ConnectionState() tls.ConnectionState
}
