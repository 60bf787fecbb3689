package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/memnet"
)

// spied is a connection that keeps what is written to it.
type spied struct {
	net.Conn
	written *bytes.Buffer
}

func (s spied) Write(b []byte) (int, error) {
	s.written.Write(b)
	return s.Conn.Write(b)
}

// TestPassOn asks an ordinary host for what only a quorum host answers.
func TestPassOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		voter, ordinary, second := w.host(), w.host(), w.host()
		ordinary.quorum = nil
		vt := w.serve(n, "10.0.0.1", voter, nil)
		greet(t, vt.Listener(API))
		var sent bytes.Buffer // to the voter
		dials := 0
		pass := func(ctx context.Context) (net.Conn, error) {
			dials++
			c, err := n.Host("10.0.0.2").DialContext(ctx, "tcp", "10.0.0.1:7790")
			if err != nil {
				return nil, err
			}
			return spied{c, &sent}, nil
		}
		ot := w.serve(n, "10.0.0.2", ordinary, func(c *Config) { c.Splice = pass })
		for _, p := range protos {
			if p != API {
				greet(t, ot.Listener(p))
			}
		}
		dial := n.Host("10.0.0.9").DialContext
		var said bytes.Buffer // by the operator
		c, err := DialAPI(t.Context(), func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			return spied{c, &said}, err
		}, "10.0.0.2:7790", w.id, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Peer.Node != voter.node || c.Peer.Role != fleet.RoleQuorum {
			t.Errorf("met %+v, want the voter", c.Peer)
		}
		if !admitted(c) {
			t.Error("the voter did not let the operator in")
		}
		_ = c.Close()
		synctest.Wait()
		// All but the farewell to a voter that has left.
		if !bytes.HasPrefix(said.Bytes(), sent.Bytes()) || sent.Len() < 1000 {
			t.Errorf("the operator said %d bytes, the voter was sent %d", said.Len(), sent.Len())
		}
		if open := ot.Stats().Open; open != 0 || ot.passing.all != 0 {
			t.Errorf("%d connections are open after the operator left", open)
		}

		// Nothing else is passed on.
		before := dials
		for _, c := range []struct {
			name  string
			cert  *tls.Certificate
			offer []string
		}{
			{"quorum." + string(voter.node), nil, []string{"fleet-api"}},
			{"quorum." + string(ordinary.node), nil, []string{"fleet-api"}},
			{"agent." + string(ordinary.node), nil, []string{"fleet-api"}},
			{"", nil, []string{"fleet-api"}},
			{"quorum", second.quorum, []string{"h2"}},
			{"quorum", second.quorum, []string{"fleet-raft"}},
			{"quorum", second.agent, []string{"fleet-reverse"}},
			{"quorum", nil, []string{"fleet-join"}},
			{"quorum", nil, []string{"fleet-api", "h2"}},
			{"quorum", nil, nil},
		} {
			raw, err := dial(t.Context(), "tcp", "10.0.0.2:7790")
			if err != nil {
				t.Fatal(err)
			}
			cfg := &tls.Config{ServerName: c.name, NextProtos: c.offer, InsecureSkipVerify: true}
			if c.cert != nil {
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			}
			if admitted(tls.Client(raw, cfg)) {
				t.Errorf("%q to %q was let in", c.offer, c.name)
			}
		}
		if dials != before {
			t.Errorf("%d other clients were passed on", dials-before)
		}
	})
}

// TestPassOnNowhere: without a quorum host behind it the ordinary host says
// nothing at all, and holds nothing.
func TestPassOnNowhere(t *testing.T) {
	for name, pass := range map[string]func(context.Context) (net.Conn, error){
		"refused": func(context.Context) (net.Conn, error) { return nil, errors.New("nobody answers") },
		"silent":  func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				n := memnet.New(1)
				h := w.host()
				h.quorum = nil
				tr := w.serve(n, "10.0.0.2", h, func(c *Config) { c.Splice = pass })
				raw, err := n.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.2:7790")
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				heard := &heard{Conn: raw}
				err = tls.Client(heard, &tls.Config{ServerName: "quorum", NextProtos: []string{"fleet-api"}, InsecureSkipVerify: true}).Handshake()
				if !errors.Is(err, io.EOF) || heard.n != 0 {
					t.Errorf("heard %d bytes, %v; want the connection closed without a byte", heard.n, err)
				}
				if took := time.Since(began); took > DefaultLimits().Handshake {
					t.Errorf("took %v", took)
				}
				_ = raw.Close()
				synctest.Wait()
				if s := tr.Stats(); s.Open != 0 || s.Handshaking != 0 || s.Refused != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// heard counts what is read.
type heard struct {
	net.Conn
	n int
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.n += n
	return n, err
}

// TestPassOnIsBounded has strangers ask for more than is passed on at once, and
// send what is no ClientHello.
func TestPassOnIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := memnet.New(1)
		h := w.host()
		h.quorum = nil
		sink, err := n.Host("10.0.0.1").Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		tr := w.serve(n, "10.0.0.2", h, func(c *Config) {
			c.Splice = func(ctx context.Context) (net.Conn, error) {
				return n.Host("10.0.0.2").DialContext(ctx, "tcp", sink.Addr().String())
			}
		})
		var strangers []net.Conn
		for _, stranger := range []struct {
			addr          string
			asks          int
			open, refused int // in all, then
		}{
			{"10.0.0.9", maxPassedOf + 10, maxPassedOf, 10},
			{"10.0.0.8", maxPassedOf, maxPassed, 10},
			{"10.0.0.7", 1, maxPassed, 11},
		} {
			for range stranger.asks {
				raw, err := n.Host(stranger.addr).DialContext(t.Context(), "tcp", "10.0.0.2:7790")
				if err != nil {
					t.Fatal(err)
				}
				strangers = append(strangers, raw)
				go func() {
					_ = tls.Client(raw, &tls.Config{ServerName: "quorum", NextProtos: []string{"fleet-api"}, InsecureSkipVerify: true}).Handshake()
				}()
			}
			time.Sleep(time.Second)
			if s := tr.Stats(); s.Open != stranger.open || int(s.Refused) != stranger.refused {
				t.Errorf("after %s: %+v, want %d passed on and %d refused", stranger.addr, s, stranger.open, stranger.refused)
			}
		}
		time.Sleep(SpliceIdle)
		synctest.Wait()
		if s := tr.Stats(); s.Open != 0 {
			t.Errorf("%d are open though nothing passes", s.Open)
		}
		for _, c := range strangers {
			_ = c.Close()
		}
		for name, junk := range map[string][]byte{
			"zeroes":            make([]byte, 1<<20),
			"a record for ever": bytes.Repeat([]byte("\x16\x03\x01\x40\x00"+string(make([]byte, 0x4000))), 64),
			"HTTP":              []byte("GET / HTTP/1.1\r\n\r\n"),
		} {
			raw, err := n.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.2:7790")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = raw.Write(junk); _, _ = io.Copy(io.Discard, raw); _ = raw.Close() }()
			time.Sleep(DefaultLimits().Handshake + time.Second)
			if s := tr.Stats(); s.Open != 0 {
				t.Errorf("%s: %d are open after the time of a handshake", name, s.Open)
			}
		}
		_ = sink.Close()
	})
}

// Nothing passes for a while: the splice ends, and not before.
func TestSpliceEndsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		operator, a := net.Pipe()
		b, quorum := net.Pipe()
		done := make(chan struct{})
		go func() {
			Splice(t.Context(), a, b, time.Minute)
			close(done)
		}()
		for range 5 {
			time.Sleep(50 * time.Second)
			go func() { _, _ = operator.Write([]byte("x")) }()
			if _, err := io.ReadFull(quorum, make([]byte, 1)); err != nil {
				t.Fatalf("ended while it was used: %v", err)
			}
		}
		began := time.Now()
		<-done
		if took := time.Since(began); took != time.Minute {
			t.Errorf("ended after %v without a byte, want a minute", took)
		}
		if _, err := operator.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the operator's side: %v", err)
		}
	})
}
