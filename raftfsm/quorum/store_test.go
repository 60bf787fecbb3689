package quorum

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite testdata")

// nobody is a listener on which no peer ever calls.
type nobody struct{ closed chan struct{} }

func (l nobody) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l nobody) Close() error              { close(l.closed); return nil }
func (l nobody) Addr() net.Addr            { return &net.TCPAddr{} }

// openDir opens a store on disk as the only voter would.
func openDir(t *testing.T, dir string, self fleet.NodeID) (*Quorum, *registers, error) {
	t.Helper()
	fsm := newRegisters()
	timing := FastTiming
	timing.Heartbeat, timing.Lease = 50*time.Millisecond, 40*time.Millisecond
	q, err := Open(Config{
		Dir: dir, Self: self, FSM: fsm, Listener: nobody{make(chan struct{})}, Timing: timing,
		Dial:   func(context.Context, fleet.NodeID) (net.Conn, error) { return nil, errors.New("nobody there") },
		Fatal:  func(err error) { t.Errorf("Fatal: %v", err) },
		Logger: slog.New(slog.DiscardHandler),
	})
	return q, fsm, err
}

// waitReady waits in real time.
func waitReady(t *testing.T, q *Quorum) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		term, changed := q.leadership()
		if term != 0 {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("the only voter does not lead")
		}
	}
}

func closeQuorum(t *testing.T, q *Quorum) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := q.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// madeStore is a store with some entries, closed in order; want is the state.
func madeStore(t *testing.T, entries int) (dir string, want string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "quorum")
	if err := Create(dir, true, nodeID(1)); err != nil {
		t.Fatal(err)
	}
	q, fsm, err := openDir(t, dir, nodeID(1))
	if err != nil {
		t.Fatal(err)
	}
	waitReady(t, q)
	var group sync.WaitGroup
	for i := range entries { // together, so that they share writes to the disk
		group.Go(func() {
			if _, err := q.Propose(t.Context(), set(fmt.Sprint("k", i%10), strings.Repeat(fmt.Sprint(i, " "), 10+i%500))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	want = fmt.Sprint(fsm.all())
	closeQuorum(t, q)
	return dir, want
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "quorum")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestReopen(t *testing.T) {
	dir, want := madeStore(t, 50)
	for range 3 {
		q, fsm, err := openDir(t, dir, nodeID(1))
		if err != nil {
			t.Fatal(err)
		}
		waitReady(t, q)
		if got := fmt.Sprint(fsm.all()); got != want {
			t.Errorf("after reopening %s, want %s", got, want)
		}
		closeQuorum(t, q)
	}
	for _, name := range []string{uuidFile, boltFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: mode %v, %v; want 0700", dir, info.Mode(), err)
	}
}

func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "quorum")
	if err := os.MkdirAll(filepath.Join(dir+".new", "left"), 0o700); err != nil { // by a crash
		t.Fatal(err)
	}
	if err := Create(dir, false, nodeID(1)); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, false, nodeID(1)); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("a second time: %v, want conflict", err)
	}
	q, _, err := openDir(t, dir, nodeID(1))
	if err != nil {
		t.Fatal(err)
	}
	if servers, err := q.Servers(); err != nil || len(servers) != 0 {
		t.Errorf("without bootstrap: servers %v, %v; want none", servers, err)
	}
	if _, err := q.Propose(t.Context(), set("k", 1)); fleet.KindOf(err) != fleet.NoQuorum {
		t.Errorf("Propose without a quorum: %v, want no quorum", err)
	}
	if _, _, err := openDir(t, dir, nodeID(1)); fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "already running") {
		t.Errorf("opened while it is open: %v, want conflict", err)
	}
	closeQuorum(t, q)
	if _, _, err := openDir(t, filepath.Join(t.TempDir(), "none"), nodeID(1)); fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("no store: %v, want not found", err)
	}
}

// TestMark holds the content of store.uuid.
func TestMark(t *testing.T) {
	got := storeMark([16]byte{1, 2, 3}, nodeID(1))
	const file = "testdata/store.uuid.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("store.uuid is %q, want %q (%v)", got, want, err)
	}
}

// TestDamage: a store that is not whole is refused with words, and before
// bbolt could crash on it.
func TestDamage(t *testing.T) {
	whole, _ := madeStore(t, 300)
	other := filepath.Join(t.TempDir(), "other")
	if err := Create(other, true, nodeID(2)); err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(t.TempDir(), "twin") // another store of the same host
	if err := Create(twin, true, nodeID(1)); err != nil {
		t.Fatal(err)
	}
	file := func(change func(b []byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, boltFile)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, change(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	page := os.Getpagesize()
	cut := func(size func(int) int) func(*testing.T, string) {
		return file(func(b []byte) []byte { return b[:size(used(b))] })
	}
	zero := func(from, to int) func(*testing.T, string) {
		return file(func(b []byte) []byte { clear(b[from:to]); return b })
	}
	take := func(t *testing.T, dir, from, name string) {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		do   func(t *testing.T, dir string)
		says string
	}{
		{"raft.db of no bytes", file(func([]byte) []byte { return nil }), "empty"},
		{"raft.db missing", func(t *testing.T, dir string) { remove(t, dir, boltFile) }, "no such file"},
		{"raft.db of zeros", file(func(b []byte) []byte { clear(b); return b }), "meta page 0"},
		{"raft.db of one page", cut(func(int) int { return page }), "meta page 1"},
		{"cut to half", cut(func(n int) int { return n / 2 }), "cut off"},
		{"cut at an odd place", cut(func(n int) int { return n - 777 }), "cut off"},
		{"cut by a page", cut(func(n int) int { return n - page }), "cut off"},
		{"meta 0 of zeros", zero(0, page), "meta page 0"},
		{"meta 1 of zeros", zero(page, 2*page), "meta page 1"},
		{"both metas of zeros", zero(0, 2*page), "meta page 0"},
		{"meta 1 is a copy of meta 0", file(func(b []byte) []byte { copy(b[page:2*page], b[:page]); return b }), "meta page 1"},
		{"bit of the commit number", file(func(b []byte) []byte { b[16+48] ^= 2; return b }), "damaged"},
		{"store.uuid missing", func(t *testing.T, dir string) { remove(t, dir, uuidFile) }, "store.uuid is missing"},
		{"store.uuid empty", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, uuidFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "store.uuid does not hold"},
		{"all of another host", func(t *testing.T, dir string) {
			take(t, dir, other, boltFile)
			take(t, dir, other, uuidFile)
		}, "is the store of"},
		{"raft.db of another host", func(t *testing.T, dir string) { take(t, dir, other, boltFile) }, "not of the same store"},
		{"raft.db made anew for this host", func(t *testing.T, dir string) { take(t, dir, twin, boltFile) }, "not of the same store"},
		{"raft.db made by bbolt", func(t *testing.T, dir string) {
			remove(t, dir, boltFile)
			s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, boltFile), BoltOptions: &bbolt.Options{NoFreelistSync: true}})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.Set([]byte("x"), []byte("y")), s.Close()); err != nil {
				t.Fatal(err)
			}
		}, "not of the same store"},
		{"the log's beginning is gone and no snapshot has it", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error { return s.logs.DeleteRange(1, 10) })
		}, "begins at entry 11"},
		{"a hole in the log", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error { return s.logs.DeleteRange(20, 20) })
		}, "log entry 20"},
		{"an entry without a checksum", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error { return s.logs.StoreLog(&raft.Log{Index: 20, Term: 2}) })
		}, "log entry 20"},
		{"an entry in another's place", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error {
				var l raft.Log
				if err := s.logs.GetLog(20, &l); err != nil {
					return err
				}
				l.Index = 21
				return s.logs.StoreLog(&l)
			})
		}, "log entry 21"},
		{"the term changed", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error { return s.stable.Set([]byte("CurrentTerm"), make([]byte, 12)) })
		}, "CurrentTerm"},
		{"the mark inside is gone", func(t *testing.T, dir string) {
			change(t, dir, func(s *stores) error { return s.stable.Set(storeKey, nil) })
		}, "FleetStore"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := copyDir(t, whole)
			test.do(t, dir)
			q, _, err := openDir(t, dir, nodeID(1))
			if err == nil {
				closeQuorum(t, q)
			}
			if fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(err.Error(), test.says) || fleet.HintOf(err) == "" {
				t.Errorf("got %v (kind %v, hint %q); want corrupt with %q and a hint", err, fleet.KindOf(err), fleet.HintOf(err), test.says)
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// used is how many bytes of a bbolt file are within its high water mark.
func used(b []byte) int {
	m0, err0 := readMeta(bytes.NewReader(b), 0, 0)
	m1, err1 := readMeta(bytes.NewReader(b), int64(m0.pageSize), 1)
	if err0 != nil || err1 != nil {
		panic(errors.Join(err0, err1))
	}
	if m1.commit > m0.commit {
		m0 = m1
	}
	return int(m0.pages) * int(m0.pageSize)
}

// change works on the stores as they are, without checksums.
func change(t *testing.T, dir string, f func(*stores) error) {
	t.Helper()
	s, err := openFiles(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f(s), s.close()); err != nil {
		t.Fatal(err)
	}
}

// TestRandomDamage flips bits and cuts anywhere. Either the store is refused,
// or what was damaged is not used: everything in it is as before.
func TestRandomDamage(t *testing.T) {
	whole, _ := madeStore(t, 300)
	path := filepath.Join(whole, boltFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = b[:used(b)]
	content := func(dir string) string {
		s, err := openStores(dir, nodeID(1), slog.New(slog.DiscardHandler))
		if err != nil {
			if fleet.KindOf(err) != fleet.Corrupt {
				t.Errorf("refused with %v, want corrupt", err)
			}
			return ""
		}
		logs, stable, _ := s.guarded(&guard{})
		defer s.close()
		var all strings.Builder
		first, err1 := logs.FirstIndex()
		last, err2 := logs.LastIndex()
		term, err3 := stable.GetUint64([]byte("CurrentTerm"))
		vote, err4 := stable.Get([]byte("LastVoteCand"))
		voteTerm, err5 := stable.GetUint64([]byte("LastVoteTerm"))
		fmt.Fprintln(&all, first, last, term, vote, voteTerm, errors.Join(err1, err2, err3, err4, err5))
		for i := first; i <= last; i++ {
			var l raft.Log
			err := logs.GetLog(i, &l)
			fmt.Fprintln(&all, l.Index, l.Term, l.Type, fleet.Sum(l.Data), l.AppendedAt.UnixNano(), err)
		}
		return all.String()
	}
	dir := copyDir(t, whole)
	want := content(dir)
	if want == "" {
		t.Fatal("the whole store is refused")
	}
	inUse := bytesInUse(t, b)
	random := rand.New(rand.NewPCG(1, 2))
	refused, harmless, harmlessInUse := 0, 0, 0
	for i := range 500 {
		damagedBytes := bytes.Clone(b)
		what, inUseBit := "", false
		switch i % 8 {
		case 0, 1, 2:
			at, bit := random.IntN(len(b)), random.IntN(8)
			damagedBytes[at] ^= 1 << bit
			what = fmt.Sprintf("bit %d of byte %d (page %d, offset %d)", bit, at, at/os.Getpagesize(), at%os.Getpagesize())
		case 3: // in the beginning of a page, where headers and elements are
			at := random.IntN(len(b)/os.Getpagesize())*os.Getpagesize() + random.IntN(64)
			damagedBytes[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("byte %d (page %d, offset %d)", at, at/os.Getpagesize(), at%os.Getpagesize())
		case 4:
			p := random.IntN(len(b) / os.Getpagesize())
			clear(damagedBytes[p*os.Getpagesize() : (p+1)*os.Getpagesize()])
			what = fmt.Sprintf("page %d of zeros", p)
		case 5:
			n := random.IntN(len(b))
			damagedBytes = damagedBytes[:n]
			what = fmt.Sprintf("cut to %d bytes", n)
		case 6: // a bit of what is in use: elements, keys and values of one page
			at := inUse[random.IntN(len(inUse))]
			damagedBytes[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("byte %d in use (page %d, offset %d)", at, at/os.Getpagesize(), at%os.Getpagesize())
			inUseBit = true
		case 7: // one page in the place of another
			from, to := random.IntN(len(b)/os.Getpagesize()), random.IntN(len(b)/os.Getpagesize())
			copy(damagedBytes[to*os.Getpagesize():(to+1)*os.Getpagesize()], b[from*os.Getpagesize():])
			what = fmt.Sprintf("page %d in the place of page %d", from, to)
		}
		if err := os.WriteFile(filepath.Join(dir, boltFile), damagedBytes, 0o600); err != nil {
			t.Fatal(err)
		}
		switch got := content(dir); got {
		case "":
			refused++
		case want:
			harmless++
			if inUseBit {
				harmlessInUse++
				t.Logf("%s: all reads as before", what)
			}
		default:
			t.Errorf("%s: accepted with other content", what)
		}
	}
	t.Logf("%d refused, %d in pages that are not in use, 0 of 500 accepted with other content", refused, harmless)
	if refused < 250 || harmlessInUse > 5 {
		t.Errorf("%d of 500 were refused, and %d bits in use made no difference: the test shows little", refused, harmlessInUse)
	}
}

// bytesInUse are the places of a bbolt file at which nearly every bit counts: of
// each page of the tree the header, the elements, the keys and the values. (The
// key of a branch may be any that parts its children.)
func bytesInUse(t *testing.T, b []byte) (places []int) {
	t.Helper()
	page := os.Getpagesize()
	add := func(from, to int) {
		for at := from; at < to; at++ {
			places = append(places, at)
		}
	}
	var walk func(id uint64)
	walk = func(id uint64) {
		at := int(id) * page
		count := int(order.Uint16(b[at+10:]))
		end := at + pageHeader + count*elementSize
		for i := range count {
			e := at + pageHeader + i*elementSize
			if order.Uint16(b[at+8:]) == leafPage {
				end += int(order.Uint32(b[e+8:]) + order.Uint32(b[e+12:]))
				if order.Uint32(b[e:]) == bucketElement {
					value := b[e+int(order.Uint32(b[e+4:]))+int(order.Uint32(b[e+8:])):]
					if root := order.Uint64(value); root != 0 {
						walk(root)
					}
				}
				continue
			}
			end += int(order.Uint32(b[e+4:]))
			walk(order.Uint64(b[e+8:]))
		}
		if count > 2 { // of the root's page some numbers, such as a bucket's sequence, are never read
			add(at, end)
		}
	}
	meta, err := readMeta(bytes.NewReader(b), 0, 0)
	second, err2 := readMeta(bytes.NewReader(b), int64(meta.pageSize), 1)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if second.commit > meta.commit {
		meta = second
	}
	walk(meta.root)
	return places
}

// TestSnapshotDamage: a newest snapshot that is damaged is made good by the one
// before and the log, or the store is refused.
func TestSnapshotDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "quorum")
	if err := Create(dir, true, nodeID(1)); err != nil {
		t.Fatal(err)
	}
	q, _, err := openDir(t, dir, nodeID(1))
	if err != nil {
		t.Fatal(err)
	}
	waitReady(t, q)
	for i := range 60 {
		if _, err := q.Propose(t.Context(), set("k", i)); err != nil {
			t.Fatal(err)
		}
		if i == 20 || i == 40 {
			if err := q.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	closeQuorum(t, q)
	metas, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(metas) != 2 {
		t.Fatalf("snapshots %v, %v; want two", metas, err)
	}
	spoil := func(t *testing.T, dir string, snapshot string) {
		path := filepath.Join(dir, "snapshots", filepath.Base(filepath.Dir(snapshot)), "state.bin")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cutLog := func(t *testing.T, dir string, last uint64) {
		change(t, dir, func(s *stores) error { return s.logs.DeleteRange(1, last) })
	}
	for _, test := range []struct {
		name string
		do   func(t *testing.T, dir string)
		ok   bool
	}{
		{"the newest, with the log", func(t *testing.T, dir string) { spoil(t, dir, metas[1]) }, true},
		{"both, with the log", func(t *testing.T, dir string) { spoil(t, dir, metas[0]); spoil(t, dir, metas[1]) }, false},
		{"none, log cut to the newest", func(t *testing.T, dir string) { cutLog(t, dir, 40) }, true},
		{"the newest, log cut to the older", func(t *testing.T, dir string) { spoil(t, dir, metas[1]); cutLog(t, dir, 20) }, true},
		{"the newest, log cut to the newest", func(t *testing.T, dir string) { spoil(t, dir, metas[1]); cutLog(t, dir, 40) }, false},
		{"all gone, log cut", func(t *testing.T, dir string) { remove(t, dir, "snapshots"); cutLog(t, dir, 40) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := copyDir(t, dir)
			test.do(t, dir)
			q, fsm, err := openDir(t, dir, nodeID(1))
			if test.ok != (err == nil) || err != nil && fleet.KindOf(err) != fleet.Corrupt {
				t.Errorf("Open: %v, want it accepted: %v", err, test.ok)
			}
			if err == nil {
				waitReady(t, q)
				if got := fsm.get("k"); got != "59" {
					t.Errorf("k is %q, want 59", got)
				}
				closeQuorum(t, q)
			}
		})
	}
}

// TestCheckBolt: what bbolt really writes is accepted, also after deletions,
// with large values and deep trees.
func TestCheckBolt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raft.db")
	s, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true,
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	next, first := uint64(1), uint64(1)
	for round := range 400 {
		var logs []*raft.Log
		for range random.IntN(200) {
			size := random.IntN(200)
			if random.IntN(50) == 0 {
				size = random.IntN(256 << 10)
			}
			logs = append(logs, &raft.Log{Index: next, Data: make([]byte, size)})
			next++
		}
		if err := s.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		if err := s.Set([]byte("CurrentTerm"), binary.BigEndian.AppendUint64(nil, uint64(round))); err != nil {
			t.Fatal(err)
		}
		switch random.IntN(6) {
		case 0: // compaction
			to := first + uint64(random.IntN(int(next-first)+1))
			if err := s.DeleteRange(first, to); err != nil {
				t.Fatal(err)
			}
			first = min(to+1, next)
		case 1: // another leader's entries take their place
			from := max(first, next-min(next-first, uint64(random.IntN(50))))
			if err := s.DeleteRange(from, next); err != nil {
				t.Fatal(err)
			}
			next = from
		}
		if round%20 == 0 || round < 20 {
			if err := checkBolt(path); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	if err := errors.Join(s.Close(), checkBolt(path)); err != nil {
		t.Fatal(err)
	}
}

// FuzzBolt: no file makes the check panic, run for ever or take more memory
// than the file's size warrants.
func FuzzBolt(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "raft.db")
	s, err := raftboltdb.New(raftboltdb.Options{Path: path, NoSync: true,
		BoltOptions: &bbolt.Options{NoFreelistSync: true, PageSize: 1024}})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 {
		if err := s.StoreLog(&raft.Log{Index: uint64(i + 1), Data: make([]byte, 50*(i%5))}); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	b = b[:used(b)]
	if err := checkBoltData(bytes.NewReader(b), int64(len(b))); err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(0), []byte{0}, uint32(0), true)
	f.Add(uint32(1024+16+16), []byte{9}, uint32(0), true) // the root of meta page 1
	f.Add(uint32(3*1024), []byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 255, 255, 255}, uint32(0), false)
	f.Add(uint32(0), []byte{}, uint32(777), false)
	// Patches, because the fuzzer is slow on inputs of the size of a file.
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, cut uint32, repair bool) {
		b := bytes.Clone(b)
		copy(b[int(at)%len(b):], patch)
		b = b[:len(b)-int(cut)%len(b)]
		if repair { // the checksums, to get behind them
			for id := range 2 {
				if len(b) >= (id+1)*1024 {
					repairMeta(b[id*1024:])
				}
			}
		}
		_ = checkBoltData(bytes.NewReader(b), int64(len(b)))
	})
}

func repairMeta(page []byte) {
	sum := metaSum(page[pageHeader : pageHeader+metaSize-8])
	order.PutUint64(page[pageHeader+metaSize-8:], sum)
}

// TestRequestLimit: however a peer cuts up its bytes, no more than the limit
// of one request gets past the connection.
func TestRequestLimit(t *testing.T) {
	for _, test := range []struct {
		name  string
		first byte
		limit int64
	}{{"append entries", 0, maxRequest}, {"vote", 1, maxRequest}, {"unknown", 77, maxRequest}} {
		ours, theirs := net.Pipe()
		c := &streamConn{Conn: ours, layer: &streamLayer{}, accepted: true}
		go func() {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = test.first
			}
			for {
				if _, err := theirs.Write(block); err != nil {
					return
				}
			}
		}()
		got, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		if err == nil || got > test.limit {
			t.Errorf("%s: read %d bytes, %v; want an error within %d", test.name, got, err, test.limit)
		}
		ours.Close()
		theirs.Close()
	}
}

// TestStoreError: who runs the host is told what a full disk needs.
func TestStoreError(t *testing.T) {
	full := storeError("", fmt.Errorf("write log entries: %w", &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}))
	if want := "quorum store: write log entries: write raft.db: "; !strings.HasPrefix(full.Error(), want) || !strings.Contains(fleet.HintOf(full), "free some space") {
		t.Errorf("got %q with %q", full, fleet.HintOf(full))
	}
	if err := storeError("", errors.New("torn")); err.Error() != "quorum store: torn" || fleet.HintOf(err) != "" {
		t.Errorf("got %q with %q", err, fleet.HintOf(err))
	}
}
