package gossip

import (
	"encoding/binary"
	"slices"
)

// memberlist encodes each message as one flat msgpack map of named fields. This
// reader knows those fields and nothing else: a message with another field, a
// field twice, a nested value or a wrong kind is refused, so that memberlist's own
// decoder sees only what it writes itself.

// kind is what a field may hold; nil always may.
type kind uint8

const (
	number kind = iota // 0 to 2^64-1
	raw                // text or bytes, which memberlist's msgpack does not tell apart
	ipAddr             // raw: nothing, or an address of 4 or 16 bytes
	boolean
)

// field is one field of a message.
type field struct {
	kind kind
	max  uint64                   // largest number, or longest text
	set  func(c *claims, v value) // nil: it decides nothing
}

type value struct {
	num   uint64
	raw   []byte
	truth bool
	at    []byte // the value as it stands in the message
}

const (
	max16 = 1<<16 - 1
	max32 = 1<<32 - 1
)

// fields are all fields that are known; a name means the same in each message.
var fields = map[string]field{
	"SeqNo":        {kind: number, max: max32},
	"Node":         {kind: raw, max: nameSize, set: func(c *claims, v value) { c.node = v.raw }},
	"Name":         {kind: raw, max: nameSize, set: func(c *claims, v value) { c.node = v.raw }},
	"From":         {kind: raw, max: nameSize},
	"SourceAddr":   {kind: ipAddr},
	"SourcePort":   {kind: number, max: max16},
	"SourceNode":   {kind: raw, max: nameSize},
	"Target":       {kind: ipAddr},
	"Addr":         {kind: ipAddr, set: func(c *claims, v value) { c.addr = v.raw }},
	"Port":         {kind: number, max: max16},
	"Nack":         {kind: boolean},
	"Payload":      {kind: raw, max: 64},
	"Meta":         {kind: raw, max: 512, set: func(c *claims, v value) { c.meta = v.raw }},
	"Vsn":          {kind: raw, max: 16, set: func(c *claims, v value) { c.vsn = v.raw }},
	"Incarnation":  {kind: number, max: max32, set: func(c *claims, v value) { c.incarnation = v.num }},
	"State":        {kind: number, max: 255, set: func(c *claims, v value) { c.state, c.stateAt = v.num, v.at }},
	"Nodes":        {kind: number, max: max32, set: func(c *claims, v value) { c.nodes = v.num }},
	"UserStateLen": {kind: number, max: max32, set: func(c *claims, v value) { c.userState = v.num }},
	"Join":         {kind: boolean, set: func(c *claims, v value) { c.join = v.truth }},
	"Error":        {kind: raw, max: maxText},
}

// shape names the fields that a message may have.
type shape []string

var (
	pingShape    = shape{"SeqNo", "Node", "SourceAddr", "SourcePort", "SourceNode"}
	ackShape     = shape{"SeqNo", "Payload"}
	accuseShape  = shape{"Incarnation", "Node", "From"}
	headerShape  = shape{"Nodes", "UserStateLen", "Join"}
	stateShape   = shape{"Name", "Addr", "Port", "Meta", "Incarnation", "State", "Vsn"}
	packetShapes = map[byte]shape{ // alone or in a compound
		msgPing:         pingShape,
		msgIndirectPing: {"SeqNo", "Target", "Port", "Node", "Nack", "SourceAddr", "SourcePort", "SourceNode"},
		msgAck:          ackShape,
		msgNack:         {"SeqNo"},
		msgSuspect:      accuseShape,
		msgDead:         accuseShape,
		msgAlive:        {"Incarnation", "Node", "Addr", "Port", "Meta", "Vsn"},
	}
	streamShapes = map[byte]shape{ // besides a push/pull
		msgPing:  pingShape,
		msgAck:   ackShape,
		msgError: {"Error"},
	}
)

// read reads one map and returns what follows it.
func (s shape) read(b []byte) (claims, []byte, error) {
	var c claims
	n, b, ok := mapHeader(b)
	if !ok || n > len(s) {
		return c, nil, errMalformed
	}
	seen := 0 // a bit per field
	for range n {
		key, rest, ok := readRaw(b)
		if !ok {
			return c, nil, errMalformed
		}
		i := slices.Index(s, string(key))
		if i < 0 || seen&(1<<i) != 0 {
			return c, nil, errMalformed
		}
		seen |= 1 << i
		var v value
		f := fields[s[i]]
		if v, b, ok = f.readValue(rest); !ok {
			return c, nil, errMalformed
		}
		if f.set != nil {
			f.set(&c, v)
		}
	}
	return c, b, nil
}

func (f field) readValue(b []byte) (value, []byte, bool) {
	if len(b) == 0 {
		return value{}, nil, false
	}
	if b[0] == 0xc0 {
		return value{}, b[1:], true
	}
	var v value
	var rest []byte
	ok := false
	switch f.kind {
	case number:
		v.num, rest, ok = readNumber(b)
		ok = ok && v.num <= f.max
	case raw:
		v.raw, rest, ok = readRaw(b)
		ok = ok && uint64(len(v.raw)) <= f.max
	case ipAddr:
		v.raw, rest, ok = readRaw(b)
		ok = ok && (len(v.raw) == 0 || len(v.raw) == 4 || len(v.raw) == 16)
	case boolean:
		v.truth, rest, ok = b[0] == 0xc3, b[1:], b[0] == 0xc2 || b[0] == 0xc3
	}
	if !ok {
		return value{}, nil, false
	}
	v.at = b[:len(b)-len(rest)]
	return v, rest, true
}

func mapHeader(b []byte) (int, []byte, bool) {
	switch {
	case len(b) >= 1 && b[0]&0xf0 == 0x80:
		return int(b[0] & 0x0f), b[1:], true
	case len(b) >= 3 && b[0] == 0xde:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
	}
	return 0, nil, false
}

func readRaw(b []byte) (data, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, nil, false
	}
	var size, head int
	switch c := b[0]; {
	case c&0xe0 == 0xa0:
		size, head = int(c&0x1f), 1
	case (c == 0xd9 || c == 0xc4) && len(b) >= 2:
		size, head = int(b[1]), 2
	case (c == 0xda || c == 0xc5) && len(b) >= 3:
		size, head = int(binary.BigEndian.Uint16(b[1:])), 3
	default: // nothing of ours needs a longer one
		return nil, nil, false
	}
	if size > len(b)-head {
		return nil, nil, false
	}
	return b[head : head+size], b[head+size:], true
}

func readNumber(b []byte) (uint64, []byte, bool) {
	if b[0] <= 0x7f {
		return uint64(b[0]), b[1:], true
	}
	var width int
	switch b[0] {
	case 0xcc, 0xd0:
		width = 1
	case 0xcd, 0xd1:
		width = 2
	case 0xce, 0xd2:
		width = 4
	case 0xcf, 0xd3:
		width = 8
	default:
		return 0, nil, false
	}
	if len(b) < 1+width {
		return 0, nil, false
	}
	var n uint64
	for _, c := range b[1 : 1+width] {
		n = n<<8 | uint64(c)
	}
	if signed := b[0] >= 0xd0; signed && n>>(8*width-1) != 0 {
		return 0, nil, false // negative
	}
	return n, b[1+width:], true
}
