//go:build linux || darwin

package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
)

// sigNone asks whether a process is there.
const sigNone = syscall.Signal(0)

const testPath = "PATH=/usr/local/bin:/usr/bin:/bin"

// helperVariable turns the test binary into a parent that dies while its child
// is held at the gate.
const helperVariable = "PROCESS_TEST_DIES_AT_GATE"

// leakyVariable turns the test binary into a parent with groups, descriptors
// and a umask that its child, a script of another user, must not get.
const leakyVariable = "PROCESS_TEST_LEAKY"

func TestMain(m *testing.M) {
	if witness := os.Getenv(helperVariable); witness != "" {
		_, _ = Start(context.Background(), Spec{
			Args:    []string{"/bin/sh", "-c", "echo ran >> " + witness},
			Spawned: func(id Identity) error { fmt.Println(id.PID); os.Exit(0); return nil },
		})
		os.Exit(3)
	}
	if text := os.Getenv(leakyVariable); text != "" {
		_ = syscall.Setgroups([]int{4, 27}) // what a child must not get
		syscall.Umask(0o077)
		_, err := Run(context.Background(), Spec{
			Args: []string{"/bin/sh", "-c", text}, Env: []string{testPath}, User: "nobody", Stdout: os.Stdout, Stderr: os.Stderr,
		})
		if err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// script is a spec that runs text in a shell under a mark of its own.
func script(t *testing.T, text string) Spec {
	t.Helper()
	return Spec{
		Args: []string{"/bin/sh", "-c", text},
		Env:  []string{testPath},
		Mark: "test/" + strconv.FormatInt(time.Now().UnixNano(), 36),
	}
}

func run(t *testing.T, spec Spec) Exit {
	t.Helper()
	exit, err := Run(t.Context(), spec)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	return exit
}

// waitFile returns the content of a file once it ends in a line break.
func waitFile(t *testing.T, path string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil && bytes.HasSuffix(b, []byte("\n")) {
			return string(b)
		}
	}
	t.Fatalf("%s was not written", path)
	return ""
}

func TestRunSaysHowItEnded(t *testing.T) {
	tests := []struct {
		name   string
		script string
		code   int
		signal int
		stdout string
		stderr string
	}{
		{name: "success", script: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		{name: "exit code", script: "exit 3", code: 3},
		{name: "high exit code", script: "exit 255", code: 255},
		{name: "own signal", script: "kill -9 $$", code: 137, signal: 9},
		{name: "no descriptor of the gate is left", script: `(echo x >&3) 2>/dev/null || echo closed`, stdout: "closed\n"},
		{name: "stdin is empty", script: "cat; echo end", stdout: "end\n"},
		{name: "root directory", script: "pwd", stdout: "/\n"},
		{name: "no output", script: ":"},
		{name: "binary output", script: `printf '\000\377\n\200'`, stdout: "\x00\xff\n\x80"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			spec := script(t, test.script)
			spec.Stdout, spec.Stderr = &stdout, &stderr
			exit := run(t, spec)
			want := Exit{Code: test.code, Signal: test.signal}
			if exit != want {
				t.Errorf("exit %+v, want %+v", exit, want)
			}
			if stdout.String() != test.stdout || stderr.String() != test.stderr {
				t.Errorf("output %q and %q, want %q and %q", stdout.String(), stderr.String(), test.stdout, test.stderr)
			}
		})
	}
}

func TestOnlyTheBuiltEnvironmentArrives(t *testing.T) {
	t.Setenv("LD_PRELOAD_LOOKALIKE", "inherited")
	t.Setenv("SECRET", "inherited")
	var out bytes.Buffer
	nasty := "a\"b'c$(id)`id`\n;rm -rf / # \\ \xff"
	spec := Spec{
		Args:   []string{"/usr/bin/env", "-0"},
		Env:    []string{testPath, "VALUE=" + nasty},
		Mark:   "m-1",
		Stdout: &out,
	}
	run(t, spec)
	got := strings.Split(strings.TrimSuffix(out.String(), "\x00"), "\x00")
	// The shell of the gate adds where it was started.
	got = slices.DeleteFunc(got, func(s string) bool {
		return strings.HasPrefix(s, "PWD=") || strings.HasPrefix(s, "OLDPWD=") || strings.HasPrefix(s, "SHLVL=") || strings.HasPrefix(s, "_=")
	})
	slices.Sort(got)
	want := []string{MarkVariable + "=m-1", testPath, "VALUE=" + nasty}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
}

func TestCheckEnv(t *testing.T) {
	tests := []struct {
		name string
		env  []string
		kind fleet.Kind
	}{
		{name: "empty"},
		{name: "plain", env: []string{"A=1", "b_2=", "_X=a=b"}},
		{name: "longest", env: []string{"A=" + strings.Repeat("x", MaxEnvValue-2)}},
		{name: "too long", env: []string{"A=" + strings.Repeat("x", MaxEnvValue-1)}, kind: fleet.TooLarge},
		{name: "no equals sign", env: []string{"A"}, kind: fleet.Invalid},
		{name: "no name", env: []string{"=1"}, kind: fleet.Invalid},
		{name: "name with a space", env: []string{"A B=1"}, kind: fleet.Invalid},
		{name: "name with a digit first", env: []string{"1A=1"}, kind: fleet.Invalid},
		{name: "NUL", env: []string{"A=a\x00b"}, kind: fleet.Invalid},
		{name: "twice", env: []string{"A=1", "A=2"}, kind: fleet.Invalid},
		{name: "loader", env: []string{"LD_PRELOAD=/x"}, kind: fleet.Invalid},
		{name: "any of the loader", env: []string{"LD_FUTURE=/x"}, kind: fleet.Invalid},
		{name: "macOS loader", env: []string{"DYLD_INSERT_LIBRARIES=/x"}, kind: fleet.Invalid},
		{name: "iconv", env: []string{"GCONV_PATH=/x"}, kind: fleet.Invalid},
		{name: "bash", env: []string{"BASH_ENV=/x"}, kind: fleet.Invalid},
		{name: "bash function", env: []string{"BASH_FUNC_ls=() { :; }"}, kind: fleet.Invalid},
		{name: "sh", env: []string{"ENV=/x"}, kind: fleet.Invalid},
		{name: "field separator", env: []string{"IFS=x"}, kind: fleet.Invalid},
		{name: "profiler of .NET Framework", env: []string{"COR_PROFILER_PATH=/x"}, kind: fleet.Invalid},
		{name: "profiler of .NET", env: []string{"CORECLR_ENABLE_PROFILING=1"}, kind: fleet.Invalid},
		{name: "profiler, as Windows reads names", env: []string{"CoreClr_Profiler=x"}, kind: fleet.Invalid},
		{name: "startup hooks of .NET", env: []string{"DOTNET_STARTUP_HOOKS=/x"}, kind: fleet.Invalid},
		{name: "dependencies of .NET", env: []string{"DOTNET_ADDITIONAL_DEPS=/x"}, kind: fleet.Invalid},
		{name: "modules of PowerShell", env: []string{"PSModulePath=/x"}, kind: fleet.Invalid},
		{name: "modules of PowerShell, in upper case", env: []string{"PSMODULEPATH=/x"}, kind: fleet.Invalid},
		{name: "not quite .NET", env: []string{"CORE=x", "DOTNET_ROOT=y", "CORECLR=z", "env=1", "ifs=2"}},
		{name: "our mark", env: []string{MarkVariable + "=x"}, kind: fleet.Invalid},
		{name: "not quite the loader", env: []string{"LDFLAGS=x", "ENVIRONMENT=y"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := CheckEnv(test.env)
			if (err == nil) != (test.kind == 0) || err != nil && fleet.KindOf(err) != test.kind {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
		})
	}
	if err := CheckEnv([]string{"A=hush\x00"}); strings.Contains(err.Error(), "hush") {
		t.Errorf("the error %q shows a value", err)
	}
}

func TestStartRefusals(t *testing.T) {
	good := Spec{Args: []string{"/bin/sh", "-c", ":"}}
	tests := []struct {
		name   string
		change func(*Spec)
		kind   fleet.Kind
	}{
		{"no program", func(s *Spec) { s.Args = nil }, fleet.Invalid},
		{"relative program", func(s *Spec) { s.Args = []string{"sh"} }, fleet.Invalid},
		{"missing program", func(s *Spec) { s.Args = []string{"/nonexistent/x"} }, fleet.NotFound},
		{"directory as program", func(s *Spec) { s.Args = []string{"/bin"} }, fleet.NotFound},
		{"NUL in an argument", func(s *Spec) { s.Args = append(slices.Clone(s.Args), "a\x00b") }, fleet.Invalid},
		{"relative directory", func(s *Spec) { s.Dir = "tmp" }, fleet.Invalid},
		{"missing directory", func(s *Spec) { s.Dir = "/nonexistent" }, fleet.NotFound},
		{"loader variable", func(s *Spec) { s.Env = []string{"LD_PRELOAD=x"} }, fleet.Invalid},
		{"bad mark", func(s *Spec) { s.Mark = "a b" }, fleet.Invalid},
		{"negative timeout", func(s *Spec) { s.Timeout = -1 }, fleet.Invalid},
		{"unknown user", func(s *Spec) { s.User = "no-such-user-here" }, fleet.NotFound},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := good
			test.change(&spec)
			spawned := false
			spec.Spawned = func(Identity) error { spawned = true; return nil }
			_, err := Start(t.Context(), spec)
			if fleet.KindOf(err) != test.kind || spawned {
				t.Errorf("got %v (spawned %v), want kind %v", err, spawned, test.kind)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: got %v", err)
	}
}

func TestNothingRunsBeforeSpawnedReturns(t *testing.T) {
	witness := filepath.Join(t.TempDir(), "ran")
	refuse := errors.New("journal is full")
	spec := script(t, "echo ran > "+witness)
	var id Identity
	spec.Spawned = func(i Identity) error { id = i; return refuse }
	if _, err := Start(t.Context(), spec); !errors.Is(err, refuse) {
		t.Fatalf("got %v, want the error of Spawned", err)
	}
	if _, err := os.Stat(witness); err == nil {
		t.Error("the script ran although Spawned refused")
	}
	if id.PID <= 1 || id.Mark != spec.Mark {
		t.Errorf("identity %+v", id)
	}
}

func TestNothingRunsWhenTheParentDiesAtTheGate(t *testing.T) {
	witness := filepath.Join(t.TempDir(), "ran")
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), helperVariable+"="+witness)
	out, err := parent.Output() // returns when the child, too, has closed stdout
	if err != nil {
		t.Fatalf("parent: %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatalf("parent printed %q", out)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if p, err := os.FindProcess(pid); err != nil || p.Signal(sigNone) != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("child %d still waits at its gate", pid)
		}
	}
	if _, err := os.Stat(witness); err == nil {
		t.Error("the script ran although its parent died before it was let through")
	}
}

func TestOutputIsCompleteAndExact(t *testing.T) {
	const total = 20 << 20
	hash := sha256.New()
	var n atomic.Int64
	spec := script(t, fmt.Sprintf("head -c %d /dev/zero; head -c 1000 /dev/zero >&2", total))
	spec.Stdout = writerFunc(func(b []byte) (int, error) { n.Add(int64(len(b))); return hash.Write(b) })
	var stderr bytes.Buffer
	spec.Stderr = &stderr
	exit := run(t, spec)
	if exit.Code != 0 || n.Load() != total || stderr.Len() != 1000 {
		t.Fatalf("exit %+v with %d and %d bytes, want %d and 1000", exit, n.Load(), stderr.Len(), total)
	}
	want := sha256.Sum256(make([]byte, total))
	if !bytes.Equal(hash.Sum(nil), want[:]) {
		t.Error("the bytes differ")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestAFailingWriterDoesNotHoldTheChild(t *testing.T) {
	full := errors.New("disk is full")
	spec := script(t, "head -c 1000000 /dev/zero; exit 4")
	spec.Stdout = writerFunc(func([]byte) (int, error) { return 0, full })
	if exit := run(t, spec); exit.Code != 4 || !errors.Is(exit.Output, full) {
		t.Errorf("exit %+v, want code 4 and the writer's error", exit)
	}
}

func TestWaitReturnsTheSameToEverybody(t *testing.T) {
	p, err := Start(t.Context(), script(t, "exit 5"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if exit := p.Wait(); exit.Code != 5 {
				t.Errorf("exit %+v", exit)
			}
		})
	}
	wg.Wait()
}

func TestAGrandchildThatHoldsStdoutDoesNotHoldWait(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	var out bytes.Buffer
	spec := script(t, "sleep 600 & echo $! > "+pidFile+"; echo done")
	spec.Stdout = &out
	spec.Drain = 200 * time.Millisecond
	begin := time.Now()
	exit := run(t, spec)
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("took %v", took)
	}
	if exit.Code != 0 || !exit.Held || exit.TimedOut || out.String() != "done\n" {
		t.Errorf("exit %+v, output %q", exit, out.String())
	}
	pid, err := strconv.Atoi(strings.TrimSpace(waitFile(t, pidFile)))
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := os.FindProcess(pid)
	if err != nil || daemon.Signal(sigNone) != nil {
		t.Errorf("the daemon that the script left was killed: %v", err)
		return
	}
	_ = daemon.Kill()
}

func TestScriptOfAShebang(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	own, err := LookupUser("")
	if err != nil {
		t.Fatal(err)
	}
	// Many at once: a fork elsewhere must not find a script open for writing.
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			name := fmt.Sprintf("s%d", i)
			if err := WriteScript(root, name, []byte("#!/bin/sh\necho $0\n"), own); err != nil {
				t.Error(err)
				return
			}
			var out, errOut bytes.Buffer
			exit, err := Run(t.Context(), Spec{Args: []string{filepath.Join(dir, name)}, Stdout: &out, Stderr: &errOut})
			if err != nil || exit.Code != 0 || out.String() != filepath.Join(dir, name)+"\n" {
				t.Errorf("script %d: %v %+v %q %q", i, err, exit, out.String(), errOut.String())
			}
		})
	}
	wg.Wait()
	if err := WriteScript(root, "s0", nil, own); !errors.Is(err, os.ErrExist) {
		t.Errorf("an existing script was overwritten: %v", err)
	}
	if err := WriteScript(root, "../x", nil, own); err == nil {
		t.Error("a script was written outside the directory")
	}
}

func BenchmarkDrain(b *testing.B) {
	b.SetBytes(64 << 20)
	for b.Loop() {
		_, err := Run(b.Context(), Spec{Args: []string{"/bin/sh", "-c", "head -c 67108864 /dev/zero"}, Env: []string{testPath}, Stdout: io.Discard})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	for b.Loop() {
		if _, err := Run(b.Context(), Spec{Args: []string{"/bin/true"}}); err != nil {
			b.Fatal(err)
		}
	}
}

// contextOf is a context that a test ends.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
