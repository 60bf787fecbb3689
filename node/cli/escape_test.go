package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// testdata/hostile.in holds what a host that is not ours any more may write.
func TestHostileOutput(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "hostile.in"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "hostile.golden", escape(string(b)))
}

func TestEscape(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"plain", "Linux 6.1\n\ttab ä 😀\n", "Linux 6.1\n\ttab ä 😀\n"},
		{"colour", "\x1b[31mred\x1b[0m", `\x1b[31mred\x1b[0m`},
		{"title", "\x1b]0;owned\x07", `\x1b]0;owned\x07`},
		{"clipboard", "\x1b]52;c;ZWNobw==\x07", `\x1b]52;c;ZWNobw==\x07`},
		{"device control", "\x1bP+q544e\x1b\\", `\x1bP+q544e\x1b\`},
		{"paste", "\x1b[200~rm -rf /\x1b[201~", `\x1b[200~rm -rf /\x1b[201~`},
		{"C1 as a character", "\u009b31m", `\u009b31m`},
		{"C1 as a byte", "\x9b31m", `\x9b31m`},
		{"overwriting", "secret\rpublic", `secret\rpublic`},
		{"backspace, bell, delete, zero", "a\b\a\x7f\x00", `a\x08\x07\x7f\x00`},
		{"turned around", "\u202egnp.exe", `\u202egnp.exe`},
		{"isolated", "\u2066x\u2069\u200f\u061c", `\u2066x\u2069\u200f\u061c`},
		{"invisible", "a\U000E0041", `a\U000e0041`},
		{"line separators", "a\u2028b\u2029c", `a\u2028b\u2029c`},
		{"not UTF-8", "\xff\xfe\xc3", `\xff\xfe\xc3`},
		{"replacement character itself", "\ufffd", "\ufffd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := escape(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if got := escapeCell("a\nb\tc"); got != `a\nb\tc` {
		t.Errorf("a cell: got %q", got)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("plain", 3)
	f.Add("\x1b]0;x\x07\u202e\xff", 2)
	f.Fuzz(func(t *testing.T, s string, at int) {
		got := escape(s)
		if !utf8.ValidString(got) {
			t.Errorf("%q: not UTF-8: %q", s, got)
		}
		for _, r := range got {
			if hostile(r) && r != '\n' && r != '\t' {
				t.Errorf("%q: %U is left", s, r)
			}
		}
		if clean(s, func(r rune) bool { return r == '\n' || r == '\t' }) && got != s {
			t.Errorf("%q: changed to %q without need", s, got)
		}
		if strings.Contains(escapeCell(s), "\n") {
			t.Errorf("%q: a cell of two lines", s)
		}
		// A stream in two parts is escaped as the whole.
		cut := min(max(at, 0), len(s))
		var buf bytes.Buffer
		w := &escapeWriter{w: &buf}
		for _, part := range []string{s[:cut], s[cut:]} {
			if n, err := w.Write([]byte(part)); err != nil || n != len(part) {
				t.Fatalf("write: %d, %v", n, err)
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if buf.String() != got {
			t.Errorf("%q cut at %d: got %q, want %q", s, cut, buf.String(), got)
		}
	})
}
