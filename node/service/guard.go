package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"fleet/node/fleet"
)

// The guard of an upgrade is a service of its own, in a file and not transient:
// it must be there after a power cut, when all that is left of the upgrade is
// what was written.
const (
	guardName = "fleet-upgrade.service"
	guardUnit = "/etc/systemd/system/" + guardName

	guardTemplate = `# Written by fleet for one upgrade, which removes this file.
[Unit]
Description=fleet: puts the previous program back where the new one does not come up

[Service]
Type=notify
NotifyAccess=main
ExecStart=%s
Restart=on-failure
RestartSec=2
SyslogIdentifier=fleet-upgrade

[Install]
WantedBy=multi-user.target
`
)

// Runs asks systemd whose main process a process is.
func (s *systemd) Runs(ctx context.Context, pid int) error {
	out, err := s.ctl(ctx, "show", unitName, "--property=MainPID")
	if err != nil {
		return err
	}
	main, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(string(out)), "MainPID="))
	if err != nil || main != pid {
		return fleet.Errorf(fleet.Unavailable, "this agent was not started by systemd: nobody would start its new program").
			WithHint("replace the program where the agent is started (image, --foreground), or make it a service: fleet agent --service")
	}
	return nil
}

// Program is where the service's program lies.
func (s *systemd) Program() string { return s.path(ProgramPath) }

// Ask runs a program.
func (s *systemd) Ask(ctx context.Context, args ...string) ([]byte, error) {
	return s.run(ctx, args...)
}

// Relabel restores the context of a file, where there is SELinux.
func (s *systemd) Relabel(ctx context.Context, path string) error {
	if !s.exists(restorecon) || !s.exists(selinux) {
		return nil
	}
	if _, err := s.run(ctx, s.path(restorecon), path); err != nil {
		return fmt.Errorf("restore the context of SELinux: %w", err)
	}
	return nil
}

// Guard writes, enables and starts the guard's service. One of an upgrade
// before is replaced.
func (s *systemd) Guard(ctx context.Context, args []string) error {
	words := make([]string, len(args))
	for i, a := range args {
		var err error
		if words[i], err = plainWord(a); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(guardTemplate, strings.Join(words, " "))
	if err := replaceFile(s.path(guardUnit), strings.NewReader(text), 0o644, nil); err != nil {
		return fmt.Errorf("write the guard's service file: %w", err)
	}
	_, err := s.ctl(ctx, "daemon-reload")
	if err == nil {
		_, err = s.ctl(ctx, "enable", guardName)
	}
	if err == nil {
		_, err = s.ctl(ctx, "restart", guardName)
	}
	if err != nil {
		return fmt.Errorf("start the guard: %w", errors.Join(err, s.Unguard(ctx)))
	}
	return nil
}

// Unguard removes the guard's service.
func (s *systemd) Unguard(ctx context.Context) error {
	if !s.exists(guardUnit) {
		return nil
	}
	_, err := s.ctl(ctx, "disable", guardName)
	if rerr := os.Remove(s.path(guardUnit)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	_, reload := s.ctl(ctx, "daemon-reload")
	return errors.Join(err, reload)
}

// plainWord is unitWord, without quotes where none are needed: old releases of
// systemd take none around the path of a program.
func plainWord(s string) (string, error) {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-", r)
	}) {
		return s, nil
	}
	return unitWord(s)
}
