package rpc

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"fleet/node/fleet"
)

// errorBody is an error as it crosses the wire.
type errorBody struct {
	Kind    uint8  `msgpack:"k"`
	Code    string `msgpack:"c,omitempty"`
	Message string `msgpack:"m,omitempty"`
	Hint    string `msgpack:"h,omitempty"`
	After   uint32 `msgpack:"a,omitempty"` // milliseconds until it may succeed; 0 if waiting does not help
}

// Limits of an error's text, in bytes of what is shown.
const (
	maxErrorText = 1 << 10
	maxErrorCode = 64
	maxErrorBody = 8 << 10

	maxAfter = 60_000 // milliseconds; a peer cannot make another wait for longer
)

// toBody is what of err a peer may see: only what an Error says, not its
// detail, and of any other error only that there was one.
func toBody(err error) errorBody {
	var e *fleet.Error
	if !errors.As(err, &e) {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled) {
			return errorBody{Kind: uint8(fleet.Unknown), Message: "the peer was interrupted before it had an answer"}
		}
		return errorBody{Kind: uint8(fleet.Other), Message: "internal error; the peer's log has the detail"}
	}
	b := errorBody{Kind: uint8(e.Kind), Code: clean(e.Code, maxErrorCode), Message: clean(e.Message, maxErrorText),
		Hint: clean(fleet.HintOf(err), maxErrorText)}
	if e.RetryAfter > 0 {
		b.After = uint32(min(max(e.RetryAfter.Milliseconds(), 1), maxAfter))
	}
	if b.Message == "" {
		b.Message = e.Kind.String()
	}
	return b
}

// toError is the error that a peer reported. Its text is foreign: cut, with
// everything that could steer a terminal escaped.
func (b errorBody) toError() *fleet.Error {
	kind := fleet.Kind(b.Kind)
	if b.Kind > uint8(fleet.Unknown) { // a later release's; unclassified here
		kind = fleet.Other
	}
	e := &fleet.Error{Kind: kind, Code: clean(b.Code, maxErrorCode), Message: clean(b.Message, maxErrorText),
		Hint: clean(b.Hint, maxErrorText), RetryAfter: time.Duration(min(b.After, maxAfter)) * time.Millisecond}
	if e.Message == "" {
		e.Message = kind.String()
	}
	return e
}

// clean escapes what is not printable (so also line ends and characters that
// reorder text) and cuts s to at most max bytes.
func clean(s string, max int) string {
	var b strings.Builder
	for i, r := range s {
		piece := string(r)
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			_, size := utf8.DecodeRuneInString(s[i:])
			quoted := strconv.QuoteToASCII(s[i : i+size])
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > max-len("…") {
			b.WriteString("…")
			break
		}
		b.WriteString(piece)
	}
	return b.String()
}
