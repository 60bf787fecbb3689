package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/service"
)

// enrolled is a world with a host that founded a fleet and a service for it.
func enrolled(t *testing.T) (w *world, f *fakeService, dir string) {
	t.Helper()
	f = &fakeService{}
	w, dir = withService(t, f)
	file := w.vars["FLEET_CONFIG"]
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("version: 1\ndata-dir: "+filepath.Join(dir, "d")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := w.run(t, "init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--node-name", "host1", "--advertise", "127.0.0.1:7790", "--enroll-only"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	f.status = service.Status{Installed: true, Running: true, State: "active (running)", Config: file, File: "/etc/systemd/system/fleet.service"}
	return w, f, dir
}

func TestUninstall(t *testing.T) {
	w, f, dir := enrolled(t)
	data, file := filepath.Join(dir, "d"), w.vars["FLEET_CONFIG"]

	if code := w.run(t, "uninstall", "--yes"); code != ExitFailed ||
		!strings.Contains(w.stderr.String(), "host1 votes in the quorum of acme; without it nothing can be decided any more") || f.called() != "" {
		t.Errorf("a voter: exit %d, %s\n%s", code, f.called(), w.stderr.String())
	}
	if code := w.run(t, "uninstall", "--force"); code != ExitUsage || !strings.Contains(w.stderr.String(), "say --yes") || f.called() != "" {
		t.Errorf("without a terminal: exit %d, %s\n%s", code, f.called(), w.stderr.String())
	}
	w.inTTY = true
	w.stdin.WriteString("n\n")
	if code := w.run(t, "uninstall", "--force", "--purge"); code == 0 || f.called() != "" {
		t.Errorf("a no: exit %d, %s\n%s", code, f.called(), w.stderr.String())
	}
	for _, want := range []string{
		"removes  /etc/systemd/system/fleet.service\n", "removes  " + data + " with everything in it", "removes  " + file + "\n",
		"stops    the service", "WARNING  host1 votes: the quorum keeps 0 of its 1 voters",
	} {
		if !strings.Contains(w.stderr.String(), want) {
			t.Errorf("the list\n%s\nhas no %q", w.stderr.String(), want)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "FORMAT")); err != nil {
		t.Errorf("after a no: %v", err)
	}

	if code := w.run(t, "uninstall", "--force", "--yes"); code != 0 || f.called() != "uninstall" {
		t.Errorf("exit %d, %s\n%s", code, f.called(), w.stderr.String())
	}
	if _, err := os.Stat(filepath.Join(data, "FORMAT")); err != nil {
		t.Errorf("without --purge: %v", err)
	}
	if strings.Contains(w.stderr.String(), "fleet node rm") {
		t.Errorf("there is no fleet left in which a row stays:\n%s", w.stderr.String())
	}

	if code := w.run(t, "uninstall", "--force", "--yes", "--purge"); code != 0 {
		t.Errorf("exit %d\n%s", code, w.stderr.String())
	}
	for _, p := range []string{data, file, filepath.Dir(file)} {
		if _, err := os.Stat(p); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "k")); err != nil {
		t.Errorf("the root key: %v", err)
	}
	f.status = service.Status{}
	f.removes = []string{}
	if code := w.run(t, "uninstall", "--purge", "--yes"); code != 0 || !strings.Contains(w.stderr.String(), "nothing to remove") {
		t.Errorf("again: exit %d\n%s", code, w.stderr.String())
	}
}

// What is not a fleet's is never removed, whatever the configuration names.
func TestUninstallKeepsOtherDirectories(t *testing.T) {
	f := &fakeService{status: service.Status{Installed: true}}
	w, dir := withService(t, f)
	precious := filepath.Join(dir, "precious")
	if err := os.MkdirAll(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	w.vars["FLEET_DATA_DIR"] = precious
	if code := w.run(t, "uninstall", "--purge", "--yes"); code != 0 {
		t.Errorf("exit %d\n%s", code, w.stderr.String())
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// In a container there is no service: --purge removes the rest.
func TestUninstallWithoutServiceManager(t *testing.T) {
	w, _, dir := enrolled(t)
	w.manager = func() (service.Manager, error) { return nil, errNoManager }
	if code := w.run(t, "uninstall", "--yes", "--force"); code != ExitFailed || !strings.Contains(w.stderr.String(), "systemd does not run this host") {
		t.Errorf("exit %d\n%s", code, w.stderr.String())
	}
	if code := w.run(t, "uninstall", "--yes", "--force", "--purge"); code != 0 {
		t.Errorf("exit %d\n%s", code, w.stderr.String())
	}
	if _, _, err := enrol.OpenDir(filepath.Join(dir, "d")); fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("the data directory: %v", err)
	}
}

// An ordinary host has a row with the quorum, which stays.
func TestUninstallOfAnOrdinaryHost(t *testing.T) {
	founder, _ := startFleet(t, 1, 1)
	f := &fakeService{}
	w, dir := withService(t, f)
	token, data := filepath.Join(dir, "t"), filepath.Join(dir, "d")
	if code := founder.run(t, "activation", "create", "--token-file", token); code != 0 {
		t.Fatalf("exit %d: %s", code, founder.stderr.String())
	}
	w.vars["FLEET_DATA_DIR"] = data
	if code := w.run(t, "join", "--token-file", token, "--enroll-only", "--listen", freePort(t), "--node-name", "spare"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	if code := w.run(t, "uninstall", "--purge", "--yes"); code != 0 || f.called() != "uninstall" ||
		!strings.Contains(w.stderr.String(), "the row of spare stays in fleet dev: fleet node rm spare") {
		t.Errorf("exit %d, %s\n%s", code, f.called(), w.stderr.String())
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("the data directory is still there")
	}
}
