package cli

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
)

func (e *env) debugCommand() *cli.Command {
	return &cli.Command{
		Name: "debug", Category: categoryHost, Usage: "look into this host's agent (root only); vouch for files",
		Subcommands: []*cli.Command{e.debugBundle(), e.debugLogLevel(), e.debugProfile(), e.signCommand(), e.verifyCommand()},
	}
}

// printLevels says what counts now.
func (e *env) printLevels(c *cli.Context, levels *fleet.LogLevels) error {
	t := newTable("COMPONENT", "LEVEL", "UNTIL")
	var names []string
	for _, l := range levels.Levels {
		t.add(firstOf(l.Component, "(all)"), l.Level, firstOf(date(l.Until), "the agent ends"))
		names = append(names, l.Level)
	}
	return e.print(c, result{value: levels, names: names, table: t.write})
}

func (e *env) debugLogLevel() *cli.Command {
	return leaf(&cli.Command{
		Name: "log-level", Usage: "show or change what the running agent logs", ArgsUsage: "[LEVEL]",
		Description: `LEVEL is debug, info, warn or error, or "default" for what the configuration
says. Without --for it counts until the agent ends. It is not written down.
Without LEVEL it shows what counts now.

Example:
  fleet debug log-level
  fleet debug log-level debug --for 10m
  fleet debug log-level debug --component gossip --for 1h
  fleet debug log-level default

Exit codes: 0 done, 1 the request failed, 4 not root, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "for", Usage: "`DURATION` after which the configured level counts again, such as 10m; at most 24h"},
			&cli.StringFlag{Name: "component", Usage: "only this part of the agent, by `NAME`, such as gossip, quorum, transport or runcmd"},
		}, outputFlag(), socketFlag()),
	}, 0, 1, func(c *cli.Context) error {
		if err := checkForm(c); err != nil {
			return err
		}
		if !c.Args().Present() {
			if c.IsSet("for") || c.IsSet("component") {
				return usagef("--for and --component go with a LEVEL").withHint("debug, info, warn or error")
			}
			levels, err := e.local(c).LogLevels(c.Context)
			if err != nil {
				return err
			}
			return e.printLevels(c, levels)
		}
		req := fleet.SetLogLevelRequest{Level: c.Args().First(), Component: c.String("component")}
		d, err := durationFlag(c, "for")
		if err != nil {
			return err
		}
		req.Seconds = d.Seconds()
		switch known := []string{"debug", "info", "warn", "error"}; {
		case req.Level == "default" && (d > 0 || req.Component != ""):
			return usagef("default is the level of every component, for good").withHint("leave out --for and --component")
		case req.Level == "default":
			req.Level = ""
		case !slices.Contains(known, req.Level):
			err := usagef("%q is no level", req.Level)
			if s := suggest(known, req.Level); s != "" {
				return err.withHint("did you mean %s?", s)
			}
			return err.withHint("debug, info, warn, error or default")
		case d > 24*time.Hour:
			return usagef("--for %s is over 24h", c.String("for"))
		}
		e.sent = true
		levels, err := e.local(c).SetLogLevel(c.Context, req)
		if err != nil {
			return err
		}
		return e.printLevels(c, levels)
	})
}

// profiles are those that the agent takes, and how.
var profiles = map[string]string{
	"cpu": "profile", "trace": "trace", "heap": "heap", "allocs": "allocs", "goroutine": "goroutine",
	"mutex": "mutex", "block": "block", "threads": "threadcreate",
}

func (e *env) debugProfile() *cli.Command {
	return leaf(&cli.Command{
		Name: "profile", Usage: "take a profile of the running agent", ArgsUsage: "cpu|heap|allocs|goroutine|mutex|block|threads|trace",
		Description: `It is in the format of "go tool pprof" or "go tool trace". The agent gives it out
on its local socket alone, to root and to the user that it runs as.

Example:
  fleet debug profile cpu --for 30s --file cpu.pprof

Exit codes: 0 done, 1 the request failed, 4 not root, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "for", Usage: "`DURATION` over which cpu or trace is taken (default 10s)"},
			&cli.StringFlag{Name: "file", Usage: "write it to the new `FILE` (default such as cpu.pprof)"},
		}, socketFlag()),
	}, 1, 1, func(c *cli.Context) (err error) {
		kind := c.Args().First()
		name, ok := profiles[kind]
		if !ok {
			known := make([]string, 0, len(profiles))
			for k := range profiles {
				known = append(known, k)
			}
			slices.Sort(known)
			return usagef("%q is no profile", kind).withHint("one of %s", strings.Join(known, ", "))
		}
		d, err := durationFlag(c, "for")
		if err != nil {
			return err
		}
		timed := kind == "cpu" || kind == "trace"
		switch {
		case d > 0 && !timed:
			return usagef("--for goes with cpu and trace")
		case d > 2*time.Minute:
			return usagef("--for %s is over 2m", c.String("for"))
		case d == 0:
			d = 10 * time.Second
		}
		query := url.Values{}
		if timed {
			query.Set("seconds", fmt.Sprint(max(1, int(d.Seconds()))))
		}
		e.sent = true
		return e.writeFile(firstOf(c.String("file"), kind+".pprof"), func(w io.Writer) error {
			return e.local(c).Profile(c.Context, name, query.Encode(), w)
		})
	})
}

// writeFile makes a new file that only its owner reads, whole or not at all,
// and says where it is.
func (e *env) writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, os.ErrExist) {
			return fleet.Errorf(fleet.Conflict, "%s is there already", path).WithHint("name another: --file FILE")
		}
		return fleet.Errorf(fleet.Invalid, "%w", err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	fmt.Fprintln(e.out, escapeCell(path))
	return nil
}
