package runcmd

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"fleet/node/blob"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/wire"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func inlineStream(text string) StreamDetail {
	n := uint64(len(text))
	return StreamDetail{Total: n, Stored: n, Digest: fleet.Sum([]byte(text)), Inline: []byte(text)}
}

func testDetail() *Detail {
	return &Detail{Version: 1, Steps: []StepDetail{
		{Name: "one", Plugin: ActionShell, State: fleet.Failed, Code: 3, Started: 5, Ended: 7, Reason: "exit code 3", Stdout: inlineStream("out\n"), Stderr: inlineStream("")},
		{Name: "two", Plugin: "my:plugin", State: fleet.Success, Skipped: true, Reason: "skipped"},
		{Name: "three", Plugin: ActionShell, State: fleet.ExecutionTimedOut, Code: 137, Started: 7, Ended: 9,
			Stdout: StreamDetail{Total: 100_000, Stored: 50_000, Digest: fleet.Sum([]byte("all")), Blob: fleet.Sum([]byte("head"))},
			Stderr: StreamDetail{Total: 10, Digest: fleet.Sum([]byte("lost"))}},
	}}
}

func TestDetailRoundTripAndGolden(t *testing.T) {
	want := testDetail()
	b := want.Encode()
	got, err := ParseDetail(b)
	if err != nil {
		t.Fatal(err)
	}
	got.Steps[0].Stderr.Inline = nil // empty and absent are the same
	want.Steps[0].Stderr.Inline = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if blobs := got.Blobs(); len(blobs) != 1 || blobs[0] != fleet.Sum([]byte("head")) {
		t.Errorf("blobs %v", blobs)
	}
	if !got.Steps[2].Stdout.Truncated() || got.Steps[0].Stdout.Truncated() {
		t.Error("wrong about what was cut")
	}
	golden := filepath.Join("testdata", "detail.v1")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(golden)
	if err != nil || !bytes.Equal(stored, b) {
		t.Errorf("%v: the bytes changed: that needs a new version of the format", err)
	}
}

func TestParseDetailRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(d *Detail)
	}{
		{"version 0", func(d *Detail) { d.Version = 0 }},
		{"version 2", func(d *Detail) { d.Version = 2 }},
		{"too many steps", func(d *Detail) { d.Steps = make([]StepDetail, document.MaxSteps+1) }},
		{"long name", func(d *Detail) { d.Steps[0].Name = strings.Repeat("x", 65) }},
		{"name that is not text", func(d *Detail) { d.Steps[0].Name = "\xff" }},
		{"long reason", func(d *Detail) { d.Steps[0].Reason = strings.Repeat("x", 257) }},
		{"unknown state", func(d *Detail) { d.Steps[0].State = 99 }},
		{"state that is not final", func(d *Detail) { d.Steps[0].State = fleet.InProgress }},
		{"skipped failure", func(d *Detail) { d.Steps[1].State = fleet.Failed }},
		{"negative time", func(d *Detail) { d.Steps[0].Ended = -1 }},
		{"more stored than printed", func(d *Detail) { d.Steps[2].Stdout.Stored = 100_001 }},
		{"long inline", func(d *Detail) { d.Steps[0].Stdout = inlineStream(strings.Repeat("x", MaxInline+1)) }},
		{"inline of another length", func(d *Detail) { d.Steps[0].Stdout.Total++; d.Steps[0].Stdout.Stored++ }},
		{"inline of another digest", func(d *Detail) { d.Steps[0].Stdout.Inline[0]++ }},
		{"inline and blob", func(d *Detail) { d.Steps[0].Stdout.Blob[0] = 1 }},
		{"stored nowhere", func(d *Detail) { d.Steps[2].Stderr.Stored = 1 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := testDetail()
			test.change(d)
			if got, err := ParseDetail(wire.MustMarshal(d)); fleet.KindOf(err) != fleet.Invalid {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	for name, b := range map[string][]byte{
		"empty": {}, "not a map": {0x01}, "unknown field": {0x82, 0xa1, 'v', 1, 0xa1, 'q', 1},
		"version twice": {0x82, 0xa1, 'v', 1, 0xa1, 'v', 1}, "bytes after": append(testDetail().Encode(), 0),
	} {
		if _, err := ParseDetail(b); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseDetail(make([]byte, MaxDetail+1)); fleet.KindOf(err) != fleet.TooLarge {
		t.Errorf("too large: %v", err)
	}
}

// Whatever the steps and their output, the details fit.
func TestTheLargestDetailsFit(t *testing.T) {
	for steps := 1; steps <= document.MaxSteps; steps++ {
		left := inlineBudget(steps)
		d := &Detail{}
		long := int64(1) << 60
		for i := range steps {
			s := StepDetail{
				Name: strings.Repeat("n", 62) + string(rune('0'+i%10)) + string(rune('0'+i/10)), Plugin: strings.Repeat("p", 64),
				State: fleet.Failed, Code: -1 << 31, Started: long, Ended: long, Reason: strings.Repeat("r", maxReason),
			}
			for _, stream := range []*StreamDetail{&s.Stdout, &s.Stderr} {
				n := min(MaxInline, left)
				left -= n
				*stream = inlineStream(strings.Repeat("x", n))
				if n == 0 {
					*stream = StreamDetail{Total: 1 << 60, Stored: 1 << 60, Digest: fleet.Sum(nil), Blob: fleet.Sum(nil)}
				}
			}
			d.Steps = append(d.Steps, s)
		}
		b := d.Encode()
		if len(b) > MaxDetail {
			t.Fatalf("%d steps: %d bytes", steps, len(b))
		}
		if _, err := ParseDetail(b); err != nil {
			t.Fatalf("%d steps: %v", steps, err)
		}
	}
}

func FuzzParseDetail(f *testing.F) {
	f.Add(testDetail().Encode())
	f.Add((&Detail{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDetail(b)
		if err != nil {
			return
		}
		again, err := ParseDetail(d.Encode())
		if err != nil || len(again.Steps) != len(d.Steps) {
			t.Fatalf("written again: %v", err)
		}
	})
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", 256), strings.Repeat("x", 257), strings.Repeat("ä", 300), "\xff\xfe", strings.Repeat("𝄞\xff", 200)} {
		got := cut(s, 256)
		if len(got) > 256 || !utf8.ValidString(got) || len(s) <= 256 && utf8.ValidString(s) && got != s {
			t.Errorf("%.20q: %.300q", s, got)
		}
	}
}

func testBlobs(t *testing.T, budget int64) *blob.Store {
	t.Helper()
	s, err := blob.Open(t.TempDir(), budget)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestCapture(t *testing.T) {
	const limit = 20_000
	tests := []struct {
		total, piece int
		inline       int
		budget       int64
		stored       int // -1: lost
		blob         bool
	}{
		{0, 1, MaxInline, 1 << 20, 0, false},
		{1, 1, MaxInline, 1 << 20, 1, false},
		{MaxInline, 7, MaxInline, 1 << 20, MaxInline, false},
		{MaxInline + 1, 7, MaxInline, 1 << 20, MaxInline + 1, true},
		{MaxInline, MaxInline, MaxInline - 1, 1 << 20, MaxInline, true}, // no room in the details
		{1, 1, 0, 1 << 20, 1, true},
		{limit, 100_000, MaxInline, 1 << 20, limit, true},
		{limit + 1, 1000, MaxInline, 1 << 20, limit, true},
		{100_000, 999, MaxInline, 1 << 20, limit, true},
		{100_000, 999, MaxInline, 10_000, -1, false}, // the store is full
		{100_000, 999, MaxInline, 1, -1, false},
	}
	for _, test := range tests {
		s := testBlobs(t, test.budget)
		c := newCapture(s, limit)
		all := bytes.Repeat([]byte("0123456789abcdef"), test.total/16+1)[:test.total]
		for rest := all; len(rest) > 0; rest = rest[min(test.piece, len(rest)):] {
			p := rest[:min(test.piece, len(rest))]
			if n, err := c.Write(p); n != len(p) || err != nil {
				t.Fatalf("%+v: write %d, %v", test, n, err)
			}
		}
		got, note := c.finish("stdout", test.inline)
		if got.Total != uint64(test.total) || got.Digest != fleet.Sum(all) {
			t.Errorf("%+v: %d bytes, %s", test, got.Total, got.Digest)
		}
		if err := got.check(); err != nil {
			t.Errorf("%+v: %v", test, err)
		}
		if test.stored < 0 {
			if got.Stored != 0 || !got.Blob.IsZero() || len(got.Inline) != 0 || !strings.Contains(note, "stdout was not kept") || s.Used() != 0 {
				t.Errorf("%+v: got %+v, %q, %d used", test, got, note, s.Used())
			}
			continue
		}
		kept := got.Inline
		if test.blob {
			var err error
			if kept, err = s.Bytes(got.Blob, 1<<20); err != nil {
				t.Errorf("%+v: %v", test, err)
			}
		}
		if note != "" || test.blob != !got.Blob.IsZero() || got.Stored != uint64(test.stored) || !bytes.Equal(kept, all[:test.stored]) {
			t.Errorf("%+v: got %d bytes, %+v, %q", test, len(kept), got.Stored, note)
		}
	}
}
