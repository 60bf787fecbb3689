package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	_, err = s.mustCopy(ctx, spec)
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
	copied, err := s.mustCopy(ctx, spec)
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

// mustCopy decides whether the running program is to be copied to its place.
func (s *systemd) mustCopy(ctx context.Context, spec Spec) (bool, error) {
	there, err := os.Stat(s.path(ProgramPath))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the installed program: %w", err)
	}
	mine, err := os.Stat(spec.Binary)
	if err != nil {
		return false, fmt.Errorf("look at this program: %w", err)
	}
	if os.SameFile(there, mine) {
		return false, nil
	}
	same, err := sameContent(spec.Binary, s.path(ProgramPath))
	if err != nil || same {
		return false, err
	}
	if spec.Force {
		return true, nil
	}
	other := s.installedVersion(ctx)
	newer, known := newerVersion(other, spec.Version)
	if !known { // builds without a release number: by their age
		newer = there.ModTime().After(mine.ModTime())
	}
	if newer {
		return false, fleet.Errorf(fleet.Conflict, "%s is another fleet, and newer: %s; this one is %s", ProgramPath,
			firstOf(other, "of an unknown version"), spec.Version).
			WithHint("use that one: %s ...; or replace it: --force", ProgramPath)
	}
	return true, nil
}

// installedVersion asks the installed program; "" when it does not answer.
func (s *systemd) installedVersion(ctx context.Context) string {
	out, err := s.run(ctx, s.path(ProgramPath), "version", "-o", "json")
	if err != nil {
		return ""
	}
	var v struct{ Version string }
	if json.Unmarshal(out, &v) != nil || len(v.Version) > 64 {
		return ""
	}
	return v.Version
}

// newerVersion compares release numbers, "1.2.3" or "v1.2.3-rc.1"; known is
// false unless both are such.
func newerVersion(a, b string) (newer, known bool) {
	x, okA := release(a)
	y, okB := release(b)
	if !okA || !okB {
		return false, false
	}
	for i := range x {
		if x[i] != y[i] {
			return x[i] > y[i], true
		}
	}
	return false, true
}

// release reads a release number; its last part is 0 for what comes before the
// release itself.
func release(v string) (r [4]int, ok bool) {
	v, _, _ = strings.Cut(strings.TrimPrefix(v, "v"), "+")
	v, _, early := strings.Cut(v, "-")
	parts := strings.Split(v, ".")
	if len(parts) != 3 {
		return r, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			return r, false
		}
		r[i] = int(n)
	}
	if !early {
		r[3] = 1
	}
	return r, true
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

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func sameContent(a, b string) (bool, error) {
	x, err := digest(a)
	if err != nil {
		return false, err
	}
	y, err := digest(b)
	return bytes.Equal(x, y), err
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), errors.Join(err, f.Close())
}

// copyProgram puts the program in its place, with the age of the original.
func copyProgram(from, to string) (err error) {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return replaceFile(to, f, 0o755, info)
}

// replaceFile writes a file so that at every moment the old one is there or the
// new. With like the new one has its age.
func replaceFile(path string, content io.Reader, mode fs.FileMode, like fs.FileInfo) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".fleet-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name()) // the first error says more
		}
	}()
	if _, err := io.Copy(tmp, content); err != nil {
		return err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if like != nil {
		if err := os.Chtimes(tmp.Name(), like.ModTime(), like.ModTime()); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
