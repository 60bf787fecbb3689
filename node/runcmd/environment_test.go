package runcmd

import (
	"slices"
	"strings"
	"testing"

	"fleet/node/process"
)

// A program of Windows does not start without SystemRoot, and finds nothing in
// the places of Unix.
func TestEnvironmentOfAScript(t *testing.T) {
	vars := map[string]string{"SystemRoot": `D:\Windows`, "ProgramData": `D:\ProgramData`, "SECRET": "x", "PATH": `C:\evil`}
	getenv := func(name string) string { return vars[name] }
	windows := scriptEnvironment("windows", process.Account{Name: `ACME\anna`, Home: `D:\Users\anna`}, getenv)
	for _, want := range []string{"SystemRoot=D:\\Windows", "USERNAME=anna", `ComSpec=D:\Windows\System32\cmd.exe`,
		`USERPROFILE=D:\Users\anna`, `TEMP=D:\Users\anna\AppData\Local\Temp`, `ProgramData=D:\ProgramData`} {
		if !slices.Contains(windows, want) {
			t.Errorf("%q is not in %q", want, windows)
		}
	}
	if !strings.HasPrefix(windows[0], `PATH=D:\Windows\System32;`) || strings.Contains(strings.Join(windows, "\n"), "SECRET") {
		t.Errorf("got %q", windows)
	}
	system := scriptEnvironment("windows", process.Account{Name: `NT AUTHORITY\SYSTEM`, Home: `D:\WINDOWS\system32\config\systemprofile`}, getenv)
	if !slices.Contains(system, `TEMP=D:\Windows\Temp`) {
		t.Errorf("the system's own user: %q", system)
	}
	if unix := scriptEnvironment("linux", process.Account{Name: "root"}, getenv); !slices.Contains(unix, "HOME=/") || !strings.HasPrefix(unix[0], "PATH=/usr/local/sbin:") {
		t.Errorf("got %q", unix)
	}
	for _, env := range [][]string{windows, system} {
		if err := process.CheckEnv(env); err != nil {
			t.Error(err)
		}
	}
}

// One variable has one name: on Windows whatever its letters' case.
func TestMergeEnv(t *testing.T) {
	base, own := []string{"Path=C:\\Windows", "HOME=x"}, []string{"PATH=D:\\", "home=y"}
	for system, want := range map[string][]string{
		"windows": {"PATH=D:\\", "home=y"},
		"linux":   {"Path=C:\\Windows", "HOME=x", "PATH=D:\\", "home=y"},
	} {
		if got := mergeEnv(base, own, system); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", system, got, want)
		}
	}
}
