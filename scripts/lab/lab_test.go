//go:build lab && linux

package lab_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"fleet/scripts/lab"
)

// Each helper of the lab does what it says: what stands on it proves nothing
// otherwise. One lab serves all parts, because they leave it as they found it.
func TestHelpers(t *testing.T) {
	lab.Require(t, "dpkg-deb", "tmux")
	l := lab.New(t, lab.Options{Hosts: 4, Systemd: true, Disk: 16 << 20})
	h := l.Hosts()
	a, b, c, d := h[0], h[1], h[2], h[3]
	installProbe(t, l)
	// connects succeeds when a connection stands, to every address.
	connects := func(from, to *lab.Host) (all bool) {
		all = true
		for _, address := range to.Addresses() {
			all = from.Run(probePath, "connect", address).Code == 0 && all
		}
		return all
	}

	t.Run("own root", func(t *testing.T) {
		l.In(t)
		for _, host := range h {
			host.Run("hostname").OK().Has("^" + host.Name() + "\n$")
		}
		a.Sh("echo mine >/etc/motd; echo mine >/var/lib/mark; useradd labuser").OK()
		if r := b.Sh("cat /var/lib/mark; id labuser; grep mine /etc/motd"); r.Code == 0 || strings.Contains(r.Stdout, "mine") {
			t.Errorf("what one host wrote is seen by another: %+v", r)
		}
		a.Sh("ls -A /root /home /tmp /mnt /media | grep -v : | grep . || true").OK().Has(`^(systemd-private\S*\n|\.\S+\n)*$`)
		a.Sh("! grep -E '^[^:]+:[^*!]' /etc/shadow").OK()
		a.Run("sh", "-c", "! date -s 2001-01-01").OK()
		a.Run("sh", "-c", "! echo 1 >/proc/sys/kernel/panic").OK()
	})
	t.Run("own package database", func(t *testing.T) {
		l.In(t)
		a.Sh(`set -e; mkdir -p /tmp/p/DEBIAN /tmp/p/etc
			printf 'Package: fleetlab-probe\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: x\n' >/tmp/p/DEBIAN/control
			echo x >/tmp/p/etc/fleetlab-probe; dpkg-deb -b /tmp/p /tmp/p.deb && dpkg -i /tmp/p.deb`).OK()
		a.Sh("dpkg -s fleetlab-probe && test -e /etc/fleetlab-probe").OK()
		b.Sh("! dpkg -s fleetlab-probe && ! test -e /etc/fleetlab-probe").OK()
		if out := machine(t, "sh", "-c", "dpkg -s fleetlab-probe 2>&1; ls /etc/fleetlab-probe 2>&1; true"); strings.Contains(out, "Status:") ||
			!strings.Contains(out, "No such file") {
			t.Errorf("a package of a host is on the machine: %s", out)
		}
	})
	t.Run("own systemd", func(t *testing.T) {
		l.In(t)
		a.WriteFile("/etc/systemd/system/probe.service", "[Service]\nExecStart=/bin/sleep 1000\nDelegate=yes\nRestart=always\nRestartSec=0\n")
		a.Sh("systemctl daemon-reload && systemctl start probe && systemctl is-active probe").OK()
		first := a.Run("systemctl", "show", "-P", "MainPID", "probe").OK().Stdout
		a.Sh("cat /proc/" + strings.TrimSpace(first) + "/cgroup").OK().Has("/system.slice/probe.service")
		b.Sh("! systemctl status probe").OK()
		a.Sh("systemctl stop probe; rm /etc/systemd/system/probe.service; systemctl daemon-reload").OK()
	})

	t.Run("whole", func(t *testing.T) {
		l.In(t)
		reach(t, h, nil)
	})
	t.Run("cut", func(t *testing.T) {
		l.In(t)
		l.Cut(a, b)
		reach(t, h, pairs{{a, b}: true, {b, a}: true})
		l.Join(a, b)
		reach(t, h, nil)
	})
	t.Run("cut one way", func(t *testing.T) {
		l.In(t)
		l.CutOneWay(a, b)
		defer l.Heal()
		reach(t, h, pairs{{a, b}: true})
	})
	t.Run("isolate from some", func(t *testing.T) {
		l.In(t)
		l.Isolate(a, b, c)
		defer l.Heal()
		reach(t, h, pairs{{a, b}: true, {b, a}: true, {a, c}: true, {c, a}: true})
	})
	t.Run("isolate from all, heal", func(t *testing.T) {
		l.In(t)
		l.Isolate(d)
		cut := pairs{}
		for _, o := range []*lab.Host{a, b, c} {
			cut[[2]*lab.Host{d, o}], cut[[2]*lab.Host{o, d}] = true, true
		}
		reach(t, h, cut)
		l.Heal()
		reach(t, h, nil)
	})
	t.Run("drop inbound", func(t *testing.T) {
		l.In(t)
		_, stop := listen(h)
		defer stop()
		c.DropInbound()
		if !connects(c, a) || connects(a, c) {
			t.Error("a host that drops inbound: want connections out and none in")
		}
		c.OpenFirewall()
		if !connects(a, c) {
			t.Error("no connection after the firewall is gone")
		}
	})
	t.Run("close a port", func(t *testing.T) {
		l.In(t)
		_, stop := listen(h)
		defer stop()
		b.ClosePort(9998, 9999)
		if connects(a, b) || !connects(b, a) {
			t.Error("a closed port: want connections out and none in")
		}
		b.ClosePort(9998)
		if !connects(a, b) {
			t.Error("another port is closed, and this one too")
		}
		b.OpenFirewall()
	})
	t.Run("slow", func(t *testing.T) {
		l.In(t)
		fast := transfer(t, a, b, 4<<20)
		b.Slow(8 * lab.Mbit)
		to, from := transfer(t, a, b, 4<<20), transfer(t, b, a, 4<<20)
		b.Slow(0)
		t.Logf("4 MiB: %v; at 8 Mbit/s: to it %v, from it %v", fast, to, from)
		// 4 MiB are 33.5 Mbit: 4.2 s at 8 Mbit/s.
		for _, d := range []time.Duration{to, from} {
			if d < 3500*time.Millisecond || d > 10*time.Second {
				t.Errorf("4 MiB at 8 Mbit/s took %v, want about 4.2 s", d)
			}
		}
		if fast > 2*time.Second {
			t.Errorf("4 MiB over a whole cable took %v", fast)
		}
	})
	t.Run("full disk", func(t *testing.T) {
		l.In(t)
		a.FillDisk("/var/lib/fleet")
		a.Sh("! sh -c 'echo x >/var/lib/fleet/x && test -s /var/lib/fleet/x'").OK()
		a.Sh("echo x >/var/x").OK()
		b.Sh("echo x >/var/lib/fleet/x").OK()
		a.Sh("df -B1 --output=size /var/lib/fleet").OK().Has(strconv.Itoa(16 << 20))
		a.FreeDisk("/var/lib/fleet")
		a.Sh("echo x >/var/lib/fleet/x && test -s /var/lib/fleet/x").OK()
	})
	t.Run("power off and boot", func(t *testing.T) {
		l.In(t)
		a.Sh("echo kept >/var/lib/fleet/kept; echo kept >/etc/kept; echo gone >/run/gone; sync").OK()
		a.Start("sleep", "1000")
		a.PowerOff()
		if connects(b, a) {
			t.Error("a host that is off answers")
		}
		a.Boot()
		a.Sh("cat /var/lib/fleet/kept /etc/kept").OK().Has("^kept\nkept\n$")
		a.Sh("! test -e /run/gone && ! pgrep -x sleep").OK()
		reach(t, h, nil)
	})
	t.Run("terminal", func(t *testing.T) {
		l.In(t)
		term := b.Terminal()
		term.Type("test -t 0 && test -t 1 && echo it is a $((1+1))-way terminal")
		term.Wait("(?m)^it is a 2-way terminal$", 30*time.Second)
		term.Type("sleep 1000")
		term.Key("C-c")
		term.Type("echo interrupted: $?")
		term.Wait("(?m)^interrupted: 130$", 30*time.Second)
		term.Close()
	})
	t.Run("result", func(t *testing.T) {
		l.In(t)
		r := a.Sh("echo out; echo err >&2; exit 7").Want(7)
		if r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("stdout %q, stderr %q", r.Stdout, r.Stderr)
		}
		if r := a.RunIn(lab.Input{Limit: 500 * time.Millisecond}, "sleep", "1000"); r.Code != 137 {
			t.Errorf("a command past its limit: exit code %d, want 137", r.Code)
		}
		// Dead at once; gone when the host's first process has collected it.
		l.Wait("the killed command to be gone", 30*time.Second, func() bool { return a.Sh("pgrep -x sleep").Code == 1 })
	})
}

// transfer is how long n bytes take from one host to another over TCP.
func transfer(t *testing.T, from, to *lab.Host, n int) time.Duration {
	t.Helper()
	_, stop := listen([]*lab.Host{to})
	defer stop()
	out := from.Run(probePath, "send", to.Address(), strconv.Itoa(n)).OK().Stdout
	ms, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ms) * time.Millisecond
}

// Hosts may have one family alone, and no systemd.
func TestFamilies(t *testing.T) {
	for _, f := range []struct {
		families lab.Families
		want     int
		other    string
	}{{lab.IPv4Only, 4, "fd77::2"}, {lab.IPv6Only, 6, "10.77.0.2"}} {
		t.Run(fmt.Sprint("IPv", f.want), func(t *testing.T) {
			l := lab.New(t, lab.Options{Hosts: 2, Families: f.families})
			installProbe(t, l)
			a, b := l.Hosts()[0], l.Hosts()[1]
			_, stop := listen(l.Hosts())
			defer stop()
			a.Run(probePath, "connect", b.Address()).OK()
			a.Run(probePath, "connect", b.Name()).OK()
			a.Run(probePath, "connect", f.other).Want(1)
			a.Run("systemctl", "is-system-running").Has("offline|not been booted")
		})
	}
}

// Two labs at once do not meet.
func TestTwoLabs(t *testing.T) {
	one, two := lab.New(t, lab.Options{Hosts: 1}), lab.New(t, lab.Options{Hosts: 2})
	for _, l := range []*lab.Lab{one, two} {
		installProbe(t, l)
		_, stop := listen(l.Hosts())
		defer stop()
	}
	one.Hosts()[0].Run(probePath, "connect", "10.77.0.2").Want(1)
	two.Hosts()[0].Run(probePath, "connect", "10.77.0.2").OK()
}
