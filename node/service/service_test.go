//go:build unix

package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fleet/node/config"
	"fleet/node/fleet"
)

// host is a root of a file system with a systemd that answers as told.
type host struct {
	*systemd
	root    string
	calls   []string
	answers map[string]string // by the end of the command line
	fails   map[string]string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{root: t.TempDir(), answers: map[string]string{}, fails: map[string]string{}}
	h.write(t, "/run/systemd/system/x", "", 0o644)
	h.write(t, systemctl, "", 0o755)
	s, err := openSystemd(h.root, h.run)
	if err != nil {
		t.Fatal(err)
	}
	h.systemd = s
	return h
}

func (h *host) run(_ context.Context, args ...string) ([]byte, error) {
	line := strings.ReplaceAll(strings.Join(args, " "), h.root, "")
	h.calls = append(h.calls, line)
	for end, said := range h.fails {
		if strings.Contains(line, end) {
			return nil, errors.New(said)
		}
	}
	for end, said := range h.answers {
		if strings.Contains(line, end) {
			return []byte(said), nil
		}
	}
	return nil, nil
}

func (h *host) write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(h.root, path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func (h *host) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// spec is of a program that lies somewhere else.
func (h *host) spec(t *testing.T, version, content string) Spec {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return Spec{Binary: path, Version: version, Config: config.DefaultFile, DataDir: config.DefaultDataDir}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestInstall(t *testing.T) {
	h := newHost(t)
	spec := h.spec(t, "1.2.3", "program")
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	must(t, os.Chtimes(spec.Binary, old, old))
	must(t, h.Install(t.Context(), spec))
	if got := h.read(t, ProgramPath); got != "program" {
		t.Errorf("program: %q", got)
	}
	info, err := os.Stat(h.path(ProgramPath))
	must(t, err)
	if info.Mode().Perm() != 0o755 || !info.ModTime().Equal(old) {
		t.Errorf("program: mode %v, age %v, want 0755 and that of the original", info.Mode(), info.ModTime())
	}
	text := h.read(t, ownUnit)
	for _, want := range []string{
		"Type=notify\n", "Restart=always\n", "StartLimitIntervalSec=0\n", "Delegate=yes\n", "KillMode=mixed\n", "OOMScoreAdjust=-500\n",
		"LimitNOFILE=65536\n", "WatchdogSec=", "ExecStart=/usr/bin/fleet agent\n", "[X-Fleet]\nConfig=/etc/fleet/fleet.yaml\nCopied=true\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the service file has no %q:\n%s", want, text)
		}
	}
	want := []string{"/usr/bin/systemctl --no-ask-password daemon-reload", "/usr/bin/systemctl --no-ask-password enable fleet.service"}
	if !slices.Equal(h.calls, want) {
		t.Errorf("calls %q, want %q", h.calls, want)
	}
	st, err := h.Status(t.Context())
	must(t, err)
	if !st.Installed || !st.Copied || st.File != ownUnit || st.Config != config.DefaultFile || st.Packaged || st.Foreign {
		t.Errorf("status %+v", st)
	}

	// Again, from its place and with another configuration: still ours to remove.
	spec.Binary, spec.Config = h.path(ProgramPath), "/srv/a b/$x%.yaml"
	must(t, h.Install(t.Context(), spec))
	if text := h.read(t, ownUnit); !strings.Contains(text, `ExecStart=/usr/bin/fleet agent --config "/srv/a b/$$x%%.yaml"`+"\n") {
		t.Errorf("with a configuration of its own:\n%s", text)
	}
	st, err = h.Status(t.Context())
	must(t, err)
	if !st.Copied || st.Config != "/srv/a b/$x%.yaml" {
		t.Errorf("status %+v", st)
	}
	h.write(t, ProgramPath+PreviousSuffix, "program", 0o755) // of an upgrade
	removes, err := h.Removes(t.Context())
	must(t, err)
	if want := []string{ownUnit, ProgramPath, ProgramPath + PreviousSuffix}; !slices.Equal(removes, want) {
		t.Errorf("removes %q, want %q", removes, want)
	}
	h.calls = nil
	must(t, h.Disable(t.Context()))
	if len(h.calls) != 1 || !strings.HasSuffix(h.calls[0], "disable --now fleet.service") || !h.exists(ownUnit) {
		t.Errorf("disabled by %q", h.calls)
	}
	h.calls = nil
	must(t, h.Uninstall(t.Context()))
	for _, p := range removes {
		if h.exists(p) {
			t.Errorf("%s is still there", p)
		}
	}
	if !slices.ContainsFunc(h.calls, func(c string) bool { return strings.HasSuffix(c, "disable --now fleet.service") }) {
		t.Errorf("calls %q: it was not stopped", h.calls)
	}
	must(t, h.Uninstall(t.Context())) // again: there is nothing
}

func TestPackageIsLeftAlone(t *testing.T) {
	h := newHost(t)
	h.write(t, packageUnits[0], "of a package", 0o644)
	h.write(t, ProgramPath, "program", 0o755)
	spec := h.spec(t, "1.2.3", "")
	spec.Binary = h.path(ProgramPath)
	must(t, h.Install(t.Context(), spec))
	if h.exists(ownUnit) {
		t.Error("a service file was written beside the package's")
	}
	removes, err := h.Removes(t.Context())
	if err != nil || len(removes) != 0 {
		t.Errorf("removes %q, %v: what a package brought goes with the package", removes, err)
	}
	must(t, h.Uninstall(t.Context()))
	if !h.exists(ProgramPath) || !h.exists(packageUnits[0]) {
		t.Error("the package's files were removed")
	}
}

func TestAnotherProgram(t *testing.T) {
	tests := []struct {
		name           string
		mine, there    string // versions
		newer          bool   // the file that is there
		force, refused bool
	}{
		{"older release", "1.3.0", "1.2.9", true, false, false},
		{"newer release", "1.2.9", "1.10.0", false, false, true},
		{"newer release, forced", "1.2.9", "1.10.0", false, true, false},
		{"release after its candidate", "1.2.0-rc.1", "1.2.0", false, false, true},
		{"same release, other bytes", "1.2.3", "v1.2.3", true, false, false},
		{"builds without a number, older file", "a1b2c3", "d4e5f6", false, false, false},
		{"builds without a number, newer file", "a1b2c3", "d4e5f6", true, false, true},
		{"one that says nothing, newer file", "1.2.3", "", true, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			spec := h.spec(t, tt.mine, "mine")
			spec.Force = tt.force
			h.write(t, ProgramPath, "theirs", 0o755)
			age := time.Hour
			if tt.newer {
				age = -age
			}
			then := time.Now().Add(-2 * age)
			must(t, os.Chtimes(h.path(ProgramPath), then, then))
			h.answers[ProgramPath+" version -o json"] = fmt.Sprintf(`{"Version": %q}`, tt.there)
			if tt.there == "" {
				h.fails[ProgramPath+" version"] = "exec format error"
			}
			err := h.Install(t.Context(), spec)
			if refused := err != nil; refused != tt.refused {
				t.Fatalf("refused: %t (%v), want %t", refused, err, tt.refused)
			}
			want := "mine"
			if tt.refused {
				want = "theirs"
				if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(fleet.HintOf(err), "--force") {
					t.Errorf("got %v, hint %q", err, fleet.HintOf(err))
				}
				if h.exists(ownUnit) {
					t.Error("it was refused after something was written")
				}
			}
			if got := h.read(t, ProgramPath); got != want {
				t.Errorf("the program is %q, want %q", got, want)
			}
		})
	}
}

func TestServiceFileOfAnother(t *testing.T) {
	h := newHost(t)
	h.write(t, ownUnit, "[Service]\nExecStart=/opt/x\n", 0o644)
	spec := h.spec(t, "1.2.3", "program")
	err := h.Check(t.Context(), spec)
	if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), ownUnit) {
		t.Errorf("got %v", err)
	}
	if err := h.Uninstall(t.Context()); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("uninstall: %v", err)
	}
	spec.Force = true
	must(t, h.Install(t.Context(), spec))
	if !strings.Contains(h.read(t, ownUnit), unitSection) {
		t.Error("forced, it was not replaced")
	}
}

func TestStatus(t *testing.T) {
	h := newHost(t)
	st, err := h.Status(t.Context())
	if err != nil || st.Installed || len(h.calls) > 0 {
		t.Errorf("nothing installed: %+v, %v, %q", st, err, h.calls)
	}
	must(t, h.Install(t.Context(), h.spec(t, "1.2.3", "p")))
	h.answers["show fleet.service"] = "ActiveState=activating\nSubState=auto-restart\nResult=exit-code\nNRestarts=3\n"
	st, err = h.Status(t.Context())
	must(t, err)
	if !st.Running || st.State != "activating (auto-restart)" || st.Restarts != 3 || st.Result != "exit-code" {
		t.Errorf("%+v", st)
	}
	h.answers["show fleet.service"] = "ActiveState=inactive\nSubState=dead\nResult=success\n"
	if st, err = h.Status(t.Context()); err != nil || st.Running || st.Restarts != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	h.answers["journalctl --unit=fleet.service --lines=2"] = "a\nb\n"
	lines, err := h.Logs(t.Context(), 2)
	if err != nil || !slices.Equal(lines, []string{"a", "b"}) {
		t.Errorf("log %q, %v", lines, err)
	}
}

func TestContextsOfSELinux(t *testing.T) {
	h := newHost(t)
	h.write(t, restorecon, "", 0o755)
	h.write(t, selinux, "1", 0o644)
	h.write(t, config.DefaultFile, "", 0o644)
	must(t, h.Install(t.Context(), h.spec(t, "1.2.3", "p")))
	want := restorecon + " -R " + ProgramPath + " " + ownUnit + " /etc/fleet"
	if !slices.Contains(h.calls, want) {
		t.Errorf("calls %q, want %q", h.calls, want)
	}
}

func TestWithoutSystemd(t *testing.T) {
	for file, want := range map[string]string{
		"/run/openrc/x": "OpenRC", "/etc/inittab": "sysvinit", "/etc/hostname": "looks like a container",
	} {
		h := &host{root: t.TempDir()}
		h.write(t, file, "", 0o644)
		_, err := openSystemd(h.root, h.run)
		if fleet.KindOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), want) || !strings.Contains(fleet.HintOf(err), "--foreground") {
			t.Errorf("%s: %v, hint %q", file, err, fleet.HintOf(err))
		}
	}
}

// The manager's own words reach whoever reads the error.
func TestRunCommand(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell")
	}
	out, err := runCommand(t.Context(), "/bin/sh", "-c", "echo out; echo $HOME $LANG")
	if err != nil || string(out) != "out\nC.UTF-8\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = runCommand(t.Context(), "/bin/sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.HasSuffix(err.Error(), ": why") {
		t.Errorf("got %v", err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": fmt.Sprint(os.Getpid())}
	n := NewNotifier(func(k string) string { return env[k] })
	if n.Interval() != 10*time.Second {
		t.Errorf("interval %s", n.Interval())
	}
	for _, tt := range []struct {
		tell func() error
		want string
	}{
		{func() error { return n.Ready("well") }, "READY=1\nSTATUS=well"},
		{n.Alive, "WATCHDOG=1"},
		{func() error { return n.State("busy") }, "STATUS=busy"},
		{n.Stopping, "STOPPING=1\nSTATUS=stopping"},
	} {
		must(t, tt.tell())
		buf := make([]byte, 100)
		must(t, l.SetReadDeadline(time.Now().Add(10*time.Second)))
		k, _, err := l.ReadFromUnix(buf)
		if err != nil || string(buf[:k]) != tt.want {
			t.Errorf("got %q, %v, want %q", buf[:k], err, tt.want)
		}
	}
	env["WATCHDOG_PID"] = "1"
	if n := NewNotifier(func(k string) string { return env[k] }); n.Interval() != 0 {
		t.Error("the watchdog of another process is taken for ours")
	}
	alone := NewNotifier(func(string) string { return "" })
	if err := alone.Ready("x"); err != nil || alone.Interval() != 0 {
		t.Errorf("without a manager: %v", err)
	}
}

func TestGuardService(t *testing.T) {
	h := newHost(t)
	must(t, h.Guard(t.Context(), []string{"/usr/bin/fleet.previous", "__upgrade-guard", "/srv/a b/$x"}))
	text := h.read(t, guardUnit)
	if !strings.Contains(text, `ExecStart=/usr/bin/fleet.previous __upgrade-guard "/srv/a b/$$x"`+"\n") || !strings.Contains(text, "WantedBy=multi-user.target") {
		t.Errorf("the guard's service file:\n%s", text)
	}
	var verbs []string
	for _, c := range h.calls {
		verbs = append(verbs, strings.TrimPrefix(c, systemctl+" --no-ask-password "))
	}
	if want := []string{"daemon-reload", "enable fleet-upgrade.service", "restart fleet-upgrade.service"}; !slices.Equal(verbs, want) {
		t.Errorf("calls %q, want %q", verbs, want)
	}
	must(t, h.Unguard(t.Context()))
	if h.exists(guardUnit) {
		t.Error("the guard's service file is still there")
	}
	h.calls = nil
	must(t, h.Unguard(t.Context()))
	if len(h.calls) != 0 {
		t.Errorf("without a guard: %q", h.calls)
	}
	h.fails["restart fleet-upgrade.service"] = "it does not start"
	if err := h.Guard(t.Context(), []string{"/usr/bin/fleet.previous"}); err == nil || h.exists(guardUnit) {
		t.Errorf("a guard that does not start: %v, and its file is there: %t", err, h.exists(guardUnit))
	}
	h.answers["--property=MainPID"] = "MainPID=42\n"
	if err := h.Runs(t.Context(), 42); err != nil {
		t.Errorf("its own process: %v", err)
	}
	if err := h.Runs(t.Context(), 43); fleet.KindOf(err) != fleet.Unavailable || !strings.Contains(fleet.HintOf(err), "--foreground") {
		t.Errorf("another's: %v", err)
	}
}
