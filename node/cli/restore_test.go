package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// hosts is agents in this process that start and stop one by one.
type hosts struct {
	t    *testing.T
	dir  string
	addr map[int]string

	mu   sync.Mutex // guards stop
	stop map[int]func()
}

func newHosts(t *testing.T) *hosts {
	h := &hosts{t: t, dir: shortDir(t), addr: map[int]string{}, stop: map[int]func(){}}
	t.Cleanup(func() {
		for i := range h.addr {
			h.halt(i)
		}
	})
	return h
}

func (h *hosts) data(i int) string { return filepath.Join(h.dir, fmt.Sprintf("d%d", i)) }

// at is the address of a host: the same after a restart.
func (h *hosts) at(i int) string {
	if h.addr[i] == "" {
		h.addr[i] = freePort(h.t)
	}
	return h.addr[i]
}

// start starts a host's agent; it is there when it returns.
func (h *hosts) start(i int) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a, done := newWorld(h.t), make(chan struct{})
	a.now = time.Now
	go func() {
		defer close(done)
		if code := a.main(ctx, []string{"fleet", "agent", "--data-dir", h.data(i), "--listen", h.at(i), "--advertise", h.at(i), "--log-level", "error"}); code != 0 {
			h.t.Errorf("agent %d: exit %d: %s", i, code, a.stderr.String())
		}
	}()
	h.mu.Lock()
	h.stop[i] = func() { cancel(); <-done }
	h.mu.Unlock()
	h.wait(i, `data|node`)
}

// halt stops a host's agent.
func (h *hosts) halt(i int) {
	h.mu.Lock()
	stop := h.stop[i]
	delete(h.stop, i)
	h.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// wait waits until "fleet status" of a host says something.
func (h *hosts) wait(i int, pattern string) {
	h.t.Helper()
	want := regexp.MustCompile(pattern)
	probe := newWorld(h.t)
	probe.now = time.Now
	for deadline := time.Now().Add(time.Minute); ; {
		probe.stdout.Reset()
		probe.stderr.Reset()
		if code := probe.main(h.t.Context(), []string{"fleet", "status", "--socket", filepath.Join(h.data(i), "fleet.sock")}); code == 0 && want.MatchString(probe.stdout.String()+probe.stderr.String()) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("host %d never says %s: %s%s", i, pattern, probe.stdout.String(), probe.stderr.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

const (
	backupKey    = "AGE-SECRET-KEY-1LH6JAE0K6PEFQAYFC8DNKNY0SE0YMRSYDRSZ27D6R4WWU33ANE0SZQ4AYQ"
	backupPublic = "age1mupxlej3jzc8eafj0plzefwn0y97gll2fr3yvjn0vcqqnur965sq04xr8u"
)

// TestRestore is the fire: every voter burns. What is left is a backup, the root
// key, and ordinary hosts; or the backup with keys, and an empty machine.
func TestRestore(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	w, h := newWorld(t), newHosts(t)
	w.now = time.Now
	w.vars["HOME"] = w.home
	must := func(args ...string) string {
		t.Helper()
		if code := w.run(t, args...); code != 0 {
			t.Fatalf("fleet %s: exit %d\n%s%s", strings.Join(args, " "), code, w.stdout.String(), w.stderr.String())
		}
		return w.stdout.String()
	}
	mustFail := func(code int, want string, args ...string) {
		t.Helper()
		if got := w.run(t, args...); got != code || !regexp.MustCompile(want).MatchString(w.stderr.String()) {
			t.Errorf("fleet %s: exit %d, want %d\n%s\nwant %s", strings.Join(args, " "), got, code, w.stderr.String(), want)
		}
	}
	root, token, identity := filepath.Join(h.dir, "acme.key"), filepath.Join(h.dir, "t"), filepath.Join(h.dir, "age")
	if err := os.WriteFile(identity, []byte(backupKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must("init", "--name", "acme", "--root-key", root, "--data-dir", h.data(1), "--listen", h.at(1), "--node-name", "host1", "--enroll-only")
	h.start(1)
	h.wait(1, `reached, last answer`)
	must("activation", "create", "--limit", "3", "--token-file", token)
	join := func(i int) {
		must("join", "--token-file", token, "--data-dir", h.data(i), "--listen", h.at(i), "--node-name", fmt.Sprintf("host%d", i), "--enroll-only")
		h.start(i)
		h.wait(i, `reached, last answer`)
	}
	join(2)
	join(3)
	must("node", "label", "host2", "disk=ssd")
	must("run", "--all", "--", "echo before")

	plain, keys := filepath.Join(h.dir, "plain.backup"), filepath.Join(h.dir, "keys.backup")
	must("backup", "create", plain, "--recipient", backupPublic)
	mustFail(64, `needs a recipient`, "backup", "create", keys, "--with-keys", "--data-dir", h.data(1))
	mustFail(1, `not one of the quorum`, "backup", "create", keys, "--with-keys", "--recipient", backupPublic, "--data-dir", h.data(2))
	if out := must("backup", "create", keys, "--with-keys", "--recipient", backupPublic, "--data-dir", h.data(1)); !strings.Contains(out, "keys of      host1\n") {
		t.Errorf("backup with keys: %s", out)
	}
	join(4) // knows nothing of a fire
	must("node", "label", "host3", "late=yes")
	restore := func(i int, file string, more ...string) []string {
		return append([]string{"backup", "restore", file, "--identity", identity, "--root-key", root, "--data-dir", h.data(i)}, more...)
	}
	mustFail(1, `host1 of the 1 voters run|there is a quorum`, restore(2, plain, "--yes")...)

	h.halt(1)
	burnt := h.data(1) + ".burnt"
	if err := os.Rename(h.data(1), burnt); err != nil {
		t.Fatal(err)
	}
	mustFail(1, `no host in .* and the backup has no host's keys`, restore(5, plain, "--yes")...)
	h.halt(4)
	mustFail(1, `does not know this host, host4`, restore(4, plain, "--yes")...)
	h.halt(2)
	mustFail(64, `say --yes`, restore(2, plain)...)
	if !strings.Contains(w.stderr.String(), "host1 (does not answer)") || !strings.Contains(w.stderr.String(), "later hosts have to join again") {
		t.Errorf("before the question: %s", w.stderr.String())
	}
	must(restore(2, plain, "--yes")...)
	mustFail(1, `has a log of the fleet`, restore(2, plain, "--yes")...)
	h.start(2)
	h.wait(2, `voter`)

	w.vars["FLEET_ADDRESS"] = h.at(2)
	if got := must("run", "--node", "host[2-3]", "--", "echo after"); got != "host[2-3] (2)\n  after\n" {
		t.Errorf("after the fire: %q", got)
	}
	nodes := must("node", "ls")
	if !strings.Contains(nodes, "disk=ssd") || strings.Contains(nodes, "late=yes") || strings.Contains(nodes, "host4") {
		t.Errorf("what was restored:\n%s", nodes)
	}
	if out := must("command", "ls"); !strings.Contains(out, "echo before") {
		t.Errorf("commands:\n%s", out)
	}

	// The voter was not burnt after all: nobody believes it.
	if err := os.Rename(burnt, h.data(1)); err != nil {
		t.Fatal(err)
	}
	h.start(1)
	h.wait(1, `recovered by force without this host, as epoch 2`)
}

// TestRestoreWithKeys is an empty machine that becomes the lost voter again.
func TestRestoreWithKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	w, h := newWorld(t), newHosts(t)
	w.now = time.Now
	w.vars["HOME"] = w.home
	must := func(args ...string) string {
		t.Helper()
		if code := w.run(t, args...); code != 0 {
			t.Fatalf("fleet %s: exit %d\n%s%s", strings.Join(args, " "), code, w.stdout.String(), w.stderr.String())
		}
		return w.stdout.String()
	}
	root, identity, file := filepath.Join(h.dir, "acme.key"), filepath.Join(h.dir, "age"), filepath.Join(h.dir, "keys.backup")
	if err := os.WriteFile(identity, []byte(backupKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must("init", "--name", "acme", "--root-key", root, "--data-dir", h.data(1), "--listen", h.at(1), "--node-name", "host1", "--enroll-only")
	h.start(1)
	h.wait(1, `reached, last answer`)
	must("node", "label", "host1", "disk=ssd")
	must("backup", "create", file, "--with-keys", "--recipient", backupPublic, "--data-dir", h.data(1))
	h.halt(1)
	if err := os.RemoveAll(h.data(1)); err != nil {
		t.Fatal(err)
	}
	must("backup", "restore", file, "--identity", identity, "--root-key", root, "--data-dir", h.data(1), "--yes")
	h.start(1)
	h.wait(1, `reached, last answer`)
	if out := must("node", "ls"); !strings.Contains(out, "disk=ssd") {
		t.Errorf("what was restored:\n%s", out)
	}
	if got := must("run", "--all", "--", "echo after"); got != "host1 (1)\n  after\n" {
		t.Errorf("after the fire: %q", got)
	}
}
