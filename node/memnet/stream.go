package memnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// conn is one end of a stream. What it reads was put into its queue by the
// other end.
type conn struct {
	net           *Network
	host          *Host
	local, remote netip.AddrPort
	peer          *conn

	// Guarded by net.mu.
	in            []segment
	inSize        int   // bytes in the queue
	err           error // why the end is unusable; nil while it is open
	silent        bool  // it failed without telling the peer: its host went down
	readDeadline  time.Time
	writeDeadline time.Time
	changed       chan struct{}
}

// segment is a piece of a stream on its way.
type segment struct {
	data []byte
	fin  bool // the sender closed; nothing follows
	due  time.Time
	held bool // the way was cut when it was sent
}

// arrivedLocked reports whether the first segment can be read, and if not,
// when that will be (zero: when something changes).
func (c *conn) arrivedLocked() (bool, time.Time) {
	due := c.in[0].due
	since, cut := c.net.cuts[path{c.remote.Addr(), c.local.Addr()}]
	switch {
	case cut && (c.in[0].held || due.After(since)): // it had not arrived when the cut came
		return false, time.Time{}
	case time.Now().Before(due):
		return false, due
	}
	return true, time.Time{}
}

// Read reads what has arrived, and waits if nothing has.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	if err != nil && err != io.EOF {
		err = c.opError("read", err)
	}
	return n, err
}

func (c *conn) read(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		if c.err != nil {
			return 0, c.err
		}
		if passed(c.readDeadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if len(b) == 0 {
			return 0, nil
		}
		var due time.Time
		if len(c.in) > 0 {
			var arrived bool
			if arrived, due = c.arrivedLocked(); arrived {
				return c.takeLocked(b)
			}
		}
		c.net.waitLocked(c.changed, nil, c.readDeadline, due)
	}
}

// takeLocked copies from the segments that have arrived and makes room for the
// writer.
func (c *conn) takeLocked(b []byte) (int, error) {
	if c.in[0].fin {
		return 0, io.EOF
	}
	total := 0
	for total < len(b) && len(c.in) > 0 && !c.in[0].fin {
		if arrived, _ := c.arrivedLocked(); !arrived {
			break
		}
		n := copy(b[total:], c.in[0].data)
		total += n
		if c.in[0].data = c.in[0].data[n:]; len(c.in[0].data) == 0 {
			c.in = c.in[1:]
		}
	}
	c.inSize -= total
	wakeLocked(&c.peer.changed)
	return total, nil
}

// Write hands bytes to the network and waits while the window is full.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	if err != nil {
		err = c.opError("write", err)
	}
	return n, err
}

func (c *conn) write(b []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	written := 0
	for {
		if c.err != nil {
			return written, c.err
		}
		if passed(c.writeDeadline) {
			return written, os.ErrDeadlineExceeded
		}
		if c.peer.err != nil && !c.peer.silent && c.pathOpenLocked() {
			return written, syscall.EPIPE
		}
		if room := window - c.peer.inSize; room > 0 && len(b) > 0 {
			k := min(room, len(b))
			c.sendLocked(segment{data: append([]byte(nil), b[:k]...)})
			b, written = b[k:], written+k
		}
		if len(b) == 0 {
			return written, nil
		}
		c.net.waitLocked(c.changed, nil, c.writeDeadline)
	}
}

func (c *conn) pathOpenLocked() bool {
	from, to := c.local.Addr(), c.remote.Addr()
	return c.net.openLocked(from, to) && c.net.openLocked(to, from)
}

func (c *conn) sendLocked(s segment) {
	_, s.held = c.net.cuts[path{c.local.Addr(), c.remote.Addr()}]
	s.due = time.Now().Add(c.net.latency)
	if k := len(c.peer.in); k > 0 && c.peer.in[k-1].due.After(s.due) {
		s.due = c.peer.in[k-1].due // a stream keeps its order
	}
	c.peer.in = append(c.peer.in, s)
	c.peer.inSize += len(s.data)
	c.net.stats.StreamBytes += len(s.data)
	wakeLocked(&c.peer.changed)
}

// Close ends this end; the other reads what is on its way and then io.EOF.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.err != nil {
		if c.err == net.ErrClosed {
			return c.opError("close", net.ErrClosed)
		}
		c.err = net.ErrClosed // it was reset: closing it is in order
		return nil
	}
	c.sendLocked(segment{fin: true})
	c.failLocked(net.ErrClosed)
	return nil
}

// failLocked makes this end unusable.
func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	delete(c.net.conns, c)
	wakeLocked(&c.changed)
	wakeLocked(&c.peer.changed)
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr is the address of this end.
func (c *conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is the address of the other end.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines; zero removes them.
func (c *conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, true, true) }

// SetReadDeadline ends a Read that waits when t comes.
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, true, false) }

// SetWriteDeadline ends a Write that waits when t comes.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *conn) setDeadlines(t time.Time, read, write bool) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.err != nil {
		return c.opError("set", c.err)
	}
	if read {
		c.readDeadline = t
	}
	if write {
		c.writeDeadline = t
	}
	wakeLocked(&c.changed)
	return nil
}
