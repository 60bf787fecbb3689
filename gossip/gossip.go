// Package gossip is the ring: who is here, as the hosts tell each other. It
// runs HashiCorp's memberlist over the fleet's one port.
//
// Everything the ring says is a hint. memberlist trusts every holder of the
// gossip key, so any member can claim that another is gone; nothing may be
// decided from the ring that a connection with certificates has not confirmed.
// What this package adds makes forged hints short-lived and cheap to bear:
//
//   - A member's identity and address come from its node record, signed by an
//     issuing key and checked before memberlist sees the member: no ghosts, no
//     stolen names, no return of an older record.
//   - Packets are sealed and opened here and not by memberlist, and their
//     content is read before memberlist reads it (believe.go). Sizes are bounded
//     before anything is decrypted, nothing is ever decompressed, and a claim
//     that would run a member's incarnation to the end of its range, after which
//     it could never answer, is dropped.
//   - A "dead" or "left" that somebody else says counts as "suspect": its
//     subject has time to answer, and each host finds out by itself.
//   - The state exchange goes over mutual TLS to the node that was meant, one
//     message of bounded size each way.
//
// Sealing is XChaCha20-Poly1305: its random 24-byte nonces never run out, while
// AES-GCM's would force a new key every day or so in a large ring.
//
// memberlist forgets the dead and never calls them again, so a healed partition
// would stay split: the ring therefore calls, now and then, a few of the hosts
// that the registry names and the ring does not have (rejoin.go). And it asks
// others whether they list it, which no member can find out by gossip
// (selfcheck.go).
//
// What one source may send is bounded (sources.go), so that a flood of forged
// packets costs the flooded host little and hides nobody else's.
//
// memberlist calls the delegates with its lock held. They copy, hand over and
// return; they call neither memberlist nor the network.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// DefaultMaxMembers is how many members a ring holds unless told otherwise. It
// also bounds the state exchange: 256 bytes per member, 1 MiB in all.
const DefaultMaxMembers = 4096

const (
	leaveTimeout  = 5 * time.Second // for the word to reach somebody
	updateTimeout = 5 * time.Second
	seedsPerJoin  = 3
)

// Config is what New needs. It is read-only afterwards.
type Config struct {
	Fleet fleet.ID
	Cell  string // part of a ring's label; may be empty
	Self  fleet.NodeID

	// Keys are the gossip keys, 32 bytes each. The first seals, all open.
	Keys [][]byte

	// Record gives this host's own signed node record as it is now.
	Record func() []byte

	// Verify checks a node record: signature, issuer, expiry. It may be called
	// with memberlist's lock held, and must not block or call the ring.
	Verify func([]byte) (identity.NodeRecord, error)

	// Shun names the nodes to which nothing is sent: those that were removed
	// from the fleet. Unanswered probes then make the ring drop them. Nil shuns
	// nobody. It must not block or call the ring.
	Shun func(fleet.NodeID) bool

	// Packet is the shared UDP socket; the ring reads it and does not close it.
	Packet net.PacketConn

	// Listener yields the ring's streams, from peers whose certificate was
	// checked. Once started, the ring closes it.
	Listener net.Listener

	// Dial opens a stream to a node and checks that it is that node.
	Dial func(ctx context.Context, node fleet.NodeID, addr string) (net.Conn, error)

	// Advertise is where others reach this host; the node record names it too.
	Advertise netip.AddrPort

	// Seeds names the hosts that ought to be in the ring, for the rejoin loop.
	// Nil: there is no loop and the owner calls Join.
	Seeds func() []Seed

	// Listed asks a member, over a connection with certificates, whether its
	// ring lists this host as alive. Nil: there is no self-check.
	Listed func(ctx context.Context, node fleet.NodeID) (bool, error)

	// Renew fetches a newer node record of this host, which Record then gives.
	// Nil: there is none to be had.
	Renew func(ctx context.Context) error

	// MaxMembers is how many members are believed; 0 is DefaultMaxMembers.
	MaxMembers int

	// Fast is for development and tests on one machine: shorter intervals.
	Fast bool

	// Logger is required.
	Logger *slog.Logger
}

// Seed is a host to ask for the ring's state.
type Seed struct {
	Node    fleet.NodeID
	Address string // host:port
}

// Stats counts since New, except for Health, which is now.
type Stats struct {
	Health         int    // 0 is well; higher: this host itself seems slow or cut off
	PacketsOpened  uint64 // of a member, under one of the keys
	PacketsRefused uint64 // wrong size, version or key
	PacketsDropped uint64 // memberlist did not keep up
	PacketsOver    uint64 // more from one source than any member sends
	ClaimsRefused  uint64 // messages that were malformed, unknown or not believable
	RecordsRefused uint64 // members whose node record was not accepted
	StreamsRefused uint64 // over the limit, or malformed
	Conflicts      uint64 // a member's new address against its old one
	Unlisted       uint64 // self-checks that found this host missing in the rings of others
}

// Ring is this host's membership. Its methods may be called from any goroutine.
// A ring that was left or closed cannot be started again: make a new one.
type Ring struct {
	cfg     Config
	members *members
	port    *port
	counts  *counters
	changed chan struct{}
	joining chan struct{} // a semaphore of one: memberlist dials for one Join at a time

	unlisted chan struct{} // closed by the self-check; see Unlisted

	cancel context.CancelFunc // ends the rejoin loop and the self-check
	ctx    context.Context
	loop   sync.WaitGroup

	ending sync.Mutex             // one Leave or Close at a time: memberlist panics on Leave after Shutdown
	left   *memberlist.Memberlist // between Leave and Close; guarded by ending

	mu    sync.Mutex // guards the rest; taken after ending
	list  *memberlist.Memberlist
	ended bool // left or closed: memberlist may not be asked for anything that needs its own row
}

// New validates cfg. It starts nothing and takes nothing over before Start.
func New(cfg Config) (*Ring, error) {
	var problems []error
	need := func(ok bool, what string) {
		if !ok {
			problems = append(problems, errors.New(what))
		}
	}
	need(cfg.Fleet != "", "no fleet ID")
	need(cfg.Self != "", "no node ID")
	need(len(cfg.Cell) <= 16, "a cell name has at most 16 characters")
	need(cfg.Record != nil && cfg.Verify != nil && cfg.Dial != nil, "Record, Verify and Dial are required")
	need(cfg.Packet != nil && cfg.Listener != nil, "Packet and Listener are required")
	need(cfg.Advertise.IsValid() && cfg.Advertise.Port() != 0 && !cfg.Advertise.Addr().IsUnspecified(),
		"the advertised address must be an IP address and a port that others can reach")
	need(cfg.Logger != nil, "no logger")
	keys, err := newKeyring(cfg.Keys, label(cfg.Fleet, cfg.Cell))
	if err != nil {
		problems = append(problems, err)
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("gossip: %w", errors.Join(problems...))
	}
	if cfg.MaxMembers == 0 {
		cfg.MaxMembers = DefaultMaxMembers
	}
	cfg.Advertise = netip.AddrPortFrom(cfg.Advertise.Addr().Unmap(), cfg.Advertise.Port())
	r := &Ring{
		cfg: cfg, counts: new(counters),
		changed: make(chan struct{}, 1),
		joining: make(chan struct{}, 1), unlisted: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.members = newMembers(cfg, r.counts, r.notify)
	r.port = newPort(cfg, keys, r.counts, r.members)
	return r, nil
}

// Start enters the ring as its only member; Join or the rejoin loop finds the
// others. It may be called once.
func (r *Ring) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.list != nil {
		return errors.New("gossip: the ring was started before")
	}
	if err := r.loadRecordLocked(); err != nil {
		return err
	}
	r.port.start()
	list, err := memberlist.Create(r.settings())
	if err != nil {
		r.port.stop()
		r.ended = true
		return fmt.Errorf("start the ring: %w", err)
	}
	r.list = list
	if r.cfg.Seeds != nil {
		r.loop.Go(func() { r.rejoin(r.ctx) })
	}
	if r.cfg.Listed != nil {
		r.loop.Go(func() { r.selfCheck(r.ctx) })
	}
	return nil
}

// loadRecordLocked takes the host's own record over, after the check that
// every other member will make: memberlist has no way to fail on it later.
func (r *Ring) loadRecordLocked() error {
	raw := r.cfg.Record()
	rec, err := r.cfg.Verify(raw)
	if err != nil {
		return fmt.Errorf("own node record: %w", err)
	}
	if rec.Node != r.cfg.Self || rec.Cell != r.cfg.Cell {
		return fleet.Errorf(fleet.Invalid, "own node record: it is for %s in cell %q, not for %s in cell %q",
			rec.Node, rec.Cell, r.cfg.Self, r.cfg.Cell)
	}
	if rec.Addr != r.cfg.Advertise {
		return fleet.Errorf(fleet.Conflict, "own node record: it names the address %s, but the ring advertises %s",
			rec.Addr, r.cfg.Advertise)
	}
	r.members.setOwn(raw)
	return nil
}

// settings are memberlist's, with the reason where they are not its LAN
// defaults.
func (r *Ring) settings() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(r.cfg.Self)
	c.Transport = r.port
	c.ProtocolVersion = protocolVersion
	c.DelegateProtocolMin, c.DelegateProtocolVersion, c.DelegateProtocolMax = 1, 1, 1
	c.UDPBufferSize = packetSize - sealOverhead
	c.EnableCompression = false // records are signatures: LZW makes them larger
	c.DeadNodeReclaimTime = 30 * time.Second
	c.HandoffQueueDepth = 4096
	c.Delegate, c.Alive, c.Events, c.Conflict = r.members, r.members, r.members, r.members
	c.Logger = log.New(newLogBridge(r.cfg.Logger), "", 0)
	if r.cfg.Fast {
		c.ProbeInterval, c.ProbeTimeout = 500*time.Millisecond, 200*time.Millisecond
		c.GossipInterval = 100 * time.Millisecond
		c.PushPullInterval = 10 * time.Second
		c.GossipToTheDeadTime = 10 * time.Second
		c.SuspicionMult = 3
		c.TCPTimeout = 5 * time.Second
		c.DeadNodeReclaimTime = 5 * time.Second
	}
	return c
}

// Join asks up to three of the seeds, in random order, for the ring's state
// and stops at the first that answers. It returns how many answered: 1 or,
// with an error, 0. A full state exchange with one member is enough; with each
// it would be a storm.
func (r *Ring) Join(ctx context.Context, seeds []Seed) (int, error) {
	select {
	case r.joining <- struct{}{}:
		defer func() { <-r.joining }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	candidates := make([]Seed, 0, len(seeds))
	for _, s := range seeds {
		if s.Node != r.cfg.Self {
			candidates = append(candidates, s)
		}
	}
	rand.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
	var failures []error
	candidates = candidates[:min(seedsPerJoin, len(candidates))]
	for i, s := range candidates {
		list := r.running()
		if list == nil {
			return 0, errNotRunning
		}
		if ctx.Err() != nil {
			failures = append(failures, ctx.Err())
			break
		}
		err := r.joinOne(ctx, list, s, i == len(candidates)-1)
		if err == nil {
			return 1, nil
		}
		failures = append(failures, fmt.Errorf("join through %s at %s: %w", s.Node, s.Address, err))
	}
	if len(failures) == 0 {
		return 0, errors.New("join the ring: there is nobody to ask")
	}
	return 0, errors.Join(failures...)
}

// joinOne asks one seed. One that is off says nothing: unless it is the last, it
// must not take the time of those that come after it.
func (r *Ring) joinOne(ctx context.Context, list *memberlist.Memberlist, s Seed, last bool) error {
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seedTimeout)
		defer cancel()
	}
	return r.port.joinThrough(ctx, s, func(placeholder string) error {
		_, err := list.Join([]string{placeholder})
		return err
	})
}

var errNotRunning = errors.New("the ring is not running")

// running is the memberlist between Start and Leave or Close, else nil.
func (r *Ring) running() *memberlist.Memberlist {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	return r.list
}

// Members is what this host believes now, itself included, in order of ID.
func (r *Ring) Members() []Member { return r.members.listed() }

// Changed yields a value after Members has changed; several changes may yield
// one. It is for one reader.
func (r *Ring) Changed() <-chan struct{} { return r.changed }

func (r *Ring) notify() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// UpdateRecord announces the host's node record after it was renewed. It
// returns a Conflict if the record names another address than the ring
// advertises: then leave, close, and make a new ring.
func (r *Ring) UpdateRecord() error {
	r.mu.Lock()
	list := r.list
	if r.ended || list == nil {
		r.mu.Unlock()
		return errNotRunning
	}
	err := r.loadRecordLocked()
	r.mu.Unlock()
	if err != nil {
		return err
	}
	// The error is a timeout: memberlist loses the notice of a broadcast that
	// another one replaces. The next state exchange carries the record anyway.
	if err := list.UpdateNode(updateTimeout); err != nil {
		r.cfg.Logger.Debug("node record announced without an answer", "err", err)
	}
	return nil
}

// Recheck verifies every member's record again and forgets those that no
// longer count. Whoever learns of new trust or of a revocation calls it.
func (r *Ring) Recheck() { r.members.recheck() }

// SetKeys replaces the gossip keys: the first seals, all open. To change the
// key of a fleet, every member gets the new one as second before any gets it
// as first.
func (r *Ring) SetKeys(keys [][]byte) error {
	k, err := newKeyring(keys, label(r.cfg.Fleet, r.cfg.Cell))
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	r.port.keys.Store(k)
	return nil
}

// Stats is the state of the counters.
func (r *Ring) Stats() Stats {
	s := r.counts.stats()
	if list := r.running(); list != nil {
		s.Health = list.GetHealthScore()
	}
	return s
}

// Leave tells the ring that this host goes, and returns when that is on its
// way to somebody, or when ctx is done, but after five seconds at most. Others
// see a suspect that does not answer: see the package comment.
func (r *Ring) Leave(ctx context.Context) error {
	timeout := leaveTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if timeout <= 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	r.cancel() // a leaver does not rejoin
	r.loop.Wait()
	r.ending.Lock()
	defer r.ending.Unlock()
	list := r.end()
	if list == nil {
		return nil
	}
	r.left = list
	if err := list.Leave(timeout); err != nil {
		return fmt.Errorf("leave the ring: %w", err)
	}
	return nil
}

// end marks the ring as ended and returns its memberlist, if that was running.
func (r *Ring) end() *memberlist.Memberlist {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	r.ended = true
	return r.list
}

// Close ends the ring, without a word to the others unless it was left, and
// frees the packet socket for the next ring. It may be called more than once.
func (r *Ring) Close() error {
	r.cancel()
	r.loop.Wait()
	r.ending.Lock()
	defer r.ending.Unlock()
	list := r.end()
	if list == nil {
		list, r.left = r.left, nil
	}
	if list == nil {
		return nil
	}
	return list.Shutdown() // closes the port through its Shutdown
}

// label separates rings: a packet or stream of another fleet or cell is refused.
func label(id fleet.ID, cell string) string {
	return strings.Join([]string{"fleet gossip v1", string(id), cell}, "/")
}
