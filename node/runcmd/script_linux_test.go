package runcmd

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/ticket"
)

// runBuiltin runs one of the documents that every release brings.
func runBuiltin(t *testing.T, name string, parameters map[string][]string) (*ticket.SignedResult, *Detail) {
	t.Helper()
	content, _, ok := document.Builtin(name)
	if !ok {
		t.Fatalf("no document %s", name)
	}
	r, d, h := runReal(t, func(w *world) *order { return w.order(1, string(content), parameters) })
	h.halt(t)
	return r, d
}

func TestScriptsOfOurDocument(t *testing.T) {
	bash := "bash"
	if _, err := firstFile("bash", bashPaths); err != nil {
		bash = ""
	}
	tests := []struct {
		name       string
		parameters map[string][]string
		state      fleet.InvocationState
		reason     string
		stdout     string
	}{
		{"auto", map[string][]string{"commands": {"echo a", "echo $0 | grep -c script"}}, fleet.Success, "", "a\n1\n"},
		{"auto with an interpreter", map[string][]string{"commands": {"#!/usr/bin/env -S sed -n 2p\nsecond\n"}}, fleet.Success, "", "second\n"},
		{"a shell that is named counts more than the first line", map[string][]string{"commands": {"#!/nonexistent/x\necho sh"}, "shell": {"sh"}}, fleet.Success, "", "sh\n"},
		{"bash", map[string][]string{"commands": {"a=(x y); echo ${a[1]}"}, "shell": {bash}}, fleet.Success, "", "y\n"},
		{"directory", map[string][]string{"commands": {"pwd"}, "workingDirectory": {"/usr/bin"}}, fleet.Success, "", "/usr/bin\n"},
		{"variables", map[string][]string{"commands": {`echo "$A-$B"`}, "environment": {"A=1", "B=2"}}, fleet.Success, "", "1-2\n"},
		{"a variable in the place of the host's", map[string][]string{"commands": {`echo "$LANG $HOME"`},
			"environment": {"LANG=de_DE.UTF-8", "HOME=/nowhere"}}, fleet.Success, "", "de_DE.UTF-8 /nowhere\n"},
		{"a variable that makes code run", map[string][]string{"commands": {"true"}, "environment": {"LD_PRELOAD=/x.so"}}, fleet.Failed, "LD_PRELOAD may not be set", ""},
		{"a variable of ours", map[string][]string{"commands": {"true"}, "environment": {"FLEET_NODE_ID=mi-1"}}, fleet.Failed, "fleet's own", ""},
		{"a variable twice", map[string][]string{"commands": {"true"}, "environment": {"A=1", "A=2"}}, fleet.Failed, "set twice", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if shell, ok := test.parameters["shell"]; ok && shell[0] == "" {
				t.Skip("no bash here")
			}
			r, d := runBuiltin(t, "Fleet-RunShellScript", test.parameters)
			if r.State != test.state || !strings.Contains(r.Reason, test.reason) || string(d.Steps[0].Stdout.Inline) != test.stdout {
				t.Errorf("got %v, %q, stdout %q; want %v, %q, %q", r.State, r.Reason, d.Steps[0].Stdout.Inline, test.state, test.reason, test.stdout)
			}
		})
	}
}

func TestVariablesReachAScriptByteForByte(t *testing.T) {
	outside := t.TempDir()
	for i, value := range nasty {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			_, d := runBuiltin(t, "Fleet-RunShellScript", map[string][]string{
				"commands": {`printf '%s' "$VALUE"`}, "environment": {"VALUE=" + value}, "workingDirectory": {outside},
			})
			if s := d.Steps[0].Stdout; s.Total != uint64(len(value)) || s.Digest != fleet.Sum([]byte(value)) {
				t.Errorf("%.40q: got %d bytes, %.40q", value, s.Total, s.Inline)
			}
		})
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Errorf("a value was run: %v, %v", left, err)
		}
	})
}

// SSM's document for PowerShell is for Windows: elsewhere its step is skipped.
func TestPowerShellIsSkippedOnLinux(t *testing.T) {
	r, d := runBuiltin(t, "AWS-RunPowerShellScript", map[string][]string{"commands": {"Write-Host x"}})
	if r.State != fleet.Success || !d.Steps[0].Skipped || !strings.Contains(d.Steps[0].Reason, "unsatisfied preconditions") {
		t.Errorf("result %v %q, step %+v", r.State, r.Reason, d.Steps[0])
	}
}

func TestInterpreter(t *testing.T) {
	script := func(shell, text string) scriptInputs { return scriptInputs{shell: shell, script: text} }
	for _, test := range []struct {
		name, goos string
		in         scriptInputs
		want       string // the words, or part of the error
	}{
		{"auto", "linux", script(shellAuto, "x"), "/bin/sh /s"},
		{"auto on a Mac", "darwin", script(shellAuto, "x"), "/bin/sh /s"},
		{"first line", "linux", script(shellAuto, "#!/usr/bin/perl\n"), "/s"},
		{"first line and a shell", "linux", script(shellSh, "#!/usr/bin/perl\n"), "/bin/sh /s"},
		{"auto on Windows", "windows", script(shellAuto, "#!/x"), "PowerShell is not installed on this host"},
		{"sh on Windows", "windows", script(shellSh, "x"), "the shell sh is not on Windows"},
	} {
		args, err := test.in.interpreter(test.goos, "/s")
		got := strings.Join(args, " ")
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	if _, err := firstFile("x", []string{"relative", t.TempDir(), "/nonexistent/x"}); err == nil {
		t.Error("what is no file was taken for one")
	}
}
