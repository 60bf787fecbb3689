// Package rpc carries calls between the hosts of one fleet: HTTP/2 over the
// connections that node/transport authenticated, msgpack bodies.
//
// A call is POST /fleet/<Method>; each body is one frame {version 1 byte,
// length u32 big-endian, msgpack}. What exists is one table, Methods: who may
// call, how large request and answer may be, how many calls of one peer may
// run, how long they may take. Nothing is reachable that is not in it, and the
// caller's role is compared with it before a byte of the body is read.
//
// Invariants:
//   - The caller is who its connection's certificate says; no body names it.
//   - No body is decoded before its length was compared with the table and its
//     structure was checked (node/wire).
//   - An answer is an error only if the peer said so, or if it is Unavailable
//     (the call was not sent) or Unknown (sent, no answer). Text of a peer's
//     error is cut and escaped, its detail never travels.
//   - Every method may be called again with the same request and then has the
//     same effect as once (nonces, content addresses, journal keys see to
//     that), so the client repeats a call whose kept connection turned out dead.
//
// Why not gRPC or a multiplexer of our own: the standard library's HTTP/2 has
// flow control, cancellation and one place to authenticate, and adds nothing
// to the binary that is not in it already.
package rpc

import (
	"bytes"
	"encoding/binary"
	"io"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// Version is the first byte of every frame.
const Version = 1

// frameHeader is the version byte and the length.
const frameHeader = 5

// pathPrefix stands before the method's name in the URL.
const pathPrefix = "/fleet/"

// encodeFrame makes the frame of one value.
func encodeFrame(v any) ([]byte, error) {
	body, err := wire.Marshal(v)
	if err != nil {
		return nil, err
	}
	return frameBytes(body), nil
}

// frameBytes puts the header before an encoded body.
func frameBytes(body []byte) []byte {
	frame := make([]byte, frameHeader+len(body))
	frame[0] = Version
	binary.BigEndian.PutUint32(frame[1:], uint32(len(body)))
	copy(frame[frameHeader:], body)
	return frame
}

// readFrame reads one frame of at most max bytes of body and checks the body's
// structure. It allocates what arrives, not what is declared.
func readFrame(r io.Reader, max int) ([]byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "frame header: %w", err)
	}
	if head[0] != Version {
		return nil, fleet.Errorf(fleet.Invalid, "frame of version %d: this release speaks version %d", head[0], Version)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if int64(n) > int64(max) {
		return nil, fleet.Errorf(fleet.TooLarge, "frame of %d bytes is over the limit of %d", n, max)
	}
	var buf bytes.Buffer
	buf.Grow(int(min(n, 32<<10)))
	if got, err := io.CopyN(&buf, r, int64(n)); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "frame of %d bytes ended after %d: %w", n, got, err)
	}
	if err := wire.Check(buf.Bytes()); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "frame of %d bytes: %w", n, err)
	}
	return buf.Bytes(), nil
}

// decodeBody decodes a checked body into v (zero, a pointer) and applies the
// limits that v states about its own fields.
func decodeBody(body []byte, v any) error {
	if err := wire.Unmarshal(body, v); err != nil {
		return fleet.Errorf(fleet.Invalid, "%w", err)
	}
	if c, ok := v.(interface{ Validate() error }); ok {
		return c.Validate()
	}
	return nil
}
