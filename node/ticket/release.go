package ticket

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// ReleaseVersion is the version of the layout of a Release.
const ReleaseVersion byte = 1

const (
	// MaxReleased is how many targets one Release names.
	MaxReleased = fleet.ShardSize

	releaseFixed = 1 + 16 + 4 + 16 + 4 + 4 + 32 + 8 + 8 + 2

	// MaxSignedRelease is the size of the largest Release with its signature, in
	// bytes.
	MaxSignedRelease = releaseFixed + MaxReleased*4 + signatureSize
)

// Release is the order to begin a staged command on some of its targets: their
// turn has come. One voter signs it, from what its own state says was decided.
// It gives no right that the ticket, which k voters signed, did not give before:
// it says when, not what or where. So a stolen voter can break the pace of
// commands, and start none.
//
// It may come any number of times and means the same each time. It names the
// targets as the ticket does; a host needs no path, because it compares with the
// ticket that it holds. The layout, big-endian, is the order of the fields;
// Indexes are preceded by a count of two bytes.
type Release struct {
	Version byte
	Fleet   fleet.ID
	Epoch   uint32 // of trust.json
	Command fleet.CommandID
	Attempt uint32

	Targets uint32   // of the command
	Root    [32]byte // of the tree over them

	Released int64 // stamp of the decision
	StartBy  int64 // later than this the host does not begin: its place may be another's

	Indexes []uint32 // targets that were released by this decision, ascending, at least one
}

// ReleaseOf is the Release of a command's targets at indexes, ascending, that
// were released at a stamp.
func ReleaseOf(c *fleet.Command, fleetID fleet.ID, epoch uint32, released int64, indexes []uint32) *Release {
	return &Release{
		Version: ReleaseVersion, Fleet: fleetID, Epoch: epoch, Command: c.ID, Attempt: c.Attempt,
		Targets: uint32(len(c.Targets)), Root: Root(c.Targets),
		Released: released, StartBy: c.StartBy(released), Indexes: indexes,
	}
}

// Covers reports whether the target at an index is released.
func (r *Release) Covers(index uint32) bool {
	_, ok := slices.BinarySearch(r.Indexes, index)
	return ok
}

// Bytes is the Release's one encoding; nil if a field does not fit the layout,
// which ParseSignedRelease refuses.
func (r *Release) Bytes() []byte {
	id, err := hex.DecodeString(string(r.Fleet))
	command, err2 := hex.DecodeString(strings.ReplaceAll(string(r.Command), "-", ""))
	if err != nil || err2 != nil || r.check() != nil {
		return nil
	}
	b := make([]byte, 0, releaseFixed+4*len(r.Indexes))
	b = append(b, r.Version)
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	b = append(b, command...)
	b = binary.BigEndian.AppendUint32(b, r.Attempt)
	b = binary.BigEndian.AppendUint32(b, r.Targets)
	b = append(b, r.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Released))
	b = binary.BigEndian.AppendUint64(b, uint64(r.StartBy))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Indexes)))
	for _, index := range r.Indexes {
		b = binary.BigEndian.AppendUint32(b, index)
	}
	return b
}

func (r *Release) check() error {
	if r.Version != ReleaseVersion {
		return badRelease("version %d: this release knows version %d", r.Version, ReleaseVersion)
	}
	if _, err := fleet.ParseID(string(r.Fleet)); err != nil {
		return badRelease("%w", err)
	}
	if _, err := fleet.ParseCommandID(string(r.Command)); err != nil {
		return badRelease("%w", err)
	}
	if r.Released < 0 || r.StartBy < r.Released {
		return badRelease("its times are negative or out of order")
	}
	if len(r.Indexes) < 1 || len(r.Indexes) > MaxReleased {
		return badRelease("it does not name 1 to %d targets", MaxReleased)
	}
	for i, index := range r.Indexes {
		if index >= r.Targets || i > 0 && index <= r.Indexes[i-1] {
			return badRelease("its targets are out of order, or there are not so many")
		}
	}
	return nil
}

// SignedRelease is a Release as it travels: its exact bytes and the signature
// of one voter.
type SignedRelease struct {
	Release
	Payload   []byte
	Signature Signature
}

// SignRelease signs a Release with a quorum key; nil if it has no encoding.
func SignRelease(quorum identity.PrivateKey, r *Release) []byte {
	payload := r.Bytes()
	if payload == nil {
		return nil
	}
	id := quorum.Public().ID()
	return slices.Concat(payload, id[:], quorum.Sign(identity.UseRelease, payload))
}

// ParseSignedRelease reads what SignRelease wrote, and nothing after it, and
// checks its form; it does not verify the signature. Errors are of kind
// Invalid.
func ParseSignedRelease(b []byte) (*SignedRelease, error) {
	if len(b) > MaxSignedRelease {
		return nil, badRelease("%d bytes are over the limit of %d", len(b), MaxSignedRelease)
	}
	in := reader{b: b}
	r := Release{Version: in.u8()}
	if !in.short && r.Version != ReleaseVersion {
		return nil, badRelease("version %d: this release knows version %d", r.Version, ReleaseVersion)
	}
	r.Fleet = fleet.ID(hex.EncodeToString(in.take(16)))
	r.Epoch = in.u32()
	r.Command = commandID(in.take(16))
	r.Attempt = in.u32()
	r.Targets = in.u32()
	r.Root = in.digest()
	r.Released, r.StartBy = in.i64(), in.i64()
	for range min(int(binary.BigEndian.Uint16(in.take(2))), MaxReleased+1) {
		r.Indexes = append(r.Indexes, in.u32())
	}
	payload := len(b) - len(in.b)
	signature := in.take(signatureSize)
	switch {
	case in.short:
		return nil, badRelease("it is cut off")
	case len(in.b) != 0:
		return nil, badRelease("%d bytes follow it", len(in.b))
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return &SignedRelease{Release: r, Payload: slices.Clone(b[:payload]), Signature: Signature(signature)}, nil
}

// Verify accepts a Release of the fleet and epoch of t that a voter of t signed;
// else the error is of kind Denied.
func (s *SignedRelease) Verify(t *identity.Trust) error {
	if t == nil {
		return fleet.Errorf(fleet.Denied, "release refused: this host knows no voters")
	}
	if s.Fleet != t.Fleet || s.Epoch != t.Epoch {
		return fleet.Errorf(fleet.Denied, "release refused: it is of fleet %s epoch %d, this host of %s epoch %d",
			s.Fleet, s.Epoch, t.Fleet, t.Epoch)
	}
	voter, ok := t.Voter(s.Signature.Key())
	if !ok || !identity.Verify(voter.Key, identity.UseRelease, s.Payload, s.Signature[8:]) {
		return fleet.Errorf(fleet.Denied, "release refused: no voter signed it (trust version %d)", t.Version)
	}
	return nil
}

func badRelease(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "release: "+format, args...)
}
