package runcmd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
)

// treeScript writes the numbers of its processes to dir/tree: itself, a child in
// a session of its own and one that hides in the background, none of which ends
// when it is asked to.
func treeScript(dir string) string {
	return fmt.Sprintf(`trap '' TERM INT HUP
echo begun
(setsid sh -c 'trap "" TERM; echo $$ >> %[1]s/tree; sleep 600' &)
sh -c 'echo $$ >> %[1]s/tree; sleep 600' &
echo $$ >> %[1]s/tree
wait`, dir)
}

// tree waits until the script has written the numbers of its processes.
func tree(t *testing.T, dir string) (pids []int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(dir, "tree"))
		if words := strings.Fields(string(b)); len(words) >= 3 && strings.HasSuffix(string(b), "\n") {
			for _, w := range words {
				n, err := strconv.Atoi(w)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, n)
			}
			return pids
		}
		if time.Now().After(deadline) {
			t.Fatalf("the script wrote %q", b)
		}
	}
}

// gone fails for each process that is still there.
func gone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d survived", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// A tree that ignores SIGTERM is gone when the result is there, with what it had
// written.
func TestCancelEndsTheWholeTree(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), nil)
	h.start()
	h.deliver(t, w.delivery(w.shell(1, treeScript(dir))))
	pids := tree(t, dir)
	if a := h.cancel(t, w.cancellation(1)); a.State != Accepted {
		t.Fatalf("cancelled: %+v", a)
	}
	results, details := h.reports(t, 1)
	if r := results[0]; r.State != fleet.Cancelled || r.Code != 128+int32(syscall.SIGKILL) {
		t.Errorf("result %+v", r.Result)
	}
	if got := string(details[0].Steps[0].Stdout.Inline); got != "begun\n" {
		t.Errorf("output %q", got)
	}
	gone(t, pids)
}

// An orderly stop of the agent leaves nothing of a command.
func TestAnOrderlyStopEndsTheWholeTree(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(time.Now().Round(0))
	h := w.newHost(t, t.TempDir(), nil)
	h.start()
	h.deliver(t, w.delivery(w.shell(1, treeScript(dir))))
	pids := tree(t, dir)
	h.stop()
	if err := <-h.ended; err != nil {
		t.Error(err)
	}
	h.stop = nil
	gone(t, pids)
	e, _ := h.journal.Lookup(commandKey(1))
	if e.Finished == nil {
		t.Fatal("no result in the journal")
	}
}

// cancelFile makes the agent of a test cancel its command.
const cancelFile = "cancel"

// agentThatCancels is an agent in a process of its own: it takes a command,
// cancels it, says so, and runs until it is killed.
func agentThatCancels(h *host, w *world, dir string) {
	if a, err := h.Deliver(context.Background(), w.delivery(w.shell(1, treeScript(dir)))); err != nil || a.State != Accepted {
		fmt.Printf("answer %d, %v\n", a.State, err)
	}
	for {
		b, _ := os.ReadFile(filepath.Join(dir, "tree"))
		if len(strings.Fields(string(b))) >= 3 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	a, err := h.Cancel(context.Background(), w.cancellation(1))
	fmt.Printf("cancel %d, %v\n", a.State, err)
	select {}
}

// An agent that is killed while it ends a command: the next one ends what is
// left, and the result is Cancelled, because the journal says so.
func TestCancelAndKillTheAgent(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"begin": strconv.FormatInt(time.Now().UnixNano(), 10), cancelFile: ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines := make(chan string, 16)
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), agentVariable+"="+dir)
		cmd.Stderr = os.Stderr
		cmd.Stdout = lineWriter(lines)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	next := func(prefix string) string {
		t.Helper()
		for {
			select {
			case l := <-lines:
				if strings.HasPrefix(l, prefix) {
					return l
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("the agent does not say %q", prefix)
			}
		}
	}
	first := start()
	if got := next("cancel"); got != "cancel 1, <nil>" {
		t.Fatalf("it says %q", got)
	}
	pids := tree(t, dir)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	left := 0
	for _, pid := range pids {
		if alive(pid) {
			left++
		}
	}
	if left == 0 {
		t.Skip("nothing was left of it: the machine was too slow for this test")
	}
	start()
	if got := next("result"); !strings.HasPrefix(got, "result Cancelled cancelled; ") || !strings.Contains(got, "were killed") {
		t.Errorf("the second agent says %q", got)
	}
	gone(t, pids)
}

// lineWriter passes lines on.
type lineWriter chan<- string

func (w lineWriter) Write(b []byte) (int, error) {
	for l := range strings.Lines(string(b)) {
		w <- strings.TrimSpace(l)
	}
	return len(b), nil
}
