package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// A host that holds no quorum identity does not answer operators. Where it was
// given Config.Splice it passes them on: a client that asks for the protocol
// fleet-api and the server name "quorum" is joined to a quorum host's port, and
// speaks TLS with that. This host presents no certificate, reads the
// ClientHello and nothing else (crypto/tls reads it, as of every client, before
// the protocol is known), and writes nothing of its own: neither an answer, nor
// an alert.

// errPassOn ends the handshake of a client that is passed on.
var errPassOn = errors.New("passed on to a quorum host")

// maxHello bounds what is kept of a client until it is known what it wants:
// crypto/tls refuses a ClientHello of more than 64 KiB.
const maxHello = 80 << 10

// helloConn keeps what is read of a client until the handshake has chosen who
// answers, so that another may.
type helloConn struct {
	net.Conn

	// Only the handshake's goroutine uses these.
	kept   []byte
	chosen bool // nothing more is kept
	mute   bool // what this host would say, an alert, is not said
}

func (c *helloConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.chosen {
		if len(c.kept)+n > maxHello {
			return 0, errPassOn // only what is no ClientHello is so long
		}
		c.kept = append(c.kept, b[:n]...)
	}
	return n, err
}

func (c *helloConn) Write(b []byte) (int, error) {
	if c.mute {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// answer is called in the handshake: this host answers the client.
func (c *helloConn) answer() { c.chosen, c.kept = true, nil }

// passes reports whether a client is for a quorum host that this is not.
func (t *Transport) passes(p Proto, name string) bool {
	return p == API && name == nameQuorum && t.cfg.Splice != nil && t.certificate(fleet.RoleQuorum) == nil
}

// pass joins a client to a quorum host until one of them ends, nothing passes
// for a while or ctx is done. Where there is no way on it is closed, unanswered.
func (t *Transport) pass(ctx context.Context, hello *helloConn, slot *slot) {
	defer slot.leave()
	defer hello.Close() //nolint:errcheck // the client sees it
	refused := func(err error) {
		t.refused.Add(1)
		t.refuse.connection(t.cfg.Now(), hello.RemoteAddr(), API, err)
	}
	if !t.passing.enter(slot.source) {
		refused(errOverLimit)
		return
	}
	defer t.passing.leave(slot.source)
	if !slot.identify(API, identity.Peer{}) {
		refused(errOverLimit)
		return
	}
	dialling, cancel := context.WithTimeout(ctx, t.cfg.Limits.Handshake)
	quorum, err := t.cfg.Splice(dialling)
	cancel()
	if err != nil {
		refused(err)
		return
	}
	defer quorum.Close() //nolint:errcheck // both ends see it
	if err := quorum.SetWriteDeadline(time.Now().Add(t.cfg.Limits.Handshake)); err != nil {
		return // it ended at once
	}
	if _, err := quorum.Write(hello.kept); err != nil {
		return
	}
	if err := quorum.SetWriteDeadline(time.Time{}); err != nil {
		return
	}
	t.accepted.Add(1)
	Splice(ctx, hello.Conn, quorum, SpliceIdle)
}

// Bounds of the operators that are passed on at once, who hold two connections
// each and have shown nothing here: in all, and from one address, so that a
// single stranger does not keep everybody else out.
const (
	maxPassed   = 32
	maxPassedOf = maxPassed / 2
)

// passages counts who is passed on, by address.
type passages struct {
	mu  sync.Mutex // guards the rest
	all int
	of  map[netip.Addr]int
}

func (p *passages) enter(source netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= maxPassed || p.of[source] >= maxPassedOf {
		return false
	}
	p.all++
	p.of[source]++
	return true
}

func (p *passages) leave(source netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	drop(p.of, source)
}

// SpliceIdle ends a splice over which nothing passes: longer than the quorum
// keeps an idle operator, so that it is the one to end it.
const SpliceIdle = 3 * time.Minute

// Splice passes bytes both ways until one side ends, nothing passes for so long
// or ctx is done, and closes both. (TLS has its own farewell: a side that has
// ended will not read either.)
func Splice(ctx context.Context, a, b net.Conn, idle time.Duration) {
	end := sync.OnceFunc(func() {
		// Whoever is left sees it; who has gone is the reason.
		_ = a.Close()
		_ = b.Close()
	})
	defer end()
	stop := context.AfterFunc(ctx, end)
	defer stop()
	quiet := time.AfterFunc(idle, end)
	defer quiet.Stop()
	var ways sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer end()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				quiet.Reset(idle)
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	ways.Go(func() { pass(a, b) })
	ways.Go(func() { pass(b, a) })
	ways.Wait()
}
