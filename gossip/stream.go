package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A stream carries one message each way: version 1, length of the label 1,
// label, length of the message 4 (big-endian), message. It runs inside TLS and
// is not sealed again.
const streamVersion = 1

// bytesPerMember bounds the state exchange: a member takes about 223.
const bytesPerMember = 256

// stream makes memberlist's connection out of that format. memberlist writes a
// message with one Write and reads what it likes; the first Read takes the
// whole message, of bounded size, and only what is believable is read on.
// One goroutine reads and one writes, as memberlist does.
type stream struct {
	net.Conn
	label   string
	limit   int
	believe func(message []byte) ([]byte, error)

	wrote bool
	read  bool
	rest  bytes.Reader

	once    sync.Once
	onClose func()
}

// Write sends the message.
func (s *stream) Write(message []byte) (int, error) {
	if s.wrote {
		return 0, errors.New("gossip stream: a second message")
	}
	s.wrote = true
	if len(message) > s.limit {
		return 0, fmt.Errorf("gossip stream: a message of %d bytes is over the limit of %d", len(message), s.limit)
	}
	frame := make([]byte, 0, 2+len(s.label)+4+len(message))
	frame = append(frame, streamVersion, byte(len(s.label)))
	frame = append(frame, s.label...)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(message)))
	frame = append(frame, message...)
	if _, err := s.Conn.Write(frame); err != nil {
		return 0, err
	}
	return len(message), nil
}

// Read gives out the peer's message, then io.EOF.
func (s *stream) Read(b []byte) (int, error) {
	if !s.read {
		s.read = true
		message, err := readMessage(s.Conn, s.label, s.limit)
		if err == nil {
			message, err = s.believe(message)
		}
		if err != nil {
			return 0, err
		}
		s.rest.Reset(message)
	}
	return s.rest.Read(b)
}

// readMessage reads one message of at most limit bytes. It takes memory as the
// bytes come, not as their announced number asks.
func readMessage(r io.Reader, label string, limit int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] != streamVersion {
		return nil, fmt.Errorf("gossip stream: version %d is not known", head[0])
	}
	theirs := make([]byte, head[1])
	if _, err := io.ReadFull(r, theirs); err != nil {
		return nil, err
	}
	if string(theirs) != label {
		return nil, fmt.Errorf("gossip stream: it belongs to the ring %q, not to %q", theirs, label)
	}
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("gossip stream: a message of %d bytes is over the limit of %d", n, limit)
	}
	var message bytes.Buffer
	if _, err := io.CopyN(&message, r, int64(n)); err != nil {
		return nil, fmt.Errorf("gossip stream: %w", err)
	}
	return message.Bytes(), nil
}

// Close closes the connection and frees its place.
func (s *stream) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.onClose)
	return err
}
