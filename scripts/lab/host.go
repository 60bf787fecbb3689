//go:build linux

package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Host is one machine of the lab.
type Host struct {
	lab    *Lab
	name   string
	number int // from 1: the last part of its addresses

	mu    sync.Mutex // guards:
	init  int        // PID of its first process as the machine sees it; 0: it is off
	count int        // processes started on it, for the names of their logs
}

// Name is the host's name in the lab and on itself.
func (h *Host) Name() string { return h.name }

// Addresses are the host's addresses, IPv4 before IPv6.
func (h *Host) Addresses() []string {
	var list []string
	if h.lab.opts.Families != IPv6Only {
		list = append(list, fmt.Sprintf("10.77.0.%d", h.number))
	}
	if h.lab.opts.Families != IPv4Only {
		list = append(list, fmt.Sprintf("fd77::%x", h.number))
	}
	return list
}

// Address is the first of Addresses.
func (h *Host) Address() string { return h.Addresses()[0] }

func (h *Host) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.init
}

func (h *Host) script(stage string) []string {
	first := "none"
	if h.lab.opts.Systemd {
		first = "systemd"
	}
	return []string{
		"/bin/sh", h.lab.path("host.sh"), stage, h.lab.dir, h.name, strconv.Itoa(h.number), string(h.lab.opts.Families),
		strconv.FormatInt(h.lab.opts.Disk, 10), first,
	}
}

func (h *Host) install() {
	h.lab.t.Helper()
	h.lab.inWorld("", h.script("install")...)
	for _, g := range h.lab.groups {
		h.lab.check(os.Mkdir(filepath.Join(g, h.name), 0o755))
	}
}

// groups are the host's control groups, one in each hierarchy. The host sees
// them as the root of that hierarchy.
func (h *Host) groups() []string {
	list := make([]string, len(h.lab.groups))
	for i, g := range h.lab.groups {
		list[i] = filepath.Join(g, h.name)
	}
	return list
}

// Boot switches the host on and waits until it can be used. With systemd that
// is when it has reached its target.
func (h *Host) Boot() {
	h.lab.t.Helper()
	if h.pid() != 0 {
		h.lab.t.Fatalf("lab: %s is on", h.name)
	}
	args := append([]string{"nsenter", "-t", strconv.Itoa(h.lab.world), "-m", "-n", "-p", "--", "unshare", "--net"}, h.script("wire")...)
	cmd := h.lab.inGroups(h.groups(), args...)
	log := h.log("boot")
	cmd.Stdout, cmd.Stderr = log, log
	ended := h.lab.start(cmd)
	log.Close()
	var first int
	h.lab.waitFor(h.name+" to boot", func() bool {
		select {
		case <-ended:
			b, _ := os.ReadFile(log.Name())
			h.lab.t.Fatalf("lab: %s did not boot: %s", h.name, b)
		default:
		}
		// nsenter, then unshare, then the host's first process.
		if first = child(child(cmd.Process.Pid)); first == 0 {
			return false
		}
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/lab/up", first))
		return err == nil
	})
	h.mu.Lock()
	h.init = first
	h.mu.Unlock()
	if h.lab.opts.Systemd {
		h.lab.waitFor(h.name+": systemd", func() bool {
			state := strings.TrimSpace(h.Run("systemctl", "is-system-running", "--wait").Stdout)
			return state == "running" || state == "degraded"
		})
	}
}

// PowerOff ends all processes of the host at once, as a power cut would. Its
// disk stays: what was written is there after Boot.
func (h *Host) PowerOff() {
	h.lab.t.Helper()
	first := h.pid()
	if first == 0 {
		h.lab.t.Fatalf("lab: %s is off", h.name)
	}
	h.lab.check(syscall.Kill(first, syscall.SIGKILL))
	h.lab.waitFor(h.name+" to be off", func() bool { return len(h.processes(nil)) == 0 })
	h.mu.Lock()
	h.init = 0
	h.mu.Unlock()
	// The switch's end of the cable goes with the namespace, a moment later.
	h.lab.waitFor(h.name+"'s cable to be gone", func() bool {
		return h.lab.inGroups(h.lab.groups, "nsenter", "-t", strconv.Itoa(h.lab.world), "-n", "ip", "link", "show", "dev", h.name).Run() != nil
	})
}

// enter is a command on the host, as root in its home directory, with a clean
// environment, in the host's control groups.
func (h *Host) enter(env []string, args ...string) *exec.Cmd {
	h.lab.t.Helper()
	first := h.pid()
	if first == 0 {
		h.lab.t.Fatalf("lab: %s is off: %s", h.name, strings.Join(args, " "))
	}
	all := []string{"nsenter", "-t", strconv.Itoa(first), "-m", "-u", "-i", "-n", "-p", "-C", "--",
		"setpriv", "--bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-wake_alarm", "--inh-caps=-all", "--",
		"env", "-i", "HOME=/root", "USER=root", "LOGNAME=root", "LANG=C.UTF-8", "SHELL=/bin/bash",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	all = append(all, env...)
	// In a group of its own: a group with processes has no children with
	// controllers in version 2.
	all = append(all, "sh", "-c", `cd /root && exec "$@"`, "sh")
	return h.lab.inGroups(h.loginGroups(), append(all, args...)...)
}

// loginGroups are control groups of what is not a service on the host.
func (h *Host) loginGroups() []string {
	h.lab.t.Helper()
	list := h.groups()
	for i, g := range list {
		list[i] = filepath.Join(g, "login")
		if err := os.Mkdir(list[i], 0o755); err != nil && !os.IsExist(err) {
			h.lab.t.Fatalf("lab: %v", err)
		}
	}
	return list
}

// Result is how a command on a host ended.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; 128 and the signal's number; -1 if it could not be started

	t    testing.TB
	host string
	args []string
}

// OK fails the test unless the command succeeded.
func (r Result) OK() Result {
	r.t.Helper()
	return r.Want(0)
}

// Want fails the test unless the command ended with this exit code.
func (r Result) Want(code int) Result {
	r.t.Helper()
	if r.Code != code {
		r.t.Fatalf("%s: %s: exit code %d, want %d\n%s%s", r.host, strings.Join(r.args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	return r
}

// Has fails the test unless the output or the messages match the expression.
func (r Result) Has(expression string) Result {
	r.t.Helper()
	if !regexp.MustCompile(expression).MatchString(r.Stdout + r.Stderr) {
		r.t.Fatalf("%s: %s: no %q in:\n%s%s", r.host, strings.Join(r.args, " "), expression, r.Stdout, r.Stderr)
	}
	return r
}

// Run runs a command on the host and waits for its end. It is ended after a
// minute.
func (h *Host) Run(args ...string) Result {
	h.lab.t.Helper()
	return h.RunIn(Input{}, args...)
}

// Sh runs a line of shell on the host.
func (h *Host) Sh(line string) Result {
	h.lab.t.Helper()
	return h.Run("sh", "-c", line)
}

// Fleet runs fleet on the host.
func (h *Host) Fleet(args ...string) Result {
	h.lab.t.Helper()
	return h.Run(append([]string{"fleet"}, args...)...)
}

// Input is what a command gets beside its arguments.
type Input struct {
	Stdin string
	Env   []string      // NAME=value, added to the clean environment
	Limit time.Duration // after which it is killed; default a minute
}

// RunIn is Run with more to say.
func (h *Host) RunIn(in Input, args ...string) Result {
	h.lab.t.Helper()
	cmd := h.enter(in.Env, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in.Stdin), &stdout, &stderr
	// What the command leaves in the background may keep its output open.
	cmd.WaitDelay = 2 * time.Second
	r := Result{Code: -1, t: h.lab.t, host: h.name, args: args}
	ended := h.lab.start(cmd)
	limit := in.Limit
	if limit == 0 {
		limit = time.Minute
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		if inner := child(cmd.Process.Pid); inner != 0 {
			_ = syscall.Kill(inner, syscall.SIGKILL)
		}
		_ = cmd.Process.Kill()
		<-ended
		fmt.Fprintf(&stderr, "lab: killed after %v\n", limit)
	}
	r.Stdout, r.Stderr = stdout.String(), stderr.String()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		if r.Code = ws.ExitStatus(); ws.Signaled() {
			r.Code = 128 + int(ws.Signal())
		}
	}
	return r
}

// WriteFile writes a file of the host, readable by root alone.
func (h *Host) WriteFile(path, content string) {
	h.lab.t.Helper()
	h.RunIn(Input{Stdin: content}, "sh", "-c", `umask 077; mkdir -p "$(dirname "$1")" && cat >"$1"`, "sh", path).OK()
}

// ReadFile is the content of a file of the host.
func (h *Host) ReadFile(path string) string {
	h.lab.t.Helper()
	return h.Run("cat", path).OK().Stdout
}

// CopyTo copies a file of this host to another, as an administrator would with
// scp.
func (h *Host) CopyTo(to *Host, path string) {
	h.lab.t.Helper()
	to.WriteFile(path, h.ReadFile(path))
}

// Proc is a process that Start started.
type Proc struct {
	host  *Host
	args  []string
	cmd   *exec.Cmd // nsenter, whose child is the process
	log   string
	ended <-chan struct{}
}

// Start starts a command on the host and does not wait for it. Its output goes
// to a log (Proc.Log).
func (h *Host) Start(args ...string) *Proc {
	h.lab.t.Helper()
	cmd := h.enter(nil, args...)
	log := h.log(filepath.Base(args[0]))
	cmd.Stdout, cmd.Stderr = log, log
	p := &Proc{host: h, args: args, cmd: cmd, log: log.Name(), ended: h.lab.start(cmd)}
	log.Close()
	h.lab.waitFor(strings.Join(args, " ")+" to start", func() bool { return child(cmd.Process.Pid) != 0 || !p.Running() })
	return p
}

// log opens a new log of the host.
func (h *Host) log(what string) *os.File {
	h.lab.t.Helper()
	h.mu.Lock()
	h.count++
	name := fmt.Sprintf("logs/%s.%02d.%s.log", h.name, h.count, what)
	h.mu.Unlock()
	f, err := os.OpenFile(h.lab.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	h.lab.check(err)
	h.lab.mu.Lock()
	h.lab.logs = append(h.lab.logs, f.Name())
	h.lab.mu.Unlock()
	return f
}

// Log is what the process has written so far.
func (p *Proc) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Running reports whether the process has not ended.
func (p *Proc) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process itself.
func (p *Proc) Signal(sig syscall.Signal) {
	p.host.lab.t.Helper()
	inner := child(p.cmd.Process.Pid)
	if inner == 0 {
		p.host.lab.t.Fatalf("lab: %s: %s has ended:\n%s", p.host.name, strings.Join(p.args, " "), p.Log())
	}
	p.host.lab.check(syscall.Kill(inner, sig))
}

// Stop asks the process to end (SIGTERM) and waits until it has.
func (p *Proc) Stop() {
	p.host.lab.t.Helper()
	p.Signal(syscall.SIGTERM)
	p.host.lab.waitFor(strings.Join(p.args, " ")+" to end", func() bool { return !p.Running() })
}

// WaitLog waits until the log matches the expression.
func (p *Proc) WaitLog(expression string) {
	p.host.lab.t.Helper()
	re := regexp.MustCompile(expression)
	p.host.lab.waitFor(fmt.Sprintf("%q in the log of %s on %s", expression, strings.Join(p.args, " "), p.host.name), func() bool {
		return re.MatchString(p.Log()) || !p.Running()
	})
	if text := p.Log(); !re.MatchString(text) {
		p.host.lab.t.Fatalf("lab: %s: %s ended without %q:\n%s", p.host.name, strings.Join(p.args, " "), expression, text)
	}
}

// process is one process of a host, as the machine sees it.
type process struct {
	pid  int
	args []string
}

// processes are the host's processes for which keep says yes; all for nil.
func (h *Host) processes(keep func(process) bool) []process {
	h.lab.t.Helper()
	seen := map[int]bool{}
	var list []process
	for _, g := range h.groups() {
		err := filepath.WalkDir(g, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
				return nil // a group that went meanwhile has no process
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			for f := range strings.FieldsSeq(string(b)) {
				pid, err := strconv.Atoi(f)
				if err != nil || seen[pid] {
					continue
				}
				seen[pid] = true
				line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				if err != nil {
					continue
				}
				p := process{pid: pid, args: strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")}
				if keep == nil || keep(p) {
					list = append(list, p)
				}
			}
			return nil
		})
		h.lab.check(err)
	}
	return list
}
