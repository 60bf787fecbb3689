package fleet

import (
	"errors"
	"fmt"
	"time"
)

// Kind is the one classification of errors: it crosses RPC, becomes the HTTP
// status in node/api and the exit code in node/cli.
type Kind uint8

// Kinds of errors. The numbers cross the wire: append only.
const (
	Other           Kind = 0  // not classified; shown as internal
	Invalid         Kind = 1  // the request is malformed; do not retry it
	NotFound        Kind = 2  // what it names does not exist
	Conflict        Kind = 3  // what it creates exists, or changed meanwhile
	Denied          Kind = 4  // known caller, not allowed
	Unauthenticated Kind = 5  // the caller or its proof could not be verified
	NoQuorum        Kind = 6  // nothing can be decided now; retry later
	NotLeader       Kind = 7  // ask the leader; never shown to a person
	Unavailable     Kind = 8  // this host cannot answer now; try another
	Expired         Kind = 9  // a certificate, proof or activation ran out
	Throttled       Kind = 10 // over a limit of rate or number; retry later
	TooLarge        Kind = 11 // over a limit of size
	Corrupt         Kind = 12 // bytes that should be ours are damaged
	Unknown         Kind = 13 // the outcome is not known; retry with the same nonce
)

var kindNames = map[Kind]string{
	Other: "internal", Invalid: "invalid", NotFound: "not found", Conflict: "conflict", Denied: "denied",
	Unauthenticated: "unauthenticated", NoQuorum: "no quorum", NotLeader: "not leader", Unavailable: "unavailable",
	Expired: "expired", Throttled: "throttled", TooLarge: "too large", Corrupt: "corrupt", Unknown: "unknown outcome",
}

func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// CodeNoNodeName is the Code of the refusal of a host that joins without a
// name, with an activation that gives none.
const CodeNoNodeName = "NoNodeName"

// CodeNodeRemoved is the Code of what a host is told that was removed from the
// fleet.
const CodeNodeRemoved = "NodeRemoved"

// CodeNotOfQuorum is the Code of what a host is told that speaks as one of the
// quorum and is none, or none any more.
const CodeNotOfQuorum = "NotOfTheQuorum"

// Error is an error that a caller may see. Message is for a person and names
// what was wrong; Hint says what to do. Code is SSM's name for the error where
// SSM has one (for example "InvalidInstanceId") and else empty. Err is the
// detail for logs; it does not cross a trust boundary.
type Error struct {
	Kind    Kind
	Code    string
	Message string
	Hint    string
	Err     error

	// RetryAfter is in how long the same request may succeed, of kind Throttled;
	// zero if waiting alone does not help.
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = e.Kind.String()
	}
	if e.Err != nil {
		if detail := e.Err.Error(); detail != "" {
			s += ": " + detail
		}
	}
	return s
}

// Unwrap gives the detail.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a kind. A %w in the format becomes the detail as
// well as part of the message.
func Errorf(kind Kind, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	detail := errors.Unwrap(wrapped)
	if _, several := wrapped.(interface{ Unwrap() []error }); several { // of more than one %w
		detail = wrapped
	}
	return &Error{Kind: kind, Message: wrapped.Error(), Err: hide(detail)}
}

// CodeErrorf is Errorf with SSM's name for the error.
func CodeErrorf(kind Kind, code, format string, args ...any) *Error {
	e := Errorf(kind, format, args...)
	e.Code = code
	return e
}

// WithHint sets what the reader should do.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// RetryIn says in how long the same request may succeed.
func (e *Error) RetryIn(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// RetryAfterOf is in how long a refused request may succeed; zero if waiting
// alone does not help.
func RetryAfterOf(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// KindOf is the kind of the first Error in err's chain; Other if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Other
}

// HintOf is the hint of the first Error in err's tree that has one.
func HintOf(err error) string {
	if e, ok := err.(*Error); ok && e.Hint != "" { //nolint:errorlint // the walk below unwraps
		return e.Hint
	}
	switch e := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() error }:
		return HintOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if hint := HintOf(err); hint != "" {
				return hint
			}
		}
	}
	return ""
}

// hide keeps a wrapped error reachable for errors.Is and As without printing
// it twice: its text already stands in the message.
func hide(err error) error {
	if err == nil {
		return nil
	}
	return hidden{err}
}

type hidden struct{ err error }

func (h hidden) Error() string { return "" }
func (h hidden) Unwrap() error { return h.err }
