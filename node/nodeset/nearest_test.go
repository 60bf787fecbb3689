package nodeset

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	words := []string{"web01", "web02", "db1", "frontend", "ls"}
	for typed, want := range map[string]string{
		"web1": "web01", "wbe02": "web02", "front": "frontend", "frontnd": "frontend", "db": "db1", "l": "ls", "sl": "ls",
		"nothing": "", "": "", "w": "", strings.Repeat("w", 1000): "",
	} {
		if got := Nearest(words, typed); got != want {
			t.Errorf("%.20q: got %q, want %q", typed, got, want)
		}
	}
}
