package disk

import (
	"errors"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

var testNow = time.Date(2026, 7, 7, 12, 0, 0, 0, time.UTC)

// account is a budget over a file system that the test sets.
func account(limit int64, s *Space) *Budget {
	b := New("/data", limit, func() time.Time { return testNow })
	b.space = func(string) (Space, error) { return *s, nil }
	return b
}

func TestRoom(t *testing.T) {
	plenty := Space{Free: 1 << 40, Total: 1 << 41}
	tests := []struct {
		name    string
		space   Space
		journal int64
		used    int64
		want    int64
	}{
		{"alone", plenty, 0, 0, 1000 << 20},
		{"less what the journal has", plenty, 300 << 20, 0, 700 << 20},
		{"the journal has more than all", plenty, 2000 << 20, 5, 0},
		{"the disk is smaller than the budget", Space{Free: 110 << 20, Total: 1 << 40}, 0, 50 << 20, 150 << 20},
		{"at the floor nothing grows", Space{Free: Floor, Total: 1 << 40}, 0, 50 << 20, 50 << 20},
		{"below the floor it shrinks", Space{Free: 0, Total: 1 << 40}, 0, 50 << 20, 40 << 20},
		{"never less than nothing", Space{Free: 0, Total: 1 << 40}, 0, 1 << 20, 0},
	}
	for _, tt := range tests {
		b := account(1000<<20, &tt.space)
		b.Part("journal", func() int64 { return tt.journal })
		b.Part("outputs", func() int64 { t.Error("a part was asked for itself, under its own lock"); return 0 })
		if got := b.Room("outputs", tt.used); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
	b := account(100, &plenty)
	b.space = func(string) (Space, error) { return Space{}, errors.New("unknown") }
	if got := b.Room("outputs", 0); got != 100 {
		t.Errorf("a file system that says nothing: got %d, want the budget", got)
	}
}

func TestWarnings(t *testing.T) {
	tests := []struct {
		name    string
		space   Space
		code    string
		message string
		refuses bool
	}{
		{"enough", Space{Free: 60 << 30, Total: 1000 << 30}, "", "", false},
		{"less than 5 per cent", Space{Free: 40 << 30, Total: 1000 << 30}, WarnFull, "40 GiB of 1000 GiB are free", false},
		{"less than 256 MiB", Space{Free: 255 << 20, Total: 1 << 30}, WarnFull, "255 MiB of 1.0 GiB are free", false},
		{"below the floor", Space{Free: Floor - 1, Total: 1 << 30}, WarnFull, "new commands are refused", true},
		{"no inodes", Space{Free: 60 << 30, Total: 1000 << 30, Files: 1e6, FreeFiles: 3}, WarnFull, "3 inodes are free", true},
		{"inodes are not counted", Space{Free: 60 << 30, Total: 1000 << 30}, "", "", false},
	}
	for _, tt := range tests {
		b := account(1<<30, &tt.space)
		ws := b.Warnings()
		err := b.Check()
		if (err != nil) != tt.refuses || err != nil && (fleet.KindOf(err) != fleet.Unavailable || !strings.HasPrefix(err.Error(), "DiskFull: ")) {
			t.Errorf("%s: check %v", tt.name, err)
		}
		switch {
		case tt.code == "" && len(ws) == 0:
		case tt.code == "" || len(ws) != 1 || ws[0].Code != tt.code || !strings.Contains(ws[0].Message, tt.message) || ws[0].Remedy == "":
			t.Errorf("%s: warnings %+v", tt.name, ws)
		}
	}
}

// It recovers by itself: nothing of the file system is remembered.
func TestSpaceComesBack(t *testing.T) {
	s := Space{Free: 1, Total: 1 << 40}
	b := account(1<<30, &s)
	if b.Check() == nil {
		t.Error("a full disk is not refused")
	}
	s.Free = 1 << 39
	if err := b.Check(); err != nil || len(b.Warnings()) != 0 {
		t.Errorf("space came back: %v, %v", err, b.Warnings())
	}
}

func TestDropped(t *testing.T) {
	b := account(1<<30, &Space{Free: 1 << 39, Total: 1 << 40})
	b.Part("outputs", func() int64 { return 7 })
	b.Part("journal", func() int64 { return 5 })
	b.Drop(3 << 20)
	b.Drop(1 << 20)
	ws := b.Warnings()
	if len(ws) != 1 || ws[0].Code != WarnDropped || !strings.Contains(ws[0].Message, "2 old outputs (4.0 MiB)") ||
		!strings.Contains(ws[0].Message, "2026-07-07T12:00:00Z") || !strings.Contains(ws[0].Remedy, "disk-budget, which is 1.0 GiB") {
		t.Errorf("warnings %+v", ws)
	}
	st := b.State()
	if st.Used != 12 || len(st.Parts) != 2 || st.Parts[0].Name != "journal" || st.Dropped.Number != 2 || st.Dropped.Bytes != 4<<20 || st.Free == 0 {
		t.Errorf("state %+v", st)
	}
}

func TestFree(t *testing.T) {
	s, err := Free(t.TempDir())
	if err != nil || s.Total <= 0 || s.Free > s.Total {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Free("/does/not/exist"); err == nil {
		t.Error("no error for a directory that is not there")
	}
}
