package runcmd

import (
	"fmt"
	"testing"
)

// TestParsed: a document is read once however often it comes, at most eight are
// kept, and what cannot be read is not.
func TestParsed(t *testing.T) {
	var p parsed
	content := func(i int) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":"2.2","description":"%d","mainSteps":[{"action":"aws:runShellScript","name":"a","inputs":{"runCommand":["true"]}}]}`, i)
	}
	first, err := p.parse(content(0))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxParsed {
		again, err := p.parse(content(0))
		if err != nil || again != first {
			t.Fatalf("read again before document %d: %v", i, err)
		}
		other, err := p.parse(content(i))
		if err != nil || other.Description != fmt.Sprint(i) {
			t.Fatalf("document %d: %+v, %v", i, other, err)
		}
	}
	if _, err := p.parse(content(maxParsed)); err != nil {
		t.Fatal(err)
	}
	if again, err := p.parse(content(0)); err != nil || again == first {
		t.Errorf("the oldest is still kept after %d others (%v)", maxParsed, err)
	}
	for range 2 {
		if _, err := p.parse([]byte("{")); err == nil {
			t.Error("half a document was read")
		}
	}
	if len(p.docs) != maxParsed || len(p.age) != maxParsed {
		t.Errorf("%d and %d documents kept, want %d", len(p.docs), len(p.age), maxParsed)
	}
}
