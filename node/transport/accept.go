package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// Pauses after an accept that failed for want of file descriptors or memory.
const (
	firstPause = 5 * time.Millisecond
	longPause  = time.Second
)

func (t *Transport) acceptLoop(ctx context.Context, handshakes *sync.WaitGroup) error {
	pause := firstPause
	for {
		raw, err := t.cfg.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			t.cfg.Logger.Error("accept failed", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, longPause)
			continue
		}
		pause = firstPause
		slot := t.limits.enter(raw.RemoteAddr())
		if slot == nil {
			t.refused.Add(1)
			_ = raw.Close() // nothing was said yet
			continue
		}
		handshakes.Go(func() { t.serve(ctx, raw, slot) })
	}
}

// serve takes one connection through its handshake to its listener.
func (t *Transport) serve(ctx context.Context, raw net.Conn, slot *slot) {
	running := ctx
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Limits.Handshake)
	defer cancel()
	hello := &helloConn{Conn: raw}
	h := &handshake{t: t, hello: hello}
	conn := tls.Server(hello, &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Time:                   t.cfg.Now,
		GetConfigForClient:     h.configure,
	})
	err := conn.HandshakeContext(ctx)
	if hello.mute {
		t.pass(running, hello, slot)
		return
	}
	if err != nil {
		t.failed.Add(1)
		t.refuse.connection(t.cfg.Now(), raw.RemoteAddr(), h.proto, err)
		slot.leave()
		_ = raw.Close() // the handshake's error is the one that counts
		return
	}
	c := newConn(conn, h.peer, h.proto)
	c.release = func() { t.untrack(c); slot.leave() }
	t.track(c)
	if !slot.identify(c.Proto, c.Peer) || !t.yield(c) {
		t.refused.Add(1)
		t.refuse.connection(t.cfg.Now(), raw.RemoteAddr(), h.proto, errOverLimit)
		c.abort()
		return
	}
	t.accepted.Add(1)
}

var (
	errOverLimit = errors.New("over a limit of connections")
	errProtocols = fleet.Errorf(fleet.Invalid, "a client must offer exactly one protocol")
)

// handshake is what is learnt about a connection while it is set up.
type handshake struct {
	t     *Transport
	hello *helloConn
	proto Proto
	peer  identity.Peer
}

// configure answers a ClientHello: it chooses the identity to present and what
// is demanded of the client. Refusals that a stranger may know of are told by
// the alert "no application protocol".
func (h *handshake) configure(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if len(hello.SupportedProtos) == 1 && h.t.passes(Proto(hello.SupportedProtos[0]), hello.ServerName) {
		h.hello.mute = true
		return nil, errPassOn
	}
	h.hello.answer()
	if len(hello.SupportedProtos) != 1 {
		return nil, errProtocols
	}
	p := Proto(hello.SupportedProtos[0])
	r, known := table[p]
	var cert *tls.Certificate
	if known && h.t.attached(p) {
		cert = r.choose(hello.ServerName, h.t.cfg.Fleet, h.t.certificate)
	}
	if cert == nil {
		return refuseProtocol(h.t.cfg.Now), nil
	}
	h.proto = p
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Time:                   h.t.cfg.Now,
		NextProtos:             []string{string(p)},
		Certificates:           []tls.Certificate{*cert},
		VerifyConnection:       func(cs tls.ConnectionState) error { return h.verify(r, cs) },
	}
	if len(r.clients) > 0 {
		cfg.ClientAuth = tls.RequireAnyClientCert // verify does the rest
	}
	return cfg, nil
}

// refuseProtocol is a configuration that agrees with no client: crypto/tls
// answers it with the fitting alert and an error, which an error of ours from
// GetConfigForClient would turn into "internal error".
func refuseProtocol(now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Time:                   now,
		NextProtos:             []string{"none"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return nil, errProtocols // not reached: the protocols never agree
		},
	}
}

func (h *handshake) verify(r rule, cs tls.ConnectionState) error {
	if Proto(cs.NegotiatedProtocol) != h.proto {
		return errProtocols
	}
	if len(r.clients) == 0 {
		if len(cs.PeerCertificates) != 0 {
			return fleet.Errorf(fleet.Denied, "a certificate on %s, which has none", h.proto)
		}
		return nil
	}
	peer, err := identity.VerifyChain(cs.PeerCertificates, h.t.cfg.Fleet, h.t.cfg.Now())
	if err != nil {
		return err
	}
	if !slices.Contains(r.clients, peer.Role) {
		return fleet.Errorf(fleet.Denied, "the %s identity of %s may not open %s", peer.Role, peer.Node, h.proto)
	}
	if err := h.t.admit(h.proto, peer); err != nil {
		return err
	}
	h.peer = peer
	return nil
}
