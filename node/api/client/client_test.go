package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

func TestReadEvents(t *testing.T) {
	event := func(v fleet.WatchEvent) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return "event: event\ndata: " + string(b) + "\n\n"
	}
	one := event(fleet.WatchEvent{Invocation: &fleet.InvocationEvent{Name: "web: 1\n"}})
	ended := event(fleet.WatchEvent{Command: &fleet.CommandEvent{Ended: true}})
	stop := errors.New("the reader has enough")
	tests := []struct {
		name   string
		stream string
		events int
		done   bool
		err    string
	}{
		{"to the end", one + ": alive\n\n" + one + ended + "more", 2, true, ""},
		{"cut off", one + one[:len(one)-1], 1, false, ""},
		{"nothing", "", 0, false, ""},
		{"only signs of life", ": alive\n\n: alive\n\n", 0, false, ""},
		{"events of a later release", "event: later\ndata: {}\n\n" + one + ended, 2, true, ""},
		{"an error", one + "event: error\ndata: {\"__type\":\"NoQuorum\",\"message\":\"no quorum\",\"kind\":6}\n\n", 1, false, "no quorum"},
		{"damaged", "event: event\ndata: {\n\n", 0, false, "damaged"},
		{"damaged error", "event: error\ndata: {\n\n", 0, false, "damaged"},
		{"too long", "data: " + strings.Repeat("x", maxEventLine), 0, false, "over"},
		{"the reader stops", one + strings.Replace(one, "web", "stop", 1) + one, 1, false, "enough"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			signs := 0
			events, done, err := readEvents(strings.NewReader(tt.stream), func() { signs++ }, func(e fleet.WatchEvent) error {
				if e.Invocation != nil && strings.HasPrefix(e.Invocation.Name, "stop") {
					return stop
				}
				return nil
			})
			if events != tt.events || done != tt.done || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %d events, %v, %v", events, done, err)
			}
			if signs == 0 && strings.Count(tt.stream, "\n") > 0 {
				t.Error("no sign of life")
			}
		})
	}
}

func TestErrorBody(t *testing.T) {
	for kind := fleet.Other; kind <= fleet.Unknown; kind++ {
		for _, code := range []string{"", "InvalidInstanceId"} {
			e := &fleet.Error{Kind: kind, Code: code, Message: "what", Hint: "do"}
			b, err := json.Marshal(BodyOf(e))
			if err != nil {
				t.Fatal(err)
			}
			back := ParseError(500, b)
			if back.Kind != kind || back.Code != code || back.Message != "what" || back.Hint != "do" {
				t.Errorf("%v %q: got %+v from %s", kind, code, back, b)
			}
		}
	}
	if got := ParseError(502, []byte("<html>Bad Gateway</html>")); got.Kind != fleet.Other || !strings.Contains(got.Message, "502") {
		t.Errorf("not ours: %+v", got)
	}
	if got := ParseError(502, []byte(strings.Repeat("x", 1000))); len(got.Message) > 100 {
		t.Errorf("a long text is repeated: %d bytes", len(got.Message))
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("event: event\ndata: {\"Command\":{\"Ended\":true}}\n\n"))
	f.Add([]byte(": alive\n\nevent: error\ndata: {}\n\n"))
	f.Add([]byte("data: \ndata: x\r\n\r\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		seen := 0
		events, done, err := readEvents(strings.NewReader(string(b)), func() {}, func(fleet.WatchEvent) error { seen++; return nil })
		if done && err != nil || events > len(b) || seen > events+1 {
			t.Errorf("%d events, %d seen, %v, %v", events, seen, done, err)
		}
	})
}

func FuzzParseError(f *testing.F) {
	f.Add(400, []byte(`{"__type":"Invalid","message":"x","kind":1}`))
	f.Add(500, []byte("\xff"))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		if e := ParseError(status, b); e == nil || fmt.Sprint(e) == "" && len(b) == 0 {
			t.Error("no error")
		}
	})
}

// TestNoneAccepts: hosts that all say the same are not quoted one by one.
func TestNoneAccepts(t *testing.T) {
	c := &Client{cred: identity.Credential{Name: "acme", Operator: "ada"}}
	unknown := func() error { return fleet.Errorf(fleet.Unauthenticated, "the key is not known").WithHint("log in") }
	err := c.noneAnswered([]dialFailure{{addr: "10.0.0.1:7790", err: unknown()}, {addr: "10.0.0.2:7790", err: unknown()}})
	if want := "no quorum host of acme accepts ada: the key is not known (asked: 10.0.0.1:7790, 10.0.0.2:7790)"; err.Error() != want || fleet.HintOf(err) != "log in" {
		t.Errorf("got %q with %q, want %q", err, fleet.HintOf(err), want)
	}
	err = c.noneAnswered([]dialFailure{{addr: "10.0.0.1:7790", err: unknown()}, {addr: "10.0.0.2:7790", err: errors.New("refused")}})
	if want := "accepts ada:\n  10.0.0.1:7790: the key is not known\n  10.0.0.2:7790: refused"; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %q, want its end %q", err, want)
	}
}
