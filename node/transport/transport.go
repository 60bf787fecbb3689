// Package transport opens the one port of a host (UDP for gossip, TCP with TLS
// for everything else) and hands each connection, with the identity of its
// peer, to whoever serves its protocol.
//
// Invariants:
//
//   - A connection offers exactly one protocol by ALPN and names by SNI the
//     identity it wants to meet; the host presents that identity or closes.
//   - One table (proto.go) says which roles may meet on which protocol. It is
//     checked on accept and on dial, in VerifyConnection, so that nothing of
//     the peer is parsed before. An agent's certificate never speaks raft.
//   - TLS 1.3 only and no session tickets: a resumed session would carry an old
//     answer to "may this peer still speak?".
//   - What a stranger can hold is bounded before a certificate is seen: by
//     source, in number and in time. What a known peer can hold is bounded by
//     its identity, not its address, because whole sites share one address.
//
// One port with ALPN, not one port per protocol, because every further port is
// a firewall rule on every site; no multiplexer of a library, because ALPN
// already is one.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// Config is what New needs. It is read-only afterwards.
type Config struct {
	// Fleet is the fleet whose certificates count.
	Fleet fleet.ID

	// Listen is the host:port to open, TCP and UDP, when Listener and Packet
	// are nil. Port 0 takes a free one, the same for both.
	Listen string

	// Listener and Packet replace sockets of our own. Both or none are given;
	// the transport owns them and closes them.
	Listener net.Listener
	Packet   net.PacketConn

	// Dial opens outgoing connections; nil is the system's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Agent and Quorum give the identity that the host holds now, or nil; they
	// are asked for each handshake, so that a renewed certificate is used at
	// once. A nil function is an identity never held. They must not block.
	Agent, Quorum func() *tls.Certificate

	// Admit is the node's own check of a peer whose certificate is in order:
	// not revoked, in trust.json, in raft's configuration. It is called on
	// accept, on dial and by Recheck, not for clients without a certificate,
	// and must not block. Nil admits all.
	Admit func(p Proto, peer identity.Peer) error

	// Splice opens a connection to a quorum host's port, to which operators are
	// passed on while this host holds no quorum identity. Nil: they are refused.
	Splice func(ctx context.Context) (net.Conn, error)

	// Now is the clock for certificates; nil is time.Now.
	Now func() time.Time

	// Logger is required.
	Logger *slog.Logger

	// Limits bound what peers can hold; zero fields take the defaults.
	Limits Limits
}

// Transport owns the port. Its methods may be called from any goroutine.
type Transport struct {
	cfg    Config
	packet *probedPacket
	limits *limiter
	refuse *throttledLog

	passing passages

	done      chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error

	mu        sync.Mutex // guards the maps
	listeners map[Proto]*listener
	open      map[*Conn]struct{} // every connection that was yielded or dialled and is not closed

	accepted, failed, refused atomic.Uint64
}

// Stats counts connections since New, except for the first two, which are now.
type Stats struct {
	Open        int    // accepted and not closed
	Handshaking int    // not yet past their handshake
	Accepted    uint64 // handed to a listener
	Failed      uint64 // handshakes that failed, refused identities included
	Refused     uint64 // closed because of a limit or a full backlog
}

// New validates cfg and opens the port unless it was given one. It starts
// nothing; Close undoes it.
func New(cfg Config) (*Transport, error) {
	switch {
	case cfg.Fleet == "":
		return nil, errors.New("transport: no fleet ID")
	case cfg.Logger == nil:
		return nil, errors.New("transport: no logger")
	case (cfg.Listener == nil) != (cfg.Packet == nil):
		return nil, errors.New("transport: give both Listener and Packet, or neither")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Listener == nil {
		var err error
		if cfg.Listener, cfg.Packet, err = Listen(cfg.Listen); err != nil {
			return nil, err
		}
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Transport{
		cfg:       cfg,
		packet:    &probedPacket{PacketConn: cfg.Packet, fresh: func() (net.PacketConn, error) { return openFresh(cfg.Packet.LocalAddr()) }},
		limits:    newLimiter(cfg.Limits),
		refuse:    &throttledLog{log: cfg.Logger},
		passing:   passages{of: map[netip.Addr]int{}},
		done:      make(chan struct{}),
		listeners: make(map[Proto]*listener),
		open:      make(map[*Conn]struct{}),
	}, nil
}

// Listen opens TCP and UDP on the same port.
func Listen(addr string) (net.Listener, net.PacketConn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, fleet.Errorf(fleet.Invalid, "listen address %q is not host:port", addr)
	}
	const attempts = 16 // a free TCP port may be taken on UDP
	for attempt := 1; ; attempt++ {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, listenError(addr, err)
		}
		taken := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
		p, err := net.ListenPacket("udp", net.JoinHostPort(host, taken))
		if err == nil {
			return l, p, nil
		}
		_ = l.Close() // the other error is the one that matters
		if port != "0" || attempt == attempts || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, listenError(addr, err)
		}
	}
}

func listenError(addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fleet.Errorf(fleet.Conflict, "listen on %s: the port is taken: %w", addr, err).
			WithHint("another fleet agent or program uses it: stop that, or choose another address with --listen")
	}
	return fmt.Errorf("listen on %s: %w", addr, err)
}

// Run accepts connections until ctx is done or Close is called, then closes
// the port, what is still in a handshake and what no listener has taken, and
// returns when its goroutines have ended. It may be called once.
func (t *Transport) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var handshakes sync.WaitGroup
	stopped := context.AfterFunc(ctx, func() { _ = t.Close() })
	err := t.acceptLoop(ctx, &handshakes)
	cancel() // ends the handshakes
	handshakes.Wait()
	stopped()
	return errors.Join(err, t.Close())
}

// Close closes the port and ends Run. Connections that were yielded or dialled
// belong to their users and stay open.
func (t *Transport) Close() error {
	t.closeOnce.Do(func() {
		t.mu.Lock()
		close(t.done) // under the lock: nothing is yielded from here on
		attached := slices.Collect(maps.Values(t.listeners))
		t.mu.Unlock()
		t.closeErr = errors.Join(t.cfg.Listener.Close(), t.cfg.Packet.Close())
		for _, l := range attached {
			l.drain()
		}
	})
	return t.closeErr
}

// Addr is the TCP address that is listened on.
func (t *Transport) Addr() net.Addr { return t.cfg.Listener.Addr() }

// Packet is the UDP socket, for gossip: what is read from it is no probe, those
// are answered (see ProbeUDP). The transport closes it.
func (t *Transport) Packet() net.PacketConn { return t.packet }

// Recheck closes every open connection whose peer would no longer be admitted:
// its certificate ran out or Admit refuses it. Whoever learns of a revocation
// or of new trust calls it.
func (t *Transport) Recheck() {
	t.mu.Lock()
	open := slices.Collect(maps.Keys(t.open))
	t.mu.Unlock()
	for _, c := range open {
		if c.Peer.Role == fleet.RoleNone {
			continue
		}
		err := t.admit(c.Proto, c.Peer)
		if now := t.cfg.Now(); err == nil && now.After(c.Peer.NotAfter) {
			err = fleet.Errorf(fleet.Expired, "the certificate ended at %s", c.Peer.NotAfter.UTC().Format(time.RFC3339))
		}
		if err != nil {
			t.cfg.Logger.Info("connection closed: peer no longer admitted",
				"peer", c.Peer.Node, "role", c.Peer.Role.String(), "proto", string(c.Proto), "err", err)
			c.abort()
		}
	}
}

// Open lists the connections that were yielded or dialled and are not closed.
func (t *Transport) Open() []*Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.open))
}

// Stats is the state of the counters.
func (t *Transport) Stats() Stats {
	open, handshaking := t.limits.counts()
	return Stats{
		Open: open, Handshaking: handshaking,
		Accepted: t.accepted.Load(), Failed: t.failed.Load(), Refused: t.refused.Load(),
	}
}

func (t *Transport) admit(p Proto, peer identity.Peer) error {
	if t.cfg.Admit == nil {
		return nil
	}
	return t.cfg.Admit(p, peer)
}

// certificate is the identity of a role that the host holds now; nil if none.
func (t *Transport) certificate(role fleet.Role) *tls.Certificate {
	var held func() *tls.Certificate
	switch role {
	case fleet.RoleAgent:
		held = t.cfg.Agent
	case fleet.RoleQuorum:
		held = t.cfg.Quorum
	}
	if held == nil {
		return nil
	}
	return held()
}

// track registers a connection until it is closed.
func (t *Transport) track(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[c] = struct{}{}
}

func (t *Transport) untrack(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// Conn is a connection whose handshake is done.
type Conn struct {
	*tls.Conn

	// Peer is who the other side is. Its role is RoleNone for a client of a
	// protocol without client certificates.
	Peer identity.Peer

	// Proto is the protocol that both sides agreed on.
	Proto Proto

	once    sync.Once
	release func()        // nil for stand-alone dials
	done    chan struct{} // closed once this side has closed the connection
}

func newConn(conn *tls.Conn, peer identity.Peer, p Proto) *Conn {
	return &Conn{Conn: conn, Peer: peer, Proto: p, done: make(chan struct{})}
}

// Done is closed when this side has closed the connection, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close closes the connection and frees its place in the limits. It may wait
// up to five seconds to tell the peer.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.free()
	return err
}

// abort closes the connection without a word to the peer, so that it cannot
// wait for one that does not read.
func (c *Conn) abort() {
	_ = c.NetConn().Close() // it is being thrown away
	c.free()
}

func (c *Conn) free() {
	c.once.Do(func() {
		close(c.done)
		if c.release != nil {
			c.release()
		}
	})
}
