package enrol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/memnet"
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
	if !c.enter("a") || c.enter("a") {
		t.Error("one address is tried twice at once")
	}
	for i := range maxCallBacks - 1 {
		if !c.enter(fmt.Sprint(i)) {
			t.Errorf("only %d at once", i+1)
		}
	}
	if c.enter("one more") {
		t.Errorf("more than %d at once", maxCallBacks)
	}
	c.leave("a")
	if !c.enter("one more") {
		t.Error("a place that was given back is not given again")
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
