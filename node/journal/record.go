package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// header begins the file and carries the version of all that follows.
const header = "fleet journal v1\n"

// Sizes of frames, in bytes. An accepted record holds a document (64 KiB) and
// parameters (192 KiB) at most, a finished one details (64 KiB).
const (
	frameHead = 8
	maxFrame  = 512 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// kind is what a record says. The numbers are stored: append only.
type kind uint8

const (
	kindMarks        kind = 1 // since when and how far back the journal knows
	kindAccepted     kind = 2
	kindStarted      kind = 3
	kindSpawned      kind = 4
	kindFinished     kind = 5
	kindAcknowledged kind = 6
	kindRefused      kind = 7 // accepted and finished in one: nothing runs
	kindCancelled    kind = 8 // nothing of it starts any more
)

// durableKinds are synced before the call that writes them returns.
var durableKinds = map[kind]bool{
	kindMarks: true, kindAccepted: true, kindStarted: true, kindFinished: true, kindRefused: true,
	kindCancelled: true,
}

// record is one frame's body. Which parts are set depends on the kind.
type record struct {
	Kind    kind            `msgpack:"k"`
	Durable int64           `msgpack:"d"` // how much of the file was on disk when this was written
	Command fleet.CommandID `msgpack:"c,omitempty"`
	Attempt uint32          `msgpack:"a,omitempty"`
	At      int64           `msgpack:"t,omitempty"`

	Origin  int64 `msgpack:"o,omitempty"`
	Expired int64 `msgpack:"e,omitempty"`

	Accepted *accepted `msgpack:"w,omitempty"`
	Spawned  *Spawned  `msgpack:"s,omitempty"`
	Finished *finished `msgpack:"f,omitempty"`
	Index    uint64    `msgpack:"i,omitempty"` // log index of an acknowledgement
	Cancel   []byte    `msgpack:"x,omitempty"` // signed
	StartBy  int64     `msgpack:"b,omitempty"` // of a start
}

type accepted struct {
	Ticket       []byte `msgpack:"t"`
	Index        uint32 `msgpack:"i"`
	DocumentName string `msgpack:"n"`
	Document     []byte `msgpack:"d,omitempty"`
	Parameters   []byte `msgpack:"p,omitempty"`
	Created      int64  `msgpack:"c"`
	Expires      int64  `msgpack:"e"`
	By           string `msgpack:"v,omitempty"` // the voter that cancelled what never came
}

type finished struct {
	Result []byte         `msgpack:"r"`
	Detail []byte         `msgpack:"d,omitempty"`
	Blobs  []fleet.Digest `msgpack:"b,omitempty"`
}

func acceptedRecord(a Accepted) *accepted {
	return &accepted{a.Ticket, a.Index, a.DocumentName, a.Document, a.Parameters, a.Created, a.Expires, string(a.By)}
}

func finishedRecord(f Finished) *finished { return &finished{f.Result, f.Detail, f.Blobs} }

// of is the record about key k.
func (r record) of(k Key) record {
	r.Command, r.Attempt = k.Command, k.Attempt
	return r
}

func (r record) key() Key { return Key{r.Command, r.Attempt} }

// encode makes a record's frame.
func encode(r record) []byte { return frameOf(wire.MustMarshal(&r)) }

func frameOf(body []byte) []byte {
	frame := make([]byte, frameHead, frameHead+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	binary.BigEndian.PutUint32(frame[4:], crc32.Checksum(body, castagnoli))
	return append(frame, body...)
}

// decode reads the frame at the front of b; n is its length.
func decode(b []byte) (r record, n int, err error) {
	if len(b) < frameHead {
		return r, 0, fmt.Errorf("%d bytes are no frame", len(b))
	}
	size := binary.BigEndian.Uint32(b)
	if size == 0 || size > maxFrame-frameHead || int(size) > len(b)-frameHead {
		return r, 0, fmt.Errorf("a frame of %d bytes where %d are left", size, len(b)-frameHead)
	}
	body := b[frameHead : frameHead+int(size)]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[4:]) {
		return r, 0, fmt.Errorf("the checksum of a frame of %d bytes is wrong", size)
	}
	if err := wire.UnmarshalStrict(body, &r); err != nil {
		return r, 0, err
	}
	return r, frameHead + int(size), nil
}

// looksLikeFrame is a cheap look before decode: a plausible length, and a map
// whose first key is "k".
func looksLikeFrame(b []byte) bool {
	if len(b) < frameHead+4 {
		return false
	}
	size := binary.BigEndian.Uint32(b)
	return size != 0 && size <= maxFrame-frameHead && int(size) <= len(b)-frameHead &&
		b[frameHead]&0xf0 == 0x80 && b[frameHead+1] == 0xa1 && b[frameHead+2] == 'k'
}

// replay reads a whole file and says how much of it is good. What follows is a
// torn tail, or else the error is of kind Corrupt.
func (j *Journal) replay(b []byte) (good int, err error) {
	if len(b) < len(header) || string(b[:len(header)]) != header {
		return 0, damaged("it does not begin with %q: it is damaged or of another version", header[:len(header)-1])
	}
	good = len(header)
	for good < len(b) {
		r, n, err := decode(b[good:])
		if err != nil {
			return good, j.tornAt(b, good, err)
		}
		err = j.check(r)
		if err == nil && r.Durable > int64(good) {
			err = fmt.Errorf("it was written when %d bytes were on disk", r.Durable)
		}
		if err != nil {
			return good, damaged("the record at byte %d contradicts those before it: %w", good, err)
		}
		j.apply(r)
		good += n
	}
	if good == len(header) {
		return good, damaged("it is empty")
	}
	return good, nil
}

func damaged(format string, args ...any) error {
	return fleet.Errorf(fleet.Corrupt, format, args...).
		WithHint("move it away: the host then begins a new one and refuses commands that are older")
}

// tornAt decides whether the bad bytes from offset on were never whole. They
// were if a later frame says that they were on disk.
func (j *Journal) tornAt(b []byte, offset int, cause error) error {
	if offset == len(header) {
		// The first frame is on disk before the file has its name.
		return damaged("its first record is damaged: %w", cause)
	}
	for at := offset + 1; at < len(b); at++ {
		if !looksLikeFrame(b[at:]) {
			continue
		}
		if r, _, err := decode(b[at:]); err == nil && r.Durable > int64(offset) {
			return damaged("it is damaged at byte %d (a good record follows at byte %d): %w", offset, at, cause)
		}
	}
	return nil
}

// check says whether a record may follow what the journal knows.
func (j *Journal) check(r record) error {
	if r.Kind == kindMarks {
		if r.Origin < 0 || r.Expired < j.expired || j.origin != 0 && r.Origin != j.origin {
			return fmt.Errorf("marks that go back: origin %d, expired %d", r.Origin, r.Expired)
		}
		return nil
	}
	if _, err := fleet.ParseCommandID(string(r.Command)); err != nil {
		return err
	}
	e := j.entries[r.key()]
	switch r.Kind {
	case kindAccepted, kindRefused:
		if r.Accepted == nil || (r.Kind == kindRefused) != (r.Finished != nil) {
			return fmt.Errorf("a record of kind %d without its parts", r.Kind)
		}
		if e != nil {
			return fmt.Errorf("%s is accepted twice", r.key())
		}
		return nil
	case kindStarted, kindSpawned, kindFinished, kindAcknowledged, kindCancelled:
	default:
		return fmt.Errorf("a record of kind %d is not known", r.Kind)
	}
	if e == nil {
		return fmt.Errorf("%s was never accepted", r.key())
	}
	ok := false
	switch r.Kind {
	case kindStarted:
		ok = e.Finished == nil && e.Cancel == nil
	case kindCancelled:
		ok = len(r.Cancel) > 0 && e.Finished == nil && e.Cancel == nil
	case kindSpawned:
		ok = r.Spawned != nil && e.Starts > 0 && e.Finished == nil && e.Cancel == nil
	case kindFinished:
		ok = r.Finished != nil && e.Finished == nil
	case kindAcknowledged:
		ok = r.Index > 0 && e.Finished != nil && e.Acknowledged == 0
	}
	if !ok {
		return fmt.Errorf("%s: a record of kind %d at the wrong time", r.key(), r.Kind)
	}
	return nil
}

// apply adds a checked record to what the journal knows. Entries that were
// handed out are not changed: their slices and pointers are replaced.
func (j *Journal) apply(r record) {
	if r.Kind == kindMarks {
		j.origin, j.expired = r.Origin, r.Expired
		return
	}
	k := r.key()
	if r.Accepted != nil {
		a := r.Accepted
		j.entries[k] = &Entry{Key: k, Accepted: Accepted{
			a.Ticket, a.Index, a.DocumentName, a.Document, a.Parameters, a.Created, a.Expires, r.At, fleet.NodeID(a.By),
		}}
		j.order = append(j.order, k)
	}
	e := j.entries[k]
	switch r.Kind {
	case kindStarted:
		e.Starts++
		e.Started, e.StartBy, e.Spawned = r.At, r.StartBy, nil
	case kindSpawned:
		e.Spawned = append(slices.Clip(e.Spawned), *r.Spawned)
	case kindCancelled:
		e.Cancel = r.Cancel
	case kindFinished, kindRefused:
		e.Finished = &Finished{r.Finished.Result, r.Finished.Detail, r.Finished.Blobs, r.At}
		e.Document, e.Parameters, e.Cancel = nil, nil, nil
	case kindAcknowledged:
		e.Acknowledged = r.Index
		f := *e.Finished
		f.Detail = nil
		e.Finished = &f
	}
}

// snapshot is the shortest file, without its header, that says what the
// journal knows except for some entries. It is on disk before it has its name,
// and each record says so of those before it; the marks are repeated at the
// end, so that the last entry has one after it.
func (j *Journal) snapshot(expired int64, without map[Key]bool) []byte {
	var b []byte
	add := func(r record) {
		r.Durable = int64(len(header) + len(b))
		b = append(b, encode(r)...)
	}
	add(record{Kind: kindMarks, Origin: j.origin, Expired: expired})
	for _, k := range j.order {
		if without[k] {
			continue
		}
		e := j.entries[k]
		add(record{Kind: kindAccepted, At: e.At, Accepted: acceptedRecord(e.Accepted)}.of(k))
		for range e.Starts {
			add(record{Kind: kindStarted, At: e.Started, StartBy: e.StartBy}.of(k))
		}
		for _, s := range e.Spawned {
			add(record{Kind: kindSpawned, Spawned: &s}.of(k))
		}
		if e.Cancel != nil {
			add(record{Kind: kindCancelled, Cancel: e.Cancel}.of(k))
		}
		if e.Finished != nil {
			add(record{Kind: kindFinished, At: e.Finished.At, Finished: finishedRecord(*e.Finished)}.of(k))
		}
		if e.Acknowledged != 0 {
			add(record{Kind: kindAcknowledged, Index: e.Acknowledged}.of(k))
		}
	}
	add(record{Kind: kindMarks, Origin: j.origin, Expired: expired})
	return b
}
