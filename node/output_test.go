package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

// TestOutputBehindACut: the voters that keep a host's output are cut off, and
// asked in vain; the host itself has it still, and is asked before the reader
// has given up.
func TestOutputBehindACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		b.await(id)
		detail := b.row(id, "n4").Detail
		var reader string
		for _, name := range []string{"n1", "n2", "n3"} {
			if reader == "" && !b.nodes[name].blobs.Has(detail) {
				reader = name
				continue
			}
			b.net.Isolate(b.hosts[name])
		}
		if reader == "" {
			t.Fatal("every voter keeps the output")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := b.nodes[reader].member.Load().control.Blob(ctx, b.nodes["n4"].ID(), detail)
		if err != nil {
			t.Fatalf("%s, while the others are cut off: %v", reader, err)
		}
		if err := r.Close(); err != nil || !b.nodes[reader].blobs.Has(detail) {
			t.Errorf("close: %v", err)
		}
		b.net.HealAll()
		if got := b.row(id, "n4").State; got != fleet.Success {
			t.Errorf("row: %s", got)
		}
	})
}
