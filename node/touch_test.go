package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

func TestSkewWarning(t *testing.T) {
	tests := []struct {
		name   string
		mine   string
		voters []string
		want   string // in the message; "" for none
	}{
		{"nothing heard", "1.0.0", nil, ""},
		{"the same", "1.0.0", []string{"1.0.0"}, ""},
		{"behind", "1.0.0", []string{"1.1.0"}, "this host runs fleet 1.0.0, the voters run 1.1.0"},
		{"the voters differ", "1.0.0", []string{"1.0.0", "1.1.0"}, "the voters run 1.0.0 and 1.1.0"},
	}
	for _, tt := range tests {
		ws := skewWarning(tt.mine, tt.voters)
		switch {
		case tt.want == "" && len(ws) == 0:
		case tt.want == "" || len(ws) != 1 || ws[0].Code != WarnVersion || !strings.Contains(ws[0].Message, tt.want) || ws[0].Remedy == "":
			t.Errorf("%s: %+v", tt.name, ws)
		}
	}
}

func TestUnreachableWarning(t *testing.T) {
	if ws := unreachableWarning(nil, 3); ws != nil {
		t.Errorf("all answer: %+v", ws)
	}
	ws := unreachableWarning([]string{"host2 10.0.0.2:7790"}, 3)
	if len(ws) != 1 || ws[0].Code != WarnUnreachable || ws[0].Message != "this host cannot reach 1 of 3 voters: host2 10.0.0.2:7790" ||
		!strings.Contains(ws[0].Remedy, "fleet doctor") {
		t.Errorf("%+v", ws)
	}
}

func TestTouch(t *testing.T) {
	var tc touch
	a, b := fleet.NodeID("mi-00000000000000001"), fleet.NodeID("mi-00000000000000002")
	now := time.Unix(100, 0)
	const interval = 10 * time.Second
	down := func(at time.Time) bool { return tc.of([]fleet.NodeID{a, b})[a].unreached(at, interval) }
	no := errors.New("no")
	tc.note(a, now, no)
	tc.runs(b, "1.2.3")
	tc.note(b, now, nil)
	if rows := tc.of([]fleet.NodeID{a, b}); rows[b].version != "1.2.3" || rows[b].unreached(now, interval) {
		t.Errorf("%+v", rows)
	}
	if down(now) {
		t.Error("one heartbeat that failed counts")
	}
	now = now.Add(interval)
	tc.note(a, now, no)
	if !down(now) {
		t.Error("a voter that did not answer for an interval is not unreachable")
	}
	if down(now.Add(5 * interval)) {
		t.Error("what was not tried for long still counts")
	}
	tc.note(a, now, nil)
	if down(now) {
		t.Error("a voter that answers again is still unreachable")
	}
	tc.note(a, now, no)
	if down(now) {
		t.Error("the time before it answered counts")
	}
	// Who votes no more is forgotten.
	if rows := tc.of([]fleet.NodeID{a}); len(rows) != 1 {
		t.Errorf("%+v", rows)
	}
}
