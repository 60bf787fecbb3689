package process

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// roundsVariable is how often each kind of tree is ended; "make test-process"
// sets it.
const roundsVariable = "FLEET_ROUNDS"

// tortures are scripts that do what they can to outlive their command. $D is a
// directory whose name is the witness's marker: each process has it in its
// command line. Each writes to $D/ready when all of it runs.
var tortures = []struct {
	name   string
	script string
	tasks  uint64
}{
	{"daemon by setsid", `setsid $D/sleep 600 & echo >> $D/ready; wait`, 0},
	{"double fork, closed descriptors", `(setsid $D/run '($D/sleep 600 &) ' 0<&- 1>&- 2>&- &); echo >> $D/ready; exec $D/sleep 600`, 0},
	{"fork bomb", `exec perl -e 'while (1) { if (!defined fork && !$said++) { open F, ">>", "$ENV{D}/ready"; print F "full\n"; close F } }' $D`, 200},
	{"ignores SIGTERM", `trap "" TERM; $D/sleep 600 & echo >> $D/ready; while :; do $D/sleep 600; done`, 0},
	{"child holds stdout", `(trap "" TERM HUP; setsid $D/sleep 600) & echo >> $D/ready; exec $D/sleep 600`, 0},
	{"nohup and disown", `exec /bin/bash -c 'nohup $D/sleep 600 >/dev/null 2>&1 & disown -a; echo >> $D/ready; exec $D/sleep 600' $D`, 0},
	{"cleared environment, no parent", `(setsid env -i D=$D $D/run '(env -i setsid $D/sleep 600 &) ' &); echo >> $D/ready; exec $D/sleep 600`, 0},
	{"all at once", `trap "" TERM HUP; (setsid env -i D=$D $D/run 'trap "" TERM HUP; (exec env -i D=$D nohup setsid $D/run "while :; do env -i $D/sleep 600 & $D/sleep 0.01; done" &) ' >/dev/null 2>&1 0<&- &); echo >> $D/ready; while :; do $D/sleep 600; done`, 100},
}

// TestTorture ends each kind of tree at its timeout and by a cancel, as root
// and as another user, with all control groups that there are and with those of
// version 1 alone, and counts what is left.
func TestTorture(t *testing.T) {
	t.Parallel()
	all := realGroups(t)
	rounds := 2
	if s := os.Getenv(roundsVariable); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q is not a number of rounds", roundsVariable, s)
		}
		rounds = n
	}
	for _, kind := range []string{"all", "v1"} {
		groups := all[kind]
		if groups == nil || !groups.limits("pids") {
			t.Logf("%s: not here: %v", kind, OpenCgroups())
			continue
		}
		t.Run(kind, func(t *testing.T) {
			var table strings.Builder
			fmt.Fprintf(&table, "%s, grace %v\n%-34s %6s %10s %14s %14s\n", groups, tortureGrace, "tree", "runs", "survivors", "mean to empty", "max to empty")
			for _, test := range tortures {
				var runs, survivors int
				var sum, most time.Duration
				t.Run(test.name, func(t *testing.T) {
					for _, program := range []string{"/bin/bash", "/usr/bin/perl"} {
						if !isFile(program) && strings.Contains(test.script, filepath.Base(program)) {
							t.Skip("needs ", program)
						}
					}
					for round := range rounds {
						user, byCancel := "", (round/2+round)%2 == 0
						if round%2 == 1 {
							user = "nobody"
						}
						left, took := torture(t, groups, test.script, test.tasks, user, byCancel)
						runs, survivors, sum, most = runs+1, survivors+left, sum+took, max(most, took)
					}
				})
				if runs > 0 {
					fmt.Fprintf(&table, "%-34s %6d %10d %14s %14s\n", test.name, runs, survivors,
						(sum / time.Duration(runs)).Round(time.Millisecond), most.Round(time.Millisecond))
				}
			}
			t.Log("\n" + table.String())
		})
	}
}

const tortureGrace = 100 * time.Millisecond

// torture runs one tree and ends it. It gives how many of its processes a
// witness still finds, and how long the end took from the moment on in which
// it was due.
func torture(t *testing.T, groups *Cgroups, text string, tasks uint64, user string, byCancel bool) (left int, took time.Duration) {
	t.Helper()
	dir, err := os.MkdirTemp("", "torture-"+strconv.FormatUint(rand.Uint64(), 36)+"-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for name, content := range map[string]string{"run": "#!/bin/sh\neval \"$1\"\n", "ready": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/bin/sleep", filepath.Join(dir, "sleep")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const timeout = 400 * time.Millisecond
	spec := script(t, text)
	spec.Args = append(spec.Args, dir) // $0: in the command line
	spec.Env = append(spec.Env, "D="+dir)
	spec.User, spec.Cgroups, spec.Limits.Tasks, spec.Grace = user, groups, tasks, tortureGrace
	spec.Timeout = timeout
	if byCancel {
		spec.Timeout = time.Hour
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begin := time.Now()
	p, err := Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	due := begin.Add(timeout)
	if byCancel {
		waitFile(t, filepath.Join(dir, "ready"))
		due = time.Now()
		cancel()
	}
	exit := p.Wait()
	took = time.Since(due)
	if exit.TimedOut == byCancel || exit.Cancelled != byCancel || exit.Survivors != 0 || exit.Uncontained != "" {
		t.Errorf("user %q, cancel %v: exit %+v", user, byCancel, exit)
	}
	if strings.Contains(text, "fork") && byCancel && exit.TasksRefused == 0 {
		t.Errorf("user %q: the limit of processes was not reached", user)
	}
	found := witness(t, filepath.Base(dir))
	if len(found) > 0 {
		t.Errorf("user %q, cancel %v: %d survivors: %q", user, byCancel, len(found), found)
	}
	noDirectory(t, groups, groupName(spec.Mark))
	return len(found), took
}

// witness finds processes by their command lines, which is none of the ways in
// which this package finds them.
func witness(t *testing.T, marker string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // empty for a zombie
		if err == nil && bytes.Contains(b, []byte(marker)) {
			found = append(found, e.Name()+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// TestTheWitnessSees shows that the witness of TestTorture can find survivors.
func TestTheWitnessSees(t *testing.T) {
	spec := script(t, "exec sleep 600")
	marker := "witness-" + strconv.FormatUint(rand.Uint64(), 36)
	spec.Args = []string{"/bin/sh", "-c", "sleep 600; :", marker}
	ctx, cancel := contextOf(t)
	p, err := Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	// Two, if the shell has just made the child that becomes sleep.
	if found := witness(t, marker); len(found) == 0 {
		t.Error("it does not see the process")
	}
	cancel()
	p.Wait()
	if found := witness(t, marker); len(found) != 0 {
		t.Errorf("found %q at the end", found)
	}
}
