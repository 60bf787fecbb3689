package ticket

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// This file is what hosts and quorum say to each other through relays about
// results, beside the results themselves. Both are signed, so that nothing rests
// on a relay's word: one that invented receipts would keep the leader from
// asking, one that invented acknowledgements would make hosts forget results.

// Versions of the layouts.
const (
	ReceiptVersion byte = 1
	AckVersion     byte = 1
)

const (
	receiptFixed = 1 + 16 + 16 + 4 + 4 + 1
	receiptSize  = receiptFixed + 64

	// MaxAcked is how many results one acknowledgement names.
	MaxAcked = fleet.ShardSize

	ackFixed = 1 + 16 + 4 + 8 + 2

	// MaxSignedAck is the size of the largest acknowledgement with its
	// signature, in bytes.
	MaxSignedAck = ackFixed + MaxAcked*len(ResultID{}) + signatureSize
)

// Receipt is a host's word that its journal holds a command: it will report a
// result. The layout, big-endian, is the order of the fields; Staged is a byte of
// 0 or 1.
type Receipt struct {
	Fleet   fleet.ID
	Command fleet.CommandID
	Attempt uint32
	Index   uint32 // of the host among the targets
	Staged  bool   // it begins when it is released
}

// Bytes is what the host signs; nil if a field does not fit the layout.
func (r Receipt) Bytes() []byte {
	id, err := hex.DecodeString(string(r.Fleet))
	command, err2 := hex.DecodeString(strings.ReplaceAll(string(r.Command), "-", ""))
	if err != nil || err2 != nil || len(id) != 16 || len(command) != 16 {
		return nil
	}
	b := append(make([]byte, 0, receiptSize), ReceiptVersion)
	b = append(append(b, id...), command...)
	b = binary.BigEndian.AppendUint32(b, r.Attempt)
	b = binary.BigEndian.AppendUint32(b, r.Index)
	if r.Staged {
		return append(b, 1)
	}
	return append(b, 0)
}

// SignReceipt signs a receipt with the host's agent key; nil if it has no
// encoding.
func SignReceipt(agent identity.PrivateKey, r Receipt) []byte {
	payload := r.Bytes()
	if payload == nil {
		return nil
	}
	return append(payload, agent.Sign(identity.UseReceipt, payload)...)
}

// VerifyReceipt checks that b is exactly the receipt want, signed by the host
// whose agent key is given; else the error is of kind Denied.
func VerifyReceipt(b []byte, want Receipt, agent fleet.PublicKey) error {
	payload := want.Bytes()
	if payload == nil || len(b) != receiptSize || !slices.Equal(b[:receiptFixed], payload) ||
		!identity.Verify(agent, identity.UseReceipt, payload, b[receiptFixed:]) {
		return fleet.Errorf(fleet.Denied, "receipt: not that of target %d for command %s", want.Index, want.Command)
	}
	return nil
}

// ResultID names one signed result: the first half of the SHA-256 of its bytes.
type ResultID [16]byte

// ResultIDOf names a signed result.
func ResultIDOf(signed []byte) ResultID {
	sum := fleet.Sum(signed)
	return ResultID(sum[:16])
}

// Ack is a voter's word that results are in the log, at Index or before. The
// layout, big-endian, is the order of the fields; Results are preceded by a
// count of two bytes.
type Ack struct {
	Fleet   fleet.ID
	Epoch   uint32 // of trust.json
	Index   uint64 // of the log, never 0
	Results []ResultID
}

// Names reports whether a result is among those acknowledged.
func (a *Ack) Names(id ResultID) bool { return slices.Contains(a.Results, id) }

// Bytes is the acknowledgement's one encoding; nil if a field does not fit the
// layout, which ParseSignedAck refuses.
func (a *Ack) Bytes() []byte {
	id, err := hex.DecodeString(string(a.Fleet))
	if err != nil || a.check() != nil {
		return nil
	}
	b := append(make([]byte, 0, ackFixed+len(a.Results)*len(ResultID{})), AckVersion)
	b = append(b, id...)
	b = binary.BigEndian.AppendUint32(b, a.Epoch)
	b = binary.BigEndian.AppendUint64(b, a.Index)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Results)))
	for _, r := range a.Results {
		b = append(b, r[:]...)
	}
	return b
}

func (a *Ack) check() error {
	if _, err := fleet.ParseID(string(a.Fleet)); err != nil {
		return badAck("%w", err)
	}
	if a.Index == 0 || len(a.Results) == 0 || len(a.Results) > MaxAcked {
		return badAck("without an index of the log, or not of 1 to %d results", MaxAcked)
	}
	return nil
}

// SignedAck is an acknowledgement as it travels.
type SignedAck struct {
	Ack
	Payload   []byte
	Signature Signature
}

// SignAck signs an acknowledgement with a quorum key; nil if it has no encoding.
func SignAck(quorum identity.PrivateKey, a *Ack) []byte {
	payload := a.Bytes()
	if payload == nil {
		return nil
	}
	id := quorum.Public().ID()
	return slices.Concat(payload, id[:], quorum.Sign(identity.UseAck, payload))
}

// ParseSignedAck reads what SignAck wrote, and nothing after it, and checks its
// form; it does not verify the signature. Errors are of kind Invalid.
func ParseSignedAck(b []byte) (*SignedAck, error) {
	if len(b) > MaxSignedAck {
		return nil, badAck("%d bytes are over the limit of %d", len(b), MaxSignedAck)
	}
	r := reader{b: b}
	if v := r.u8(); !r.short && v != AckVersion {
		return nil, badAck("version %d: this release knows version %d", v, AckVersion)
	}
	a := Ack{Fleet: fleet.ID(hex.EncodeToString(r.take(16))), Epoch: r.u32(), Index: uint64(r.i64())}
	for range min(int(binary.BigEndian.Uint16(r.take(2))), MaxAcked+1) {
		a.Results = append(a.Results, ResultID(r.take(len(ResultID{}))))
	}
	payload := len(b) - len(r.b)
	signature := r.take(signatureSize)
	switch {
	case r.short:
		return nil, badAck("it is cut off")
	case len(r.b) != 0:
		return nil, badAck("%d bytes follow it", len(r.b))
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	return &SignedAck{Ack: a, Payload: slices.Clone(b[:payload]), Signature: Signature(signature)}, nil
}

// Verify accepts an acknowledgement of the fleet and epoch of t that a voter of
// t signed; else the error is of kind Denied.
func (s *SignedAck) Verify(t *identity.Trust) error {
	if t == nil {
		return fleet.Errorf(fleet.Denied, "acknowledgement refused: this host knows no voters")
	}
	voter, ok := t.Voter(s.Signature.Key())
	if s.Fleet != t.Fleet || s.Epoch != t.Epoch || !ok || !identity.Verify(voter.Key, identity.UseAck, s.Payload, s.Signature[8:]) {
		return fleet.Errorf(fleet.Denied, "acknowledgement refused: no voter of this fleet and epoch signed it (trust version %d)", t.Version)
	}
	return nil
}

func badAck(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "acknowledgement: "+format, args...)
}
