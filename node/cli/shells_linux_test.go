package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is an interactive program on a pseudo-terminal.
type terminal struct {
	t    *testing.T
	ptmx *os.File

	mu      sync.Mutex // guards what follows
	output  bytes.Buffer
	changed chan struct{}
}

func startTerminal(t *testing.T, dir string, env []string, args ...string) *terminal {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	fd := int(ptmx.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200})
	}
	if err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pts, pts, pts
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pts.Close()
	x := &terminal{t: t, ptmx: ptmx, changed: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := ptmx.Read(buf)
			x.mu.Lock()
			x.output.Write(buf[:n])
			x.mu.Unlock()
			select {
			case x.changed <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-done // the last process of the terminal has gone
		_ = ptmx.Close()
	})
	return x
}

// await waits until text stands in the output since the last call.
func (x *terminal) await(text string) {
	x.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for {
		x.mu.Lock()
		i := bytes.Index(x.output.Bytes(), []byte(text))
		if i >= 0 {
			x.output.Next(i + len(text))
		}
		all := x.output.String()
		x.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-x.changed:
		case <-deadline.C:
			x.t.Fatalf("no %q in %q", text, all)
		}
	}
}

func (x *terminal) typed(keys string) {
	x.t.Helper()
	if _, err := x.ptmx.WriteString(keys); err != nil {
		x.t.Fatal(err)
	}
}

type shell struct {
	name string
	args []string
	// load makes the shell say ready when the completion is there. The word is
	// put together so that its echo is not taken for it.
	load string
}

var realShells = []shell{
	{"bash", []string{"bash", "--norc", "--noprofile", "-i"}, "source <(fleet completion bash); echo rea''dy\r"},
	{"zsh", []string{"zsh", "-f", "-i"}, "autoload -U compinit; compinit -u -D; source <(fleet completion zsh); echo rea''dy\r"},
	{"fish", []string{"fish", "--no-config", "-i"}, "fleet completion fish | source; echo rea''dy\r"},
}

// start starts the shell with its completion loaded.
func (s shell) start(t *testing.T, dir, path, socket string) *terminal {
	t.Helper()
	if _, err := exec.LookPath(s.name); err != nil {
		t.Skipf("%s is not installed: its completion is not tested here", s.name)
	}
	env := []string{"PATH=" + path, "HOME=" + dir, "TERM=xterm", "FLEET_SOCKET=" + socket, "LC_ALL=C.UTF-8", "HISTFILE=" + os.DevNull, "PS1=> "}
	x := startTerminal(t, dir, env, s.args...)
	x.typed(s.load)
	x.await("ready")
	return x
}

// complete types a line and the key that completes it, and answers what the
// line is then: it is made an argument of echo.
func (x *terminal) complete(line string) string {
	x.t.Helper()
	const begin, end = "begin:", ":end"
	x.typed(line + "\t")
	// What comes next is typed ahead; shells read it after they completed.
	x.typed("\x05" + ":e''nd" + "\x01" + "echo b''egin:" + "\r")
	x.await(begin)
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for {
		x.mu.Lock()
		got, _, ok := strings.Cut(x.output.String(), end)
		if ok {
			x.output.Next(len(got) + len(end))
		}
		x.mu.Unlock()
		if ok {
			return strings.TrimRight(got, " ")
		}
		select {
		case <-x.changed:
		case <-deadline.C:
			x.t.Fatalf("%q: no end in %q", line, got)
		}
	}
}

// The real shells complete at a real terminal.
func TestShellsComplete(t *testing.T) {
	socket := testAgent(t)
	for _, s := range realShells {
		t.Run(s.name, func(t *testing.T) {
			dir := shortDir(t)
			if err := os.WriteFile(filepath.Join(dir, "check me.sh"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "other.sh"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			x := s.start(t, dir, os.Getenv("PATH"), socket)
			for line, want := range map[string]string{
				"fleet stat":                             "fleet status",
				"fleet node sho":                         "fleet node show",
				"fleet node show zeb":                    "fleet node show zebra1",
				"fleet node show zul":                    "fleet node show zul", // hostile names are not offered
				"fleet node ls --stal":                   "fleet node ls --stale",
				"fleet node ls --output=js":              "fleet node ls --output=json",
				"fleet run --node alpha1,zeb":            "fleet run --node alpha1,zebra1",
				"fleet run --label env=pr":               "fleet run --label env=prod",
				"fleet run --label rac":                  "fleet run --label rack=",
				"fleet run --script oth":                 "fleet run --script other.sh",
				"fleet run --script chec":                "fleet run --script check me.sh", // quoted by the shell
				"fleet nosuch x":                         "fleet nosuch x",
				"fleet run --comment \"a b\" --node zeb": "fleet run --comment a b --node zebra1",
			} {
				if got := x.complete(line); got != want {
					t.Errorf("%q: got %q, want %q", line, got, want)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "PWNED")); err == nil {
				t.Error("a host's name ran a command")
			}
		})
	}
}

// The scripts evaluate nothing, even if the program that they ask were made to
// answer with names that it ought to have held back.
func TestShellsEvaluateNothing(t *testing.T) {
	for _, s := range realShells {
		t.Run(s.name, func(t *testing.T) {
			dir := shortDir(t)
			x := s.start(t, dir, dir+":"+os.Getenv("PATH"), "/none")
			evil := "#!/bin/sh\ntouch asked\nprintf ':values\\n%s\\t%s\\n%s\\t%s\\n' 'zulu$(touch PWNED)`touch PWNED`;touch PWNED' '$(touch PWNED)' " +
				"'zulu$(touch PWNED)b' '`touch PWNED`'\n"
			if err := os.WriteFile(filepath.Join(dir, "fleet"), []byte(evil), 0o700); err != nil {
				t.Fatal(err)
			}
			x.typed("hash -r 2>/dev/null; echo rea''dy\r")
			x.await("ready")
			x.typed("fleet node show zu\t")
			await(t, filepath.Join(dir, "asked"))
			x.typed("\x05\x15echo do''ne\r") // to its end and away with it: nothing of the line is run
			x.await("done")
			if _, err := os.Stat(filepath.Join(dir, "PWNED")); err == nil {
				t.Error("a word that was offered ran a command")
			}
		})
	}
}
