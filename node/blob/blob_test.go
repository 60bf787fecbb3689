package blob

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fleet/node/fleet"
)

func open(t *testing.T, dir string, budget int64) *Store {
	t.Helper()
	s, err := Open(dir, budget)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func read(t *testing.T, s *Store, d fleet.Digest) []byte {
	t.Helper()
	r, err := s.Get(d)
	if err != nil {
		t.Fatalf("get %s: %v", d, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read %s: %v", d, err)
	}
	if int64(len(b)) != r.Size() {
		t.Errorf("size %d of %d bytes", r.Size(), len(b))
	}
	return b
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// content is n bytes that differ by seed.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func TestWriterCountsAndHashesAllAndStoresTheFirst(t *testing.T) {
	const limit = 1000
	for _, total := range []int{0, 1, 999, 1000, 1001, 5000, 100_000} {
		for _, piece := range []int{1, 7, 999, 1000, 1001, 100_000} {
			if total/piece > 10_000 {
				continue
			}
			t.Run(fmt.Sprintf("%d bytes in pieces of %d", total, piece), func(t *testing.T) {
				s := open(t, t.TempDir(), 1<<20)
				all := content(uint64(total), total)
				w, err := s.Create(limit)
				if err != nil {
					t.Fatal(err)
				}
				for rest := all; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
					p := rest[:min(piece, len(rest))]
					if n, err := w.Write(p); n != len(p) || err != nil {
						t.Fatalf("write: %d, %v", n, err)
					}
				}
				stored := all[:min(limit, total)]
				want := Ref{
					Digest: fleet.Sum(stored), Size: int64(len(stored)), Total: int64(total),
					TotalDigest: fleet.Sum(all), Truncated: total > limit,
				}
				if d := w.Digest(); d != want.Digest || w.TotalDigest() != want.TotalDigest || w.Total() != want.Total {
					t.Errorf("before commit: %s, %s, %d", d, w.TotalDigest(), w.Total())
				}
				ref, err := w.Commit()
				if err != nil || ref != want {
					t.Fatalf("got %+v, %v, want %+v", ref, err, want)
				}
				if b := read(t, s, ref.Digest); !bytes.Equal(b, stored) {
					t.Errorf("stored %d other bytes", len(b))
				}
				if used := s.Used(); used != cost(int64(len(stored))) {
					t.Errorf("%d bytes used for %d", used, len(stored))
				}
				if err := w.Abort(); err != nil {
					t.Errorf("abort after commit: %v", err)
				}
				if _, err := w.Commit(); err == nil {
					t.Error("a second commit succeeded")
				}
			})
		}
	}
}

func TestPutGetHasRemoveList(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	ref, err := s.Put([]byte("one"))
	if err != nil || ref.Digest != fleet.Sum([]byte("one")) || ref.Size != 3 {
		t.Fatalf("put: %+v, %v", ref, err)
	}
	cached, err := s.Cache([]byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Put([]byte("one"))
	if err != nil || again != ref {
		t.Errorf("put again: %+v, %v", again, err)
	}
	if list := s.List(); len(list) != 2 || s.Used() != 2*minimum {
		t.Errorf("list %v, %d used", list, s.Used())
	}
	if got := read(t, s, cached.Digest); string(got) != "two" {
		t.Errorf("got %q", got)
	}
	if err := s.Remove(ref.Digest); err != nil || s.Has(ref.Digest) || s.Used() != minimum {
		t.Errorf("remove: %v, %d used", err, s.Used())
	}
	if err := s.Remove(ref.Digest); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if _, err := s.Get(ref.Digest); fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("get of a removed blob: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, cached.Digest.String())); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info, err)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	w, err := s.Create(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(content(1, 10_000))
	if s.Used() < 10_000 {
		t.Errorf("%d bytes reserved while writing", s.Used())
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if names := files(t, dir); len(names) != 0 || s.Used() != 0 {
		t.Errorf("left %v, %d used", names, s.Used())
	}
	_, _ = w.Write([]byte("late"))
	if _, err := w.Commit(); err == nil {
		t.Error("commit after abort succeeded")
	}
}

func TestOpenAfterACrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	ref, err := s.Put(content(1, 9000))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(content(2, 5000)) // and then the crash
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("not a blob"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 1<<20)
	if names := files(t, dir); strings.Join(names, " ") != ref.Digest.String()+" README" && strings.Join(names, " ") != "README "+ref.Digest.String() {
		t.Errorf("files %v", names)
	}
	if s.Used() != 9000 || !bytes.Equal(read(t, s, ref.Digest), content(1, 9000)) {
		t.Errorf("%d used", s.Used())
	}
}

func TestDamageIsNoticedWhenRead(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-1] },
		"emptied":     func([]byte) []byte { return nil },
		"longer":      func(b []byte) []byte { return append(b, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, 1<<20)
			ref, err := s.Put(content(1, 9000))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, ref.Digest.String())
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := s.Get(ref.Digest)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.ReadAll(r); fleet.KindOf(err) != fleet.Corrupt {
				t.Errorf("read: %v, want kind corrupt", err)
			}
		})
	}
}

func TestBudgetGivesUpTheOldestAndNeverThePinned(t *testing.T) {
	s := open(t, t.TempDir(), 100_000)
	var refs []Ref
	for i := range 9 {
		ref, err := s.Put(content(uint64(i), 10_000))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if !s.Pin(refs[0].Digest) {
		t.Fatal("pin of a blob that is there")
	}
	if _, err := s.Put(content(1, 10_000)); err != nil { // again: now it is young
		t.Fatal(err)
	}
	if _, err := s.Put(content(100, 30_000)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, false, false} {
		if s.Has(refs[i].Digest) != want {
			t.Errorf("blob %d there: %v, want %v", i, !want, want)
		}
	}
	if s.Used() > 100_000 {
		t.Errorf("%d bytes used", s.Used())
	}
	s.Unpin(refs[0].Digest)
	if _, err := s.Put(content(101, 90_000)); err != nil || s.Has(refs[0].Digest) {
		t.Errorf("after unpin: %v, still there %v", err, s.Has(refs[0].Digest))
	}
	if s.Pin(refs[0].Digest) {
		t.Error("pin of a blob that is gone")
	}
}

func TestAFullStoreRefusesPlainlyAndTheWriterGoesOn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 50_000)
	keep, err := s.Create(40_000)
	if err != nil {
		t.Fatal(err)
	}
	keep.Pin()
	_, _ = keep.Write(content(1, 40_000))
	if _, err := keep.Commit(); err != nil {
		t.Fatal(err)
	}
	all := content(2, 20_000)
	w, err := s.Create(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	for rest := all; len(rest) > 0; rest = rest[1000:] {
		if n, err := w.Write(rest[:1000]); n != 1000 || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	ref, err := w.Commit()
	if fleet.KindOf(err) != fleet.TooLarge || !strings.Contains(err.Error(), "full") || fleet.HintOf(err) == "" {
		t.Errorf("commit: %v", err)
	}
	if want := (Ref{Total: 20_000, TotalDigest: fleet.Sum(all), Truncated: true}); ref != want {
		t.Errorf("got %+v, want %+v", ref, want)
	}
	if s.Used() != 40_000 || len(files(t, dir)) != 1 {
		t.Errorf("%d used, files %v", s.Used(), files(t, dir))
	}
	if _, err := s.Put(content(3, 20_000)); fleet.KindOf(err) != fleet.TooLarge {
		t.Errorf("put: %v", err)
	}
	if _, err := s.Put([]byte("small")); err != nil {
		t.Errorf("what still fits: %v", err)
	}
}

func TestADiskThatFailsIsReportedAtCommit(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	w, err := s.Create(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.f.Close() // every write fails from here on
	if n, err := w.Write([]byte("abc")); n != 3 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	ref, err := w.Commit()
	if !errors.Is(err, os.ErrClosed) || ref.Total != 3 || ref.TotalDigest != fleet.Sum([]byte("abc")) || !ref.Digest.IsZero() {
		t.Errorf("commit: %+v, %v", ref, err)
	}
	if s.Used() != 0 || len(files(t, dir)) != 0 {
		t.Errorf("%d used, files %v", s.Used(), files(t, dir))
	}
}

func TestConcurrentWritersOfEqualAndOtherContent(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			want := content(uint64(i%10), 3000)
			ref, err := s.Put(want)
			if err != nil {
				t.Errorf("put: %v", err)
				return
			}
			if b := read(t, s, ref.Digest); !bytes.Equal(b, want) {
				t.Error("other bytes")
			}
		})
	}
	wg.Wait()
	if len(s.List()) != 10 || s.Used() != 10*minimum || len(files(t, dir)) != 10 {
		t.Errorf("%d blobs, %d used, %d files", len(s.List()), s.Used(), len(files(t, dir)))
	}
}

func TestOpenRefusals(t *testing.T) {
	if _, err := Open(t.TempDir(), 0); err == nil {
		t.Error("no budget was accepted")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, 1); err == nil {
		t.Error("a file was opened as a store")
	}
}

func FuzzParseName(f *testing.F) {
	f.Add(strings.Repeat("0f", 32))
	f.Add("tmp-1-1")
	f.Fuzz(func(t *testing.T, name string) {
		if d, ok := parseName(name); ok && d.String() != name {
			t.Errorf("%q is read as %s", name, d)
		}
	})
}

// shared is a room that others take from.
type shared struct {
	room    int64
	dropped []int64
}

func (s *shared) Room(int64) int64 { return s.room }
func (s *shared) Drop(n int64)     { s.dropped = append(s.dropped, n) }

// A store gives up its oldest blobs when others need the room, and never one
// that is pinned.
func TestRoomThatShrinks(t *testing.T) {
	room := &shared{room: 1 << 20}
	s, err := OpenIn(t.TempDir(), room)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(c byte, size int) fleet.Digest {
		t.Helper()
		ref, err := s.Put(bytes.Repeat([]byte{c}, size))
		if err != nil {
			t.Fatal(err)
		}
		return ref.Digest
	}
	pinned, old, young := put('a', 100<<10), put('b', 200<<10), put('c', 300<<10)
	s.Pin(pinned)
	if err := s.Trim(); err != nil || len(room.dropped) != 0 {
		t.Errorf("within its room: %v, dropped %v", err, room.dropped)
	}
	room.room = 450 << 10
	if err := s.Trim(); err != nil {
		t.Fatal(err)
	}
	if !s.Has(pinned) || s.Has(old) || !s.Has(young) || len(room.dropped) != 1 || room.dropped[0] != 200<<10 {
		t.Errorf("pinned %t, old %t, young %t, dropped %v", s.Has(pinned), s.Has(old), s.Has(young), room.dropped)
	}
	room.room = 0
	if err := s.Trim(); err != nil || !s.Has(pinned) || s.Has(young) {
		t.Errorf("no room at all: %v, pinned %t, young %t", err, s.Has(pinned), s.Has(young))
	}
	if _, err := s.Put([]byte("x")); fleet.KindOf(err) != fleet.TooLarge {
		t.Errorf("a blob without room: %v", err)
	}
}
