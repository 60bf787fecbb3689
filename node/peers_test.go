package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
)

// TestAVoterThatMakesHostsUp: a view stays bounded, and what it held stands.
func TestAVoterThatMakesHostsUp(t *testing.T) {
	v := newView(time.Now)
	real := rpc.ViewRow{ID: "mi-00000000000000001", Name: "web01", Address: "10.0.0.1:7790"}
	v.merge("voter", &rpc.HeartbeatResponse{View: []rpc.ViewRow{real}, ViewIndex: 1})
	made := func(i int, removed bool, name string) rpc.ViewRow {
		return rpc.ViewRow{ID: fleet.NodeID(fmt.Sprintf("mi-f%016x", i)), Name: name, Removed: removed}
	}
	total := func() (size int) {
		for _, row := range v.rows {
			size += sizeOf(row)
		}
		return size
	}
	for i := range maxRows + 1000 {
		v.merge("liar", &rpc.HeartbeatResponse{View: []rpc.ViewRow{made(i, false, "x"), made(-i-1, true, "")}, ViewIndex: uint64(i + 2)})
	}
	if len(v.rows) != maxRows || len(v.gone) != maxRows || v.size != total() {
		t.Errorf("%d rows of %d bytes, counted as %d, %d gone", len(v.rows), total(), v.size, len(v.gone))
	}
	if v.name(real.ID) != "web01" {
		t.Error("a host that was known is not known any more")
	}

	// Long rows in the place of short ones.
	long := strings.Repeat("x", 4096)
	for i := range maxRows {
		v.merge("liar", &rpc.HeartbeatResponse{View: []rpc.ViewRow{made(i, false, long)}, ViewIndex: maxRows * 2})
	}
	if v.size > maxRowBytes || v.size != total() {
		t.Errorf("%d bytes, counted as %d", total(), v.size)
	}

	// A removal makes room.
	before := v.size
	v.gone = map[fleet.NodeID]bool{}
	if !v.merge("voter", &rpc.HeartbeatResponse{View: []rpc.ViewRow{{ID: real.ID, Removed: true}}, ViewIndex: 2}) {
		t.Error("a removal is no news")
	}
	if v.size != before-sizeOf(real) || v.size != total() || !v.isRemoved(real.ID) {
		t.Errorf("%d bytes after a removal, %d before", v.size, before)
	}
}
