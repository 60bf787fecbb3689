package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

// memberlist's messages, from its net.go. The numbers are its wire format.
const (
	msgPing         = 0
	msgIndirectPing = 1
	msgAck          = 2
	msgSuspect      = 3
	msgAlive        = 4
	msgDead         = 5
	msgPushPull     = 6
	msgCompound     = 7
	msgNack         = 11
	msgCRC          = 12
	msgError        = 13
)

// States in a push/pull, from its state.go.
const (
	stateAlive = 0
	stateDead  = 2
	stateLeft  = 3
)

// protocolVersion is the only one of memberlist's that we speak.
const protocolVersion = 5

// An incarnation outranks all lower ones of the same member, and a member
// answers an accusation with the next. Nothing signs it. A claim at the end of
// the range would therefore silence its subject for ever: no answer is higher.
// So claims keep a distance, and an accusation can always be answered by an
// "alive" that all accept. Between the two limits a member can be claimed alive
// but not be accused by others; then each host finds out by itself.
const (
	maxAccused = 1 << 31       // suspect or dead, said of others
	maxAlive   = 1<<31 + 1<<30 // alive
	maxBlamed  = maxAlive - 1  // suspect or dead, said of this host: its answer is one more
	maxNodes   = 1 << 20       // announced members of a push/pull, before they are counted
	maxText    = 256           // an error that a peer tells
	nameSize   = 20            // of a node ID
)

var (
	errMalformed = errors.New("gossip message: malformed")
	errUnknown   = errors.New("gossip message: of a kind that is not accepted")
)

// belief decides what memberlist is told of what others say.
type belief struct {
	self   fleet.NodeID
	refuse func() // called for each claim that is dropped
}

// packet reads the message of a packet and returns what memberlist may see of
// it; nil if nothing. It may change b.
func (f *belief) packet(b []byte) ([]byte, error) {
	if len(b) > 5 && b[0] == msgCRC {
		b = b[5:] // the seal says more than the checksum
	}
	if len(b) < 2 {
		return nil, errMalformed
	}
	if b[0] != msgCompound {
		return f.message(b)
	}
	parts, err := splitCompound(b)
	if err != nil {
		return nil, err
	}
	kept := parts[:0]
	for _, part := range parts {
		message, err := f.message(part)
		if err != nil {
			f.refuse()
			continue
		}
		kept = append(kept, message)
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return joinCompound(kept), nil
}

// splitCompound takes a compound message apart: kind 1, count 1, lengths 2
// each, messages.
func splitCompound(b []byte) ([][]byte, error) {
	n, lengths := int(b[1]), b[2:]
	if len(lengths) < 2*n {
		return nil, errMalformed
	}
	rest := lengths[2*n:]
	parts := make([][]byte, 0, n)
	for i := range n {
		size := int(binary.BigEndian.Uint16(lengths[2*i:]))
		if size > len(rest) {
			return nil, errMalformed
		}
		parts = append(parts, rest[:size:size])
		rest = rest[size:]
	}
	if len(rest) != 0 {
		return nil, errMalformed
	}
	return parts, nil
}

func joinCompound(parts [][]byte) []byte {
	out := []byte{msgCompound, byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// message checks one simple message of a packet.
func (f *belief) message(b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, errMalformed
	}
	s, known := packetShapes[b[0]]
	if !known {
		return nil, errUnknown
	}
	c, rest, err := s.read(b[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errMalformed
	}
	switch b[0] {
	case msgSuspect, msgDead:
		if c.incarnation > f.accusable(c.node) {
			return nil, fmt.Errorf("gossip message: %s accused with incarnation %d", c.node, c.incarnation)
		}
		b[0] = msgSuspect // the same fields: its subject may answer first
	case msgAlive:
		if err := c.alive(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (f *belief) accusable(node []byte) uint64 {
	if string(node) == string(f.self) {
		return maxBlamed
	}
	return maxAccused
}

// stream reads the message of a stream and returns what memberlist may see.
func (f *belief) stream(b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, errMalformed
	}
	if b[0] == msgPushPull {
		return f.pushPull(b[1:])
	}
	s, known := streamShapes[b[0]]
	if !known {
		return nil, errUnknown
	}
	_, rest, err := s.read(b[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errMalformed
	}
	return b, nil
}

// pushPullHeader begins a state exchange.
type pushPullHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

// pushPull keeps the members that can be believed. What a later release may
// send after them is cut off: this one would not know what it is.
func (f *belief) pushPull(b []byte) ([]byte, error) {
	head, rest, err := headerShape.read(b)
	if err != nil {
		return nil, err
	}
	if head.nodes > maxNodes {
		return nil, fmt.Errorf("gossip message: %d members are announced", head.nodes)
	}
	var kept []byte
	n := 0
	for range head.nodes {
		entry := rest
		var c claims
		if c, rest, err = stateShape.read(rest); err != nil {
			return nil, err
		}
		entry = entry[:len(entry)-len(rest)]
		if f.state(&c) != nil {
			f.refuse()
			continue
		}
		kept = append(kept, entry...)
		n++
	}
	if uint64(len(rest)) != head.userState {
		return nil, errMalformed
	}
	header, err := wire.Marshal(pushPullHeader{Nodes: n, Join: head.join})
	if err != nil {
		return nil, err
	}
	out := append([]byte{msgPushPull}, header...)
	return append(out, kept...), nil
}

// state checks one member of a push/pull. memberlist takes a foreign "dead" as
// "suspect" here, but a foreign "left" at its word: that is made a "dead".
func (f *belief) state(c *claims) error {
	switch {
	case c.state > stateLeft:
		return errMalformed
	case c.state == stateAlive:
		return c.alive()
	case c.incarnation > f.accusable(c.node):
		return errUnknown
	case !c.versions():
		return errUnknown
	}
	if c.state == stateLeft {
		if len(c.stateAt) != 1 {
			return errMalformed
		}
		c.stateAt[0] = stateDead
	}
	return nil
}

// claims are the fields of a message that decide anything.
type claims struct {
	node        []byte
	addr        []byte
	meta        []byte
	vsn         []byte
	incarnation uint64
	state       uint64
	stateAt     []byte // where the state stands in the message
	nodes       uint64
	userState   uint64
	join        bool
}

// alive checks what an "alive" says. Its node record is checked when memberlist
// asks about the member: here only what memberlist would stumble over.
func (c *claims) alive() error {
	switch {
	case c.incarnation > maxAlive:
		return fmt.Errorf("gossip message: %s alive with incarnation %d", c.node, c.incarnation)
	case len(c.node) != nameSize, len(c.addr) != 4 && len(c.addr) != 16, len(c.meta) > identity.MaxNodeRecord:
		return errMalformed
	case !c.versions():
		return errUnknown
	}
	return nil
}

// versions accepts what every member of this release, and any later one that
// still speaks to it, sends. memberlist refuses a whole state exchange, even a
// join, for the sake of one member with versions that do not overlap.
func (c *claims) versions() bool {
	v := c.vsn
	return len(v) == 6 &&
		v[0] == 1 && v[1] >= protocolVersion && v[2] == protocolVersion &&
		v[3] == 1 && v[4] >= 1 && v[5] == 1
}
