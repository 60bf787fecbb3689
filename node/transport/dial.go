package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// dialTimeout bounds connecting and handshake together; a shorter deadline of
// the context holds.
const dialTimeout = 10 * time.Second

// DialFunc opens a plain connection.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// DialPeer opens a connection of protocol p to the identity want of a node,
// presenting this host's own identity as. The peer's role and node ID are
// checked before it returns. A peer that refuses this host's certificate shows
// only at the first read: TLS 1.3 lets the client finish first.
//
// Errors: Invalid when the protocol does not allow the roles, Unavailable when
// this host does not hold the identity or the other cannot be reached, Expired
// and Unauthenticated for the certificate presented, or what Admit says.
func (t *Transport) DialPeer(ctx context.Context, p Proto, as fleet.Role, addr string, want fleet.Role,
	node fleet.NodeID) (*Conn, error) {
	r, known := table[p]
	if !known || !r.byID || !slices.Contains(r.servers, want) || !slices.Contains(r.clients, as) {
		return nil, fleet.Errorf(fleet.Invalid, "%s does not join the %s identity to the %s identity", p, as, want)
	}
	cert := t.certificate(as)
	if cert == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "this host holds no %s certificate", as)
	}
	c, err := dial(ctx, t.cfg.Dial, addr, target{
		proto: p,
		name:  serverName(want, node),
		own:   cert,
		now:   t.cfg.Now,
		verify: func(chain []*x509.Certificate, now time.Time) (identity.Peer, error) {
			peer, err := verifyServer(chain, t.cfg.Fleet, want, node, now)
			if err != nil {
				return peer, err
			}
			return peer, t.admit(p, peer)
		},
	})
	if err != nil {
		return nil, err
	}
	c.release = func() { t.untrack(c) }
	t.track(c)
	return c, nil
}

// DialPlain opens a connection without TLS of this host's own, for bytes that
// are passed on as they are.
func (t *Transport) DialPlain(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := t.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, connectError(addr, err)
	}
	return raw, nil
}

// DialAPI opens an operator's connection to a quorum host without a running
// transport. An empty node accepts any quorum host of the fleet; dial nil is
// the system's dialer. The caller still has to prove who it is.
func DialAPI(ctx context.Context, dialer DialFunc, addr string, id fleet.ID, node fleet.NodeID,
	now func() time.Time) (*Conn, error) {
	name := nameQuorum
	if node != "" {
		name = serverName(fleet.RoleQuorum, node)
	}
	return dial(ctx, dialer, addr, target{
		proto: API, name: name, now: now,
		verify: func(chain []*x509.Certificate, now time.Time) (identity.Peer, error) {
			return verifyServer(chain, id, fleet.RoleQuorum, node, now)
		},
	})
}

// Seen is the fleet of a host, as its certificates prove it.
type Seen struct {
	Root fleet.PublicKey
	Name string // of the fleet, as the root key's owner wrote it; for people
	Node fleet.NodeID
}

// Peek asks which fleet the quorum host at addr belongs to, and sends it
// nothing. The answer proves that the host has a quorum certificate under that
// root key; whether that is the root key of the fleet that is meant, only who
// asks can know.
func Peek(ctx context.Context, dialer DialFunc, addr string, now func() time.Time) (Seen, error) {
	var seen Seen
	conn, err := dial(ctx, dialer, addr, target{
		proto: API, name: nameQuorum, now: now,
		verify: func(chain []*x509.Certificate, now time.Time) (peer identity.Peer, err error) {
			if seen.Root, err = rootKey(chain); err != nil {
				return identity.Peer{}, err
			}
			if peer, err = verifyServer(chain, fleet.IDOf(seen.Root), fleet.RoleQuorum, "", now); err != nil {
				return identity.Peer{}, err
			}
			seen.Name, seen.Node = identity.RootName(chain[len(chain)-1]), peer.Node
			return peer, nil
		},
	})
	if err != nil {
		return Seen{}, err
	}
	_ = conn.Close() // what was asked has been answered; the host may have hung up first
	return seen, nil
}

// DialJoin opens a joiner's connection to any host of the fleet whose root
// public key has the given SHA-256. Peer says whether a quorum host or an
// ordinary one answered; an enrolment may be sent only to the former.
func DialJoin(ctx context.Context, dialer DialFunc, addr string, root fleet.Digest, now func() time.Time) (*Conn, error) {
	c, _, err := dialJoin(ctx, dialer, addr, now, func(key fleet.PublicKey) error {
		if fleet.Sum(key[:]) != root {
			return fleet.Errorf(fleet.Unauthenticated, "it belongs to another fleet (root fingerprint %s) than the join token", key.Fingerprint()).
				WithHint("check the addresses in the token, or make a new one on the fleet you mean")
		}
		return nil
	})
	return c, err
}

// DialAny opens a joiner's connection to whatever fleet answers at addr, to find
// out which: Peer says it, and nobody vouches for that. Nothing that matters may
// be sent on it.
func DialAny(ctx context.Context, dialer DialFunc, addr string, now func() time.Time) (*Conn, fleet.PublicKey, error) {
	return dialJoin(ctx, dialer, addr, now, func(fleet.PublicKey) error { return nil })
}

// dialJoin dials a host of a fleet whose root key is accepted.
func dialJoin(ctx context.Context, dialer DialFunc, addr string, now func() time.Time,
	accept func(root fleet.PublicKey) error) (_ *Conn, root fleet.PublicKey, _ error) {
	c, err := dial(ctx, dialer, addr, target{
		proto: Join, name: nameJoin, now: now,
		verify: func(chain []*x509.Certificate, now time.Time) (_ identity.Peer, err error) {
			if root, err = rootKey(chain); err != nil {
				return identity.Peer{}, err
			}
			if err = accept(root); err != nil {
				return identity.Peer{}, err
			}
			return identity.VerifyChain(chain, fleet.IDOf(root), now)
		},
	})
	return c, root, err
}

// target is whom a dial means.
type target struct {
	proto  Proto
	name   string           // SNI
	own    *tls.Certificate // nil: none is presented
	now    func() time.Time // nil: time.Now
	verify func(chain []*x509.Certificate, now time.Time) (identity.Peer, error)
}

func dial(ctx context.Context, dialer DialFunc, addr string, to target) (*Conn, error) {
	if dialer == nil {
		dialer = new(net.Dialer).DialContext
	}
	if to.now == nil {
		to.now = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := dialer(ctx, "tcp", addr)
	if err != nil {
		return nil, connectError(addr, err)
	}
	var peer identity.Peer
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       to.now,
		ServerName: to.name,
		NextProtos: []string{string(to.proto)},
		// Host names mean nothing here: VerifyConnection checks the chain, the
		// role and the node instead, and is called on every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if Proto(cs.NegotiatedProtocol) != to.proto {
				return fleet.Errorf(fleet.Unavailable, "it does not speak %s", to.proto)
			}
			var err error
			peer, err = to.verify(cs.PeerCertificates, to.now())
			return err
		},
	}
	if to.own != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return to.own, nil }
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error is the one that counts
		return nil, dialError(addr, err)
	}
	return newConn(conn, peer, to.proto), nil
}

// connectError names the address once.
func connectError(addr string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		err = op.Err // the rest of it says the address again
	}
	return fleet.Errorf(fleet.Unavailable, "connect to %s: %w", addr, err)
}

// noProtocol is TLS's alert no_application_protocol (RFC 7301).
const noProtocol tls.AlertError = 120

// ErrOtherProtocol is in the chain of a dial's error if the host answers but
// does not speak the protocol that was asked for: it does not hold the role.
var ErrOtherProtocol = errors.New("it does not speak this protocol")

// dialError says which host an error is about and keeps its kind and hint.
func dialError(addr string, err error) error {
	if kind := fleet.KindOf(err); kind != fleet.Other {
		return fleet.Errorf(kind, "host at %s: %w", addr, err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // a TLS alert of the other side
		if op.Err.Error() == noProtocol.Error() { // its type is not exported
			return fleet.Errorf(fleet.Unavailable, "host at %s refused the connection: %w", addr, ErrOtherProtocol).
				WithHint("it may not hold the role that was asked for, or not be the host that was meant")
		}
		return fleet.Errorf(fleet.Unavailable, "host at %s refused the connection: %w", addr, op.Err).
			WithHint("it may not hold the role that was asked for, or not be the host that was meant")
	}
	return fleet.Errorf(fleet.Unavailable, "host at %s: TLS handshake: %w", addr, err)
}

func verifyServer(chain []*x509.Certificate, id fleet.ID, want fleet.Role, node fleet.NodeID,
	now time.Time) (identity.Peer, error) {
	root, err := rootKey(chain)
	if err != nil {
		return identity.Peer{}, err
	}
	if fleet.IDOf(root) != id {
		return identity.Peer{}, fleet.Errorf(fleet.Unauthenticated, "it belongs to another fleet (root fingerprint %s)",
			root.Fingerprint()).WithHint("the address may be wrong, or the host was enrolled into another fleet")
	}
	peer, err := identity.VerifyChain(chain, id, now)
	if err != nil {
		return identity.Peer{}, err
	}
	if peer.Role != want || (node != "" && peer.Node != node) {
		return identity.Peer{}, fleet.Errorf(fleet.Unauthenticated, "it is the %s identity of %s, not the %s identity of %s",
			peer.Role, peer.Node, want, orAny(node))
	}
	return peer, nil
}

func orAny(node fleet.NodeID) string {
	if node == "" {
		return "any host"
	}
	return string(node)
}

// rootKey is the public key that the last certificate of a chain claims. It
// proves nothing before VerifyChain; it lets an error name the other fleet.
func rootKey(chain []*x509.Certificate) (fleet.PublicKey, error) {
	if len(chain) == 0 {
		return fleet.PublicKey{}, fleet.Errorf(fleet.Unauthenticated, "it presented no certificate")
	}
	key, ok := chain[len(chain)-1].PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize {
		return fleet.PublicKey{}, fleet.Errorf(fleet.Unauthenticated, "its certificates are not a fleet's")
	}
	return fleet.PublicKey(key), nil
}
