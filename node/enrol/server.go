package enrol

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

// codeActivation is SSM's name for the refusal of an activation. No other host
// would answer otherwise, even where the kind (Throttled: it is spent) sounds so.
const codeActivation = "InvalidActivation"

const (
	serverDeadline = 20 * time.Second // for a whole enrolment
	maxEnrolments  = 64               // under way at once on one host
	maxFromOne     = 32               // of them from one address, or one /64 of IPv6
	// maxSkew is how far the clocks of the quorum may lie apart.
	maxSkew = 60 * time.Second
	// RecordValidity is how long a node record counts; it is reissued with the
	// certificate.
	RecordValidity = identity.AgentValidity
)

// ServerConfig is what a host needs to answer joiners.
type ServerConfig struct {
	// Peers lists the hosts of the quorum and their addresses.
	Peers func() []Peer

	// Enrol decides a verified join request and answers the host's row. It is
	// nil on an ordinary host, which only answers where the quorum is.
	Enrol func(ctx context.Context, request []byte) (*fleet.Node, error)

	// Rejoin answers the row of a host that enrolled before, or that it was
	// removed; nil on an ordinary host.
	Rejoin func(ctx context.Context, request []byte) (*fleet.Node, error)

	// Twins names other hosts that are called like this one; nil knows of none.
	Twins func(node *fleet.Node) []fleet.NodeID

	// Issuing is what a quorum host signs with; of kind Unavailable while it
	// does not vote.
	Issuing func() (*Issuing, error)

	// Reaches tries a TCP connection; nil tries none. It is asked for the
	// address of whoever asks only.
	Reaches func(ctx context.Context, addr string) error

	Now    func() time.Time
	Logger *slog.Logger
}

// Issuing is an issuing key with what an answer to a joiner carries.
type Issuing struct {
	FleetName  string
	Key        identity.PrivateKey
	Issuer     []byte // DER
	Root       []byte // DER
	Trust      []byte
	GossipKeys [][]byte
	Cell       string
}

// Certify signs an agent certificate and a node record for a decided row.
func (i *Issuing) Certify(n *fleet.Node, now time.Time) (certificate, record []byte, err error) {
	if certificate, err = identity.IssueAgent(i.Key, i.Issuer, n.ID, n.Key, now); err != nil {
		return nil, nil, err
	}
	addr, err := netip.ParseAddrPort(n.Address)
	if err != nil {
		return nil, nil, fleet.Errorf(fleet.Invalid, "the address %.100q of node %s is not IP:PORT", n.Address, n.ID)
	}
	id := i.Key.Public().ID()
	record, err = identity.SignNodeRecord(i.Key, identity.NodeRecord{
		Issuer: [4]byte(id[:4]), Role: fleet.RoleAgent, Node: n.ID, Addr: addr, Cell: i.Cell,
		Epoch: uint32(now.Unix()), Expiry: uint32(now.Add(RecordValidity).Unix()),
	})
	return certificate, record, err
}

// Server answers joiners.
type Server struct {
	cfg  ServerConfig
	busy chan struct{} // one token for each enrolment under way

	mu   sync.Mutex         // guards from
	from map[netip.Addr]int // those under way, by source; only entries above zero

	callBacks callBacks
}

// NewServer makes a server; Serve starts it.
func NewServer(cfg ServerConfig) *Server {
	return &Server{cfg: cfg, busy: make(chan struct{}, maxEnrolments), from: map[netip.Addr]int{}}
}

// Serve answers the connections of l until ctx is done or l is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // Accept reports it
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		source := transport.SourceOf(conn.RemoteAddr())
		if !s.enter(source) { // over the budget: the joiner tries another host
			conn.Close() //nolint:errcheck // nothing was promised
			continue
		}
		wg.Go(func() {
			defer s.leave(source)
			defer conn.Close() //nolint:errcheck // the answer was written or its error logged
			s.answer(ctx, conn)
		})
	}
}

// enter takes a place for a joiner: of all that there are, and of its source's
// share, so that a single stranger does not keep everybody else out.
func (s *Server) enter(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from[source] >= maxFromOne {
		return false
	}
	select {
	case s.busy <- struct{}{}:
		s.from[source]++
		return true
	default:
		return false
	}
}

func (s *Server) leave(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	<-s.busy
	if s.from[source]--; s.from[source] == 0 {
		delete(s.from, source)
	}
}

func (s *Server) answer(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, serverDeadline)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // ends the reads below
	defer stop()
	var h hello
	if err := readMessage(conn, MaxMessage, &h); err != nil {
		if !errors.Is(err, io.EOF) {
			s.cfg.Logger.Debug("join request not read", "addr", conn.RemoteAddr().String(), "err", err)
		}
		return
	}
	a, err := s.decide(ctx, &h)
	if err != nil {
		s.cfg.Logger.Warn("join refused", "addr", conn.RemoteAddr().String(), "err", err)
		a = refusal(err)
	}
	if h.CallBack != 0 {
		a.CallBack = s.callBack(ctx, conn.RemoteAddr(), h.CallBack)
	}
	a.Version, a.Time, a.Observed = 1, s.cfg.Now().UnixNano(), conn.RemoteAddr().String()
	if err := writeMessage(conn, a); err != nil {
		s.cfg.Logger.Debug("join answer not written", "addr", conn.RemoteAddr().String(), "err", err)
	}
}

func (s *Server) decide(ctx context.Context, h *hello) (*answer, error) {
	if h.Version != 1 {
		return nil, fleet.Errorf(fleet.Invalid, "version %d of the join protocol is not known here; this host speaks version 1", h.Version).
			WithHint("join with the release of fleet that the quorum runs")
	}
	a := &answer{}
	for _, p := range s.cfg.Peers() {
		a.Peers = append(a.Peers, wirePeer(p))
	}
	if len(h.Rejoin) > 0 && len(h.Request) == 0 {
		if err := s.rejoin(ctx, a, h.Rejoin); err != nil {
			return nil, err
		}
		return a, nil
	}
	if s.cfg.Enrol == nil || len(h.Request) == 0 {
		return a, nil
	}
	// What this host could not certify must not be enrolled: the activation
	// would be counted for nothing.
	if _, err := s.cfg.Issuing(); fleet.KindOf(err) == fleet.Unavailable {
		return a, nil // it holds a quorum certificate but does not vote yet: others do
	} else if err != nil {
		return nil, err
	}
	payload, _, err := identity.ParseJoinRequest(h.Request)
	if err != nil {
		return nil, err
	}
	if err := checkAdvertise(payload.Address); err != nil {
		return nil, err
	}
	if err := refuseForeignID(payload.Name, fleet.NodeIDOf(payload.Key)); err != nil {
		return nil, err
	}
	began := s.cfg.Now()
	node, err := s.cfg.Enrol(ctx, h.Request)
	if err != nil {
		return nil, err
	}
	// A row that was there before is that of a host that lost its data: what was
	// sent to it so far may have run there.
	a.Origin = node.Enrolled
	if node.Enrolled < began.Add(-maxSkew).UnixNano() {
		a.Origin = began.UnixNano()
	}
	if err := s.certify(a, node); err != nil {
		return nil, err
	}
	a.Replaces = string(node.Replaces)
	if s.cfg.Twins != nil {
		for _, id := range s.cfg.Twins(node) {
			if len(a.Twins) < maxTwins {
				a.Twins = append(a.Twins, string(id))
			}
		}
	}
	s.cfg.Logger.Info("node enrolled", "enrolled", node.ID, "addr", node.Address)
	return a, nil
}

// rejoin gives a host that enrolled before a certificate of today.
func (s *Server) rejoin(ctx context.Context, a *answer, request []byte) error {
	if s.cfg.Rejoin == nil {
		return nil // an ordinary host: it says where the quorum is
	}
	node, err := s.cfg.Rejoin(ctx, request)
	if fleet.KindOf(err) == fleet.Unavailable {
		return nil // as above
	}
	if err != nil {
		return err
	}
	if err := s.certify(a, node); err != nil {
		return err
	}
	s.cfg.Logger.Info("node rejoined", "enrolled", node.ID, "addr", node.Address)
	return nil
}

// certify puts into an answer what a host of this row needs.
func (s *Server) certify(a *answer, node *fleet.Node) error {
	issuing, err := s.cfg.Issuing()
	if err != nil {
		return err
	}
	if a.Certificate, a.NodeRecord, err = issuing.Certify(node, s.cfg.Now()); err != nil {
		return err
	}
	a.FleetName, a.NodeName = issuing.FleetName, node.Name
	a.Issuer, a.Root, a.Trust, a.GossipKeys = issuing.Issuer, issuing.Root, issuing.Trust, issuing.GossipKeys
	return nil
}

// refusal is what a joiner is told of an error: the message of a fleet.Error,
// nothing of an internal one.
func refusal(err error) *answer {
	var e *fleet.Error
	if !errors.As(err, &e) {
		return &answer{Kind: uint8(fleet.Other), Message: "the host could not decide this request; its log says why"}
	}
	a := &answer{Kind: uint8(e.Kind), Code: e.Code, Message: e.Message, Hint: fleet.HintOf(err)}
	if a.Message == "" { // an answer without one is no refusal
		a.Message = e.Kind.String()
	}
	return a
}
