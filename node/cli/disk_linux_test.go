package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fleet/node/service"
)

// A host whose disk is full says so, refuses commands by name, and takes them
// again without a restart when there is room.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a host")
	}
	dir := shortDir(t)
	small := filepath.Join(dir, "m")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=20m")
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs root, to mount a small file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f := &fakeService{}
	w, _ := withService(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer cancel()
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
	must := func(code int, want string, args ...string) {
		t.Helper()
		got := w.run(t, args...)
		if all := w.stdout.String() + w.stderr.String(); got != code || !strings.Contains(all, want) {
			t.Fatalf("fleet %s: exit %d, want %d and %q\n%s", strings.Join(args, " "), got, code, want, all)
		}
	}
	must(0, "ready", "init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--node-name", "host1",
		"--data-dir", filepath.Join(small, "d"), "--listen", freePort(t))
	must(0, "hello", "run", "--all", "--", "echo hello")
	must(0, "of 20 MiB are free", "status") // less than 256 MiB: a warning

	fill := filepath.Join(small, "fill")
	if err := os.WriteFile(fill, make([]byte, 13<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	must(2, "DiskFull", "run", "--all", "--", "echo refused")
	if strings.Contains(w.stdout.String(), "\n  refused") {
		t.Errorf("it ran:\n%s", w.stdout.String())
	}
	must(0, "new commands are refused", "status")
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	must(0, "again", "run", "--all", "--", "echo again")
}
