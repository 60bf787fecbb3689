// Package blob keeps content under its SHA-256: what commands printed, the
// details of their steps, and other bulk that only its digest and size of go
// through the log.
//
//   - A blob is immutable and either whole or absent. It is written to a
//     temporary file, synced, renamed to its digest, and the directory is
//     synced; leftovers of a crash are removed by Open. Reading verifies it.
//   - A Writer never fails while it is written to: whoever produces the bytes
//     is not disturbed by our disk. It counts and hashes all of them, keeps at
//     most its cap, and says at Commit what went wrong.
//   - The store stays within its room, which may change: other parts share the
//     budget, and the disk. When room is needed, the blobs that
//     were written longest ago go first; a pinned one never goes. When all
//     that is left is pinned, the store refuses.
//
// There are no subdirectories: a budget holds a few ten thousand files, and a
// flat directory needs one sync less for each.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"fleet/node/fleet"
)

const (
	tempPrefix = "tmp-"

	// minimum is what the smallest blob counts for: a file takes a block.
	minimum = 4 << 10
)

// Ref is what a Writer made of what was written to it.
type Ref struct {
	Digest fleet.Digest // of the stored bytes: the blob's name
	Size   int64        // bytes stored
	Total  int64        // bytes written

	TotalDigest fleet.Digest // of all bytes written
	Truncated   bool         // Total is more than Size
}

// Store is a directory of blobs. It may be used concurrently.
type Store struct {
	dir  string
	root *os.Root
	room Room

	mu    sync.Mutex // guards what follows
	blobs map[fleet.Digest]*blob
	used  int64 // by blobs and by what writers reserved
	temps int   // makes names of temporary files
}

type blob struct {
	size    int64
	written time.Time
	pins    int
}

// Room is what a store asks for its room.
type Room interface {
	// Room is how many bytes a store that takes used bytes may take.
	Room(used int64) int64
	// Drop is told of each blob that was given up for room.
	Drop(bytes int64)
}

// fixed is a room that does not change.
type fixed int64

func (f fixed) Room(int64) int64 { return int64(f) }
func (fixed) Drop(int64)         {}

// Open opens a store that has a budget to itself, in bytes.
func Open(dir string, budget int64) (*Store, error) {
	if budget <= 0 {
		return nil, fmt.Errorf("blob store %s: a budget of %d bytes", dir, budget)
	}
	return OpenIn(dir, fixed(budget))
}

// OpenIn opens the store in dir, which is made if it does not exist, and
// removes what a crash left half-written. The methods of room are called while
// the store is locked.
func OpenIn(dir string, room Room) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	s := &Store{dir: dir, root: root, room: room, blobs: map[fleet.Digest]*blob{}}
	if err := s.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("blob store %s: %w", dir, err), root.Close())
	}
	return s, nil
}

func (s *Store) scan() error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := s.root.Remove(e.Name()); err != nil {
				return err
			}
			continue
		}
		d, ok := parseName(e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !ok || !info.Mode().IsRegular() {
			continue // not ours: leave it
		}
		s.blobs[d] = &blob{size: info.Size(), written: info.ModTime()}
		s.used += cost(info.Size())
	}
	return nil
}

// parseName reads the name of a blob's file: 64 lower-case hex digits.
func parseName(name string) (fleet.Digest, bool) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(fleet.Digest{}) || strings.ToLower(name) != name {
		return fleet.Digest{}, false
	}
	return fleet.Digest(b), true
}

func cost(size int64) int64 { return max(size, minimum) }

// Close closes the directory. Readers and writers that are open go on.
func (s *Store) Close() error { return s.root.Close() }

// Put stores b. When it returns, the blob survives a crash.
func (s *Store) Put(b []byte) (Ref, error) { return s.put(b, true) }

// Cache stores b without waiting for the disk: for what can be had again.
func (s *Store) Cache(b []byte) (Ref, error) { return s.put(b, false) }

func (s *Store) put(b []byte, durable bool) (Ref, error) {
	d := fleet.Sum(b)
	if s.touch(d) {
		return Ref{Digest: d, Size: int64(len(b)), Total: int64(len(b)), TotalDigest: d}, nil
	}
	w, err := s.Create(int64(len(b)))
	if err != nil {
		return Ref{}, err
	}
	w.durable = durable
	if _, err := w.Write(b); err != nil {
		return Ref{}, errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// touch makes a blob that is there the last to go.
func (s *Store) touch(d fleet.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[d]
	if ok {
		b.written = time.Now()
	}
	return ok
}

// Has reports whether a blob is there.
func (s *Store) Has(d fleet.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.blobs[d]
	return ok
}

// Pin keeps a blob from being given up for room until Unpin was called as
// often. It reports whether the blob is there. Pins do not survive the process.
func (s *Store) Pin(d fleet.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[d]
	if ok {
		b.pins++
	}
	return ok
}

// Unpin takes back one Pin.
func (s *Store) Unpin(d fleet.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.blobs[d]; ok && b.pins > 0 {
		b.pins--
	}
}

// List names all blobs, in ascending order, with their sizes.
func (s *Store) List() []Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Ref, 0, len(s.blobs))
	for d, b := range s.blobs {
		all = append(all, Ref{Digest: d, Size: b.size, Total: b.size, TotalDigest: d})
	}
	sort.Slice(all, func(i, j int) bool { return string(all[i].Digest[:]) < string(all[j].Digest[:]) })
	return all
}

// Used is how many bytes of the budget are taken.
func (s *Store) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Remove removes a blob, pinned or not. That it is not there is no error.
func (s *Store) Remove(d fleet.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeLocked(d)
}

func (s *Store) removeLocked(d fleet.Digest) error {
	b, ok := s.blobs[d]
	if !ok {
		return nil
	}
	if err := s.root.Remove(d.String()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob: %w", err)
	}
	delete(s.blobs, d)
	s.used -= cost(b.size)
	return nil
}

// Get opens a blob. The error is of kind NotFound when it is not there.
func (s *Store) Get(d fleet.Digest) (*Reader, error) {
	if !s.Has(d) {
		return nil, fleet.Errorf(fleet.NotFound, "blob %s is not on this host", d)
	}
	f, err := s.root.Open(d.String())
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return &Reader{f: f, size: info.Size(), want: d, hash: sha256.New()}, nil
}

// Bytes reads a blob of at most max bytes.
func (s *Store) Bytes(d fleet.Digest, max int64) (b []byte, err error) {
	r, err := s.Get(d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if r.Size() > max {
		return nil, fleet.Errorf(fleet.TooLarge, "blob %s has %d bytes, at most %d are expected", d, r.Size(), max)
	}
	return io.ReadAll(r)
}

// Reader reads one blob. Where the end is due it reports an error of kind
// Corrupt instead if the bytes were not those of the digest.
type Reader struct {
	f    *os.File
	size int64
	want fleet.Digest
	hash hash.Hash
}

// Size is the size of the blob.
func (r *Reader) Size() int64 { return r.size }

func (r *Reader) Read(b []byte) (int, error) {
	n, err := r.f.Read(b)
	_, _ = r.hash.Write(b[:n]) // a hash never fails
	if errors.Is(err, io.EOF) && fleet.Digest(r.hash.Sum(nil)) != r.want {
		return n, fleet.Errorf(fleet.Corrupt, "blob %s is damaged on this host's disk", r.want)
	}
	return n, err
}

// Close ends the reading.
func (r *Reader) Close() error { return r.f.Close() }

// reserve takes n bytes of the room, giving up old blobs if need be.
func (s *Store) reserve(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.room.Room(s.used)
	if s.used+n > room {
		if err := s.evictLocked(s.used+n-room, room); err != nil {
			return err
		}
		room = s.room.Room(s.used) // the disk may have got more than we gave up, or less
	}
	if s.used+n > room {
		return fleet.Errorf(fleet.TooLarge, "the store of outputs %s is full (%d of %d bytes are in use and none can be given up)",
			s.dir, s.used, room).WithHint("results wait here until the quorum has them; see whether this host reaches it, and the space of its disk")
	}
	s.used += n
	return nil
}

// Trim gives up old blobs until the store is within its room, which may have
// shrunk since it was filled.
func (s *Store) Trim() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.room.Room(s.used)
	if s.used <= room {
		return nil
	}
	return s.evictLocked(s.used-room, room)
}

// evictLocked gives up the unpinned blobs that were written longest ago until
// n bytes are free, and some more so that the next need not search again.
func (s *Store) evictLocked(n, room int64) error {
	type candidate struct {
		d fleet.Digest
		b *blob
	}
	var old []candidate
	for d, b := range s.blobs {
		if b.pins == 0 {
			old = append(old, candidate{d, b})
		}
	}
	sort.Slice(old, func(i, j int) bool { return old[i].b.written.Before(old[j].b.written) })
	n += room / 64
	for _, c := range old {
		if n <= 0 {
			return nil
		}
		if err := s.removeLocked(c.d); err != nil {
			return err
		}
		s.room.Drop(c.b.size)
		n -= cost(c.b.size)
	}
	return nil
}

func (s *Store) release(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
}

func (s *Store) tempName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.temps++
	return fmt.Sprintf("%s%d-%d", tempPrefix, os.Getpid(), s.temps)
}

// Writer makes one blob. It is not safe for concurrent use.
type Writer struct {
	store *Store
	cap   int64

	name     string   // of the temporary file
	f        *os.File // nil when closed
	reserved int64
	durable  bool
	pin      bool

	hash   hash.Hash // of all bytes
	size   int64     // stored
	total  int64     // written
	digest *fleet.Digest
	err    error // the first one of storing
}

// Create begins a blob of which at most cap bytes are stored. It must be ended
// with Commit or Abort.
func (s *Store) Create(cap int64) (*Writer, error) {
	w := &Writer{store: s, cap: max(cap, 0), name: s.tempName(), hash: sha256.New(), durable: true}
	if err := w.reserve(minimum); err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(w.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		s.release(w.reserved)
		return nil, s.plain("make a blob", err)
	}
	w.f = f
	return w, nil
}

// Pin makes Commit pin the blob.
func (w *Writer) Pin() { w.pin = true }

// Write takes bytes and never fails: Commit reports what went wrong.
func (w *Writer) Write(b []byte) (int, error) {
	if keep := min(int64(len(b)), w.cap-w.size); keep > 0 && w.err == nil {
		w.err = w.keep(b[:keep])
	}
	if w.total <= w.cap && w.total+int64(len(b)) > w.cap {
		// The stored part ends within b: note its digest, hash on for the total.
		_, _ = w.hash.Write(b[:w.cap-w.total])
		d := fleet.Digest(w.hash.Sum(nil))
		w.digest = &d
		_, _ = w.hash.Write(b[w.cap-w.total:])
	} else {
		_, _ = w.hash.Write(b)
	}
	w.total += int64(len(b))
	return len(b), nil
}

func (w *Writer) keep(b []byte) error {
	if err := w.reserve(w.size + int64(len(b))); err != nil {
		return err
	}
	n, err := w.f.Write(b)
	w.size += int64(n)
	if err != nil {
		return w.store.plain("write a blob", err)
	}
	return nil
}

// reserve makes sure that n bytes are taken of the budget, in steps: not each
// small write should lock the store.
func (w *Writer) reserve(n int64) error {
	if n <= w.reserved {
		return nil
	}
	step := max(n-w.reserved, min(w.reserved, 1<<20, max(w.cap-w.reserved, 0)))
	if err := w.store.reserve(step); err != nil {
		if step = n - w.reserved; w.store.reserve(step) != nil {
			return err
		}
	}
	w.reserved += step
	return nil
}

// Total is how many bytes were written, TotalDigest their SHA-256.
func (w *Writer) Total() int64 { return w.total }

// TotalDigest is the SHA-256 of all bytes written so far.
func (w *Writer) TotalDigest() fleet.Digest { return fleet.Digest(w.hash.Sum(nil)) }

// Digest is the SHA-256 of the bytes to be stored.
func (w *Writer) Digest() fleet.Digest {
	if w.digest != nil {
		return *w.digest
	}
	return w.TotalDigest()
}

// Abort gives up the blob. After Commit it does nothing.
func (w *Writer) Abort() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	w.store.release(w.reserved)
	if rerr := w.store.root.Remove(w.name); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return fmt.Errorf("give up a blob: %w", err)
	}
	return nil
}

// Commit stores the blob; when it returns without an error, the blob survives
// a crash. With an error nothing may be relied on to be stored, but the totals
// of Ref are right.
func (w *Writer) Commit() (Ref, error) {
	ref := Ref{
		Digest: w.Digest(), Size: min(w.total, w.cap), Total: w.total, TotalDigest: w.TotalDigest(), Truncated: w.total > w.cap,
	}
	lost := func(err error) (Ref, error) {
		_ = w.Abort() // the first error says more
		ref.Digest, ref.Size, ref.Truncated = fleet.Digest{}, 0, ref.Total > 0
		return ref, err
	}
	switch {
	case w.f == nil:
		return lost(errors.New("commit of a blob that was ended before"))
	case w.err != nil:
		return lost(w.err)
	}
	if w.durable {
		if err := w.f.Sync(); err != nil {
			return lost(w.store.plain("sync a blob", err))
		}
	}
	if err := w.store.adopt(w, ref); err != nil {
		return lost(err)
	}
	err := w.f.Close()
	w.f = nil
	if err == nil && w.durable {
		err = w.store.syncDir()
	}
	if err != nil {
		if w.pin {
			w.store.Unpin(ref.Digest)
		}
		return lost(w.store.plain("store a blob", err))
	}
	return ref, nil
}

// adopt renames a written file to its digest and takes it into the books.
func (s *Store) adopt(w *Writer, ref Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, there := s.blobs[ref.Digest]
	switch err := s.root.Rename(w.name, ref.Digest.String()); {
	case err == nil:
	case there && errors.Is(err, fs.ErrPermission):
		// Windows does not replace a file that somebody reads. It has these bytes.
		if err := s.root.Remove(w.name); err != nil {
			return s.plain("store a blob", err)
		}
	default:
		return s.plain("store a blob", err)
	}
	s.used -= w.reserved
	if !there {
		b = &blob{size: ref.Size}
		s.blobs[ref.Digest] = b
		s.used += cost(ref.Size)
	}
	b.written = time.Now()
	if w.pin {
		b.pins++
	}
	return nil
}

func (s *Store) syncDir() error {
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// plain says what a person can do about an error of the disk.
func (s *Store) plain(what string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fleet.Errorf(fleet.Unavailable, "%s: the disk of %s is full", what, filepath.Clean(s.dir)).
			WithHint("free some space there")
	case errors.Is(err, syscall.EROFS):
		return fleet.Errorf(fleet.Unavailable, "%s: the disk of %s is read-only", what, filepath.Clean(s.dir))
	}
	return fmt.Errorf("%s: %w", what, err)
}
