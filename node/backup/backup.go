// Package backup is the file that a fleet's decided state is kept in outside of
// the fleet.
//
// A backup is encrypted (age: to public keys, or to a passphrase) and signed:
// what is inside ends with an operator's signature over all that stands before
// it, so that who can write to the place where backups lie cannot make one of
// this fleet. Inside are parts: the state, as a snapshot of a voter (raftfsm), and where it
// was asked for the keys of one host of the quorum. Reading one verifies all of
// it, the signatures of everything that operators and the root key signed
// included, before a caller learns anything from it: what is restored must be
// as good as what a voter would accept from another voter.
//
// What is not in a backup: the root key, operators' keys, and what is bulk (the
// output of commands), which is content-addressed and lies on the hosts.
//
// Neither writing nor reading holds a whole state in bytes: it streams.
package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"

	"filippo.io/age"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm"
	"fleet/raftfsm/state"
)

// What is encrypted is 8 bytes magic, 1 byte version and the fleet's ID, then
// frames {1 byte kind, u32 length, body}. A part is a frame with its name and then frames of
// data; the last frame is the signature of all bytes before it
// (identity.FileSignature), and nothing follows it.
const (
	magic    = "FLEETBAK"
	version  = 1
	fleetLen = 32 // characters of a fleet's ID

	framePart      = 1
	frameData      = 2
	frameSignature = 3

	maxData = 1 << 20
	maxName = 64

	// maxParts and maxSmall bound what a reader keeps of parts other than the
	// state.
	maxParts = 32 // the state included
	maxSmall = 64 << 10
)

// StatePart is the name of the part that every backup has, the first.
const StatePart = "state"

var partName = regexp.MustCompile(`^[a-z][a-z0-9./-]*$`)

// Writer writes a backup.
type Writer struct {
	sealed io.WriteCloser // age
	out    *bufio.Writer
	sum    hash.Hash
	size   int64
	parts  int
}

// NewWriter begins a backup of a fleet for those who hold a key of one of the
// recipients.
func NewWriter(to io.Writer, id fleet.ID, recipients ...age.Recipient) (*Writer, error) {
	sealed, err := age.Encrypt(to, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt the backup: %w", err)
	}
	return newWriter(sealed, id)
}

// newWriter begins what is encrypted.
func newWriter(sealed io.WriteCloser, id fleet.ID) (*Writer, error) {
	w := &Writer{sealed: sealed, out: bufio.NewWriterSize(sealed, 1<<16), sum: sha256.New()}
	return w, w.write(append(append([]byte(magic), version), id...))
}

func (w *Writer) write(b []byte) error {
	w.sum.Write(b)
	w.size += int64(len(b))
	_, err := w.out.Write(b)
	return err
}

func (w *Writer) frame(kind byte, body []byte) error {
	if err := w.write(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)))); err != nil {
		return err
	}
	return w.write(body)
}

// State writes the state, a snapshot: the first part. It verifies it on the way,
// as who restores the backup will, and gives it.
func (w *Writer) State(id fleet.ID, from io.Reader) (*raftfsm.FSM, error) {
	if w.parts != 0 {
		return nil, errors.New("the state is the first part of a backup")
	}
	st := readState(id)
	err := w.part(StatePart, io.TeeReader(from, st))
	if err == nil {
		err = st.end()
	}
	st.stop(err)
	return st.fsm, err
}

// Part writes another part: all of from.
func (w *Writer) Part(name string, from io.Reader) error {
	if len(name) > maxName || !partName.MatchString(name) || name == StatePart || w.parts == 0 || w.parts == maxParts {
		return fmt.Errorf("a backup cannot have the part %q here", name)
	}
	return w.part(name, from)
}

func (w *Writer) part(name string, from io.Reader) error {
	w.parts++
	if err := w.frame(framePart, []byte(name)); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(from, buf)
		if n > 0 {
			if err := w.frame(frameData, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF: // by io.ReadFull itself; a broken source has another error around it
			return nil
		case err != nil:
			return err
		}
	}
}

// Close signs the backup with an operator's key and ends it. s has the fleet,
// the operator and the time; the rest is filled in.
func (w *Writer) Close(key identity.PrivateKey, s identity.FileSignature) error {
	s.Digest, s.Size = fleet.Digest(w.sum.Sum(nil)), w.size
	signature, err := identity.SignBackup(key, s)
	if err != nil {
		return err
	}
	return errors.Join(w.frame(frameSignature, signature), w.out.Flush(), w.sealed.Close())
}

// Backup is one that was read and verified.
type Backup struct {
	Signature identity.FileSignature
	FSM       *raftfsm.FSM      // the state, as a voter holds it
	Parts     map[string][]byte // those other than the state
}

// State is the state as it was.
func (b *Backup) State() *state.Store { return b.FSM.Store() }

// SignedByOperator reports whether the key that made the signature is that of
// an operator of the state itself.
func (b *Backup) SignedByOperator() bool {
	o := b.State().Operator(b.Signature.Operator)
	return o != nil && slices.Contains(o.Keys, b.Signature.Key)
}

// Read reads a backup with whatever of the identities fits and verifies it:
// that it is whole, that the key in it signed it, and that the state is one of
// the fleet that it names. A file that nobody here can open is of kind Denied,
// one that is damaged Corrupt.
func Read(from io.Reader, identities ...age.Identity) (*Backup, error) {
	plain, err := age.Decrypt(from, identities...)
	if err != nil {
		var none *age.NoIdentityMatchError
		if errors.As(err, &none) {
			return nil, fleet.Errorf(fleet.Denied, "the key or passphrase does not open the backup")
		}
		return nil, fleet.Errorf(fleet.Corrupt, "this is no backup of a fleet: %w", err)
	}
	b, err := readPlain(plain)
	if err != nil && !errors.Is(err, errVersion) {
		return nil, fleet.Errorf(fleet.Corrupt, "the backup is damaged: %w", err)
	}
	return b, err
}

var errVersion = errors.New("the backup was made by another release")

// readPlain reads what was encrypted.
func readPlain(from io.Reader) (*Backup, error) {
	return (&reader{r: bufio.NewReaderSize(from, 1<<16), sum: sha256.New()}).read()
}

type reader struct {
	r    io.Reader
	sum  hash.Hash
	size int64
}

func (r *reader) take(n int) ([]byte, error) {
	var b bytes.Buffer // grows with what is there, not with what is declared
	if _, err := io.CopyN(&b, r.r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}

func (r *reader) note(b []byte) {
	r.sum.Write(b)
	r.size += int64(len(b))
}

// frame reads one frame; signed is what the signature covers if it is the last.
func (r *reader) frame() (kind byte, body []byte, signed fleet.Digest, size int64, err error) {
	signed, size = fleet.Digest(r.sum.Sum(nil)), r.size
	head, err := r.take(5)
	if err != nil {
		return 0, nil, signed, 0, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxData {
		return 0, nil, signed, 0, fmt.Errorf("a frame of %d bytes is over the limit of %d", n, maxData)
	}
	if body, err = r.take(int(n)); err != nil {
		return 0, nil, signed, 0, err
	}
	r.note(head)
	r.note(body)
	return head[0], body, signed, size, nil
}

// read reads all. The state goes to where it is verified as it comes.
func (r *reader) read() (_ *Backup, err error) {
	head, err := r.take(len(magic) + 1 + fleetLen)
	if err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, errors.New("it does not begin as a backup does")
	}
	if v := head[len(magic)]; v != version {
		return nil, fleet.Errorf(fleet.Invalid, "%w: it has version %d, this release knows version %d", errVersion, v, version)
	}
	id, err := fleet.ParseID(string(head[len(magic)+1:]))
	if err != nil {
		return nil, err
	}
	r.note(head)
	b := &Backup{Parts: map[string][]byte{}}
	var st *stateReader
	defer func() {
		if st != nil {
			st.stop(err)
		}
	}()
	part := ""
	for {
		kind, body, signed, size, err := r.frame()
		if err != nil {
			return nil, err
		}
		switch kind {
		case framePart:
			part = string(body)
			if _, twice := b.Parts[part]; twice || len(part) > maxName || !partName.MatchString(part) || (st == nil) != (part == StatePart) || len(b.Parts) == maxParts-1 {
				return nil, fmt.Errorf("the part %.70q cannot stand where it does", part)
			}
			if part == StatePart {
				st = readState(id)
			} else {
				b.Parts[part] = []byte{}
			}
		case frameData:
			switch {
			case part == "":
				return nil, errors.New("data stands before the first part")
			case part == StatePart:
				if _, err := st.Write(body); err != nil {
					return nil, err
				}
			case len(b.Parts[part])+len(body) > maxSmall:
				return nil, fmt.Errorf("the part %s has over %d bytes", part, maxSmall)
			default:
				b.Parts[part] = append(b.Parts[part], body...)
			}
		case frameSignature:
			if st == nil {
				return nil, errors.New("it has no state")
			}
			if err := st.end(); err != nil {
				return nil, err
			}
			b.FSM = st.fsm
			if _, err := r.take(1); !errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, errors.Join(errors.New("something follows its end"), err)
			}
			return b, b.verify(body, signed, size)
		default:
			return nil, fmt.Errorf("a frame of kind %d is not known", kind)
		}
	}
}

// verify checks the signature, which names the fleet that the state must be of.
func (b *Backup) verify(signature []byte, signed fleet.Digest, size int64) error {
	s, err := identity.ParseBackupSignature(signature)
	if err != nil {
		return err
	}
	if s.Digest != signed || s.Size != size {
		return fleet.Errorf(fleet.Corrupt, "the backup is not what %s signed", s.Operator)
	}
	if id := b.State().Fleet().ID; s.Fleet != id {
		return fleet.Errorf(fleet.Corrupt, "the backup is signed for fleet %s and holds the state of %s", s.Fleet, id)
	}
	b.Signature = s
	return nil
}

// stateReader is a state that is verified while it comes.
type stateReader struct {
	fsm  *raftfsm.FSM
	to   *io.PipeWriter
	done chan error // the verdict, once
}

func readState(id fleet.ID) *stateReader {
	from, to := io.Pipe()
	s := &stateReader{fsm: raftfsm.New(id), to: to, done: make(chan error, 1)}
	go func() {
		err := s.fsm.Restore(io.NopCloser(from)) // which would close it, and lose why
		from.CloseWithError(err)                 // who writes on hears of it
		s.done <- err
	}()
	return s
}

func (s *stateReader) Write(b []byte) (int, error) { return s.to.Write(b) }

// end says that all of the state has come, and waits for what comes of it.
func (s *stateReader) end() error {
	s.to.Close() //nolint:errcheck // it has no errors
	err := <-s.done
	s.done <- err
	return err
}

// stop ends the reading, whether or not it has ended.
func (s *stateReader) stop(err error) {
	s.to.CloseWithError(err) //nolint:errcheck // it has no errors
	<-s.done
}
