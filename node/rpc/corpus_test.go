package rpc

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestCorpus reads every message that a release sent: hosts of that release are
// in one fleet with this one. scripts/upgrade/corpus.sh keeps them.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*/frames.golden")
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	known := map[string]reflect.Type{}
	for _, v := range samples() {
		known[reflect.TypeOf(v).Elem().Name()] = reflect.TypeOf(v).Elem()
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
			message := known[name]
			if message == nil {
				t.Errorf("%s: there is no message %s any more", file, name)
				continue
			}
			body, err := readFrame(bytes.NewReader(b), len(b))
			if err == nil {
				err = decodeBody(body, reflect.New(message).Interface())
			}
			if err != nil {
				t.Errorf("%s: %s: %v", file, name, err)
			}
		}
	}
}
