package gossip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"fleet/node/fleet"
)

const (
	packetBacklog = 512 // packets that wait for memberlist; more are dropped
	maxInbound    = 32  // streams that others opened, at once; more are closed
	maxOutbound   = 8   // streams of our own, at once; more wait for their deadline

	// readPause keeps a socket or listener that fails again and again from
	// taking a whole processor.
	readPause = 20 * time.Millisecond

	// placeholder is the address that Join gives to memberlist instead of the
	// seed's: memberlist would resolve a host name its own way, and its dial
	// knows nothing of the caller's context.
	placeholder = "0.0.0.0:1"
)

// port is memberlist's transport: packets are sealed and opened, streams
// framed, and both read before memberlist reads them.
type port struct {
	cfg    Config
	keys   atomic.Pointer[keyring]
	belief belief
	counts *counters
	at     func(netip.AddrPort) (fleet.NodeID, bool) // which member has this address
	liars  liars

	packets chan *memberlist.Packet
	inbound chan net.Conn
	slots   chan struct{} // a semaphore of maxOutbound

	ctx     context.Context // ends at stop
	cancel  context.CancelFunc
	readers sync.WaitGroup
	join    atomic.Pointer[joinTarget]

	mu      sync.Mutex // guards the rest
	streams map[*stream]struct{}
	theirs  int // streams that others opened
}

// joinTarget is whom a Join in progress means by the placeholder.
type joinTarget struct {
	ctx  context.Context // ends the dial and the exchange that follows
	seed Seed

	mu   sync.Mutex // guards the rest
	conn net.Conn
	err  error // of the dial
}

// opened binds the dialled connection to the join's context.
func (t *joinTarget) opened(conn net.Conn, err error) (net.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cause := t.ctx.Err(); cause != nil {
		if err == nil {
			_ = conn.Close() // the caller has gone
		}
		err = cause
	}
	t.conn, t.err = conn, err
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (t *joinTarget) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil && t.err == nil {
		_ = t.conn.Close() // its user sees the error
	}
}

func (t *joinTarget) dialError() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func newPort(cfg Config, keys *keyring, counts *counters, members *members) *port {
	p := &port{
		cfg: cfg, counts: counts, at: members.at,
		belief:  belief{self: cfg.Self, refuse: func() { counts.claimsRefused.Add(1) }},
		packets: make(chan *memberlist.Packet, packetBacklog),
		inbound: make(chan net.Conn),
		slots:   make(chan struct{}, maxOutbound),
		streams: make(map[*stream]struct{}),
	}
	p.keys.Store(keys)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *port) start() {
	p.readers.Go(p.readPackets)
	p.readers.Go(p.acceptStreams)
}

// stop ends the readers and all streams. The packet socket stays open.
func (p *port) stop() {
	p.cancel()
	_ = p.cfg.Packet.SetReadDeadline(time.Unix(1, 0)) // wakes the reader; a closed socket has ended it
	_ = p.cfg.Listener.Close()                        // likewise
	p.mu.Lock()
	open := slices.Collect(maps.Keys(p.streams))
	p.mu.Unlock()
	for _, s := range open {
		_ = s.Close() // it is being thrown away
	}
	p.readers.Wait()
	_ = p.cfg.Packet.SetReadDeadline(time.Time{}) // for the next ring
}

func (p *port) readPackets() {
	buf := make([]byte, maxPacketSize+1)
	var sources budget
	refused := 0 // claims of this packet
	believe := belief{self: p.belief.self, refuse: func() { p.belief.refuse(); refused++ }}
	for {
		n, from, err := p.cfg.Packet.ReadFrom(buf)
		if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.cfg.Logger.Debug("read packet", "err", err)
			p.pause()
			continue
		}
		source := sourceOf(from)
		sender, member := p.at(source)
		blame := func() {
			if member {
				p.liars.note(sender, time.Now())
			}
		}
		if !sources.take(source, member, time.Now()) {
			p.counts.packetsOver.Add(1)
			blame()
			continue
		}
		plain, err := p.keys.Load().open(buf[:n])
		if err != nil {
			p.counts.packetsRefused.Add(1)
			continue
		}
		p.counts.packetsOpened.Add(1)
		refused = 0
		plain, err = believe.packet(plain)
		if err != nil {
			believe.refuse()
		}
		if refused > 0 {
			blame()
		}
		if err != nil || plain == nil {
			continue
		}
		select {
		case p.packets <- &memberlist.Packet{Buf: plain, From: from, Timestamp: time.Now()}:
		default:
			p.counts.packetsDropped.Add(1)
		}
	}
}

func (p *port) acceptStreams() {
	for {
		conn, err := p.cfg.Listener.Accept()
		if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				_ = conn.Close() // it came too late
			}
			return
		}
		if err != nil {
			p.cfg.Logger.Debug("accept stream", "err", err)
			p.pause()
			continue
		}
		s := p.track(conn, true)
		if s == nil {
			p.counts.streamsRefused.Add(1)
			_ = conn.Close() // it is over the limit
			continue
		}
		select {
		case p.inbound <- s:
		case <-p.ctx.Done():
			_ = s.Close() // nobody takes it any more
		}
	}
}

func (p *port) pause() {
	select {
	case <-time.After(readPause):
	case <-p.ctx.Done():
	}
}

// track wraps a connection; nil if there is no place or the port has stopped.
func (p *port) track(conn net.Conn, theirs bool) *stream {
	s := &stream{
		Conn: conn, label: label(p.cfg.Fleet, p.cfg.Cell), limit: bytesPerMember * p.cfg.MaxMembers,
		believe: func(message []byte) ([]byte, error) {
			message, err := p.belief.stream(message)
			if err != nil {
				p.counts.streamsRefused.Add(1)
			}
			return message, err
		},
	}
	s.onClose = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.streams, s)
		if theirs {
			p.theirs--
		} else {
			<-p.slots
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || (theirs && p.theirs >= maxInbound) {
		return nil
	}
	if theirs {
		p.theirs++
	}
	p.streams[s] = struct{}{}
	return s
}

// joinThrough runs a join of memberlist that dials the seed, bound to ctx. Only
// one may run at a time.
func (p *port) joinThrough(ctx context.Context, seed Seed, join func(addr string) error) error {
	t := &joinTarget{ctx: ctx, seed: seed}
	p.join.Store(t)
	defer p.join.Store(nil)
	stop := context.AfterFunc(ctx, t.end)
	defer stop()
	err := join(string(seed.Node) + "/" + placeholder)
	if err == nil {
		return nil
	}
	if cause := t.dialError(); cause != nil {
		return cause // memberlist's error names the placeholder
	}
	return err
}

// FinalAdvertiseAddr is the address that the node record names.
func (p *port) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return p.cfg.Advertise.Addr().AsSlice(), int(p.cfg.Advertise.Port()), nil
}

// WriteTo seals and sends a packet.
func (p *port) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet: %w", err)
	}
	_, err = p.cfg.Packet.WriteTo(p.keys.Load().seal(b), net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// WriteToAddress is WriteTo, but for a shunned node: the seal, not the name,
// says who can read it, and a removed node may still have the key.
func (p *port) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	if p.shuns(fleet.NodeID(addr.Name)) {
		return time.Now(), nil // lost, as any packet may be
	}
	return p.WriteTo(b, addr.Addr)
}

func (p *port) shuns(node fleet.NodeID) bool { return p.cfg.Shun != nil && p.cfg.Shun(node) }

// PacketCh yields the packets that were opened and read.
func (p *port) PacketCh() <-chan *memberlist.Packet { return p.packets }

// StreamCh yields the streams that others opened.
func (p *port) StreamCh() <-chan net.Conn { return p.inbound }

// DialTimeout refuses: a stream goes to a node, not to an address.
func (p *port) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: it is not known which node is meant", addr)
}

// DialAddressTimeout opens a stream to a member or to the seed of a join.
func (p *port) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	seed := Seed{Node: fleet.NodeID(addr.Name), Address: addr.Addr}
	joining := p.join.Load()
	if addr.Addr != placeholder || joining == nil || joining.seed.Node != seed.Node {
		return p.dial(ctx, seed)
	}
	stop := context.AfterFunc(joining.ctx, cancel)
	defer stop()
	return joining.opened(p.dial(ctx, joining.seed))
}

// dial opens a stream to a node and takes a slot for as long as it is open.
func (p *port) dial(ctx context.Context, to Seed) (net.Conn, error) {
	if to.Node == "" {
		return nil, fmt.Errorf("dial %s: it is not known which node is meant", to.Address)
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: too many streams are open: %w", to.Node, ctx.Err())
	}
	conn, err := p.cfg.Dial(ctx, to.Node, to.Address)
	if err != nil {
		<-p.slots
		return nil, err
	}
	s := p.track(conn, false)
	if s == nil {
		<-p.slots
		_ = conn.Close() // the port has stopped
		return nil, net.ErrClosed
	}
	return s, nil
}

// Shutdown is called by memberlist before it ends its own goroutines.
func (p *port) Shutdown() error {
	p.stop()
	return nil
}
