package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fleet/node/config"
	"fleet/node/fleet"
)

// Places and names of launchd. The program does not lie in /usr/local/bin,
// which Homebrew gives to a user on many hosts: what root runs at each boot
// would be that user's.
const (
	launchdLabel   = "local.fleet"
	launchdTarget  = "system/" + launchdLabel
	launchdPlist   = "/Library/LaunchDaemons/" + launchdLabel + ".plist"
	launchdProgram = "/Library/PrivilegedHelperTools/fleet"
	launchdLog     = "/var/log/fleet.log"
	launchctl      = "/bin/launchctl"
)

// Limits of what is read, and of a wait for launchd.
const (
	maxPlist    = 64 << 10
	maxLogTail  = 256 << 10
	launchdEnd  = 40 * time.Second // ExitTimeOut of the service file, and some
	launchdPoll = 200 * time.Millisecond
)

// launchd is the manager of macOS.
type launchd struct {
	root string // before every path; "" outside tests
	run  Run
	// base is how often launchd had started the agent before this process told
	// it to: it counts those starts too, and Status.Restarts does not.
	base int
}

func (l *launchd) path(p string) string { return filepath.Join(l.root, p) }

func (l *launchd) exists(p string) bool {
	_, err := os.Lstat(l.path(p))
	return err == nil
}

func (l *launchd) program() program {
	return program{path: l.path(launchdProgram), name: launchdProgram, run: l.run}
}

func (l *launchd) ctl(ctx context.Context, args ...string) ([]byte, error) {
	out, err := l.run(ctx, append([]string{l.path(launchctl)}, args...)...)
	if err != nil {
		return out, fmt.Errorf("launchd: %w", err)
	}
	return out, nil
}

// own reads the service file; content is nil when there is none.
func (l *launchd) own() (facts unitFacts, content []byte, err error) {
	f, err := os.Open(l.path(launchdPlist))
	if errors.Is(err, fs.ErrNotExist) {
		return facts, nil, nil
	}
	if err != nil {
		return facts, nil, fmt.Errorf("read service file: %w", err)
	}
	content, err = io.ReadAll(io.LimitReader(f, maxPlist))
	if err = errors.Join(err, f.Close()); err != nil {
		return facts, nil, fmt.Errorf("read service file: %w", err)
	}
	return parsePlist(content), content, nil
}

// Check says what keeps Install from succeeding.
func (l *launchd) Check(ctx context.Context, spec Spec) error {
	if os.Geteuid() != 0 && l.root == "" {
		return fleet.Errorf(fleet.Denied, "installing the service needs root").
			WithHint("sudo fleet ...; or run the agent as yourself: --foreground")
	}
	facts, content, err := l.own()
	if err != nil {
		return err
	}
	if content != nil && !facts.ours && !spec.Force {
		return fleet.Errorf(fleet.Conflict, "there is a service file that fleet did not write: %s", launchdPlist).
			WithHint("remove it, or replace it: --force")
	}
	if _, err := plist(spec, config.DefaultFile, false); err != nil {
		return err
	}
	_, err = l.program().mustCopy(ctx, spec)
	return err
}

// Install puts program and service file in their places. launchd reads the
// file when it loads the service: one that it had loaded before is unloaded,
// which ends its agent, and Start or Restart loads it anew.
func (l *launchd) Install(ctx context.Context, spec Spec) error {
	if err := l.Check(ctx, spec); err != nil {
		return err
	}
	before, content, err := l.own()
	if err != nil {
		return err
	}
	copied, err := l.program().mustCopy(ctx, spec)
	if err != nil {
		return err
	}
	if copied {
		if err := copyProgram(spec.Binary, l.path(launchdProgram)); err != nil {
			return fmt.Errorf("install the program: %w", err)
		}
	}
	copied = copied || before.ours && before.copied // an earlier installation put it there
	text, err := plist(spec, config.DefaultFile, copied)
	if err != nil {
		return err
	}
	if text != string(content) {
		if err := l.unload(ctx); err != nil {
			return err
		}
		// launchd refuses a file that others than root may write.
		if err := replaceFile(l.path(launchdPlist), strings.NewReader(text), 0o644, nil); err != nil {
			return fmt.Errorf("write service file: %w", err)
		}
	}
	// Whoever disabled it once did so for good, across boots.
	_, err = l.ctl(ctx, "enable", launchdTarget)
	return err
}

// job is what launchd says of the service, and whether it has loaded it.
func (l *launchd) job(ctx context.Context) (job, bool) {
	out, err := l.ctl(ctx, "print", launchdTarget)
	if err != nil {
		return job{}, false
	}
	return parseJob(string(out)), true
}

// Start loads the service, which starts it, or starts it if it is loaded.
func (l *launchd) Start(ctx context.Context) error {
	j, loaded := l.job(ctx)
	if !loaded {
		l.base = 0
		_, err := l.ctl(ctx, "bootstrap", "system", l.path(launchdPlist))
		return err
	}
	if !j.running {
		l.base = j.runs
	}
	_, err := l.ctl(ctx, "kickstart", launchdTarget)
	return err
}

// Restart ends the agent and starts it again.
func (l *launchd) Restart(ctx context.Context) error {
	j, loaded := l.job(ctx)
	if !loaded {
		return l.Start(ctx)
	}
	l.base = j.runs
	_, err := l.ctl(ctx, "kickstart", "-k", launchdTarget)
	return err
}

// Stop unloads the service until the next boot: launchd starts again at once
// what merely ended.
func (l *launchd) Stop(ctx context.Context) error { return l.unload(ctx) }

// Disable unloads the service and keeps it from being loaded at boot.
func (l *launchd) Disable(ctx context.Context) error {
	_, err := l.ctl(ctx, "disable", launchdTarget)
	return errors.Join(err, l.unload(ctx))
}

// unload returns when launchd has ended the agent and forgotten the service.
// bootout itself may return before, and what is loaded meanwhile is refused.
func (l *launchd) unload(ctx context.Context) error {
	if _, loaded := l.job(ctx); !loaded {
		return nil
	}
	_, bootout := l.ctl(ctx, "bootout", launchdTarget)
	ctx, cancel := context.WithTimeout(ctx, launchdEnd)
	defer cancel()
	ticker := time.NewTicker(launchdPoll)
	defer ticker.Stop()
	for {
		if _, loaded := l.job(ctx); !loaded && ctx.Err() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fleet.Errorf(fleet.Unavailable, "launchd still has %s after %s", launchdTarget, launchdEnd), bootout)
		case <-ticker.C:
		}
	}
}

// Status is what launchd and the service file say.
func (l *launchd) Status(ctx context.Context) (Status, error) {
	facts, content, err := l.own()
	if err != nil || content == nil {
		return Status{}, err
	}
	st := Status{
		Installed: true, File: launchdPlist, Foreign: !facts.ours, Copied: facts.copied,
		Config: firstOf(facts.config, config.DefaultFile), State: "not loaded",
	}
	if l.exists(launchdProgram) {
		st.Program = launchdProgram
	}
	if j, loaded := l.job(ctx); loaded {
		st.Running, st.State, st.Result = j.running, j.state, j.result
		st.Restarts = max(0, j.runs-1-l.base)
	}
	return st, nil
}

// Removes lists what Uninstall removes.
func (l *launchd) Removes(ctx context.Context) ([]string, error) {
	st, err := l.Status(ctx)
	if err != nil || st.Foreign || !st.Installed {
		return nil, err
	}
	paths := []string{launchdPlist}
	if st.Copied && l.exists(launchdProgram) {
		paths = append(paths, launchdProgram)
	}
	return paths, nil
}

// Uninstall stops the service and removes what Install wrote. The log stays.
func (l *launchd) Uninstall(ctx context.Context) error {
	st, err := l.Status(ctx)
	if err != nil || !st.Installed {
		return err
	}
	if st.Foreign {
		return fleet.Errorf(fleet.Conflict, "fleet did not write the service file %s", st.File).
			WithHint("launchctl bootout %s, and remove the file", launchdTarget)
	}
	removes, err := l.Removes(ctx)
	if err != nil {
		return err
	}
	if err := l.unload(ctx); err != nil {
		return err
	}
	for _, p := range removes {
		if err := os.Remove(l.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}

// Commands are what a person types.
func (l *launchd) Commands() (restart, logs string) {
	return "sudo launchctl kickstart -k " + launchdTarget, "less " + launchdLog
}

// Logs are the last lines of the file that the agent logs to.
func (l *launchd) Logs(_ context.Context, lines int) ([]string, error) {
	b, err := tail(l.path(launchdLog), maxLogTail)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the service's log: %w", err)
	}
	text := strings.TrimRight(string(b), "\n")
	if text == "" {
		return nil, nil
	}
	all := strings.Split(text, "\n")
	return all[max(0, len(all)-lines):], nil
}

// tail is the end of a file, from the beginning of a line.
func tail(path string, size int64) (b []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-size)
	b, err = io.ReadAll(io.NewSectionReader(f, from, size))
	if from > 0 {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return b, err
}

// job is what "launchctl print" says of a service. What it prints is for
// people, as its manual says; of a line that is not there nothing is known.
type job struct {
	state   string
	running bool // or about to be: its program is being started
	runs    int
	result  string // of the last end; "" when it is well
}

func parseJob(text string) job {
	var j job
	for line := range strings.Lines(text) {
		// Lines of the service itself have one tab before them; those of its
		// parts more.
		if strings.HasPrefix(line, "\t\t") {
			continue
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		switch key {
		case "state":
			j.state = value
			j.running = value == "running" || value == "spawning" || value == "xpcproxy"
		case "runs":
			j.runs, _ = strconv.Atoi(value) // 0 where launchd says it in another way
		case "last exit code":
			if value != "0" && !strings.HasPrefix(value, "(") { // "(never exited)"
				j.result = "exit code " + value
			}
		case "last terminating signal":
			j.result = "signal " + value
		}
	}
	return j
}
