package transport

import (
	"net"
	"sync"
)

// listenBacklog is how many connections of a protocol wait to be accepted;
// more are closed.
const listenBacklog = 64

// Listener yields the connections of one protocol, each a *Conn. While a
// protocol has no listener the port refuses it. Closing the listener detaches
// it; after that Listener gives a new one. Its Accept fails with net.ErrClosed
// once it or the transport is closed.
func (t *Transport) Listener(p Proto) net.Listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.listeners[p]; l != nil {
		return l
	}
	l := &listener{t: t, proto: p, conns: make(chan *Conn, listenBacklog), closed: make(chan struct{})}
	t.listeners[p] = l
	return l
}

func (t *Transport) attached(p Proto) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.listeners[p] != nil
}

// yield hands a connection to its listener; false if that is full or gone.
// It sends under the lock, so that nothing slips into a listener after drain.
func (t *Transport) yield(c *Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.done:
		return false
	default:
	}
	l := t.listeners[c.Proto]
	if l == nil {
		return false
	}
	select {
	case l.conns <- c:
		return true
	default:
		return false
	}
}

type listener struct {
	t     *Transport
	proto Proto
	conns chan *Conn

	once   sync.Once
	closed chan struct{} // closed by Close
}

// Accept waits for the next *Conn.
func (l *listener) Accept() (net.Conn, error) {
	select { // a closed listener yields nothing, even if something waits
	case <-l.closed:
		return nil, l.errClosed()
	case <-l.t.done:
		return nil, l.errClosed()
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
	case <-l.t.done:
	}
	return nil, l.errClosed()
}

func (l *listener) errClosed() error {
	return &net.OpError{Op: "accept", Net: string(l.proto), Addr: l.Addr(), Err: net.ErrClosed}
}

// Close detaches the listener and closes what it has not yielded.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.t.mu.Lock()
		if l.t.listeners[l.proto] == l {
			delete(l.t.listeners, l.proto)
		}
		l.t.mu.Unlock()
		l.drain()
	})
	return nil
}

// drain throws away what waits. Nothing can be added any more: the listener is
// detached or the transport is closed. The lock must not be held, because
// aborting a connection takes it.
func (l *listener) drain() {
	for {
		select {
		case c := <-l.conns:
			c.abort()
		default:
			return
		}
	}
}

// Addr is the address of the port.
func (l *listener) Addr() net.Addr { return l.t.Addr() }
