package identity

import (
	"regexp"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
)

const (
	// ProofLifetime is how far ahead of its making a proof may end.
	ProofLifetime = 10 * time.Minute

	// MaxProof is the size of the largest proof, in bytes.
	MaxProof = 1 << 10

	// OperationConnect is the operation of a proof for a connection: its Body is
	// the SHA-256 of the TLS exporter (label "EXPORTER-fleet-api", 32 bytes), so
	// that it is worth nothing on another connection.
	OperationConnect = "Connect"
)

// Proof says that an operator wants one operation with one body. It is signed
// with the operator's key and checked against the operator's row.
type Proof struct {
	Fleet     fleet.ID           `msgpack:"f"`
	Operator  fleet.OperatorName `msgpack:"o"`
	Key       fleet.KeyID        `msgpack:"k"` // which of the operator's keys
	Operation string             `msgpack:"op"`
	Body      fleet.Digest       `msgpack:"b"`
	Nonce     [16]byte           `msgpack:"n"` // the same nonce is the same request, and answered once
	NotAfter  int64              `msgpack:"e"` // Unix nanoseconds
}

type proof struct {
	Version uint8 `msgpack:"v"`
	Proof   `msgpack:",inline"`
}

// SignedProof is a Proof as it travels.
type SignedProof struct {
	Proof
	Payload, Signature []byte
}

// SignProof signs p. A zero Key is set to that of the signing key.
func SignProof(key PrivateKey, p Proof) []byte {
	if p.Key == (fleet.KeyID{}) {
		p.Key = key.Public().ID()
	}
	payload := wire.MustMarshal(&proof{1, p})
	return EncodeSigned(payload, key.Sign(UseProof, payload))
}

var operationPattern = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,63}$`)

// ParseProof reads a proof and checks its form. It verifies neither signature
// nor time.
func ParseProof(b []byte) (*SignedProof, error) {
	const what = "proof"
	var p proof
	payload, signature, err := DecodeSigned(b, MaxProof, what, &p)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(what, p.Version); err != nil {
		return nil, err
	}
	if _, err := fleet.ParseID(string(p.Fleet)); err != nil {
		return nil, err
	}
	if _, err := fleet.ParseOperatorName(string(p.Operator)); err != nil {
		return nil, err
	}
	if !operationPattern.MatchString(p.Operation) {
		return nil, fleet.Errorf(fleet.Invalid, "proof: operation %.80q is not a name", p.Operation)
	}
	if p.NotAfter <= 0 {
		return nil, fleet.Errorf(fleet.Invalid, "proof: it never ends or never began")
	}
	return &SignedProof{p.Proof, payload, signature}, nil
}

// Verify checks the signature by the operator's key. The error is of kind
// Unauthenticated.
func (s *SignedProof) Verify(pub fleet.PublicKey) error {
	if s.Key != pub.ID() || !Verify(pub, UseProof, s.Payload, s.Signature) {
		return fleet.Errorf(fleet.Unauthenticated, "proof: not signed by key %s of operator %s", pub.ID(), s.Operator)
	}
	return nil
}
