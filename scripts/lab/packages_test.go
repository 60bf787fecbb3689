//go:build lab && linux

package lab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fleet/scripts/lab"
)

// TestPackages installs the deb and the rpm on real hosts, founds a fleet from
// the one and removes both again: what a person gets who does not build.
func TestPackages(t *testing.T) {
	lab.Require(t, "dpkg-deb")
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("no rpm here (Debian: apt-get install rpm)")
	}
	dist := t.TempDir()
	build := exec.Command("../packages.sh")
	build.Env = append(os.Environ(), "ARCHES=amd64", "OUT="+dist, "FLEET_CREDENTIAL=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("packages.sh: %v\n%s", err, out)
	}
	l := lab.New(t, lab.Options{Hosts: 2, Systemd: true})
	deb, rpm := l.Hosts()[0], l.Hosts()[1]
	for _, h := range l.Hosts() {
		for _, pattern := range []string{"*.deb", "*.rpm"} {
			h.WriteFile("/root/fleet"+filepath.Ext(pattern), read(t, dist, pattern))
		}
		h.Sh("rm -f /usr/local/bin/fleet /usr/bin/fleet; ! command -v fleet").OK()
	}

	deb.Sh("dpkg -i /root/fleet.deb").OK()
	deb.Sh("set -e; systemctl is-enabled fleet && exit 1; systemctl is-active fleet && exit 1; getent group fleet").OK()
	deb.Sh("zcat /usr/share/man/man1/fleet-run.1.gz | head -1").OK().Has(`^\.TH`)
	deb.Run("bash", "-c", ". /usr/share/bash-completion/completions/fleet && complete -p fleet").OK()
	deb.Fleet("init", "--name", "acme", "--root-key", lab.RootKey).OK()
	deb.Sh("systemctl is-active fleet").OK()
	deb.Fleet("run", "--all", "--", "echo", "from a package").OK().Has("from a package")

	// The same version again is an upgrade: the agent that runs is a new one.
	pid := deb.Sh("systemctl show -p MainPID fleet").OK().Stdout
	deb.Sh("dpkg -i /root/fleet.deb").OK()
	deb.WaitReady()
	if now := deb.Sh("systemctl show -p MainPID fleet").OK().Stdout; now == pid {
		t.Errorf("after an upgrade the old agent runs: %s", now)
	}
	deb.Sh("dpkg -r fleet").OK()
	deb.Sh("set -e; ! systemctl is-active fleet; ! test -e /usr/bin/fleet; ! test -e /usr/lib/systemd/system/fleet.service").OK()
	deb.Sh("test -d /var/lib/fleet/keys").OK() // a host's keys are not lost by a package manager
	deb.Sh("dpkg -P fleet").OK().Has("/var/lib/fleet stays")

	rpm.Sh("rpm -i --nodeps --ignoreos /root/fleet.rpm && rpm -q fleet && rpm -V --nodeps fleet").OK()
	rpm.Sh("fleet version && test -e /usr/lib/systemd/system/fleet.service && test -e /usr/share/zsh/site-functions/_fleet").OK()
	rpm.Sh("rpm -e --nodeps fleet && ! test -e /usr/bin/fleet").OK()
}

// read is the one file that a pattern names.
func read(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %s, %v", pattern, strings.Join(names, " "), err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
