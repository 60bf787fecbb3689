package ticket

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// CancelVersion is the version of the layout of a Cancel.
const CancelVersion byte = 1

const (
	// MaxCancelled is how many targets one Cancel names.
	MaxCancelled = fleet.ShardSize

	cancelFixed = 1 + 16 + 4 + 16 + 4 + 4 + 32 + 8 + 8 + 8 + 2

	// MaxSignedCancel is the size of the largest Cancel with its signature, in
	// bytes.
	MaxSignedCancel = cancelFixed + MaxCancelled*4 + signatureSize

	// maxCancelSpan bounds how long a host must remember a Cancel of a command
	// that it never saw: 30 days to deliver, 30 to run, and the grace.
	maxCancelSpan = int64(61 * 24 * 3600 * 1e9)
)

// Cancel is the order to end a command, or never to begin it, on some of its
// targets. It is final, and one voter signs it: a ticket needs k because it
// makes a host act, a Cancel only makes it stop, and must not wait until k
// voters can be reached.
//
// It names the targets as the ticket does, by the root of the tree over them,
// so that a host that never saw the ticket knows by its path which target it
// is, and nobody who carries a Cancel can turn it on another host. The layout,
// big-endian, is the order of the fields; Indexes are preceded by a count of
// two bytes.
type Cancel struct {
	Version byte
	Fleet   fleet.ID
	Epoch   uint32 // of trust.json
	Command fleet.CommandID
	Attempt uint32

	Targets uint32   // of the command
	Root    [32]byte // of the tree over them

	Created  int64 // as in the ticket: how long a host must remember it
	NotAfter int64
	Expires  int64

	Indexes []uint32 // targets on which it is cancelled, ascending; empty is all
}

// CancelOf is the Cancel of a command's targets at indexes, ascending; of all
// targets when there are none.
func CancelOf(c *fleet.Command, fleetID fleet.ID, epoch uint32, indexes []uint32) *Cancel {
	return &Cancel{
		Version: CancelVersion, Fleet: fleetID, Epoch: epoch, Command: c.ID, Attempt: c.Attempt,
		Targets: uint32(len(c.Targets)), Root: Root(c.Targets),
		Created: c.Created, NotAfter: c.NotAfter, Expires: c.Expires, Indexes: indexes,
	}
}

// Covers reports whether the target at an index is cancelled.
func (c *Cancel) Covers(index uint32) bool {
	if len(c.Indexes) == 0 {
		return index < c.Targets
	}
	_, ok := slices.BinarySearch(c.Indexes, index)
	return ok
}

// Bytes is the Cancel's one encoding; nil if a field does not fit the layout,
// which ParseCancel refuses.
func (c *Cancel) Bytes() []byte {
	id, err := hex.DecodeString(string(c.Fleet))
	command, err2 := hex.DecodeString(strings.ReplaceAll(string(c.Command), "-", ""))
	if err != nil || err2 != nil || c.check() != nil {
		return nil
	}
	b := make([]byte, 0, cancelFixed+4*len(c.Indexes))
	b = append(b, c.Version)
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, c.Epoch)
	b = append(b, command...)
	b = binary.BigEndian.AppendUint32(b, c.Attempt)
	b = binary.BigEndian.AppendUint32(b, c.Targets)
	b = append(b, c.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Created))
	b = binary.BigEndian.AppendUint64(b, uint64(c.NotAfter))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Expires))
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Indexes)))
	for _, index := range c.Indexes {
		b = binary.BigEndian.AppendUint32(b, index)
	}
	return b
}

func (c *Cancel) check() error {
	if c.Version != CancelVersion {
		return badCancel("version %d: this release knows version %d", c.Version, CancelVersion)
	}
	if _, err := fleet.ParseID(string(c.Fleet)); err != nil {
		return badCancel("%w", err)
	}
	if _, err := fleet.ParseCommandID(string(c.Command)); err != nil {
		return badCancel("%w", err)
	}
	if c.Created < 0 || c.NotAfter < c.Created || c.Expires < c.NotAfter || c.Expires-c.Created > maxCancelSpan {
		return badCancel("its times are negative, out of order or too far apart")
	}
	if len(c.Indexes) > MaxCancelled {
		return badCancel("it names more than %d targets", MaxCancelled)
	}
	for i, index := range c.Indexes {
		if index >= c.Targets || i > 0 && index <= c.Indexes[i-1] {
			return badCancel("its targets are out of order, or there are not so many")
		}
	}
	return nil
}

// SignedCancel is a Cancel as it travels: its exact bytes and the signature of
// one voter.
type SignedCancel struct {
	Cancel
	Payload   []byte
	Signature Signature
}

// SignCancel signs a Cancel with a quorum key; nil if it has no encoding.
func SignCancel(quorum identity.PrivateKey, c *Cancel) []byte {
	payload := c.Bytes()
	if payload == nil {
		return nil
	}
	id := quorum.Public().ID()
	return slices.Concat(payload, id[:], quorum.Sign(identity.UseCancel, payload))
}

// ParseSignedCancel reads what SignCancel wrote, and nothing after it, and
// checks its form; it does not verify the signature. Errors are of kind
// Invalid.
func ParseSignedCancel(b []byte) (*SignedCancel, error) {
	if len(b) > MaxSignedCancel {
		return nil, badCancel("%d bytes are over the limit of %d", len(b), MaxSignedCancel)
	}
	r := reader{b: b}
	c := Cancel{Version: r.u8()}
	if !r.short && c.Version != CancelVersion {
		return nil, badCancel("version %d: this release knows version %d", c.Version, CancelVersion)
	}
	c.Fleet = fleet.ID(hex.EncodeToString(r.take(16)))
	c.Epoch = r.u32()
	c.Command = commandID(r.take(16))
	c.Attempt = r.u32()
	c.Targets = r.u32()
	c.Root = r.digest()
	c.Created, c.NotAfter, c.Expires = r.i64(), r.i64(), r.i64()
	for range min(int(binary.BigEndian.Uint16(r.take(2))), MaxCancelled+1) {
		c.Indexes = append(c.Indexes, r.u32())
	}
	payload := len(b) - len(r.b)
	signature := r.take(signatureSize)
	switch {
	case r.short:
		return nil, badCancel("it is cut off")
	case len(r.b) != 0:
		return nil, badCancel("%d bytes follow it", len(r.b))
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return &SignedCancel{Cancel: c, Payload: slices.Clone(b[:payload]), Signature: Signature(signature)}, nil
}

// Verify accepts a Cancel of the fleet and epoch of t that a voter of t signed;
// else the error is of kind Denied.
func (s *SignedCancel) Verify(t *identity.Trust) error {
	if t == nil {
		return fleet.Errorf(fleet.Denied, "cancel refused: this host knows no voters")
	}
	if s.Fleet != t.Fleet || s.Epoch != t.Epoch {
		return fleet.Errorf(fleet.Denied, "cancel refused: it is of fleet %s epoch %d, this host of %s epoch %d",
			s.Fleet, s.Epoch, t.Fleet, t.Epoch)
	}
	voter, ok := t.Voter(s.Signature.Key())
	if !ok || !identity.Verify(voter.Key, identity.UseCancel, s.Payload, s.Signature[8:]) {
		return fleet.Errorf(fleet.Denied, "cancel refused: no voter signed it (trust version %d)", t.Version)
	}
	return nil
}

func badCancel(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "cancel: "+format, args...)
}
