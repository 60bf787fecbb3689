package cli

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestUnifiedDiff(t *testing.T) {
	lines := func(from, to int) string {
		var b strings.Builder
		for i := from; i <= to; i++ {
			fmt.Fprintf(&b, "%d\n", i)
		}
		return b.String()
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"equal", "a\nb\n", "a\nb\n", ""},
		{"both empty", "", "", ""},
		{"one line", "a\nb\nc\n", "a\nx\nc\n", "@@ -1,3 +1,3 @@| a|-b|+x| c"},
		{"from nothing", "", "a\n", "@@ -0,0 +1 @@|+a"},
		{"to nothing", "a\n", "", "@@ -1 +0,0 @@|-a"},
		{"end of line", "a\n", "a", "@@ -1 +1 @@|-a|+a\n\\ No newline at end of file"},
		{"context", lines(1, 9), strings.Replace(lines(1, 9), "5\n", "", 1), "@@ -2,7 +2,6 @@| 2| 3| 4|-5| 6| 7| 8"},
		{"two hunks", lines(1, 20), strings.NewReplacer("2\n3\n", "3\n", "18\n", "x\n").Replace(lines(1, 20)),
			"@@ -1,5 +1,4 @@| 1|-2| 3| 4| 5|@@ -15,6 +14,6 @@| 15| 16| 17|-18|+x| 19| 20"},
	} {
		if got := strings.Join(unifiedDiff(c.old, c.new), "|"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// A script turns the old text into the new one, and is as short as diff's.
func TestDiffAgainstDiff(t *testing.T) {
	diff, err := exec.LookPath("diff")
	if err != nil {
		t.Skip("no diff here")
	}
	r := rand.New(rand.NewPCG(3, 4))
	text := func() string {
		var b strings.Builder
		for range r.IntN(30) {
			fmt.Fprintln(&b, string(rune('a'+r.IntN(6))))
		}
		return b.String()
	}
	dir := t.TempDir()
	for range 200 {
		a, b := text(), text()
		ops := editScript(splitLines(a), splitLines(b))
		var oldText, newText strings.Builder
		edits := 0
		for _, op := range ops {
			if op.kind != '+' {
				oldText.WriteString(op.line + "\n")
			}
			if op.kind != '-' {
				newText.WriteString(op.line + "\n")
			}
			if op.kind != ' ' {
				edits++
			}
		}
		if oldText.String() != a || newText.String() != b {
			t.Fatalf("the script of %q and %q makes %q of %q", a, b, newText.String(), oldText.String())
		}
		for name, s := range map[string]string{"a": a, "b": b} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, _ := exec.Command(diff, "-d", filepath.Join(dir, "a"), filepath.Join(dir, "b")).Output() // 1 for different ones
		want := strings.Count("\n"+string(out), "\n<") + strings.Count("\n"+string(out), "\n>")
		if edits > want {
			t.Errorf("%q and %q: %d edits, diff has %d", a, b, edits, want)
		}
	}
}

// Texts with nothing in common cost no time that a person notices.
func TestDiffIsBounded(t *testing.T) {
	var a, b strings.Builder
	for i := range 24_000 {
		fmt.Fprintf(&a, "%d\n", i)
		fmt.Fprintf(&b, "-%d\n", i)
	}
	began := time.Now()
	if got := len(unifiedDiff(a.String(), b.String())); got != 48_001 {
		t.Errorf("%d lines", got)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}
