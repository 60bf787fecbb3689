package process

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// freezePatience is how long the kernel may take to stop the processes of a
// group that are to be killed while none can fork.
const freezePatience = 100 * time.Millisecond

// emptied is how long the kernel may take to let go of an empty group.
const emptied = 100 * time.Millisecond

// cpuPeriod is over what CPU time is counted, in microseconds.
const cpuPeriod = 100_000

// group is the control group of a mark. A nil one is none.
type group struct {
	c       *Cgroups
	name    string
	held    []func() // let go of its directories
	refused []error  // of the limits that it could not be given
	before  pressure
}

// pressure is how often the limits of a group took effect.
type pressure struct{ kills, refusals uint64 }

// join makes the group of a mark, or takes part in it, and gives it its
// limits. The caller must call leave. A nil group means that there are none.
func (c *Cgroups) join(mark string, l Limits) (*group, error) {
	if !c.any() {
		return nil, nil
	}
	name := groupName(mark)
	if mark == "" {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		name = groupPrefix + hex.EncodeToString(b[:])
	}
	g := &group{c: c, name: name}
	c.mu.Lock()
	c.sweepLocked()
	c.users[name]++
	c.mu.Unlock()
	if err := g.make(l); err != nil {
		g.leave()
		return nil, err
	}
	g.before = g.pressure()
	return g, nil
}

// find is the group of a mark if it exists. The caller must call leave.
func (c *Cgroups) find(mark string) *group {
	if !c.any() || mark == "" {
		return nil
	}
	g := &group{c: c, name: groupName(mark)}
	c.mu.Lock()
	c.users[g.name]++
	c.mu.Unlock()
	return g
}

// make makes the directories, holds them and sets the limits. Until they are
// held, another agent of this host may sweep them away.
func (g *group) make(l Limits) (err error) {
	for range makeRetries {
		if err = g.makeOnce(l); !swept(err) {
			break
		}
		<-time.After(time.Millisecond)
	}
	return err
}

// swept reports whether an error may come from another agent that removes what
// it takes for a group of the past.
func swept(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EWOULDBLOCK)
}

// letGo ends the hold on the directories.
func (g *group) letGo() {
	for _, release := range g.held {
		release()
	}
	g.held = nil
}

func (g *group) makeOnce(l Limits) error {
	g.letGo()
	g.refused = nil
	for _, h := range g.c.hierarchies {
		dir := path.Join(h.base, g.name)
		if err := g.c.files.mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		release, err := g.c.files.lock(dir, false)
		if err != nil {
			return err
		}
		g.held = append(g.held, release)
		for _, s := range settings(h, l) {
			err := g.c.files.write(path.Join(dir, s.file), s.value)
			switch {
			case err == nil:
			case errors.Is(err, syscall.EBUSY):
				// What an earlier step of the command left there uses more than
				// the limit already; the limit that it has stays.
			case swept(err) && g.gone(dir):
				return err
			case s.wanted:
				// One that the kernel does not have, or that is more than those
				// above allow, must not cost the others, nor the group.
				g.refused = append(g.refused, fmt.Errorf("%s: %w", s.file, err))
			}
		}
	}
	return nil
}

// gone reports whether a directory of the group was swept away.
func (g *group) gone(dir string) bool {
	_, err := g.c.files.list(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// unbound names the limits that the group could not be given; "" for none.
func (g *group) unbound() string {
	if g == nil || len(g.refused) == 0 {
		return ""
	}
	return strings.ReplaceAll(errors.Join(g.refused...).Error(), "\n", "; ")
}

type setting struct {
	file, value string
	wanted      bool // it is a limit; false where it says that there is none
}

// settings are the files that give a group its limits. Every one is written
// each time: a group may have been left by an earlier child with other limits.
func settings(h *hierarchy, l Limits) (all []setting) {
	add := func(controller, v1, v2, value string, wanted bool) {
		switch {
		case !h.has(controller):
		case h.v2:
			all = append(all, setting{v2, value, wanted})
		default:
			all = append(all, setting{v1, value, wanted})
		}
	}
	tasks, memory, swap, quota := "max", "max", "max", "max"
	if l.Tasks > 0 {
		tasks = strconv.FormatUint(l.Tasks, 10)
	}
	if l.Memory > 0 {
		memory, swap = strconv.FormatUint(l.Memory, 10), "0" // what it holds in swap is memory too
	}
	if l.CPU > 0 {
		quota = strconv.FormatUint(uint64(max(1000, l.CPU*cpuPeriod)), 10)
	}
	add("pids", "pids.max", "pids.max", tasks, l.Tasks > 0)
	if !h.v2 {
		if memory == "max" {
			memory = "-1"
		}
		if quota == "max" {
			quota = "-1"
		}
		// Memory and swap together are at least memory, at every moment: the limit
		// of both is lifted, then set. A kernel that does not count swap has no
		// such file, which is no reason to complain.
		add("memory", "memory.memsw.limit_in_bytes", "", "-1", false)
		add("memory", "memory.limit_in_bytes", "", memory, l.Memory > 0)
		if l.Memory > 0 {
			add("memory", "memory.memsw.limit_in_bytes", "", memory, false)
		}
		add("cpu", "cpu.cfs_period_us", "", strconv.Itoa(cpuPeriod), l.CPU > 0)
		add("cpu", "cpu.cfs_quota_us", "", quota, l.CPU > 0)
		return all
	}
	add("memory", "", "memory.max", memory, l.Memory > 0)
	add("memory", "", "memory.swap.max", swap, false) // as above
	add("cpu", "", "cpu.max", quota+" "+strconv.Itoa(cpuPeriod), l.CPU > 0)
	return all
}

// directory opens the group in the hierarchy of version 2, for a child that
// the kernel is to create inside it; nil if there is none.
func (g *group) directory() *os.File {
	if g == nil {
		return nil
	}
	for _, h := range g.c.hierarchies {
		if h.v2 {
			if f, err := os.Open(path.Join(h.base, g.name)); err == nil {
				return f
			}
		}
	}
	return nil
}

// place moves a process into the group, in every hierarchy.
func (g *group) place(pid int, l Limits) (err error) {
	for range makeRetries {
		if err = g.placeOnce(pid); !swept(err) {
			return err
		}
		if err := g.make(l); err != nil {
			return err
		}
	}
	return err
}

func (g *group) placeOnce(pid int) error {
	for _, h := range g.c.hierarchies {
		if err := g.c.files.write(path.Join(h.base, g.name, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// processes are the numbers of all in the group and in the groups that they
// made below it. Some may have ended since.
func (g *group) processes() map[int]bool {
	if g == nil {
		return nil
	}
	all := map[int]bool{}
	for _, h := range g.c.hierarchies {
		for _, dir := range g.c.subtree(path.Join(h.base, g.name)) {
			for _, pid := range g.c.procs(dir) {
				all[pid] = true
			}
		}
	}
	return all
}

// kill sends SIGKILL to all in the group, so that none can get away by forking:
// by cgroup.kill where the kernel has it (5.14), else with the group stopped.
// It is called again until the group is empty.
func (g *group) kill() {
	if g == nil {
		return
	}
	for _, h := range g.c.hierarchies {
		dir := path.Join(h.base, g.name)
		if h.has("pids") {
			_ = g.c.files.write(path.Join(dir, "pids.max"), "0") // best effort: a fork bomb stops growing
		}
		if !h.v2 || g.c.files.write(path.Join(dir, "cgroup.kill"), "1") != nil {
			g.killEach(h, dir)
		}
	}
}

func (g *group) killEach(h *hierarchy, dir string) {
	freeze := freezer(h)
	if freeze != nil {
		freeze(g.c.files, dir, true)
		defer freeze(g.c.files, dir, false) // version 1 lets no signal through before
	}
	for _, d := range g.c.subtree(dir) {
		for _, pid := range g.c.procs(d) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // that it ended meanwhile is what we want
		}
	}
}

// freezer is what stops and continues the processes of a group; nil if the
// hierarchy cannot.
func freezer(h *hierarchy) func(f files, dir string, stop bool) {
	var file, stopped, going, status, done string
	switch {
	case h.v2:
		file, stopped, going, status, done = "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1"
	case h.has("freezer"):
		file, stopped, going, status, done = "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN"
	default:
		return nil
	}
	return func(f files, dir string, stop bool) {
		if !stop {
			_ = f.write(path.Join(dir, file), going) // called again if it is not so
			return
		}
		if f.write(path.Join(dir, file), stopped) != nil {
			return // then they are killed while they run
		}
		for deadline := time.Now().Add(freezePatience); time.Now().Before(deadline); <-time.After(time.Millisecond) {
			b, err := f.read(path.Join(dir, status))
			if err != nil || strings.Contains("\n"+string(b), "\n"+done) {
				return
			}
		}
	}
}

// pressure reads how often the limits took effect.
func (g *group) pressure() (p pressure) {
	for _, h := range g.c.hierarchies {
		dir := path.Join(h.base, g.name)
		if h.has("pids") {
			p.refusals += g.counter(path.Join(dir, "pids.events"), "max")
		}
		if h.has("memory") {
			file := "memory.oom_control"
			if h.v2 {
				file = "memory.events"
			}
			p.kills += g.counter(path.Join(dir, file), "oom_kill")
		}
	}
	return p
}

// counter is the number behind a name in a file of "name number" lines.
func (g *group) counter(file, name string) uint64 {
	b, err := g.c.files.read(file)
	if err != nil {
		return 0 // an older kernel
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// since is what the limits did since join.
func (g *group) since() pressure {
	if g == nil {
		return pressure{}
	}
	now := g.pressure()
	if now.kills < g.before.kills || now.refusals < g.before.refusals { // made anew meanwhile
		return now
	}
	return pressure{now.kills - g.before.kills, now.refusals - g.before.refusals}
}

// leave ends the caller's part in the group. The last one removes it; if
// something still runs in it, a later sweep does. (If another joins meanwhile,
// it makes the group anew.)
func (g *group) leave() {
	if g == nil {
		return
	}
	g.letGo()
	g.c.mu.Lock()
	g.c.users[g.name]--
	last := g.c.users[g.name] == 0
	if last {
		delete(g.c.users, g.name)
	}
	g.c.mu.Unlock()
	if !last || g.removeSoon() {
		return
	}
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	if len(g.c.left) < maxLeft && !slices.Contains(g.c.left, g.name) {
		g.c.left = append(g.c.left, g.name)
	}
}

// removeSoon removes the group unless something runs in it. The kernel lets go
// of a group a moment after its last process has ended.
func (g *group) removeSoon() bool {
	for deadline := time.Now().Add(emptied); ; <-time.After(time.Millisecond) {
		if g.c.remove(g.name) {
			return true
		}
		if time.Now().After(deadline) || g.alive() {
			return false
		}
	}
}

// alive reports whether a process in the group has not ended.
func (g *group) alive() bool {
	for pid := range g.processes() {
		if s, err := readStat(pid); err == nil && !s.dead() {
			return true
		}
	}
	return false
}

// createIn makes a new process begin inside a group of version 2.
func createIn(attr *syscall.SysProcAttr, dir *os.File) {
	if dir != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
}
