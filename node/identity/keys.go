package identity

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"

	"fleet/node/fleet"
)

// Use is what a signature is for. The signed bytes begin with it, so that a
// signature made for one use never counts for another.
type Use string

// Uses of signatures; each carries the version of the format it signs.
const (
	UseTrust      Use = "fleet trust v1"
	UseGenesis    Use = "fleet genesis v1"
	UseProof      Use = "fleet proof v1"
	UseJoin       Use = "fleet join v1"       // both signatures of a join request
	UseNodeRecord Use = "fleet noderecord v1" // issuing key
	UseTicket     Use = "fleet ticket v1"     // quorum key
	UseCancel     Use = "fleet cancel v1"     // quorum key
	UseRelease    Use = "fleet release v1"    // quorum key
	UseResult     Use = "fleet result v1"     // agent key
	UseReceipt    Use = "fleet receipt v1"    // agent key: this host holds a command
	UseAck        Use = "fleet ack v1"        // quorum key: results are in the log
	UseAddress    Use = "fleet address v1"    // agent key: a host's change of address
	UseCandidate  Use = "fleet candidate v1"  // request to become a voter
	UseRejoin     Use = "fleet rejoin v1"     // agent key: is this host still of the fleet?
	UseLeave      Use = "fleet leave v1"      // agent key: this host goes out of the fleet
	UseFile       Use = "fleet file v1"       // operator key: vouches for a file
	UseBackup     Use = "fleet backup v1"     // operator key: ends a backup
)

// PrivateKey is an Ed25519 key that can be neither printed, logged nor
// compared. The zero value signs nothing.
//
// The key is inside a function because fmt calls no method on an unexported
// field and follows pointers: whatever prints a struct that holds a PrivateKey
// must find an address and no bytes.
type PrivateKey struct {
	key func() ed25519.PrivateKey // nil when there is no key
}

func privateKey(key ed25519.PrivateKey) PrivateKey {
	return PrivateKey{key: func() ed25519.PrivateKey { return key }}
}

// GenerateKey makes a new key.
func GenerateKey() (PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	return privateKey(key), nil
}

// KeyFromSeed makes the key that belongs to a 32-byte seed.
func KeyFromSeed(seed [32]byte) PrivateKey {
	return privateKey(ed25519.NewKeyFromSeed(seed[:]))
}

// IsZero reports whether there is no key.
func (k PrivateKey) IsZero() bool { return k.key == nil }

// Public is the key's public half; zero when there is no key.
func (k PrivateKey) Public() fleet.PublicKey {
	if k.key == nil {
		return fleet.PublicKey{}
	}
	return fleet.PublicKey(k.key().Public().(ed25519.PublicKey))
}

// Signer is the key for crypto/tls and crypto/x509; nil when there is no key.
func (k PrivateKey) Signer() crypto.Signer {
	if k.key == nil {
		return nil
	}
	return k.key()
}

// Sign signs use, a zero byte and msg; nil when there is no key.
func (k PrivateKey) Sign(use Use, msg []byte) []byte {
	if k.key == nil {
		return nil
	}
	return ed25519.Sign(k.key(), signedBytes(use, msg))
}

// seed is what KeyFromSeed makes the key from. Only the files of this package
// may hold it. The key must not be zero.
func (k PrivateKey) seed() []byte { return k.key().Seed() }

// Verify reports whether sig is pub's signature over msg for this use. The zero
// key verifies nothing: it is a point of the curve for which anybody can sign.
func Verify(pub fleet.PublicKey, use Use, msg, sig []byte) bool {
	return !pub.IsZero() && len(sig) == ed25519.SignatureSize && ed25519.Verify(pub[:], signedBytes(use, msg), sig)
}

func signedBytes(use Use, msg []byte) []byte {
	b := make([]byte, 0, len(use)+1+len(msg))
	b = append(b, use...)
	b = append(b, 0)
	return append(b, msg...)
}

// String hides the key.
func (PrivateKey) String() string { return "[redacted]" }

// GoString hides the key.
func (PrivateKey) GoString() string { return "[redacted]" }

// Format hides the key from every verb.
func (PrivateKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[redacted]") }

// LogValue hides the key.
func (PrivateKey) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText hides the key from encoders.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }
