package process

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// This file finds where this process may make control groups; group_linux.go
// has one child's group.

const (
	// groupRoot is where groups are made unless a subtree was delegated to us.
	groupRoot = "fleet"

	// agentLeaf is where this process itself goes inside a delegated subtree:
	// version 2 wants no processes in a group that hands out controllers.
	agentLeaf = "agent"

	groupPrefix = "run-"

	maxSweep    = 64      // groups of the past that are tried again with each new one
	maxLeft     = 10_000  // groups of the past that are remembered
	maxFile     = 1 << 20 // of one file of a control group
	maxSubtree  = 4096    // groups below one of ours that are walked
	makeRetries = 10      // when a sweep of another agent took what was just made
)

// controllers are those that a group uses, with what they are called for a
// person. The freezer is part of version 2 itself.
var controllers = []struct{ name, says string }{{"pids", "processes"}, {"memory", "memory"}, {"cpu", "CPU"}}

// files is the file system of control groups, or what a test puts in its place.
type files interface {
	read(name string) ([]byte, error)
	write(name, text string) error
	mkdir(name string) error
	rmdir(name string) error
	list(name string) ([]string, error) // directories in one
	delegated(name string) bool         // the service manager has left it to us

	// lock holds a directory, shared or alone, without waiting. It is let go
	// when this process ends, however that is.
	lock(name string, alone bool) (release func(), err error)
}

// osFiles are the real ones.
type osFiles struct{}

func (osFiles) read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(&limitedFile{f, maxFile})
	return b.Bytes(), err
}

func (osFiles) write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// mkdir makes a group whose files others may read (a program sizes itself by
// its limits) and whose directory they may not open: whoever can open it can
// lock it, and so keep us from using and from removing it.
func (osFiles) mkdir(name string) error { return os.Mkdir(name, 0o711) }

func (osFiles) rmdir(name string) error { return unix.Rmdir(name) }

func (osFiles) list(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs, err
}

// delegated asks for the mark that systemd leaves for Delegate=yes.
func (osFiles) delegated(name string) bool {
	for _, attr := range []string{"trusted.delegate", "user.delegate"} {
		var b [8]byte
		if n, err := unix.Getxattr(name, attr, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

func (osFiles) lock(name string, alone bool) (func(), error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		// A child between its fork and its exec has the descriptor too, and
		// would keep the lock. If this fails, closing still gives the lock up as
		// soon as no child is there.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		_ = f.Close() // opened to be locked
	}, nil
}

// limitedFile reads at most so many bytes.
type limitedFile struct {
	f    *os.File
	left int
}

func (l *limitedFile) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("file is too long")
	}
	n, err := l.f.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

// hierarchy is one tree of control groups in which we make ours.
type hierarchy struct {
	v2          bool
	base        string   // the directory that ours are in
	controllers []string // that groups in base have
}

func (h *hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// Cgroups is where control groups can be made on this host. A nil one, and one
// that found nothing, make none.
type Cgroups struct {
	files       files
	hierarchies []*hierarchy
	why         []string // what could not be had, and why

	mu    sync.Mutex     // guards what follows
	users map[string]int // children that run in a group, by its name
	left  []string       // groups that were not empty when their last child ended
}

// OpenCgroups finds where control groups can be made: in the subtree that the
// service manager has delegated to this process, else in a directory of our
// own at the root. It moves this process into a leaf of a delegated subtree of
// version 2, and removes groups of the past that are empty.
func OpenCgroups() *Cgroups {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return &Cgroups{why: []string{err.Error()}}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return &Cgroups{why: []string{err.Error()}}
	}
	return openCgroups(osFiles{}, own, mounts)
}

func openCgroups(f files, own, mounts []byte) *Cgroups {
	c := &Cgroups{files: f, users: map[string]int{}}
	ours := parseOwnGroups(own)
	all := parseMounts(mounts)
	// The mark of delegation is on the tree that the service manager uses.
	delegated := ""
	for _, m := range all {
		if !m.v2 && !slices.Contains(m.controllers, "name=systemd") {
			continue
		}
		dir := m.within(ours[m.key()])
		if path.Base(dir) == agentLeaf && f.delegated(path.Dir(dir)) {
			dir = path.Dir(dir) // moved there by the service manager, or by an earlier life of this process
		}
		if dir != m.point && f.delegated(dir) {
			delegated = strings.TrimPrefix(dir, m.point)
			break
		}
	}
	for _, m := range all {
		if !m.wanted() {
			continue
		}
		h := &hierarchy{v2: m.v2, base: path.Join(m.point, groupRoot), controllers: m.controllers}
		inside := m.within(ours[m.key()])
		if at := path.Join(m.point, delegated); delegated != "" && (inside == at || inside == path.Join(at, agentLeaf)) {
			h.base = at
		}
		if err := c.prepare(h, m); err != nil {
			c.why = append(c.why, err.Error())
			continue
		}
		c.hierarchies = append(c.hierarchies, h)
	}
	if len(all) == 0 {
		c.why = append(c.why, "no control groups are mounted")
	}
	c.sweepAll()
	return c
}

// prepare makes a hierarchy ready for groups below its base.
func (c *Cgroups) prepare(h *hierarchy, m mount) error {
	if err := c.files.mkdir(h.base); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if h.v2 {
		h.controllers = c.handOut(h, m)
	}
	// Only a try shows that the kernel lets us.
	probe := path.Join(h.base, "probe-"+strconv.Itoa(os.Getpid()))
	if err := c.files.mkdir(probe); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return c.files.rmdir(probe)
}

// handOut makes the groups below a base of version 2 have controllers, and
// says which they have.
func (c *Cgroups) handOut(h *hierarchy, m mount) (have []string) {
	own := h.base != path.Join(m.point, groupRoot)
	if !own {
		if err := c.enable(m.point); err != nil {
			c.why = append(c.why, err.Error())
		}
	} else if err := c.moveAside(h.base); err != nil {
		c.why = append(c.why, err.Error())
		return nil
	}
	if err := c.enable(h.base); err != nil {
		c.why = append(c.why, err.Error())
	}
	on, err := c.files.read(path.Join(h.base, "cgroup.subtree_control"))
	if err != nil {
		c.why = append(c.why, err.Error())
	}
	return strings.Fields(string(on))
}

// moveAside brings the processes of a delegated group, which are this one and
// what started it, into a leaf.
func (c *Cgroups) moveAside(base string) error {
	leaf := path.Join(base, agentLeaf)
	if err := c.files.mkdir(leaf); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for range 3 { // one of them may fork meanwhile
		pids := c.procs(base)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			err := c.files.write(path.Join(leaf, "cgroup.procs"), strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// enable hands out the controllers that a group has to its children, each by
// itself: one that cannot be had must not cost the others.
func (c *Cgroups) enable(dir string) error {
	has, err := c.files.read(path.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := c.files.read(path.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, want := range controllers {
		if slices.Contains(strings.Fields(string(has)), want.name) && !slices.Contains(strings.Fields(string(on)), want.name) {
			err = errors.Join(err, c.files.write(path.Join(dir, "cgroup.subtree_control"), "+"+want.name))
		}
	}
	return err
}

// procs are the processes in one group, not in those below it.
func (c *Cgroups) procs(dir string) (pids []int) {
	b, err := c.files.read(path.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil // removed
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 { // 0 is one outside our PID namespace
			pids = append(pids, pid)
		}
	}
	return pids
}

// String says how children are contained, for a person: "cgroup v2 (limits:
// processes, memory, CPU)" or "process group only: " and the reason.
func (c *Cgroups) String() string {
	if !c.any() {
		why := "not asked for"
		if c != nil && len(c.why) > 0 {
			why = strings.Join(c.why, "; ")
		}
		return "process group only: " + why
	}
	version := "cgroup v1"
	if slices.ContainsFunc(c.hierarchies, func(h *hierarchy) bool { return h.v2 }) {
		version = "cgroup v2"
		if len(c.hierarchies) > 1 {
			version = "cgroup v1 and v2"
		}
	}
	var has, lacks []string
	for _, k := range controllers {
		if c.limits(k.name) {
			has = append(has, k.says)
		} else {
			lacks = append(lacks, k.says)
		}
	}
	s := version + " (limits: " + strings.Join(has, ", ") + ")"
	if len(has) == 0 {
		s = version + " (no limits)"
	}
	if len(lacks) > 0 {
		s += ", no limit of " + strings.Join(lacks, " and ")
		if len(c.why) > 0 {
			s += ": " + strings.Join(c.why, "; ")
		}
	}
	return s
}

func (c *Cgroups) any() bool { return c != nil && len(c.hierarchies) > 0 }

// limits reports whether groups have a controller.
func (c *Cgroups) limits(controller string) bool {
	return slices.ContainsFunc(c.hierarchies, func(h *hierarchy) bool { return h.has(controller) })
}

// sweepAll removes what earlier runs of this program left and is empty, and
// remembers the rest.
func (c *Cgroups) sweepAll() {
	found := map[string]bool{}
	for _, h := range c.hierarchies {
		names, err := c.files.list(h.base)
		if err != nil {
			continue // the next look will tell
		}
		for _, name := range names {
			if len(found) < maxLeft && ourName(name) {
				found[name] = true
			}
		}
	}
	for name := range found {
		if !c.remove(name) {
			c.left = append(c.left, name)
		}
	}
}

// sweepLocked tries again to remove some of the groups that were not empty.
func (c *Cgroups) sweepLocked() {
	for range min(maxSweep, len(c.left)) {
		name := c.left[0]
		c.left = c.left[1:]
		if c.users[name] == 0 && !c.remove(name) {
			c.left = append(c.left, name)
		}
	}
}

// remove removes the group of a name from every hierarchy, with what was made
// below it; false if something still runs in it, or an agent of this host holds
// it, whose child is about to begin or has just ended.
func (c *Cgroups) remove(name string) bool {
	gone := true
	for _, h := range c.hierarchies {
		top := path.Join(h.base, name)
		release, err := c.files.lock(top, true)
		if err != nil {
			gone = gone && errors.Is(err, fs.ErrNotExist)
			continue
		}
		dirs := c.subtree(top)
		slices.Reverse(dirs) // the deepest first
		for _, dir := range dirs {
			if err := c.files.rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				gone = false
			}
		}
		release()
	}
	return gone
}

// subtree lists a group and those below it, parents first.
func (c *Cgroups) subtree(dir string) []string {
	all := []string{dir}
	for i := 0; i < len(all) && len(all) < maxSubtree; i++ {
		names, err := c.files.list(all[i])
		if err != nil {
			continue // removed
		}
		for _, name := range names {
			all = append(all, path.Join(all[i], name))
		}
	}
	return all
}

// groupName is that of a mark's group: derived, since no foreign text may
// become a path.
func groupName(mark string) string {
	sum := sha256.Sum256([]byte(mark))
	return groupPrefix + hex.EncodeToString(sum[:16])
}

func ourName(name string) bool {
	rest, ok := strings.CutPrefix(name, groupPrefix)
	_, err := hex.DecodeString(rest)
	return ok && len(rest) == 32 && err == nil
}

// mount is a mounted hierarchy of control groups.
type mount struct {
	v2          bool
	root        string   // the group that is mounted
	point       string   // where
	controllers []string // of version 1, with "name=…" for one without any
}

// key is what /proc/self/cgroup calls the hierarchy.
func (m mount) key() string {
	if m.v2 {
		return ""
	}
	return m.controllers[0]
}

// within is the directory of a group; the mounted one if it is not below it.
func (m mount) within(group string) string {
	rest, ok := strings.CutPrefix(group, strings.TrimSuffix(m.root, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return m.point
	}
	for _, part := range strings.Split(rest, "/") {
		if part == ".." { // outside our namespace
			return m.point
		}
	}
	return path.Join(m.point, rest)
}

// wanted reports whether a group in this hierarchy is of use.
func (m mount) wanted() bool {
	return m.v2 || slices.ContainsFunc(m.controllers, func(s string) bool {
		return s == "pids" || s == "memory" || s == "cpu" || s == "freezer"
	})
}

// parseOwnGroups reads /proc/self/cgroup: the group by each controller; "" is
// version 2.
func parseOwnGroups(b []byte) map[string]string {
	own := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 || !path.IsAbs(parts[2]) {
			continue
		}
		for _, k := range strings.Split(parts[1], ",") {
			own[k] = parts[2]
		}
	}
	return own
}

// flags of a mount of version 1 that are no controllers.
var mountFlags = []string{"rw", "ro", "none", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods", "seclabel"}

// parseMounts finds the hierarchies of control groups in /proc/self/mountinfo.
// Of one that is mounted twice, the first counts.
func parseMounts(b []byte) (all []mount) {
	seen := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 || (right[0] != "cgroup" && right[0] != "cgroup2") {
			continue
		}
		m := mount{v2: right[0] == "cgroup2", root: unescapeMount(left[3]), point: unescapeMount(left[4])}
		if !m.v2 {
			for _, opt := range strings.Split(right[2], ",") {
				name, value, _ := strings.Cut(opt, "=")
				if name == "release_agent" || slices.Contains(mountFlags, name) || value != "" && name != "name" {
					continue
				}
				m.controllers = append(m.controllers, opt)
			}
			if len(m.controllers) == 0 {
				continue
			}
		}
		if !path.IsAbs(m.root) || !path.IsAbs(m.point) || seen[m.key()] {
			continue
		}
		seen[m.key()] = true
		all = append(all, m)
	}
	return all
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// TotalMemory is how many bytes of memory this host has; 0 where that is not
// known.
func TotalMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit) //nolint:unconvert // 32 bits on other processors
}
