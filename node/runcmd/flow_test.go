package runcmd

import (
	"strings"
	"testing"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

// on is a precondition for a platform.
func on(platform string) document.Precondition {
	return document.Precondition{"StringEquals": {{Initial: "platformType", Resolved: "platformType"}, {Initial: platform, Resolved: platform}}}
}

func TestFlow(t *testing.T) {
	// Each step is what it says and what its plugin would answer with.
	type step struct {
		document.Step
		plugin knowledge
		end    Outcome
	}
	ok, fail := Outcome{State: fleet.Success}, Outcome{State: fleet.Failed, Code: 3, Reason: "exit code 3"}
	code := func(n int32) Outcome {
		o := Outcome{State: fleet.Success, Code: n}
		if n != 0 {
			o.State = fleet.Failed
		}
		return o
	}
	timeout := Outcome{State: fleet.ExecutionTimedOut, Code: 137, Reason: "not done after 5s, and ended"}
	plain := func(o Outcome) step { return step{plugin: pluginThere, end: o} }
	with := func(o Outcome, change func(*step)) step {
		s := plain(o)
		change(&s)
		return s
	}
	onFailure := func(v document.OnFailure) func(*step) { return func(s *step) { s.OnFailure = v } }
	onSuccess := func(s *step) { s.OnSuccess = document.SuccessExit }
	final := func(s *step) { s.Finally = true }

	tests := []struct {
		name  string
		steps []step
		ran   string // one letter a step: r ran, s skipped, f failed without running, - not reached
		state fleet.InvocationState
		code  int32
		words string // in the reason of the whole
	}{
		{"one success", []step{plain(ok)}, "r", fleet.Success, 0, ""},
		{"one failure", []step{plain(fail)}, "r", fleet.Failed, 3, "exit code 3"},
		{"a failure with code 0 has code 1", []step{plain(Outcome{State: fleet.Failed})}, "r", fleet.Failed, 1, ""},
		{"a failure does not stop the next step", []step{plain(fail), plain(ok)}, "rr", fleet.Failed, 3, "step s0: exit code 3"},
		{"the first failure counts", []step{plain(ok), plain(code(4)), plain(code(5))}, "rrr", fleet.Failed, 4, "step s1"},
		{"a failure counts more than a timeout", []step{plain(timeout), plain(fail)}, "rr", fleet.Failed, 3, "step s1"},
		{"a timeout counts more than a success", []step{plain(timeout), plain(ok)}, "rr", fleet.ExecutionTimedOut, 137, "step s0"},
		{"onFailure exit", []step{with(fail, onFailure("exit")), plain(ok)}, "rs", fleet.Failed, 3, "onFailure"},
		{"onFailure exit after a timeout", []step{with(timeout, onFailure("exit")), plain(ok)}, "rs", fleet.ExecutionTimedOut, 137, "onFailure"},
		{"onFailure exit after a success", []step{with(ok, onFailure("exit")), plain(ok)}, "rr", fleet.Success, 0, ""},
		{"onFailure successAndExit", []step{with(fail, onFailure("successAndExit")), plain(fail)}, "rs", fleet.Success, 168, ""},
		{"onSuccess exit", []step{with(ok, onSuccess), plain(fail)}, "rs", fleet.Success, 0, ""},
		{"onSuccess exit after a failure", []step{with(fail, onSuccess), plain(ok)}, "rr", fleet.Failed, 3, ""},
		{"exit code 168", []step{plain(code(168)), plain(fail)}, "rs", fleet.Success, 168, ""},
		{"exit code 169", []step{plain(code(169)), plain(ok)}, "rs", fleet.Failed, 169, "169"},
		{"exit code 194", []step{plain(code(194)), plain(ok)}, "rs", fleet.Failed, 194, "restart"},
		{"exit code 3010", []step{plain(code(3010)), plain(ok)}, "rs", fleet.Failed, 3010, "restart"},
		{"exit code 168 of a later step", []step{plain(fail), plain(code(168)), plain(ok)}, "rrs", fleet.Failed, 3, "step s0"},
		{"the last step is final", []step{with(fail, onFailure("exit")), plain(ok), with(ok, final)}, "rsr", fleet.Failed, 3, ""},
		{"final after exit code 168", []step{plain(code(168)), with(fail, final)}, "rr", fleet.Failed, 3, "step s1"},
		{"final counts on the last step only", []step{with(fail, onFailure("exit")), with(ok, final), plain(ok)}, "rss", fleet.Failed, 3, ""},
		{"a final step has preconditions too", []step{plain(code(169)), with(ok, func(s *step) { s.Finally = true; s.Precondition = on("Windows") })}, "rs", fleet.Failed, 169, ""},
		{"precondition met", []step{with(ok, func(s *step) { s.Precondition = on("linux") })}, "r", fleet.Success, 0, ""},
		{"precondition not met", []step{with(fail, func(s *step) { s.Precondition = on("Windows") }), plain(ok)}, "sr", fleet.Success, 0, ""},
		{"precondition not understood", []step{with(ok, func(s *step) { s.Precondition = document.Precondition{"Equals": nil} }), plain(ok)}, "fr", fleet.Failed, -1, "unrecognized"},
		{"unknown plugin", []step{with(ok, func(s *step) { s.plugin = pluginUnknown }), plain(ok)}, "fr", fleet.Failed, -1, "not supported by this version"},
		{"unknown plugin for another platform", []step{with(ok, func(s *step) { s.plugin = pluginUnknown; s.Precondition = on("Windows") })}, "s", fleet.Success, 0, "not for Linux"},
		{"plugin of another platform", []step{with(ok, func(s *step) { s.plugin = pluginUnsupported }), plain(ok)}, "sr", fleet.Success, 0, ""},
		{"unknown plugin with onFailure", []step{with(ok, func(s *step) { s.plugin = pluginUnknown; s.OnFailure = "exit" }), plain(ok)}, "fr", fleet.Failed, -1, ""},
		{"all skipped", []step{with(ok, func(s *step) { s.plugin = pluginUnsupported }), with(ok, func(s *step) { s.Precondition = on("MacOS") })}, "ss", fleet.Success, 0, "no step"},
		{"interrupted counts most", []step{plain(fail), plain(StoppedOutcome(t.Context(), 143))}, "rr", fleet.Interrupted, 143, "stopped"},
		{"168 of an interrupted step is no success", []step{plain(StoppedOutcome(t.Context(), 168))}, "r", fleet.Interrupted, 168, "stopped"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var steps []document.Step
			for i, s := range test.steps {
				s.Name, s.Action = "s"+string(rune('0'+i)), "a:b"
				steps = append(steps, s.Step)
			}
			var outcomes []Outcome
			ran := ""
			for i, s := range test.steps {
				o := before(steps, outcomes, s.plugin, document.PlatformLinux)
				switch {
				case o == nil:
					ran += "r"
					end := after(&steps[i], s.end)
					o = &end
				case o.Skipped:
					ran += "s"
				default:
					ran += "f"
				}
				outcomes = append(outcomes, *o)
			}
			whole := overall(steps, outcomes)
			if ran != test.ran || whole.State != test.state || whole.Code != test.code || !strings.Contains(whole.Reason, test.words) {
				t.Errorf("ran %s, %+v, want %s, %v, code %d, %q", ran, whole, test.ran, test.state, test.code, test.words)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	base := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	tk := &ticket.Ticket{NotBefore: base.UnixNano(), NotAfter: base.Add(time.Minute).UnixNano(), Expires: base.Add(time.Hour).UnixNano()}
	denied := fleet.Errorf(fleet.Denied, "older")
	waiting := fleet.Errorf(fleet.Unavailable, "waits")
	tests := []struct {
		name   string
		now    time.Duration
		known  bool
		admits error
		state  State
		result fleet.InvocationState
		forget bool
	}{
		{"in time", 0, true, nil, Accepted, 0, false},
		{"at the last moment", time.Minute, true, nil, Accepted, 0, false},
		{"just too late", time.Minute + 1, true, nil, Refused, fleet.DeliveryTimedOut, false},
		{"a year too late", 365 * 24 * time.Hour, true, nil, Refused, fleet.DeliveryTimedOut, false},
		{"a minute too early", -time.Minute, true, nil, Accepted, 0, false},
		{"more than a minute too early", -time.Minute - 1, true, nil, NotReady, 0, false},
		{"no time", 0, false, nil, NotReady, 0, false},
		{"no journal yet", 0, true, waiting, NotReady, 0, false},
		{"older than the journal", 0, true, denied, Refused, fleet.Undeliverable, true},
		{"older than the journal and too late: it may have run", time.Hour, true, denied, Refused, fleet.Undeliverable, true},
		{"older than the journal, no time", 0, false, denied, Refused, fleet.Undeliverable, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := judge(tk, base.Add(test.now), test.known, test.admits)
			if got.state != test.state || got.result != test.result || got.forget != test.forget || (got.reason == "") != (test.state == Accepted) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestSteer(t *testing.T) {
	base := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	tk := &ticket.Ticket{NotBefore: base.UnixNano(), NotAfter: base.Add(time.Minute).UnixNano()}
	tests := []struct {
		name       string
		starts     int
		idempotent bool
		now        time.Duration
		known      bool
		want       course
	}{
		{"new", 0, false, 0, true, courseRun},
		{"new, last moment", 0, false, time.Minute, true, courseRun},
		{"new, late", 0, false, time.Minute + 1, true, courseLate},
		{"new, no time", 0, false, 0, false, courseWait},
		{"new, early", 0, false, -time.Minute - 1, true, courseWait},
		{"started", 1, false, 0, true, courseInterrupt},
		{"started, no time", 1, false, 0, false, courseInterrupt},
		{"started, late", 1, false, time.Hour, true, courseInterrupt},
		{"started, may be repeated", 1, true, 0, true, courseRun},
		{"started twice, may be repeated", 2, true, 0, true, courseRun},
		{"started, may be repeated, late", 1, true, time.Hour, true, courseInterrupt},
		{"started, may be repeated, no time", 1, true, 0, false, courseWait},
		{"new, may be repeated, late", 0, true, time.Hour, true, courseLate},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := steer(&journal.Entry{Starts: test.starts}, tk, test.idempotent, base.Add(test.now), test.known); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// TestSteerWithinTheTicket: one voter's word when a staged command begins does not
// reach past what k voters signed, whatever the journal holds.
func TestSteerWithinTheTicket(t *testing.T) {
	base := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	tk := &ticket.Ticket{Kind: ticket.KindStaged, NotBefore: base.UnixNano(), NotAfter: base.Add(time.Hour).UnixNano()}
	for _, test := range []struct {
		startBy, now time.Duration
		want         course
	}{
		{time.Minute, time.Minute, courseRun},
		{time.Minute, time.Minute + 1, courseLate},
		{2 * time.Hour, time.Hour, courseRun},
		{2 * time.Hour, time.Hour + 1, courseLate},
	} {
		e := &journal.Entry{StartBy: base.Add(test.startBy).UnixNano()}
		if got := steer(e, tk, false, base.Add(test.now), true); got != test.want {
			t.Errorf("until %s, at %s: got %d, want %d", test.startBy, test.now, got, test.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	for tries := 1; tries < 100; tries++ {
		for _, chance := range []float64{0, 0.5, 0.999} {
			d := backoff(tries, fleet.Unavailable, chance)
			if d < firstBackoff/2 || d > maxBackoff {
				t.Fatalf("try %d: %v", tries, d)
			}
		}
	}
	if first, second := backoff(1, 0, 1), backoff(2, 0, 1); first != time.Second || second != 2*time.Second {
		t.Errorf("first tries wait %v and %v", first, second)
	}
	if d := backoff(4, fleet.Denied, 1); d != denialBackoff {
		t.Errorf("a denial waits %v", d)
	}
}
