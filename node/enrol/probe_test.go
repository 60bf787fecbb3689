package enrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/memnet"
	"fleet/node/transport"
)

// TestCallBack: a host tries only the address that asks, few at once, and no
// port below 1024.
func TestCallBack(t *testing.T) {
	var mu sync.Mutex
	var tried []string
	s := NewServer(ServerConfig{Reaches: func(_ context.Context, addr string) error {
		mu.Lock()
		defer mu.Unlock()
		tried = append(tried, addr)
		switch addr {
		case "10.0.0.9:7790":
			return nil
		case "10.0.0.9:7791":
			return fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
		}
		return errors.New("no route")
	}})
	from := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 40000}
	for port, want := range map[uint16]string{
		7790: callBackOpen, 7791: callBackRefused, 7792: callBackSilent, 22: callBackBusy, 1023: callBackBusy, 0: callBackBusy,
	} {
		if got := s.callBack(t.Context(), from, port); got != want {
			t.Errorf("port %d: %q, want %q", port, got, want)
		}
	}
	for _, addr := range tried {
		if host, port, _ := net.SplitHostPort(addr); host != "10.0.0.9" || len(port) < 4 {
			t.Errorf("tried %s", addr)
		}
	}
	if len(tried) != 3 {
		t.Errorf("tried %v", tried)
	}
	if got := NewServer(ServerConfig{}).callBack(t.Context(), from, 7790); got != callBackBusy {
		t.Errorf("a host that tries nothing says %q", got)
	}
}

func TestCallBacksAreFew(t *testing.T) {
	var c callBacks
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }
	if !c.enter(at(100)) || c.enter(at(100)) {
		t.Error("one address is tried twice at once")
	}
	for i := range maxCallBacks - 1 {
		if !c.enter(at(i)) {
			t.Errorf("only %d at once", i+1)
		}
	}
	if c.enter(at(101)) {
		t.Errorf("more than %d at once", maxCallBacks)
	}
	c.leave(at(100))
	if !c.enter(at(101)) {
		t.Error("a place that was given back is not given again")
	}
}

// A stranger with a /64 of IPv6 has as many addresses as he likes; they count as
// one, for what is tried for him and for the places of joiners.
func TestStrangersOfOneNetworkAreOne(t *testing.T) {
	hold := make(chan struct{})
	s := NewServer(ServerConfig{Reaches: func(context.Context, string) error { <-hold; return nil }})
	from := func(i int) net.Addr {
		return &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("2001:db8:1:2::%x", i)), Port: 40000}
	}
	first := make(chan string)
	go func() { first <- s.callBack(t.Context(), from(1), 7790) }()
	for deadline := time.Now().Add(time.Minute); ; {
		s.callBacks.mu.Lock()
		n := len(s.callBacks.tried)
		s.callBacks.mu.Unlock()
		if n == 1 || time.Now().After(deadline) {
			break
		}
		runtime.Gosched()
	}
	if got := s.callBack(t.Context(), from(2), 7790); got != callBackBusy {
		t.Errorf("a second address of the network is tried: %q", got)
	}
	close(hold)
	if got := <-first; got != callBackOpen {
		t.Errorf("the first: %q", got)
	}
	taken := 0
	for i := range 2 * maxEnrolments {
		if s.enter(transport.SourceOf(from(i))) {
			taken++
		}
	}
	other := transport.SourceOf(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1})
	if taken != maxFromOne || !s.enter(other) {
		t.Errorf("one network holds %d places of %d", taken, maxEnrolments)
	}
	for range taken {
		s.leave(transport.SourceOf(from(0)))
	}
	s.leave(other)
	if len(s.from) != 0 || len(s.busy) != 0 {
		t.Errorf("%d sources and %d places are left", len(s.from), len(s.busy))
	}
}

func TestProbe(t *testing.T) {
	w := newWorld(t, memnet.New(1))
	const skew = 3 * time.Hour
	var tried atomic.Int64 // how long the call back takes, by the clock of who asked
	w.serve("10.0.0.1", w.quorumCert(), w.agentCert(), func(c *ServerConfig) {
		now := c.Now
		c.Now = func() time.Time { return now().Add(skew + time.Duration(tried.Load())) }
		c.Reaches = func(_ context.Context, addr string) error {
			if host, port, _ := net.SplitHostPort(addr); host != "10.0.0.9" || port != "7790" {
				t.Errorf("tried %s", addr)
			}
			tried.Store(int64(time.Hour))
			return errors.New("silence")
		}
	})
	r, err := Probe(t.Context(), ProbeOptions{
		Address: "10.0.0.1:7790", CallBack: 7790, Dial: w.net.Host("10.0.0.9").DialContext,
		Now: func() time.Time { return time.Now().Add(time.Duration(tried.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Took >= time.Hour {
		t.Errorf("the host answered after %s, which counts its try to call back", r.Took)
	}
	if r.Role != fleet.RoleQuorum || fleet.KindOf(r.CallBack) != fleet.Unavailable || (r.Offset-skew).Abs() > time.Minute {
		t.Errorf("got %+v", r)
	}
	if host, _, _ := net.SplitHostPort(r.Observed); host != "10.0.0.9" {
		t.Errorf("observed %s", r.Observed)
	}
}
