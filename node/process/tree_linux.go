package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long walks must find nothing before a tree is taken for gone:
// a process in the middle of an exec has no environment for a moment, and so
// no mark.
const settle = 20 * time.Millisecond

// maxEnviron is how much of a process's environment is searched for a mark.
const maxEnviron = 4 << 20

// stat is what /proc/PID/stat says of a process.
type stat struct {
	pid     int
	state   byte // 'Z' and 'X' are dead already
	parent  int
	group   int
	session int
	start   uint64
}

// parseStat reads one /proc/PID/stat. The name of the program, in brackets,
// may itself hold spaces and brackets.
func parseStat(line string) (stat, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return stat{}, fmt.Errorf("stat %.100q: no name in brackets", line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return stat{}, fmt.Errorf("stat: %w", err)
	}
	fields := strings.Fields(line[end+1:]) // from the third field on
	if len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, fmt.Errorf("stat of %d: %d fields after the name", pid, len(fields))
	}
	s := stat{pid: pid, state: fields[0][0]}
	for i, to := range map[int]*int{1: &s.parent, 2: &s.group, 3: &s.session} {
		if *to, err = strconv.Atoi(fields[i]); err != nil {
			return stat{}, fmt.Errorf("stat of %d: %w", pid, err)
		}
	}
	if s.start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return stat{}, fmt.Errorf("stat of %d: %w", pid, err)
	}
	return s, nil
}

func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(b))
}

// BootID names this boot of the machine. It is an error where the kernel has
// none to give; "" on systems without one.
func BootID() (string, error) { return bootID() }

var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot ID of this machine: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
})

func identify(pid int, mark string) Identity {
	id := Identity{PID: pid, Mark: mark}
	if boot, err := BootID(); err == nil {
		id.Boot = boot
	}
	if s, err := readStat(pid); err == nil {
		id.Start = s.start
	}
	return id
}

// tree is what a child has started.
type tree struct {
	id    Identity
	group *group // nil: none

	// ours is false when the number of the child may have been given to
	// another process since; then only its control group and its mark count.
	ours bool

	// reaped says that nothing keeps the number of the child for it, so ours
	// has to be asked again whenever it matters: see numbered.
	reaped bool

	// met are the processes that were found, by number, with their start: in
	// the middle of an exec one has no mark, and is a member all the same.
	met map[int]uint64
}

// members lists the living processes of a tree: the control group, the process
// group, the session, what carries the mark, and the descendants of all those.
func (t tree) members() []stat {
	pids := map[int]bool{}
	if dir, err := os.Open("/proc"); err == nil {
		names, _ := dir.Readdirnames(-1) // what was read before an error counts
		_ = dir.Close()                  // only read
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				pids[pid] = true
			}
		}
	}
	inside := t.group.processes()
	for pid := range inside { // may be younger than the list
		pids[pid] = true
	}
	self := os.Getpid()
	ours := t.numbered()
	var all []stat
	in := map[int]bool{}
	for pid := range pids {
		if pid <= 1 || pid == self {
			continue
		}
		s, err := readStat(pid)
		if err != nil || s.dead() {
			continue
		}
		all = append(all, s)
		in[pid] = inside[pid] || ours && (pid == t.id.PID || s.group == t.id.PID || s.session == t.id.PID) || marked(pid, t.id.Mark)
		if start, ok := t.met[pid]; ok && start == s.start {
			in[pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, s := range all {
			if !in[s.pid] && in[s.parent] {
				in[s.pid] = true
				grown = true
			}
		}
	}
	all = slices.DeleteFunc(all, func(s stat) bool { return !in[s.pid] })
	for _, s := range all {
		if t.met != nil {
			t.met[s.pid] = s.start
		}
	}
	return all
}

// numbered reports whether the number of the child still is that of the child,
// its group or its session, and of no later process: it is not given away while
// the child, or one of its group or session, has it.
func (t tree) numbered() bool {
	if !t.ours || !t.reaped {
		return t.ours
	}
	if s, err := readStat(t.id.PID); err == nil {
		return s.start == t.id.Start
	}
	for pid, start := range t.met {
		s, err := readStat(pid)
		if err == nil && s.start == start && (s.group == t.id.PID || s.session == t.id.PID) {
			return true
		}
	}
	return false
}

// marked reports whether a process carries the mark in its environment.
func marked(pid int, mark string) bool {
	if mark == "" {
		return false
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	defer f.Close()
	want := []byte(MarkVariable + "=" + mark)
	buf := make([]byte, 0, 16<<10)
	chunk := make([]byte, 16<<10)
	for len(buf) < maxEnviron {
		n, err := f.Read(chunk)
		buf = append(buf, chunk[:n]...)
		if err != nil || n == 0 {
			break
		}
	}
	for entry := range bytes.SplitSeq(buf, []byte{0}) {
		if bytes.Equal(entry, want) {
			return true
		}
	}
	return false
}

// signalOne signals a process, not one that took its number since.
func signalOne(s stat, sig syscall.Signal) {
	p, err := os.FindProcess(s.pid) // holds on to the process by descriptor
	if err != nil {
		return
	}
	defer func() { _ = p.Release() }()
	if now, err := readStat(s.pid); err != nil || now.start != s.start {
		return
	}
	_ = p.Signal(sig) // that it ended meanwhile is what we want
}

// killTree ends the child's tree and says how many survived. ended is closed
// when the child itself has ended (and is not reaped yet).
func (p *Process) killTree(ended <-chan struct{}) (survivors int) {
	t := tree{id: p.id, group: p.group, ours: true, met: map[int]uint64{}}
	signalGroup(p.id.PID, syscall.SIGTERM)
	for _, s := range t.members() {
		signalOne(s, syscall.SIGTERM)
	}
	if t.waitGone(ended, p.spec.Grace) {
		return 0
	}
	_, survivors = t.kill(ended)
	return survivors
}

// killLeft ends what a child that was reaped has left in its control group, and
// says whether there was any, and how many survived.
func (p *Process) killLeft() (any bool, survivors int) {
	if p.group == nil || !p.group.alive() {
		return false, 0
	}
	_, survivors = tree{id: p.id, group: p.group, met: map[int]uint64{}}.kill(closed)
	return true, survivors
}

// kill sends SIGKILL to a tree until nothing of it is left, at most for
// killPatience. It repeats, because a tree can grow while it is walked.
func (t tree) kill(ended <-chan struct{}) (killed, survivors int) {
	deadline := time.Now().Add(killPatience)
	for {
		members := t.members() // before: descendants are found by their parents
		t.group.kill()
		if t.numbered() {
			signalGroup(t.id.PID, syscall.SIGKILL) // all of the group at once
		}
		for _, s := range members {
			signalOne(s, syscall.SIGKILL)
		}
		if t.waitGone(ended, 50*time.Millisecond) {
			return len(t.met), 0
		}
		if time.Now().After(deadline) {
			survivors = max(1, len(t.members()))
			return max(0, len(t.met)-survivors), survivors
		}
	}
}

// waitGone waits until nothing of a tree is left and ended is closed, at most
// for patience, and reports whether that is so. The child itself is in ended
// too, so that a machine without /proc cannot make it be taken for gone.
func (t tree) waitGone(ended <-chan struct{}, patience time.Duration) bool {
	deadline := time.Now().Add(patience)
	var empty time.Time // since when walks found nothing
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		gone := len(t.members()) == 0
		select {
		case <-ended:
		default:
			gone = false
		}
		switch {
		case !gone && time.Now().After(deadline):
			return false
		case !gone:
			empty = time.Time{}
		case empty.IsZero():
			empty = time.Now()
		case time.Since(empty) >= settle:
			return true
		}
		<-time.After(wait)
	}
}

// closed is the end of a child that is not ours to wait for.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// KillLeftover ends what an earlier run of this program left of a child's
// tree, and says how many processes that were. It touches nothing when the
// machine was started anew since, and no process that merely has the child's
// number. An error says that some are still there.
func (c *Cgroups) KillLeftover(ctx context.Context, id Identity) (killed int, err error) {
	boot, err := BootID()
	if err != nil {
		return 0, err
	}
	if id.PID <= 1 || id.Boot == "" || id.Boot != boot {
		return 0, nil
	}
	// A number is not given away while a group or session has it. So when its
	// process is gone, the group may be that of a later one: only the control
	// group and the mark tell.
	s, err := readStat(id.PID)
	ours := err == nil && s.start == id.Start
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		return 0, fmt.Errorf("leftover process %d: %w", id.PID, err)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	t := tree{id: id, group: c.find(id.Mark), ours: ours, reaped: true, met: map[int]uint64{}}
	defer t.group.leave()
	killed, survivors := t.kill(closed)
	if survivors > 0 {
		return killed, fmt.Errorf("leftover process %d: %d of its tree could not be killed", id.PID, survivors)
	}
	return killed, nil
}

// closeOnExec makes sure that no child gets a descriptor that this process
// inherited from whoever started it. Those that it opened itself are so already.
var closeOnExec = sync.OnceFunc(func() {
	if unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, err := os.ReadDir("/proc/self/fd") // a kernel before 5.11
	if err != nil {
		return
	}
	for _, e := range names {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
})
