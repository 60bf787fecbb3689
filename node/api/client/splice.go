package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/transport"
)

// What a program says to the local socket to be passed on to a quorum host.
const (
	SpliceName     = "Splice"
	SpliceProtocol = "fleet-splice"
)

// throughAgent stands among a client's addresses for the way through the agent
// of this host, and in its errors for what that said.
const throughAgent = "through this host's agent"

// directFirst is how long only the addresses of the credential are tried: where
// a firewall drops what goes there, nobody should wait for it to say so.
const directFirst = time.Second

// Splice opens a connection to the port of a quorum host that the agent
// chooses. The agent passes bytes on and takes no part: the caller has to
// check whom it speaks with.
func (l *Local) Splice(ctx context.Context) (_ net.Conn, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", l.socket)
	if err != nil {
		return nil, l.dialError(err)
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // the other error is the one that matters
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends what waits, which reports it
	defer stop()
	if _, err := fmt.Fprintf(conn, "POST %s%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n",
		PathPrefix, SpliceName, LocalHost, SpliceProtocol); err != nil {
		return nil, l.dialError(err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil) //nolint:bodyclose // the body is the connection, which goes on or is closed above
	if err != nil {
		return nil, l.dialError(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxError))
		if err != nil {
			return nil, l.dialError(err)
		}
		if res.StatusCode == http.StatusNotFound {
			return nil, fleet.Errorf(fleet.Unavailable, "the agent of this host is of a release that passes nobody on")
		}
		return nil, ParseError(res.StatusCode, b)
	}
	if !stop() {
		return nil, ctx.Err() // the deadline is being set
	}
	return readerConn{conn, r}, nil
}

// readerConn is a connection of which some bytes were read already.
type readerConn struct {
	net.Conn
	r *bufio.Reader
}

func (c readerConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// dialer opens the plain connection to one of a client's addresses.
func (c *Client) dialer(addr string) transport.DialFunc {
	if addr != throughAgent {
		return c.opts.Dial
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := c.opts.Agent.Splice(ctx)
		if err != nil {
			return nil, agentError{err}
		}
		return conn, nil
	}
}

// agentError is what the agent of this host says about passing a connection on.
type agentError struct{ error }

func (e agentError) Unwrap() error { return e.error }

// reached is a connection, or why there is none.
type reached struct {
	conn     *transport.Conn
	addr     string
	quorum   []string
	failures []dialFailure
}

// dialBoth tries the addresses and, when they have all failed or had a second,
// the agent of this host as well. The first to succeed counts; so does a quorum
// host's word that the operator may not enter.
func (c *Client) dialBoth(ctx context.Context, addresses []string) reached {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan reached, 2)
	open := 0
	try := func(list ...string) {
		open++
		go func() { answers <- c.dialEach(ctx, list) }()
	}
	defer func() {
		cancel()
		for range open {
			if late := <-answers; late.conn != nil {
				_ = late.conn.Close() // nobody asked anything over it
			}
		}
	}()
	try(addresses...)
	timer := time.NewTimer(directFirst)
	defer timer.Stop()
	asked := false
	var failures []dialFailure
	for open > 0 {
		select {
		case r := <-answers:
			open--
			if r.conn != nil || slices.ContainsFunc(r.failures, dialFailure.decided) {
				return r
			}
			failures = append(failures, r.failures...)
		case <-timer.C:
		}
		if !asked {
			asked = true
			try(throughAgent)
		}
	}
	return reached{failures: failures}
}
