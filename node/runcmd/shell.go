package runcmd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fleet/node/document"
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

// shellInputs are the inputs of a step.
type shellInputs struct {
	script  string
	dir     string
	timeout time.Duration
}

func parseShellInputs(s *document.Step) (shellInputs, error) {
	var in shellInputs
	for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
		if name != "runCommand" && name != "workingDirectory" && name != "timeoutSeconds" {
			return in, fmt.Errorf("%s has no input %.64q", s.Action, name)
		}
	}
	lines, ok := document.Strings(s.Inputs["runCommand"])
	if !ok {
		return in, errors.New("runCommand must be a list of texts")
	}
	in.script = strings.Join(lines, "\n") + "\n"
	if strings.TrimSpace(in.script) == "" {
		return in, errors.New("runCommand is empty")
	}
	switch v := s.Inputs["workingDirectory"].(type) {
	case nil:
	case string:
		in.dir = v
	default:
		return in, errors.New("workingDirectory must be text")
	}
	var err error
	in.timeout, err = s.Timeout()
	return in, err
}

// Run runs the step's script.
func (Shell) Run(ctx context.Context, t *Task) Outcome {
	in, err := parseShellInputs(t.Step)
	if err != nil {
		return failed("%v", err)
	}
	dir, err := workingDirectory(in.dir, t)
	if err != nil {
		return failed("%v", err)
	}
	name := fmt.Sprintf("script-%d", t.Number)
	if err := process.WriteScript(t.Dir, name, []byte(in.script), t.Account); err != nil {
		return failed("%v", err)
	}
	path := filepath.Join(t.DirPath, name)
	args := []string{"/bin/sh", path}
	if strings.HasPrefix(in.script, "#!") {
		args = []string{path}
	}
	exit, err := t.Start(ctx, process.Spec{
		Args: args, Dir: dir, Env: t.Env, Stdout: t.Stdout, Stderr: t.Stderr,
		Timeout: in.timeout, Grace: grace, Limits: scriptLimits,
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return StoppedOutcome(-1)
	case err != nil:
		return failed("%v", err)
	}
	return shellOutcome(exit, in.timeout, t.Limits)
}

// shellOutcome puts the end of a script into words.
func shellOutcome(exit process.Exit, timeout time.Duration, limits process.Limits) Outcome {
	o := Outcome{State: fleet.Success, Code: int32(exit.Code)}
	switch {
	case exit.Cancelled:
		o = StoppedOutcome(int32(exit.Code))
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
	if exit.Uncontained != "" {
		notes = append(notes, "it ran without a control group: "+exit.Uncontained)
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
