package raftfsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// A snapshot is a header of 8 bytes magic and 1 byte version, then frames
// {u32 length, u32 CRC-32C of the body, body}. A body is msgpack {table, row};
// tables come in the order of tables below and rows in that of their IDs. The
// last frame is the trailer {number of frames before it, SHA-256 of all bytes
// before it}; nothing follows it. Damage at any byte is found.
const (
	magic           = "FLEETFSM"
	snapshotVersion = 1

	// maxFrame bounds what a reader allocates for one row. A command's row has
	// its target's IDs, 21 bytes each.
	maxFrame = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Tables of a snapshot.
const (
	tableApplied     = "applied"
	tableFleet       = "fleet"
	tableTrust       = "trust"
	tableClock       = "clock"
	tableOperators   = "operators"
	tableAppoint     = "appointments"
	tableRequests    = "requests"
	tableActivations = "activations"
	tableNodes       = "nodes"
	tableRemovals    = "removals"
	tableContents    = "contents"
	tableCommands    = "commands"
	tableShards      = "shards"
	tableNonces      = "nonces"
	tableTargets     = "targets"
	tableGossipKeys  = "gossipkeys"
	tableFeatures    = "features"
	tableMarks       = "marks"
	tableEnd         = "end"
)

type frame struct {
	Table string `msgpack:"t"`
	Row   []byte `msgpack:"r"`
}

type appliedRow struct {
	Index uint64 `msgpack:"i"`
}

type bytesRow struct {
	Bytes []byte `msgpack:"b"`
}

type clockRow struct {
	Stamp int64 `msgpack:"s"`
}

type trailer struct {
	Frames uint64       `msgpack:"n"`
	Digest fleet.Digest `msgpack:"d"`
}

// rows emits the whole state in canonical order: equal states give equal rows.
func rows(v state.View, emit func(table string, row any) error) error {
	f := v.Fleet()
	if !f.Genesis {
		return nil
	}
	if err := emit(tableFleet, &bytesRow{f.Signed}); err != nil {
		return err
	}
	if err := emit(tableTrust, &bytesRow{v.Trust().Raw()}); err != nil {
		return err
	}
	if err := emit(tableClock, &clockRow{v.LastStamp()}); err != nil {
		return err
	}
	for _, content := range []func() error{
		func() error { return emit(tableOperators, firstOperator(v)) },
		func() error { return emitAll(emit, tableAppoint, v.Appointments()) },
		func() error { return emitAll(emit, tableRequests, v.Requests()) },
		func() error { return emitAll(emit, tableActivations, v.Activations()) },
		func() error { return emitAll(emit, tableNodes, v.Nodes()) },
		func() error { return emitAll(emit, tableRemovals, v.Removals()) },
		func() error {
			for _, b := range v.Contents() {
				if err := emit(tableContents, &bytesRow{b}); err != nil {
					return err
				}
			}
			return nil
		},
		func() error { return emitAll(emit, tableCommands, v.Commands(0, "")) },
		func() error { return emitAll(emit, tableShards, v.Shards()) },
		func() error { return emitAll(emit, tableNonces, v.Nonces()) },
		func() error { return emitAll(emit, tableTargets, v.SavedTargets()) },
		func() error {
			if g := v.GossipKeys(); g.Version > 1 { // else they are those of genesis
				return emit(tableGossipKeys, g)
			}
			return nil
		},
		func() error {
			if level := v.Features(); level != entry.BaseLevel {
				return emit(tableFeatures, &featuresRow{level})
			}
			return nil
		},
		func() error { return emitAll(emit, tableMarks, v.Marks()) },
	} {
		if err := content(); err != nil {
			return err
		}
	}
	return nil
}

// firstOperator is the one that genesis made, whether or not he still may: the
// others follow from the appointments.
func firstOperator(v state.View) *fleet.Operator {
	p, _, err := identity.ParseGenesis(v.Fleet().Signed, v.Fleet().ID)
	if err != nil {
		panic(fmt.Sprintf("genesis in the state: %v", err)) // it was verified when it came
	}
	return &p.Operator
}

func emitAll[T any](emit func(string, any) error, table string, rows []*T) error {
	for _, row := range rows {
		if err := emit(table, row); err != nil {
			return err
		}
	}
	return nil
}

// Hash is a digest of the whole state. Two replicas with equal Applied have
// equal hashes, or one of them is wrong.
func (f *FSM) Hash() fleet.Digest { return hashOf(f.Store().Snapshot().View) }

func hashOf(v state.View) fleet.Digest {
	sum := sha256.New()
	err := rows(v, func(table string, row any) error {
		body := frameBody(table, row)
		sum.Write(binary.BigEndian.AppendUint32(nil, uint32(len(body))))
		sum.Write(body)
		return nil
	})
	if err != nil {
		panic(err) // emit has no errors
	}
	return fleet.Digest(sum.Sum(nil))
}

func frameBody(table string, row any) []byte {
	return wire.MustMarshal(&frame{Table: table, Row: wire.MustMarshal(row)})
}

// snapshot is the state at one index, to be written while Apply goes on.
type snapshot struct {
	store   *state.Store
	applied uint64
}

// Snapshot takes the state as it is now; it costs nothing.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{store: f.Store().Snapshot(), applied: f.Applied()}, nil
}

// WriteState writes the present state as a snapshot, which Restore takes. The
// index in it may lie one entry below what the state holds.
func (f *FSM) WriteState(to io.Writer) error {
	s := &snapshot{applied: f.Applied(), store: f.Store().Snapshot()}
	return s.write(to)
}

// Release has nothing to free.
func (*snapshot) Release() {}

// Persist writes the snapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) write(to io.Writer) error {
	buffered := bufio.NewWriterSize(to, 1<<16)
	w := &frameWriter{w: buffered, sum: sha256.New()}
	if err := w.write(append([]byte(magic), snapshotVersion)); err != nil {
		return err
	}
	if err := w.frame(tableApplied, &appliedRow{s.applied}); err != nil {
		return err
	}
	if err := rows(s.store.View, w.frame); err != nil {
		return err
	}
	if err := w.frame(tableEnd, &trailer{w.frames, fleet.Digest(w.sum.Sum(nil))}); err != nil {
		return err
	}
	return buffered.Flush()
}

type frameWriter struct {
	w      io.Writer
	sum    hash.Hash
	frames uint64
}

func (w *frameWriter) write(b []byte) error {
	w.sum.Write(b)
	_, err := w.w.Write(b)
	return err
}

func (w *frameWriter) frame(table string, row any) error {
	return w.body(frameBody(table, row))
}

func (w *frameWriter) body(body []byte) error {
	if len(body) > maxFrame {
		return fmt.Errorf("a row of %d bytes is over the limit of %d", len(body), maxFrame)
	}
	w.frames++
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(body, castagnoli))
	if err := w.write(head); err != nil {
		return err
	}
	return w.write(body)
}

type frameReader struct {
	r      io.Reader
	sum    hash.Hash
	frames uint64
}

func (r *frameReader) read(n int) ([]byte, error) {
	// The buffer grows with what is there, not with what is declared.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}

// next reads one frame. digest is that of all bytes before it.
func (r *frameReader) next() (f frame, digest fleet.Digest, err error) {
	digest = fleet.Digest(r.sum.Sum(nil))
	head, err := r.read(8)
	if err != nil {
		return f, digest, err
	}
	n := binary.BigEndian.Uint32(head)
	if n > maxFrame {
		return f, digest, fmt.Errorf("a frame of %d bytes is over the limit of %d", n, maxFrame)
	}
	body, err := r.read(int(n))
	if err != nil {
		return f, digest, err
	}
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return f, digest, errors.New("a frame's checksum is wrong")
	}
	if err := wire.UnmarshalStrict(body, &f); err != nil {
		return f, digest, err
	}
	r.sum.Write(head)
	r.sum.Write(body)
	return f, digest, nil
}
