package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/logging"
	"fleet/node/process"
	"fleet/node/service"
)

// stopTimeout bounds an orderly end of the agent.
const stopTimeout = 20 * time.Second

// hostFlags are what a host is told, in any way that config knows.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` with the configuration (default " + config.DefaultFile + ", if it exists)"},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with keys, journal and replicated state (default " + config.DefaultDataDir + ")"},
		&cli.StringFlag{Name: "listen", Usage: "`ADDRESS:PORT` of the one port, TCP and UDP (default :7790)"},
		&cli.StringFlag{Name: "advertise", Usage: "`IP:PORT` where the other hosts reach this one (default: found from the route)"},
		&cli.StringFlag{Name: "socket",
			Usage: "`PATH` of the local socket (default " + config.DefaultSocket + ", or in the data directory if that is not the default)"},
		&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error (default info)"},
		&cli.StringFlag{Name: "log-format", Usage: "text or json (default text)"},
		&cli.StringFlag{Name: "disk-budget", Usage: "`SIZE` that outputs and journal may take in all (default 1GiB)"},
	}
}

// replaceUsage says what --force is for.
var replaceUsage = "replace a newer program in " + filepath.Dir(service.Place) + ", and a service file that fleet did not write"

// enrolFlags say what follows enrolment.
func enrolFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "foreground", Usage: "run the agent in this terminal or container instead of a service"},
		&cli.BoolFlag{Name: "enroll-only", Usage: "stop after enrolling; \"fleet agent\" runs it later"},
		&cli.BoolFlag{Name: "force", Usage: replaceUsage},
	}
}

// checkService plans the service, unless a flag says what follows instead.
func (e *env) checkService(c *cli.Context, cfg *config.Config) (*plan, error) {
	switch foreground, only := c.Bool("foreground"), c.Bool("enroll-only"); {
	case foreground && only:
		return nil, usagef("--foreground and --enroll-only exclude each other")
	case foreground || only:
		return nil, nil
	}
	return e.planService(c, cfg)
}

// settle is what comes after enrolment.
func (e *env) settle(c *cli.Context, cfg *config.Config, p *plan) error {
	switch {
	case p != nil:
		return e.carryOut(c.Context, p)
	case c.Bool("enroll-only"):
		return nil
	}
	return e.runAgent(c.Context, cfg, service.NewNotifier(e.getenv))
}

// hostConfig reads the configuration of this host.
func (e *env) hostConfig(c *cli.Context) (*config.Config, error) {
	sources, err := e.configSources(c)
	if err != nil {
		return nil, err
	}
	return config.Load(sources)
}

// configSources is where the configuration of this host comes from.
func (e *env) configSources(c *cli.Context) (config.Sources, error) {
	given := map[string]string{}
	for _, name := range []string{"node-name", "data-dir", "listen", "advertise", "socket", "log-level", "log-format", "disk-budget"} {
		if c.IsSet(name) {
			given[name] = c.String(name)
		}
	}
	for _, name := range []string{"data-dir", "socket"} {
		if given[name] == "" {
			continue
		}
		abs, err := filepath.Abs(given[name])
		if err != nil {
			return config.Sources{}, fmt.Errorf("--%s: %w", name, err)
		}
		given[name] = abs
	}
	return config.Sources{
		File: firstOf(c.String("config"), e.getenv("FLEET_CONFIG"), config.DefaultFile), FileRequired: c.String("config") != "",
		Getenv: e.getenv, Flags: given,
	}, nil
}

// nodeName is the host's name: as configured, else the system's.
func (e *env) nodeName(cfg *config.Config) (string, error) {
	if cfg.Name != "" {
		return cfg.Name, nil
	}
	name, err := e.hostname()
	if err == nil {
		err = fleet.CheckNodeName(name)
	}
	if err != nil {
		return "", fleet.Errorf(fleet.Invalid, "the host name of this system does not serve as a node's name: %w", err).
			WithHint("name the host: --node-name NAME, FLEET_NAME, or name: in the configuration file")
	}
	return name, nil
}

// advertise is where the others reach this host: as configured, else the local
// address of the route to the first of the targets that has one.
func (e *env) advertise(ctx context.Context, cfg *config.Config, targets ...string) (string, error) {
	if cfg.Advertise != "" {
		return cfg.Advertise, nil
	}
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return "", fmt.Errorf("listen address: %w", err)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return cfg.Listen, nil
	}
	for _, target := range targets {
		if addr, err := client.LocalAddress(ctx, target); err == nil {
			return net.JoinHostPort(addr.String(), port), nil
		}
	}
	return "", fleet.Errorf(fleet.Invalid, "the address where other hosts reach this one is not known: there is no route").
		WithHint("--advertise IP:PORT, for example --advertise 10.0.0.5:%s", port)
}

// anywhere and anywhere6 are addresses of documentation (RFC 5737, RFC 3849): a
// route to them is the default route. Nothing is sent to them.
const (
	anywhere  = "192.0.2.1:9"
	anywhere6 = "[2001:db8::1]:9"
)

// logger is what an agent logs with, and its levels. With events it logs there
// instead of to the standard error.
func (e *env) logger(cfg *config.Config, events logging.Events) (*slog.Logger, *logging.Levels) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		level = slog.LevelInfo // config has checked it
	}
	form := logging.Form(cfg.Log.Format)
	if form == logging.Text && logging.ToJournal(e.err, e.getenv) {
		form = logging.Journal
	}
	levels := logging.NewLevels(level)
	if events != nil {
		return logging.NewEvents(events, levels), levels
	}
	return logging.New(e.err, form, levels), levels
}

func (e *env) agentCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "agent", Category: categoryHost, Usage: "run an enrolled host, in this terminal or as a service",
		Description: `The first Ctrl-C stops it in order, the second at once. With --service it is
installed as a service and started, as "fleet init" and "fleet join" do.

Example:
  fleet agent --data-dir ` + config.DefaultDataDir + `
  fleet agent --service

Exit codes: 0 stopped or ready, 1 it failed, 3 no quorum, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "service", Usage: "install and start it as a service"},
			&cli.BoolFlag{Name: "force", Usage: "with --service: " + replaceUsage},
		}, hostFlags()),
	}, 0, 0, func(c *cli.Context) error {
		if !c.Bool("service") {
			// What is wrong with the configuration is for the manager's log too.
			return service.Supervised(c.Context, e.getenv, func(ctx context.Context, notify *service.Notifier) error {
				cfg, err := e.hostConfig(c)
				if err != nil {
					return err
				}
				return e.runAgent(ctx, cfg, notify)
			})
		}
		cfg, err := e.hostConfig(c)
		if err != nil {
			return err
		}
		if _, _, err := enrol.OpenDir(cfg.DataDir); err != nil {
			return err
		}
		p, err := e.planService(c, cfg)
		if err != nil {
			return err
		}
		e.sent = true
		return e.carryOut(c.Context, p)
	})
}

// runAgent runs a host until ctx is done or it fails.
func (e *env) runAgent(ctx context.Context, cfg *config.Config, notify *service.Notifier) error {
	e.sent = true
	log, levels := e.logger(cfg, notify.Events())
	tell := func(err error) { // the agent runs also when nobody listens
		if err != nil {
			log.Warn("service manager not told", "err", err)
		}
	}
	limits, err := cfg.Limits(process.TotalMemory())
	if err != nil {
		return err
	}
	signers, err := cfg.UpgradeSigners()
	if err != nil {
		return err
	}
	cgroups := process.OpenCgroups()
	n, err := node.New(node.Config{
		DataDir: cfg.DataDir, Listen: cfg.Listen, Advertise: cfg.Advertise, Socket: cfg.Socket, Version: e.version,
		DiskBudget: cfg.Budget(), Logger: log, Levels: levels,
		Keeper: e.keeper, Signers: signers,
		Cgroups: cgroups, Limits: process.Limits{Tasks: limits.Processes, Memory: limits.Memory, CPU: limits.CPU},
		At: failpoints(),
	})
	if err != nil {
		return err
	}
	stop := func() error {
		tell(notify.Stopping())
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return n.Stop(within)
	}
	if err := n.Start(ctx); err != nil {
		return errors.Join(err, stop())
	}
	status := n.LocalStatus()
	log.Info("agent started", "version", e.version, "fleet", status.FleetName, "node", n.ID(), "name", n.Name(), "role", status.Role,
		"data", cfg.DataDir, "listen", cfg.Listen, "addr", n.Address(), "socket", cfg.Socket, "containment", cgroups, "next", nextStep(cfg))
	// Ready for the manager: it serves. That no voter has answered yet is no
	// reason to be started again.
	tell(notify.Ready("waiting for a voter"))
	var alive <-chan time.Time
	if every := notify.Interval(); every > 0 {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		alive = ticker.C
	}
	ready := n.Ready()
	for {
		select {
		case <-ready:
			log.Info("agent ready", "node", n.ID())
			tell(notify.State("member of " + status.FleetName))
			ready = nil
		case <-alive:
			// Asks every part that could hang. If one does, nothing is said, and
			// the manager ends this process with all its goroutines in the log.
			n.LocalStatus()
			tell(notify.Alive())
		case <-n.Restart():
			log.Info("agent ends for its new program to start", "node", n.ID())
			return stop()
		case <-n.Done():
			return n.Err()
		case <-ctx.Done():
			log.Info("agent stops", "node", n.ID())
			return stop()
		}
	}
}

// nextStep is what a person who started the agent may type.
func nextStep(cfg *config.Config) string {
	if cfg.Socket == config.DefaultSocket {
		return "fleet status"
	}
	return "fleet status --socket " + cfg.Socket
}

// agentHint is how to run the agent with this configuration.
func agentHint(c *cli.Context, cfg *config.Config) string {
	words := []string{"fleet", "agent"}
	for _, f := range [][2]string{
		{"config", c.String("config")}, {"data-dir", cfg.DataDir}, {"listen", cfg.Listen}, {"advertise", cfg.Advertise},
		{"socket", cfg.Socket},
	} {
		if c.IsSet(f[0]) {
			words = append(words, "--"+f[0], f[1])
		}
	}
	return strings.Join(words, " ")
}
