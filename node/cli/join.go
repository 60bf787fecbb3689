package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) joinCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "join", Category: categoryHost, ArgsUsage: "[ADDRESS...]", Usage: "make this host part of a fleet",
		Description: `The token comes from --token-file, from FLEET_TOKEN, or is asked for: an
argument would be seen by every user of this host. When the host is enrolled,
the service is installed and started, and join returns when the agent is ready.
With a token of "fleet activation create --replaces" the host takes the name of
the one that it replaces.

--rejoin gives a host that was off until its certificate ended a new one, for the
key, ID and name that it has; it needs no token, and asks the quorum hosts that
it knew, or those that are named. A running agent does the same by itself.

Examples:
  fleet join --token-file t
  fleet join --rejoin
  fleet join --rejoin 10.0.0.5:7790

Exit codes: 0 done, 1 it failed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "token-file",
				Usage: "`FILE` with the token that \"fleet activation create\" made; - is the standard input"},
			&cli.BoolFlag{Name: "rejoin", Usage: "renew the certificate of this host, which enrolled before; arguments are addresses (IP:PORT) of quorum hosts"},
			&cli.StringFlag{Name: "node-name", Usage: "`NAME` of this host (default: the activation's, else the system's host name)"},
		}, enrolFlags(), hostFlags()),
	}, 0, -1, e.join)
}

func (e *env) join(c *cli.Context) error {
	if c.Bool("rejoin") {
		return e.rejoin(c)
	}
	if c.Args().Present() {
		// Whatever it is, it is not repeated: it may be a token.
		return usagef("fleet join takes no argument; a token does not belong on the command line, " +
			"where every user of this host sees it").
			withHint("--token-file FILE or FLEET_TOKEN; make a new activation if the token was typed here")
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	plan, err := e.checkService(c, cfg)
	if err != nil {
		return err
	}
	token, err := e.token(c.String("token-file"))
	if err != nil {
		return err
	}
	address, err := e.advertise(c.Context, cfg, append(token.Addresses[:len(token.Addresses):len(token.Addresses)], anywhere, anywhere6)...)
	if err != nil {
		return err
	}
	opts := enrol.JoinOptions{
		DataDir: cfg.DataDir, Token: token, NodeName: cfg.Name, Advertise: address, Now: e.now, Dial: e.dial,
		Waits: func(addr string) { fmt.Fprintf(e.err, "%s gives no answer; asking the next host\n", addr) },
	}
	e.sent = true
	r, err := enrol.Join(c.Context, opts)
	var refused *fleet.Error
	if errors.As(err, &refused) && refused.Code == fleet.CodeNoNodeName && opts.NodeName == "" {
		// The activation's name comes before the system's.
		if opts.NodeName, err = e.nodeName(cfg); err != nil {
			return err
		}
		r, err = enrol.Join(c.Context, opts)
	}
	if err != nil {
		e.explainJoin(c, cfg, token, err)
		return err
	}
	fmt.Fprintf(e.out, "fleet       %s  %s\n", escapeCell(r.Name), r.Fleet)
	fmt.Fprintf(e.out, "node        %s  %s  at %s\n", escapeCell(r.NodeName), r.Node, address)
	if r.Replaces != "" {
		fmt.Fprintf(e.out, "replaces    %s, which is of the fleet no more\n", r.Replaces)
		if opts.NodeName != "" && opts.NodeName != r.NodeName {
			r.Warnings = append(r.Warnings, fmt.Sprintf("it is called %s, as the host that it replaces, and not %s; to give it another name: fleet node rename %s NAME",
				r.NodeName, opts.NodeName, r.Node))
		}
	}
	if plan != nil {
		_, logs := plan.manager.Commands()
		fmt.Fprintf(e.out, "config      %s   data %s   logs %s\n", plan.spec.Config, cfg.DataDir, logs)
	} else {
		fmt.Fprintf(e.out, "data        %s\n", cfg.DataDir)
	}
	for _, warning := range r.Warnings {
		e.warningLines([]fleet.Warning{{Message: warning}})
	}
	if c.Bool("enroll-only") {
		fmt.Fprintf(e.out, "start it    %s\n", agentHint(c, cfg))
	}
	return e.settle(c, cfg, plan)
}

// token reads the join token: never from the command line.
func (e *env) token(path string) (identity.JoinToken, error) {
	text := e.getenv("FLEET_TOKEN")
	switch {
	case path == "-":
		b, err := io.ReadAll(io.LimitReader(e.in, identity.MaxJoinToken+1))
		if err != nil {
			return identity.JoinToken{}, fleet.Errorf(fleet.Invalid, "--token-file: %w", err)
		}
		text = string(b)
	case path != "":
		f, err := os.Open(path)
		if err != nil {
			return identity.JoinToken{}, fleet.Errorf(fleet.Invalid, "--token-file: %w", err)
		}
		b, err := io.ReadAll(io.LimitReader(f, identity.MaxJoinToken+64))
		if err = errors.Join(err, f.Close()); err != nil {
			return identity.JoinToken{}, fleet.Errorf(fleet.Invalid, "--token-file: %w", err)
		}
		text = string(b)
	case text == "" && e.inTTY:
		b, err := e.secret("Token: ")
		if err != nil {
			return identity.JoinToken{}, err
		}
		text = string(b)
	}
	if strings.TrimSpace(text) == "" {
		return identity.JoinToken{}, usagef("there is no token").
			withHint("--token-file FILE or FLEET_TOKEN; an operator makes one with \"fleet activation create\"")
	}
	return identity.ParseJoinToken(text)
}
