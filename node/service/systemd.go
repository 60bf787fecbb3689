package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fleet/node/config"
	"fleet/node/fleet"
)

const unitName = "fleet.service"

// Places of systemd. What the administrator has is before what packages have.
const (
	ownUnit      = "/etc/systemd/system/" + unitName
	systemctl    = "/usr/bin/systemctl"
	systemctlOld = "/bin/systemctl"
	journalctl   = "/usr/bin/journalctl"
	restorecon   = "/usr/sbin/restorecon"
	selinux      = "/sys/fs/selinux/enforce"
)

var packageUnits = []string{"/usr/lib/systemd/system/" + unitName, "/lib/systemd/system/" + unitName}

// systemd is the manager of most Linux systems.
type systemd struct {
	root string // before every path; "" outside tests
	run  Run
}

// openSystemd finds systemd below root.
func openSystemd(root string, run Run) (*systemd, error) {
	s := &systemd{root: root, run: run}
	if !s.exists("/run/systemd/system") { // as sd_booted(3)
		return nil, s.noSystemd()
	}
	return s, nil
}

// noSystemd says what runs this host instead.
func (s *systemd) noSystemd() error {
	what := "systemd does not run this host, which looks like a container"
	switch {
	case s.exists("/run/openrc"):
		what = "this host is run by OpenRC, for which fleet has no service"
	case s.exists("/etc/inittab"):
		what = "this host is run by sysvinit, for which fleet has no service"
	}
	return fleet.Errorf(fleet.Unavailable, "%s", what).
		WithHint("--foreground runs the agent in this terminal or container; --enroll-only stops after enrolling, and your init system runs \"fleet agent\"")
}

func (s *systemd) program() program {
	return program{path: s.path(ProgramPath), name: ProgramPath, run: s.run}
}

func (s *systemd) path(p string) string { return filepath.Join(s.root, p) }

func (s *systemd) exists(p string) bool {
	_, err := os.Lstat(s.path(p))
	return err == nil
}

// ctl runs systemctl.
func (s *systemd) ctl(ctx context.Context, args ...string) ([]byte, error) {
	program := systemctl
	if !s.exists(program) && s.exists(systemctlOld) {
		program = systemctlOld
	}
	out, err := s.run(ctx, append([]string{s.path(program), "--no-ask-password"}, args...)...)
	if err != nil {
		return out, fmt.Errorf("systemd: %w", err)
	}
	return out, nil
}

// packaged is the path of a package's service file, "" if there is none.
func (s *systemd) packaged() string {
	for _, p := range packageUnits {
		if s.exists(p) {
			return p
		}
	}
	return ""
}

// own reads the service file that is not a package's.
func (s *systemd) own() (facts unitFacts, there bool, err error) {
	b, err := os.ReadFile(s.path(ownUnit))
	if errors.Is(err, fs.ErrNotExist) {
		return facts, false, nil
	}
	if err != nil {
		return facts, false, fmt.Errorf("read service file: %w", err)
	}
	return parseUnit(string(b)), true, nil
}

// Check says what keeps Install from succeeding.
func (s *systemd) Check(ctx context.Context, spec Spec) error {
	if os.Geteuid() != 0 && s.root == "" {
		return fleet.Errorf(fleet.Denied, "installing the service needs root").
			WithHint("sudo fleet ...; or run the agent as yourself: --foreground")
	}
	facts, there, err := s.own()
	if err != nil {
		return err
	}
	if there && !facts.ours && !spec.Force {
		return fleet.Errorf(fleet.Conflict, "there is a service file that fleet did not write: %s", ownUnit).
			WithHint("remove it, or replace it: --force")
	}
	if _, err := unitWord(spec.Config); err != nil {
		return err
	}
	_, err = s.program().mustCopy(ctx, spec)
	return err
}

// Install puts program and service file in their places.
func (s *systemd) Install(ctx context.Context, spec Spec) error {
	if err := s.Check(ctx, spec); err != nil {
		return err
	}
	before, there, err := s.own()
	if err != nil {
		return err
	}
	copied, err := s.program().mustCopy(ctx, spec)
	if err != nil {
		return err
	}
	if copied {
		if err := copyProgram(spec.Binary, s.path(ProgramPath)); err != nil {
			return fmt.Errorf("install the program: %w", err)
		}
	}
	// What an earlier installation put there is still ours.
	copied = copied || there && before.ours && before.copied
	written := s.packaged() == "" || spec.Config != config.DefaultFile || there
	if written {
		text, err := unit(spec, config.DefaultFile, copied)
		if err != nil {
			return err
		}
		if err := replaceFile(s.path(ownUnit), strings.NewReader(text), 0o644, nil); err != nil {
			return fmt.Errorf("write service file: %w", err)
		}
	}
	if err := s.relabel(ctx, spec); err != nil {
		return err
	}
	if _, err := s.ctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	_, err = s.ctl(ctx, "enable", unitName)
	return err
}

// relabel gives what was installed the contexts that SELinux expects there.
func (s *systemd) relabel(ctx context.Context, spec Spec) error {
	if !s.exists(restorecon) || !s.exists(selinux) {
		return nil
	}
	args := []string{s.path(restorecon), "-R", s.path(ProgramPath)}
	for _, p := range []string{ownUnit, filepath.Dir(spec.Config), spec.DataDir} {
		if s.exists(p) {
			args = append(args, s.path(p))
		}
	}
	if _, err := s.run(ctx, args...); err != nil {
		return fmt.Errorf("restore the contexts of SELinux: %w", err)
	}
	return nil
}

// Start starts the service and does not wait until it is ready.
func (s *systemd) Start(ctx context.Context) error {
	_, _ = s.ctl(ctx, "reset-failed", unitName) // there may be nothing to forget
	_, err := s.ctl(ctx, "start", "--no-block", unitName)
	return err
}

// Stop stops the service and waits for its end.
func (s *systemd) Stop(ctx context.Context) error {
	_, err := s.ctl(ctx, "stop", unitName)
	return err
}

// Disable stops the service and keeps it from starting at boot.
func (s *systemd) Disable(ctx context.Context) error {
	_, err := s.ctl(ctx, "disable", "--now", unitName)
	return err
}

// Restart restarts the service and does not wait until it is ready.
func (s *systemd) Restart(ctx context.Context) error {
	_, err := s.ctl(ctx, "restart", "--no-block", unitName)
	return err
}

// Status is what systemd and the service file say.
func (s *systemd) Status(ctx context.Context) (Status, error) {
	facts, there, err := s.own()
	if err != nil {
		return Status{}, err
	}
	pkg := s.packaged()
	st := Status{Installed: there || pkg != "", Config: config.DefaultFile}
	switch {
	case there:
		st.File, st.Foreign, st.Copied = ownUnit, !facts.ours, facts.copied
		if facts.config != "" {
			st.Config = facts.config
		}
	case pkg != "":
		st.File, st.Packaged = pkg, true
	default:
		return Status{}, nil
	}
	if s.exists(ProgramPath) {
		st.Program = ProgramPath
	}
	out, err := s.ctl(ctx, "show", unitName, "--property=ActiveState,SubState,Result,NRestarts")
	if err != nil {
		return st, err
	}
	p := map[string]string{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		p[key] = value
	}
	st.Running = p["ActiveState"] == "active" || p["ActiveState"] == "activating" || p["ActiveState"] == "reloading"
	if p["ActiveState"] != "" {
		st.State = fmt.Sprintf("%s (%s)", p["ActiveState"], p["SubState"])
	}
	st.Result = p["Result"]
	st.Restarts, _ = strconv.Atoi(p["NRestarts"]) // absent before systemd 235
	return st, nil
}

// Removes lists what Uninstall removes.
func (s *systemd) Removes(ctx context.Context) ([]string, error) {
	st, err := s.Status(ctx)
	if err != nil || st.Packaged || st.Foreign || !st.Installed {
		return nil, err
	}
	paths := []string{ownUnit}
	if st.Copied && s.exists(ProgramPath) {
		paths = append(paths, ProgramPath)
	}
	if st.Copied && s.exists(ProgramPath+PreviousSuffix) {
		paths = append(paths, ProgramPath+PreviousSuffix)
	}
	return paths, nil
}

// Uninstall stops the service and removes what Install wrote.
func (s *systemd) Uninstall(ctx context.Context) error {
	st, err := s.Status(ctx)
	if err != nil || !st.Installed {
		return err
	}
	if st.Foreign {
		return fleet.Errorf(fleet.Conflict, "fleet did not write the service file %s", st.File).
			WithHint("systemctl disable --now fleet, and remove the file")
	}
	removes, err := s.Removes(ctx)
	if err != nil {
		return err
	}
	if _, err := s.ctl(ctx, "disable", "--now", unitName); err != nil {
		return err
	}
	for _, p := range removes {
		if err := os.Remove(s.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove: %w", err)
		}
	}
	if len(removes) == 0 {
		return nil
	}
	_, err = s.ctl(ctx, "daemon-reload")
	return err
}

// Commands are what a person types.
func (s *systemd) Commands() (restart, logs string) {
	return "systemctl restart fleet", "journalctl -u fleet"
}

// Logs are the last lines of the service in the journal.
func (s *systemd) Logs(ctx context.Context, lines int) ([]string, error) {
	out, err := s.run(ctx, s.path(journalctl), "--unit="+unitName, "--lines="+strconv.Itoa(lines), "--no-pager", "--output=short-iso", "--quiet")
	if err != nil {
		return nil, fmt.Errorf("read the service's log: %w", err)
	}
	text := strings.TrimRight(string(out), "\n")
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}
