package fleet

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// TestKinds: the numbers cross the wire and never change.
func TestKinds(t *testing.T) {
	want := []string{
		"internal", "invalid", "not found", "conflict", "denied", "unauthenticated", "no quorum", "not leader", "unavailable",
		"expired", "throttled", "too large", "corrupt", "unknown outcome",
	}
	for n := range 256 {
		name := fmt.Sprintf("kind(%d)", n)
		if n < len(want) {
			name = want[n]
		}
		if got := Kind(n).String(); got != name {
			t.Errorf("kind %d is %q, want %q", n, got, name)
		}
	}
	for kind, n := range map[Kind]uint8{
		Other: 0, Invalid: 1, NotFound: 2, Conflict: 3, Denied: 4, Unauthenticated: 5, NoQuorum: 6, NotLeader: 7, Unavailable: 8,
		Expired: 9, Throttled: 10, TooLarge: 11, Corrupt: 12, Unknown: 13,
	} {
		if uint8(kind) != n {
			t.Errorf("%s is %d, want %d", kind, kind, n)
		}
	}
}

func TestErrors(t *testing.T) {
	plain := errors.New("plain")
	hinted := Errorf(Expired, "inner").WithHint("do %s", "this")
	for _, tc := range []struct {
		name string
		err  error
		text string
		kind Kind
		hint string
		is   error // reachable by errors.Is; nil: not checked
	}{
		{"message", Errorf(Invalid, "bad %q", "x"), `bad "x"`, Invalid, "", nil},
		{"wrapping", Errorf(Denied, "outer: %w", plain), "outer: plain", Denied, "", plain},
		{"wrapping two", Errorf(Denied, "outer: %w, %w", plain, io.EOF), "outer: plain, EOF", Denied, "", io.EOF},
		{"wrapping two, the first", Errorf(Denied, "outer: %w, %w", plain, io.EOF), "outer: plain, EOF", Denied, "", plain},
		{"wrapping wrapped", Errorf(Denied, "outer: %w", fmt.Errorf("mid: %w", plain)), "outer: mid: plain", Denied, "", plain},
		{"the outer kind counts", Errorf(Denied, "outer: %w", hinted), "outer: inner", Denied, "do this", hinted},
		{"the outer hint counts", Errorf(Denied, "outer: %w", hinted).WithHint("do that"), "outer: inner", Denied, "do that", nil},
		{"below fmt", fmt.Errorf("outer: %w", hinted), "outer: inner", Expired, "do this", hinted},
		{"a hint further down", Errorf(Denied, "a: %w", Errorf(Invalid, "b: %w", hinted)), "a: b: inner", Denied, "do this", hinted},
		{"a hint in a join", errors.Join(Errorf(Denied, "a"), hinted), "a\ninner", Denied, "do this", hinted},
		{"a hint in a wrapped join", Errorf(NotFound, "none: %w", errors.Join(plain, Errorf(Denied, "a"), hinted)), "none: plain\na\ninner",
			NotFound, "do this", hinted},
		{"detail by hand", &Error{Kind: Corrupt, Message: "damaged", Err: plain}, "damaged: plain", Corrupt, "", plain},
		{"detail without text", &Error{Kind: Corrupt, Message: "damaged", Err: hide(plain)}, "damaged", Corrupt, "", plain},
		{"no message", &Error{Kind: Throttled}, "throttled", Throttled, "", nil},
		{"not ours", plain, "plain", Other, "", plain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.err.Error(); got != tc.text {
				t.Errorf("text %q, want %q", got, tc.text)
			}
			if got := KindOf(tc.err); got != tc.kind {
				t.Errorf("kind %s, want %s", got, tc.kind)
			}
			if got := HintOf(tc.err); got != tc.hint {
				t.Errorf("hint %q, want %q", got, tc.hint)
			}
			if tc.is != nil && !errors.Is(tc.err, tc.is) {
				t.Errorf("%q is not in the chain", tc.is)
			}
		})
	}
	if KindOf(nil) != Other || HintOf(nil) != "" {
		t.Error("no error has a kind or a hint")
	}
}

func TestCodeErrorf(t *testing.T) {
	err := fmt.Errorf("send: %w", CodeErrorf(NotFound, "InvalidInstanceId", "no node %s: %w", "mi-1", io.EOF))
	var e *Error
	if !errors.As(err, &e) || e.Code != "InvalidInstanceId" || e.Kind != NotFound || e.Message != "no node mi-1: EOF" || !errors.Is(err, io.EOF) {
		t.Errorf("got %+v", e)
	}
}

func TestMessageOfWrappedErrorIsNotRepeated(t *testing.T) {
	err := Errorf(Denied, "a: %w", Errorf(Denied, "b: %w", Errorf(Denied, "c: %w", io.EOF)))
	if got := err.Error(); got != "a: b: c: EOF" {
		t.Errorf("got %q", got)
	}
}
