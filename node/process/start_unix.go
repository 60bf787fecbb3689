//go:build linux || darwin

package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const rootDir = "/"

// shell runs the gate. Every Unix has it there.
const shell = "/bin/sh"

// gateScript waits for a line on descriptor 3, takes its limits and becomes the
// program that its arguments name. It ends when the other side is closed
// instead. The limits are set by the shell, before the program can fork: to set
// them from outside needs a capability when the child is another user's.
func gateScript(l Limits) string {
	s := "read -r _ <&3 || exit 125; exec 3<&-; umask 022; " + ownOOM()
	if l.OpenFiles > 0 {
		s += fmt.Sprintf("ulimit -n %d || exit 126; ", l.OpenFiles)
	}
	if l.Processes > 0 { // dash says -p where bash says -u
		s += fmt.Sprintf("ulimit -u %d 2>/dev/null || ulimit -p %d || exit 126; ", l.Processes, l.Processes)
	}
	if l.NoCore {
		s += "ulimit -c 0 || exit 126; "
	}
	return s + `exec "$@"`
}

// ownOOM is oomReset for this process.
var ownOOM = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return "" // not Linux
	}
	return oomReset(strings.TrimSpace(string(b)))
})

// oomReset makes a child as good a victim as any when this process, as a
// service, is one of the last: the kernel hands the score down, and a command
// that takes all memory must go before the agent does. To give up an advantage
// needs no right.
func oomReset(own string) string {
	if n, err := strconv.Atoi(own); err != nil || n >= 0 {
		return ""
	}
	return "{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null; "
}

// gate holds a child before it runs anything.
type gate struct{ w *os.File }

func (g *gate) open() error {
	_, err := g.w.WriteString("\n")
	g.shut()
	return err
}

func (g *gate) shut() { _ = g.w.Close() }

// spawn starts the child up to its gate.
func (p *Process) spawn() (*gate, error) {
	stdout, err := p.pipe(p.spec.Stdout)
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := p.pipe(p.spec.Stderr)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	held, opener, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe for %s: %w", p.spec.Args[0], err)
	}
	defer held.Close()
	g := &gate{w: opener}

	credential, err := credentialOf(p.spec.User)
	if err != nil {
		g.shut()
		return nil, err
	}
	closeOnExec()
	start := func(dir *os.File) error {
		p.cmd = &exec.Cmd{
			Path:       shell,
			Args:       append([]string{"sh", "-c", gateScript(p.spec.Limits), "sh"}, p.spec.Args...),
			Dir:        p.spec.Dir,
			Env:        p.spec.environment(),
			Stdout:     stdout,
			Stderr:     stderr,
			ExtraFiles: []*os.File{held},
			// A session of its own also is a process group of its own, and has no
			// terminal that a child could read from or be stopped by. There is no
			// parent-death signal: it would follow the thread, not the process.
			SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: credential},
		}
		createIn(p.cmd.SysProcAttr, dir)
		return p.cmd.Start()
	}
	dir := p.group.directory()
	err = start(dir)
	if dir != nil {
		_ = dir.Close() // opened to name the group
		if err != nil { // a kernel without clone3, or an agent that swept the group away
			err = start(nil)
		}
	}
	if err != nil {
		g.shut()
		return nil, startError(p.spec, err)
	}
	p.id = identify(p.cmd.Process.Pid, p.spec.Mark)
	if p.group != nil {
		// At the gate: nothing of it has run yet.
		if err := p.group.place(p.cmd.Process.Pid, p.spec.Limits); err != nil {
			p.exit.Uncontained = err.Error()
		}
	}
	return g, nil
}

// outputPipe is the pipe of one output.
func outputPipe() (r, w *os.File, err error) { return os.Pipe() }

// credentialOf is what makes the child run as a user; nil for our own.
func credentialOf(name string) (*syscall.Credential, error) {
	account, err := LookupUser(name)
	if err != nil || account.Own {
		return nil, err
	}
	uid, err := strconv.ParseUint(account.UID, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("run as user %.64q: user ID %w", name, err)
	}
	gid, err := strconv.ParseUint(account.GID, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("run as user %.64q: group ID %w", name, err)
	}
	groups, err := groupsOf(account.Name, account.GID)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}, nil
}

func exitCode(state *os.ProcessState) (code, signal int) {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), int(status.Signal())
	}
	return state.ExitCode(), 0
}

// signalGroup signals a process group. That it is gone is no error.
func signalGroup(pgid int, s syscall.Signal) {
	if err := syscall.Kill(-pgid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		// EPERM: members that changed their user; the walk over all
		// processes meets them again.
		return
	}
}
