package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
	"fleet/node/wire"
)

const (
	// ProofValid is how long the client's proofs last. It is half of what the
	// fleet accepts, so that a clock may be wrong by that much either way.
	ProofValid = identity.ProofLifetime / 2

	// MaxPreamble bounds each frame of the preamble.
	MaxPreamble = 4 << 10

	exporterLabel = "EXPORTER-fleet-api"
)

// Welcome is the quorum host's only frame before HTTP begins; the operator's
// only frame is a proof of the operation identity.OperationConnect whose body
// is the Binding of the connection.
type Welcome struct {
	OK      bool       `msgpack:"ok"`
	Time    int64      `msgpack:"t"` // the host's clock
	Kind    fleet.Kind `msgpack:"k,omitempty"`
	Message string     `msgpack:"m,omitempty"`
	Hint    string     `msgpack:"h,omitempty"`

	// Quorum is where the voters answer, so that the next connection can be
	// made when this host is gone; at most 5, only with OK.
	Quorum []string `msgpack:"q,omitempty"`
}

// Binding is what ties a proof to one TLS connection: both ends compute it, a
// third cannot choose it, so a proof that was seen on one connection counts on
// no other.
func Binding(state tls.ConnectionState) (fleet.Digest, error) {
	material, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return fleet.Digest{}, fmt.Errorf("bind to the connection: %w", err)
	}
	return fleet.Sum(material), nil
}

// greet proves the operator to the host and reads its answer, which says yes
// if there is no error.
func greet(ctx context.Context, conn *transport.Conn, cred identity.Credential, now time.Time) (*Welcome, error) {
	binding, err := Binding(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	nonce, err := newNonce()
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, fmt.Errorf("set deadline: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends what waits, which reports it
	defer stop()
	proof := identity.SignProof(cred.Key, identity.Proof{
		Fleet: cred.Fleet, Operator: cred.Operator, Key: cred.Key.Public().ID(), Operation: identity.OperationConnect,
		Body: binding, Nonce: nonce, NotAfter: now.Add(ProofValid).UnixNano(),
	})
	if err := wire.WriteFrame(conn, proof); err != nil {
		return nil, fmt.Errorf("greet: %w", err)
	}
	b, err := wire.ReadFrame(conn, MaxPreamble)
	if err != nil {
		return nil, fmt.Errorf("greet: %w", err)
	}
	var w Welcome
	if err := wire.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("greet: %w", err)
	}
	if !w.OK {
		e := fleet.Errorf(w.Kind, "%s", w.Message)
		if w.Hint != "" {
			e = e.WithHint("%s", w.Hint)
		}
		return nil, e
	}
	if !stop() {
		return nil, ctx.Err() // its deadline is being set
	}
	return &w, conn.SetDeadline(time.Time{})
}

func newNonce() (nonce [16]byte, err error) {
	if _, err := rand.Read(nonce[:]); err != nil {
		return nonce, fmt.Errorf("make nonce: %w", err)
	}
	return nonce, nil
}

// unwrapURL removes the method and URL that net/http puts before an error: the
// URL is a fiction.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
