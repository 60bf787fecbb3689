package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// bubble runs a test in fake time. It also fails when a goroutine of a client
// or server is left behind.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// answering starts a server at B that answers ReadIndex at once and never
// answers CoSign, and a client of it.
func answering(t *testing.T) (n *lan, c *Client, stop func()) {
	n = &lan{}
	stop = serve(t, answeringServer(), n.listen(atB))
	return n, closing(t, NewClient(n.dialAs(voter))), stop
}

func answeringServer() *Server {
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodReadIndex, func(context.Context, identity.Peer, *Empty) (*ReadIndexResponse, error) {
		return &ReadIndexResponse{Index: 1}, nil
	})
	Handle(s, MethodCoSign, func(ctx context.Context, _ identity.Peer, _ *CoSignRequest) (*CoSignResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	return s
}

// quick makes a call that must succeed.
func quick(t *testing.T, c *Client) {
	t.Helper()
	if _, err := Call[Empty, ReadIndexResponse](t.Context(), c, atB, MethodReadIndex, &Empty{}); err != nil {
		t.Errorf("ReadIndex: %v", err)
	}
}

// hang makes the call that is never answered.
func hang(ctx context.Context, c *Client) error {
	_, err := Call[CoSignRequest, CoSignResponse](ctx, c, atB, MethodCoSign, &CoSignRequest{Command: noCommand})
	return err
}

func TestDeadlines(t *testing.T) {
	bubble(t, "the method's", func(t *testing.T) {
		_, c, _ := answering(t)
		start := time.Now()
		if err := hang(t.Context(), c); fleet.KindOf(err) != fleet.Unknown {
			t.Errorf("got %v, want unknown outcome", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("ended after %v, want 10s", took)
		}
	})
	bubble(t, "the caller's", func(t *testing.T) {
		_, c, _ := answering(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := hang(ctx, c); fleet.KindOf(err) != fleet.Unknown || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want unknown outcome because of the deadline", err)
		}
		quick(t, c)
	})
	bubble(t, "the server's, when the caller sends no body", func(t *testing.T) {
		n := &lan{}
		s := NewServer(quiet(), Methods, peerOf)
		ended := make(chan error, 1)
		HandleStream(s, MethodPutBlob, func(_ context.Context, _ identity.Peer, _ []byte, body io.Reader, _ io.Writer) error {
			_, err := io.Copy(io.Discard, body)
			ended <- err
			return err
		})
		serve(t, s, n.listen(atB))
		patient := []Method{{Name: MethodPutBlob, Roles: fromAgents, InFlightPerPeer: 1, Timeout: 24 * time.Hour, Stream: true}}
		slow := closing(t, newClient(patient, n.dialAs(agent)))
		body, w := io.Pipe()
		start := time.Now()
		_, err := CallStream(t.Context(), slow, atB, MethodPutBlob, BlobHead{}, body)
		if took := time.Since(start); fleet.KindOf(err) != fleet.Unknown || took != 10*time.Minute {
			t.Errorf("ended after %v with %v, want unknown outcome after 10m", took, err)
		}
		if err := <-ended; err == nil {
			t.Error("the handler saw a whole body")
		}
		w.Close()
	})
}

func TestStop(t *testing.T) {
	bubble(t, "a running call is broken off after the grace", func(t *testing.T) {
		_, c, stop := answering(t)
		var group sync.WaitGroup
		group.Go(func() {
			if err := hang(t.Context(), c); fleet.KindOf(err) != fleet.Unknown && fleet.KindOf(err) != fleet.Unavailable {
				t.Errorf("got %v, want unknown outcome or unavailable", err)
			}
		})
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took > 2*stopGrace {
			t.Errorf("stopping took %v", took)
		}
		group.Wait()
	})
	bubble(t, "a call that ends in the grace is answered", func(t *testing.T) {
		n := &lan{}
		s := NewServer(quiet(), Methods, peerOf)
		Handle(s, MethodApplied, func(context.Context, identity.Peer, *Empty) (*AppliedResponse, error) {
			time.Sleep(time.Second)
			return &AppliedResponse{Index: 9, Time: 1795300000000000000}, nil
		})
		stop := serve(t, s, n.listen(atB))
		c := closing(t, NewClient(n.dialAs(voter)))
		var group sync.WaitGroup
		group.Go(func() {
			resp, err := Call[Empty, AppliedResponse](t.Context(), c, atB, MethodApplied, &Empty{})
			if err != nil || resp.Index != 9 {
				t.Errorf("got %v, %v; want index 9", resp, err)
			}
		})
		synctest.Wait()
		stop()
		group.Wait()
	})
	bubble(t, "Client.Close breaks off calls and dials", func(t *testing.T) {
		n, c, _ := answering(t)
		silent := Target{nodeA, fleet.RoleQuorum}
		n.listen(silent) // yields no connection: the dial hangs
		var group sync.WaitGroup
		group.Go(func() {
			if err := hang(t.Context(), c); fleet.KindOf(err) != fleet.Unknown {
				t.Errorf("running call: %v, want unknown outcome", err)
			}
		})
		group.Go(func() {
			_, err := Call[Empty, ReadIndexResponse](t.Context(), c, silent, MethodReadIndex, &Empty{})
			if fleet.KindOf(err) != fleet.Unavailable {
				t.Errorf("call that dials: %v, want unavailable", err)
			}
		})
		synctest.Wait()
		c.Close()
		group.Wait()
		if err := hang(t.Context(), c); fleet.KindOf(err) != fleet.Unavailable {
			t.Errorf("call after Close: %v, want unavailable", err)
		}
	})
}

func TestConnections(t *testing.T) {
	bubble(t, "idle one is closed and replaced", func(t *testing.T) {
		n, c, _ := answering(t)
		quick(t, c)
		time.Sleep(connIdle - time.Second)
		quick(t, c)
		if got := n.dialled(); got != 1 {
			t.Errorf("%d dials before it was idle for long, want 1", got)
		}
		time.Sleep(connIdle + time.Second)
		synctest.Wait()
		if len(c.conns) != 0 || len(c.all) != 0 {
			t.Errorf("the idle connection is still kept: %v", c.conns)
		}
		quick(t, c)
		if got := n.dialled(); got != 2 {
			t.Errorf("%d dials, want 2", got)
		}
	})
	bubble(t, "a restarted server is found again without an error", func(t *testing.T) {
		n, c, stop := answering(t)
		quick(t, c)
		stop()
		serve(t, answeringServer(), n.listen(atB))
		quick(t, c)
	})
	bubble(t, "no answer from nobody", func(t *testing.T) {
		n := &lan{}
		c := closing(t, NewClient(n.dialAs(voter)))
		call := func(ctx context.Context) error {
			_, err := Call[Empty, ReadIndexResponse](ctx, c, atB, MethodReadIndex, &Empty{})
			return err
		}
		if err := call(t.Context()); fleet.KindOf(err) != fleet.Unavailable {
			t.Errorf("refused: %v, want unavailable", err)
		}
		n.listen(atB) // yields no connection
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := call(ctx); fleet.KindOf(err) != fleet.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller's deadline: %v, want unavailable because of it", err)
		}
		start := time.Now()
		if err := call(t.Context()); fleet.KindOf(err) != fleet.Unavailable || time.Since(start) > dialTimeout {
			t.Errorf("dial: %v after %v, want unavailable within %v", err, time.Since(start), dialTimeout)
		}
	})
	bubble(t, "a silent one is noticed by ping and the call made again on another", func(t *testing.T) {
		n := &lan{}
		serve(t, answeringServer(), n.listen(atB))
		var dead atomic.Bool
		first := true
		dial := n.dialAs(voter)
		table := make([]Method, len(Methods)) // with a timeout longer than it takes to notice
		for i, m := range Methods {
			m.Timeout = time.Hour
			table[i] = m
		}
		c := closing(t, newClient(table, func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
			conn, err := dial(ctx, node, role)
			if err == nil && first {
				first = false
				conn = cutConn{conn, &dead}
			}
			return conn, err
		}))
		quick(t, c)
		dead.Store(true)
		start := time.Now()
		quick(t, c)
		if took := time.Since(start); took == 0 || took > pingAfter+pingTimeout+time.Second {
			t.Errorf("took %v", took)
		}
	})
	bubble(t, "the least recently used gives way", func(t *testing.T) {
		n := &lan{}
		c := closing(t, NewClient(n.dialAs(voter)))
		target := func(i int) Target {
			const digits = "0123456789abcdef"
			id := []byte("mi-00000000000000000")
			for p := len(id) - 1; i > 0; p, i = p-1, i/16 {
				id[p] = digits[i%16]
			}
			return Target{fleet.NodeID(id), fleet.RoleQuorum}
		}
		call := func(i int) {
			t.Helper()
			if _, err := Call[Empty, ReadIndexResponse](t.Context(), c, target(i), MethodReadIndex, &Empty{}); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		for i := range maxConns + 10 {
			serve(t, answeringServer(), n.listen(target(i)))
			call(i)
		}
		synctest.Wait()
		if len(c.conns) != maxConns || len(c.all) != maxConns {
			t.Errorf("%d connections, %d open: want %d", len(c.conns), len(c.all), maxConns)
		}
		for i, want := range map[int]bool{0: false, 9: false, 10: true, maxConns + 9: true} {
			if _, kept := c.conns[target(i)]; kept != want {
				t.Errorf("connection %d is kept: %v, want %v", i, kept, want)
			}
		}
	})
}

// cutConn is a connection on which, once dead, nothing arrives any more.
type cutConn struct {
	net.Conn
	dead *atomic.Bool
}

func (c cutConn) Write(b []byte) (int, error) {
	if c.dead.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c cutConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.dead.Load() {
			return n, err
		}
	}
}

// TestManyCalls lets callers race for one connection, with some that give up.
func TestManyCalls(t *testing.T) {
	n, c, _ := answering(t)
	var group sync.WaitGroup
	for i := range 300 {
		group.Go(func() {
			if i%10 == 0 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				_ = hang(ctx, c) // throttled or cut off: both are fine here
				return
			}
			for {
				_, err := Call[Empty, ReadIndexResponse](t.Context(), c, atB, MethodReadIndex, &Empty{})
				if fleet.KindOf(err) == fleet.Throttled && err != nil {
					continue
				}
				if err != nil {
					t.Errorf("call %d: %v", i, err)
				}
				return
			}
		})
	}
	group.Wait()
	if got := n.dialled(); got > 3 {
		t.Errorf("%d connections, want few", got)
	}
}
