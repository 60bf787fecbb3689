package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"fleet/node/fleet"
)

// roleVariable makes the test binary one of the programs that the tests run:
// no host of Windows has a shell that can do what they need.
const roleVariable = "PROCESS_TEST_ROLE"

func TestMain(m *testing.M) {
	role, argument, _ := strings.Cut(os.Getenv(roleVariable), " ")
	switch role {
	case "":
		os.Exit(m.Run())
	case "sleep":
		time.Sleep(10 * time.Minute)
	case "family": // starts one that sleeps, which starts another, and all write who they are
		depth, dir, _ := strings.Cut(argument, " ")
		n, _ := strconv.Atoi(depth)
		if n > 1 {
			child := roleCommand(fmt.Sprintf("family %d %s", n-1, dir))
			child.Stdout = os.Stdout
			if err := child.Start(); err != nil {
				os.Exit(3)
			}
		}
		name := filepath.Join(dir, depth)
		_ = os.WriteFile(name+".tmp", []byte(strconv.Itoa(os.Getpid())), 0o600)
		_ = os.Rename(name+".tmp", name)
		time.Sleep(10 * time.Minute)
	case "parent": // leaves a child that holds stdout
		child := roleCommand("sleep")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			os.Exit(3)
		}
		fmt.Println(child.Process.Pid)
	case "write":
		n, _ := strconv.Atoi(argument)
		_, _ = os.Stdout.Write(make([]byte, n))
		_, _ = os.Stderr.Write(make([]byte, 1000))
	case "touch":
		_ = os.WriteFile(argument, []byte("ran\n"), 0o600)
	case "agent": // dies while its child, held or running, is there
		how, dir, _ := strings.Cut(argument, " ")
		spec := roleSpec("family 1 " + dir)
		spec.Spawned = func(id Identity) error {
			fmt.Println(id.PID)
			if how == "gate" {
				os.Exit(0)
			}
			return nil
		}
		if _, err := Start(context.Background(), spec); err != nil {
			os.Exit(3)
		}
		for {
			if _, err := os.Stat(filepath.Join(dir, "1")); err == nil {
				os.Exit(0)
			}
			time.Sleep(time.Millisecond)
		}
	case "many": // starts what it is let start
		var started []*exec.Cmd
		for range 20 {
			if c := roleCommand("sleep"); c.Start() == nil {
				started = append(started, c)
			}
		}
		fmt.Println(len(started))
		for _, c := range started[min(4, len(started)):] { // what no limit stopped
			_ = c.Process.Kill()
		}
	}
	os.Exit(0)
}

func roleCommand(role string) *exec.Cmd {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), roleVariable+"="+role)
	return c
}

func roleSpec(role string) Spec {
	program, err := filepath.Abs(os.Args[0])
	if err != nil {
		panic(err)
	}
	return Spec{Args: []string{program}, Env: []string{roleVariable + "=" + role}, Mark: "test/" + strconv.FormatInt(time.Now().UnixNano(), 36)}
}

func cmdSpec(line string) Spec {
	return Spec{Args: []string{filepath.Join(os.Getenv("SystemRoot"), "System32", "cmd.exe"), "/d", "/c", line}}
}

// alive reports whether a process is there and runs.
func alive(pid int) bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return false
	}
	defer windows.CloseHandle(h)
	event, err := windows.WaitForSingleObject(h, 0)
	return err == nil && event == uint32(windows.WAIT_TIMEOUT)
}

// waitPID reads what a member of a family wrote.
func waitPID(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil {
			pid, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("%s was not written", path)
	return 0
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

func TestRunSaysHowItEnded(t *testing.T) {
	for _, test := range []struct {
		name, line     string
		code           int
		stdout, stderr string
	}{
		{"success", "echo out&echo err>&2", 0, "out\r\n", "err\r\n"},
		{"exit code", "exit 3", 3, "", ""},
		{"exit code beyond a byte", "exit 3010", 3010, "", ""},
		{"root directory", "cd", 0, "C:\\\r\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			spec := cmdSpec(test.line)
			spec.Stdout, spec.Stderr = &stdout, &stderr
			exit, err := Run(t.Context(), spec)
			if want := (Exit{Code: test.code}); err != nil || exit != want {
				t.Errorf("exit %+v (%v), want %+v", exit, err, want)
			}
			if stdout.String() != test.stdout || stderr.String() != test.stderr {
				t.Errorf("output %q and %q, want %q and %q", stdout.String(), stderr.String(), test.stdout, test.stderr)
			}
		})
	}
}

func TestOnlyTheBuiltEnvironmentArrives(t *testing.T) {
	t.Setenv("FLEET_TEST_SECRET", "inherited")
	var out bytes.Buffer
	spec := cmdSpec("echo %VALUE%/%FLEET_TEST_SECRET%/%FLEET_PROCESS%")
	spec.Env, spec.Mark, spec.Stdout = []string{"VALUE=a b"}, "m-1", &out
	exit, err := Run(t.Context(), spec)
	if want := "a b/%FLEET_TEST_SECRET%/m-1\r\n"; err != nil || exit.Code != 0 || out.String() != want {
		t.Errorf("%v %+v: output %q, want %q", err, exit, out.String(), want)
	}
}

func TestStartRefusals(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Spec)
		kind   fleet.Kind
	}{
		{"relative program", func(s *Spec) { s.Args = []string{"cmd.exe"} }, fleet.Invalid},
		{"missing program", func(s *Spec) { s.Args = []string{`C:\nonexistent\x.exe`} }, fleet.NotFound},
		{"missing directory", func(s *Spec) { s.Dir = `C:\nonexistent` }, fleet.NotFound},
		{"unknown user", func(s *Spec) { s.User = "no-such-user-here" }, fleet.NotFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			spec := cmdSpec("exit 0")
			test.change(&spec)
			if _, err := Start(t.Context(), spec); fleet.KindOf(err) != test.kind {
				t.Errorf("got %v, want kind %v", err, test.kind)
			}
		})
	}
}

func TestNothingRunsBeforeSpawnedReturns(t *testing.T) {
	witness := filepath.Join(t.TempDir(), "ran")
	spec := roleSpec("touch " + witness)
	refuse := errors.New("journal is full")
	var id Identity
	spec.Spawned = func(i Identity) error {
		id = i
		if !alive(id.PID) {
			t.Error("there is no child at the gate")
		}
		return refuse
	}
	if _, err := Start(t.Context(), spec); !errors.Is(err, refuse) {
		t.Fatalf("got %v, want the error of Spawned", err)
	}
	waitGone(t, id.PID)
	if _, err := os.Stat(witness); err == nil {
		t.Error("the program ran although Spawned refused")
	}
	spec.Spawned = nil
	if exit, err := Run(t.Context(), spec); err != nil || exit.Code != 0 {
		t.Fatalf("%+v %v", exit, err)
	}
	if _, err := os.Stat(witness); err != nil {
		t.Errorf("let through, it does not run: %v", err)
	}
}

// A child of cmd.exe, as a command of a fleet would be, and what that starts.
func TestTheTreeOfCmdIsKilled(t *testing.T) {
	dir := t.TempDir()
	spec := cmdSpec(os.Args[0])
	spec.Env = []string{roleVariable + "=family 3 " + dir}
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{p.Identity().PID}
	for _, name := range []string{"3", "2", "1"} {
		pids = append(pids, waitPID(t, filepath.Join(dir, name)))
	}
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d of %v is not there before the kill", pid, pids)
		}
	}
	cancel()
	exit := p.Wait()
	if !exit.Cancelled || exit.Survivors != 0 || exit.Uncontained != "" {
		t.Errorf("exit %+v", exit)
	}
	for _, pid := range pids {
		waitGone(t, pid)
	}
}

func TestTimeoutKillsTheTree(t *testing.T) {
	dir := t.TempDir()
	spec := roleSpec("family 2 " + dir)
	spec.Timeout = 10 * time.Second
	exit, err := Run(t.Context(), spec)
	if err != nil || !exit.TimedOut || exit.Survivors != 0 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	for _, name := range []string{"1", "2"} {
		waitGone(t, waitPID(t, filepath.Join(dir, name)))
	}
}

func TestNothingOutlivesThisProcess(t *testing.T) {
	for _, how := range []string{"gate", "running"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			out, err := roleCommand("agent " + how + " " + dir).Output()
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
			if err != nil {
				t.Fatalf("it printed %q", out)
			}
			waitGone(t, pid)
			if _, err := os.Stat(filepath.Join(dir, "1")); (err == nil) != (how == "running") {
				t.Errorf("ran: %v", err == nil)
			}
		})
	}
}

func TestADaemonStaysAndDoesNotHoldWait(t *testing.T) {
	var out bytes.Buffer
	spec := roleSpec("parent")
	spec.Stdout, spec.Drain = &out, 200*time.Millisecond
	begin := time.Now()
	exit, err := Run(t.Context(), spec)
	if err != nil || exit.Code != 0 || !exit.Held || exit.TimedOut {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("took %v", took)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Error("what the program left was killed")
	}
	if daemon, err := os.FindProcess(pid); err == nil {
		_ = daemon.Kill()
	}
	waitGone(t, pid)
}

func TestOutputIsCompleteAndExact(t *testing.T) {
	const total = 20 << 20
	hash := sha256.New()
	var stderr bytes.Buffer
	spec := roleSpec(fmt.Sprintf("write %d", total))
	spec.Stdout, spec.Stderr = hash, &stderr
	exit, err := Run(t.Context(), spec)
	want := sha256.Sum256(make([]byte, total))
	if err != nil || exit.Code != 0 || stderr.Len() != 1000 || !bytes.Equal(hash.Sum(nil), want[:]) {
		t.Errorf("exit %+v, %v, %d bytes on stderr, or the output differs", exit, err, stderr.Len())
	}
}

func TestLimitOfProcesses(t *testing.T) {
	if wine() {
		t.Skip("Wine takes the limit of a job object and does not keep it")
	}
	var out bytes.Buffer
	spec := roleSpec("many")
	spec.Stdout, spec.Limits, spec.Drain = &out, Limits{Tasks: 5, NoCore: true}, 200*time.Millisecond
	exit, err := Run(t.Context(), spec)
	if err != nil || strings.TrimSpace(out.String()) != "4" || exit.TasksRefused == 0 || !exit.Overrun || exit.Survivors != 0 {
		t.Errorf("started %q, want 4: exit %+v, %v", out.String(), exit, err)
	}
}

func TestLimitsAreTaken(t *testing.T) {
	spec := cmdSpec("exit 0")
	spec.Limits = Limits{Tasks: 100, Memory: 1 << 30, NoCore: true}
	if !wine() { // which has no limit of processors
		spec.Limits.CPU = 0.5
	}
	if exit, err := Run(t.Context(), spec); err != nil || exit != (Exit{}) {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if TotalMemory() < 64<<20 {
		t.Errorf("this host has %d bytes of memory", TotalMemory())
	}
}

// wine reports whether this is not Windows but Wine.
func wine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}
