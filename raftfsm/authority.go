package raftfsm

import (
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// MaxNonces is how many proofs of one operator key may be unexpired at a time:
// two hundred each second, for as long as a proof can last.
const MaxNonces = 1 << 17

// Authorize checks that an operator asked for an operation with exactly this
// request, and may: the proof's form, fleet, operation and request digest, the
// operator's row and key, the signature, the times, and the operator's rights.
// Stamp is the time of the decision. It does not look whether the proof was
// used before. Apply calls it for every signed entry, and a proposer may.
//
// Rights are compared here and not in a table of operations that could change
// with a release: voters of two releases must decide alike.
func Authorize(v state.View, operation string, stamp int64, request, proof []byte) (*identity.SignedProof, *fleet.Operator, error) {
	find := func(name fleet.OperatorName, _ fleet.KeyID) (*fleet.Operator, error) { return v.FindOperator(name) }
	return authorize(v, find, operation, stamp, request, proof)
}

// authorize is Authorize with the way to find an operator's row.
func authorize(v state.View, find func(fleet.OperatorName, fleet.KeyID) (*fleet.Operator, error), operation string, stamp int64,
	request, proof []byte) (*identity.SignedProof, *fleet.Operator, error) {
	refuse := func(format string, args ...any) (*identity.SignedProof, *fleet.Operator, error) {
		return nil, nil, fleet.Errorf(fleet.Unauthenticated, format, args...)
	}
	p, err := identity.ParseProof(proof)
	if err != nil {
		return refuse("the proof cannot be read: %w", err)
	}
	if id := v.Fleet().ID; p.Fleet != id {
		return refuse("the proof is for fleet %s, this is fleet %s", p.Fleet, id)
	}
	if p.Operation != operation {
		return refuse("the proof is for %s, not for %s", p.Operation, operation)
	}
	if p.Body != fleet.Sum(request) {
		return refuse("the request is not the one that was signed")
	}
	op, err := find(p.Operator, p.Key)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(op.Keys, func(k fleet.PublicKey) bool { return k.ID() == p.Key })
	if i < 0 {
		return refuse("key %s is not one of operator %q", p.Key, p.Operator)
	}
	if err := p.Verify(op.Keys[i]); err != nil {
		return nil, nil, err
	}
	if err := checkLifetime(p.NotAfter, stamp); err != nil {
		return nil, nil, err
	}
	if !slices.Contains(op.May, "*") && !slices.Contains(op.May, operation) {
		return nil, nil, fleet.CodeErrorf(fleet.Denied, "AccessDeniedException", "operator %q may not %s", op.Name, operation)
	}
	return p, op, nil
}

// checkLifetime accepts a proof that has not ended at stamp and does not last
// longer than proofs may.
func checkLifetime(notAfter, stamp int64) error {
	const clock = "compare the clock of the machine that signed with that of the fleet"
	if notAfter < stamp {
		return fleet.Errorf(fleet.Expired, "the signed request ended at %s, and the fleet's time is %s",
			formatTime(notAfter), formatTime(stamp)).WithHint(clock)
	}
	// notAfter is foreign and may be any number; stamp is not.
	if notAfter > stamp+int64(identity.ProofLifetime) {
		return fleet.Errorf(fleet.Expired, "the signed request lasts until %s, more than %s after the fleet's time %s",
			formatTime(notAfter), identity.ProofLifetime, formatTime(stamp)).WithHint(clock)
	}
	return nil
}

// authority is the body of an entry that an operator signed.
type authority interface {
	entry.Body
	Signed() *entry.Authority
}

// signed makes a handler for a kind that operators sign: do makes the change
// and names the object, answer reads the object for the answer. A proof is
// used once; who sends it again gets the answer again.
func signed[B authority](do func(*step, B, *fleet.Operator) (object string, err error),
	answer func(*step, string) any) handler {
	return func(s *step, body entry.Body) (any, error) {
		kind, a := body.Kind(), body.(B).Signed()
		s.at(a.Stamp)
		p, op, err := Authorize(s.View, kind.Operation(), s.stamp, a.Request, a.Proof)
		if err != nil {
			return nil, err
		}
		if used := s.usedBy(p); used != nil {
			if used.Kind != kind || used.Body != p.Body {
				return nil, fleet.Errorf(fleet.Conflict, "the nonce of this request was used for another request")
			}
			return answer(s, used.Object), nil
		}
		if s.NonceCount(p.Key) >= MaxNonces {
			return nil, fleet.Errorf(fleet.Throttled, "operator %q made more than %d requests in %s",
				op.Name, MaxNonces, identity.ProofLifetime).WithHint("wait a few minutes")
		}
		object, err := do(s, body.(B), op)
		if err != nil {
			return nil, err
		}
		s.PutNonce(&state.Nonce{Key: p.Key, Nonce: p.Nonce, NotAfter: p.NotAfter, Kind: kind, Body: p.Body, Object: object})
		return answer(s, object), nil
	}
}

// keep remembers what was signed for an object.
func (s *step) keep(kind entry.Kind, object string, a *entry.Authority) {
	s.PutRequest(&state.Request{Kind: kind, Object: object, Stamp: s.stamp, Request: a.Request, Proof: a.Proof})
}

func formatTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }
