// Package fleet is the vocabulary of the program: typed IDs, records and
// error kinds that every other package speaks. It has no behaviour and
// imports nothing of ours, so that a reader can learn the words here before
// reading any machinery.
//
// Times are int64 nanoseconds since the Unix epoch, UTC, wherever a record is
// stored or sent ("stamp" when the leader of the quorum decided them). IDs are
// parsed at the edge (flag, URL, RPC, log entry) and trusted inside.
package fleet

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// ID names one fleet: the first 16 bytes of SHA-256 over its root public key,
// as 32 lower-case hex digits.
type ID string

// NodeID names one enrolled host: "mi-" and 17 hex digits of SHA-256 over its
// agent public key (the form of SSM's managed instances).
type NodeID string

// CommandID names one command: a lower-case UUID of 36 characters, as in SSM.
type CommandID string

// ActivationID names one activation: a lower-case UUID of 36 characters.
type ActivationID string

// TargetName names a saved choice of nodes.
type TargetName string

// OperatorName names a person or program that holds an operator key.
type OperatorName string

// KeyID is the first 8 bytes of SHA-256 over a public key. It finds a key
// among a few; it proves nothing.
type KeyID [8]byte

// Digest is a SHA-256.
type Digest [32]byte

// PublicKey is an Ed25519 public key.
type PublicKey [32]byte

// Role is what an identity certificate makes its holder.
type Role uint8

// Roles. RoleNone is a peer without a certificate.
const (
	RoleNone   Role = 0
	RoleAgent  Role = 1 // every enrolled host
	RoleQuorum Role = 2 // a host certified by the root key to decide
	RoleIssuer Role = 3 // a voter's issuing key; never a TLS peer
)

var roleNames = map[Role]string{RoleNone: "none", RoleAgent: "agent", RoleQuorum: "quorum", RoleIssuer: "issuer"}

func (r Role) String() string {
	if s, ok := roleNames[r]; ok {
		return s
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

func (id ID) String() string           { return string(id) }
func (id NodeID) String() string       { return string(id) }
func (id CommandID) String() string    { return string(id) }
func (id ActivationID) String() string { return string(id) }
func (n OperatorName) String() string  { return string(n) }
func (k KeyID) String() string         { return hex.EncodeToString(k[:]) }
func (d Digest) String() string        { return hex.EncodeToString(d[:]) }

// ParseDigest reads what Digest.String wrote: 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(Digest{}) || hex.EncodeToString(b) != s {
		return Digest{}, Errorf(Invalid, "%.80q is not a SHA-256 in lower-case hex", s)
	}
	return Digest(b), nil
}

// IsZero reports whether no digest was set.
func (d Digest) IsZero() bool { return d == Digest{} }

// Sum is the SHA-256 of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// ID is the short name of the key.
func (k PublicKey) ID() KeyID {
	sum := sha256.Sum256(k[:])
	return KeyID(sum[:8])
}

// Fingerprint is the SHA-256 of the key for people to compare: hex digits in
// groups of four, the first 16 bytes.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k[:])
	digits := hex.EncodeToString(sum[:16])
	var groups []string
	for i := 0; i < len(digits); i += 4 {
		groups = append(groups, digits[i:i+4])
	}
	return strings.Join(groups, "-")
}

// publicKeyPrefix names the algorithm, so that another one can come.
const publicKeyPrefix = "ed25519:"

// Text is the key as one word, to be copied; ParsePublicKey reads it.
func (k PublicKey) Text() string { return publicKeyPrefix + base64.RawURLEncoding.EncodeToString(k[:]) }

// ParsePublicKey parses what Text makes.
func ParsePublicKey(s string) (PublicKey, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), publicKeyPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != len(PublicKey{}) || PublicKey(b).IsZero() {
		return PublicKey{}, Errorf(Invalid, "public key %.80q is not %s and 43 letters, digits, - and _", s, publicKeyPrefix).
			WithHint("copy the whole word that \"fleet login\" shows")
	}
	return PublicKey(b), nil
}

// IsZero reports whether no key was set.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// IDOf is the fleet ID that belongs to a root public key.
func IDOf(root PublicKey) ID {
	sum := sha256.Sum256(root[:])
	return ID(hex.EncodeToString(sum[:16]))
}

// NodeIDOf is the node ID that belongs to an agent public key.
func NodeIDOf(agent PublicKey) NodeID {
	sum := sha256.Sum256(agent[:])
	return NodeID("mi-" + hex.EncodeToString(sum[:])[:17])
}

// lazy compiles a pattern when it is first used: compiling all of them took a
// fifth of the start of the program, which completion pays at each key.
func lazy(pattern string) lazyPattern {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

type lazyPattern func() *regexp.Regexp

// MatchString reports whether the pattern matches.
func (p lazyPattern) MatchString(s string) bool { return p().MatchString(s) }

var (
	fleetIDPattern  = lazy(`^[0-9a-f]{32}$`)
	nodeIDPattern   = lazy(`^mi-[0-9a-f]{17}$`)
	uuidPattern     = lazy(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	operatorPattern = lazy(`^[a-zA-Z0-9][a-zA-Z0-9_.@-]{0,63}$`)
	targetPattern   = lazy(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$`)
	nodeNamePattern = lazy(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$`)
	labelKeyPattern = lazy(`^[a-zA-Z0-9][a-zA-Z0-9_./-]{0,127}$`)
	labelValPattern = lazy(`^[a-zA-Z0-9_. :/=+@-]{0,256}$`)
	fleetNameRegexp = lazy(`^[a-z0-9][a-z0-9-]{0,62}$`)
)

// ParseID parses a fleet ID.
func ParseID(s string) (ID, error) {
	if !fleetIDPattern.MatchString(s) {
		return "", Errorf(Invalid, "fleet ID %.64q is not 32 hex digits", s)
	}
	return ID(s), nil
}

// ParseNodeID parses a node ID.
func ParseNodeID(s string) (NodeID, error) {
	if !nodeIDPattern.MatchString(s) {
		return "", Errorf(Invalid, "node ID %.64q is not mi- and 17 hex digits", s)
	}
	return NodeID(s), nil
}

// ParseCommandID parses a command ID.
func ParseCommandID(s string) (CommandID, error) {
	if !uuidPattern.MatchString(s) {
		return "", Errorf(Invalid, "command ID %.64q is not a lower-case UUID", s).WithHint("see which there are: fleet command ls")
	}
	return CommandID(s), nil
}

// ParseActivationID parses an activation ID.
func ParseActivationID(s string) (ActivationID, error) {
	if !uuidPattern.MatchString(s) {
		return "", Errorf(Invalid, "activation ID %.64q is not a lower-case UUID", s).WithHint("see which there are: fleet activation ls")
	}
	return ActivationID(s), nil
}

// ParseOperatorName parses an operator's name: 1 to 64 of letters, digits and
// "_.@-", beginning with a letter or digit.
func ParseOperatorName(s string) (OperatorName, error) {
	if !operatorPattern.MatchString(s) {
		return "", Errorf(Invalid, "operator name %.80q: use 1 to 64 letters, digits and _.@-, beginning with a letter or digit", s)
	}
	return OperatorName(s), nil
}

// ParseTargetName parses the name of a saved target: 1 to 64 letters, digits,
// dots and hyphens, as in names of nodes, so that it can stand in a node set.
func ParseTargetName(s string) (TargetName, error) {
	if !targetPattern.MatchString(s) {
		return "", Errorf(Invalid, "target name %.80q: use 1 to 64 letters, digits, dots and hyphens, beginning and ending with a letter or digit", s)
	}
	return TargetName(s), nil
}

// CheckNodeName accepts a DNS-like name of at most 253 characters.
func CheckNodeName(s string) error {
	if !nodeNamePattern.MatchString(s) {
		return Errorf(Invalid, "node name %.80q: use letters, digits, dots and hyphens, at most 253, beginning and ending with a letter or digit", s)
	}
	return nil
}

// CheckName accepts the name of a fleet: 1 to 63 of a-z, 0-9 and "-".
func CheckName(s string) error {
	if !fleetNameRegexp.MatchString(s) {
		return Errorf(Invalid, "fleet name %.80q: use 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit", s)
	}
	return nil
}

// CheckLabel accepts one label of a node. The limits are SSM's for tags (key
// 128, value 256), without the characters that selectors use as separators.
func CheckLabel(key, value string) error {
	if !labelKeyPattern.MatchString(key) {
		return Errorf(Invalid, "label key %.140q: use 1 to 128 letters, digits and _./-, beginning with a letter or digit", key)
	}
	if lower := strings.ToLower(key); strings.HasPrefix(lower, "aws:") || strings.HasPrefix(lower, "fleet:") {
		return Errorf(Invalid, "label key %q: the prefixes aws: and fleet: are reserved", key)
	}
	if !labelValPattern.MatchString(value) {
		return Errorf(Invalid, "label value %.260q of %s: use at most 256 letters, digits, spaces and _.:/=+@-", value, key)
	}
	return nil
}
