package logging

import (
	"slices"
	"testing"
	"time"
)

func TestSometimes(t *testing.T) {
	var s Sometimes
	var lines []int
	now := time.Unix(1000, 0)
	for range 100 { // one a second
		s.Log(now, func(suppressed int) { lines = append(lines, suppressed) })
		now = now.Add(time.Second)
	}
	if want := []int{0, 9, 9, 9, 9, 9, 9, 9, 9, 9}; !slices.Equal(lines, want) {
		t.Errorf("lines %v, want %v", lines, want)
	}
}
