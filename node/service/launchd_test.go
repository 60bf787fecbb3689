//go:build unix

package service

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fleet/node/config"
	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// mac is a root of a file system with a launchd that keeps one service.
type mac struct {
	*launchd
	calls  []string
	loaded bool
	linger int // how often print still finds a service that is being unloaded
	runs   string
	state  string
}

func newMac(t *testing.T) *mac {
	t.Helper()
	m := &mac{runs: "1", state: "running"}
	m.launchd = &launchd{root: t.TempDir(), run: m.answer}
	return m
}

func (m *mac) answer(_ context.Context, args ...string) ([]byte, error) {
	line := strings.ReplaceAll(strings.Join(args, " "), m.root, "")
	verb, known := strings.CutPrefix(line, launchctl+" ")
	if !known {
		return nil, errors.New("exec format error") // the program that is there, asked for its version
	}
	verb, _, _ = strings.Cut(verb, " ")
	if verb != "print" {
		m.calls = append(m.calls, line)
	}
	switch verb {
	case "bootstrap":
		if m.loaded {
			return nil, errors.New("Bootstrap failed: 5: Input/output error")
		}
		m.loaded = true
	case "bootout":
		if m.linger > 0 {
			return nil, errors.New("Boot-out failed: 36: Operation now in progress")
		}
		m.loaded = false
	case "kickstart":
		if !m.loaded {
			return nil, errors.New("Could not find service")
		}
		m.runs = "2"
	case "print":
		if m.linger > 0 {
			if m.linger--; m.linger == 0 {
				m.loaded = false
			}
		}
		if !m.loaded {
			return nil, errors.New(`Could not find service "local.fleet" in domain for system`)
		}
		return []byte(strings.NewReplacer("@runs", m.runs, "@state", m.state).Replace(printed)), nil
	}
	return nil, nil
}

// printed is in the form of launchctl's print.
const printed = `system/local.fleet = {
	active count = 1
	path = /Library/LaunchDaemons/local.fleet.plist
	type = LaunchDaemon
	state = @state

	program = /Library/PrivilegedHelperTools/fleet
	arguments = {
		/Library/PrivilegedHelperTools/fleet
		agent
	}
	runs = @runs
	pid = 412
	last exit code = (never exited)

	spawn type = interactive (4)
	resource coalition = {
		ID = 1009
		state = active
	}
}
`

func (m *mac) spec(t *testing.T, content string) Spec {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet")
	must(t, os.WriteFile(path, []byte(content), 0o755))
	return Spec{Binary: path, Version: "1.2.3", Config: config.DefaultFile, DataDir: config.DefaultDataDir}
}

func TestPlist(t *testing.T) {
	for name, spec := range map[string]Spec{
		"default": {Config: "/etc/fleet/fleet.yaml"},
		"config":  {Config: `/srv/a b/<&"--$.yaml`},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := plist(spec, "/etc/fleet/fleet.yaml", true)
			must(t, err)
			file := filepath.Join("testdata", name+".plist")
			if *update {
				must(t, os.MkdirAll("testdata", 0o755))
				must(t, os.WriteFile(file, []byte(text), 0o644))
			}
			want, err := os.ReadFile(file)
			must(t, err)
			if text != string(want) {
				t.Errorf("got\n%s\nwant\n%s", text, want)
			}
			if facts := parsePlist([]byte(text)); !facts.ours || !facts.copied || facts.config != spec.Config {
				t.Errorf("read back: %+v", facts)
			}
		})
	}
	for _, path := range []string{"/a\nb", "/a\xff"} {
		if _, err := plist(Spec{Config: path}, "", false); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, other := range []string{"", "bplist00\x00", "<plist><dict><key>FleetCopied</key><true/>", "<a"} {
		if facts := parsePlist([]byte(other)); facts.ours {
			t.Errorf("%q is taken for ours", other)
		}
	}
}

func TestLaunchd(t *testing.T) {
	m := newMac(t)
	spec := m.spec(t, "program")
	expect := func(step string, err error, want ...string) {
		t.Helper()
		must(t, err)
		if !slices.Equal(m.calls, want) {
			t.Errorf("%s: calls %q, want %q", step, m.calls, want)
		}
		m.calls = nil
	}
	ctx := t.Context()
	expect("install", m.Install(ctx, spec), "/bin/launchctl enable system/local.fleet")
	st, err := m.Status(ctx)
	must(t, err)
	if !st.Installed || !st.Copied || st.Foreign || st.Running || st.State != "not loaded" || st.Program != launchdProgram {
		t.Errorf("installed: %+v", st)
	}
	expect("start", m.Start(ctx), "/bin/launchctl bootstrap system /Library/LaunchDaemons/local.fleet.plist")
	st, err = m.Status(ctx)
	must(t, err)
	if !st.Running || st.State != "running" || st.Restarts != 0 || st.Result != "" {
		t.Errorf("started: %+v", st)
	}
	expect("restart", m.Restart(ctx), "/bin/launchctl kickstart -k system/local.fleet")
	if st, _ = m.Status(ctx); st.Restarts != 0 {
		t.Errorf("a restart that was asked for counts as one: %+v", st)
	}
	m.runs = "3"
	if st, _ = m.Status(ctx); st.Restarts != 1 {
		t.Errorf("an end of its own: %+v, want 1 restart", st)
	}

	// Again, the same: what runs is left alone. Otherwise it is unloaded, and
	// the file is not written before launchd has let go of it.
	expect("install again", m.Install(ctx, spec), "/bin/launchctl enable system/local.fleet")
	m.linger = 3
	spec.Config = "/srv/fleet.yaml"
	expect("install another", m.Install(ctx, spec),
		"/bin/launchctl bootout system/local.fleet", "/bin/launchctl enable system/local.fleet")
	if st, _ = m.Status(ctx); st.Config != "/srv/fleet.yaml" || !st.Copied || st.Running {
		t.Errorf("with another configuration: %+v", st)
	}
	expect("restart what is not loaded", m.Restart(ctx), "/bin/launchctl bootstrap system /Library/LaunchDaemons/local.fleet.plist")
	expect("stop", m.Stop(ctx), "/bin/launchctl bootout system/local.fleet")
	expect("stop again", m.Stop(ctx))

	must(t, m.Start(ctx))
	m.calls = nil
	removes, err := m.Removes(ctx)
	must(t, err)
	if !slices.Equal(removes, []string{launchdPlist, launchdProgram}) {
		t.Errorf("removes %q", removes)
	}
	expect("uninstall", m.Uninstall(ctx), "/bin/launchctl bootout system/local.fleet")
	if m.exists(launchdPlist) || m.exists(launchdProgram) {
		t.Error("it is still there")
	}
	expect("uninstall again", m.Uninstall(ctx))
}

func TestLaunchdFileOfAnother(t *testing.T) {
	m := newMac(t)
	must(t, os.MkdirAll(filepath.Dir(m.path(launchdPlist)), 0o755))
	must(t, os.WriteFile(m.path(launchdPlist), []byte("<plist><dict/></plist>"), 0o644))
	spec := m.spec(t, "program")
	if err := m.Install(t.Context(), spec); fleet.KindOf(err) != fleet.Conflict || !strings.Contains(fleet.HintOf(err), "--force") {
		t.Errorf("install: %v", err)
	}
	if m.exists(launchdProgram) {
		t.Error("it was refused after something was written")
	}
	if err := m.Uninstall(t.Context()); fleet.KindOf(err) != fleet.Conflict {
		t.Errorf("uninstall: %v", err)
	}
	spec.Force = true
	must(t, m.Install(t.Context(), spec))
}

func TestLaunchdJobs(t *testing.T) {
	for _, test := range []struct {
		text string
		want job
	}{
		{"\tstate = running\n\truns = 4\n\tlast exit code = 0\n", job{state: "running", running: true, runs: 4}},
		{"\tstate = spawn scheduled\n\truns = 2\n\tlast exit code = 78: EX_CONFIG\n",
			job{state: "spawn scheduled", runs: 2, result: "exit code 78: EX_CONFIG"}},
		{"\tstate = not running\n\tlast terminating signal = Killed: 9\n", job{state: "not running", result: "signal Killed: 9"}},
		{"\tstate = xpcproxy\n\tlast exit code = (never exited)\n", job{state: "xpcproxy", running: true}},
		{"\tstate = running\n\tendpoints = {\n\t\tstate = active\n\t}\n", job{state: "running", running: true}},
		{"", job{}},
	} {
		if got := parseJob(test.text); got != test.want {
			t.Errorf("%q: %+v, want %+v", test.text, got, test.want)
		}
	}
}

func TestLaunchdDisable(t *testing.T) {
	m := newMac(t)
	m.loaded = true
	must(t, m.Disable(t.Context()))
	want := []string{"disable " + launchdTarget, "bootout " + launchdTarget}
	var got []string
	for _, call := range m.calls {
		got = append(got, strings.TrimPrefix(call, launchctl+" "))
	}
	if m.loaded || !slices.Equal(got, want) {
		t.Errorf("asked launchd for %q, want %q", got, want)
	}
}

func TestLaunchdLogs(t *testing.T) {
	m := newMac(t)
	lines, err := m.Logs(t.Context(), 5)
	if err != nil || lines != nil {
		t.Errorf("without a log: %q, %v", lines, err)
	}
	must(t, os.MkdirAll(filepath.Dir(m.path(launchdLog)), 0o755))
	long := strings.Repeat("x", 1000) + "\n"
	must(t, os.WriteFile(m.path(launchdLog), []byte(strings.Repeat(long, 400)+"one\ntwo\n"), 0o644))
	lines, err = m.Logs(t.Context(), 2)
	if err != nil || !slices.Equal(lines, []string{"one", "two"}) {
		t.Errorf("got %q, %v", lines, err)
	}
	lines, err = m.Logs(t.Context(), 10000)
	if err != nil || len(lines) < 100 || len(lines) > 300 || lines[0]+"\n" != long {
		t.Errorf("got %d lines, %v: want the whole ones of the last 256 KiB", len(lines), err)
	}
}
