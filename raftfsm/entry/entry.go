// Package entry is the format of the replicated log: what a voter may write
// down, byte for byte, and the frozen decoders of the requests that operators
// sign.
//
// An entry is one version byte, one kind byte and a msgpack body. Kinds are
// numbered by hand and never reused; a body is decoded strictly, so that a
// voter stops at an entry of a newer release instead of applying half of it.
// Everything undetermined (time, IDs) was decided by the proposer and stands
// in the entry.
//
// A request that an operator signed travels as the exact bytes of its JSON,
// and control, co-signers and Apply read it with the same decoder, here: two
// readers of one signed request must not see two requests. A request decoder
// never changes once released; a new field is a new version of the request.
// Checks use only ASCII patterns and fixed ranges, because Unicode's tables
// change from one Go release to the next and voters of two releases must
// decide alike.
//
// The package reads and checks form. It verifies no signature (raftfsm does,
// with node/identity) and knows no state.
package entry

import (
	"errors"
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// Version is the first byte of every entry that this release writes or reads.
const Version = 1

// Limits of an entry, in bytes. Larger entries delay Raft's heartbeats.
const (
	MaxSize     = 256 << 10 // the whole entry
	MaxRequest  = 192 << 10 // the JSON of a signed request
	MaxDocument = 64 << 10  // the content of a document
	MaxProof    = 1 << 10
	MaxRandom   = 32
)

// Skew is how far the clocks of two hosts of one fleet may lie apart: a host
// whose answer is not in when Skew has passed after a deadline missed it.
const Skew = 60 * time.Second

// ExpiryGrace is added to a command's delivery and execution time: a host that
// started at the last moment and ran to its limit still has to kill what is
// left and to report.
const ExpiryGrace = 2 * time.Minute

// MaxStamp is the largest stamp, the start of the year 2200: sums of a stamp
// and the longest durations stay far from overflow.
const MaxStamp int64 = 7258118400 * int64(time.Second)

// ErrUnknown is in the chain of every error of Decode: the entry was written
// by a release with other kinds or fields, or is damaged. A replica that meets
// one must stop, because it cannot know what the others make of it.
var ErrUnknown = errors.New("log entry of an unknown version, kind or form")

// Kind says what an entry decides.
type Kind uint8

// Kinds of entries. The numbers are in every log: append only.
const (
	KindGenesis          Kind = 1
	KindTrust            Kind = 2
	KindCreateActivation Kind = 3
	KindDeleteActivation Kind = 4
	KindEnrol            Kind = 5
	KindAddTags          Kind = 6
	KindRemoveTags       Kind = 7
	KindSendCommand      Kind = 8
	KindMint             Kind = 9
	KindResults          Kind = 10
	KindExpire           Kind = 11
	KindAddress          Kind = 12
	KindCancelCommand    Kind = 13
	KindRemoveNode       Kind = 14
	KindLeave            Kind = 15
	KindRenameNode       Kind = 16
	KindCreateOperator   Kind = 17
	KindDeleteOperator   Kind = 18
	KindPutTarget        Kind = 19
	KindDeleteTarget     Kind = 20
	KindRelease          Kind = 22
	KindRetire           Kind = 23
	KindFeatures         Kind = 24
	KindMarks            Kind = 25
	KindGossipKey        Kind = 29
)

// Body is the decoded body of an entry: a pointer to one of the types below.
type Body interface {
	// Kind is the kind byte of the body's entries.
	Kind() Kind

	// Check reports what is wrong with the body's form. It is a pure function
	// of the body; an entry that fails it is refused, and refused everywhere.
	Check() error
}

// kindInfo is what the package knows of one kind.
type kindInfo struct {
	name      string
	operation string // the operation that an operator's proof must name; "" if none signs it
	decode    func([]byte) (Body, error)
}

var kinds = map[Kind]kindInfo{
	KindGenesis:          {"Genesis", "", decode[Genesis]},
	KindTrust:            {"Trust", "", decode[Trust]},
	KindCreateActivation: {"CreateActivation", "CreateActivation", decode[CreateActivation]},
	KindDeleteActivation: {"DeleteActivation", "DeleteActivation", decode[DeleteActivation]},
	KindEnrol:            {"Enrol", "", decode[Enrol]},
	KindAddTags:          {"AddTags", "AddTagsToResource", decode[AddTags]},
	KindRemoveTags:       {"RemoveTags", "RemoveTagsFromResource", decode[RemoveTags]},
	KindSendCommand:      {"SendCommand", "SendCommand", decode[SendCommand]},
	KindMint:             {"Mint", "", decode[Mint]},
	KindResults:          {"Results", "", decode[Results]},
	KindExpire:           {"Expire", "", decode[Expire]},
	KindAddress:          {"Address", "", decode[Address]},
	KindCancelCommand:    {"CancelCommand", "CancelCommand", decode[CancelCommand]},
	KindRemoveNode:       {"RemoveNode", "DeregisterManagedInstance", decode[RemoveNode]},
	KindLeave:            {"Leave", "", decode[Leave]},
	KindRenameNode:       {"RenameNode", "RenameNode", decode[RenameNode]},
	KindCreateOperator:   {"CreateOperator", "CreateOperator", decode[CreateOperator]},
	KindDeleteOperator:   {"DeleteOperator", "DeleteOperator", decode[DeleteOperator]},
	KindPutTarget:        {"PutTarget", "PutTarget", decode[PutTarget]},
	KindDeleteTarget:     {"DeleteTarget", "DeleteTarget", decode[DeleteTarget]},
	KindGossipKey:        {"GossipKey", "", decode[GossipKey]},
	KindRelease:          {"Release", "", decode[Release]},
	KindRetire:           {"Retire", "", decode[Retire]},
	KindFeatures:         {"Features", "", decodeFeatures},
	KindMarks:            {"Marks", "", decode[Marks]},
}

func (k Kind) String() string {
	if info, ok := kinds[k]; ok {
		return info.name
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Operation is the name that the proof of such an entry must carry and that
// Operator.May lists; it is empty for kinds that no operator signs.
func (k Kind) Operation() string { return kinds[k].operation }

// KindOf is the kind of the entry that decides an operation; false if there is
// none.
func KindOf(operation string) (Kind, bool) {
	for k, info := range kinds { // at most one has it, so the order does not matter
		if operation != "" && info.operation == operation {
			return k, true
		}
	}
	return 0, false
}

// Encode makes the bytes of an entry. It fails with fleet.TooLarge above
// MaxSize; it does not call Check.
func Encode(body Body) ([]byte, error) {
	b, err := wire.Marshal(body)
	if err != nil {
		return nil, err
	}
	if len(b)+2 > MaxSize {
		return nil, fleet.Errorf(fleet.TooLarge, "a log entry of %d bytes is over the limit of %d", len(b)+2, MaxSize)
	}
	return append([]byte{Version, byte(body.Kind())}, b...), nil
}

// Decode reads an entry. Every error wraps ErrUnknown.
func Decode(b []byte) (Body, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnknown, len(b))
	}
	if len(b) < 2 {
		return nil, fmt.Errorf("%w: no header", ErrUnknown)
	}
	if b[0] != Version {
		return nil, fmt.Errorf("%w: version %d", ErrUnknown, b[0])
	}
	info, ok := kinds[Kind(b[1])]
	if !ok {
		return nil, fmt.Errorf("%w: kind %d", ErrUnknown, b[1])
	}
	body, err := info.decode(b[2:])
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnknown, info.name, err)
	}
	return body, nil
}

// decode reads the body of one kind.
func decode[T any, P interface {
	*T
	Body
}](b []byte) (Body, error) {
	body := P(new(T))
	if err := wire.UnmarshalStrict(b, body); err != nil {
		return nil, err
	}
	return body, nil
}

// CheckStamp accepts the stamp of an entry.
func CheckStamp(stamp int64) error {
	if stamp <= 0 || stamp > MaxStamp {
		return fleet.Errorf(fleet.Invalid, "stamp %d is not a time between 1970 and 2200", stamp)
	}
	return nil
}

// checkBytes accepts bytes that must be there and fit.
func checkBytes(what string, b []byte, max int) error {
	if len(b) == 0 {
		return fleet.Errorf(fleet.Invalid, "the entry has no %s", what)
	}
	if len(b) > max {
		return fleet.Errorf(fleet.TooLarge, "%s of %d bytes is over the limit of %d", what, len(b), max)
	}
	return nil
}
