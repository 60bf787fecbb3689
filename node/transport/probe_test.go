package transport

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"fleet/node/fleet"
)

// loopback opens a UDP socket until the test ends.
func loopback(t testing.TB) net.PacketConn {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// probed reads from a socket that answers probes and gives what else came.
func probed(t testing.TB) (net.PacketConn, <-chan []byte) {
	t.Helper()
	inner := loopback(t)
	p := &probedPacket{PacketConn: inner, fresh: func() (net.PacketConn, error) { return openFresh(inner.LocalAddr()) }}
	rest := make(chan []byte, 16)
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, _, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			rest <- bytes.Clone(buf[:n])
		}
	}()
	return p, rest
}

func TestProbeUDP(t *testing.T) {
	server, _ := probed(t)
	conn := loopback(t)
	for _, size := range []int{probeHead, 64, GossipPacket, MaxProbe} {
		for _, fresh := range []bool{false, true} {
			if _, err := ProbeUDP(t.Context(), conn, server.LocalAddr(), size, fresh); err != nil {
				t.Errorf("%d bytes, fresh %t: %v", size, fresh, err)
			}
		}
	}
	for _, size := range []int{probeHead - 1, MaxProbe + 1} {
		if _, err := ProbeUDP(t.Context(), conn, server.LocalAddr(), size, false); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%d bytes: %v, want Invalid", size, err)
		}
	}
	silent := loopback(t)
	if _, err := ProbeUDP(t.Context(), conn, silent.LocalAddr(), 64, false); fleet.KindOf(err) != fleet.Unavailable {
		t.Errorf("a host that does not answer: %v, want Unavailable", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ProbeUDP(ctx, conn, silent.LocalAddr(), 64, false); err == nil {
		t.Error("a cancelled probe has no error")
	}
}

// TestFreshProbeComesFromAnotherPort: a firewall that lets answers pass must
// not make unasked packets look welcome.
func TestFreshProbeComesFromAnotherPort(t *testing.T) {
	server, _ := probed(t)
	conn := loopback(t)
	ask := make([]byte, 64)
	copy(ask, probeMagic)
	ask[3], ask[4] = probeVersion, probeAskFresh
	if _, err := conn.WriteTo(ask, server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, from, err := conn.ReadFrom(make([]byte, maxDatagram))
	if err != nil {
		t.Fatal(err)
	}
	if n != len(ask) || from.String() == server.LocalAddr().String() {
		t.Errorf("%d bytes from %s, want %d from another port than %s", n, from, len(ask), server.LocalAddr())
	}
}

// TestProbesAreNoUseToOthers: answers are no longer than questions, few in each
// second, and an answer is not answered; what is no probe passes untouched.
func TestProbesAreNoUseToOthers(t *testing.T) {
	var b budget
	now := time.Unix(1000, 0)
	for i := range probesPerSecond {
		if !b.take(now) {
			t.Fatalf("answer %d of a second was refused", i+1)
		}
	}
	if b.take(now) {
		t.Errorf("more than %d answers in a second", probesPerSecond)
	}
	if !b.take(now.Add(time.Second)) {
		t.Error("no answer in the next second")
	}

	ask := func(change func([]byte) []byte) []byte {
		p := make([]byte, 64)
		copy(p, probeMagic)
		p[3], p[4] = probeVersion, probeAsk
		return change(p)
	}
	server, rest := probed(t)
	conn := loopback(t)
	for name, packet := range map[string][]byte{
		"an answer":       ask(func(p []byte) []byte { p[4] = probeAnswer; return p }),
		"another version": ask(func(p []byte) []byte { p[3]++; return p }),
		"too short":       ask(func(p []byte) []byte { return p[:probeHead-1] }),
		"too long":        ask(func(p []byte) []byte { return append(p, make([]byte, MaxProbe)...) }),
		"gossip":          append([]byte{1}, make([]byte, 100)...),
	} {
		if _, err := conn.WriteTo(packet, server.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-rest:
			if !bytes.Equal(got, packet) {
				t.Errorf("%s: %d bytes arrived changed", name, len(packet))
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s did not pass", name)
		}
	}
}
