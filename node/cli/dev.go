package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"fleet/node/config"
	"fleet/node/devfleet"
)

func (e *env) devCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "dev", Category: categoryHost, Usage: "run a whole fleet in this terminal, to try things",
		Description: `Real nodes, certificates and Raft, in one process on loopback. When the fleet
is ready, DIR/env holds what a shell needs to speak to it. Ctrl-C stops it; a
DIR that was not named is removed then.

Example:
  fleet dev --nodes 5 --quorum 3 --dir /tmp/dev

Exit codes: 0 stopped, 1 it failed, 64 usage`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "nodes", Value: 3, Usage: "`N` nodes, 1 to 1000 (default 3)"},
			&cli.IntFlag{Name: "quorum", Usage: "`N` of them vote: 1, 3 or 5 (default 3, or 1 of fewer than 3 nodes)"},
			&cli.StringFlag{Name: "dir", Usage: "new `DIR` for everything (default: a temporary one)"},
			&cli.StringFlag{Name: "log-level", Value: "error", Usage: "debug, info, warn or error (default error)"},
		},
	}, 0, 0, e.dev)
}

func (e *env) dev(c *cli.Context) (err error) {
	voters := c.Int("quorum")
	if voters == 0 {
		voters = 3
		if c.Int("nodes") < 3 {
			voters = 1
		}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return unknownValue("--log-level", c.String("log-level"), "debug", "info", "warn", "error")
	}
	dir := c.String("dir")
	if dir == "" {
		if dir, err = os.MkdirTemp("", "fleet-dev-"); err != nil {
			return fmt.Errorf("temporary directory: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	// What DIR/env says must hold in every directory.
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	log, _ := e.logger(&config.Config{Log: config.Log{Level: level.String(), Format: "text"}}, nil)
	f, err := devfleet.Start(c.Context, devfleet.Options{
		Dir: dir, Nodes: c.Int("nodes"), Quorum: voters, Version: e.version, Logger: log,
		Progress: func(line string) { fmt.Fprintln(e.err, line) },
	})
	if err != nil {
		return err
	}
	defer func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(c.Context), stopTimeout)
		defer cancel()
		err = errors.Join(err, f.Stop(within))
	}()
	env, err := f.WriteEnv()
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, `%s, %s. In another terminal:

  . %s
  fleet status
  fleet run --all -- uname -sr

Ctrl-C here stops it.
`, count(c.Int("nodes"), "node"), count(voters, "voter"), env)
	<-c.Context.Done()
	fmt.Fprintln(e.err, "stopping")
	return nil
}
