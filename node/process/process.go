// Package process is the only starter of child processes.
//
// A child runs in a session and process group of its own, with an environment
// that was built for it (nothing is inherited), limits, a deadline, and pipes
// that are drained whatever it writes. These hold:
//
//   - Nothing runs before it is known. A child is held at a gate until
//     Spec.Spawned has returned (the journal writes who it is there), and ends
//     without having run anything when the gate is never opened, for example
//     because this process died. So a leftover can always be named.
//   - Wait returns. Neither a grandchild that keeps stdout open, nor one that
//     left the process group, nor one that ignores SIGTERM, nor a process that
//     the kernel will not let go can hold it.
//   - At a timeout and at a cancel the whole tree gets SIGTERM and, after a
//     grace, SIGKILL. The tree is all of these: the child's control group, its
//     process group, its session, its descendants, and every process that
//     carries its mark in its environment. A control group alone is not
//     enough: "su -" can move what it starts into a group of the service
//     manager. The others alone are not either: a process that changes its
//     session, loses its parents and clears its environment escapes them.
//     Only root inside the child can leave all five, and only on purpose.
//   - A child that ends by itself may leave daemons behind, as a shell does.
//     They stay in its control group and under its limits; the group is
//     removed when they have ended. One that ran into Limits.Tasks may not: a
//     fork bomb is one of which the first process ends at once.
//
// Linux has all of it, as far as the host lets control groups be made; see
// Cgroups. macOS knows the process group only and cannot recognise leftovers of
// an earlier run.
//
// Windows has a job object for each child, which nothing that the child starts
// can leave, and the gate is that the child is made suspended. There is no
// SIGTERM: the tree is ended at once. It also ends when this process dies, so
// there are no leftovers. A job counts processes, not threads; it refuses memory
// beyond Limits.Memory instead of killing; another user is not possible.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"fleet/node/fleet"
)

// Defaults of a Spec, and what Wait allows for.
const (
	DefaultGrace = 10 * time.Second
	DefaultDrain = 2 * time.Second

	// killPatience is how long a process may still be there after SIGKILL
	// before it is reported as a survivor: it sleeps in the kernel.
	killPatience = 5 * time.Second

	// pumpSize is the buffer of each output, the capacity of a pipe.
	pumpSize = 64 << 10
)

// MarkVariable is the environment variable that carries Spec.Mark. It reaches
// whatever the child starts, also what leaves its process group and session.
const MarkVariable = "FLEET_PROCESS"

// Spec says what to run.
type Spec struct {
	Args []string // Args[0] is the absolute path of the program
	Dir  string   // absolute; "" is the root directory
	Env  []string // "NAME=value", the whole environment; see CheckEnv
	User string   // "" or our own: as this process; another needs root

	// Stdout and Stderr get what the child writes, in pieces, each from one
	// goroutine; nil discards. The child waits while Write does. An error ends
	// the writing but never the draining.
	Stdout, Stderr io.Writer

	Timeout time.Duration // from the opening of the gate; 0 is none
	Grace   time.Duration // between SIGTERM and SIGKILL; 0 is DefaultGrace

	// Drain is how long after the child's end its output may stay open in the
	// hands of others before it is closed; 0 is DefaultDrain.
	Drain time.Duration

	Limits Limits

	// Cgroups is where the control group of the mark is made; nil makes none.
	Cgroups *Cgroups

	// Mark names the child's tree; see MarkVariable. Letters, digits and
	// "-_./", at most 128; "" marks nothing.
	Mark string

	// Spawned is told who the child is while it is held at the gate. When it
	// returns an error, nothing is run and Start returns that error.
	Spawned func(Identity) error
}

// Limits bound the child and what it starts; zero leaves what this process
// has. A child that cannot be given one of the first three (root of a container
// cannot raise one) ends with code 126 and says so on stderr. Windows has neither
// of the first two.
type Limits struct {
	OpenFiles uint64 // of each process
	Processes uint64 // of the user in all; root is not bound by it
	NoCore    bool   // a crash writes no memory to disk

	// These bind the control group (on Windows the job object, which is always
	// there): the child with all that it starts, whoever runs it. Where there is none, they do not bind, and Exit says so.
	Tasks  uint64  // processes and threads
	Memory uint64  // bytes, with the pages of files that it touches
	CPU    float64 // processors
}

// Identity tells a process from every other that this machine ran or will run.
type Identity struct {
	PID   int    // also its process group and session
	Start uint64 // clock ticks since boot; 0 where it is not known
	Boot  string // boot ID; "" where it is not known
	Mark  string // Spec.Mark
}

// Exit says how a child ended.
type Exit struct {
	Code   int // exit code; 128 + signal when a signal ended it; -1 when it did not end
	Signal int // the signal that ended it, else 0

	TimedOut  bool // Spec.Timeout passed and the tree was killed
	Cancelled bool // the context ended first and the tree was killed

	// Survivors is how many processes of a killed tree were still there
	// killPatience after SIGKILL (they sleep in the kernel).
	Survivors int

	// What the limits of the control group did meanwhile: processes that were
	// killed for Limits.Memory, and new processes and threads that were refused
	// for Limits.Tasks.
	MemoryKills  uint64
	TasksRefused uint64

	// Overrun says that the child ended by itself, had reached Limits.Tasks and
	// left processes behind, which were killed.
	Overrun bool

	// Uncontained says why the child had no control group although
	// Spec.Cgroups could have made one; "" otherwise.
	Uncontained string

	// Unbound names the limits that the control group could not be given, and
	// why; "" when it has all of them.
	Unbound string

	// Held says that others still had the output open at the child's end, and
	// what they write later is lost.
	Held bool

	Output error // the first error of Spec.Stdout or Spec.Stderr
}

// Process is one child.
type Process struct {
	spec  Spec
	id    Identity
	cmd   *exec.Cmd
	group *group // nil: none
	pumps []*pump
	over  chan struct{} // closed when exit is set
	exit  Exit
}

// Starter is Run, or what a test puts in its place.
type Starter func(ctx context.Context, spec Spec) (Exit, error)

// Run starts a child and waits for its end. An error means that nothing ran.
func Run(ctx context.Context, spec Spec) (Exit, error) {
	p, err := Start(ctx, spec)
	if err != nil {
		return Exit{}, err
	}
	return p.Wait(), nil
}

// Start starts a child, which is killed when ctx ends. The caller must call
// Wait. Errors that a person can act on have a fleet.Kind: Invalid for the
// spec, NotFound for a program or user that does not exist, Denied for a user
// that this process may not become.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start: %w", context.Cause(ctx))
	}
	spec, err := spec.checked()
	if err != nil {
		return nil, err
	}
	p := &Process{spec: spec, over: make(chan struct{})}
	if p.group, err = spec.Cgroups.join(spec.Mark, spec.Limits); err != nil {
		// A host whose control groups are broken must still be reached.
		p.exit.Uncontained = err.Error()
	}
	g, err := p.spawn()
	if err != nil {
		p.closePipes()
		p.group.leave()
		return nil, err
	}
	p.exit.Unbound = p.group.unbound()
	if spec.Spawned != nil {
		if err := spec.Spawned(p.id); err != nil {
			g.shut()
			p.abandon()
			return nil, err
		}
	}
	if err := g.open(); err != nil {
		p.abandon()
		return nil, fmt.Errorf("start %s: %w", spec.Args[0], err)
	}
	for _, pump := range p.pumps {
		go pump.run()
	}
	go p.supervise(ctx)
	return p, nil
}

// Identity is who the child is.
func (p *Process) Identity() Identity { return p.id }

// Wait returns when the child has ended, its output is drained and, if it was
// killed, its tree is gone. Every call returns the same.
func (p *Process) Wait() Exit {
	<-p.over
	return p.exit
}

// checked is the spec with its defaults, or the first thing wrong with it.
func (s Spec) checked() (Spec, error) {
	if len(s.Args) == 0 || !isAbs(s.Args[0]) {
		return s, fleet.Errorf(fleet.Invalid, "start: the program must be an absolute path")
	}
	for _, arg := range s.Args {
		if hasNUL(arg) {
			return s, fleet.Errorf(fleet.Invalid, "start %s: an argument holds a NUL byte", s.Args[0])
		}
	}
	if s.Dir == "" {
		s.Dir = rootDir
	}
	if !isAbs(s.Dir) || hasNUL(s.Dir) {
		return s, fleet.Errorf(fleet.Invalid, "start %s: working directory %.200q is not an absolute path", s.Args[0], s.Dir)
	}
	if err := CheckEnv(s.Env); err != nil {
		return s, err
	}
	if !validMark(s.Mark) {
		return s, fleet.Errorf(fleet.Invalid, "start %s: mark %.130q is not of letters, digits and -_./, at most 128", s.Args[0], s.Mark)
	}
	if s.Timeout < 0 || s.Grace < 0 || s.Drain < 0 {
		return s, fleet.Errorf(fleet.Invalid, "start %s: a negative duration", s.Args[0])
	}
	if s.Grace == 0 {
		s.Grace = DefaultGrace
	}
	if s.Drain == 0 {
		s.Drain = DefaultDrain
	}
	if info, err := os.Stat(s.Dir); err != nil || !info.IsDir() {
		return s, fleet.Errorf(fleet.NotFound, "working directory %s does not exist", s.Dir)
	}
	if info, err := os.Stat(s.Args[0]); err != nil || info.IsDir() {
		return s, fleet.Errorf(fleet.NotFound, "program %s does not exist", s.Args[0])
	}
	return s, nil
}

// environment is the child's: what the spec says, and the mark.
func (s Spec) environment() []string {
	env := append(make([]string, 0, len(s.Env)+1), s.Env...) // never nil: a nil Env would inherit ours
	if s.Mark != "" {
		env = append(env, MarkVariable+"="+s.Mark)
	}
	return env
}

// supervise owns the child from the gate to its last byte.
func (p *Process) supervise(ctx context.Context) {
	defer close(p.over)
	w := p.watch()
	var deadline <-chan time.Time
	if p.spec.Timeout > 0 {
		t := time.NewTimer(p.spec.Timeout)
		defer t.Stop()
		deadline = t.C
	}
	select {
	case <-w.ended:
	case <-deadline:
		p.exit.TimedOut = true
	case <-ctx.Done():
		p.exit.Cancelled = true
	}
	var before pressure
	select {
	case <-w.ended:
		// It ended by itself in the same moment: its own word counts.
		p.exit.TimedOut, p.exit.Cancelled = false, false
	default:
		before = p.group.since() // a group that was emptied could be swept away by an older agent of this host
		// Not reaped before the tree is gone: so its number stays its own.
		p.exit.Survivors = p.killTree(w.ended)
	}
	p.exit.Code = -1
	close(w.reap)
	select {
	case <-w.ended:
		<-w.reaped
		p.exit.Code, p.exit.Signal = exitCode(p.cmd.ProcessState)
	default: // in the kernel; whoever watches it reaps it when it comes out
	}
	p.drain()
	did := p.group.since()
	p.exit.MemoryKills, p.exit.TasksRefused = max(did.kills, before.kills), max(did.refusals, before.refusals)
	if did.refusals > 0 && !p.exit.TimedOut && !p.exit.Cancelled {
		p.exit.Overrun, p.exit.Survivors = p.killLeft()
	}
	p.group.leave()
}

// drain waits for the pumps; what others hold open is cut off.
func (p *Process) drain() {
	patience := time.NewTimer(patienceOf(p.spec))
	defer patience.Stop()
	cut := false
	for _, pump := range p.pumps {
		if !cut {
			select {
			case <-pump.done:
			case <-patience.C:
				cut = true
			}
		}
		if cut {
			select {
			case <-pump.done:
			default:
				p.exit.Held = true
				pump.interrupt()
			}
		}
		<-pump.done
		if p.exit.Output == nil {
			p.exit.Output = pump.err
		}
	}
	p.closePipes()
}

// abandon ends a child that was never let through the gate.
func (p *Process) abandon() {
	_ = p.cmd.Process.Kill() // it may have ended already
	_ = p.cmd.Wait()
	p.closePipes()
	p.group.leave()
}

// watcher reports the child's end before it is reaped: until then its number,
// which is also that of its group, cannot be given to another process.
type watcher struct {
	ended  chan struct{} // closed by the watcher when the child has ended
	reap   chan struct{} // closed by supervise when it may be reaped
	reaped chan struct{} // closed by the watcher when it was
}

// watch starts the goroutine that reaps the child. It ends with the child,
// which is later than Wait only for one that the kernel does not let go.
func (p *Process) watch() *watcher {
	w := &watcher{ended: make(chan struct{}), reap: make(chan struct{}), reaped: make(chan struct{})}
	go func() {
		awaitExit(p.cmd.Process.Pid)
		close(w.ended)
		<-w.reap
		_ = p.cmd.Wait() // says only that the exit code is not 0
		close(w.reaped)
	}()
	return w
}

// pump copies one output of the child to its writer.
type pump struct {
	r    *os.File
	w    io.Writer
	done chan struct{} // closed by run
	err  error         // of w; read after done
	once sync.Once
}

func (p *pump) run() {
	defer close(p.done)
	buf := make([]byte, pumpSize)
	for {
		n, err := p.r.Read(buf)
		if n > 0 && p.w != nil && p.err == nil {
			_, p.err = p.w.Write(buf[:n])
		}
		if err != nil { // the end, or interrupt
			return
		}
	}
}

// interrupt makes run return although the pipe is still open.
func (p *pump) interrupt() {
	if err := p.r.SetReadDeadline(time.Unix(1, 0)); err != nil {
		p.close()
	}
}

func (p *pump) close() { p.once.Do(func() { _ = p.r.Close() }) }

func (p *Process) closePipes() {
	for _, pump := range p.pumps {
		pump.close()
	}
}

// pipe makes the pipe of one output and its pump; the child gets the file.
func (p *Process) pipe(w io.Writer) (*os.File, error) {
	r, f, err := outputPipe()
	if err != nil {
		return nil, fmt.Errorf("pipe for the output of %s: %w", p.spec.Args[0], err)
	}
	p.pumps = append(p.pumps, &pump{r: r, w: w, done: make(chan struct{})})
	return f, nil
}

// startError puts the reasons that a person can act on into words.
func startError(spec Spec, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fleet.Errorf(fleet.NotFound, "start %s: %w", spec.Args[0], err)
	case errors.Is(err, os.ErrPermission):
		return fleet.Errorf(fleet.Denied, "start %s: %w", spec.Args[0], err)
	}
	return fmt.Errorf("start %s: %w", spec.Args[0], err)
}
