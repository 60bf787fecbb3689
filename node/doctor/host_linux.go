package doctor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mounted looks at how the file system of a directory is mounted and whether
// this user may write there: OK, or what is wrong and what to do.
func mounted(dir string) (state State, text, remedy string) {
	var fsys unix.Statfs_t
	err := unix.Statfs(dir, &fsys)
	switch {
	case err != nil:
		return Problem, fmt.Sprintf("%s: %v", dir, err), "check the path: data-dir"
	case fsys.Flags&unix.ST_RDONLY != 0:
		return Problem, dir + " is on a file system that is mounted read-only", "remount it, or name another: --data-dir DIR"
	case unix.Access(dir, unix.W_OK) != nil:
		return Problem, dir + " may not be written by this user", "become root, or name another: --data-dir DIR"
	case fsys.Flags&unix.ST_NOEXEC != 0:
		return Warning, dir + " is on a file system mounted noexec: scripts with a #! line of their own cannot run from it",
			"mount it with exec, or name another: --data-dir DIR"
	}
	return OK, "", ""
}

// clock asks the kernel whether something keeps its clock.
func (e *examination) clock() {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		e.add("clock", Skipped, fmt.Sprintf("the kernel does not say: %v", err), "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		e.add("clock", Warning, "nothing keeps this host's clock: "+e.Now().UTC().Format("2006-01-02 15:04:05 UTC"),
			"install chrony or turn on systemd-timesyncd: timedatectl set-ntp true")
	default:
		e.add("clock", OK, "kept in step: "+e.Now().UTC().Format("2006-01-02 15:04:05 UTC"), "")
	}
}

func platformFindings(Options) []Finding {
	var found []Finding
	if mode, err := os.ReadFile("/sys/fs/selinux/enforce"); err == nil && bytes.HasPrefix(mode, []byte("1")) {
		found = append(found, Finding{Check: "selinux", State: OK,
			Text: "enforcing; the installed binary needs its context: restorecon /usr/bin/fleet"})
	}
	if active := firewalls(); len(active) > 0 {
		found = append(found, Finding{Check: "firewall", State: OK, Text: strings.Join(active, ", ") + " is active on this host; the port must be open in it, TCP and UDP"})
	}
	return found
}

// firewalls names what seems to filter on this host, by the files it leaves.
func firewalls() []string {
	var active []string
	if _, err := os.Stat("/run/firewalld"); err == nil {
		active = append(active, "firewalld")
	}
	if conf, err := os.ReadFile("/etc/ufw/ufw.conf"); err == nil && bytes.Contains(conf, []byte("ENABLED=yes")) {
		active = append(active, "ufw")
	}
	return active
}

// firewallRule is what opens a port, in the words of what filters here.
func firewallRule(port string) string {
	for _, f := range firewalls() {
		switch f {
		case "firewalld":
			return fmt.Sprintf("firewall-cmd --permanent --add-port=%s/tcp --add-port=%s/udp && firewall-cmd --reload", port, port)
		case "ufw":
			return fmt.Sprintf("ufw allow %s", port)
		}
	}
	return fmt.Sprintf("nft insert rule inet filter input meta l4proto '{ tcp, udp }' th dport %s accept (the table and chain that \"nft list ruleset\" shows, and in the file that it is loaded from)", port)
}

// portOwner names the process that has a port open, "" if it cannot be seen.
func portOwner(port uint16) string {
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		socketInodes("/proc/net/"+table, port, strings.HasPrefix(table, "tcp"), inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return ""
	}
	for _, dir := range processes {
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // of another user, or gone
		}
		for _, f := range files {
			link, err := os.Readlink(filepath.Join(dir, "fd", f.Name()))
			if err != nil {
				continue
			}
			inode, ok := strings.CutPrefix(link, "socket:[")
			if ok && inodes[strings.TrimSuffix(inode, "]")] {
				return process(dir)
			}
		}
	}
	return ""
}

func process(dir string) string {
	name, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		name = []byte("?")
	}
	return fmt.Sprintf("process %s (%s)", filepath.Base(dir), strings.TrimSpace(string(name)))
}

// socketInodes collects the inodes of sockets bound to a port; of TCP only
// those that listen.
func socketInodes(table string, port uint16, tcp bool, into map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return // no such family here
	}
	defer f.Close() //nolint:errcheck // nothing is written
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		n, err := strconv.ParseUint(hex, 16, 16)
		const listening = "0A"
		if ok && err == nil && uint16(n) == port && (!tcp || fields[3] == listening) {
			into[fields[9]] = true
		}
	}
}
