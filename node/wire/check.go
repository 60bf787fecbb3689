package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors of Check. Callers rarely tell them apart; tests do.
var (
	ErrTruncated = errors.New("msgpack: a declared length or count is larger than the rest of the input")
	ErrTooDeep   = fmt.Errorf("msgpack: nested deeper than %d", MaxDepth)
	ErrTrailing  = errors.New("msgpack: bytes after the value")
	ErrType      = errors.New("msgpack: extension types and unassigned codes are not accepted")
	ErrKey       = errors.New("msgpack: a map has a key twice or one that is neither text nor an integer")
)

// Check walks one msgpack value without allocating what it declares: every
// count must fit the bytes that remain, nesting is bounded, map keys are text
// or integers and occur once, extensions are refused, nothing follows the value.
func Check(b []byte) error {
	rest, err := checkValue(b, 0)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return ErrTrailing
	}
	return nil
}

// header splits the first code of b: what kind of value it opens, how long its
// payload (text, bytes, numbers) or its number of elements is.
func header(b []byte) (kind byte, n uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, 0, nil, ErrTruncated
	}
	c := b[0]
	rest = b[1:]
	sized := func(kind byte, width int) (byte, uint64, []byte, error) {
		if len(rest) < width {
			return 0, 0, nil, ErrTruncated
		}
		var n uint64
		switch width {
		case 1:
			n = uint64(rest[0])
		case 2:
			n = uint64(binary.BigEndian.Uint16(rest))
		case 4:
			n = uint64(binary.BigEndian.Uint32(rest))
		}
		return kind, n, rest[width:], nil
	}
	switch {
	case c <= 0x7f, c >= 0xe0: // small integers
		return kindInt, 0, rest, nil
	case c <= 0x8f:
		return kindMap, uint64(c & 0x0f), rest, nil
	case c <= 0x9f:
		return kindArray, uint64(c & 0x0f), rest, nil
	case c <= 0xbf:
		return kindText, uint64(c & 0x1f), rest, nil
	}
	switch c {
	case 0xc0, 0xc2, 0xc3: // nil, false, true
		return kindOther, 0, rest, nil
	case 0xc4:
		return sized(kindBytes, 1)
	case 0xc5:
		return sized(kindBytes, 2)
	case 0xc6:
		return sized(kindBytes, 4)
	case 0xca:
		return kindOther, 4, rest, nil
	case 0xcb:
		return kindOther, 8, rest, nil
	case 0xcc, 0xd0:
		return kindInt, 1, rest, nil
	case 0xcd, 0xd1:
		return kindInt, 2, rest, nil
	case 0xce, 0xd2:
		return kindInt, 4, rest, nil
	case 0xcf, 0xd3:
		return kindInt, 8, rest, nil
	case 0xd9:
		return sized(kindText, 1)
	case 0xda:
		return sized(kindText, 2)
	case 0xdb:
		return sized(kindText, 4)
	case 0xdc:
		return sized(kindArray, 2)
	case 0xdd:
		return sized(kindArray, 4)
	case 0xde:
		return sized(kindMap, 2)
	case 0xdf:
		return sized(kindMap, 4)
	}
	return 0, 0, nil, ErrType
}

const (
	kindOther = iota
	kindInt
	kindText
	kindBytes
	kindArray
	kindMap
)

func checkValue(b []byte, depth int) ([]byte, error) {
	kind, n, rest, err := header(b)
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindArray, kindMap:
		if depth >= MaxDepth {
			return nil, ErrTooDeep
		}
		least := n // each element takes a byte at least, each pair two
		if kind == kindMap {
			least = 2 * n
		}
		if least > uint64(len(rest)) {
			return nil, ErrTruncated
		}
		if kind == kindMap {
			return checkMap(rest, n, depth+1)
		}
		for range n {
			if rest, err = checkValue(rest, depth+1); err != nil {
				return nil, err
			}
		}
		return rest, nil
	default:
		if n > uint64(len(rest)) {
			return nil, ErrTruncated
		}
		return rest[n:], nil
	}
}

func checkMap(b []byte, n uint64, depth int) ([]byte, error) {
	seen := make(map[string]struct{}, min(n, 64))
	for range n {
		kind, length, body, err := header(b)
		if err != nil {
			return nil, err
		}
		if length > uint64(len(body)) {
			return nil, ErrTruncated
		}
		if kind != kindText && kind != kindInt {
			return nil, ErrKey
		}
		// A text key may be written with a short or a long length, an integer
		// in several widths: compare what they mean.
		var key string
		if kind == kindText {
			key = "t" + string(body[:length])
		} else {
			key = intKey(b[0], body[:length])
		}
		if _, twice := seen[key]; twice {
			return nil, ErrKey
		}
		seen[key] = struct{}{}
		if b, err = checkValue(body[length:], depth); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func intKey(code byte, payload []byte) string {
	var v int64
	unsigned := false
	switch code {
	case 0xcc:
		v = int64(payload[0])
	case 0xcd:
		v = int64(binary.BigEndian.Uint16(payload))
	case 0xce:
		v = int64(binary.BigEndian.Uint32(payload))
	case 0xcf:
		v = int64(binary.BigEndian.Uint64(payload))
		unsigned = v < 0
	case 0xd0:
		v = int64(int8(payload[0]))
	case 0xd1:
		v = int64(int16(binary.BigEndian.Uint16(payload)))
	case 0xd2:
		v = int64(int32(binary.BigEndian.Uint32(payload)))
	case 0xd3:
		v = int64(binary.BigEndian.Uint64(payload))
	default:
		v = int64(int8(code))
	}
	if unsigned {
		return fmt.Sprintf("u%d", uint64(v))
	}
	return fmt.Sprintf("i%d", v)
}
