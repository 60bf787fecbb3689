package enrol

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/stagger"
	"fleet/node/transport"
)

const (
	joinTimeout  = 15 * time.Second // for one address
	joinPatience = 2 * time.Second  // then the next is asked too
	maxRounds    = 3                // of redirects by ordinary hosts
	maxTried     = 16               // addresses in all
	// maxRedirects is how many addresses of one host are followed.
	maxRedirects = 8
	// maxTwins is how many hosts of the same name a joiner is told of.
	maxTwins = 4
	// ClockWarning is the offset from which a joiner is told that its clock is wrong.
	ClockWarning = 60 * time.Second
)

// JoinOptions says how to enrol this host.
type JoinOptions struct {
	DataDir   string
	Token     identity.JoinToken
	NodeName  string // empty: the activation's default name, else refused by the fleet
	Advertise string // "ip:port" where the others reach this host
	Now       func() time.Time
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error) // nil: the system's

	// Waits is told of an address that gave no answer so far, as the next is
	// asked. nil: nobody is.
	Waits func(addr string)
}

// JoinResult says what Join enrolled in.
type JoinResult struct {
	Fleet       fleet.ID
	Name        string
	Node        fleet.NodeID
	NodeName    string
	Replaces    fleet.NodeID // whose place this host took; empty for none
	Quorum      []Peer
	ClockOffset time.Duration // of the fleet's clock from this host's
	Warnings    []string      // for a person
}

// Join enrols this host. It may be repeated after a failure: the agent key is
// kept, and the same key gets the same row without counting the activation
// twice.
func Join(ctx context.Context, o JoinOptions) (*JoinResult, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := checkAdvertise(o.Advertise); err != nil {
		return nil, err
	}
	if o.NodeName != "" {
		if err := fleet.CheckNodeName(o.NodeName); err != nil {
			return nil, err
		}
		if err := refuseForeignID(o.NodeName, ""); err != nil {
			return nil, err
		}
	}
	dir, err := createDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	key, err := dir.LoadOrCreateKey(Agent)
	if err != nil {
		return nil, err
	}
	j := &joiner{dial: o.Dial, now: o.Now, waits: o.Waits, root: o.Token.Root, key: key, hello: func(peer identity.Peer) (hello, error) {
		request, err := identity.NewJoinRequest(identity.JoinPayload{
			Fleet: peer.Fleet, Activation: o.Token.Activation, Key: key.Public(),
			Name: o.NodeName, Address: o.Advertise, Epoch: uint32(o.Now().Unix()),
		}, key, o.Token.Code)
		return hello{Request: request}, err
	}}
	if len(o.Token.Addresses) == 0 {
		return nil, fleet.Errorf(fleet.Invalid, "the token names no address").WithHint("make a new one: fleet activation create --address IP:PORT")
	}
	f, err := j.ask(ctx, o.Token.Addresses)
	if err != nil {
		return nil, err
	}
	return j.keep(dir, f.answer, f.offset)
}

// joiner asks the hosts of a quorum for what only they can give.
type joiner struct {
	dial  transport.DialFunc // nil: the system's
	now   func() time.Time
	root  fleet.Digest // of the fleet's root key
	key   identity.PrivateKey
	hello func(peer identity.Peer) (hello, error) // the question to a host of the quorum
	waits func(addr string)                       // nil: nobody is told

	mu         sync.Mutex      // guards what follows
	tried      map[string]bool // addresses that were asked
	redirected map[string]bool // those that know others
	failures   []error
}

// found is what a host of the quorum answered.
type found struct {
	peer    identity.Peer
	answer  *answer // nil when it refused
	refusal error   // others would say the same
	offset  time.Duration
}

// ask asks at the addresses, and at those it is sent to, in random order, until
// a host of the quorum has answered. It does not wait for the silent: asking
// twice is safe, because the same key gets the same row.
func (j *joiner) ask(ctx context.Context, addresses []string) (*found, error) {
	f := j.askAny(ctx, addresses, maxRounds)
	switch {
	case f != nil:
		return f, f.refusal
	case ctx.Err() != nil:
		return &found{}, fmt.Errorf("ask the fleet's quorum: %w", context.Cause(ctx))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return &found{}, noAnswer(j.failures)
}

// askAny asks some addresses; nil when none leads to an answer.
func (j *joiner) askAny(ctx context.Context, addresses []string, rounds int) *found {
	if rounds == 0 {
		return nil
	}
	addrs := append([]string(nil), addresses...)
	rand.Shuffle(len(addrs), func(i, k int) { addrs[i], addrs[k] = addrs[k], addrs[i] })
	f, _ := stagger.First(ctx, len(addrs), joinPatience, func(ctx context.Context, i int, _ func()) (*found, error) {
		if i > 0 {
			j.tellOf(addrs[i-1])
		}
		if f := j.askAt(ctx, addrs[i], rounds); f != nil {
			return f, nil
		}
		return nil, errors.New("no answer")
	})
	return f
}

// askAt asks at one address and, if it knows others, at those.
func (j *joiner) askAt(ctx context.Context, addr string, rounds int) *found {
	if !j.begin(addr) {
		return nil
	}
	f, redirect, err := j.askOne(ctx, addr)
	if f != nil || err == nil && ctx.Err() != nil {
		return f
	}
	j.mu.Lock()
	redirect = slices.DeleteFunc(redirect, func(to string) bool { return j.tried[to] || identity.CheckAddress(to) != nil })
	if err == nil && len(redirect) == 0 {
		err = errors.New("it is not of the quorum and knows no other address of it")
	}
	if err != nil {
		if !strings.Contains(err.Error(), addr) {
			err = fmt.Errorf("%s: %w", addr, err)
		}
		j.failures = append(j.failures, err)
	} else {
		j.redirected[addr] = true
	}
	j.mu.Unlock()
	if err != nil {
		return nil
	}
	return j.askAny(ctx, redirect, rounds-1)
}

// begin reports whether an address is to be asked, and counts it.
func (j *joiner) begin(addr string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.tried == nil {
		j.tried, j.redirected = map[string]bool{}, map[string]bool{}
	}
	if j.tried[addr] || len(j.tried) == maxTried {
		return false
	}
	j.tried[addr] = true
	return true
}

// tellOf says that an address gave no answer so far.
func (j *joiner) tellOf(addr string) {
	j.mu.Lock()
	tell := j.waits != nil && !j.redirected[addr]
	j.mu.Unlock()
	if tell {
		j.waits(addr)
	}
}

// noAnswer is the error after every address has failed. Its kind and hint are
// those of the failure that says most: a host that could not be trusted before
// one that says that nothing can be decided, and that before one that could not
// be reached.
func noAnswer(failures []error) error {
	all := errors.Join(failures...)
	e := fleet.Errorf(fleet.Unavailable, "no host of the fleet's quorum answered: %w", all)
	hint := fleet.HintOf(all)
	for _, kind := range []fleet.Kind{fleet.NoQuorum, fleet.Expired, fleet.Unauthenticated} {
		for _, err := range failures {
			if fleet.KindOf(err) == kind {
				e.Kind = kind
				hint = fleet.HintOf(err)
			}
		}
	}
	if hint == "" {
		hint = "check that these hosts run and that this host reaches their TCP port"
	}
	return e.WithHint("%s", hint)
}

// askOne asks one host. It finds an answer, or addresses of others, or an error
// after which others may still answer.
func (j *joiner) askOne(ctx context.Context, addr string) (_ *found, redirect []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := transport.DialJoin(ctx, j.dial, addr, j.root, j.now)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close() //nolint:errcheck // the answer was read or the error says more
	// An answer that comes from elsewhere ends the waiting for this one.
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // as above
	defer stop()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	var msg hello
	f := &found{peer: conn.Peer}
	if conn.Peer.Role == fleet.RoleQuorum {
		if msg, err = j.hello(conn.Peer); err != nil {
			return nil, nil, err
		}
	}
	msg.Version = 1
	sent := j.now()
	if err := writeMessage(conn, &msg); err != nil {
		return nil, nil, fmt.Errorf("send join request: %w", err)
	}
	var a answer
	if err := readMessage(conn, maxAnswer, &a); err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	if a.Version != 1 {
		return nil, nil, fleet.Errorf(fleet.Invalid, "the host speaks version %d of the join protocol, this program version 1", a.Version)
	}
	if a.Message != "" {
		err := &fleet.Error{Kind: fleet.Kind(a.Kind), Code: a.Code, Message: a.Message, Hint: a.Hint}
		if conn.Peer.Role == fleet.RoleQuorum && isDecided(err) {
			f.refusal = err
			return f, nil, nil
		}
		return nil, nil, err
	}
	if conn.Peer.Role != fleet.RoleQuorum || len(a.Certificate) == 0 {
		for _, p := range a.Peers[:min(len(a.Peers), maxRedirects)] {
			redirect = append(redirect, p.Address)
		}
		return nil, redirect, nil
	}
	f.answer, f.offset = &a, time.Unix(0, a.Time).Sub(sent.Round(0))
	return f, nil, nil
}

// isDecided reports whether a refusal is the quorum's: another of its hosts may
// know better what this one could only not find out.
func isDecided(err *fleet.Error) bool {
	if err.Code == codeActivation || err.Code == fleet.CodeNodeRemoved {
		return true
	}
	switch err.Kind {
	case fleet.NoQuorum, fleet.NotLeader, fleet.Unavailable, fleet.Unknown, fleet.Throttled:
		return false
	}
	return true
}

// renewed is what a quorum host sent to a host, checked under the root key that
// the host pinned.
type renewed struct {
	root  fleet.PublicKey
	trust *identity.Trust
	peer  identity.Peer
	peers []Peer
}

func (j *joiner) check(a *answer, offset time.Duration) (*renewed, error) {
	rootCert, err := x509.ParseCertificate(a.Root)
	if err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "the root certificate in the answer cannot be read: %w", err)
	}
	root, err := identity.CertificateKey(rootCert)
	if err != nil {
		return nil, err
	}
	if fleet.Sum(root[:]) != j.root {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the answer carries another root key than the token")
	}
	trust, err := identity.ParseTrust(a.Trust, root)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, der := range [][]byte{a.Certificate, a.Issuer, a.Root} {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fleet.Errorf(fleet.Invalid, "a certificate in the answer cannot be read: %w", err)
		}
		chain = append(chain, cert)
	}
	// The fleet's time decides here: this host's clock may be wrong, which is
	// warned of, not a reason to stay out.
	peer, err := identity.VerifyChain(chain, trust.Fleet, j.now().Add(offset))
	if err != nil {
		return nil, fmt.Errorf("check the certificate in the answer: %w", err)
	}
	if peer.Key != j.key.Public() {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the certificate in the answer is for another key")
	}
	peers := make([]Peer, 0, len(a.Peers))
	for _, p := range a.Peers {
		peers = append(peers, Peer(p))
	}
	return &renewed{root: root, trust: trust, peer: peer, peers: peers}, nil
}

// keep checks what the quorum sent and fills the data directory.
func (j *joiner) keep(dir *Dir, a *answer, offset time.Duration) (*JoinResult, error) {
	checked, err := j.check(a, offset)
	if err != nil {
		return nil, err
	}
	root, trust, peer, peers := checked.root, checked.trust, checked.peer, checked.peers
	for _, step := range []func() error{
		func() error { return dir.SaveTrust(trust) },
		func() error { return dir.SaveGossipKeys(a.GossipKeys) },
		func() error { return dir.SavePeers(peers) },
		func() error { return dir.SaveChain(Agent, a.Certificate, a.Issuer, a.Root) },
		func() error { return dir.SaveNodeRecord(a.NodeRecord) },
		func() error { return dir.createJournal(a.Origin) },
		func() error {
			return dir.finish(&Fleet{
				Fleet: trust.Fleet, Name: a.FleetName, Node: peer.Node, NodeName: a.NodeName,
				RootCertificate: a.Root, RootKey: root[:],
			})
		},
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	r := &JoinResult{Fleet: trust.Fleet, Name: a.FleetName, Node: peer.Node, NodeName: a.NodeName, Quorum: peers, ClockOffset: offset}
	if id, err := fleet.ParseNodeID(a.Replaces); err == nil {
		r.Replaces = id
	}
	if w := clockWarning(offset); w != "" {
		r.Warnings = append(r.Warnings, w)
	}
	if w := twinWarning(a.NodeName, peer.Node, a.Twins); w != "" {
		r.Warnings = append(r.Warnings, w)
	}
	return r, nil
}

// twinWarning is empty when no other host has the name. Names need not be
// unique, but a second one is nearly always a mistake, and the place to learn of
// it is where it was made.
func twinWarning(name string, node fleet.NodeID, twins []string) string {
	var ids []string
	for _, t := range twins[:min(len(twins), maxTwins)] {
		if id, err := fleet.ParseNodeID(t); err == nil {
			ids = append(ids, string(id))
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return fmt.Sprintf("another host is called %s too (%s): commands must name them by ID; to give this one another name: fleet node rename %s NAME",
		name, strings.Join(ids, ", "), node)
}

// clockWarning is empty for a clock that is near enough.
func clockWarning(offset time.Duration) string {
	if offset.Abs() <= ClockWarning {
		return ""
	}
	return ClockText(offset) + ": commands still run by the fleet's clock; set this host's (chronyc makestep, timedatectl)"
}

// ClockText says how far this host's clock is off, for a person.
func ClockText(offset time.Duration) string {
	word := "behind"
	if offset < 0 {
		word = "ahead of"
	}
	return fmt.Sprintf("this host's clock is %s %s the fleet's", offset.Abs().Round(time.Second), word)
}
