// Package ticket is the order that a host acts on, and the host's answer.
//
// A ticket is a pure function of a command's decided row and its newest mint:
// every voter makes the same bytes from its own state and signs them, and no
// voter signs bytes that another one sent. It names its targets by the root of
// a Merkle tree, so that one ticket serves a whole command and each host needs
// only its own path; a relay can drop or delay a ticket but not widen, alter or
// redirect it.
//
// The layout is fixed binary instead of msgpack because signatures of several
// voters must meet on the same bytes: there is nothing to choose when encoding.
// A result is msgpack, since its one signer is its one encoder.
//
// Verifying a ticket says that the quorum ordered the command. Whether it is
// for this host (VerifyPath), for now (NotBefore, NotAfter by fleet time) and
// for the first time (the journal) is for the host to check.
package ticket

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// Version is the version of the layout that this release writes and reads.
const Version byte = 1

// Kinds of tickets. A staged one is signed as such, so that nobody who carries
// it can make a host begin before its turn.
const (
	KindCommand byte = 1 // lets a host run a command
	KindStaged  byte = 2 // lets a host take a command, and run it when a Release names it
)

const (
	maxNested = 32
	maxRunAs  = 32

	signatureSize = 8 + 64
	maxSignatures = 5

	// MaxTicket and MaxSigned are the sizes of the largest ticket, without and
	// with signatures, in bytes.
	MaxTicket = fixedSize + maxNested*32 + maxRunAs
	MaxSigned = MaxTicket + maxSignatures*signatureSize

	fixedSize = 1 + 1 + 16 + 4 + 16 + 4 + 32 + 1 + 32 + 1 + 4 + 32 + 8 + 4 + 8 + 8 + 8
)

// Ticket is an order to run one command on the hosts below Root. The layout,
// big-endian, is the order of the fields; Nested and RunAs are preceded by a
// count byte, IDs are their hex digits in binary.
type Ticket struct {
	Version byte
	Kind    byte
	Fleet   fleet.ID
	Epoch   uint32 // of trust.json
	Command fleet.CommandID
	Attempt uint32

	Document   fleet.Digest   // of the document's content
	Nested     []fleet.Digest // of documents that it runs, at most 32
	Parameters fleet.Digest
	RunAs      string // at most 32 bytes; empty is root

	Targets uint32   // how many hosts
	Root    [32]byte // of the tree over them, see Root

	Created   int64  // stamp of the command
	Mint      uint32 // number of the mint
	NotBefore int64  // stamp of the mint
	NotAfter  int64  // start by
	Expires   int64  // nothing of this command happens after
}

// ForCommand is the ticket of a command's row and its newest mint.
func ForCommand(c *fleet.Command, fleetID fleet.ID, epoch uint32) *Ticket {
	kind := KindCommand
	if c.Staged() {
		kind = KindStaged
	}
	return &Ticket{
		Version: Version, Kind: kind, Fleet: fleetID, Epoch: epoch,
		Command: c.ID, Attempt: c.Attempt,
		Document: c.Document, Parameters: c.ParametersDigest, RunAs: c.RunAs,
		Targets: uint32(len(c.Targets)), Root: Root(c.Targets),
		Created: c.Created, Mint: c.Mint.N, NotBefore: c.Mint.NotBefore, NotAfter: c.NotAfter, Expires: c.Expires,
	}
}

// Staged reports whether the host waits for a Release before it begins.
func (t *Ticket) Staged() bool { return t.Kind == KindStaged }

// IsStaged reports whether a ticket, signed or not, that was read before is of a
// staged command.
func IsStaged(b []byte) bool { return len(b) > 1 && b[1] == KindStaged }

// Bytes is the ticket's one encoding; nil if a field does not fit the layout,
// which Parse refuses.
func (t *Ticket) Bytes() []byte {
	id, err := hex.DecodeString(string(t.Fleet))
	command, err2 := hex.DecodeString(strings.ReplaceAll(string(t.Command), "-", ""))
	if err != nil || err2 != nil || t.check() != nil {
		return nil
	}
	b := make([]byte, 0, MaxTicket)
	b = append(b, t.Version, t.Kind)
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, t.Epoch)
	b = append(b, command...)
	b = binary.BigEndian.AppendUint32(b, t.Attempt)
	b = append(b, t.Document[:]...)
	b = append(b, byte(len(t.Nested)))
	for _, d := range t.Nested {
		b = append(b, d[:]...)
	}
	b = append(b, t.Parameters[:]...)
	b = append(b, byte(len(t.RunAs)))
	b = append(b, t.RunAs...)
	b = binary.BigEndian.AppendUint32(b, t.Targets)
	b = append(b, t.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Created))
	b = binary.BigEndian.AppendUint32(b, t.Mint)
	b = binary.BigEndian.AppendUint64(b, uint64(t.NotBefore))
	b = binary.BigEndian.AppendUint64(b, uint64(t.NotAfter))
	return binary.BigEndian.AppendUint64(b, uint64(t.Expires))
}

// Parse reads a ticket: exactly its bytes, nothing after them. Errors are of
// kind Invalid.
func Parse(b []byte) (*Ticket, error) {
	t, rest, err := parse(b)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, bad("%d bytes follow it", len(rest))
	}
	return t, nil
}

// parse reads the ticket that b begins with.
func parse(b []byte) (*Ticket, []byte, error) {
	r := reader{b: b}
	t := &Ticket{Version: r.u8()}
	if !r.short && t.Version != Version {
		return nil, nil, bad("version %d: this release knows version %d", t.Version, Version)
	}
	t.Kind = r.u8()
	t.Fleet = fleet.ID(hex.EncodeToString(r.take(16)))
	t.Epoch = r.u32()
	t.Command = commandID(r.take(16))
	t.Attempt = r.u32()
	t.Document = r.digest()
	for range min(int(r.u8()), maxNested+1) {
		t.Nested = append(t.Nested, r.digest())
	}
	t.Parameters = r.digest()
	t.RunAs = string(r.take(int(r.u8())))
	t.Targets = r.u32()
	t.Root = r.digest()
	t.Created = r.i64()
	t.Mint = r.u32()
	t.NotBefore, t.NotAfter, t.Expires = r.i64(), r.i64(), r.i64()
	if r.short {
		return nil, nil, bad("it is cut off")
	}
	if err := t.check(); err != nil {
		return nil, nil, err
	}
	return t, r.b, nil
}

func (t *Ticket) check() error {
	if t.Version != Version || t.Kind != KindCommand && t.Kind != KindStaged {
		return bad("version %d and kind %d are not known", t.Version, t.Kind)
	}
	if _, err := fleet.ParseID(string(t.Fleet)); err != nil {
		return bad("%w", err)
	}
	if _, err := fleet.ParseCommandID(string(t.Command)); err != nil {
		return bad("%w", err)
	}
	if len(t.Nested) > maxNested {
		return bad("more than %d nested documents", maxNested)
	}
	if len(t.RunAs) > maxRunAs || !utf8.ValidString(t.RunAs) || strings.ContainsFunc(t.RunAs, isControl) {
		return bad("the user to run as is not at most %d bytes of plain text", maxRunAs)
	}
	if t.Created < 0 || t.NotBefore < 0 || t.NotAfter < 0 || t.Expires < t.NotAfter {
		return bad("its times are negative or out of order")
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func commandID(b []byte) fleet.CommandID {
	s := hex.EncodeToString(b)
	return fleet.CommandID(s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:])
}

func bad(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "ticket: "+format, args...)
}

// reader takes fields off the front of b; after the end it gives zeros and
// remembers that it did.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return make([]byte, n)
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) u8() byte             { return r.take(1)[0] }
func (r *reader) u32() uint32          { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) i64() int64           { return int64(binary.BigEndian.Uint64(r.take(8))) }
func (r *reader) digest() fleet.Digest { return fleet.Digest(r.take(32)) }

// Signature is one voter's word on a ticket: the short ID of its quorum key and
// the Ed25519 signature.
type Signature [signatureSize]byte

// Sign signs a ticket's bytes with a quorum key.
func Sign(quorum identity.PrivateKey, ticketBytes []byte) Signature {
	var s Signature
	id := quorum.Public().ID()
	copy(s[:8], id[:])
	copy(s[8:], quorum.Sign(identity.UseTicket, ticketBytes))
	return s
}

// Key is the short ID of the key that signed.
func (s Signature) Key() fleet.KeyID { return fleet.KeyID(s[:8]) }

// Signed is a ticket as it travels: its exact bytes and 1 to 5 signatures.
type Signed struct {
	Ticket     []byte
	Signatures []Signature
}

// Encode is the ticket's bytes and then the signatures.
func (s *Signed) Encode() []byte {
	b := make([]byte, 0, len(s.Ticket)+len(s.Signatures)*signatureSize)
	b = append(b, s.Ticket...)
	for _, signature := range s.Signatures {
		b = append(b, signature[:]...)
	}
	return b
}

// ParseSigned reads what Encode wrote and checks its form; it verifies no
// signature. Errors are of kind Invalid.
func ParseSigned(b []byte) (*Signed, error) {
	_, rest, err := parse(b)
	if err != nil {
		return nil, err
	}
	if n := len(rest) / signatureSize; len(rest)%signatureSize != 0 || n < 1 || n > maxSignatures {
		return nil, bad("%d bytes are not 1 to %d signatures", len(rest), maxSignatures)
	}
	s := &Signed{Ticket: append([]byte(nil), b[:len(b)-len(rest)]...)}
	for ; len(rest) > 0; rest = rest[signatureSize:] {
		s.Signatures = append(s.Signatures, Signature(rest[:signatureSize]))
	}
	return s, nil
}

// Verify reads the ticket and accepts it if it is of the fleet and epoch of t
// and at least t.K different voters of t signed it; else the error is of kind
// Denied. Signatures of others neither help nor harm.
func (s *Signed) Verify(t *identity.Trust) (*Ticket, error) {
	ticket, err := Parse(s.Ticket)
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, fleet.Errorf(fleet.Denied, "ticket refused: this host knows no voters")
	}
	if ticket.Fleet != t.Fleet || ticket.Epoch != t.Epoch {
		return nil, fleet.Errorf(fleet.Denied, "ticket refused: it is of fleet %s epoch %d, this host of %s epoch %d",
			ticket.Fleet, ticket.Epoch, t.Fleet, t.Epoch)
	}
	if len(s.Signatures) > maxSignatures {
		return nil, bad("%d signatures are over the limit of %d", len(s.Signatures), maxSignatures)
	}
	valid := map[fleet.NodeID]bool{}
	for _, signature := range s.Signatures {
		voter, ok := t.Voter(signature.Key())
		if ok && !valid[voter.Node] && identity.Verify(voter.Key, identity.UseTicket, s.Ticket, signature[8:]) {
			valid[voter.Node] = true
		}
	}
	if need := needed(t); len(valid) < need {
		return nil, fleet.Errorf(fleet.Denied, "ticket refused: %d of %d needed voters signed it (trust version %d)",
			len(valid), need, t.Version)
	}
	return ticket, nil
}
