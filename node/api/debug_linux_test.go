package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// debugSocket serves the local socket, open to all users.
func debugSocket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	for p, mode := range map[string]os.FileMode{dir: 0o755, path: 0o666} {
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ServeLocal(ctx, l, fakeLocal{}, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return path
}

// askAll asks everything that is for root only, and gives what was refused.
func askAll(ctx context.Context, socket string) (refused []string) {
	l := client.OpenLocal(socket)
	note := func(what string, err error) {
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v: %v", what, fleet.KindOf(err), err))
		}
	}
	_, err := l.SetLogLevel(ctx, fleet.SetLogLevelRequest{Level: "debug"})
	note("SetLogLevel", err)
	_, err = l.LogLevels(ctx)
	note("LogLevels", err)
	_, err = l.RuntimeFacts(ctx)
	note("RuntimeFacts", err)
	_, err = l.Leave(ctx, fleet.LeaveRequest{})
	note("Leave", err)
	for _, name := range []string{"heap", "goroutine"} {
		note(name, l.Profile(ctx, name, "debug=1", new(bytes.Buffer)))
	}
	return refused
}

func TestDebugForTheOwner(t *testing.T) {
	socket := debugSocket(t)
	if refused := askAll(t.Context(), socket); refused != nil {
		t.Errorf("refused: %q", refused)
	}
	var b bytes.Buffer
	if err := client.OpenLocal(socket).Profile(t.Context(), "goroutine", "debug=2", &b); err != nil || !strings.Contains(b.String(), "ServeLocal") {
		t.Errorf("goroutines: %v, %d bytes", err, b.Len())
	}
	err := client.OpenLocal(socket).Profile(t.Context(), "cmdline", "", new(bytes.Buffer))
	if fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("cmdline: got %v, want not found", err)
	}
}

// A user whom the socket lets in reads the status and nothing else.
func TestDebugIsRefusedToOthers(t *testing.T) {
	const nobody = 65534
	if socket := os.Getenv("FLEET_TEST_SOCKET"); socket != "" { // the child below
		if _, err := client.OpenLocal(socket).Status(context.Background()); err != nil {
			fmt.Printf("status: %v\n", err)
		}
		for _, r := range askAll(context.Background(), socket) {
			fmt.Println(r)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	out := askElsewhere(t, "TestDebugIsRefusedToOthers", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}})
	for _, what := range []string{"SetLogLevel", "LogLevels", "RuntimeFacts", "Leave", "heap", "goroutine"} {
		if !strings.Contains(out, what+": denied: this is for root only, user ID 65534 asked") {
			t.Errorf("%s was not refused to another user:\n%s", what, out)
		}
	}
	if strings.Contains(out, "status:") {
		t.Errorf("the status was refused too:\n%s", out)
	}
}

// Root of a container that the kernel calls root here: its user namespace maps 0
// to 0. It owns the container, not the host.
func TestDebugIsRefusedToContainers(t *testing.T) {
	if os.Getenv("FLEET_TEST_SOCKET") != "" {
		TestDebugIsRefusedToOthers(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a namespace in which it is root")
	}
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	out := askElsewhere(t, "TestDebugIsRefusedToContainers", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: one, GidMappings: one,
	})
	for _, what := range []string{"SetLogLevel", "LogLevels", "RuntimeFacts", "Leave", "heap", "goroutine"} {
		if !strings.Contains(out, what+": denied: this is for root of the host itself: it is in another user namespace") {
			t.Errorf("%s was not refused to root of a container:\n%s", what, out)
		}
	}
	if strings.Contains(out, "status:") {
		t.Errorf("the status was refused too:\n%s", out)
	}
}

// askElsewhere runs a test of this program as somebody else, who asks at a
// socket of ours, and gives what it printed.
func askElsewhere(t *testing.T, test string, as *syscall.SysProcAttr) string {
	t.Helper()
	socket := debugSocket(t)
	program, err := os.ReadFile(os.Args[0]) // which lies where another user may not look
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(socket), "test")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-test.run=^"+test+"$")
	cmd.Env = []string{"FLEET_TEST_SOCKET=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = as
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) && as.Cloneflags != 0 {
		t.Skipf("not possible here: %v", err)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
