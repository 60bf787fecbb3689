package journal

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testOrigin = 1_700_000_000_000_000_000

// key is the n-th command of a test.
func key(n int) Key {
	return Key{Command: fleet.CommandID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)), Attempt: 1}
}

func acceptedOf(n int) Accepted {
	return Accepted{
		Ticket: fmt.Appendf(nil, "ticket %d", n), Index: uint32(n), DocumentName: "AWS-RunShellScript",
		Document: bytes.Repeat([]byte("d"), 300), Parameters: []byte("parameters"),
		Created: testOrigin + int64(n), Expires: testOrigin + int64(n)*int64(time.Hour), At: testOrigin + int64(n) + 5,
	}
}

// unmetOf is what is known of a command that was cancelled before it came.
func unmetOf(n int) Accepted {
	return Accepted{Index: uint32(n), Created: testOrigin + int64(n), Expires: testOrigin + int64(n)*int64(time.Hour), At: testOrigin + int64(n) + 9,
		By: "mi-0123456789abcdef0"}
}

func finishedOf(n int) Finished {
	return Finished{
		Result: fmt.Appendf(nil, "result %d", n), Detail: fmt.Appendf(nil, "detail %d", n),
		Blobs: []fleet.Digest{fleet.Sum(fmt.Append(nil, n))}, At: testOrigin + int64(n) + 9,
	}
}

func spawnedOf(n int) Spawned {
	return Spawned{PID: 100 + n, Start: uint64(n), Boot: "boot", Mark: "mark"}
}

func create(t testing.TB) (*Journal, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	if err := Create(path, testOrigin); err != nil {
		t.Fatal(err)
	}
	return reopen(t, path), path
}

func reopen(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// step is one change of a journal.
type step struct {
	name string
	do   func(j *Journal) error
}

// life is the whole life of five commands: one that runs, one that is refused,
// one that is started twice, cancelled and not finished, one that is cancelled
// before it starts, and one that was cancelled before it came.
func life() []step {
	return []step{
		{"accept 1", func(j *Journal) error { return j.Accept(key(1), acceptedOf(1)) }},
		{"accept 2", func(j *Journal) error { return j.Refuse(key(2), acceptedOf(2), finishedOf(2)) }},
		{"start 1", func(j *Journal) error { return j.Start(key(1), 11, 0) }},
		{"spawn 1", func(j *Journal) error { return j.Spawn(key(1), spawnedOf(1)) }},
		{"accept 3", func(j *Journal) error { return j.Accept(key(3), acceptedOf(3)) }},
		{"spawn 1 again", func(j *Journal) error { return j.Spawn(key(1), spawnedOf(2)) }},
		{"start 3", func(j *Journal) error { return j.Start(key(3), 13, 0) }},
		{"finish 1", func(j *Journal) error { return j.Finish(key(1), finishedOf(1)) }},
		{"spawn 3", func(j *Journal) error { return j.Spawn(key(3), spawnedOf(3)) }},
		{"acknowledge 1", func(j *Journal) error { return j.Acknowledge(key(1), 77) }},
		{"start 3 again", func(j *Journal) error { return j.Start(key(3), 14, 99) }},
		{"acknowledge 2", func(j *Journal) error { return j.Acknowledge(key(2), 78) }},
		{"accept 4", func(j *Journal) error { return j.Accept(key(4), acceptedOf(4)) }},
		{"cancel 3", func(j *Journal) error { return j.Cancel(key(3), []byte("cancel 3")) }},
		{"cancel 4", func(j *Journal) error { return j.Cancel(key(4), []byte("cancel 4")) }},
		{"finish 4", func(j *Journal) error { return j.Finish(key(4), finishedOf(4)) }},
		{"cancel 5", func(j *Journal) error { return j.Refuse(key(5), unmetOf(5), finishedOf(5)) }},
	}
}

// states is what a journal knows after each step of its life; states[0] is at
// its beginning.
func states(t testing.TB) [][]Entry {
	t.Helper()
	j, _ := create(t)
	all := [][]Entry{j.Entries()}
	for _, s := range life() {
		if err := s.do(j); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		all = append(all, j.Entries())
	}
	return all
}

func TestLife(t *testing.T) {
	all := states(t)
	last := all[len(all)-1]
	f1 := finishedOf(1)
	f1.Detail = nil
	f2 := finishedOf(2)
	f2.Detail = nil
	a1, a2, a3, a4 := acceptedOf(1), acceptedOf(2), acceptedOf(3), acceptedOf(4)
	f4, f5 := finishedOf(4), finishedOf(5)
	a1.Document, a1.Parameters, a2.Document, a2.Parameters, a4.Document, a4.Parameters = nil, nil, nil, nil, nil, nil
	a2.At = f2.At
	want := []Entry{
		{Key: key(1), Accepted: a1, Starts: 1, Started: 11, Spawned: []Spawned{spawnedOf(1), spawnedOf(2)}, Finished: &f1, Acknowledged: 77},
		{Key: key(2), Accepted: a2, Finished: &f2, Acknowledged: 78},
		{Key: key(3), Accepted: a3, Starts: 2, Started: 14, StartBy: 99, Cancel: []byte("cancel 3")},
		{Key: key(4), Accepted: a4, Finished: &f4},
		{Key: key(5), Accepted: unmetOf(5), Finished: &f5},
	}
	if !reflect.DeepEqual(last, want) {
		t.Errorf("got  %+v\nwant %+v", last, want)
	}
}

func TestReopenAfterEveryStep(t *testing.T) {
	want := states(t)
	j, path := create(t)
	for i, s := range life() {
		if err := s.do(j); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = reopen(t, path)
		if got := j.Entries(); !reflect.DeepEqual(got, want[i+1]) {
			t.Fatalf("after %q: got %+v, want %+v", s.name, got, want[i+1])
		}
	}
}

func TestWrongStepsAreRefusedAndChangeNothing(t *testing.T) {
	accept := func(j *Journal) error { return j.Accept(key(1), acceptedOf(1)) }
	refuse := func(j *Journal) error { return j.Refuse(key(1), acceptedOf(1), finishedOf(1)) }
	start := func(j *Journal) error { return j.Start(key(1), 1, 0) }
	spawn := func(j *Journal) error { return j.Spawn(key(1), spawnedOf(1)) }
	finish := func(j *Journal) error { return j.Finish(key(1), finishedOf(1)) }
	acknowledge := func(j *Journal) error { return j.Acknowledge(key(1), 1) }
	cancel := func(j *Journal) error { return j.Cancel(key(1), []byte("cancel")) }
	type steps = []func(*Journal) error
	tests := []struct {
		name   string
		before steps
		wrong  func(*Journal) error
	}{
		{"start of an unknown command", nil, start},
		{"spawn of an unknown command", nil, spawn},
		{"end of an unknown command", nil, finish},
		{"acknowledgement of an unknown command", nil, acknowledge},
		{"accepted twice", steps{accept}, accept},
		{"refused after accepted", steps{accept}, refuse},
		{"accepted after refused", steps{refuse}, accept},
		{"spawn before start", steps{accept}, spawn},
		{"acknowledged before the end", steps{accept, start}, acknowledge},
		{"started after refused", steps{refuse}, start},
		{"started after the end", steps{accept, start, finish}, start},
		{"spawn after the end", steps{accept, start, finish}, spawn},
		{"two ends", steps{accept, start, finish}, finish},
		{"acknowledged twice", steps{accept, start, finish, acknowledge}, acknowledge},
		{"acknowledged at index 0", steps{refuse}, func(j *Journal) error { return j.Acknowledge(key(1), 0) }},
		{"cancel of an unknown command", nil, cancel},
		{"cancelled twice", steps{accept, cancel}, cancel},
		{"cancelled after the end", steps{accept, start, finish}, cancel},
		{"cancelled after refused", steps{refuse}, cancel},
		{"cancelled by nobody", steps{accept}, func(j *Journal) error { return j.Cancel(key(1), nil) }},
		{"started after it was cancelled", steps{accept, cancel}, start},
		{"started again after it was cancelled", steps{accept, start, cancel}, start},
		{"spawn after it was cancelled", steps{accept, start, cancel}, spawn},
		{"no command ID", nil, func(j *Journal) error { return j.Accept(Key{Command: "../x", Attempt: 1}, acceptedOf(1)) }},
		{"too large", nil, func(j *Journal) error {
			a := acceptedOf(1)
			a.Document = make([]byte, maxFrame)
			return j.Accept(key(1), a)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			j, path := create(t)
			for _, do := range test.before {
				if err := do(j); err != nil {
					t.Fatal(err)
				}
			}
			before, size := j.Entries(), j.Size()
			if err := test.wrong(j); err == nil || errors.Is(err, ErrFailed) {
				t.Errorf("got %v, want a refusal", err)
			}
			if got := j.Entries(); !reflect.DeepEqual(got, before) || j.Size() != size {
				t.Errorf("changed to %+v", got)
			}
			_ = j.Close()
			if got := reopen(t, path).Entries(); !reflect.DeepEqual(got, before) {
				t.Errorf("on disk: %+v", got)
			}
		})
	}
}

// written is the bytes of a journal that lived its life, and where each of its
// frames begins.
func written(t testing.TB) (b []byte, frames []int) {
	t.Helper()
	j, path := create(t)
	for _, s := range life() {
		if err := s.do(j); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := len(header); at < len(b); {
		frames = append(frames, at)
		_, n, err := decode(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	return b, frames
}

func openBytes(t testing.TB, b []byte) (*Journal, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := Open(path)
	if err == nil {
		t.Cleanup(func() { _ = j.Close() })
	}
	return j, err
}

// A crash leaves a prefix of what was written: the state is that of the last
// whole record, and the journal can be written on.
func TestTornAtEveryByte(t *testing.T) {
	b, frames := written(t)
	want := states(t)
	first := frames[2] // two frames of marks: one of Create, one of Open
	for cut := first; cut <= len(b); cut++ {
		whole := 0
		for i, at := range frames[2:] {
			end := len(b)
			if i+3 < len(frames) {
				end = frames[i+3]
			}
			if at < cut && end <= cut {
				whole = i + 1
			}
		}
		j := &Journal{entries: map[Key]*Entry{}}
		good, err := j.replay(b[:cut])
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if got := j.Entries(); !reflect.DeepEqual(got, want[whole]) {
			t.Fatalf("cut at %d (%d whole records): got %+v", cut, whole, got)
		}
		if good > cut {
			t.Fatalf("cut at %d: %d bytes are good", cut, good)
		}
	}
	// Opened for real at a few places, and written on.
	for _, cut := range []int{first + 1, first + 9, frames[5] + 3, len(b) - 1} {
		for _, tail := range []string{"", "\x00\x00\x00\x00\x00\x00\x00\x00\x00", strings.Repeat("\x00", 5000), "\xff\xff\xff\xff garbage"} {
			j, err := openBytes(t, append(bytes.Clone(b[:cut]), tail...))
			if err != nil {
				t.Fatalf("cut at %d, tail %.10q: %v", cut, tail, err)
			}
			if err := j.Accept(key(9), acceptedOf(9)); err != nil {
				t.Fatal(err)
			}
			path := j.path
			_ = j.Close()
			if _, ok := reopen(t, path).Lookup(key(9)); !ok {
				t.Errorf("cut at %d: what was written after is lost", cut)
			}
		}
	}
}

// Whatever byte is damaged, the journal refuses, or it has lost no more than
// what was not followed by a record that was written when it was on disk.
func TestDamageAtEveryByte(t *testing.T) {
	b, frames := written(t)
	want := states(t)
	protected := 0 // the highest offset that a record says was on disk
	for _, at := range frames {
		r, _, err := decode(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		protected = max(protected, int(r.Durable))
	}
	if protected < frames[len(frames)-3] {
		t.Fatalf("only %d of %d bytes are protected", protected, len(b))
	}
	for at := range b {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			damaged := bytes.Clone(b)
			damaged[at] ^= flip
			j := &Journal{entries: map[Key]*Entry{}}
			_, err := j.replay(damaged)
			if err != nil {
				if fleet.KindOf(err) != fleet.Corrupt || fleet.HintOf(err) == "" {
					t.Fatalf("byte %d: %v, want kind corrupt and a hint", at, err)
				}
				continue
			}
			if at < protected {
				t.Fatalf("byte %d ^ %#x: damage before byte %d was not noticed", at, flip, protected)
			}
			got := j.Entries()
			found := false
			for _, state := range want {
				found = found || reflect.DeepEqual(got, state)
			}
			if !found {
				t.Fatalf("byte %d ^ %#x: a state that never was: %+v", at, flip, got)
			}
		}
	}
}

// Pages reach the disk in any order before a sync: a good record may follow a
// bad one that never was whole.
func TestABadRecordBeforeAGoodOneThatWasNotSyncedIsTorn(t *testing.T) {
	b, frames := written(t)
	// "acknowledge 1" follows "spawn 3", and neither is synced.
	i := len(frames) - 9
	r, _, err := decode(b[frames[i]:])
	if err != nil || r.Kind != kindSpawned {
		t.Fatalf("frame %d is of kind %d", i, r.Kind)
	}
	torn := bytes.Clone(b[:frames[i+2]])
	clear(torn[frames[i]:frames[i+1]])
	j, err := openBytes(t, torn)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := j.Lookup(key(1)); !ok || e.Finished == nil || e.Acknowledged != 0 {
		t.Errorf("entry %+v", e)
	}
	// Once a synced record follows, the same is damage.
	later := bytes.Clone(b[:frames[i+3]])
	clear(later[frames[i]:frames[i+1]])
	later = append(later, encode(record{Kind: kindMarks, Origin: testOrigin, Durable: int64(frames[i+1])})...)
	if _, err := openBytes(t, later); fleet.KindOf(err) != fleet.Corrupt {
		t.Errorf("got %v, want kind corrupt", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	good, frames := written(t)
	contradiction := append(bytes.Clone(good), encode(record{Kind: kindStarted, Durable: int64(len(good))}.of(key(1)))...)
	unknown := append(bytes.Clone(good), encode(record{Kind: 99}.of(key(1)))...)
	for name, b := range map[string][]byte{
		"empty":             {},
		"header only":       []byte(header),
		"cut header":        []byte(header[:5]),
		"version 2":         []byte(strings.Replace(string(good), "v1", "v2", 1)),
		"no first frame":    append([]byte(header), make([]byte, 100)...),
		"a contradiction":   contradiction,
		"an unknown record": unknown,
		"swapped frames":    append(append(bytes.Clone(good[:frames[3]]), good[frames[4]:frames[5]]...), good[frames[3]:frames[4]]...),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := openBytes(t, b); fleet.KindOf(err) != fleet.Corrupt || fleet.HintOf(err) == "" {
				t.Errorf("got %v, want kind corrupt and a hint", err)
			}
		})
	}
}

func TestCreateRefusesToReplace(t *testing.T) {
	_, path := create(t)
	if err := Create(path, testOrigin); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	if err := Create(filepath.Join(t.TempDir(), "j"), 0); err == nil {
		t.Error("an origin of 0 was accepted")
	}
}

func TestOneProcessAtATime(t *testing.T) {
	j, path := create(t)
	if _, err := Open(path); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("second open: %v", err)
	}
	if err := j.Compact(testOrigin); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("second open after a compaction: %v", err)
	}
	_ = j.Close()
	reopen(t, path)
}

func TestAdmits(t *testing.T) {
	j, _ := create(t)
	if err := j.Refuse(key(1), Accepted{Ticket: []byte("t"), Created: testOrigin, Expires: testOrigin + 100}, finishedOf(1)); err != nil {
		t.Fatal(err)
	}
	if err := j.Acknowledge(key(1), 1); err != nil {
		t.Fatal(err)
	}
	if err := j.Compact(testOrigin + 101 + int64(Retention)); err != nil {
		t.Fatal(err)
	}
	if _, ok := j.Lookup(key(1)); ok {
		t.Fatal("the entry was not dropped")
	}
	tests := []struct {
		name             string
		created, expires int64
		kind             fleet.Kind
	}{
		{"newer than the journal", testOrigin + 1, testOrigin + 200, 0},
		{"as old as the journal", testOrigin, testOrigin + 200, 0},
		{"older than the journal", testOrigin - 1, testOrigin + 200, fleet.Denied},
		{"expired when the dropped one did", testOrigin, testOrigin + 100, fleet.Denied},
		{"expired just after", testOrigin, testOrigin + 101, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := j.Admits(test.created, test.expires)
			if (err == nil) != (test.kind == 0) || err != nil && fleet.KindOf(err) != test.kind {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
		})
	}
}

func TestALostJournalWaitsForTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := reopen(t, path)
	if err := j.Admits(testOrigin, testOrigin+1); fleet.KindOf(err) != fleet.Unavailable || j.Origin() != 0 {
		t.Errorf("without an origin: %v", err)
	}
	if err := j.Begin(0); err == nil {
		t.Error("began at 0")
	}
	if err := j.Begin(testOrigin); err != nil {
		t.Fatal(err)
	}
	if err := j.Begin(testOrigin + 5); err != nil {
		t.Fatal(err)
	}
	_ = j.Close()
	j = reopen(t, path)
	if j.Origin() != testOrigin {
		t.Errorf("origin %d, want %d", j.Origin(), int64(testOrigin))
	}
	if err := j.Admits(testOrigin-1, testOrigin+10); fleet.KindOf(err) != fleet.Denied {
		t.Errorf("older: %v", err)
	}
	if err := j.Admits(testOrigin+1, testOrigin+10); err != nil {
		t.Errorf("newer: %v", err)
	}
}

func TestCompact(t *testing.T) {
	j, path := create(t)
	for _, s := range life() {
		if err := s.do(j); err != nil {
			t.Fatal(err)
		}
	}
	all := j.Entries()
	expect := func(now time.Duration, want ...int) {
		t.Helper()
		if err := j.Compact(testOrigin + int64(now)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // as it is, and as it is read again
			var got []int
			for _, e := range j.Entries() {
				for n := range all {
					if reflect.DeepEqual(e, all[n]) {
						got = append(got, n+1)
					}
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("at %v: got %v, want %v", now, got, want)
			}
			_ = j.Close()
			j = reopen(t, path)
		}
	}
	expect(0, 1, 2, 3, 4, 5)
	expect(time.Hour+Retention, 1, 2, 3, 4, 5)
	expect(time.Hour+Retention+1, 2, 3, 4, 5)
	expect(2*time.Hour+Retention+1, 3, 4, 5)
	expect(5*time.Hour+Retention, 3, 4, 5)
	expect(5*time.Hour+Retention+1, 3, 4)
	expect(4*time.Hour+AnswerRetention, 3, 4)
	expect(4*time.Hour+AnswerRetention+1, 3)
	if err := j.Finish(key(3), finishedOf(3)); err != nil {
		t.Fatal(err)
	}
}

func TestCompactShrinksAFileOfFinishedCommands(t *testing.T) {
	j, path := create(t)
	for n := range 20 {
		a := acceptedOf(n)
		a.Document = make([]byte, 60<<10)
		if err := j.Accept(key(n), a); err != nil {
			t.Fatal(err)
		}
		if err := j.Finish(key(n), finishedOf(n)); err != nil {
			t.Fatal(err)
		}
	}
	before := j.Entries()
	if err := j.Compact(testOrigin); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 20_000 || info.Size() != j.Size() {
		t.Errorf("file %v, %v, size %d", info, err, j.Size())
	}
	_ = j.Close()
	if got := reopen(t, path).Entries(); !reflect.DeepEqual(got, before) {
		t.Error("other entries")
	}
}

func TestDamageOfACompactedFileIsNoticed(t *testing.T) {
	j, _ := create(t)
	for _, s := range life() {
		if err := s.do(j); err != nil {
			t.Fatal(err)
		}
	}
	b := append([]byte(header), j.snapshot(0, nil)...)
	last := bytes.LastIndex(b, encode(record{Kind: kindMarks, Origin: testOrigin})[frameHead:][:3]) - frameHead
	for at := range last {
		damaged := bytes.Clone(b)
		damaged[at] ^= 0x10
		j := &Journal{entries: map[Key]*Entry{}}
		if _, err := j.replay(damaged); fleet.KindOf(err) != fleet.Corrupt {
			t.Fatalf("byte %d of %d: %v", at, len(b), err)
		}
	}
}

func TestACrashInACompactionLeavesTheOldFile(t *testing.T) {
	j, path := create(t)
	if err := j.Accept(key(1), acceptedOf(1)); err != nil {
		t.Fatal(err)
	}
	_ = j.Close()
	if err := os.WriteFile(newName(path), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	j = reopen(t, path)
	if _, ok := j.Lookup(key(1)); !ok {
		t.Error("the entry is lost")
	}
	if _, err := os.Stat(newName(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the half file is still there: %v", err)
	}
}

func TestAFailedWriteIsFinal(t *testing.T) {
	j, _ := create(t)
	if err := j.Accept(key(1), acceptedOf(1)); err != nil {
		t.Fatal(err)
	}
	_ = j.f.Close()
	for range 2 {
		if err := j.Start(key(1), 1, 0); !errors.Is(err, ErrFailed) {
			t.Errorf("got %v, want ErrFailed", err)
		}
	}
	if err := j.Compact(1); !errors.Is(err, ErrFailed) {
		t.Errorf("compact: %v", err)
	}
	if err := j.Admits(testOrigin, testOrigin+1); fleet.KindOf(err) != fleet.Unavailable {
		t.Errorf("admits: %v", err)
	}
	if e, ok := j.Lookup(key(1)); !ok || e.Starts != 0 {
		t.Errorf("entry %+v", e)
	}
}

func TestConcurrentUse(t *testing.T) {
	j, path := create(t)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			for _, err := range []error{
				j.Accept(key(n), acceptedOf(n)), j.Start(key(n), 1, 0), j.Spawn(key(n), spawnedOf(n)),
				j.Finish(key(n), finishedOf(n)), j.Acknowledge(key(n), uint64(n)+1), j.Compact(testOrigin),
			} {
				if err != nil {
					t.Error(err)
				}
			}
			_ = j.Entries()
		})
	}
	wg.Wait()
	_ = j.Close()
	if n := len(reopen(t, path).Entries()); n != 20 {
		t.Errorf("%d entries", n)
	}
}

func TestGolden(t *testing.T) {
	got, _ := written(t)
	golden := filepath.Join("testdata", "journal.v1")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the bytes of a journal changed: that needs a new version of the format")
	}
	j, err := openBytes(t, want)
	if err != nil {
		t.Fatal(err)
	}
	all := states(t)
	if !reflect.DeepEqual(j.Entries(), all[len(all)-1]) {
		t.Error("the golden file is read differently")
	}
}

func FuzzReplay(f *testing.F) {
	b, frames := written(f)
	f.Add(b)
	f.Add(b[:frames[4]+5])
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := &Journal{entries: map[Key]*Entry{}}
		good, err := j.replay(b)
		if err != nil {
			return
		}
		if good < len(header) || good > len(b) {
			t.Fatalf("%d of %d bytes are good", good, len(b))
		}
		// What was read says the same when it is written anew.
		again := &Journal{entries: map[Key]*Entry{}}
		rewritten := append([]byte(header), j.snapshot(j.expired, nil)...)
		if n, err := again.replay(rewritten); err != nil || n != len(rewritten) {
			t.Fatalf("rewritten: %d of %d bytes, %v", n, len(rewritten), err)
		}
		if again.origin != j.origin || again.expired != j.expired || len(again.entries) != len(j.entries) {
			t.Fatal("rewritten: other content")
		}
	})
}

// FuzzRecord has checksums that are right, so that what is behind them is reached.
func FuzzRecord(f *testing.F) {
	for _, r := range []record{
		{Kind: kindMarks, Origin: 1}, {Kind: kindStarted, At: 1}, {Kind: kindAcknowledged, Index: 1},
		{Kind: kindAccepted, Accepted: &accepted{}}, {Kind: kindRefused, Accepted: &accepted{}, Finished: &finished{}},
		{Kind: kindCancelled, Cancel: []byte("cancel")},
	} {
		f.Add(encode(r.of(key(1)))[frameHead:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) == 0 || len(body) > maxFrame-frameHead {
			return
		}
		b := append([]byte(header), encode(record{Kind: kindMarks, Origin: testOrigin})...)
		for range 3 {
			b = append(b, frameOf(body)...)
		}
		j := &Journal{entries: map[Key]*Entry{}}
		_, _ = j.replay(b)
	})
}

func BenchmarkLife(b *testing.B) {
	j, _ := create(b)
	n := 0
	for b.Loop() {
		n++
		k := key(n)
		for _, err := range []error{
			j.Accept(k, acceptedOf(n)), j.Start(k, 1, 0), j.Spawn(k, spawnedOf(n)), j.Finish(k, finishedOf(n)), j.Acknowledge(k, 1),
		} {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
