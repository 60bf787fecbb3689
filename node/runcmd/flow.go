package runcmd

import (
	"fmt"
	"strings"

	"fleet/node/document"
	"fleet/node/fleet"
)

// Exit codes by which a script says how the document goes on, as in SSM.
const (
	exitSuccess       = 168 // the step succeeded, nothing after it runs
	exitFailure       = 169 // the step failed, nothing after it runs
	exitReboot        = 194 // on Unix: restart the host, then run the step again
	exitRebootWindows = 3010
)

// Outcome is how a step ended.
type Outcome struct {
	// State is Success, Failed, ExecutionTimedOut, Cancelled or Interrupted.
	State   fleet.InvocationState
	Skipped bool   // it was not run, and that is well: State is Success
	Code    int32  // exit code; -1 when nothing ran
	Reason  string // for a person; "" when there is nothing to say
	exits   bool   // no step after it is run, except a final one
}

func failed(format string, args ...any) Outcome {
	return Outcome{State: fleet.Failed, Code: -1, Reason: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) Outcome {
	return Outcome{State: fleet.Success, Skipped: true, Reason: fmt.Sprintf(format, args...)}
}

// knowledge is what a host knows of a step's plugin.
type knowledge uint8

const (
	pluginUnknown     knowledge = iota // no such plugin in this release
	pluginUnsupported                  // it exists, on other platforms
	pluginThere
)

// before decides whether the step that follows those with the outcomes so far
// is run: nil, or how it ends without running. The order of the questions is
// that of SSM's agent for schema 2.2.
func before(steps []document.Step, past []Outcome, plugin knowledge, platform string) *Outcome {
	i := len(past)
	s := &steps[i]
	end := func(o Outcome) *Outcome { return &o }
	final := s.Finally && i == len(steps)-1
	for j, o := range past {
		if o.exits && !final {
			return end(skipped("skipped: step %s ended the document", steps[j].Name))
		}
	}
	met, problems := s.Precondition.Met(platform)
	switch {
	case met && plugin == pluginUnknown:
		return end(failed("%s is not supported by this version of fleet", s.Action))
	case plugin != pluginThere:
		return end(skipped("skipped: %s is not for %s", s.Action, platform))
	case !met:
		return end(skipped("skipped: unsatisfied preconditions: %s", strings.Join(problems, ", ")))
	case len(problems) > 0:
		return end(failed("unrecognized precondition(s): %s", strings.Join(problems, ", ")))
	}
	return nil
}

// after is what the document makes of the outcome of a step that ran. A step
// that ran out of time has failed for onFailure, though SSM's agent goes on
// after it: whoever wrote "exit" did not want the next step to run then.
func after(s *document.Step, o Outcome) Outcome {
	if o.State == fleet.Failed && o.Code == 0 {
		o.Code = 1
	}
	say := func(text string) {
		if o.Reason != "" {
			text = o.Reason + "; " + text
		}
		o.Reason = text
	}
	exited := o.State == fleet.Success || o.State == fleet.Failed
	switch {
	case exited && o.Code == exitSuccess:
		o.State, o.exits, o.Reason = fleet.Success, true, ""
		say("exit code 168: the step succeeded, no further step is run")
	case exited && o.Code == exitFailure:
		o.State, o.exits, o.Reason = fleet.Failed, true, ""
		say("exit code 169: the step failed, no further step is run")
	case exited && (o.Code == exitReboot || o.Code == exitRebootWindows):
		o.State, o.exits, o.Reason = fleet.Failed, true, ""
		say(fmt.Sprintf("exit code %d asks for a restart of the host, which this release does not do: "+
			"restart it and run the command again", o.Code))
	case o.State == fleet.Failed && s.OnFailure == document.FailureSuccess:
		say("onFailure: the step counts as a success, no further step is run")
		o.State, o.Code, o.exits = fleet.Success, exitSuccess, true
	case (o.State == fleet.Failed || o.State == fleet.ExecutionTimedOut) && s.OnFailure != document.FailureContinue:
		say("onFailure: no further step is run")
		o.exits = true
	case o.State == fleet.Success && !o.Skipped && s.OnSuccess == document.SuccessExit:
		say("onSuccess: no further step is run")
		o.exits = true
	}
	return o
}

// precedence of states of steps for the whole, the strongest first. Interrupted
// is ours; the rest is SSM's.
var precedence = []fleet.InvocationState{fleet.Interrupted, fleet.Failed, fleet.ExecutionTimedOut, fleet.Cancelled}

// overall is the outcome of the whole document: that of the first step with
// the strongest state, or a success with the code of the last step that ran.
func overall(steps []document.Step, outcomes []Outcome) Outcome {
	for _, state := range precedence {
		for i, o := range outcomes {
			if o.State != state {
				continue
			}
			if len(steps) > 1 {
				o.Reason = fmt.Sprintf("step %s: %s", steps[i].Name, o.Reason)
			}
			return o
		}
	}
	whole := Outcome{State: fleet.Success, Skipped: true, Reason: "no step was run here"}
	for _, o := range outcomes {
		if !o.Skipped {
			whole = Outcome{State: fleet.Success, Code: o.Code}
		}
	}
	if whole.Skipped && len(outcomes) == 1 {
		whole.Reason = outcomes[0].Reason
	}
	return whole
}
