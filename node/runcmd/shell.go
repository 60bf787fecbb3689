package runcmd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fleet/node/fleet"
	"fleet/node/process"
)

// ActionShell is SSM's plugin that runs shell scripts.
const ActionShell = "aws:runShellScript"

// grace is how long a script may clean up after SIGTERM.
const grace = 5 * time.Second

// scriptLimits bound each script. Memory, processes and CPU are limits of the
// command's control group, which the host is configured with.
var scriptLimits = process.Limits{NoCore: true}

// Shell is the plugin of ActionShell: it writes the commands to a file and
// gives it to /bin/sh, or to the interpreter that its first line names (#!).
type Shell struct{}

// Run runs the step's script.
func (Shell) Run(ctx context.Context, t *Task) Outcome {
	in, err := parseScriptInputs(t.Step)
	if err != nil {
		return failed("%v", err)
	}
	return runScript(ctx, t, in)
}

// shellOutcome puts the end of a script into words.
func shellOutcome(ctx context.Context, exit process.Exit, timeout time.Duration, limits process.Limits) Outcome {
	o := Outcome{State: fleet.Success, Code: int32(exit.Code)}
	switch {
	case exit.Cancelled:
		o = StoppedOutcome(ctx, int32(exit.Code))
	case exit.TimedOut:
		o.State, o.Reason = fleet.ExecutionTimedOut, fmt.Sprintf("not done after %s, and ended", timeout)
	case exit.Signal != 0:
		o.State, o.Reason = fleet.Failed, fmt.Sprintf("ended by signal %d", exit.Signal)
	case exit.Code != 0:
		o.State, o.Reason = fleet.Failed, fmt.Sprintf("exit code %d", exit.Code)
	}
	var notes []string
	if o.Reason != "" {
		notes = append(notes, o.Reason)
	}
	if exit.MemoryKills > 0 {
		notes = append(notes, fmt.Sprintf("killed: memory limit of %s reached by %d of its processes", size(limits.Memory), exit.MemoryKills))
	}
	if exit.TasksRefused > 0 {
		notes = append(notes, fmt.Sprintf("limit of %d processes reached", limits.Tasks))
	}
	if exit.Overrun {
		if o.State == fleet.Success {
			o.State = fleet.Failed
		}
		notes = append(notes, "the processes that it left were killed")
	}
	if exit.Uncontained != "" {
		notes = append(notes, "it ran without a control group: "+exit.Uncontained)
	}
	if exit.Unbound != "" {
		notes = append(notes, "it ran without these limits: "+exit.Unbound)
	}
	if exit.Survivors > 0 {
		notes = append(notes, fmt.Sprintf("%d of its processes could not be killed: the kernel holds them", exit.Survivors))
	}
	if exit.Held {
		notes = append(notes, "a process that it left running still had its output open: what that prints is lost")
	}
	o.Reason = strings.Join(notes, "; ")
	return o
}

// size is an amount of memory for a person.
func size(n uint64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// workingDirectory is where a script begins: an absolute path, one below the
// invocation's own downloads, or by default the home of the account.
func workingDirectory(given string, t *Task) (string, error) {
	switch {
	case given == "":
		if info, err := os.Stat(t.Account.Home); err == nil && info.IsDir() && filepath.IsAbs(t.Account.Home) {
			return t.Account.Home, nil
		}
		return filepath.VolumeName(t.DirPath) + string(filepath.Separator), nil
	case filepath.IsAbs(given):
		return filepath.Clean(given), nil
	case !filepath.IsLocal(given):
		return "", fmt.Errorf("workingDirectory %.200q leaves the directory of the command", given)
	}
	return filepath.Join(t.DirPath, "downloads", given), nil
}
