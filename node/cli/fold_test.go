package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func TestFoldNames(t *testing.T) {
	numbered := func(format string, from, to int) string {
		var all []string
		for i := from; i <= to; i++ {
			all = append(all, fmt.Sprintf(format, i))
		}
		return strings.Join(all, " ")
	}
	tests := []struct{ name, in, want string }{
		{"one", "web1", "web1"},
		{"range", numbered("web%02d", 1, 17), "web[01-17]"},
		{"without zeros", numbered("web%d", 8, 12), "web[8-12]"},
		{"across the width", numbered("web%02d", 98, 101), "web[98-101]"},
		{"gap", "web01 web02 web05", "web[01-02,05]"},
		{"any order", "web3 web1 web2", "web[1-3]"},
		{"widths apart", "web1 web01", "web01,web1"},
		{"suffix", "web1.example web2.example", "web[1-2].example"},
		{"two suffixes", "web1.a web2.b", "web1.a,web2.b"},
		{"number in the domain", "web.dc1 web.dc2", "web.dc1,web.dc2"},
		{"two numbers", "rack1-web1 rack1-web2 rack2-web1", "rack1-web[1-2],rack2-web1"},
		{"number in the middle", "web1-eu web2-eu", "web[1-2]-eu"},
		{"no number", "alpha beta", "alpha,beta"},
		{"IDs", "mi-00000000000000001 mi-00000000000000002", "mi-00000000000000001,mi-00000000000000002"},
		{"very long", "a12345678901234567890 a12345678901234567891", "a12345678901234567890,a12345678901234567891"},
		{"an address", "10.0.0.1", "10.0.0.1"},
		{"none", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := foldNames(strings.Fields(tt.in)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNaturalCompare(t *testing.T) {
	order := []string{"", "a", "a1", "a02", "a2", "a10", "a10b", "b1"}
	for i := range order {
		for j := range order {
			got, want := naturalCompare(order[i], order[j]), cmpInt(i, j)
			if got != want {
				t.Errorf("%q, %q: got %d, want %d", order[i], order[j], got, want)
			}
		}
	}
}

func cmpInt(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func event(i int, name, details string, code int, stdout, stderr string) fleet.WatchEvent {
	status := map[string]string{"Success": "Success", "ExecutionTimedOut": "TimedOut", "DeliveryTimedOut": "TimedOut"}[details]
	if status == "" {
		status = "Failed"
	}
	return fleet.WatchEvent{Invocation: &fleet.InvocationEvent{
		InstanceId: fleet.NodeID(fmt.Sprintf("mi-%017x", i)), Name: name, Status: status, StatusDetails: details, ResponseCode: code, Final: true,
		Stdout: fleet.OutputText{Text: stdout, Total: uint64(len(stdout))}, Stderr: fleet.OutputText{Text: stderr, Total: uint64(len(stderr))},
	}}
}

func answersOf(events ...fleet.WatchEvent) *answers {
	a := newAnswers("6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b")
	for _, e := range events {
		a.add(e)
	}
	a.counts.TargetCount = len(a.final)
	return a
}

func TestFoldedAnswers(t *testing.T) {
	var same []fleet.WatchEvent
	for i := 1; i <= 17; i++ {
		same = append(same, event(i, fmt.Sprintf("web%02d", i), "Success", 0, "Linux 6.1\n", ""))
	}
	with := func(e fleet.WatchEvent, change func(*fleet.InvocationEvent)) fleet.WatchEvent {
		change(e.Invocation)
		return e
	}
	tests := []struct {
		name string
		all  *answers
	}{
		{"all-equal", answersOf(same...)},
		{"mixed", answersOf(append(same,
			event(20, "db1", "Success", 0, "FreeBSD 14\n", "a warning\nof two lines\n"),
			event(21, "db2", "Failed", 3, "", "uname: not found\n"),
			event(22, "db3", "Failed", 3, "", "uname: not found\n"),
			event(23, "db4", "ExecutionTimedOut", -1, "half", ""),
			with(event(24, "db5", "Undeliverable", -1, "", ""), func(i *fleet.InvocationEvent) { i.Reason = "its clock is not known" }),
			event(25, "db6", "DeliveryTimedOut", -1, "", ""),
			event(26, "db7", "Interrupted", -1, "", ""),
		)...)},
		{"truncated", answersOf(with(event(1, "big", "Success", 0, "first lines\n", ""), func(i *fleet.InvocationEvent) {
			i.Stdout.Total, i.Stdout.Kept, i.Stdout.Truncated = 60<<20-800<<10, 10<<20, true
			i.Stderr = fleet.OutputText{Text: "lost\n", Total: 4 << 10, Truncated: true}
		}))},
		{"not-text", answersOf(with(event(1, "bin", "Success", 0, "", ""), func(i *fleet.InvocationEvent) {
			i.Stdout = fleet.OutputText{Bytes: []byte("\xff\xfe\x00\n\x1b[31m"), Total: 9}
		}))},
		{"not-readable", answersOf(with(event(1, "web1", "Success", 0, "", ""), func(i *fleet.InvocationEvent) {
			i.OutputError = "the output cannot be read now: on no host that answers"
		}))},
		{"two-of-one-name", answersOf(event(1, "web", "Success", 0, "same\n", ""), event(2, "web", "Success", 0, "same\n", ""))},
		{"forged-head", answersOf(event(1, "web1", "Success", 0, "x\nweb2 (1)\n  I am web2\n", ""))},
		{"fell-silent", answersOf(
			with(event(1, "web1", "DeliveryTimedOut", -1, "", ""), func(i *fleet.InvocationEvent) { i.Reason = fleet.ReasonSilentBegun }),
			with(event(2, "web2", "DeliveryTimedOut", -1, "", ""), func(i *fleet.InvocationEvent) { i.Reason = "the host was not reached" }))},
		{"silent", answersOf(event(1, "web1", "Success", 0, "", ""))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var out bytes.Buffer
			w.writeFolded(&out, tt.all, false)
			fmt.Fprintln(&out, "--")
			fmt.Fprintln(&out, tt.all.totals())
			w.writeFailures(&out, tt.all)
			golden(t, "answers/"+tt.name+".txt", out.String())
		})
	}
}

// Every state that can end a host's part has an advice.
func TestRemedies(t *testing.T) {
	for s := fleet.Pending; s.Valid(); s++ {
		if _, ok := remedies[s.Details()]; ok != (s.Final() && s != fleet.Success) {
			t.Errorf("%v: advice is %v", s, ok)
		}
	}
}
