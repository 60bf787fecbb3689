package runcmd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/process"
)

// Actions whose plugins run scripts, besides ActionShell.
const (
	// ActionPowerShell is SSM's plugin that runs PowerShell scripts.
	ActionPowerShell = "aws:runPowerShellScript"

	// ActionScript is ours: the inputs of SSM's plugins, and besides the
	// variables of the environment and the shell.
	ActionScript = "fleet:runScript"
)

// PowerShell is the plugin of ActionPowerShell. It runs wherever PowerShell is
// installed; documents say by their preconditions where they mean to.
type PowerShell struct{}

// Run runs the step's script.
func (PowerShell) Run(ctx context.Context, t *Task) Outcome {
	in, err := parseScriptInputs(t.Step)
	if err != nil {
		return failed("%v", err)
	}
	in.shell = shellPowerShell
	return runScript(ctx, t, in)
}

// Script is the plugin of ActionScript.
type Script struct{}

// Run runs the step's script.
func (Script) Run(ctx context.Context, t *Task) Outcome {
	in, err := parseScriptInputs(t.Step, "environment", "shell")
	if err != nil {
		return failed("%v", err)
	}
	return runScript(ctx, t, in)
}

// Values of the input shell.
const (
	shellAuto       = "auto"
	shellSh         = "sh"
	shellBash       = "bash"
	shellPowerShell = "powershell"
)

// scriptInputs are the inputs of a step that runs a script.
type scriptInputs struct {
	script  string
	dir     string
	timeout time.Duration
	env     []string
	shell   string // shellAuto when the step does not say
}

// parseScriptInputs reads them; more are the inputs that this plugin has and
// SSM's do not.
func parseScriptInputs(s *document.Step, more ...string) (scriptInputs, error) {
	in := scriptInputs{shell: shellAuto}
	known := append([]string{"runCommand", "workingDirectory", "timeoutSeconds"}, more...)
	for _, name := range slices.Sorted(maps.Keys(s.Inputs)) {
		if !slices.Contains(known, name) {
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
	if v, there := s.Inputs["environment"]; there {
		if in.env, ok = document.Strings(v); !ok {
			return in, errors.New("environment must be a list of texts")
		}
		if err := CheckEnvironment(in.env); err != nil {
			return in, err
		}
	}
	if v, there := s.Inputs["shell"]; there {
		in.shell, _ = v.(string) // anything else is "", which is none of them
		if !slices.Contains([]string{shellAuto, shellSh, shellBash, shellPowerShell}, in.shell) {
			return in, fmt.Errorf("shell must be %s, %s, %s or %s", shellAuto, shellSh, shellBash, shellPowerShell)
		}
	}
	var err error
	in.timeout, err = s.Timeout()
	return in, err
}

// reserved begin the names of the variables that say what runs where: a script
// may rely on them, so nobody else sets them.
var reserved = []string{"FLEET_", "SSM_", "AWS_SSM_"}

// CheckEnvironment refuses variables that a command may not bring: what
// process.CheckEnv refuses, and names that are fleet's own. The error never
// holds a value.
func CheckEnvironment(env []string) error {
	if err := process.CheckEnv(env); err != nil {
		return err
	}
	for _, s := range env {
		name, _, _ := strings.Cut(s, "=")
		for _, r := range reserved {
			if strings.HasPrefix(strings.ToUpper(name), r) {
				return fleet.Errorf(fleet.Invalid, "environment: %.64s may not be set: names that begin with %s are fleet's own", name, r)
			}
		}
	}
	return nil
}

// mergeEnv is the environment of the host's making with variables of the
// command's, which count first.
func mergeEnv(base, own []string, system string) []string {
	same := func(name string) string { return name }
	if system == "windows" { // where Path and PATH are one variable
		same = strings.ToUpper
	}
	names := make(map[string]bool, len(own))
	for _, s := range own {
		name, _, _ := strings.Cut(s, "=")
		names[same(name)] = true
	}
	all := make([]string, 0, len(base)+len(own))
	for _, s := range base {
		if name, _, _ := strings.Cut(s, "="); !names[same(name)] {
			all = append(all, s)
		}
	}
	return append(all, own...)
}

// runScript writes a script to a file of the command's directory and gives it
// to its interpreter.
func runScript(ctx context.Context, t *Task, in scriptInputs) Outcome {
	dir, err := workingDirectory(in.dir, t)
	if err != nil {
		return failed("%v", err)
	}
	name, text := fmt.Sprintf("script-%d", t.Number), in.script
	if in.powerShell(runtime.GOOS) {
		// It runs only what is called .ps1, and the one of Windows reads a file
		// without a byte order mark in the code page of the host.
		name, text = name+".ps1", "\ufeff"+text
	}
	path := filepath.Join(t.DirPath, name)
	args, err := in.interpreter(runtime.GOOS, path)
	if err != nil {
		return failed("%v", err)
	}
	if err := process.WriteScript(t.Dir, name, []byte(text), t.Account); err != nil {
		return failed("%v", err)
	}
	exit, err := t.Start(ctx, process.Spec{
		Args: args, Dir: dir, Env: mergeEnv(t.Env, in.env, runtime.GOOS), Stdout: t.Stdout, Stderr: t.Stderr,
		Timeout: in.timeout, Grace: grace, Limits: scriptLimits,
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return StoppedOutcome(ctx, -1)
	case err != nil:
		return failed("%v", err)
	}
	return shellOutcome(ctx, exit, in.timeout, t.Limits)
}

// powerShell reports whether a script is for PowerShell on a system.
func (in *scriptInputs) powerShell(goos string) bool {
	return in.shell == shellPowerShell || in.shell == shellAuto && goos == "windows"
}

// Where the shells are that not every host has.
var (
	bashPaths       = []string{"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"}
	powerShellPaths = []string{"/usr/bin/pwsh", "/usr/local/bin/pwsh", "/opt/microsoft/powershell/7/pwsh", "/snap/bin/pwsh"}
)

// interpreter is what runs the script at path.
func (in *scriptInputs) interpreter(goos, path string) ([]string, error) {
	switch {
	case in.powerShell(goos):
		places := powerShellPaths
		if goos == "windows" {
			places = []string{
				filepath.Join(os.Getenv("ProgramFiles"), "PowerShell", "7", "pwsh.exe"),
				filepath.Join(os.Getenv("SystemRoot"), "System32", "WindowsPowerShell", "v1.0", "powershell.exe"),
			}
		}
		shell, err := firstFile("PowerShell", places)
		return []string{shell, "-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", path}, err
	case in.shell == shellBash:
		shell, err := firstFile("bash", bashPaths)
		return []string{shell, path}, err
	case goos == "windows":
		return nil, fmt.Errorf("the shell %s is not on Windows: --shell powershell", in.shell)
	case in.shell == shellAuto && strings.HasPrefix(in.script, "#!"):
		return []string{path}, nil
	}
	return []string{"/bin/sh", path}, nil
}

// firstFile is the first of some places that is there.
func firstFile(what string, places []string) (string, error) {
	for _, p := range places {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && filepath.IsAbs(p) {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed on this host: none of %s is there", what, strings.Join(places, ", "))
}
