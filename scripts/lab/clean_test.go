//go:build lab && linux

package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fleet/scripts/lab"
)

// victim is the environment variable that makes TestVictim play the test that
// dies; its value is how.
const victim = "LAB_VICTIM"

// TestVictim is no test of its own: TestNothingIsLeft runs it in a process and
// looks at what remains.
func TestVictim(t *testing.T) {
	how := os.Getenv(victim)
	if how == "" {
		t.Skip("runs as a part of TestNothingIsLeft")
	}
	l := lab.New(t, lab.Options{Hosts: 2, Systemd: true})
	a, b := l.Hosts()[0], l.Hosts()[1]
	l.Cut(a, b)
	a.FillDisk("/var/lib/fleet")
	a.Start("sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done")
	b.Start("setsid", "sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000")
	b.Terminal()
	fmt.Printf("lab %s\n", l.Name())
	switch how {
	case "panic":
		panic("the test panics")
	case "failure":
		t.Fatal("the test fails")
	case "end":
	default:
		select {} // until it is ended from outside
	}
}

// However a test ends, no process, namespace, mount, control group or file of
// its lab is left.
func TestNothingIsLeft(t *testing.T) {
	lab.Require(t, "/lib/systemd/systemd", "tmux")
	tests := []struct {
		name string
		how  string
		sig  syscall.Signal
	}{
		{"end", "end", 0},
		{"failure", "failure", 0},
		{"panic", "panic", 0},
		{"Ctrl-C", "wait", syscall.SIGINT},
		{"kill -9", "wait", syscall.SIGKILL},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name, cmd := startVictim(t, tt.how)
			spaces := namespaces(t, name)
			if tt.how == "wait" && len(spaces) < 10 {
				// Two hosts of six and a world of three, those of systemd's
				// services aside.
				t.Fatalf("the lab has namespaces %v: it is not what this test thinks", spaces)
			}
			if tt.sig != 0 {
				if err := cmd.Process.Signal(tt.sig); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait() // it fails, as it should
			gone(t, name, spaces)
		})
	}
}

// When test and cleaner are killed at once, "make lab-clean" removes the rest,
// and leaves alone what runs.
func TestLabClean(t *testing.T) {
	running := lab.New(t, lab.Options{Hosts: 1})
	name, cmd := startVictim(t, "wait")
	spaces := namespaces(t, name)
	for _, dir := range procDirs(t) {
		if line, err := os.ReadFile(dir + "/cmdline"); err == nil && strings.HasSuffix(string(line), "\x00--on-eof\x00"+name+"\x00") {
			var pid int
			if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := os.Stat("/run/" + name); err != nil {
		t.Fatalf("nothing is left to clean: %v", err)
	}
	if out := machine(t, "./clean.sh", "--dead"); !strings.Contains(out, "removed "+name) {
		t.Errorf("clean.sh --dead: %s", out)
	}
	gone(t, name, spaces)
	running.Hosts()[0].Run("true").OK()
}

// startVictim runs TestVictim in a process until its lab stands.
func startVictim(t *testing.T, how string) (name string, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), victim+"="+how)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "lab "); ok {
			go func() {
				for lines.Scan() { // so that it does not wait for a reader
				}
			}()
			return n, cmd
		}
	}
	t.Fatalf("the victim built no lab: %v", cmd.Wait())
	return "", nil
}

func procDirs(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

var kinds = []string{"mnt", "net", "pid", "uts", "ipc", "cgroup"}

// namespaces are those that only processes of the lab are in.
func namespaces(t *testing.T, name string) map[string]bool {
	t.Helper()
	ours := map[string]bool{}
	for _, kind := range kinds {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		ours[own] = true
	}
	found := map[string]bool{}
	for _, dir := range procDirs(t) {
		groups, err := os.ReadFile(dir + "/cgroup")
		if err != nil || !strings.Contains(string(groups), name) {
			continue
		}
		for _, kind := range kinds {
			if ns, err := os.Readlink(dir + "/ns/" + kind); err == nil && !ours[ns] {
				found[ns] = true
			}
		}
	}
	return found
}

// gone waits until nothing of a lab is left and fails with what is.
func gone(t *testing.T, name string, spaces map[string]bool) {
	t.Helper()
	var left []string
	end := time.Now().Add(2 * time.Minute) // a busy machine takes its time to end processes
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		if left = leftovers(t, name, spaces); len(left) == 0 {
			tick.Stop()
			return
		}
		if time.Now().After(end) {
			tick.Stop()
			t.Fatalf("left of %s: %s", name, strings.Join(left, ", "))
		}
	}
}

func leftovers(t *testing.T, name string, spaces map[string]bool) (left []string) {
	t.Helper()
	if _, err := os.Lstat("/run/" + name); err == nil {
		left = append(left, "/run/"+name)
	}
	// Other labs come and go while find looks, which it reports as errors.
	groups := machine(t, "sh", "-c", `find /sys/fs/cgroup -type d -name "$1" 2>/dev/null; true`, "sh", name)
	left = append(left, strings.Fields(groups)...)
	for _, dir := range procDirs(t) {
		if b, err := os.ReadFile(dir + "/cgroup"); err == nil && strings.Contains(string(b), name) {
			left = append(left, "process "+filepath.Base(dir))
		}
		if b, err := os.ReadFile(dir + "/mountinfo"); err == nil && strings.Contains(string(b), name) {
			left = append(left, "mounts of process "+filepath.Base(dir))
		}
		for _, kind := range kinds {
			if ns, err := os.Readlink(dir + "/ns/" + kind); err == nil && spaces[ns] {
				left = append(left, ns+" of process "+filepath.Base(dir))
			}
		}
	}
	slices.Sort(left)
	return left
}

// machine runs a command on the machine itself.
func machine(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
