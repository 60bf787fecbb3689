package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/fleet"
	"fleet/node/service"
)

// plan is an installation of the service that was checked and not begun.
// Whatever can be refused is refused before the host is enrolled.
type plan struct {
	manager service.Manager
	spec    service.Spec
	socket  string
	content []byte // of the configuration file that is to be written; nil for none
	running bool   // the service runs already
}

// planService checks that the service can be installed and will read the
// configuration that this command line has.
func (e *env) planService(c *cli.Context, cfg *config.Config) (*plan, error) {
	manager, err := e.manager()
	if err != nil {
		return nil, err
	}
	program, err := e.program()
	if err != nil {
		return nil, fmt.Errorf("where this program lies: %w", err)
	}
	file, err := e.configFile(c)
	if err != nil {
		return nil, err
	}
	p := &plan{
		manager: manager, socket: cfg.Socket,
		spec: service.Spec{Binary: program, Version: e.version, Config: file, DataDir: cfg.DataDir, Force: c.Bool("force")},
	}
	if p.content, err = configToWrite(file, cfg); err != nil {
		return nil, err
	}
	if err := manager.Check(c.Context, p.spec); err != nil {
		return nil, err
	}
	status, err := manager.Status(c.Context)
	if err != nil {
		return nil, err
	}
	p.running = status.Running
	return p, checkOther(status, cfg)
}

// checkOther refuses to take the service away from another data directory.
func checkOther(status service.Status, cfg *config.Config) error {
	if !status.Installed || status.Foreign {
		return nil
	}
	other, err := config.Load(config.Sources{File: status.Config})
	if err != nil {
		return nil // nobody can run with it
	}
	if filepath.Clean(other.DataDir) == filepath.Clean(cfg.DataDir) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(other.DataDir, "FORMAT")); errors.Is(err, fs.ErrNotExist) {
		return nil // no host is enrolled there
	}
	return fleet.Errorf(fleet.Conflict, "the fleet service of this host runs another data directory: %s (by %s)", other.DataDir, status.Config).
		WithHint("a host has one service: --foreground runs a second agent in this terminal; or remove the first: fleet uninstall")
}

// configFile is the path of the configuration file.
func (e *env) configFile(c *cli.Context) (string, error) {
	file, err := filepath.Abs(firstOf(c.String("config"), e.getenv("FLEET_CONFIG"), config.DefaultFile))
	if err != nil {
		return "", fmt.Errorf("--config: %w", err)
	}
	return file, nil
}

// configToWrite is what the configuration file must say so that the service
// runs as this command line says. A file that is there is never changed: if it
// says otherwise, that is an error.
func configToWrite(file string, cfg *config.Config) ([]byte, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return cfg.EncodeChanges(), nil
	}
	there, err := config.Load(config.Sources{File: file, FileRequired: true})
	if err != nil {
		return nil, err
	}
	differences := cfg.Differences(there)
	if len(differences) == 0 {
		return nil, nil
	}
	var lines []string
	for _, d := range differences {
		where := "by default"
		if d.OtherDeclares {
			where = "in the file"
		}
		lines = append(lines, fmt.Sprintf("%s is %q by %s, %q %s", d.Key, d.Mine, d.Source, d.Other, where))
	}
	return nil, fleet.Errorf(fleet.Conflict, "the service reads %s, which says otherwise than this command line:\n%s", file, strings.Join(lines, "\n")).
		WithHint("change the file, which is left as it is, or leave out what differs")
}

// carryOut installs and starts the service and returns when the agent is ready.
func (e *env) carryOut(ctx context.Context, p *plan) error {
	restart, logs := p.manager.Commands()
	undone := func(what string, err error) error {
		return fleet.Errorf(fleet.KindOf(err), "the host is enrolled, but %s: %w", what, err).
			WithHint("mend that, then: fleet agent --service")
	}
	if p.content != nil {
		if err := writeConfig(p.spec.Config, p.content); err != nil {
			return undone("its configuration was not written", err)
		}
	}
	if err := p.manager.Install(ctx, p.spec); err != nil {
		return undone("the service was not installed", err)
	}
	start := p.manager.Start
	if p.running {
		start = p.manager.Restart
	}
	began := e.now()
	before, err := p.manager.Status(ctx)
	if err == nil {
		err = start(ctx)
	}
	if err != nil {
		return undone("the service was not started", err)
	}
	if err := e.awaitReady(ctx, p, before.Restarts); err != nil {
		e.lastLines(ctx, p.manager)
		return fleet.Errorf(fleet.KindOf(err), "the host is enrolled and its service installed, but %w", err).
			WithHint("%s shows the whole log; when it is mended: %s, then fleet status", logs, restart)
	}
	fmt.Fprintf(e.out, "service     ready after %s, started at boot\n", short(e.now().Sub(began)))
	return nil
}

// writeConfig writes a file that is not there yet, whole.
func writeConfig(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

const (
	readyTimeout = 60 * time.Second
	readyPoll    = 200 * time.Millisecond
	downTime     = 5 * time.Second // of a service that was started, before it counts as failed
	failLines    = 15              // of the log, when the agent does not become ready
)

// awaitReady returns when a voter has answered the agent. It gives up at its
// time, and sooner when the manager says that the agent fails to start.
func (e *env) awaitReady(ctx context.Context, p *plan, restarts int) error {
	ctx, cancel := context.WithTimeout(ctx, e.readyTimeout)
	defer cancel()
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	local := client.OpenLocal(p.socket)
	var answered bool
	lastUp := e.now() // restarting, it is down for a moment
	for {
		status, err := local.Status(ctx)
		answered = answered || err == nil
		if err == nil && status.QuorumReachable {
			return nil
		}
		if s, serr := p.manager.Status(ctx); serr == nil && err != nil {
			if s.Running {
				lastUp = e.now()
			}
			if s.Restarts > 0 && s.Restarts != restarts || e.now().Sub(lastUp) > downTime {
				return fleet.Errorf(fleet.Unavailable, "its agent does not stay up (%s)", describeState(s))
			}
		}
		select {
		case <-ctx.Done():
			if answered {
				return fleet.Errorf(fleet.NoQuorum, "no voter has answered it within %s: it goes on trying", short(e.readyTimeout))
			}
			return fleet.Errorf(fleet.Unavailable, "its agent did not answer at %s within %s", p.socket, short(e.readyTimeout))
		case <-ticker.C:
		}
	}
}

func describeState(s service.Status) string {
	text := firstOf(s.State, "not running")
	if s.Result != "" && s.Result != "success" {
		text += ", " + s.Result
	}
	return text
}

// lastLines shows the end of the service's log.
func (e *env) lastLines(ctx context.Context, m service.Manager) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	lines, err := m.Logs(ctx, failLines)
	if err != nil || len(lines) == 0 {
		return // there is an error already, which names where the log is
	}
	fmt.Fprintln(e.err, "the last lines of its log:")
	for _, line := range lines {
		fmt.Fprintf(e.err, "  %s\n", escapeCell(line))
	}
}

// socket is where the agent of this host answers: as told, else as its
// configuration says.
func (e *env) socket(c *cli.Context) string {
	if path := firstOf(c.String("socket"), e.getenv("FLEET_SOCKET")); path != "" {
		return path
	}
	cfg, err := config.Load(config.Sources{File: firstOf(e.getenv("FLEET_CONFIG"), config.DefaultFile), Getenv: e.getenv})
	if err != nil {
		return config.DefaultSocket
	}
	return cfg.Socket
}
