//go:build linux

package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// clockFile, on a host, holds the seconds by which fleet's clock is wrong.
const clockFile = "/run/lab/clock"

// clockSource is added to package time. The file is read before anything else
// runs and ten times a second from then on, never by Now itself: the runtime
// calls that where no system call is allowed (sendTime). Without the file the
// clock is right.
const clockSource = `package time

import "sync/atomic"

var labClock atomic.Int64 // seconds

func init() {
	readLabClock()
	go func() {
		for {
			Sleep(100 * Millisecond)
			readLabClock()
		}
	}()
}

func readLabClock() {
	fd, err := open("` + clockFile + `")
	if err != nil {
		labClock.Store(0)
		return
	}
	defer closefd(fd)
	var buf [32]byte
	n, err := read(fd, buf[:])
	if err != nil {
		return
	}
	var value, sign int64 = 0, 1
	for _, c := range buf[:n] {
		switch {
		case c == '-':
			sign = -1
		case c >= '0' && c <= '9':
			value = value*10 + int64(c-'0')
		}
	}
	labClock.Store(sign * value)
}
`

// clockBefore and clockAfter are the change in time.Now: the wall clock moves,
// the monotonic one does not.
const (
	clockBefore = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {"
	clockAfter  = "\tsec, nsec, mono := runtimeNow()\n\tsec += labClock.Load()\n\tif mono == 0 {"
)

var built = struct {
	sync.Mutex
	path map[bool]string // with clocks or not -> binary, once in a process
}{path: map[bool]string{}}

// Build is the path of a fleet built from this tree, as "make build" builds it;
// with clocks, one whose time.Now adds the seconds of a file. Builds are cached
// by Go, and the binary lies in Go's idea of a cache directory. LAB_BINARY names
// another one to test, as a package installed it; it has no clocks.
func Build(t testing.TB, clocks bool) string {
	t.Helper()
	if p := os.Getenv("LAB_BINARY"); p != "" && !clocks {
		return p
	}
	built.Lock()
	defer built.Unlock()
	if p := built.path[clocks]; p != "" {
		return p
	}
	p, err := build(clocks)
	if err != nil {
		t.Fatalf("lab: build fleet: %v", err)
	}
	built.path[clocks] = p
	return p
}

func build(clocks bool) (string, error) {
	root, err := goOutput("", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// One directory for each tree: two may be tested at the same time.
	dir := filepath.Join(cache, fmt.Sprintf("fleet-lab-%x", sha256.Sum256([]byte(root)))[:22])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=lab"}
	name := "fleet"
	if clocks {
		name = "fleet-clocks"
		overlay, err := clockOverlay(dir)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	target := filepath.Join(dir, name)
	if _, err := goOutput(root, append(args, "-o", target, ".")...); err != nil {
		return "", err
	}
	return target, nil
}

// clockOverlay writes the changed package time and the file that names it.
func clockOverlay(dir string) (string, error) {
	goroot, err := goOutput("", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	original := filepath.Join(goroot, "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(source, []byte(clockBefore)); n != 1 {
		return "", fmt.Errorf("%s: time.Now is not as the lab knows it (%d places to change): see clockBefore in scripts/lab/build.go", original, n)
	}
	changed := filepath.Join(dir, "time.go")
	added := filepath.Join(dir, "lab_clock.go")
	overlay := filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {
		original: changed, filepath.Join(goroot, "src", "time", "lab_clock.go"): added,
	}})
	if err != nil {
		return "", err
	}
	for name, content := range map[string][]byte{
		changed: bytes.Replace(source, []byte(clockBefore), []byte(clockAfter), 1), added: []byte(clockSource), overlay: list,
	} {
		// Unchanged files keep their times.
		if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, content) {
			continue
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return "", err
		}
	}
	return overlay, nil
}

func goOutput(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}
