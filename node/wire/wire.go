// Package wire turns structs into bytes and foreign bytes into structs, and
// nothing reaches a decoder before its length and its structure were checked.
//
// Bodies are msgpack maps with short field names. msgpack libraries allocate
// what a count in the input declares, so five foreign bytes can ask for
// gigabytes; Check walks the bytes first and refuses a count that the rest of
// the input cannot hold. Encoding is canonical (sorted map keys, struct fields
// in order of declaration): equal values give equal bytes.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sort"

	"github.com/vmihailenco/msgpack/v5"
)

// MaxDepth is the deepest nesting that Check accepts.
const MaxDepth = 32

// Marshal encodes v. It fails only for types that msgpack cannot encode, which
// is a mistake of ours.
func Marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.SetSortMapKeys(true)
	enc.UseCompactInts(true)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return buf.Bytes(), nil
}

// MustMarshal is Marshal for our own types, whose failure is a broken invariant.
func MustMarshal(v any) []byte {
	b, err := Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Unmarshal decodes one checked value into v, which must be zero. Unknown
// fields are ignored: peers of the next release may send them.
func Unmarshal(b []byte, v any) error { return unmarshal(b, v, false) }

// UnmarshalStrict is Unmarshal for bytes that are signed or decide something:
// unknown fields are refused. (Check already refuses duplicate keys.)
func UnmarshalStrict(b []byte, v any) error { return unmarshal(b, v, true) }

func unmarshal(b []byte, v any, strict bool) error {
	if err := Check(b); err != nil {
		return err
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields(strict)
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	return nil
}

// StringMap encodes a map[string][]string canonically: the library sorts only
// map[string]string and map[string]any.
type StringMap map[string][]string

// EncodeMsgpack writes the keys in ascending order.
func (m StringMap) EncodeMsgpack(enc *msgpack.Encoder) error {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	if err := enc.EncodeMapLen(len(m)); err != nil {
		return err
	}
	for _, k := range keys {
		if err := enc.EncodeString(k); err != nil {
			return err
		}
		if err := enc.EncodeArrayLen(len(m[k])); err != nil {
			return err
		}
		for _, s := range m[k] {
			if err := enc.EncodeString(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadFrame reads one frame {u32 big-endian length, body} of at most max bytes.
// The body is not checked; give it to Unmarshal.
func ReadFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(max) {
		return nil, fmt.Errorf("frame of %d bytes is over the limit of %d", n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("frame of %d bytes: %w", n, err)
	}
	return body, nil
}

// WriteFrame writes one frame in a single Write.
func WriteFrame(w io.Writer, body []byte) error {
	frame := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	copy(frame[4:], body)
	_, err := w.Write(frame)
	return err
}
