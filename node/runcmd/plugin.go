package runcmd

import (
	"context"
	"errors"
	"io"
	"os"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/process"
)

// Plugin runs the steps of one action. Run is called from several goroutines
// at once. It returns when everything that the step started and that does not
// outlive it has ended; when ctx ends, it ends the step and answers with
// StoppedOutcome(ctx, code). A plugin that panics fails its step.
type Plugin interface {
	Run(ctx context.Context, t *Task) Outcome
}

// Plugins are the plugins of a release by action. A nil one exists, but not on
// this platform: its steps are skipped. A step of any other action fails.
type Plugins map[string]Plugin

func (p Plugins) know(action string) knowledge {
	plugin, ok := p[action]
	switch {
	case !ok:
		return pluginUnknown
	case plugin == nil:
		return pluginUnsupported
	}
	return pluginThere
}

// Task is one step that a plugin is to run.
type Task struct {
	Command fleet.CommandID
	Attempt uint32
	Step    *document.Step
	Number  int // of the step in its document, from 0

	Account process.Account // that the step is to run as
	Env     []string        // the whole environment of its processes
	Limits  process.Limits  // of the control group of its command, to name them

	// Dir is a directory of this invocation alone, empty at its first step and
	// removed after its last one; DirPath is where it is. It is the account's.
	Dir     *os.Root
	DirPath string

	Stdout, Stderr io.Writer // never fail

	// Alone waits until no other command runs on this host, and lets none begin
	// until release is called: for a step that ends the agent, which would cut
	// them off. It fails when another step waits or is alone already.
	Alone func(ctx context.Context) (release func(), err error)

	// Start starts a process of this step, under its account, and waits for
	// it. An error means that nothing ran.
	Start process.Starter
}

// StoppedOutcome is that of a step whose ctx ended: it was cancelled, or this
// host's agent stops.
func StoppedOutcome(ctx context.Context, code int32) Outcome {
	if errors.Is(context.Cause(ctx), errCancelled) {
		return Outcome{State: fleet.Cancelled, Code: code, Reason: "cancelled while it ran"}
	}
	return Outcome{State: fleet.Interrupted, Code: code, Reason: "the agent of this host was stopped while the command ran"}
}
