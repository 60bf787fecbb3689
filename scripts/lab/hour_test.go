//go:build lab && linux

package lab_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"fleet/scripts/lab"
)

var update = flag.Bool("update", false, "rewrite docs/first-hour.md")

const hourPage = "../../docs/first-hour.md"

// TestFirstHour types what a new user types in the first hour, on eight hosts
// with systemd, and makes the usual mistakes. What was typed and answered is
// docs/first-hour.md: an answer that changed fails here until the page is made
// again with -update and read.
func TestFirstHour(t *testing.T) {
	t.Parallel()
	lab.Require(t, "tmux")
	l := lab.New(t, lab.Options{Hosts: 8, Systemd: true, Disk: 320 << 20})
	h := l.Hosts()
	p := &page{t: t, l: l}
	host1 := h[0]

	p.text(`# The first hour`,
		`Typed by a script on eight hosts with systemd and shown as they answered (`+"`scripts/lab: TestFirstHour`"+`, which compares
this page with each run). IDs, fingerprints, times and the kernel's release are replaced; of two voters that may win an
election, host2 does.`,
		`## A fleet`,
		`fleet lies in /usr/local/bin of each host. The first host:`)
	host1.Sh("mkdir -p /media/usb").OK()
	p.run(host1, "fleet init --name acme --root-key /media/usb/acme.key", 0)
	p.run(host1, "systemctl is-active fleet", 0)
	p.run(host1, "fleet activation create --limit 6 --label env=prod --token-file t", 0)

	p.text(`The token goes to the other hosts, by scp for instance.`)
	for _, x := range h[1:7] {
		host1.CopyTo(x, "/root/t")
	}
	p.run(h[1], "fleet join --token-file t", 0)
	p.text(`It can also be typed, or pasted, at a prompt that shows nothing of it:`)
	term := h[2].Terminal()
	term.Type("fleet join")
	term.Wait("Token: *$", time.Minute)
	term.Type(strings.TrimSpace(host1.ReadFile("/root/t")))
	p.screen(term.Wait(`(?s)node .*host3#$`, time.Minute))
	term.Close()
	p.text(`And so on, to host7.`)
	for _, x := range h[3:7] {
		x.Fleet("join", "--token-file", "t").OK()
	}
	l.Wait("the quorum to know how each host is reached", time.Minute, func() bool {
		return strings.Count(host1.Fleet("node", "ls").Stdout, "  direct  ") == 7
	})
	p.run(host1, "fleet node ls", 0)

	p.text(`## Three voters`,
		`One host decides alone so far. Two more are asked to; the root key says so, and the fingerprints are compared with what
"fleet status" shows on those hosts.`)
	for _, x := range h[:3] {
		l.Wait(x.Name()+" to be told how it is reached", time.Minute, func() bool {
			return strings.Contains(x.Fleet("status").Stdout, x.Address()+":7790  direct\n")
		})
	}
	p.run(h[1], "fleet status", 0)
	term = host1.Terminal()
	term.Type("fleet quorum add host2 host3 --root-key /media/usb/acme.key")
	term.Wait(`\[y/N\]`, time.Minute)
	term.Type("y")
	p.screen(term.Wait(`(?s)sign a ticket.*host1#$`, time.Minute))
	p.run(host1, "fleet status", 0)

	p.text(`## Commands`)
	p.run(host1, "fleet run --all -- uname -r", 0)
	p.run(host1, "fleet run --label env=prod -- uname -s", 0)
	p.run(host1, "fleet run --node 'host[2-4]' -- 'test -e /etc/backup || { echo no backup; exit 3; }'", 2)
	p.run(host1, "fleet run -- uname", 64)
	p.run(h[3], "fleet run --all -- uname", 4)

	p.text(`## The usual mistakes`, `A token that lost its end on the way:`)
	host8 := h[7]
	host8.WriteFile("/root/t", host1.ReadFile("/root/t")[:40]+"\n")
	p.run(host8, "fleet join --token-file t", 64)
	p.text(`A token that is used up:`)
	host1.CopyTo(host8, "/root/t")
	p.run(host8, "fleet join --token-file t", 1)
	p.text(`A closed port: the firewall of host1 drops what comes to it.`)
	host1.Sh("rm t").OK()
	p.run(host1, "fleet activation create --address 10.77.0.1:7790 --token-file t", 0)
	host1.CopyTo(host8, "/root/t")
	host1.ClosePort(7790)
	p.run(host8, "fleet join --token-file t", 1)
	p.text(`With the port open it joins, and a firewall of its own, which lets nothing in, keeps it from nothing:`)
	host1.OpenFirewall()
	host8.DropInbound()
	p.run(host8, "nft list table inet firewall", 0)
	p.run(host8, "fleet join --token-file t", 0)
	p.run(host1, "fleet run --node host8 -- hostname", 0)

	p.text(`## A full disk`, `/var/lib/fleet of host5 has 4 KiB left. A host starts nothing that it could not write down before, and a longer script does
not fit: host5 does not take it, and when its time is over it is certain that it never will.`)
	host1.WriteFile("/root/check.sh", "# "+strings.Repeat("long ", 2000)+"\nuname -s\n")
	h[4].FillDisk("/var/lib/fleet")
	h[4].Run("truncate", "-s", "-4096", "/var/lib/fleet/.lab-ballast").OK()
	p.run(h[4], "df -h /var/lib/fleet", 0)
	p.run(host1, "fleet run --all --deliver-within 30s --script check.sh", 2)
	h[4].FreeDisk("/var/lib/fleet")
	p.text("And when there is room again:")
	p.run(host1, "fleet run --all -- uname -s", 0)

	p.text(`## A cut minority`, `A switch fails: host3, a voter, and host7 see each other and nobody else.`)
	l.Split([]*lab.Host{h[2], h[6]}, []*lab.Host{h[0], h[1], h[3], h[4], h[5], h[7]})
	l.Wait("host3 to notice", time.Minute, func() bool {
		s, err := h[2].Status()
		return err == nil && !s.QuorumReachable
	})
	p.run(h[2], "fleet status", 3)
	p.text("With an operator's credential there, it still decides nothing:")
	host1.CopyTo(h[2], credential)
	p.run(h[2], "fleet run --all -- uname -s", 3)
	p.text("The majority goes on:")
	p.run(host1, "fleet run --node 'host[1-2,4-6,8]' -- uname -s", 0)
	p.text("Mended, all answer again:")
	l.Heal()
	h[2].WaitReady()
	h[6].WaitReady()
	p.run(host1, "fleet run --all -- uname -s", 0)

	p.text(`## A killed leader`, `host1 led so far. It loses its power, and another voter takes over; host2 has a copy of the credential.`)
	host1.CopyTo(h[1], credential)
	host1.PowerOff()
	start := time.Now()
	leader := l.WaitLeader(h[1], host1, time.Minute)
	t.Logf("another leader after %v", time.Since(start))
	p.swap = leader == h[2]
	p.run(h[1], "fleet quorum ls", 0)
	p.run(h[1], "fleet run --node 'host[2-8]' -- uname -s", 0)
	p.text("Switched on again, its service starts and it follows:")
	host1.Boot()
	host1.WaitReady()
	p.run(host1, "fleet run --all -- uname -s", 0)
	p.done()
}

// page is what docs/first-hour.md will be.
type page struct {
	t      *testing.T
	l      *lab.Lab
	b      strings.Builder
	fenced bool
	swap   bool // host3 won the election, and the page says host2
}

// text writes paragraphs.
func (p *page) text(paragraphs ...string) {
	if p.fenced {
		p.b.WriteString("```\n\n")
		p.fenced = false
	}
	for i, s := range paragraphs {
		if i > 0 || p.b.Len() > 0 && !strings.HasSuffix(p.b.String(), "\n\n") {
			p.b.WriteString("\n")
		}
		p.b.WriteString(s + "\n")
	}
}

func (p *page) fence() {
	if !p.fenced {
		p.b.WriteString("\n```console\n")
		p.fenced = true
	}
}

// run types a line on a host. What it answers is as a user sees it who has no
// colours.
func (p *page) run(h *lab.Host, line string, code int) string {
	p.t.Helper()
	start := time.Now()
	r := h.RunIn(lab.Input{Limit: 3 * time.Minute}, "bash", "-c", "exec 2>&1; "+line)
	p.t.Logf("%s# %s\n%s(exit code %d, %v)", h.Name(), line, r.Stdout, r.Code, time.Since(start).Round(time.Millisecond))
	if r.Code != code {
		p.t.Errorf("%s# %s: exit code %d, want %d", h.Name(), line, r.Code, code)
	}
	p.fence()
	out := r.Stdout
	if p.swap {
		out = swapRoles(out)
	}
	fmt.Fprintf(&p.b, "%s# %s\n%s", h.Name(), line, tidy(out))
	if code != 0 {
		fmt.Fprintf(&p.b, "(exit code %d)\n", code)
	}
	return r.Stdout
}

// screen shows what is in a terminal, without the prompt that waits there.
func (p *page) screen(text string) {
	p.t.Log(text)
	p.fence()
	if i := strings.LastIndex(text, "\n"); i >= 0 {
		text = text[:i+1]
	}
	p.b.WriteString(tidy(text))
}

func (p *page) done() {
	p.t.Helper()
	p.text()
	got := number(p.b.String())
	if *update {
		if p.t.Failed() {
			p.t.Fatal("docs/first-hour.md is not rewritten from a failed run")
		}
		if err := os.WriteFile(hourPage, []byte(got), 0o644); err != nil {
			p.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(hourPage)
	if err != nil {
		p.t.Fatal(err)
	}
	if got != string(want) {
		p.t.Errorf("docs/first-hour.md is not what was seen; if it should be, -update it.\n%s", difference(got))
	}
}

var replaced = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\d+(\.\d+)?m?s ago`), "1.0s ago"},
	{regexp.MustCompile(`ready after [\d.]+m?s`), "ready after 1.0s"},
	{regexp.MustCompile(`(?m)( of \d+), [\d.]+m?s$`), "$1, 0.5s"},
	{regexp.MustCompile(`(?m)^(ring +)\d+ alive`), "${1}7 alive"},
	{regexp.MustCompile(`(?m)^(disk +)[\d.]+ \w+ of 1 GiB used, [\d.]+ MiB free`), "${1}1 MiB of 1 GiB used, 300 MiB free"},
	{regexp.MustCompile(`(?m)^(containment +).*`), "${1}cgroup v2 (limits: processes, memory, CPU)"},
	{regexp.MustCompile(`(  (yes) +)\d+(  +10\.77)`), "${1}20$3"}, // index applied
	{regexp.MustCompile(`\b20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC`), "2026-01-02 03:04:05 UTC"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "0123456789abcdef0123456789abcdef"},
}

// numbered are replaced by numbers in the order in which they appear, so that
// it is still seen which are the same.
var numbered = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\bmi-[0-9a-f]{17}\b`), "mi-%017x"},
	{regexp.MustCompile(`\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b`), "00000000-0000-4000-8000-%012x"},
	{regexp.MustCompile(`\b([0-9a-f]{4}-){7}[0-9a-f]{4}\b`), "0000-0000-0000-0000-0000-0000-0000-%04x"},
}

// tidy replaces what differs from run to run in the answer to one command.
func tidy(s string) string {
	for _, r := range replaced {
		s = r.what.ReplaceAllString(s, r.by)
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		s = strings.ReplaceAll(s, strings.TrimSpace(string(release)), "6.1.0-28-amd64")
	}
	return align(s)
}

// number replaces what has to be the same all over the page.
func number(s string) string {
	for _, r := range numbered {
		seen := map[string]string{}
		s = r.what.ReplaceAllStringFunc(s, func(id string) string {
			if seen[id] == "" {
				seen[id] = fmt.Sprintf(r.by, len(seen)+1)
			}
			return seen[id]
		})
	}
	return s
}

var gap = regexp.MustCompile(` {2,}`)

// align lays out tables again: what was replaced may have been wider.
func align(s string) string {
	lines := strings.Split(s, "\n")
	for i := 0; i < len(lines); {
		cells := gap.Split(lines[i], -1)
		end := i + 1
		for end < len(lines) && len(gap.Split(lines[end], -1)) == len(cells) {
			end++
		}
		if len(cells) >= 5 && end-i > 1 {
			width := make([]int, len(cells))
			for _, line := range lines[i:end] {
				for c, cell := range gap.Split(line, -1) {
					width[c] = max(width[c], len(cell))
				}
			}
			for j, line := range lines[i:end] {
				var b strings.Builder
				for c, cell := range gap.Split(line, -1) {
					fmt.Fprintf(&b, "%-*s  ", width[c], cell)
				}
				lines[i+j] = strings.TrimRight(b.String(), " ")
			}
		}
		i = end
	}
	return strings.Join(lines, "\n")
}

// swapRoles exchanges the roles of host2 and host3 in the table of voters.
func swapRoles(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "host2 "):
			lines[i] = strings.Replace(line, "voter ", "leader", 1)
		case strings.HasPrefix(line, "host3 "):
			lines[i] = strings.Replace(line, "leader", "voter ", 1)
		}
	}
	return strings.Join(lines, "\n")
}

// difference shows what differs between the page and what was seen.
func difference(got string) string {
	cmd := exec.Command("diff", "-u", hourPage, "-")
	cmd.Stdin = strings.NewReader(got)
	out, _ := cmd.CombinedOutput() // diff fails when there is a difference
	return string(out)
}
