package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// realGroups are the control groups of this machine, once for each kind that
// it has: all hierarchies, those of version 1, that of version 2.
func realGroups(t testing.TB) map[string]*Cgroups {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make control groups")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Skip(err)
	}
	var v1, v2 []byte
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte(" - cgroup2 ")) {
			v2 = append(v2, line...)
		} else {
			v1 = append(v1, line...)
		}
	}
	all := map[string]*Cgroups{}
	for name, mounts := range map[string][]byte{"all": mounts, "v1": v1, "v2": v2} {
		if c := openCgroups(osFiles{}, own, mounts); c.any() {
			all[name] = c
		}
	}
	if len(all) == 0 {
		t.Skip("this machine lets no control groups be made: ", OpenCgroups())
	}
	return all
}

// escapes are scripts whose processes shed all that ties them to their parents
// but the control group; each writes the numbers of its processes to $F.
var escapes = []struct {
	name   string
	script string
	count  int
}{
	{"clears its environment and loses its session and parents",
		`echo $$ >> $F; (setsid env -i F=$F /bin/sh -c '(setsid /bin/sh -c "echo \$\$ >> $F; exec env -i sleep 600" &) ' &); exec sleep 600`, 2},
	{"the same, and ignores SIGTERM",
		`echo $$ >> $F; (setsid env -i F=$F /bin/sh -c 'trap "" TERM; (setsid /bin/sh -c "echo \$\$ >> $F; exec env -i sleep 600" &) ' &); exec sleep 600`, 2},
	{"the same, by nohup with closed descriptors",
		`echo $$ >> $F; (env -i F=$F nohup setsid /bin/sh -c '(exec 0<&- 1>&- 2>&-; setsid env -i F=$F nohup /bin/sh -c "echo \$\$ >> $F; exec env -i sleep 600" &)' >/dev/null 2>&1 &); exec sleep 600`, 2},
}

func TestControlGroupHoldsWhatShedsAllElse(t *testing.T) {
	for kind, c := range realGroups(t) {
		for _, test := range escapes {
			t.Run(kind+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				file := filepath.Join(t.TempDir(), "pids")
				spec := script(t, test.script)
				spec.Env = append(spec.Env, "F="+file)
				spec.Grace = 100 * time.Millisecond
				spec.Cgroups = c
				ctx, cancel := contextOf(t)
				p, err := Start(ctx, spec)
				if err != nil {
					t.Fatal(err)
				}
				all := pids(t, file, test.count)
				// That nothing but the group finds it is what makes this a test.
				for _, pid := range all[1:] {
					waitFor(t, "the environment is cleared", func() bool { return !marked(pid, spec.Mark) })
					for _, s := range (tree{id: p.Identity(), ours: true}).members() {
						if s.pid == pid {
							t.Fatalf("process %d is found without its group", pid)
						}
					}
				}
				cancel()
				if exit := p.Wait(); !exit.Cancelled || exit.Survivors != 0 || exit.Uncontained != "" {
					t.Errorf("exit %+v", exit)
				}
				for _, pid := range all {
					if !dead(pid) {
						t.Errorf("process %d survived", pid)
					}
				}
				noDirectory(t, c, groupName(spec.Mark))
			})
		}
	}
}

func TestKillLeftoverFindsItsGroupByTheMark(t *testing.T) {
	for kind, c := range realGroups(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, `(setsid env -i F=$F /bin/sh -c '(setsid /bin/sh -c "echo \$\$ >> $F; exec env -i sleep 600" &) ' &); true`)
			spec.Env = append(spec.Env, "F="+file)
			spec.Drain = time.Millisecond
			spec.Cgroups = c
			p, err := Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if exit := p.Wait(); exit.Code != 0 || exit.Uncontained != "" {
				t.Fatalf("exit %+v", exit)
			}
			daemon := pids(t, file, 1)[0]
			if dead(daemon) {
				t.Fatal("a daemon that the script left was killed at its end")
			}
			waitFor(t, "the environment is cleared", func() bool { return !marked(daemon, spec.Mark) })
			// The shell that made it, for which nobody waits, may still be there.
			waitFor(t, "the daemon is alone in its group", func() bool { return alone(c, groupName(spec.Mark), daemon) })
			if n, err := noGroups.KillLeftover(t.Context(), p.Identity()); n != 0 || err != nil || dead(daemon) {
				t.Fatalf("without groups: killed %d, %v", n, err)
			}
			later := &Cgroups{files: c.files, hierarchies: c.hierarchies, users: map[string]int{}} // of the next life of the agent
			if n, err := later.KillLeftover(t.Context(), p.Identity()); n != 1 || err != nil {
				t.Errorf("killed %d, %v, want 1", n, err)
			}
			if !dead(daemon) {
				t.Errorf("process %d survived", daemon)
			}
			noDirectory(t, c, groupName(spec.Mark))
		})
	}
}

// alone reports whether a process is the only one of its group.
func alone(c *Cgroups, name string, pid int) bool {
	for _, h := range c.hierarchies {
		b, err := os.ReadFile(filepath.Join(h.base, name, "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(pid) {
			return false
		}
	}
	return true
}

func TestTheGroupOfADaemonIsSweptWhenItHasEnded(t *testing.T) {
	for kind, c := range realGroups(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, `setsid sleep 600 & echo $! >> $F`)
			spec.Env, spec.Drain, spec.Cgroups = append(spec.Env, "F="+file), time.Millisecond, c
			run(t, spec)
			daemon := pids(t, file, 1)[0]
			name := groupName(spec.Mark)
			for _, h := range c.hierarchies {
				if _, err := os.Stat(filepath.Join(h.base, name)); err != nil {
					t.Errorf("the group of a daemon is gone: %v", err)
				}
			}
			_ = syscall.Kill(daemon, syscall.SIGKILL)
			waitFor(t, "the daemon ends", func() bool { return dead(daemon) })
			next := script(t, "true")
			next.Cgroups = c
			run(t, next)
			noDirectory(t, c, name)
			noDirectory(t, c, groupName(next.Mark))
		})
	}
}

func TestTheLimitOfProcesses(t *testing.T) {
	t.Parallel()
	for kind, c := range realGroups(t) {
		if !c.limits("pids") {
			continue
		}
		for _, user := range []string{"", "nobody"} {
			t.Run(kind+"/"+user, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "pids")
				// A shell that cannot fork ends; the outer one says that it did.
				spec := script(t, `(i=0; while [ $i -lt 100 ]; do sleep 600 & i=$((i+1)); done); echo $$; exec sleep 600`)
				out, err := os.Create(file)
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				spec.Stdout = out
				spec.Cgroups, spec.User = c, user
				spec.Limits.Tasks = 60
				spec.Grace = 100 * time.Millisecond
				ctx, cancel := contextOf(t)
				p, err := Start(ctx, spec)
				if err != nil {
					t.Fatal(err)
				}
				pids(t, file, 1)
				cancel()
				exit := p.Wait()
				if exit.Survivors != 0 || exit.TasksRefused == 0 || exit.Uncontained != "" {
					t.Errorf("exit %+v, want refusals and no survivors", exit)
				}
				noDirectory(t, c, groupName(spec.Mark))
			})
		}
	}
}

func TestWhatABombLeavesAtItsOwnEndIsKilled(t *testing.T) {
	for kind, c := range realGroups(t) {
		if !c.limits("pids") {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			spec := script(t, `(i=0; while [ $i -lt 100 ]; do setsid sleep 600 & i=$((i+1)); done); exit 0`)
			spec.Cgroups, spec.Limits.Tasks, spec.Drain = c, 40, 10*time.Millisecond
			if exit := run(t, spec); !exit.Overrun || exit.Survivors != 0 || exit.Code != 0 {
				t.Errorf("exit %+v, want it overrun without survivors", exit)
			}
			if left := (tree{id: Identity{PID: 1 << 30, Mark: spec.Mark}}).members(); len(left) != 0 {
				t.Errorf("%d processes are left", len(left))
			}
			noDirectory(t, c, groupName(spec.Mark))
		})
	}
}

func TestTheLimitOfMemory(t *testing.T) {
	t.Parallel()
	for kind, c := range realGroups(t) {
		if !c.limits("memory") {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			spec := script(t, `exec awk 'BEGIN { s = "0123456789abcdef"; while (1) s = s s }'`)
			spec.Cgroups, spec.Limits.Memory = c, 32<<20
			spec.Timeout = time.Minute
			if exit := run(t, spec); exit.MemoryKills == 0 || exit.Signal != int(syscall.SIGKILL) || exit.TimedOut {
				t.Errorf("exit %+v, want it killed for its memory", exit)
			}
			spec = script(t, "true")
			spec.Cgroups, spec.Limits.Memory = c, 32<<20
			if exit := run(t, spec); exit != (Exit{}) {
				t.Errorf("exit %+v of a child that keeps within its limits", exit)
			}
		})
	}
}

func TestTheLimitOfCPU(t *testing.T) {
	t.Parallel()
	for kind, c := range realGroups(t) {
		if !c.limits("cpu") {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			var out bytes.Buffer
			spec := script(t, `echo go; read -r x < /dev/null; while :; do :; done`)
			spec.Cgroups, spec.Limits.CPU, spec.Stdout = c, 0.05, &out
			spec.Timeout, spec.Grace = 2*time.Second, time.Second
			p, err := Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			p.Wait()
			// 5 % of 2 s are 100 ms; the machine may give less, never much more.
			usage := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
			if usage > 600*time.Millisecond {
				t.Errorf("used %v of processor time in 2 s under a limit of 5 %%", usage)
			}
		})
	}
}

// A process that sleeps in the kernel does not see SIGKILL before it wakes; one
// that another freezer has stopped behaves the same.
func TestWhatTheKernelHoldsIsReported(t *testing.T) {
	t.Parallel()
	c := realGroups(t)["v1"]
	if c == nil {
		t.Skip("needs the freezer of version 1: that of version 2 lets SIGKILL through")
	}
	var freezerDir string
	for _, h := range c.hierarchies {
		if h.has("freezer") {
			freezerDir = filepath.Join(filepath.Dir(h.base), "fleet-test-"+strconv.Itoa(os.Getpid()))
		}
	}
	if freezerDir == "" {
		t.Skip("no freezer")
	}
	if err := os.Mkdir(freezerDir, 0o755); err != nil {
		t.Skip(err)
	}
	set := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(freezerDir, file), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "pids")
	spec := script(t, `sleep 600 & echo $! >> $F; wait`)
	spec.Env, spec.Cgroups, spec.Grace = append(spec.Env, "F="+file), c, 10*time.Millisecond
	ctx, cancel := contextOf(t)
	p, err := Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	pid := pids(t, file, 1)[0]
	set("cgroup.procs", strconv.Itoa(pid))
	set("freezer.state", "FROZEN")
	defer func() {
		set("freezer.state", "THAWED")
		waitFor(t, "the process ends when it wakes", func() bool { return dead(pid) })
		waitFor(t, "its freezer is empty", func() bool { return syscall.Rmdir(freezerDir) == nil })
		next := script(t, "true")
		next.Cgroups = c
		run(t, next)
		noDirectory(t, c, groupName(spec.Mark))
	}()
	cancel()
	begin := time.Now()
	exit := p.Wait()
	if exit.Survivors != 1 || !exit.Cancelled {
		t.Errorf("exit %+v, want one survivor", exit)
	}
	if took := time.Since(begin); took > killPatience+time.Minute {
		t.Errorf("took %v", took)
	}
}

func TestAGroupInUseIsNotSweptByAnotherAgent(t *testing.T) {
	for kind, c := range realGroups(t) {
		t.Run(kind, func(t *testing.T) {
			other := func() *Cgroups {
				o := &Cgroups{files: c.files, hierarchies: c.hierarchies, users: map[string]int{}}
				o.sweepAll()
				return o
			}
			mark := script(t, "").Mark
			g, err := c.join(mark, Limits{Tasks: 77})
			if err != nil {
				t.Fatal(err)
			}
			o := other()
			for _, h := range c.hierarchies {
				if _, err := os.Stat(filepath.Join(h.base, g.name)); err != nil {
					t.Errorf("an empty group that is held was removed: %v", err)
				}
			}
			g.letGo() // as when its agent dies
			o.mu.Lock()
			for range len(o.left)/maxSweep + 1 {
				o.sweepLocked()
			}
			o.mu.Unlock()
			noDirectory(t, c, g.name)
			g.leave()
		})
	}
}

// TestAnotherUserCannotHoldItsGroup: with a lock on its group a command of
// another user could make the next one run without limits, and the group stay.
func TestAnotherUserCannotHoldItsGroup(t *testing.T) {
	for kind, c := range realGroups(t) {
		t.Run(kind, func(t *testing.T) {
			var out strings.Builder
			spec := script(t, `(exec 9<"$D") 2>/dev/null && echo opened; cat "$D/cgroup.procs" >/dev/null && echo read`)
			spec.Cgroups, spec.User, spec.Stdout = c, "nobody", &out
			spec.Env = append(spec.Env, "D="+filepath.Join(c.hierarchies[0].base, groupName(spec.Mark)))
			if exit := run(t, spec); exit.Uncontained != "" || out.String() != "read\n" {
				t.Errorf("exit %+v, output %q; want its files readable and its directory closed", exit, out.String())
			}
		})
	}
}

func TestNestedGroupsAreKilledAndRemoved(t *testing.T) {
	for kind, c := range realGroups(t) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pids")
			spec := script(t, "")
			text := ""
			for _, h := range c.hierarchies {
				dir := filepath.Join(h.base, groupName(spec.Mark), "a", "b")
				text += "mkdir -p " + dir + "; echo $$ > " + dir + "/cgroup.procs; "
			}
			spec.Args[2] = text + "(setsid env -i F=$F /bin/sh -c 'echo $$ >> $F; exec env -i sleep 600' &); exec sleep 600"
			spec.Env, spec.Cgroups, spec.Grace = append(spec.Env, "F="+file), c, 10*time.Millisecond
			ctx, cancel := contextOf(t)
			p, err := Start(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			pid := pids(t, file, 1)[0]
			cancel()
			if exit := p.Wait(); exit.Survivors != 0 || !dead(pid) {
				t.Errorf("exit %+v", exit)
			}
			noDirectory(t, c, groupName(spec.Mark))
		})
	}
}

func noDirectory(t *testing.T, c *Cgroups, name string) {
	t.Helper()
	for _, h := range c.hierarchies {
		if _, err := os.Stat(filepath.Join(h.base, name)); err == nil {
			t.Errorf("%s is left in %s", name, h.base)
		}
	}
}

func TestHowChildrenAreContainedIsSaid(t *testing.T) {
	if got := noGroups.String(); !strings.HasPrefix(got, "process group only: ") {
		t.Errorf("got %q", got)
	}
	if got := openCgroups(osFiles{}, nil, nil).String(); got != "process group only: no control groups are mounted" {
		t.Errorf("got %q", got)
	}
}

func BenchmarkTrueInAGroup(b *testing.B) {
	for kind, c := range realGroups(b) {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				if _, err := Run(b.Context(), Spec{Args: []string{"/bin/true"}, Cgroups: c, Limits: Limits{Tasks: 100}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
