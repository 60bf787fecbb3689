//go:build lab && linux

package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/scripts/lab"
)

// sickMain is the main.go of programs that say their version as any other and
// whose agent is sick in the way that the version names.
const sickMain = `package main

import (
	"net"
	"os"
	"strings"
	"time"

	"fleet/node/cli"
)

var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		switch _, sick, _ := strings.Cut(version, "-"); sick {
		case "exits":
			os.Stderr.WriteString("this program is sick\n")
			os.Exit(3)
		case "hangs":
			for {
				time.Sleep(time.Hour)
			}
		case "silent": // ready for the manager, and never heard of by the quorum
			c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
			if err == nil {
				c.Write([]byte("READY=1"))
			}
			for {
				time.Sleep(time.Hour)
			}
		}
	}
	os.Exit(cli.Main(os.Args, version))
}
`

// buildVersion builds a fleet that says it is a version.
func buildVersion(t *testing.T, version string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	check(t, err)
	dir := t.TempDir()
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=" + version, "-o", filepath.Join(dir, "fleet")}
	if strings.Contains(version, "-") {
		source, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
		check(t, os.WriteFile(source, []byte(sickMain), 0o644))
		list, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "main.go"): source}})
		check(t, err)
		check(t, os.WriteFile(overlay, list, 0o644))
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, out)
	}
	return filepath.Join(dir, "fleet")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// upgraded is what "fleet upgrade -o json" prints.
type upgraded struct {
	Phases []struct {
		Name  string
		Hosts []struct{ Name, Status, Reason string }
	}
	Done, Away []struct{ Name string }
}

// versions are the programs that the hosts run, as the quorum heard.
func versions(h *lab.Host) map[string]string {
	r := h.Fleet("node", "ls", "-o", "json")
	var answer fleet.DescribeNodesResult
	if r.Code != 0 || json.Unmarshal([]byte(r.Stdout), &answer) != nil {
		return nil
	}
	all := map[string]string{}
	for _, n := range answer.Nodes {
		all[n.Name] = n.AgentVersion
	}
	return all
}

// TestUpgrade brings five hosts with systemd, three of them voters, to another
// program and back: sick programs go back by themselves and stop the rest, also
// through a power cut, a sound one comes to all, while commands run.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	one := buildVersion(t, "1.0.0")
	l := lab.New(t, lab.Options{Hosts: 5, Systemd: true, Disk: 256 << 20, Binary: one})
	h := l.Hosts()
	first := h[0]
	first.Sh("mkdir -p /media/usb").OK()
	first.Fleet("init", "--name", "acme", "--root-key", lab.RootKey).OK()
	first.Fleet("activation", "create", "--limit", "4", "--token-file", lab.Token).OK()
	for _, x := range h[1:] {
		first.CopyTo(x, lab.Token)
		x.Fleet("join", "--token-file", lab.Token).OK()
	}
	first.Fleet("quorum", "add", "host2", "host3", "--root-key", lab.RootKey, "--yes").OK()
	send := func(version string) string {
		b, err := os.ReadFile(buildVersion(t, version))
		check(t, err)
		path := "/root/" + version + "/fleet"
		first.WriteFile(path, string(b))
		first.Run("chmod", "755", path).OK()
		return path
	}
	all := func(version string) map[string]string {
		m := map[string]string{}
		for _, x := range h {
			m[x.Name()] = version
		}
		return m
	}
	wait := func(what string, want map[string]string) {
		t.Helper()
		l.Wait(what, 2*time.Minute, func() bool { return fmt.Sprint(versions(first)) == fmt.Sprint(want) })
	}
	up := func(code int, args ...string) (upgraded, string) {
		t.Helper()
		r := first.RunIn(lab.Input{Limit: 8 * time.Minute}, append([]string{"fleet", "upgrade", "--yes", "-o", "json"}, args...)...)
		var u upgraded
		if err := json.Unmarshal([]byte(r.Stdout), &u); err != nil || r.Code != code {
			t.Fatalf("fleet upgrade %q: exit code %d, want %d: %v\n%s%s", args, r.Code, code, err, r.Stdout, r.Stderr)
		}
		return u, r.Stderr
	}
	wait("all hosts to run 1.0.0", all("1.0.0"))

	for sick, want := range map[string]string{
		"exits": "it ended 3 times before it was well; it last said: this program is sick", "hangs": "not answered it within 20s",
		"silent": "not answered it within 20s",
	} {
		path := send("2.0.0-" + sick)
		began := time.Now()
		u, said := up(2, "--file", path, "--canary", "host4", "--healthy-within", "20s")
		canary := u.Phases[0].Hosts[0]
		if canary.Name != "host4" || canary.Status != "Failed" || !strings.Contains(canary.Reason, want) {
			t.Errorf("%s: %+v\n%s", sick, canary, said)
		}
		for _, phase := range u.Phases[1:] {
			for _, x := range phase.Hosts {
				if x.Status != "" {
					t.Errorf("%s: %s was begun: %+v", sick, x.Name, x)
				}
			}
		}
		t.Logf("%s: back after %s", sick, time.Since(began).Round(time.Second))
		wait("host4 to be back", all("1.0.0"))
		if got := h[3].Sh("ls /etc/systemd/system/fleet-upgrade.service /usr/bin/fleet.new").Stdout; got != "" {
			t.Errorf("%s: left behind: %s", sick, got)
		}
	}

	// A power cut while a sick program has its place: the guard begins again at
	// boot, however sick the program is.
	sent := h[3]
	silent := send("2.0.0-silent")
	p := first.Start("fleet", "upgrade", "--yes", "--file", silent, "--canary", "host4", "--healthy-within", "30s")
	l.Wait("the sick program to be in its place", time.Minute, func() bool {
		return strings.Contains(sent.Run("/usr/bin/fleet", "version").Stdout, "2.0.0-silent")
	})
	sent.PowerOff()
	sent.Boot()
	if got := sent.Run("/usr/bin/fleet", "version").Stdout; !strings.Contains(got, "2.0.0-silent") {
		t.Errorf("after the power cut host4 has %s", got)
	}
	l.Wait("host4 to go back after the power cut", 3*time.Minute, func() bool {
		return strings.Contains(sent.Run("/usr/bin/fleet", "version").Stdout, "fleet 1.0.0")
	})
	sent.WaitReady()
	l.Wait("the command to end", 3*time.Minute, func() bool { return !p.Running() })
	if !strings.Contains(p.Log(), "host4") || !strings.Contains(p.Log(), "it went back to 1.0.0") {
		t.Errorf("the account of it:\n%s", p.Log())
	}
	wait("all hosts to run 1.0.0 again", all("1.0.0"))

	// A sound one, while commands run on all hosts. Every command that was
	// acknowledged comes to an end on every host, and none is cut off.
	two := send("2.0.0")
	stop := make(chan struct{})
	var load sync.WaitGroup
	runs := 0
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			r := first.RunIn(lab.Input{Limit: 4 * time.Minute}, "fleet", "run", "--all", "--deliver-within", "3m", "-o", "json", "--", "sleep 0.2; echo done")
			if r.Code != 0 {
				t.Errorf("a command during the upgrade: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
				return
			}
			runs++
		}
	})
	leader := l.WaitLeader(first, nil, time.Minute)
	began := time.Now()
	u, said := up(0, "--file", two, "--canary", "1", "--concurrency", "1")
	t.Logf("2.0.0 on five hosts after %s", time.Since(began).Round(time.Second))
	close(stop)
	load.Wait()
	t.Logf("%d commands on five hosts meanwhile", runs)
	if runs == 0 {
		t.Error("no command ran meanwhile")
	}
	var order []string
	for _, phase := range u.Phases {
		for _, x := range phase.Hosts {
			order = append(order, x.Name)
			if x.Status != "Success" {
				t.Errorf("%+v", x)
			}
		}
	}
	if len(order) != 5 || order[4] != leader.Name() || slices.Contains(order[:2], "host1") || slices.Contains(order[:2], "host2") || slices.Contains(order[:2], "host3") {
		t.Errorf("the order was %q, %s led\n%s", order, leader.Name(), said)
	}
	wait("all hosts to run 2.0.0", all("2.0.0"))
	if u, _ := up(0, "--file", two); len(u.Done) != 5 {
		t.Errorf("again: %+v", u)
	}

	// And back, in the same way.
	path := "/root/1.0.0/fleet"
	b, err := os.ReadFile(one)
	check(t, err)
	first.WriteFile(path, string(b))
	first.Run("chmod", "755", path).OK()
	_, said = up(0, "--file", path, "--concurrency", "100%")
	if !strings.Contains(said, "this is a downgrade") {
		t.Errorf("no warning:\n%s", said)
	}
	wait("all hosts to run 1.0.0 once more", all("1.0.0"))
}
