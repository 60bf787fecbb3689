package ticket

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestCorpus reads every order and result that a release signed: they lie in
// journals and are on their way while hosts are upgraded. scripts/upgrade/corpus.sh
// keeps them.
func TestCorpus(t *testing.T) {
	parsers := map[string]func([]byte) error{
		"cancel":        func(b []byte) error { _, err := ParseSignedCancel(b); return err },
		"release":       func(b []byte) error { _, err := ParseSignedRelease(b); return err },
		"result":        func(b []byte) error { _, err := ParseResult(b); return err },
		"ticket":        func(b []byte) error { _, err := Parse(b); return err },
		"ticket-signed": func(b []byte) error { _, err := ParseSigned(b); return err },
	}
	files, err := filepath.Glob("testdata/corpus/*/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".hex")
		parse := parsers[name]
		if parse == nil {
			kind, _, _ := strings.Cut(name, "-")
			parse = parsers[kind]
		}
		if parse == nil {
			t.Errorf("%s: nothing reads it", file)
			continue
		}
		if err := parse(readGolden(t, strings.TrimPrefix(file, "testdata/"))); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
