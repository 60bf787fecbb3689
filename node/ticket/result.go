package ticket

import (
	"strings"
	"unicode/utf8"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

const (
	// MaxResult is the size of the largest signed result, in bytes.
	MaxResult = 1 << 10

	// MaxReason is the length of the longest reason, in bytes.
	MaxReason = 256
)

// Result is what a host says about one command that it was given. The quorum
// stores its fields, not its bytes: Encode makes them again.
type Result struct {
	Fleet   fleet.ID              `msgpack:"f"`
	Command fleet.CommandID       `msgpack:"m"`
	Attempt uint32                `msgpack:"a"`
	Index   uint32                `msgpack:"i"` // of the host among the targets
	Node    fleet.NodeID          `msgpack:"n"`
	State   fleet.InvocationState `msgpack:"s"` // final: progress is never signed
	Code    int32                 `msgpack:"c"` // exit code; -1 before a step ran
	Started int64                 `msgpack:"b"` // Unix nanoseconds by the host's clock; 0 if it did not start
	Ended   int64                 `msgpack:"e"`

	Detail     fleet.Digest `msgpack:"d"` // of the detail blob; zero when there is none
	DetailSize uint32       `msgpack:"z"`
	Reason     string       `msgpack:"r"` // for a person; at most 256 bytes
}

type result struct {
	Version uint8 `msgpack:"v"`
	Result  `msgpack:",inline"`
}

// SignedResult is a Result as it travels.
type SignedResult struct {
	Result
	Payload, Signature []byte
}

// Encode is the payload that the host signs. Equal results give equal bytes, so
// that a stored row and its signature can be verified.
func (r Result) Encode() []byte { return wire.MustMarshal(&result{1, r}) }

// SignResult signs r with the host's agent key. A reason that is too long is
// cut and one that is not UTF-8 mended. Nil if the state is not final: such a
// statement could be replayed after the host changed its mind.
func SignResult(agent identity.PrivateKey, r Result) []byte {
	if !r.State.Valid() || !r.State.Final() {
		return nil
	}
	r.Reason = cut(strings.ToValidUTF8(r.Reason, "\uFFFD"), MaxReason)
	payload := r.Encode()
	return identity.EncodeSigned(payload, agent.Sign(identity.UseResult, payload))
}

// ParseResult reads a signed result and checks its form; it does not verify the
// signature.
func ParseResult(b []byte) (*SignedResult, error) {
	const what = "result"
	var r result
	payload, signature, err := identity.DecodeSigned(b, MaxResult, what, &r)
	if err != nil {
		return nil, err
	}
	if r.Version != 1 {
		return nil, badResult("version %d: this release knows version 1", r.Version)
	}
	if _, err := fleet.ParseID(string(r.Fleet)); err != nil {
		return nil, badResult("%w", err)
	}
	if _, err := fleet.ParseCommandID(string(r.Command)); err != nil {
		return nil, badResult("%w", err)
	}
	if _, err := fleet.ParseNodeID(string(r.Node)); err != nil {
		return nil, badResult("%w", err)
	}
	if !r.State.Valid() || !r.State.Final() {
		return nil, badResult("state %d is not final", r.State)
	}
	if len(r.Reason) > MaxReason || !utf8.ValidString(r.Reason) {
		return nil, badResult("the reason is not at most %d bytes of UTF-8", MaxReason)
	}
	if r.Started < 0 || r.Ended < 0 {
		return nil, badResult("a time is negative")
	}
	return &SignedResult{r.Result, payload, signature}, nil
}

// Verify checks that the host itself, whose agent key is given, said so. The
// error is of kind Unauthenticated.
func (s *SignedResult) Verify(agent fleet.PublicKey) error {
	if s.Node != fleet.NodeIDOf(agent) || !identity.Verify(agent, identity.UseResult, s.Payload, s.Signature) {
		return fleet.Errorf(fleet.Unauthenticated, "result: not signed by %s", s.Node)
	}
	return nil
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func badResult(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "result: "+format, args...)
}
