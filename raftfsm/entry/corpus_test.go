package entry

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCorpus reads every entry that a release wrote: the logs of running fleets
// have them. scripts/upgrade/corpus.sh keeps them.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*/entries.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
			b, err := hex.DecodeString(digits)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			body, err := Decode(b)
			if err != nil {
				t.Errorf("%s: %s: %v", file, name, err)
			} else if got := body.Kind().String(); got != name {
				t.Errorf("%s: %s is read as %s", file, name, got)
			}
		}
	}
}
