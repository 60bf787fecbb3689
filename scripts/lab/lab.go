//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed" // the scripts
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	//go:embed clean.sh
	cleanScript []byte
	//go:embed world.sh
	worldScript []byte
	//go:embed host.sh
	hostScript []byte
)

// Families are the address families of the hosts' cables.
type Families string

// The families that Options knows.
const (
	Both     Families = "46"
	IPv4Only Families = "4"
	IPv6Only Families = "6"
)

// Options say what lab to build. The zero value of a field is its default.
type Options struct {
	Hosts    int      // how many, at most 200; default 3
	Names    []string // of the first hosts, at most 12 characters; default host1, host2, ...
	Families Families // default Both

	// Systemd makes the machine's systemd the first process of each host, so
	// that services can be installed and started. Else it is an idle shell.
	Systemd bool

	// Clocks installs a fleet whose clock SkewClock can set. It differs from
	// the real one in time.Now alone.
	Clocks bool

	// Binary is a fleet to install instead of one built from this tree.
	Binary string

	// Disk is the size of each host's /var/lib/fleet in bytes; default 64 MiB.
	Disk int64
}

// waitLimit bounds whatever takes moments on an idle machine: it only decides
// how late a broken lab is noticed.
const waitLimit = 60 * time.Second

// Lab is a set of hosts and the cables between them. Its methods fail the test
// when the lab itself does not work; they are for the test's goroutine and safe
// in others that the test waits for.
type Lab struct {
	t    testing.TB
	name string // fleetlab-PID-N
	dir  string // /run/NAME
	opts Options

	groups []string // the lab's directory in every hierarchy
	world  int      // PID of the world's first process
	hosts  []*Host

	closing sync.Once
	alive   *os.File // closed, or lost with this process: clean.sh begins
	cleaner *exec.Cmd
	running sync.WaitGroup // whoever waits for a child

	mu   sync.Mutex // guards:
	logs []string   // files of output, in order of start
}

var counter atomic.Int64 // labs of this process

// Require skips the test, or fails it when LAB=1 says that it must run, if this
// machine cannot build a lab.
func Require(t testing.TB, tools ...string) {
	t.Helper()
	if missing := Missing(tools...); missing != "" {
		if os.Getenv("LAB") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
}

// Missing says what this machine lacks to build a lab, or nothing.
func Missing(tools ...string) string {
	if os.Geteuid() != 0 {
		return "the lab needs root: namespaces, mounts and control groups"
	}
	packages := map[string]string{
		"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "unshare": "util-linux", "nsenter": "util-linux",
		"setpriv": "util-linux", "tmux": "tmux", "dpkg-deb": "dpkg", "/lib/systemd/systemd": "systemd dbus",
	}
	var lacks []string
	for _, tool := range append([]string{"ip", "tc", "nft", "unshare", "nsenter", "setpriv"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			lacks = append(lacks, fmt.Sprintf("%s (Debian: apt-get install %s)", tool, packages[tool]))
		}
	}
	if len(lacks) > 0 {
		return "the lab needs " + strings.Join(lacks, ", ")
	}
	for _, dir := range []string{"/etc", "/usr", "/var"} {
		if mountPoint(dir) {
			return "the lab lays its hosts over /, and here " + dir + " is a file system of its own"
		}
	}
	return ""
}

func mountPoint(dir string) bool {
	b, err := os.ReadFile("/proc/self/mounts")
	return err == nil && bytes.Contains(b, []byte(" "+dir+" "))
}

// New builds a lab and its hosts, booted and reachable. It is removed when the
// test ends, however it ends.
func New(t testing.TB, opts Options) *Lab {
	t.Helper()
	need := []string{}
	if opts.Systemd {
		need = append(need, "/lib/systemd/systemd")
	}
	Require(t, need...)
	if opts.Hosts == 0 {
		opts.Hosts = 3
	}
	if opts.Hosts > 200 || len(opts.Names) > opts.Hosts {
		t.Fatalf("lab: %d hosts and %d names: at most 200, and no more names than hosts", opts.Hosts, len(opts.Names))
	}
	if opts.Families == "" {
		opts.Families = Both
	}
	if opts.Disk == 0 {
		opts.Disk = 64 << 20
	}
	l := &Lab{t: t, opts: opts, name: fmt.Sprintf("fleetlab-%d-%d", os.Getpid(), counter.Add(1))}
	l.dir = "/run/" + l.name
	binary := opts.Binary
	if binary == "" {
		binary = Build(t, opts.Clocks)
	}
	t.Cleanup(l.Close)
	l.found(binary)
	l.createWorld()
	for i := range opts.Hosts {
		name := fmt.Sprintf("host%d", i+1)
		if i < len(opts.Names) {
			name = opts.Names[i]
		}
		l.hosts = append(l.hosts, &Host{lab: l, name: name, number: i + 1})
	}
	l.writeHosts()
	l.each(func(h *Host) {
		h.install()
		h.Boot()
	})
	return l
}

// found makes the lab's directory and control groups, and starts what will
// remove them, in this order: nothing is made that nobody would remove.
func (l *Lab) found(binary string) {
	l.t.Helper()
	l.check(os.Mkdir(l.dir, 0o700))
	for name, script := range map[string][]byte{"clean.sh": cleanScript, "world.sh": worldScript, "host.sh": hostScript} {
		l.check(os.WriteFile(l.path(name), script, 0o700))
	}
	l.check(os.Mkdir(l.path("disks"), 0o700))
	l.check(os.Mkdir(l.path("logs"), 0o700))

	r, w, err := os.Pipe()
	l.check(err)
	// The script is an argument, because the file goes while it runs. In a
	// session of its own no Ctrl-C in the test's terminal reaches it.
	l.cleaner = exec.Command("/bin/sh", "-c", string(cleanScript), "clean.sh", "--on-eof", l.name)
	l.cleaner.Stdin, l.cleaner.Stderr, l.cleaner.Dir = r, os.Stderr, "/"
	l.cleaner.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	l.check(l.cleaner.Start())
	r.Close()
	l.alive = w

	hierarchies, err := hierarchies()
	l.check(err)
	var list strings.Builder
	for _, h := range hierarchies {
		group := filepath.Join(h.own, l.name)
		l.check(os.Mkdir(group, 0o755))
		l.groups = append(l.groups, group)
		fmt.Fprintln(&list, h.kind, h.at, h.options)
	}
	l.check(os.WriteFile(l.path("hierarchies"), []byte(list.String()), 0o600))
	l.check(copyFile(binary, l.path("fleet"), 0o755))
}

// hierarchy is a mounted tree of control groups.
type hierarchy struct {
	kind    string // cgroup or cgroup2
	at      string // where it is mounted
	options string // that mount it again
	own     string // directory of the group that this process is in
}

// hierarchies are those that hosts get: processes can be found, limited and
// frozen in them. Others need settings before they accept a process (cpuset).
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{} // "pids", "name=systemd" or "" (version 2) -> path
	for line := range strings.Lines(string(groups)) {
		if part := strings.SplitN(strings.TrimSpace(line), ":", 3); len(part) == 3 {
			for c := range strings.SplitSeq(part[1], ",") {
				own[c] = part[2]
			}
		}
	}
	wanted := []string{"name=systemd", "pids", "memory", "cpu", "cpuacct", "freezer"}
	var list []hierarchy
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[1], "/sys/fs/cgroup") {
			continue
		}
		h := hierarchy{kind: f[2], at: f[1]}
		key := ""
		if h.kind == "cgroup" {
			var opts []string
			for o := range strings.SplitSeq(f[3], ",") {
				if slices.Contains(wanted, o) {
					opts, key = append(opts, o), o
				}
			}
			if len(opts) == 0 {
				continue
			}
			if h.options = strings.Join(opts, ","); key == "name=systemd" {
				h.options = "none," + h.options
			}
		} else if h.kind != "cgroup2" {
			continue
		}
		h.own = filepath.Join(h.at, own[key])
		if _, err := os.Stat(h.own); err != nil {
			h.own = h.at // this process is in a container; its group is the root here
		}
		list = append(list, h)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no control groups are mounted below /sys/fs/cgroup")
	}
	return list, nil
}

func (l *Lab) createWorld() {
	l.t.Helper()
	cmd := l.inGroups(l.groups, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private",
		"/bin/sh", l.path("world.sh"), l.dir)
	var said bytes.Buffer
	cmd.Stderr = &said
	ended := l.start(cmd)
	l.waitFor("the world", func() bool {
		select {
		case <-ended:
			l.t.Fatalf("lab: the world ended: %s", said.String())
		default:
		}
		_, err := os.Stat(l.path("ready"))
		return err == nil
	})
	l.world = child(cmd.Process.Pid)
	if l.world == 0 {
		l.t.Fatal("lab: the world's first process was not found")
	}
}

// inGroups is a command that runs in the given control groups.
func (l *Lab) inGroups(groups []string, args ...string) *exec.Cmd {
	const join = `for g in $1; do echo $$ >"$g/cgroup.procs" || exit 125; done; shift; exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", join, "sh", strings.Join(groups, " ")}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	return cmd
}

// start starts cmd and has it waited for. The channel is closed when it ended.
func (l *Lab) start(cmd *exec.Cmd) <-chan struct{} {
	l.t.Helper()
	// Ctrl-C is for the test: it ends the lab in its own order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.check(cmd.Start())
	ended := make(chan struct{})
	l.running.Go(func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended stands in cmd.ProcessState
	})
	return ended
}

// child is the first child of a process, or 0.
func child(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			return n
		}
	}
	return 0
}

// inWorld runs a command in the world's namespaces, in the switch's place.
func (l *Lab) inWorld(stdin string, args ...string) {
	l.t.Helper()
	cmd := l.inGroups(l.groups, append([]string{"nsenter", "-t", strconv.Itoa(l.world), "-m", "-n", "-p", "--"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("lab: %s: %v\n%s%s", strings.Join(args, " "), err, stdin, out)
	}
}

// writeHosts makes the /etc/hosts of all hosts: they know each other by name.
func (l *Lab) writeHosts() {
	l.t.Helper()
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, h := range l.hosts {
		for _, a := range h.Addresses() {
			fmt.Fprintf(&b, "%s %s\n", a, h.name)
		}
	}
	l.check(os.WriteFile(l.path("hosts"), []byte(b.String()), 0o644))
}

// Hosts are all hosts, in the order of their numbers.
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Host is the host of that name.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	for _, h := range l.hosts {
		if h.name == name {
			return h
		}
	}
	l.t.Fatalf("lab: there is no host %q", name)
	return nil
}

// Name is the name of the lab: its control groups and directory have it.
func (l *Lab) Name() string { return l.name }

// In makes the lab report to a subtest until that ends. Subtests that share a
// lab begin with it, and are not parallel.
func (l *Lab) In(t testing.TB) {
	outer := l.t
	l.t = t
	t.Cleanup(func() { l.t = outer })
}

// each does something to every host, a few at a time.
func (l *Lab) each(do func(*Host)) {
	l.t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, h := range l.hosts {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			do(h)
		})
	}
	wg.Wait()
	if l.t.Failed() {
		// A Fatal in another goroutine than the test's ends only that one.
		l.t.FailNow()
	}
}

// Wait waits until a condition holds, and fails the test when it takes longer
// than the limit.
func (l *Lab) Wait(what string, limit time.Duration, holds func() bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			l.t.Fatalf("lab: waited %v for: %s", limit, what)
		}
	}
}

func (l *Lab) waitFor(what string, holds func() bool) {
	l.t.Helper()
	l.Wait(what, waitLimit, holds)
}

// SaveLogs copies the output of everything that was started, and the journal
// of hosts with systemd, into a directory.
func (l *Lab) SaveLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	l.mu.Lock()
	logs := slices.Clone(l.logs)
	l.mu.Unlock()
	for _, from := range logs {
		if err := copyFile(from, filepath.Join(dir, filepath.Base(from)), 0o644); err != nil {
			return err
		}
	}
	if !l.opts.Systemd {
		return nil
	}
	for _, h := range l.hosts {
		if h.pid() == 0 {
			continue // powered off
		}
		r := h.Run("journalctl", "--no-pager", "-q")
		if err := os.WriteFile(filepath.Join(dir, h.name+".journal"), []byte(r.Stdout), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Close removes the lab. New has arranged for it; calling it earlier is
// allowed. The logs of a failed test are kept: in LAB_LOGS, or as the last
// lines of each in the test's output.
func (l *Lab) Close() {
	l.closing.Do(func() {
		if l.t.Failed() && l.world != 0 {
			l.tell()
		}
		if l.alive == nil {
			_ = os.RemoveAll(l.dir) // all there is
			return
		}
		l.alive.Close()
		if err := l.cleaner.Wait(); err != nil {
			l.t.Errorf("lab: clean.sh: %v", err)
		}
		l.running.Wait()
		if left := l.left(); len(left) > 0 {
			l.t.Errorf("lab: left behind: %s", strings.Join(left, ", "))
		}
	})
}

// left are the control groups and the directory, if they are still there.
func (l *Lab) left() (found []string) {
	for _, p := range append(slices.Clone(l.groups), l.dir) {
		if _, err := os.Lstat(p); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// tell shows or keeps the logs of a failed test.
func (l *Lab) tell() {
	if dir := os.Getenv("LAB_LOGS"); dir != "" {
		dir = filepath.Join(dir, strings.ReplaceAll(l.t.Name(), "/", "_"))
		if err := l.SaveLogs(dir); err != nil {
			l.t.Logf("lab: logs: %v", err)
		}
		l.t.Logf("lab: logs are in %s", dir)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range l.logs {
		b, err := os.ReadFile(name)
		if err != nil || len(b) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		l.t.Logf("lab: end of %s:\n%s", filepath.Base(name), strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
}

func (l *Lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *Lab) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("lab: %v", err)
	}
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
