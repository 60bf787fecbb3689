package presence

import (
	"fmt"
	"testing"
	"time"

	"fleet/node/fleet"
)

func TestStarts(t *testing.T) {
	const node, twin = fleet.NodeID("mi-0000000000000000a"), fleet.NodeID("mi-0000000000000000b")
	table := NewTable(time.Minute)
	now := time.Unix(1_800_000_000, 0)
	table.Hear(node, "first", "10.0.0.1", now)
	if n := table.Starts(node, now); n != 0 {
		t.Errorf("%d starts of a host that was just heard for the first time", n)
	}
	for i := range 7 {
		now = now.Add(3 * time.Second)
		table.Hear(node, fmt.Sprint("boot", i), "10.0.0.1", now)
		table.Hear(node, fmt.Sprint("boot", i), "10.0.0.1", now.Add(time.Second)) // of the same run
	}
	if n := table.Starts(node, now); n != 7 {
		t.Errorf("%d starts, want 7", n)
	}
	if n := table.Starts(node, now.Add(startsSpan+time.Minute)); n != 0 {
		t.Errorf("%d starts after a quiet time", n)
	}
	// Two that take turns are clones, and not starts without end.
	for i := range 100 {
		now = now.Add(time.Second)
		table.Hear(twin, []string{"a", "b"}[i%2], "10.0.0.2", now)
	}
	if n := table.Starts(twin, now); n > 1 || table.Clones(twin, now) == nil {
		t.Errorf("%d starts of two clones", n)
	}
	for i := range 10_000 { // what is remembered is bounded
		table.Hear(node, fmt.Sprint("more", i), "10.0.0.1", now)
	}
	if n := table.Starts(node, now); n > maxStarts {
		t.Errorf("%d starts are remembered", n)
	}
}
