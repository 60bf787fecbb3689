package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// pair opens a stream between two hosts: the dialler's end and the other.
func pair(t *testing.T, from, to *Host) (client, server net.Conn) {
	t.Helper()
	l, err := to.Listen("tcp", 7790)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = from.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// The contract of net.Conn as the standard library tests it, outside a bubble.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := New(1)
		c1, c2 = pair(t, n.Host("10.0.0.1"), n.Host("10.0.0.2"))
		return c1, c2, n.Close, nil
	})
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		n.SetLatency(100 * time.Millisecond)
		start := time.Now()
		c, s := pair(t, n.Host("10.0.0.1"), n.Host("10.0.0.2"))
		if got := time.Since(start); got != 200*time.Millisecond {
			t.Errorf("a dial took %s, want a round trip of 200ms", got)
		}
		start = time.Now()
		write(t, c, "hello")
		read(t, s, "hello")
		if got := time.Since(start); got != 100*time.Millisecond {
			t.Errorf("bytes took %s, want 100ms", got)
		}
		n.SetLatency(time.Millisecond) // what is sent later must not overtake
		write(t, c, "a")
		n.SetLatency(0)
		write(t, c, "b")
		read(t, s, "ab")
	})
}

func TestCutStallsAndHeals(t *testing.T) {
	cases := []struct {
		name      string
		cut       func(n *Network, a, b *Host)
		aToB, bTo bool // what still gets through
	}{
		{"both ways", func(n *Network, a, b *Host) { n.Cut(a, b) }, false, false},
		{"one way", func(n *Network, a, b *Host) { n.CutOneWay(a, b) }, false, true},
		{"other way", func(n *Network, a, b *Host) { n.CutOneWay(b, a) }, true, false},
		{"isolated", func(n *Network, a, _ *Host) { n.Isolate(a) }, false, false},
		{"partition", func(n *Network, a, b *Host) { n.Partition([]*Host{a}, []*Host{b}) }, false, false},
	}
	heals := map[string]func(n *Network, a, b *Host){
		"heal":      func(n *Network, a, b *Host) { n.Heal(a, b) },
		"heal host": func(n *Network, a, _ *Host) { n.HealHost(a) },
		"heal all":  func(n *Network, _, _ *Host) { n.HealAll() },
	}
	for _, c := range cases {
		for name, heal := range heals {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := New(1)
					defer n.Close()
					a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
					ca, cb := pair(t, a, b)
					write(t, ca, "before")
					c.cut(n, a, b)
					read(t, cb, "before") // had arrived
					write(t, ca, "to b")  // nobody is told
					write(t, cb, "to a")
					expect(t, cb, c.aToB, "to b")
					expect(t, ca, c.bTo, "to a")
					heal(n, a, b)
					if !c.aToB {
						read(t, cb, "to b")
					}
					if !c.bTo {
						read(t, ca, "to a")
					}
				})
			})
		}
	}
}

func TestCutHoldsBackTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		ca, cb := pair(t, a, b)
		n.Cut(a, b)
		time.Sleep(time.Second)
		write(t, ca, "last words")
		if err := ca.Close(); err != nil {
			t.Fatal(err)
		}
		write(t, cb, "into the void")
		expect(t, cb, false, "")
		n.Heal(a, b)
		got, err := io.ReadAll(cb)
		if err != nil || string(got) != "last words" {
			t.Errorf("after the heal: %q, %v", got, err)
		}
		if _, err := cb.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed end: %v, want EPIPE", err)
		}
	})
}

func TestDialAcrossACutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		l, err := b.Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		n.Cut(a, b)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", l.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial across a cut: %v", err)
		}
		start := time.Now()
		_, err = a.DialContext(t.Context(), "tcp", l.Addr().String())
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != synTimeout {
			t.Errorf("dial without a deadline: %v after %s", err, time.Since(start))
		}
		time.AfterFunc(time.Second, func() { n.Heal(a, b) })
		if _, err := a.DialContext(t.Context(), "tcp", l.Addr().String()); err != nil {
			t.Errorf("dial that outlasts the cut: %v", err)
		}
	})
}

func TestDialErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		if _, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a closed port: %v", err)
		}
		if _, err := a.DialContext(t.Context(), "tcp", "host:7790"); err == nil {
			t.Error("a name was dialled")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", "10.0.0.9:7790"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody's address: %v", err)
		}
		if _, err := b.Listen("tcp", 7790); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listen("tcp", 7790); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a taken port: %v", err)
		}
		for range backlog {
			if _, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", "10.0.0.2:7790"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a full backlog: %v", err)
		}
	})
}

func TestWindowIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		c, s := pair(t, n.Host("10.0.0.1"), n.Host("10.0.0.2"))
		if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		k, err := c.Write(make([]byte, 2*window))
		if k != window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d, %v; want %d and a timeout", k, err, window)
		}
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.Write(make([]byte, 3*window)) })
		if _, err := io.ReadFull(s, make([]byte, 4*window)); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if got := n.Stats().StreamBytes; got != 4*window {
			t.Errorf("counted %d bytes, want %d", got, 4*window)
		}
	})
}

func TestDownAndUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		ca, cb := pair(t, a, b)
		l, _ := b.Listen("tcp", 1)
		p, _ := b.ListenPacket(1)
		b.Down()
		if _, err := cb.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("own end: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("own listener: %v", err)
		}
		if _, _, err := p.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("own socket: %v", err)
		}
		if _, err := b.Listen("tcp", 2); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("listen while down: %v", err)
		}
		write(t, ca, "hello?")
		expect(t, ca, false, "")
		b.Up()
		if _, err := ca.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other end after the power came back: %v", err)
		}
		if _, err := b.Listen("tcp", 1); err != nil {
			t.Errorf("listen again: %v", err)
		}
	})
}

func TestKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		ca, _ := pair(t, a, b)
		cut, _ := pair(t, n.Host("10.0.0.3"), b)
		n.Cut(n.Host("10.0.0.3"), b)
		b.Kill()
		if _, err := ca.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the other end: %v", err)
		}
		expect(t, cut, false, "")
		n.HealAll()
		if _, err := cut.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("an end that was cut off, after the heal: %v", err)
		}
		if _, err := b.Listen("tcp", 7790); err != nil {
			t.Errorf("listen again: %v", err)
		}
	})
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("fd00::2")
		pa, err := a.ListenPacket(0)
		if err != nil {
			t.Fatal(err)
		}
		pb, err := b.ListenPacket(7790)
		if err != nil {
			t.Fatal(err)
		}
		send := func(text string) {
			t.Helper()
			if _, err := pa.WriteTo([]byte(text), pb.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 100)
		n.SetLatency(10 * time.Millisecond)
		start := time.Now()
		send("hello")
		k, from, err := pb.ReadFrom(buf)
		if err != nil || string(buf[:k]) != "hello" || from.String() != pa.LocalAddr().String() {
			t.Errorf("read %q from %v, %v", buf[:k], from, err)
		}
		if got := time.Since(start); got != 10*time.Millisecond {
			t.Errorf("took %s", got)
		}

		n.CutOneWay(a, b)
		send("lost")
		n.HealAll()
		n.SetLoss(1)
		send("lost")
		n.SetLoss(0)
		if _, err := pa.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 1}); err != nil {
			t.Errorf("to nobody: %v", err)
		}
		if _, err := pa.WriteTo(make([]byte, maxPacket+1), pb.LocalAddr()); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("too large: %v", err)
		}
		if err := pb.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := pb.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %v, want a timeout", err)
		}
		for range packetQueue + 5 {
			send("flood") // never waits
		}
		if s := n.Stats(); s.Dropped != 3+5 || s.Packets != 4+packetQueue+5 {
			t.Errorf("stats %+v", s)
		}
		if err := pb.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := pb.ReadFrom(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	})
}

func TestLossFollowsTheSeed(t *testing.T) {
	arrived := func(seed uint64) (got []byte) {
		synctest.Test(t, func(t *testing.T) {
			n := New(seed)
			defer n.Close()
			n.SetLoss(0.5)
			pa, _ := n.Host("10.0.0.1").ListenPacket(1)
			pb, _ := n.Host("10.0.0.2").ListenPacket(1)
			for i := range 200 {
				_, _ = pa.WriteTo([]byte{byte(i)}, pb.LocalAddr())
			}
			_ = pb.SetReadDeadline(time.Now().Add(time.Second))
			for {
				var b [1]byte
				if _, _, err := pb.ReadFrom(b[:]); err != nil {
					return
				}
				got = append(got, b[0])
			}
		})
		return got
	}
	one, again, other := arrived(1), arrived(1), arrived(2)
	if len(one) < 60 || len(one) > 140 {
		t.Errorf("%d of 200 arrived with half of them lost", len(one))
	}
	if !bytes.Equal(one, again) || bytes.Equal(one, other) {
		t.Error("the same seed must lose the same packets, another seed others")
	}
}

func TestListenerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		defer n.Close()
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		l, err := b.Listen("tcp", 7790)
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			if _, err := l.Accept(); err != nil {
				done <- err
				return
			}
			_, err := l.Accept()
			done <- err
		}()
		synctest.Wait()
		waiting, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if err := <-done; err != nil {
			t.Fatal(err) // the second connection was accepted
		}
		_ = waiting.Close()
		left, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790")
		if err != nil {
			t.Fatal(err)
		}
		go func() { time.Sleep(time.Second); _ = l.Close() }()
		if _, err := left.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection that was never accepted: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		if _, err := a.DialContext(t.Context(), "tcp", "10.0.0.2:7790"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial after close: %v", err)
		}
	})
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("write %q: %v", text, err)
	}
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// expect reads text if it should arrive, else that nothing arrives for a minute.
func expect(t *testing.T, c net.Conn, arrives bool, text string) {
	t.Helper()
	if arrives {
		read(t, c, text)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	if k, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want a timeout", k, err)
	}
}

// A firewall drops what others begin and lets in the answers to what the host
// began.
func TestFirewall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		la, err := a.Listen("tcp", 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Listen("tcp", 1); err != nil {
			t.Fatal(err)
		}
		pa, err := a.ListenPacket(1)
		if err != nil {
			t.Fatal(err)
		}
		pb, err := b.ListenPacket(1)
		if err != nil {
			t.Fatal(err)
		}
		b.Firewall(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.DialContext(ctx, "tcp", "10.0.0.2:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial through the firewall: %v, want a timeout", err)
		}
		if _, err := b.DialContext(t.Context(), "tcp", "10.0.0.1:1"); err != nil {
			t.Errorf("dial from behind the firewall: %v", err)
		}
		_ = la.Close()
		gets := func(when string, want bool) {
			t.Helper()
			before := n.Stats().Dropped
			if _, err := pa.WriteTo([]byte("x"), pb.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if got := n.Stats().Dropped == before; got != want {
				t.Errorf("%s: a packet gets in: %v, want %v", when, got, want)
			}
		}
		gets("unasked", false)
		if _, err := pb.WriteTo([]byte("x"), pa.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		gets("as an answer", true)
		time.Sleep(answerTime + time.Second)
		gets("a late answer", false)
		b.Firewall(false)
		gets("without the firewall", true)
	})
}
