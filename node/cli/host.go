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
	"fleet/node/fleet"
	"fleet/node/process"
)

// stopTimeout bounds an orderly end of the agent.
const stopTimeout = 20 * time.Second

// hostFlags are what a host is told, in any way that config knows.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`FILE` with the configuration (default /etc/fleet/fleet.yaml, if it exists)"},
		&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with keys, journal and replicated state (default /var/lib/fleet)"},
		&cli.StringFlag{Name: "listen", Usage: "`ADDRESS:PORT` of the one port, TCP and UDP (default :7790)"},
		&cli.StringFlag{Name: "advertise", Usage: "`IP:PORT` where the other hosts reach this one (default: found from the route)"},
		&cli.StringFlag{Name: "socket",
			Usage: "`PATH` of the local socket (default /run/fleet/fleet.sock, or in the data directory if that is not the default)"},
		&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error (default info)"},
		&cli.StringFlag{Name: "log-format", Usage: "text or json (default text)"},
	}
}

// enrolFlags say what follows enrolment.
func enrolFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "foreground", Usage: "then run the agent in this terminal"},
		&cli.BoolFlag{Name: "enroll-only", Usage: "stop after enrolling; \"fleet agent\" runs it later"},
	}
}

// checkService refuses what would need a service to be installed.
func checkService(c *cli.Context) error {
	switch foreground, only := c.Bool("foreground"), c.Bool("enroll-only"); {
	case foreground && only:
		return usagef("--foreground and --enroll-only exclude each other")
	case !foreground && !only:
		return usagef("installing fleet as a service is not part of this release").
			withHint("--foreground runs the agent in this terminal, --enroll-only stops after enrolling (then: fleet agent)")
	}
	return nil
}

// hostConfig reads the configuration of this host.
func (e *env) hostConfig(c *cli.Context) (*config.Config, error) {
	given := map[string]string{}
	for _, name := range []string{"node-name", "data-dir", "listen", "advertise", "socket", "log-level", "log-format"} {
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
			return nil, fmt.Errorf("--%s: %w", name, err)
		}
		given[name] = abs
	}
	return config.Load(config.Sources{
		File: firstOf(c.String("config"), e.getenv("FLEET_CONFIG"), config.DefaultFile), FileRequired: c.String("config") != "",
		Getenv: e.getenv, Flags: given,
	})
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

// logger is what an agent logs with.
func (e *env) logger(cfg *config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		level = slog.LevelInfo // config has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(e.err, opts))
	}
	return slog.New(slog.NewTextHandler(e.err, opts))
}

func (e *env) agentCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "agent", Category: categoryHost, Usage: "run an enrolled host in this terminal",
		Description: `The first Ctrl-C stops it in order, the second at once.

Example:
  fleet agent --data-dir /var/lib/fleet

Exit codes: 0 stopped, 1 it failed, 64 usage`,
		Flags: hostFlags(),
	}, 0, 0, func(c *cli.Context) error {
		cfg, err := e.hostConfig(c)
		if err != nil {
			return err
		}
		return e.runAgent(c.Context, cfg)
	})
}

// runAgent runs a host until ctx is done or it fails.
func (e *env) runAgent(ctx context.Context, cfg *config.Config) error {
	e.sent = true
	log := e.logger(cfg)
	limits, err := cfg.Limits(process.TotalMemory())
	if err != nil {
		return err
	}
	cgroups := process.OpenCgroups()
	n, err := node.New(node.Config{
		DataDir: cfg.DataDir, Listen: cfg.Listen, Advertise: cfg.Advertise, Socket: cfg.Socket, Version: e.version, Logger: log,
		Cgroups: cgroups, Limits: process.Limits{Tasks: limits.Processes, Memory: limits.Memory, CPU: limits.CPU},
	})
	if err != nil {
		return err
	}
	stop := func() error {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return n.Stop(within)
	}
	if err := n.Start(ctx); err != nil {
		return errors.Join(err, stop())
	}
	log.Info("agent started", "version", e.version, "node", n.ID(), "name", n.Name(), "data", cfg.DataDir,
		"listen", cfg.Listen, "addr", n.Address(), "socket", cfg.Socket, "containment", cgroups, "next", nextStep(cfg))
	ready := n.Ready()
	for {
		select {
		case <-ready:
			log.Info("agent ready", "node", n.ID())
			ready = nil
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
