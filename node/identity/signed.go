package identity

import (
	"bytes"
	"errors"

	"fleet/node/fleet"
	"fleet/node/wire"
)

var errNotCanonical = errors.New("not the canonical encoding of its value")

// envelope carries one signed payload as the exact bytes that were signed.
type envelope struct {
	Payload   []byte `msgpack:"p"`
	Signature []byte `msgpack:"s"`
}

// EncodeSigned joins a payload and the signature over it.
func EncodeSigned(payload, signature []byte) []byte {
	return wire.MustMarshal(&envelope{payload, signature})
}

// DecodeSigned splits what EncodeSigned made, at most max bytes, and decodes
// the payload into v, which must point to a zero value. Both must be encoded
// exactly as we encode them. It verifies no signature. what names the format
// in errors, which are of kind Invalid or TooLarge.
func DecodeSigned(b []byte, max int, what string, v any) (payload, signature []byte, err error) {
	var e envelope
	if err := decodeExact(b, max, what, &e); err != nil {
		return nil, nil, err
	}
	if err := decodeExact(e.Payload, max, what, v); err != nil {
		return nil, nil, err
	}
	return e.Payload, e.Signature, nil
}

// decodeFirst reads a signed document of version 1 into v and checks its form:
// version and check are v's own. It verifies no signature.
func decodeFirst(b []byte, max int, what string, v any, version *uint8, check func() error) (payload, signature []byte, err error) {
	if payload, signature, err = DecodeSigned(b, max, what, v); err != nil {
		return nil, nil, err
	}
	if err := checkVersion(what, *version); err != nil {
		return nil, nil, err
	}
	if err := check(); err != nil {
		return nil, nil, err
	}
	return payload, signature, nil
}

// decodeExact decodes b into v and refuses bytes other than those that v
// encodes to: a field that is missing, too short or written in another width
// would else be a second encoding of one signed document.
func decodeExact(b []byte, max int, what string, v any) error {
	if len(b) > max {
		return fleet.Errorf(fleet.TooLarge, "%s: %d bytes are over the limit of %d", what, len(b), max)
	}
	if err := wire.UnmarshalStrict(b, v); err != nil {
		return fleet.Errorf(fleet.Invalid, "%s: %w", what, err)
	}
	again, err := wire.Marshal(v)
	if err != nil {
		return fleet.Errorf(fleet.Invalid, "%s: %w", what, err)
	}
	if !bytes.Equal(again, b) {
		return fleet.Errorf(fleet.Invalid, "%s: %w", what, errNotCanonical)
	}
	return nil
}

// checkVersion refuses a version of a format that this release does not know.
func checkVersion(what string, got uint8) error {
	if got != 1 {
		return fleet.Errorf(fleet.Invalid, "%s of version %d: this release knows version 1", what, got)
	}
	return nil
}
