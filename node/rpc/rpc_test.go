package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// lan connects clients and servers of a test through net.Pipe and tells each
// server who called.
type lan struct {
	mu      sync.Mutex
	servers map[Target]*pipeListener
	dials   int
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// knownConn is a connection with its authenticated peer, as transport.Conn is.
type knownConn struct {
	net.Conn
	peer identity.Peer
}

func peerOf(c net.Conn) (identity.Peer, bool) {
	k, ok := c.(knownConn)
	return k.peer, ok
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (n *lan) listen(t Target) *pipeListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	if n.servers == nil {
		n.servers = map[Target]*pipeListener{}
	}
	n.servers[t] = l
	return l
}

// dialAs is the dial function of a client that shows the given identity.
func (n *lan) dialAs(peer identity.Peer) func(context.Context, fleet.NodeID, fleet.Role) (net.Conn, error) {
	return func(ctx context.Context, node fleet.NodeID, role fleet.Role) (net.Conn, error) {
		n.mu.Lock()
		l := n.servers[Target{node, role}]
		n.dials++
		n.mu.Unlock()
		if l == nil {
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		select {
		case l.conns <- knownConn{theirs, peer}:
			return ours, nil
		case <-l.closed:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (n *lan) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

var (
	nodeA = fleet.NodeID("mi-0000000000000000a")
	nodeB = fleet.NodeID("mi-0000000000000000b")
	agent = identity.Peer{Role: fleet.RoleAgent, Node: nodeA}
	voter = identity.Peer{Role: fleet.RoleQuorum, Node: nodeA}
	atB   = Target{nodeB, fleet.RoleQuorum}
)

const noCommand = fleet.CommandID("00000000-0000-0000-0000-000000000000")

// serve runs a server until the test ends or stop is called.
func serve(t *testing.T, s *Server, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func closing(t *testing.T, c *Client) *Client {
	t.Cleanup(func() { c.Close() })
	return c
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestCall(t *testing.T) {
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodReadIndex, func(_ context.Context, peer identity.Peer, _ *Empty) (*ReadIndexResponse, error) {
		if peer.Node != nodeA || peer.Role != fleet.RoleQuorum {
			return nil, fleet.Errorf(fleet.Denied, "peer is %v", peer)
		}
		return &ReadIndexResponse{Index: 42}, nil
	})
	serve(t, s, n.listen(atB))
	c := closing(t, NewClient(n.dialAs(voter)))
	for range 3 {
		resp, err := Call[Empty, ReadIndexResponse](t.Context(), c, atB, MethodReadIndex, &Empty{})
		if err != nil || resp.Index != 42 {
			t.Fatalf("got %+v, %v; want index 42", resp, err)
		}
	}
	if got := n.dialled(); got != 1 {
		t.Errorf("%d connections for 3 calls, want 1", got)
	}
}

// TestRoles walks the table with every role a peer could have: the outcome is
// the table's, and no handler is reached that the table does not allow.
func TestRoles(t *testing.T) {
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	var reached atomic.Int32
	for _, m := range Methods {
		if m.Stream {
			HandleStream(s, m.Name, func(context.Context, identity.Peer, []byte, io.Reader, io.Writer) error {
				reached.Add(1)
				return nil
			})
			continue
		}
		Handle(s, m.Name, func(context.Context, identity.Peer, *Empty) (*Empty, error) {
			reached.Add(1)
			return &Empty{}, nil
		})
	}
	serve(t, s, n.listen(atB))
	for _, role := range []fleet.Role{fleet.RoleNone, fleet.RoleAgent, fleet.RoleQuorum, fleet.RoleIssuer, 77} {
		c := closing(t, NewClient(n.dialAs(identity.Peer{Role: role, Node: nodeA})))
		for _, m := range Methods {
			reached.Store(0)
			var err error
			if m.Stream {
				var r io.ReadCloser
				if r, err = CallStream(t.Context(), c, atB, m.Name, BlobHead{}, nil); err == nil {
					r.Close()
				}
			} else {
				_, err = Call[Empty, Empty](t.Context(), c, atB, m.Name, &Empty{})
			}
			want := false
			for _, r := range m.Roles {
				want = want || r == role
			}
			if want != (err == nil) || want != (reached.Load() == 1) {
				t.Errorf("%s as %s: error %v, handler reached %d times; the table allows it: %v", m.Name, role, err, reached.Load(), want)
			}
			if !want && fleet.KindOf(err) != fleet.Denied {
				t.Errorf("%s as %s: %v, want denied", m.Name, role, err)
			}
		}
	}
}

func TestNotServed(t *testing.T) {
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	serve(t, s, n.listen(atB))
	more := append([]Method{{"ReadRootKey", fromQuorum, 1, 1, 1, time.Second, false}}, Methods...)
	c := closing(t, newClient(more, n.dialAs(voter)))
	for _, name := range []string{MethodApplied, "ReadRootKey"} {
		if _, err := Call[Empty, Empty](t.Context(), c, atB, name, &Empty{}); fleet.KindOf(err) != fleet.NotFound {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
}

func TestRegistrationPanics(t *testing.T) {
	ok := func(context.Context, identity.Peer, *Empty) (*Empty, error) { return &Empty{}, nil }
	for _, c := range []struct {
		name string
		do   func(s *Server)
	}{
		{"not in the table", func(s *Server) { Handle(s, "Backdoor", ok) }},
		{"twice", func(s *Server) { Handle(s, MethodApplied, ok); Handle(s, MethodApplied, ok) }},
		{"stream as call", func(s *Server) { Handle(s, MethodGetBlob, ok) }},
		{"table with a name twice", func(*Server) { byName(append([]Method{Methods[0]}, Methods...)) }},
		{"table without a role", func(*Server) {
			byName([]Method{{Name: "X", MaxRequest: 1, MaxResponse: 1, InFlightPerPeer: 1, Timeout: 1}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			c.do(NewServer(quiet(), Methods, peerOf))
		})
	}
}

func TestErrorsCross(t *testing.T) {
	cause := errors.New("secret detail")
	var report error
	n := &lan{}
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodForward, func(context.Context, identity.Peer, *ForwardRequest) (*ForwardResponse, error) { return nil, report })
	serve(t, s, n.listen(atB))
	c := closing(t, NewClient(n.dialAs(voter)))
	for _, test := range []struct {
		name   string
		report error
		want   fleet.Error
	}{
		{"kind, code and hint", fleet.CodeErrorf(fleet.Invalid, "InvalidInstanceId", "no node mi-x").WithHint("fleet node ls"),
			fleet.Error{Kind: fleet.Invalid, Code: "InvalidInstanceId", Message: "no node mi-x", Hint: "fleet node ls"}},
		{"wrapped", fmt.Errorf("apply: %w", fleet.Errorf(fleet.Conflict, "exists")), fleet.Error{Kind: fleet.Conflict, Message: "exists"}},
		{"detail stays", &fleet.Error{Kind: fleet.Corrupt, Message: "damaged", Err: cause},
			fleet.Error{Kind: fleet.Corrupt, Message: "damaged"}},
		{"plain", cause, fleet.Error{Kind: fleet.Other, Message: "internal error; the peer's log has the detail"}},
		{"terminal codes", fleet.Errorf(fleet.Invalid, "a\x1b[2J\nb\u202ec\xff"),
			fleet.Error{Kind: fleet.Invalid, Message: `a\x1b[2J\nb\u202ec\xff`}},
		{"long", fleet.Errorf(fleet.Invalid, "%s", strings.Repeat("x", 5000)),
			fleet.Error{Kind: fleet.Invalid, Message: strings.Repeat("x", maxErrorText-3) + "…"}},
		{"no text", &fleet.Error{Kind: fleet.NoQuorum}, fleet.Error{Kind: fleet.NoQuorum, Message: "no quorum"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			report = test.report
			_, err := Call[ForwardRequest, ForwardResponse](t.Context(), c, atB, MethodForward, &ForwardRequest{Operation: "X"})
			var got *fleet.Error
			if !errors.As(err, &got) {
				t.Fatalf("got %v, which is no fleet.Error", err)
			}
			if *got != test.want {
				t.Errorf("got  %+v\nwant %+v", *got, test.want)
			}
			if strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("the detail crossed: %v", err)
			}
		})
	}
	if e := (errorBody{Kind: 200}).toError(); e.Kind != fleet.Other {
		t.Errorf("kind 200 became %v, want internal", e.Kind)
	}
}

func TestLimits(t *testing.T) {
	table := []Method{
		{Name: "Small", Roles: fromQuorum, MaxRequest: 32, MaxResponse: 32, InFlightPerPeer: 1, Timeout: time.Minute},
		{Name: "Sink", Roles: fromQuorum, MaxRequest: 1000, MaxResponse: 10, InFlightPerPeer: 1, Timeout: time.Minute, Stream: true},
		{Name: "Source", Roles: fromQuorum, MaxRequest: 0, MaxResponse: 1000, InFlightPerPeer: 1, Timeout: time.Minute, Stream: true},
	}
	loose := make([]Method, len(table)) // what a client believes that does not keep the limits
	for i, m := range table {
		m.MaxRequest, m.MaxResponse = 1<<20, 1<<20
		loose[i] = m
	}
	n := &lan{}
	s := NewServer(quiet(), table, peerOf)
	type text struct {
		S string `msgpack:"s"`
		N int    `msgpack:"n"` // bytes wanted back
	}
	Handle(s, "Small", func(_ context.Context, _ identity.Peer, r *text) (*text, error) {
		return &text{S: strings.Repeat("y", r.N)}, nil
	})
	HandleStream(s, "Sink", func(_ context.Context, _ identity.Peer, _ []byte, body io.Reader, _ io.Writer) error {
		_, err := io.Copy(io.Discard, body)
		return err
	})
	HandleStream(s, "Source", func(_ context.Context, _ identity.Peer, head []byte, _ io.Reader, w io.Writer) error {
		var r text
		if err := decodeBody(head, &r); err != nil {
			return err
		}
		for range r.N {
			if _, err := w.Write([]byte{'z'}); err != nil {
				return err
			}
		}
		return nil
	})
	serve(t, s, n.listen(atB))
	c := closing(t, newClient(loose, n.dialAs(voter)))
	strict := closing(t, newClient(table, n.dialAs(voter)))
	wary := closing(t, newClient([]Method{{"Source", fromQuorum, 0, 999, 1, time.Minute, true}}, n.dialAs(voter)))

	unary := func(c *Client, r text) error {
		_, err := Call[text, text](t.Context(), c, atB, "Small", &r)
		return err
	}
	sink := func(size int) error {
		r, err := CallStream(t.Context(), c, atB, "Sink", text{}, strings.NewReader(strings.Repeat("x", size)))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		return err
	}
	source := func(c *Client, size int) error {
		r, err := CallStream(t.Context(), c, atB, "Source", text{N: size}, nil)
		if err != nil {
			return err
		}
		defer r.Close()
		got, err := io.Copy(io.Discard, r)
		if err == nil && int(got) != size {
			return fmt.Errorf("got %d bytes", got)
		}
		return err
	}
	for _, test := range []struct {
		name string
		err  error
		want fleet.Kind
		ok   bool
	}{
		{"fits", unary(c, text{S: "x", N: 5}), 0, true},
		{"request over the limit", unary(c, text{S: strings.Repeat("x", 100)}), fleet.TooLarge, false},
		{"request over the limit, refused by the client", unary(strict, text{S: strings.Repeat("x", 100)}), fleet.TooLarge, false},
		{"answer over the limit", unary(c, text{N: 100}), fleet.Other, false},
		{"stream body that fits exactly", sink(1000), 0, true},
		{"stream body one over", sink(1001), fleet.TooLarge, false},
		{"stream body far over", sink(1 << 20), fleet.TooLarge, false},
		{"stream answer that fits exactly", source(c, 1000), 0, true},
		{"stream answer one over is broken off", source(c, 1001), fleet.Unknown, false},
		{"stream answer over what the client takes", source(wary, 1000), fleet.TooLarge, false},
		{"head over the limit", func() error {
			_, err := CallStream(t.Context(), c, atB, "Sink", text{S: strings.Repeat("x", 2000)}, nil)
			return err
		}(), fleet.TooLarge, false},
	} {
		if (test.err == nil) != test.ok || !test.ok && fleet.KindOf(test.err) != test.want {
			t.Errorf("%s: %v, want kind %v", test.name, test.err, test.want)
		}
	}
}

func TestInFlightPerPeer(t *testing.T) {
	table := []Method{{Name: "Wait", Roles: fromQuorum, MaxRequest: 32, MaxResponse: 32, InFlightPerPeer: 3, Timeout: time.Minute}}
	n := &lan{}
	s := NewServer(quiet(), table, peerOf)
	started, finish := make(chan struct{}), make(chan struct{})
	Handle(s, "Wait", func(context.Context, identity.Peer, *Empty) (*Empty, error) {
		started <- struct{}{}
		<-finish
		return &Empty{}, nil
	})
	serve(t, s, n.listen(atB))
	a := closing(t, newClient(table, n.dialAs(voter)))
	b := closing(t, newClient(table, n.dialAs(identity.Peer{Role: fleet.RoleQuorum, Node: nodeB})))
	var group sync.WaitGroup
	call := func(c *Client) {
		group.Go(func() {
			if _, err := Call[Empty, Empty](t.Context(), c, atB, "Wait", &Empty{}); err != nil {
				t.Errorf("call under the limit: %v", err)
			}
		})
		<-started
	}
	for range 3 {
		call(a)
	}
	if _, err := Call[Empty, Empty](t.Context(), a, atB, "Wait", &Empty{}); fleet.KindOf(err) != fleet.Throttled {
		t.Errorf("fourth call: %v, want throttled", err)
	}
	call(b) // another peer is not affected
	close(finish)
	group.Wait()
	if len(s.inFlight) != 0 {
		t.Errorf("counts left behind: %v", s.inFlight)
	}
}

func TestAskFirst(t *testing.T) {
	for first, want := range map[fleet.NodeID]string{"b": "[b a c]", "a": "[a b c]", "": "[a b c]", "z": "[a b c]"} {
		order := []fleet.NodeID{"a", "b", "c"}
		AskFirst(order, first)
		if got := fmt.Sprint(order); got != want {
			t.Errorf("%q first: %s, want %s", first, got, want)
		}
	}
}
