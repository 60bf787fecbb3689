package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// agentB is the host that opens connections, atHost how it is called.
var (
	agentB = identity.Peer{Role: fleet.RoleAgent, Node: nodeB}
	atHost = Target{nodeB, fleet.RoleAgent}
)

// voterSide is a quorum host's client with its listener of reverse connections.
type voterSide struct {
	*Client
	n  *lan
	in *pipeListener
}

func newVoterSide(t *testing.T) *voterSide {
	t.Helper()
	v := &voterSide{n: &lan{}}
	v.in = v.n.listen(Target{nodeA, fleet.RoleQuorum})
	v.Client = closing(t, NewClient(v.n.dialAs(voter)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.ServeReverse(ctx, v.in, peerOf) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeReverse: %v", err)
		}
	})
	return v
}

// opens gives a connection from B to the voter.
func (v *voterSide) opens(t *testing.T) net.Conn {
	t.Helper()
	c, err := v.n.dialAs(agentB)(t.Context(), nodeA, fleet.RoleQuorum)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// host serves Candidate and, never answering, InstallQuorum on what it opens.
func host(t *testing.T, conns ...net.Conn) {
	t.Helper()
	s := NewServer(quiet(), Methods, peerOf)
	Handle(s, MethodCandidate, func(_ context.Context, peer identity.Peer, _ *Empty) (*CandidateResponse, error) {
		return &CandidateResponse{Candidate: []byte(peer.Node)}, nil
	})
	Handle(s, MethodInstallQuorum, func(ctx context.Context, _ identity.Peer, _ *InstallQuorumRequest) (*Empty, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	HandleStream(s, MethodGetBlob, func(_ context.Context, _ identity.Peer, _ []byte, _ io.Reader, w io.Writer) error {
		_, err := w.Write([]byte("blob"))
		return err
	})
	l := &pipeListener{conns: make(chan net.Conn, len(conns)), closed: make(chan struct{})}
	for _, c := range conns {
		l.conns <- knownConn{c, voter}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeReverse(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
}

func candidate(ctx context.Context, c *Client) (string, error) {
	resp, err := Call[Empty, CandidateResponse](ctx, c, atHost, MethodCandidate, &Empty{})
	if err != nil {
		return "", err
	}
	return string(resp.Candidate), nil
}

func TestReverse(t *testing.T) {
	bubble(t, "calls need no dial, also after a day of silence", func(t *testing.T) {
		v := newVoterSide(t)
		host(t, v.opens(t))
		synctest.Wait()
		for range 2 {
			if got, err := candidate(t.Context(), v.Client); err != nil || got != string(nodeA) {
				t.Errorf("Candidate: %q, %v; want the voter's own ID, as the host sees it", got, err)
			}
			r, err := CallStream(t.Context(), v.Client, atHost, MethodGetBlob, BlobHead{Digest: fleet.Sum(nil)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || string(b) != "blob" {
				t.Errorf("GetBlob: %q, %v", b, err)
			}
			_ = r.Close()
			time.Sleep(24 * time.Hour)
		}
		if got := v.n.dialled() - 1; got != 0 { // one was B's
			t.Errorf("%d dials by the voter, want none", got)
		}
	})
	bubble(t, "a half-open one costs half of the time once, then the host is dialled", func(t *testing.T) {
		v := newVoterSide(t)
		var dead atomic.Bool
		host(t, cutConn{v.opens(t), &dead})
		synctest.Wait()
		s := NewServer(quiet(), Methods, peerOf)
		Handle(s, MethodCandidate, func(context.Context, identity.Peer, *Empty) (*CandidateResponse, error) {
			return &CandidateResponse{Candidate: []byte("dialled")}, nil
		})
		serve(t, s, v.n.listen(atHost))
		dead.Store(true)
		for i, most := range []time.Duration{10 * time.Second, time.Second} { // the method has 20 s
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			start := time.Now()
			got, err := candidate(ctx, v.Client)
			cancel()
			if took := time.Since(start); err != nil || got != "dialled" || took > most {
				t.Errorf("call %d: %q, %v after %v; want it dialled within %v", i, got, err, took, most)
			}
		}
	})
	bubble(t, "a call that was broken off does not cost the next one a dial", func(t *testing.T) {
		v := newVoterSide(t)
		host(t, v.opens(t))
		synctest.Wait()
		before := v.n.dialled()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := Call[InstallQuorumRequest, Empty](ctx, v.Client, atHost, MethodInstallQuorum, &InstallQuorumRequest{}); err == nil {
			t.Error("a call that is not answered returned without an error")
		}
		if got, err := candidate(t.Context(), v.Client); err != nil || got != string(nodeA) {
			t.Errorf("Candidate: %q, %v", got, err)
		}
		if got := v.n.dialled() - before; got != 0 {
			t.Errorf("%d dials, want none: the connection is in order", got)
		}
	})
	bubble(t, "a half-open one ends within half a minute, on both sides", func(t *testing.T) {
		v := newVoterSide(t)
		var dead atomic.Bool
		c := &closeTold{Conn: v.opens(t), closed: make(chan struct{})}
		host(t, cutConn{c, &dead})
		synctest.Wait()
		dead.Store(true)
		time.Sleep(pingAfter + pingTimeout + time.Second)
		if v.Reach(nodeB).Reverse {
			t.Error("the voter still believes in it")
		}
		select {
		case <-c.closed:
		default:
			t.Error("the host has not closed it")
		}
	})
	bubble(t, "without a dial the caller hears that the outcome is unknown", func(t *testing.T) {
		v := newVoterSide(t)
		var dead atomic.Bool
		host(t, cutConn{v.opens(t), &dead})
		synctest.Wait()
		dead.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := candidate(ctx, v.Client); fleet.KindOf(err) != fleet.Unknown {
			t.Errorf("got %v, want unknown: the host may have done it", err)
		}
	})
	bubble(t, "the newest counts, and the one before is closed", func(t *testing.T) {
		v := newVoterSide(t)
		first := v.opens(t)
		host(t, first)
		synctest.Wait()
		host(t, v.opens(t))
		synctest.Wait()
		if _, err := first.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the first connection is open: %v", err)
		}
		if _, err := candidate(t.Context(), v.Client); err != nil {
			t.Error(err)
		}
	})
	bubble(t, "a host that cannot be dialled is relayed to, and dialled last", func(t *testing.T) {
		v := newVoterSide(t)
		v.UseRelays(func() []fleet.NodeID { return []fleet.NodeID{"mi-0000000000000000c", "mi-0000000000000000d"} })
		asked := 0
		for id, found := range map[fleet.NodeID]bool{"mi-0000000000000000c": false, "mi-0000000000000000d": true} {
			s := NewServer(quiet(), Methods, peerOf)
			Handle(s, MethodRelay, func(_ context.Context, _ identity.Peer, req *RelayRequest) (*RelayResponse, error) {
				asked++
				if !found {
					return &RelayResponse{}, nil
				}
				frame, err := encodeFrame(&CandidateResponse{Candidate: []byte(req.Method + " of " + string(req.Node))})
				return &RelayResponse{Found: true, Body: frame[frameHeader:]}, err
			})
			serve(t, s, v.n.listen(Target{id, fleet.RoleQuorum}))
		}
		for i, want := range []int{2, 3} { // the one that found it is asked first the next time
			before := v.n.dialled()
			got, err := candidate(t.Context(), v.Client)
			if err != nil || got != "Candidate of "+string(nodeB) || asked != want {
				t.Errorf("call %d: %q, %v with %d relays asked, want %d", i, got, err, asked, want)
			}
			if i == 1 && v.n.dialled() != before {
				t.Error("a host that could not be dialled a moment ago was dialled again before it was relayed to")
			}
		}
		if _, err := CallStream(t.Context(), v.Client, atHost, MethodGetBlob, BlobHead{}, nil); fleet.KindOf(err) != fleet.Unavailable {
			t.Errorf("a stream: %v, want unavailable: streams are not relayed", err)
		}
	})
}

// TestHostileReverse gives a voter connections of a host that does not behave.
func TestHostileReverse(t *testing.T) {
	for name, speak := range map[string]func(c net.Conn){
		"silence": func(net.Conn) {},
		"garbage": func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{0xff}, 4096)) },
		"a client's side": func(c net.Conn) {
			_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		},
		"HTTP/1": func(c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
		"no streams": func(c net.Conn) {
			_, _ = c.Write([]byte("\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00"))
		},
		"a huge frame": func(c net.Conn) { _, _ = c.Write([]byte("\xff\xff\xff\x00\x00\x00\x00\x00\x01")) },
		"a goodbye": func(c net.Conn) {
			_, _ = c.Write([]byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
		},
	} {
		bubble(t, name, func(t *testing.T) {
			v := newVoterSide(t)
			c := v.opens(t)
			told := &closeTold{Conn: c, closed: make(chan struct{})}
			go func() { _, _ = io.Copy(io.Discard, c); close(told.closed) }()
			speak(c)
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := candidate(ctx, v.Client); err == nil {
				t.Error("the call was answered")
			}
			time.Sleep(pingAfter + pingTimeout + dialTimeout)
			select {
			case <-told.closed:
			default:
				t.Error("the connection is still held")
				_ = c.Close()
			}
			v.mu.Lock()
			held := len(v.reverse) + len(v.all)
			v.mu.Unlock()
			if held != 0 {
				t.Errorf("%d connections are held", held)
			}
		})
	}
	bubble(t, "answers over the limit", func(t *testing.T) {
		v := newVoterSide(t)
		table := []Method{{MethodCandidate, fromQuorum, 1 << 10, 1 << 20, 1, time.Minute, false}}
		s := NewServer(quiet(), table, peerOf)
		Handle(s, MethodCandidate, func(context.Context, identity.Peer, *Empty) (*CandidateResponse, error) {
			return &CandidateResponse{Candidate: make([]byte, 64<<10)}, nil
		})
		l := &pipeListener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
		l.conns <- knownConn{v.opens(t), voter}
		serve(t, s, l)
		synctest.Wait()
		if _, err := candidate(t.Context(), v.Client); fleet.KindOf(err) != fleet.TooLarge {
			t.Errorf("got %v, want too large", err)
		}
	})
	bubble(t, "who is no host", func(t *testing.T) {
		v := newVoterSide(t)
		c, err := v.n.dialAs(voter)(t.Context(), nodeA, fleet.RoleQuorum)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a quorum host's reverse connection: %v, want it closed", err)
		}
	})
}

// closeTold tells when it is closed.
type closeTold struct {
	net.Conn
	closed chan struct{}
	once   atomic.Bool
}

func (c *closeTold) Close() error {
	if c.once.CompareAndSwap(false, true) {
		close(c.closed)
	}
	return c.Conn.Close()
}
