package transport

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"fleet/node/fleet"
)

// A UDP probe tells a host that is being set up whether packets of a size come
// through, and whether they come in when it has not asked for them first: a
// firewall that lets answers pass makes the first look like the second.
//
// Anybody may ask, because who asks is not enrolled yet. So an answer is never
// longer than its question and goes where that came from, and a host answers
// no more than probesPerSecond in all: it is of no use to whoever wants to send
// somebody traffic.
//
// A probe is: "FLP", version 1, kind, nonce 16, then zeroes up to the size that
// is tried. Its first byte is not that of a gossip packet.
const (
	probeHead       = 3 + 1 + 1 + probeNonce
	probeNonce      = 16
	probeVersion    = 1
	probesPerSecond = 50

	probeAsk      = 1 // answer from the port that was asked
	probeAskFresh = 2 // answer from a port that the asker has not written to
	probeAnswer   = 3

	// MaxProbe is the largest probe: what an Ethernet frame carries over IPv4.
	MaxProbe = 1472
)

// GossipPacket is the size of the largest packet of gossip, sealed.
const GossipPacket = 1441

var probeMagic = []byte("FLP")

// ProbeUDP asks the host at to for an answer of size bytes and gives the time
// it took. With fresh the answer comes from another port of that host. It asks
// up to three times; an error of kind Unavailable says that nothing came.
// Whatever else arrives at conn meanwhile is dropped.
func ProbeUDP(ctx context.Context, conn net.PacketConn, to net.Addr, size int, fresh bool) (time.Duration, error) {
	if size < probeHead || size > MaxProbe {
		return 0, fleet.Errorf(fleet.Invalid, "a probe has %d to %d bytes, not %d", probeHead, MaxProbe, size)
	}
	ask := make([]byte, size)
	copy(ask, probeMagic)
	ask[3], ask[4] = probeVersion, probeAsk
	if fresh {
		ask[4] = probeAskFresh
	}
	_, _ = rand.Read(ask[5:probeHead])                                                   // it never fails: it ends the program instead
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }) // ends the read below
	defer stop()
	const tries, patience = 3, 700 * time.Millisecond
	buf := make([]byte, maxDatagram)
	for range tries {
		sent := time.Now()
		if _, err := conn.WriteTo(ask, to); err != nil {
			return 0, fmt.Errorf("send a probe of %d bytes to %s: %w", size, to, err)
		}
		if err := conn.SetReadDeadline(sent.Add(patience)); err != nil {
			return 0, fmt.Errorf("wait for the answer to a probe: %w", err)
		}
		for ctx.Err() == nil {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				// The kernel reports an ICMP answer (nobody listens there) here.
				return 0, fleet.Errorf(fleet.Unavailable, "%s did not answer a packet: %w", to, err)
			}
			if n == size && buf[4] == probeAnswer && bytes.Equal(buf[5:probeHead], ask[5:probeHead]) && bytes.HasPrefix(buf[:n], probeMagic) {
				return time.Since(sent), nil
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	return 0, fleet.Errorf(fleet.Unavailable, "no answer from %s to %d packets of %d bytes", to, tries, size)
}

// maxDatagram is more than any datagram that is read whole here.
const maxDatagram = 9217

// isProbe reports whether a datagram is a question of this kind of ours.
func isProbe(b []byte) bool {
	return len(b) >= probeHead && len(b) <= MaxProbe && bytes.HasPrefix(b, probeMagic) &&
		b[3] == probeVersion && (b[4] == probeAsk || b[4] == probeAskFresh)
}

// probedPacket is the UDP socket without the probes, which it answers.
type probedPacket struct {
	net.PacketConn
	fresh  func() (net.PacketConn, error) // opens a socket on another port
	budget budget
}

// ReadFrom yields what is no probe.
func (p *probedPacket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := p.PacketConn.ReadFrom(b)
		if err != nil || !isProbe(b[:n]) {
			return n, from, err
		}
		p.answer(bytes.Clone(b[:n]), from)
	}
}

func (p *probedPacket) answer(probe []byte, from net.Addr) {
	if !p.budget.take(time.Now()) {
		return
	}
	conn := p.PacketConn
	if probe[4] == probeAskFresh {
		fresh, err := p.fresh()
		if err != nil {
			return // the asker will say that nothing came, and from where
		}
		defer fresh.Close() //nolint:errcheck // it has sent what it was for
		conn = fresh
	}
	probe[4] = probeAnswer
	_, _ = conn.WriteTo(probe, from) // a packet that is not sent is a packet that is lost
}

// openFresh opens a socket beside one, on a port of its own.
func openFresh(beside net.Addr) (net.PacketConn, error) {
	host, _, err := net.SplitHostPort(beside.String())
	if err != nil {
		return nil, err
	}
	return net.ListenPacket("udp", net.JoinHostPort(host, "0"))
}

// budget allows so many answers in each second.
type budget struct {
	mu     sync.Mutex // guards the rest
	second int64
	taken  int
}

func (b *budget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := now.Unix(); s != b.second {
		b.second, b.taken = s, 0
	}
	b.taken++
	return b.taken <= probesPerSecond
}

// Reaches reports whether a TCP connection to addr can be made; nothing is said
// on it. A joiner asks it of an enrolled host, about itself.
func (t *Transport) Reaches(ctx context.Context, addr string) error {
	conn, err := t.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	_ = conn.Close() // that it was opened is the answer
	return nil
}
