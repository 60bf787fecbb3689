package runcmd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/process"
	"fleet/node/ticket"
)

// agentVariable turns the test binary into an agent that a test kills.
const agentVariable = "RUNCMD_TEST_AGENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentVariable); dir != "" {
		agent(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runReal runs one order on a host with real processes and gives its result.
func runReal(t *testing.T, make func(w *world) *order) (*ticket.SignedResult, *Detail, *host) {
	t.Helper()
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), nil)
	h.start()
	if a := h.deliver(t, w.delivery(make(w))); a.State != Accepted {
		t.Fatalf("delivered: %+v", a)
	}
	results, details := h.reports(t, 1)
	return results[0], details[0], h
}

// steps is a document of shell steps, each with its inputs.
func steps(inputs ...map[string]any) string {
	var all []map[string]any
	for i, in := range inputs {
		all = append(all, map[string]any{"action": ActionShell, "name": fmt.Sprintf("s%d", i), "inputs": in})
	}
	b, err := json.Marshal(map[string]any{
		"schemaVersion": "2.2", "mainSteps": all,
		"parameters": map[string]any{"p": map[string]any{"type": "String", "default": "d"}},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

type in = map[string]any

func TestShellRunsForReal(t *testing.T) {
	tests := []struct {
		name    string
		inputs  []in
		state   fleet.InvocationState
		code    int32
		words   string
		stdouts []string // of each step
	}{
		{"hello", []in{{"runCommand": []string{"echo hello", "echo world"}}}, fleet.Success, 0, "", []string{"hello\nworld\n"}},
		{"exit code", []in{{"runCommand": []string{"echo x; exit 7"}}}, fleet.Failed, 7, "exit code 7", []string{"x\n"}},
		{"signal", []in{{"runCommand": []string{"kill -9 $$"}}}, fleet.Failed, 137, "signal 9", []string{""}},
		{"interpreter", []in{{"runCommand": "#!/usr/bin/env -S sed -n 2p\nsecond line\n"}}, fleet.Success, 0, "", []string{"second line\n"}},
		{"unknown interpreter", []in{{"runCommand": "#!/nonexistent/x\n"}}, fleet.Failed, 127, "", []string{""}},
		{"timeout", []in{{"runCommand": "echo before; sleep 600", "timeoutSeconds": 5}}, fleet.ExecutionTimedOut, 143, "not done after 5s", []string{"before\n"}},
		{"absolute directory", []in{{"runCommand": "pwd", "workingDirectory": "/usr/bin/../bin"}}, fleet.Success, 0, "", []string{"/usr/bin\n"}},
		{"missing directory", []in{{"runCommand": "pwd", "workingDirectory": "/nonexistent"}}, fleet.Failed, -1, "does not exist", []string{""}},
		{"directory outside", []in{{"runCommand": "pwd", "workingDirectory": "../../x"}}, fleet.Failed, -1, "leaves", []string{""}},
		{"two steps share a directory", []in{
			{"runCommand": `mkdir -p "$(dirname "$0")/downloads/sub"`},
			{"runCommand": "basename $PWD", "workingDirectory": "sub"},
		}, fleet.Success, 0, "", []string{"", "sub\n"}},
		{"168 ends well", []in{{"runCommand": "exit 168"}, {"runCommand": "echo never"}}, fleet.Success, 168, "", []string{"", ""}},
		{"no commands", []in{{"runCommand": []string{"", " "}}}, fleet.Failed, -1, "empty", []string{""}},
		{"unknown input", []in{{"runCommand": "echo", "runAs": "x"}}, fleet.Failed, -1, "runAs", []string{""}},
		{"wrong timeout", []in{{"runCommand": "echo", "timeoutSeconds": 4}}, fleet.Failed, -1, "timeoutSeconds", []string{""}},
		{"stdin is empty", []in{{"runCommand": "cat; echo end"}}, fleet.Success, 0, "", []string{"end\n"}},
		{"a daemon may stay", []in{{"runCommand": "sleep 3 & echo done"}}, fleet.Success, 0, "", []string{"done\n"}},
		{"no core", []in{{"runCommand": "ulimit -c"}}, fleet.Success, 0, "", []string{"0\n"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, d, h := runReal(t, func(w *world) *order { return w.order(1, steps(test.inputs...), nil) })
			if r.State != test.state || r.Code != test.code || !strings.Contains(r.Reason, test.words) {
				t.Errorf("got %v, code %d, %q, want %v, %d, %q", r.State, r.Code, r.Reason, test.state, test.code, test.words)
			}
			var stdouts []string
			for _, s := range d.Steps {
				stdouts = append(stdouts, string(s.Stdout.Inline))
			}
			if !slices.Equal(stdouts, test.stdouts) {
				t.Errorf("stdout %q, want %q (stderr %q)", stdouts, test.stdouts, d.Steps[0].Stderr.Inline)
			}
			h.halt(t)
			if left, err := os.ReadDir(filepath.Join(h.dir, "work")); err != nil || len(left) != 0 {
				t.Errorf("left in the directory of commands: %v, %v", left, err)
			}
		})
	}
}

func TestTheEnvironmentOfAScript(t *testing.T) {
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	_, d, h := runReal(t, func(w *world) *order {
		return w.order(1, steps(in{"runCommand": "env | sort"}), map[string][]string{"p": {"value of p"}})
	})
	var names []string
	env := map[string]string{}
	for line := range strings.Lines(string(d.Steps[0].Stdout.Inline)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
		if name != "PWD" && name != "OLDPWD" && name != "_" && name != "SHLVL" {
			names = append(names, name)
		}
	}
	want := []string{"AWS_SSM_INSTANCE_ID", "FLEET_COMMAND_ID", "FLEET_NODE_ID", "FLEET_PROCESS", "HOME", "LANG", "LOGNAME", "PATH", "SHELL",
		"SSM_COMMAND_ID", "SSM_p", "USER"}
	if !slices.Equal(names, want) {
		t.Errorf("variables %q, want %q", names, want)
	}
	if env["SSM_p"] != "value of p" || env["FLEET_COMMAND_ID"] != string(commandID(1)) || env["FLEET_NODE_ID"] != string(h.w.self()) {
		t.Errorf("environment %q", env)
	}
}

// nasty are values that a shell could take for more than text.
var nasty = []string{
	`"; touch PWNED; #`, `'; touch PWNED; '`, "$(touch PWNED)", "`touch PWNED`", "${IFS}", "$$", "a\nb\n\nc", "*", "{{ p }}", "{{ssm:/x}}",
	"\\", "\\n", "\t ", "é𝄞\u202e\x01\x1b[31m", "-n", "--help", strings.Repeat("long ", 10_000),
}

func TestValuesReachAScriptByteForByte(t *testing.T) {
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), nil)
	h.start()
	outside := t.TempDir()
	for i, value := range nasty {
		doc := steps(in{"runCommand": []string{`printf '%s' "{{ p }}"`}, "workingDirectory": outside})
		if a := h.deliver(t, w.delivery(w.order(i, doc, map[string][]string{"p": {value}}))); a.State != Accepted {
			t.Fatalf("%.20q: %+v", value, a)
		}
		_, details := h.reports(t, i+1)
		s := details[i].Steps[0].Stdout
		if s.Total != uint64(len(value)) || s.Digest != fleet.Sum([]byte(value)) {
			t.Errorf("%.40q: got %d bytes, %.40q", value, s.Total, s.Inline)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("a value was run: %v, %v", left, err)
	}
}

func TestTheLimitsOfACommandAreSaidInItsResult(t *testing.T) {
	groups := process.OpenCgroups()
	if !strings.Contains(groups.String(), "limits: processes, memory") {
		t.Skip(groups)
	}
	tests := []struct {
		name   string
		script string
		want   string
	}{
		{"memory", `exec awk 'BEGIN { s = "0123456789abcdef"; while (1) s = s s }'`, "signal 9; killed: memory limit of 32 MiB reached by 1 of its processes"},
		{"processes", `i=0; while [ $i -lt 40 ]; do sleep 600 & i=$((i+1)); done`, "limit of 20 processes reached; the processes that it left were killed"},
		{"neither", `exit 3`, "exit code 3"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { // one after the other: these worlds have one mark, and so one group
			w := newWorld(time.Now().Round(0))
			h := w.newHost(t, t.TempDir(), func(cfg *Config) {
				cfg.Cgroups, cfg.Limits = groups, process.Limits{Tasks: 20, Memory: 32 << 20}
			})
			h.start()
			h.deliver(t, w.delivery(w.shell(1, test.script)))
			results, details := h.reports(t, 1)
			if s := details[0].Steps[0]; s.State != fleet.Failed || !strings.Contains(results[0].Reason, test.want) {
				t.Errorf("got %v, %q, want %q", s.State, results[0].Reason, test.want)
			}
			for _, id := range h.spawned(t, 1) {
				if _, err := groups.KillLeftover(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// spawned are the processes of the n-th command, as the journal has them.
func (h *host) spawned(t testing.TB, n int) (ids []process.Identity) {
	t.Helper()
	e, ok := h.journal.Lookup(commandKey(n))
	if !ok {
		t.Fatal("the command is not in the journal")
	}
	for _, s := range e.Spawned {
		ids = append(ids, process.Identity{PID: s.PID, Start: s.Start, Boot: s.Boot, Mark: s.Mark})
	}
	return ids
}

func TestLargeOutputIsCappedCountedAndHashed(t *testing.T) {
	const total = 30 << 20
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), func(cfg *Config) { cfg.StreamCap = 1 << 20 })
	h.start()
	h.deliver(t, w.delivery(w.shell(1, fmt.Sprintf("head -c %d /dev/zero; head -c 5000 /dev/zero >&2", total))))
	_, details := h.reports(t, 1)
	s := details[0].Steps[0]
	if s.State != fleet.Success || s.Stdout.Total != total || s.Stdout.Stored != 1<<20 || s.Stdout.Digest != fleet.Sum(make([]byte, total)) ||
		s.Stderr.Total != 5000 || s.Stderr.Stored != 5000 || s.Stderr.Digest != s.Stderr.Blob {
		t.Errorf("step %+v", s)
	}
	b, err := h.blobs.Bytes(s.Stdout.Blob, 1<<20)
	if err != nil || len(b) != 1<<20 {
		t.Errorf("blob of %d bytes, %v", len(b), err)
	}
	if used := h.blobs.Used(); used > 1<<20+64<<10 {
		t.Errorf("%d bytes used", used)
	}
}

func TestRunsAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "runcmd") // which another user can pass through
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, dir, nil)
	h.start()
	doc := steps(
		in{"runCommand": `id -un; touch "$(dirname "$0")/mine" && echo made; echo $USER $LOGNAME`, "workingDirectory": "/"},
		in{"runCommand": "#!/bin/sh\ncat /etc/shadow", "workingDirectory": "/"},
	)
	o := w.order(1, doc, nil)
	o.ticket.RunAs = "nobody"
	h.deliver(t, w.delivery(o))
	results, details := h.reports(t, 1)
	if s := details[0].Steps; string(s[0].Stdout.Inline) != "nobody\nmade\nnobody nobody\n" || s[1].State != fleet.Failed || s[1].Stdout.Total != 0 {
		t.Errorf("result %+v, steps %+v", results[0].Result, s)
	}
}

// agent is an agent in a process of its own: it takes one order, says so, and
// runs until it is killed. Its results go to standard output.
func agent(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "begin"))
	if err != nil {
		panic(err)
	}
	ns, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		panic(err)
	}
	w := newWorld(time.Unix(0, ns))
	t := &agentTest{}
	h := w.newHost(t, dir, func(cfg *Config) {
		cfg.Cgroups = process.OpenCgroups()
		cfg.Report = func(_ context.Context, result, _ []byte, _ []fleet.Digest) (uint64, error) {
			r, err := ticket.ParseResult(result)
			if err != nil {
				return 0, err
			}
			fmt.Printf("result %s %s\n", r.State.Details(), strings.ReplaceAll(r.Reason, "\n", " "))
			return 9, nil
		}
	})
	h.start()
	if _, err := os.Stat(filepath.Join(dir, cancelFile)); err == nil {
		agentThatCancels(h, w, dir)
	}
	// With control groups, what sheds its session, parents and environment is
	// found too.
	shed := ""
	if strings.HasPrefix(process.OpenCgroups().String(), "cgroup") {
		shed = "env -i"
	}
	script := fmt.Sprintf("echo $$ >> %[1]s/witness; (setsid %[2]s sh -c 'echo $$ >> %[1]s/pids; exec sleep 600' &); sleep 600", dir, shed)
	a, err := h.Deliver(context.Background(), w.delivery(w.shell(1, script)))
	if err != nil {
		panic(err)
	}
	fmt.Printf("answer %d\n", a.State)
	select {}
}

// agentTest stands in for a test where there is none.
type agentTest struct{ testing.TB }

func (*agentTest) Helper()           {}
func (*agentTest) Cleanup(func())    {}
func (*agentTest) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestAnAgentThatIsKilledNeverRunsACommandTwice(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "begin"), []byte(strconv.FormatInt(time.Now().UnixNano(), 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() (*exec.Cmd, *bufio.Scanner) {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), agentVariable+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd, bufio.NewScanner(out)
	}
	line := func(s *bufio.Scanner) string {
		t.Helper()
		if !s.Scan() {
			t.Fatalf("the agent ended: %v", s.Err())
		}
		return s.Text()
	}
	numbers := func(name string) (all []int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !strings.HasSuffix(string(b), "\n") {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				n, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, n)
			}
			return all
		}
		t.Fatalf("%s was not written", name)
		return nil
	}
	first, out := start()
	if got := line(out); got != "answer 1" {
		t.Fatalf("first delivery: %q", got)
	}
	tree := append(numbers("witness"), numbers("pids")...)
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	for _, pid := range tree {
		if syscall.Kill(pid, 0) != nil {
			t.Errorf("process %d ended with the agent: nothing is left to be found", pid)
		}
	}
	_, out = start()
	got := []string{line(out), line(out)}
	slices.Sort(got) // the answer to the second delivery may come first
	if !strings.HasPrefix(got[0], "answer ") || !strings.HasPrefix(got[1], "result Interrupted ") || !strings.Contains(got[1], "were killed") {
		t.Errorf("second life: %q", got)
	}
	if n := len(numbers("witness")); n != 1 {
		t.Errorf("the command ran %d times", n)
	}
	for _, pid := range tree {
		if alive(pid) {
			t.Errorf("process %d survived", pid)
		}
	}
}

// alive reports whether a process is there and not a zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// TestWhatDidNotBindIsSaid: a limit that a host is configured with and that did
// not hold must not look as if it had.
func TestWhatDidNotBindIsSaid(t *testing.T) {
	for _, test := range []struct {
		exit process.Exit
		want string
	}{
		{process.Exit{Unbound: "cpu.max: invalid argument"}, "it ran without these limits: cpu.max: invalid argument"},
		{process.Exit{Uncontained: "read-only"}, "it ran without a control group: read-only"},
	} {
		if o := shellOutcome(t.Context(), test.exit, 0, process.Limits{}); o.State != fleet.Success || o.Reason != test.want {
			t.Errorf("%+v: outcome %+v, want %q", test.exit, o, test.want)
		}
	}
}
