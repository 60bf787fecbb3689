package process

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// fakeTree is a hierarchy of version 2 with the rules of the kernel that
// matter here: no processes beside groups with controllers, a controller is
// there only if the parent hands it out, a group in use is not removed.
type fakeTree struct {
	mu       sync.Mutex // guards what follows
	groups   map[string]*fakeGroup
	marked   string // delegated
	readOnly bool
	noKill   bool // a kernel before 5.14
	log      []string
}

type fakeGroup struct {
	procs  []int
	has    []string // controllers
	out    []string // handed out to children
	values map[string]string
}

const fakeRoot = "/sys/fs/cgroup"

// newFakeTree is a tree of groups, by their paths below the root, with the
// processes in them.
func newFakeTree(controllers []string, procs map[string][]int) *fakeTree {
	f := &fakeTree{groups: map[string]*fakeGroup{fakeRoot: {has: controllers, values: map[string]string{}}}}
	for name, pids := range procs {
		dir := fakeRoot
		for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
			if part == "" {
				continue
			}
			if dir = path.Join(dir, part); f.groups[dir] == nil {
				// As the service manager does for what it delegates.
				f.groups[dir] = &fakeGroup{has: controllers, values: map[string]string{}}
			}
		}
		f.groups[dir].procs = pids
	}
	return f
}

func (f *fakeTree) note(format string, args ...any) {
	f.log = append(f.log, strings.ReplaceAll(fmt.Sprintf(format, args...), fakeRoot, ""))
}

func (f *fakeTree) read(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.groups[path.Dir(name)]
	if g == nil {
		return nil, fs.ErrNotExist
	}
	switch path.Base(name) {
	case "cgroup.procs":
		var b strings.Builder
		for _, pid := range g.procs {
			fmt.Fprintln(&b, pid)
		}
		return []byte(b.String()), nil
	case "cgroup.controllers":
		return []byte(strings.Join(g.has, " ") + "\n"), nil
	case "cgroup.subtree_control":
		return []byte(strings.Join(g.out, " ") + "\n"), nil
	}
	v, ok := g.values[path.Base(name)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(v), nil
}

func (f *fakeTree) write(name, text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, file := path.Dir(name), path.Base(name)
	g := f.groups[dir]
	if g == nil {
		return fs.ErrNotExist
	}
	f.note("%s=%s", name, text)
	controller, _, _ := strings.Cut(file, ".")
	switch {
	case f.readOnly:
		return syscall.EROFS
	case file == "cgroup.procs":
		if len(g.out) > 0 && dir != fakeRoot {
			return syscall.EBUSY
		}
		pid, err := strconv.Atoi(text)
		if err != nil {
			return syscall.EINVAL
		}
		for _, other := range f.groups {
			other.procs = slices.DeleteFunc(other.procs, func(p int) bool { return p == pid })
		}
		g.procs = append(g.procs, pid)
	case file == "cgroup.subtree_control":
		add := strings.TrimPrefix(text, "+")
		if !slices.Contains(g.has, add) {
			return fs.ErrNotExist
		}
		if len(g.procs) > 0 && dir != fakeRoot {
			return syscall.EBUSY
		}
		g.out = append(g.out, add)
		for name, child := range f.groups {
			if path.Dir(name) == dir && name != fakeRoot && !slices.Contains(child.has, add) {
				child.has = append(child.has, add)
			}
		}
	case file == "cgroup.kill":
		if f.noKill {
			return fs.ErrNotExist
		}
		g.procs = nil
	case file == "cgroup.freeze":
		g.values["cgroup.events"] = "populated 1\nfrozen " + text + "\n"
	case slices.Contains(g.has, controller):
		g.values[file] = text
	default:
		return fs.ErrNotExist
	}
	return nil
}

func (f *fakeTree) mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	parent := f.groups[path.Dir(name)]
	switch {
	case f.readOnly:
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EROFS}
	case parent == nil:
		return fs.ErrNotExist
	case f.groups[name] != nil:
		return fs.ErrExist
	}
	f.note("mkdir %s", name)
	f.groups[name] = &fakeGroup{has: slices.Clone(parent.out), values: map[string]string{}}
	return nil
}

func (f *fakeTree) rmdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.groups[name]
	if g == nil {
		return fs.ErrNotExist
	}
	for other := range f.groups {
		if path.Dir(other) == name {
			return syscall.EBUSY
		}
	}
	if len(g.procs) > 0 {
		return syscall.EBUSY
	}
	f.note("rmdir %s", name)
	delete(f.groups, name)
	return nil
}

func (f *fakeTree) list(name string) (names []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.groups[name] == nil {
		return nil, fs.ErrNotExist
	}
	for other := range f.groups {
		if path.Dir(other) == name && other != name {
			names = append(names, path.Base(other))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (f *fakeTree) delegated(name string) bool {
	return f.marked != "" && name == path.Join(fakeRoot, f.marked)
}

func (f *fakeTree) lock(name string, _ bool) (func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.groups[name] == nil {
		return nil, fs.ErrNotExist
	}
	return func() {}, nil
}

// take gives what was done since the last call.
func (f *fakeTree) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.log, "\n")
	f.log = nil
	return s
}

const fakeMounts = "31 24 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"

var allControllers = []string{"cpuset", "cpu", "io", "memory", "pids"}

func TestVersion2InADelegatedSubtree(t *testing.T) {
	const service = "/system.slice/fleet.service"
	probe := fmt.Sprintf("%s/probe-%d", service, syscall.Getpid())
	for _, test := range []struct {
		name string
		own  string
		tree map[string][]int
		open []string
	}{
		{"started in it", service, map[string][]int{"/": {1}, service: {4001, 4002}}, []string{
			"mkdir " + service + "/agent", service + "/agent/cgroup.procs=4001", service + "/agent/cgroup.procs=4002",
			service + "/cgroup.subtree_control=+pids", service + "/cgroup.subtree_control=+memory", service + "/cgroup.subtree_control=+cpu",
			"mkdir " + probe, "rmdir " + probe,
		}},
		{"started in its leaf", service + "/agent", map[string][]int{"/": {1}, service + "/agent": {4001}}, []string{
			service + "/cgroup.subtree_control=+pids", service + "/cgroup.subtree_control=+memory", service + "/cgroup.subtree_control=+cpu",
			"mkdir " + probe, "rmdir " + probe,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeTree(allControllers, test.tree)
			f.marked = service
			c := openCgroups(f, []byte("0::"+test.own+"\n"), []byte(fakeMounts))
			if got := c.String(); got != "cgroup v2 (limits: processes, memory, CPU)" {
				t.Errorf("contained by %q", got)
			}
			if got, want := f.take(), strings.Join(test.open, "\n"); got != want {
				t.Errorf("did\n%s\nwant\n%s", got, want)
			}
			g, err := c.join("m", Limits{Tasks: 100, Memory: 1 << 30, CPU: 1.5})
			if err != nil {
				t.Fatal(err)
			}
			dir := service + "/" + groupName("m")
			want := "mkdir " + dir + "\n" + dir + "/pids.max=100\n" + dir + "/memory.max=1073741824\n" + dir + "/memory.swap.max=0\n" + dir + "/cpu.max=150000 100000"
			if got := f.take(); got != want {
				t.Errorf("join did\n%s\nwant\n%s", got, want)
			}
			if err := g.place(5001, Limits{}); err != nil {
				t.Fatal(err)
			}
			if got := g.processes(); len(got) != 1 || !got[5001] {
				t.Errorf("in the group: %v", got)
			}
			f.groups[fakeRoot+dir].values["pids.events"] = "max 7\n"
			f.groups[fakeRoot+dir].values["memory.events"] = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n"
			if got := g.since(); got != (pressure{kills: 2, refusals: 7}) {
				t.Errorf("limits did %+v", got)
			}
			f.take()
			g.kill()
			g.leave()
			if got, want := f.take(), dir+"/pids.max=0\n"+dir+"/cgroup.kill=1\nrmdir "+dir; got != want {
				t.Errorf("the end did\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestVersion2OfItsOwn(t *testing.T) {
	f := newFakeTree(allControllers, map[string][]int{"/": {1, 4001}, "/system.slice/other.service": {4001}})
	c := openCgroups(f, []byte("0::/system.slice/other.service\n"), []byte(fakeMounts))
	if got := c.String(); got != "cgroup v2 (limits: processes, memory, CPU)" || c.hierarchies[0].base != "/sys/fs/cgroup/fleet" {
		t.Errorf("contained by %q in %s", got, c.hierarchies[0].base)
	}
	for line := range strings.Lines(f.take()) {
		if strings.Contains(line, "cgroup.procs") {
			t.Errorf("moved a process of what was not delegated: %s", line)
		}
	}
	// No limit is said, not left out: the group may be one that had others.
	g, err := c.join("m", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	dir := "/fleet/" + groupName("m")
	if got, want := f.take(), "mkdir "+dir+"\n"+dir+"/pids.max=max\n"+dir+"/memory.max=max\n"+dir+"/memory.swap.max=max\n"+dir+"/cpu.max=max 100000"; got != want {
		t.Errorf("did\n%s\nwant\n%s", got, want)
	}
	g.leave()
}

// withoutFile is a kernel that refuses what is written to one file.
type withoutFile struct {
	*fakeTree
	file string
	err  error
}

func (f withoutFile) write(name, text string) error {
	if path.Base(name) == f.file {
		return &fs.PathError{Op: "write", Path: name, Err: f.err}
	}
	return f.fakeTree.write(name, text)
}

// TestALimitThatCannotBeSetCostsNothingElse: a kernel without that kind of
// limit, or a container that may have less.
func TestALimitThatCannotBeSetCostsNothingElse(t *testing.T) {
	for _, test := range []struct {
		err     error
		cpu     float64
		unbound string
	}{
		{syscall.ENOENT, 0, ""},
		{syscall.ENOENT, 2, "cpu.max: write "},
		{syscall.EINVAL, 2, "cpu.max: write "},
	} {
		f := newFakeTree(allControllers, map[string][]int{"/": {1}})
		c := openCgroups(withoutFile{f, "cpu.max", test.err}, []byte("0::/\n"), []byte(fakeMounts))
		f.take()
		g, err := c.join("m", Limits{Tasks: 100, CPU: test.cpu})
		if err != nil {
			t.Fatalf("%v: no group: %v", test.err, err)
		}
		if got := f.take(); !strings.Contains(got, "/pids.max=100") {
			t.Errorf("%v: did\n%s", test.err, got)
		}
		if got := g.unbound(); !strings.HasPrefix(got, test.unbound) || (got == "") != (test.unbound == "") {
			t.Errorf("%v of %v processors: unbound %q, want %q", test.err, test.cpu, got, test.unbound)
		}
		g.leave()
	}
}

func TestVersion2WithoutControllers(t *testing.T) {
	// A container: what it takes for the root is a group with processes, and
	// hands nothing out.
	f := newFakeTree(nil, map[string][]int{"/": {4001}})
	c := openCgroups(f, []byte("0::/\n"), []byte(fakeMounts))
	if got := c.String(); !strings.HasPrefix(got, "cgroup v2 (no limits), no limit of processes and memory and CPU") {
		t.Errorf("contained by %q", got)
	}
	g, err := c.join("m", Limits{Tasks: 1, Memory: 1, CPU: 1})
	if err != nil {
		t.Fatal(err)
	}
	f.take()
	g.kill()
	if got, want := f.take(), "/fleet/"+groupName("m")+"/cgroup.kill=1"; got != want {
		t.Errorf("did %s, want %s", got, want)
	}
	g.leave()

	f = newFakeTree(allControllers, nil)
	f.readOnly = true
	c = openCgroups(f, []byte("0::/\n"), []byte(fakeMounts))
	if got := c.String(); !strings.HasPrefix(got, "process group only: ") || !strings.Contains(got, "read-only") {
		t.Errorf("contained by %q", got)
	}
	if g, err := c.join("m", Limits{}); g != nil || err != nil {
		t.Errorf("joined %v, %v", g, err)
	}
}

func TestVersion2BeforeItCouldKill(t *testing.T) {
	p, err := Start(t.Context(), script(t, "exec sleep 600"))
	if err != nil {
		t.Fatal(err)
	}
	f := newFakeTree(allControllers, nil)
	f.noKill = true
	c := openCgroups(f, []byte("0::/\n"), []byte(fakeMounts))
	g, err := c.join("m", Limits{})
	if err == nil {
		err = g.place(p.Identity().PID, Limits{})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.take()
	g.kill()
	dir := "/fleet/" + groupName("m")
	want := dir + "/pids.max=0\n" + dir + "/cgroup.kill=1\n" + dir + "/cgroup.freeze=1\n" + dir + "/cgroup.freeze=0"
	if got := f.take(); got != want {
		t.Errorf("did\n%s\nwant\n%s", got, want)
	}
	if exit := p.Wait(); exit.Signal != int(syscall.SIGKILL) {
		t.Errorf("exit %+v", exit)
	}
}

func TestGroupsOfThePastAreRemovedAtTheStart(t *testing.T) {
	empty, busy := groupName("empty"), groupName("busy")
	f := newFakeTree(allControllers, map[string][]int{"/fleet/" + empty + "/a/b": nil, "/fleet/" + busy: {5001}, "/fleet/of-another": nil})
	c := openCgroups(f, []byte("0::/\n"), []byte(fakeMounts))
	left, _ := f.list(fakeRoot + "/fleet")
	if want := []string{"of-another", busy}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if g := c.find("busy"); !g.processes()[5001] {
		t.Error("the processes of a group of the past are not found by its mark")
	}
}

func TestParseMounts(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab\040c /sys/fs/cgroup/mem\134ory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
43 31 0:38 relative /x rw - cgroup cgroup rw,pids
44 31 short
`
	all := parseMounts([]byte(hybrid))
	var got []string
	for _, m := range all {
		got = append(got, fmt.Sprintf("%v %s %s %v %v", m.v2, m.root, m.point, m.controllers, m.wanted()))
	}
	want := []string{
		"false / /sys/fs/cgroup/cpu,cpuacct [cpu cpuacct] true",
		`false /docker/ab c /sys/fs/cgroup/mem\ory [memory] true`,
		"false / /sys/fs/cgroup/systemd [name=systemd] false",
		"true / /sys/fs/cgroup/unified [] true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for group, want := range map[string]string{
		"/docker/ab c/x": `/sys/fs/cgroup/mem\ory/x`, "/docker/ab c": `/sys/fs/cgroup/mem\ory`, "/docker/ab cd": `/sys/fs/cgroup/mem\ory`,
		"/other": `/sys/fs/cgroup/mem\ory`, "/docker/ab c/../../x": `/sys/fs/cgroup/mem\ory`,
	} {
		if got := all[1].within(group); got != want {
			t.Errorf("%s is at %s, want %s", group, got, want)
		}
	}
	own := parseOwnGroups([]byte("3:cpu,cpuacct:/a:b\n1:name=systemd:/s\n0::/u\nx\n5:pids:relative\n"))
	if len(own) != 4 || own["cpuacct"] != "/a:b" || own["name=systemd"] != "/s" || own[""] != "/u" {
		t.Errorf("own groups %q", own)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("31 24 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/a/b\n")
	f.Add("35 31 0:32 /d\\040 /m\\134 rw shared:1 - cgroup cgroup rw,cpu,name=x\n", "3:cpu:/d /x\n")
	f.Fuzz(func(t *testing.T, mounts, own string) {
		ours := parseOwnGroups([]byte(own))
		for _, m := range parseMounts([]byte(mounts)) {
			if dir := m.within(ours[m.key()]); !path.IsAbs(dir) || !strings.HasPrefix(dir, strings.TrimSuffix(path.Clean(m.point), "/")) {
				t.Errorf("%q is outside of %q", dir, m.point)
			}
		}
	})
}

// TestSwapIsMemory: a limit of memory holds what lies in swap too, and setting
// it never asks for less of both than of one.
func TestSwapIsMemory(t *testing.T) {
	for name, test := range map[string]struct {
		h    hierarchy
		l    Limits
		want []string
	}{
		"v2": {hierarchy{v2: true, controllers: []string{"memory"}}, Limits{Memory: 4096}, []string{"memory.max=4096", "memory.swap.max=0"}},
		"v1": {hierarchy{controllers: []string{"memory"}}, Limits{Memory: 4096}, []string{
			"memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=4096", "memory.memsw.limit_in_bytes=4096",
		}},
		"v1, no limit": {hierarchy{controllers: []string{"memory"}}, Limits{}, []string{"memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"}},
	} {
		var got []string
		for _, s := range settings(&test.h, test.l) {
			got = append(got, s.file+"="+s.value)
			if s.wanted != (s.file == "memory.limit_in_bytes" || s.file == "memory.max") && test.l.Memory > 0 {
				t.Errorf("%s: %s is wanted: %v", name, s.file, s.wanted)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
