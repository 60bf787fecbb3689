package api

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/transport"
)

// An operator on a host that is not of the quorum reaches a quorum host through
// the local socket: POST /v1/Splice with "Upgrade: fleet-splice" is answered
// 101, and from then on bytes pass both ways unread. What is spoken is the
// protocol fleet-api, end to end: the operator's program checks the quorum
// host's certificate, the quorum host the operator's proof, which is bound to
// their TLS connection. This host asserts nobody's identity and reads nothing
// but sizes and times; it can drop and delay.

const (
	// maxSplices leaves half of the local socket's connections to who only asks
	// how this host is.
	maxSplices = maxLocalConns / 2

	spliceDialTimeout = 10 * time.Second
)

// splicer serves the splices of one local socket.
type splicer struct {
	ctx   context.Context // ends them
	dial  func(context.Context) (net.Conn, error)
	slots chan struct{}
	open  sync.WaitGroup
	log   *slog.Logger
}

func (s *splicer) serve(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), client.SpliceProtocol) || r.ContentLength != 0 {
		writeError(w, fleet.Errorf(fleet.Invalid, "%s is for connections that change to %s", client.SpliceName, client.SpliceProtocol))
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		writeError(w, fleet.Errorf(fleet.Throttled, "%d operators are connected through this host's agent already", maxSplices).
			WithHint("wait until one of them is done"))
		return
	}
	s.open.Add(1) // the server waits for nobody whose connection was taken over
	defer s.open.Done()
	ctx, cancel := context.WithTimeout(s.ctx, spliceDialTimeout)
	quorum, err := s.dial(ctx)
	cancel()
	if err != nil {
		writeError(w, err)
		return
	}
	defer quorum.Close() //nolint:errcheck // both ends see it
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, err)
		return
	}
	defer conn.Close() //nolint:errcheck // both ends see it
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return // the client has gone
	}
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + client.SpliceProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return // the client has gone
	}
	s.log.Debug("operator passed on to the quorum", "addr", quorum.RemoteAddr())
	transport.Splice(s.ctx, readerConn{conn, buffered.Reader}, quorum, transport.SpliceIdle)
}

// readerConn is a connection of which some bytes were read already.
type readerConn struct {
	net.Conn
	r *bufio.Reader
}

func (c readerConn) Read(b []byte) (int, error) { return c.r.Read(b) }
