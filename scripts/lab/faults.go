//go:build linux

package lab

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CutOneWay loses what from sends to to. The other direction is untouched.
func (l *Lab) CutOneWay(from, to *Host) {
	l.t.Helper()
	l.cut("add", [2]*Host{from, to})
}

// Cut loses everything between two hosts, both ways.
func (l *Lab) Cut(a, b *Host) {
	l.t.Helper()
	l.cut("add", [2]*Host{a, b}, [2]*Host{b, a})
}

// Isolate cuts a host from the given hosts, or from all others.
func (l *Lab) Isolate(h *Host, from ...*Host) {
	l.t.Helper()
	if len(from) == 0 {
		from = l.hosts
	}
	l.Split([]*Host{h}, from)
}

// Split cuts every host of one side from every host of the other.
func (l *Lab) Split(a, b []*Host) {
	l.t.Helper()
	var pairs [][2]*Host
	for _, x := range a {
		for _, y := range b {
			if x != y {
				pairs = append(pairs, [2]*Host{x, y}, [2]*Host{y, x})
			}
		}
	}
	l.cut("add", pairs...)
}

// Join mends what Cut, CutOneWay, Isolate or Split cut between two hosts.
func (l *Lab) Join(a, b *Host) {
	l.t.Helper()
	// Deleting what is not in the set is an error of nft's; adding it first
	// in the same transaction is not.
	l.cut("add", [2]*Host{a, b}, [2]*Host{b, a})
	l.cut("delete", [2]*Host{a, b}, [2]*Host{b, a})
}

// Heal mends all cables that were cut. Firewalls of hosts, slow cables and full
// disks stay.
func (l *Lab) Heal() {
	l.t.Helper()
	l.inWorld("flush set bridge lab cut\n", "nft", "-f", "-")
}

func (l *Lab) cut(verb string, pairs ...[2]*Host) {
	l.t.Helper()
	var list []string
	for _, p := range pairs {
		list = append(list, fmt.Sprintf("%q . %q", p[0].name, p[1].name))
	}
	if len(list) > 0 {
		l.inWorld(fmt.Sprintf("%s element bridge lab cut { %s }\n", verb, strings.Join(list, ", ")), "nft", "-f", "-")
	}
}

// firewall is a host's own: DropInbound and ClosePort write it.
const firewall = `
table inet firewall
delete table inet firewall
table inet firewall {
	chain input {
		type filter hook input priority 0; policy accept;
		iif lo accept
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
		%s
	}
}
`

// DropInbound gives the host a firewall that lets in only answers to what the
// host itself began, as behind NAT or on a laptop. It replaces ClosePort.
func (h *Host) DropInbound() {
	h.lab.t.Helper()
	h.RunIn(Input{Stdin: fmt.Sprintf(firewall, "drop")}, "nft", "-f", "-").OK()
}

// ClosePort gives the host a firewall that drops what arrives for these ports,
// TCP and UDP, without a word. It replaces DropInbound.
func (h *Host) ClosePort(ports ...int) {
	h.lab.t.Helper()
	var list []string
	for _, p := range ports {
		list = append(list, strconv.Itoa(p))
	}
	rule := fmt.Sprintf("meta l4proto { tcp, udp } th dport { %s } drop", strings.Join(list, ", "))
	h.RunIn(Input{Stdin: fmt.Sprintf(firewall, rule)}, "nft", "-f", "-").OK()
}

// OpenFirewall takes the host's firewall away.
func (h *Host) OpenFirewall() {
	h.lab.t.Helper()
	h.RunIn(Input{Stdin: "table inet firewall\ndelete table inet firewall\n"}, "nft", "-f", "-").OK()
}

// Rate is bits in a second.
type Rate int64

// Rates of cables.
const (
	Kbit Rate = 1000
	Mbit      = 1000 * Kbit
)

// Slow limits the host's cable in both directions. 0 is as fast as it goes.
func (h *Host) Slow(rate Rate) {
	h.lab.t.Helper()
	if rate == 0 {
		// Nothing to take away is no failure.
		h.Run("tc", "qdisc", "del", "dev", "eth0", "root")
		h.lab.inWorld("", "sh", "-c", `tc qdisc del dev "$1" root 2>/dev/null || true`, "sh", h.name)
		return
	}
	// A bucket of at least one large packet: veth cables carry segments of
	// 64 KiB, which a smaller bucket would never let through.
	bucket := []string{"root", "tbf", "rate", fmt.Sprintf("%dbit", rate), "burst", "70k", "latency", "400ms"}
	h.Run(append([]string{"tc", "qdisc", "replace", "dev", "eth0"}, bucket...)...).OK()
	h.lab.inWorld("", append([]string{"tc", "qdisc", "replace", "dev", h.name}, bucket...)...)
}

// ballast is the file with which FillDisk fills a disk.
const ballast = ".lab-ballast"

// FillDisk writes into a directory of the host until its disk is full:
// /var/lib/fleet is a disk of its own (Options.Disk), all else shares one.
func (h *Host) FillDisk(dir string) {
	h.lab.t.Helper()
	file := path.Join(dir, ballast)
	h.Sh(`dd if=/dev/zero of=` + file + ` bs=1M oflag=append conv=notrunc 2>/dev/null; dd if=/dev/zero of=` + file +
		` bs=4k oflag=append conv=notrunc 2>/dev/null; true`).OK()
	if r := h.Run("sh", "-c", `echo x >"$1/.lab-probe"; r=$?; [ -s "$1/.lab-probe" ] && r=0 || r=1; rm -f "$1/.lab-probe"; exit $r`, "sh", dir); r.Code == 0 {
		h.lab.t.Fatalf("lab: %s: %s is not full", h.name, dir)
	}
}

// FreeDisk takes away what FillDisk wrote.
func (h *Host) FreeDisk(dir string) {
	h.lab.t.Helper()
	h.Run("rm", "-f", path.Join(dir, ballast)).OK()
}

// agents are the processes of fleet that run a host: not what a user types, and
// not the commands that fleet runs.
func (h *Host) agents() []process {
	h.lab.t.Helper()
	return h.processes(func(p process) bool {
		if len(p.args) < 2 || filepath.Base(p.args[0]) != "fleet" {
			return false
		}
		return p.args[1] == "agent" || (p.args[1] == "init" || p.args[1] == "join") && slices.Contains(p.args, "--foreground")
	})
}

// signal sends a signal to fleet on the host.
func (h *Host) signal(sig syscall.Signal) {
	h.lab.t.Helper()
	agents := h.agents()
	if len(agents) == 0 {
		h.lab.t.Fatalf("lab: no fleet agent runs on %s", h.name)
	}
	for _, p := range agents {
		h.lab.check(syscall.Kill(p.pid, sig))
	}
}

// Kill ends fleet on the host with SIGKILL. What it was running stays, and a
// service is started again by systemd.
func (h *Host) Kill() {
	h.lab.t.Helper()
	old := h.agents()
	h.signal(syscall.SIGKILL)
	h.lab.waitFor("fleet on "+h.name+" to be killed", func() bool {
		now := h.agents()
		return !slices.ContainsFunc(old, func(o process) bool {
			return slices.ContainsFunc(now, func(n process) bool { return n.pid == o.pid })
		})
	})
}

// Pause stops fleet on the host (SIGSTOP): its connections stay open and
// nothing answers.
func (h *Host) Pause() {
	h.lab.t.Helper()
	h.signal(syscall.SIGSTOP)
}

// Resume lets fleet go on where Pause stopped it.
func (h *Host) Resume() {
	h.lab.t.Helper()
	h.signal(syscall.SIGCONT)
}

// Running reports whether fleet runs on the host.
func (h *Host) Running() bool { return len(h.agents()) > 0 }

// SkewClock sets fleet's wall clock on this host, for the agent and for what is
// typed there, to the machine's plus d, in whole seconds. Monotonic time, and
// with it every timeout, goes on. It needs Options.Clocks.
func (h *Host) SkewClock(d time.Duration) {
	h.lab.t.Helper()
	if !h.lab.opts.Clocks {
		h.lab.t.Fatal("lab: SkewClock needs Options.Clocks")
	}
	// Renamed into place: it is read at any moment.
	h.Sh(fmt.Sprintf("echo %d >%s.new && mv %s.new %s", int64(d/time.Second), clockFile, clockFile, clockFile)).OK()
	<-time.After(200 * time.Millisecond) // fleet looks ten times a second
}
