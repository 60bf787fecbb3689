package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noGroups makes no control groups: what is left then has to hold too.
var noGroups *Cgroups

// dead reports whether a process is gone or a zombie.
func dead(pid int) bool {
	s, err := readStat(pid)
	return err != nil || s.dead()
}

// pids reads numbers that scripts have written to a file, one a line.
func pids(t *testing.T, path string, want int) []int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(path)
		if fields := strings.Fields(string(b)); len(fields) >= want && strings.HasSuffix(string(b), "\n") {
			var all []int
			for _, f := range fields {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, pid)
			}
			return all
		}
	}
	t.Fatalf("%s does not hold %d numbers", path, want)
	return nil
}

// trees are scripts whose processes try to outlive them; each writes the
// numbers of its processes to $F and then lives for long.
var trees = []struct {
	name   string
	script string
	count  int
	kill   bool // SIGTERM is not enough
}{
	{"plain", `echo $$ >> $F; exec sleep 600`, 1, false},
	{"child", `echo $$ >> $F; sleep 600 & echo $! >> $F; wait`, 2, false},
	{"ignores SIGTERM", `trap "" TERM; echo $$ >> $F; while :; do sleep 600; done`, 1, true},
	{"child ignores SIGTERM and holds stdout", `echo $$ >> $F; (trap "" TERM; sh -c 'echo $$ >> $F; while :; do sleep 600; done') & wait`, 2, true},
	{"own process group", `set -m; echo $$ >> $F; sleep 600 & echo $! >> $F; wait`, 2, false},
	{"own session", `echo $$ >> $F; setsid sh -c 'echo $$ >> $F; exec sleep 600' & wait`, 2, false},
	{"daemon: own session and no parent", `echo $$ >> $F; (setsid sh -c 'echo $$ >> $F; exec sleep 600' &); exec sleep 600`, 2, false},
	{"daemon that ignores SIGTERM", `echo $$ >> $F; (setsid sh -c 'trap "" TERM; echo $$ >> $F; while :; do sleep 600; done' &); exec sleep 600`, 2, true},
	{"child without environment", `echo $$ >> $F; env -i F=$F /bin/sh -c 'echo $$ >> $F; exec sleep 600' & wait`, 2, false},
}

func TestTimeoutEndsTheWholeTree(t *testing.T) {
	for _, test := range trees {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, test.script)
			spec.Env = append(spec.Env, "F="+file)
			spec.Timeout = 700 * time.Millisecond
			spec.Grace = 300 * time.Millisecond
			begin := time.Now()
			exit := run(t, spec)
			took := time.Since(begin)
			if !exit.TimedOut || exit.Cancelled || exit.Survivors != 0 || exit.Held {
				t.Errorf("exit %+v, want it timed out without survivors", exit)
			}
			if took < spec.Timeout || took > time.Minute {
				t.Errorf("took %v", took)
			}
			wantSignal := int(syscall.SIGTERM)
			if test.kill && strings.HasPrefix(test.script, "trap") {
				wantSignal = int(syscall.SIGKILL)
			}
			if exit.Signal != wantSignal || exit.Code != 128+wantSignal {
				t.Errorf("exit %+v, want signal %d", exit, wantSignal)
			}
			for _, pid := range pids(t, file, test.count) {
				if !dead(pid) {
					t.Errorf("process %d survived", pid)
				}
			}
		})
	}
}

func TestCancelEndsTheWholeTree(t *testing.T) {
	for _, test := range trees {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, test.script)
			spec.Env = append(spec.Env, "F="+file)
			spec.Timeout = time.Minute
			spec.Grace = 300 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			p, err := Start(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			all := pids(t, file, test.count)
			cancel()
			if exit := p.Wait(); !exit.Cancelled || exit.TimedOut || exit.Survivors != 0 {
				t.Errorf("exit %+v, want it cancelled without survivors", exit)
			}
			for _, pid := range all {
				if !dead(pid) {
					t.Errorf("process %d survived", pid)
				}
			}
		})
	}
}

func TestKillLeftover(t *testing.T) {
	for _, test := range trees {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, test.script)
			spec.Env = append(spec.Env, "F="+file)
			p, err := Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			all := pids(t, file, test.count)
			id := p.Identity()

			stranger := id
			stranger.Boot, stranger.Mark = "00000000-0000-0000-0000-000000000000", ""
			if n, err := noGroups.KillLeftover(t.Context(), stranger); n != 0 || err != nil {
				t.Errorf("of another boot: killed %d, %v", n, err)
			}
			stranger = id
			stranger.Start--
			stranger.Mark = ""
			if n, err := noGroups.KillLeftover(t.Context(), stranger); n != 0 || err != nil {
				t.Errorf("of another process with the number: killed %d, %v", n, err)
			}
			for _, pid := range all {
				if dead(pid) {
					t.Fatalf("process %d was killed as a stranger's", pid)
				}
			}
			n, err := noGroups.KillLeftover(t.Context(), id)
			if err != nil || n < test.count {
				t.Errorf("killed %d, %v, want at least %d", n, err, test.count)
			}
			for _, pid := range all {
				if !dead(pid) {
					t.Errorf("process %d survived", pid)
				}
			}
			p.Wait()
			if n, err := noGroups.KillLeftover(t.Context(), id); n != 0 || err != nil {
				t.Errorf("a second time: killed %d, %v", n, err)
			}
		})
	}
}

func TestKillLeftoverFindsTheTreeOfADeadChildByItsMark(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	spec := script(t, `setsid sleep 600 & echo $! >> $F`)
	spec.Env = append(spec.Env, "F="+file)
	spec.Drain = time.Millisecond
	p, err := Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	pid := pids(t, file, 1)[0]
	if n, err := noGroups.KillLeftover(t.Context(), p.Identity()); n != 1 || err != nil {
		t.Errorf("killed %d, %v, want 1", n, err)
	}
	if !dead(pid) {
		t.Errorf("process %d survived", pid)
	}
}

// TestANumberThatWasGivenAwayWhileATreeIsKilled: the leftover was there when it
// was looked for, and has been reaped since, by whoever its parent is now.
func TestANumberThatWasGivenAwayWhileATreeIsKilled(t *testing.T) {
	ctx, cancel := contextOf(t)
	later, err := Start(ctx, script(t, "exec sleep 600"))
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{PID: later.Identity().PID, Start: later.Identity().Start - 1}
	before := tree{id: id, ours: true, reaped: true, met: map[int]uint64{}}
	if killed, survivors := before.kill(closed); killed != 0 || survivors != 0 {
		t.Errorf("killed %d, %d survived, want none", killed, survivors)
	}
	if dead(later.Identity().PID) {
		t.Error("a later process with the number was killed")
	}
	cancel()
	later.Wait()
}

func TestLimits(t *testing.T) {
	var out strings.Builder
	spec := script(t, "ulimit -n; ulimit -c; ulimit -Hc")
	spec.Stdout = &out
	spec.Limits = Limits{OpenFiles: 123, NoCore: true}
	run(t, spec)
	if got := strings.Fields(out.String()); fmt.Sprint(got) != "[123 0 0]" {
		t.Errorf("limits %v", got)
	}
	var stderr strings.Builder
	spec = script(t, "echo ran")
	spec.Stdout, spec.Stderr = &stderr, &stderr
	spec.Limits = Limits{OpenFiles: 1 << 40}
	if exit := run(t, spec); exit.Code != 126 || strings.Contains(stderr.String(), "ran") || stderr.Len() == 0 {
		t.Errorf("exit %+v, output %q", exit, stderr.String())
	}
}

func TestForkBombOfAUserIsBounded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	spec := script(t, `bomb() { bomb & bomb & wait; }; bomb 2>/dev/null`)
	spec.User = "nobody"
	spec.Limits = Limits{Processes: 60}
	spec.Timeout = 500 * time.Millisecond
	spec.Grace = 100 * time.Millisecond
	if exit := run(t, spec); exit.Survivors != 0 || len(tree{id: Identity{PID: 1 << 30, Mark: spec.Mark}}.members()) != 0 {
		t.Errorf("exit %+v", exit)
	}
}

func TestRunsAsAUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	var out strings.Builder
	spec := script(t, "id -un; id -Gn")
	spec.User, spec.Stdout = "nobody", &out
	if exit := run(t, spec); exit.Code != 0 || !strings.HasPrefix(out.String(), "nobody\n") || strings.Contains(out.String(), "root") {
		t.Errorf("exit %+v, output %q", exit, out.String())
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	nobody, err := LookupUser("nobody")
	if err == nil {
		err = MakeDir(root, "d", nobody)
	}
	if err == nil {
		err = WriteScript(root, "d/s", []byte("#!/bin/sh\nid -un\n"), nobody)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"d": os.ModeDir | 0o700, "d/s": 0o700} {
		info, err := root.Stat(name)
		if err != nil || info.Mode() != mode || fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid) != nobody.UID {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	account, err := LookupUser("")
	if err != nil || !account.Own || account.UID != "0" {
		t.Errorf("own account %+v, %v", account, err)
	}
}

func TestParseStat(t *testing.T) {
	tail := " 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 18446744073709551615"
	tests := []struct {
		name string
		line string
		want stat
		bad  bool
	}{
		{name: "plain", line: "42 (sh) S" + tail, want: stat{pid: 42, state: 'S', parent: 1, group: 2, session: 3, start: 777}},
		{name: "name with brackets", line: "42 (a) Z 9 9) (b) R" + tail, want: stat{pid: 42, state: 'R', parent: 1, group: 2, session: 3, start: 777}},
		{name: "name with line break", line: "42 (a\nb) D" + tail, want: stat{pid: 42, state: 'D', parent: 1, group: 2, session: 3, start: 777}},
		{name: "empty", bad: true},
		{name: "no brackets", line: "42 sh S 1 2 3", bad: true},
		{name: "cut", line: "42 (sh) S 1 2", bad: true},
		{name: "no number", line: "x (sh) S" + tail, bad: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseStat(test.line)
			if (err != nil) != test.bad || got != test.want {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (sh) S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1")
	f.Add("1 ()) Z 0")
	f.Fuzz(func(t *testing.T, line string) { _, _ = parseStat(line) })
}

func TestIdentityOfALiveProcess(t *testing.T) {
	p, err := Start(t.Context(), script(t, "read x < /proc/self/stat; sleep 0.2"))
	if err != nil {
		t.Fatal(err)
	}
	id := p.Identity()
	s, err := readStat(id.PID)
	if err != nil || s.start != id.Start || id.Start == 0 || id.Boot == "" || s.session != id.PID || s.group != id.PID {
		t.Errorf("identity %+v of %+v, %v", id, s, err)
	}
	p.Wait()
	if err := unix.Kill(id.PID, 0); err == nil {
		t.Errorf("process %d was not reaped", id.PID)
	}
}
