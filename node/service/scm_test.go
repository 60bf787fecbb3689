package service

import (
	"slices"
	"testing"
)

func TestServiceStates(t *testing.T) {
	for _, test := range []struct {
		facts scmFacts
		want  Status
	}{
		{scmFacts{state: 1, exit: errorNeverStarted}, Status{State: "stopped"}},
		{scmFacts{state: 1, exit: errorServiceSpecific, specific: 1}, Status{State: "stopped", Result: "exit code 1"}},
		{scmFacts{state: 1, exit: 1053}, Status{State: "stopped", Result: "error 1053 of Windows"}},
		{scmFacts{state: 2, pid: 7}, Status{State: "start pending (process 7)", Running: true}},
		{scmFacts{state: 3, pid: 7}, Status{State: "stop pending (process 7)"}},
		{scmFacts{state: 4, pid: 7}, Status{State: "running (process 7)", Running: true}},
		{scmFacts{state: 9}, Status{State: "state 9"}},
	} {
		var got Status
		test.facts.describe(&got)
		if got != test.want {
			t.Errorf("%+v: %+v, want %+v", test.facts, got, test.want)
		}
	}
	if got := scmArgs(Spec{Config: "a"}, "a"); !slices.Equal(got, []string{"agent"}) {
		t.Errorf("with the default configuration: %q", got)
	}
	if got := scmArgs(Spec{Config: "b c"}, "a"); !slices.Equal(got, []string{"agent", "--config", "b c"}) {
		t.Errorf("with another: %q", got)
	}
}
