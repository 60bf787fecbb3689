package ticket

import (
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

func TestResult(t *testing.T) {
	agent := testKey(40)
	want := testResult()
	s, err := ParseResult(SignResult(agent, want))
	if err != nil {
		t.Fatal(err)
	}
	if s.Result != want {
		t.Errorf("got %+v, want %+v", s.Result, want)
	}
	if err := s.Verify(agent.Public()); err != nil {
		t.Error(err)
	}
	// A stored row is verified from its fields.
	if !identity.Verify(agent.Public(), identity.UseResult, want.Encode(), s.Signature) {
		t.Error("the fields do not give the signed bytes again")
	}
	wantKind(t, s.Verify(testKey(41).Public()), fleet.Unauthenticated, "not signed by")
	forged, err := ParseResult(SignResult(testKey(41), want)) // in the name of 40
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, forged.Verify(testKey(41).Public()), fleet.Unauthenticated, "not signed by")
	wantKind(t, forged.Verify(agent.Public()), fleet.Unauthenticated, "not signed by")
	s.Signature = agent.Sign(identity.UseTicket, s.Payload)
	wantKind(t, s.Verify(agent.Public()), fleet.Unauthenticated, "not signed by")
}

func TestSignResultStates(t *testing.T) {
	for state := range fleet.InvocationState(12) {
		r := testResult()
		r.State = state
		if got, want := SignResult(testKey(40), r) != nil, state.Valid() && state.Final(); got != want {
			t.Errorf("state %d: signed %t, want %t", state, got, want)
		}
	}
}

func TestSignResultMendsReason(t *testing.T) {
	for name, c := range map[string]struct{ reason, want string }{
		"short":         {"no such user", "no such user"},
		"long":          {strings.Repeat("a", 300), strings.Repeat("a", 256)},
		"cut character": {strings.Repeat("a", 255) + "é", strings.Repeat("a", 255)},
		"not UTF-8":     {"a\xffb", "a\uFFFDb"},
		"grows":         {strings.Repeat("\xff ", 200), strings.Repeat("\uFFFD ", 64)},
	} {
		r := testResult()
		r.Reason = c.reason
		s, err := ParseResult(SignResult(testKey(40), r))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if s.Reason != c.want {
			t.Errorf("%s: %q, want %q", name, s.Reason, c.want)
		}
	}
}

func TestParseResultRefuses(t *testing.T) {
	for name, change := range map[string]func(*result){
		"version":       func(r *result) { r.Version = 2 },
		"fleet":         func(r *result) { r.Fleet = "x" },
		"command":       func(r *result) { r.Command = "x" },
		"node":          func(r *result) { r.Node = "x" },
		"pending":       func(r *result) { r.State = fleet.Pending },
		"in progress":   func(r *result) { r.State = fleet.InProgress },
		"unknown state": func(r *result) { r.State = 11 },
		"long reason":   func(r *result) { r.Reason = strings.Repeat("a", 257) },
		"not UTF-8":     func(r *result) { r.Reason = "\xff" },
		"negative time": func(r *result) { r.Ended = -1 },
	} {
		r := result{1, testResult()}
		change(&r)
		payload := wire.MustMarshal(&r)
		_, err := ParseResult(identity.EncodeSigned(payload, testKey(40).Sign(identity.UseResult, payload)))
		if fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := ParseResult(make([]byte, MaxResult+1))
	wantKind(t, err, fleet.TooLarge, "limit")
	_, err = ParseResult(nil)
	wantKind(t, err, fleet.Invalid, "")
}
