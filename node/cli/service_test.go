package cli

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/api"
	"fleet/node/fleet"
	"fleet/node/service"
)

// fakeService is a service manager whose service is what the test starts.
type fakeService struct {
	refuses error // of Check
	status  service.Status
	start   func()
	log     []string
	removes []string // nil is the service file

	mu    sync.Mutex // guards what follows
	calls []string
	spec  service.Spec
}

func (f *fakeService) did(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
}

func (f *fakeService) Check(context.Context, service.Spec) error { return f.refuses }

func (f *fakeService) Install(_ context.Context, s service.Spec) error {
	f.did("install")
	f.spec = s
	return nil
}

func (f *fakeService) Start(context.Context) error {
	f.did("start")
	if f.start != nil {
		f.start()
	}
	return nil
}

func (f *fakeService) Stop(context.Context) error    { f.did("stop"); return nil }
func (f *fakeService) Disable(context.Context) error { f.did("disable"); return nil }
func (f *fakeService) Restart(context.Context) error { f.did("restart"); return nil }
func (f *fakeService) Status(context.Context) (service.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, nil
}
func (f *fakeService) Removes(context.Context) ([]string, error) {
	if f.removes != nil {
		return f.removes, nil
	}
	return []string{"/etc/systemd/system/fleet.service"}, nil
}
func (f *fakeService) Uninstall(context.Context) error             { f.did("uninstall"); return nil }
func (f *fakeService) Logs(context.Context, int) ([]string, error) { return f.log, nil }
func (f *fakeService) Commands() (restart, logs string) {
	return "systemctl restart fleet", "journalctl -u fleet"
}

func (f *fakeService) called() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, " ")
}

// withService gives a world a service manager and a place for its configuration.
func withService(t *testing.T, f *fakeService) (*world, string) {
	t.Helper()
	w := newWorld(t)
	w.now = time.Now
	w.manager = func() (service.Manager, error) { return f, nil }
	dir := shortDir(t)
	w.vars["FLEET_CONFIG"] = filepath.Join(dir, "etc", "fleet.yaml")
	return w, dir
}

func TestInitStartsTheService(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a host")
	}
	f := &fakeService{}
	w, dir := withService(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer cancel()
	// The service knows the configuration file and nothing of the command line.
	f.start = func() {
		f.mu.Lock()
		f.status = service.Status{Installed: true, Running: true, State: "active (running)", Config: f.spec.Config}
		f.mu.Unlock()
		a := newWorld(t)
		a.now = time.Now
		agents.Go(func() {
			if code := a.main(ctx, []string{"fleet", "agent", "--config", f.spec.Config}); code != 0 {
				t.Errorf("agent: exit %d: %s", code, a.stderr.String())
			}
		})
	}
	data, addr := filepath.Join(dir, "d"), freePort(t)
	args := []string{"init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--node-name", "host1",
		"--data-dir", data, "--listen", addr, "--log-level", "warn"}
	if code := w.run(t, args...); code != 0 {
		t.Fatalf("exit %d\n%s%s", code, w.stdout.String(), w.stderr.String())
	}
	for _, want := range []string{
		`(?m)^config +` + w.vars["FLEET_CONFIG"] + `   data ` + data + `   logs journalctl -u fleet$`,
		`(?m)^service +ready after [0-9.]+m?s, started at boot$`,
	} {
		if !regexp.MustCompile(want).MatchString(w.stdout.String()) {
			t.Errorf("stdout\n%s\nwant %s", w.stdout.String(), want)
		}
	}
	if !strings.HasPrefix(w.stderr.String(), "WARNING     one voter") {
		t.Errorf("stderr %q", w.stderr.String())
	}
	if f.called() != "install start" {
		t.Errorf("calls %s", f.called())
	}
	b, err := os.ReadFile(w.vars["FLEET_CONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"version: 1\n", `data-dir: "` + data + `"`, `listen: "` + addr + `"`, `level: "warn"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the configuration file\n%s\nhas no %s", b, want)
		}
	}

	// Whoever asks without naming the socket finds it by the same file; root
	// changes the level at run time.
	if code := w.run(t, "status"); code != 0 || !strings.Contains(w.stdout.String(), "host1") {
		t.Errorf("status: exit %d\n%s%s", code, w.stdout.String(), w.stderr.String())
	}
	for _, s := range []struct {
		args string
		code int
		want string
	}{
		{"debug log-level debug --for 10m --component gossip", 0, `(?s)\(all\) +warn +the agent ends\ngossip +debug +20`},
		{"debug log-level error", 0, `\(all\) +error`},
		{"debug log-level default -o name", 0, `^warn\n$`},
		{"debug log-level debug --component nothing", 1, `no component "nothing"\nhint: .*gossip`},
		{"debug profile heap --file " + filepath.Join(dir, "heap"), 0, `heap\n$`},
		{"debug profile heap --file " + filepath.Join(dir, "heap"), 1, `is there already`},
	} {
		if code := w.run(t, strings.Fields(s.args)...); code != s.code || !regexp.MustCompile(s.want).MatchString(w.stdout.String()+w.stderr.String()) {
			t.Errorf("%s: exit %d\n%s%s\nwant %s", s.args, code, w.stdout.String(), w.stderr.String(), s.want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "heap")); err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("the profile: %v, %v", info, err)
	}

	// A second host of this machine would take the service away from the first.
	w.vars["FLEET_CONFIG"] = filepath.Join(dir, "other.yaml")
	code := w.run(t, "init", "--name", "other", "--root-key", filepath.Join(dir, "k2"), "--data-dir", filepath.Join(dir, "d2"), "--listen", freePort(t))
	if code != 1 || !strings.Contains(w.stderr.String(), "runs another data directory: "+data) {
		t.Errorf("a second host: exit %d: %s", code, w.stderr.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "k2")); err == nil {
		t.Error("it was refused after the root key was written")
	}
}

// Names may repeat, but who joins under one that is taken is told.
func TestJoinUnderATakenName(t *testing.T) {
	if testing.Short() {
		t.Skip("starts two hosts")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer cancel()
	host := func() (*world, string) {
		f := &fakeService{}
		w, dir := withService(t, f)
		f.start = func() {
			f.mu.Lock()
			f.status = service.Status{Installed: true, Running: true, Config: f.spec.Config}
			f.mu.Unlock()
			a := newWorld(t)
			a.now = time.Now
			agents.Go(func() {
				if code := a.main(ctx, []string{"fleet", "agent", "--config", f.spec.Config, "--log-level", "error"}); code != 0 {
					t.Errorf("agent: exit %d: %s", code, a.stderr.String())
				}
			})
		}
		return w, dir
	}
	first, dir := host()
	token := filepath.Join(dir, "token")
	for _, args := range [][]string{
		{"init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--node-name", "web1", "--data-dir", filepath.Join(dir, "d"), "--listen", freePort(t)},
		{"activation", "create", "--limit", "2", "--token-file", token},
	} {
		if code := first.run(t, args...); code != 0 {
			t.Fatalf("%s: exit %d\n%s%s", args[0], code, first.stdout.String(), first.stderr.String())
		}
	}
	if strings.Contains(first.stderr.String(), "too:") {
		t.Errorf("the first host: %s", first.stderr.String())
	}
	for _, tt := range []struct {
		name string
		told int // times
	}{{"web1", 1}, {"web2", 0}} {
		w, dir := host()
		code := w.run(t, "join", "--token-file", token, "--node-name", tt.name, "--data-dir", filepath.Join(dir, "d"), "--listen", freePort(t))
		told := regexp.MustCompile(`another host is called web1 too \(mi-[0-9a-f]{17}\): .*fleet node rename mi-[0-9a-f]{17} NAME\n`).FindAllString(w.stderr.String(), -1)
		if code != 0 || len(told) != tt.told || strings.Count(w.stderr.String(), "another host") != tt.told {
			t.Errorf("join as %s: exit %d, told %q\n%s%s", tt.name, code, told, w.stdout.String(), w.stderr.String())
		}
	}
}

func TestServiceIsRefusedBeforeAnythingIsDone(t *testing.T) {
	tests := []struct {
		name    string
		refuses error
		file    string // content of the configuration file
		code    int
		want    []string
	}{
		{"the manager refuses", fleet.Errorf(fleet.Denied, "installing the service needs root"), "", ExitNotAllowed, []string{"needs root"}},
		{"the file says otherwise", nil, "version: 1\nlisten: 127.0.0.1:1\nlog:\n  level: debug\n", ExitFailed, []string{
			"which says otherwise than this command line", `listen is "127.0.0.1:2" by --listen, "127.0.0.1:1" in the file`, `"/var/lib/fleet" by default`,
		}},
		{"the file is wrong", nil, "version: 1\nadvertise: x\nlgo: y\n", ExitUsage, []string{"line 2: advertise", `line 3: there is no key "lgo"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakeService{refuses: tt.refuses}
			w, dir := withService(t, f)
			if tt.file != "" {
				if err := os.MkdirAll(filepath.Dir(w.vars["FLEET_CONFIG"]), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(w.vars["FLEET_CONFIG"], []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			key, data := filepath.Join(dir, "k"), filepath.Join(dir, "d")
			code := w.run(t, "init", "--name", "acme", "--root-key", key, "--data-dir", data, "--listen", "127.0.0.1:2")
			if code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(w.stderr.String(), want) {
					t.Errorf("stderr\n%s\nwant %s", w.stderr.String(), want)
				}
			}
			for _, p := range []string{key, data} {
				if _, err := os.Stat(p); err == nil {
					t.Errorf("%s was made", p)
				}
			}
			if f.called() != "" {
				t.Errorf("calls %s", f.called())
			}
			if b, _ := os.ReadFile(w.vars["FLEET_CONFIG"]); string(b) != tt.file {
				t.Errorf("the configuration file is\n%s", b)
			}
		})
	}
}

func TestWithoutServiceManager(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{
		{"init", "--name", "acme", "--root-key", filepath.Join(shortDir(t), "k")}, {"join"},
	} {
		if code := w.run(t, args...); code != ExitFailed || !strings.Contains(w.stderr.String(), "--foreground") {
			t.Errorf("%v: exit %d: %s", args, code, w.stderr.String())
		}
	}
}

func TestAgentThatDoesNotStayUp(t *testing.T) {
	f := &fakeService{log: []string{"error: cannot listen \x1b[31m"}}
	w, dir := withService(t, f)
	f.start = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.status = service.Status{Installed: true, Running: true, State: "activating (auto-restart)", Result: "exit-code", Restarts: 1, Config: f.spec.Config}
	}
	code := w.run(t, "init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--data-dir", filepath.Join(dir, "d"), "--listen", freePort(t))
	if code != ExitFailed {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{
		"the host is enrolled and its service installed, but its agent does not stay up (activating (auto-restart), exit-code)",
		"the last lines of its log:\n  error: cannot listen \\x1b[31m\n", "journalctl -u fleet", "systemctl restart fleet",
	} {
		if !strings.Contains(w.stderr.String(), want) {
			t.Errorf("stderr\n%s\nwant %s", w.stderr.String(), want)
		}
	}
	// Once mended, the same host is taken up again.
	f.start = nil
	if code := w.run(t, "agent", "--service", "--data-dir", filepath.Join(dir, "none")); code != ExitFailed || !strings.Contains(w.stderr.String(), "fleet init") {
		t.Errorf("agent --service without a host: exit %d: %s", code, w.stderr.String())
	}
}

// lonely is an agent that no voter answers.
type lonely struct{ api.Local }

func (lonely) LocalStatus() fleet.LocalStatus {
	return fleet.LocalStatus{Name: "host1", HeartbeatAge: -1}
}

func TestAgentWithoutAVoter(t *testing.T) {
	f := &fakeService{status: service.Status{Installed: true, Running: true, State: "active (running)"}}
	w, dir := withService(t, f)
	f.status.Config = w.vars["FLEET_CONFIG"]
	w.readyTimeout = 500 * time.Millisecond
	socket := filepath.Join(dir, "s")
	l, err := api.ListenLocal(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- api.ServeLocal(ctx, l, lonely{}, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	code := w.run(t, "init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--data-dir", filepath.Join(dir, "d"),
		"--listen", freePort(t), "--socket", socket)
	if code != ExitNoQuorum || !strings.Contains(w.stderr.String(), "no voter has answered it within 0.5s: it goes on trying") {
		t.Errorf("exit %d: %s", code, w.stderr.String())
	}
	if f.called() != "install restart" { // it ran already
		t.Errorf("calls %s", f.called())
	}
}
