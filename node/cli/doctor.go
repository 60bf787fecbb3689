package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/doctor"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) doctorCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "doctor", Category: categoryHost, Usage: "find out why this host does not join or is not reached",
		ArgsUsage: "[ADDRESS...]",
		Description: `Looks at this host (name, data directory, port, clock, firewall) and, for each
ADDRESS of another, whether its name, TCP, UDP in both directions, packet size
and clock are in order. Without an ADDRESS the quorum's last known addresses
are taken, where this host is enrolled. An ADDRESS without a port means 7790.

It changes nothing and needs neither an agent nor a credential. While no agent
runs here it opens the port for a moment, so that the other host can try it.

Example:
  fleet doctor 10.0.0.5:7790

Exit codes: 0 nothing that keeps fleet from working, 1 a problem was found,
64 usage`,
		Flags: flags(outputFlag(), hostFlags()),
	}, 0, -1, e.doctor)
}

// doctorResult is what doctor prints as JSON.
type doctorResult struct {
	Findings []doctor.Finding `json:"Findings"`
}

func (e *env) doctor(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	var addresses []string
	for _, a := range c.Args().Slice() {
		if _, _, err := net.SplitHostPort(a); err != nil {
			a = net.JoinHostPort(strings.Trim(a, "[]"), strconv.Itoa(client.DefaultPort))
		}
		addresses = append(addresses, a)
	}
	findings := e.examine(c, cfg, addresses)
	var names []string // of what is wrong, for scripts
	for _, f := range findings {
		if f.State == doctor.Problem {
			names = append(names, strings.TrimSpace(f.Host+" "+f.Check))
		}
	}
	err = e.print(c, result{value: doctorResult{Findings: findings}, names: names, table: func(w io.Writer) { e.findings(w, findings) }})
	if err != nil {
		return err
	}
	for _, f := range findings {
		if f.State == doctor.Problem {
			return exitError(ExitFailed)
		}
	}
	return nil
}

// examine looks at this host and the ways to others; with no addresses, to the
// quorum that it knows.
func (e *env) examine(c *cli.Context, cfg *config.Config, addresses []string) []doctor.Finding {
	o := doctor.Options{Config: cfg, Addresses: addresses, Getenv: e.getenv, Now: e.now, Dial: e.dial}
	if name, err := e.nodeName(cfg); err == nil {
		o.Name = name
	}
	if dir, info, err := enrol.OpenDir(cfg.DataDir); err == nil {
		o.Fleet, o.Name = info.Fleet, info.NodeName
		if gone, err := dir.Gone(); err == nil && gone != nil {
			o.Gone = gone.Message
		}
		peers, err := dir.Peers()
		for _, p := range peers {
			if err == nil && len(addresses) == 0 && p.Node != info.Node {
				o.Addresses = append(o.Addresses, p.Address)
			}
		}
	}
	if s, err := e.local(c).Status(c.Context); err == nil {
		o.Running, o.Containment = true, s.Containment
	}
	return doctor.Examine(c.Context, o)
}

// findings writes what was found, this host first.
func (e *env) findings(w io.Writer, findings []doctor.Finding) {
	at := ""
	problems, warnings := 0, 0
	fmt.Fprintln(w, "this host")
	for _, f := range findings {
		if f.Host != at {
			at = f.Host
			fmt.Fprintf(w, "%s\n", escapeCell(at))
		}
		mark := e.paint(e.outTTY, green, "ok")
		switch f.State {
		case doctor.Problem:
			problems++
			mark = e.paint(e.outTTY, red, "PROBLEM")
		case doctor.Warning:
			warnings++
			mark = e.paint(e.outTTY, yellow, "warning")
		case doctor.Skipped:
			mark = "skipped"
		}
		fmt.Fprintf(w, "  %-9s  %s: %s\n", f.Check, mark, escapeCell(f.Text))
		if f.Remedy != "" {
			fmt.Fprintf(w, "  %-9s  -> %s\n", "", escapeCell(f.Remedy))
		}
	}
	fmt.Fprintf(e.err, "%s, %s\n", count(problems, "problem"), count(warnings, "warning"))
}

// explainJoin prints, after a join that found nobody, what is wrong on the way
// to the addresses of the token.
func (e *env) explainJoin(c *cli.Context, cfg *config.Config, token identity.JoinToken, err error) {
	if fleet.KindOf(err) != fleet.Unavailable || c.Context.Err() != nil {
		return
	}
	fmt.Fprintf(e.err, "no host answered; what \"fleet doctor\" finds on the way to the addresses of the token:\n")
	ctx := *c
	ctx.Context = context.WithoutCancel(c.Context)
	var wrong []doctor.Finding
	for _, f := range e.examine(&ctx, cfg, token.Addresses) {
		if f.State == doctor.Problem || f.State == doctor.Warning {
			wrong = append(wrong, f)
		}
	}
	e.findings(e.err, wrong)
}
