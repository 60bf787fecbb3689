package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

func (e *env) rerunCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "rerun", ArgsUsage: "COMMAND", Usage: "run a command again, as a new one",
		Description: `The same document and parameters, as the same user, with the same --concurrency
and --max-errors, on the same targets: what labels selected is looked up again,
hosts that were named are those hosts.
--failed runs it only on the hosts of the command that did not succeed, --node
only on some of its hosts. It is shown and asked about as "fleet run" does.

` + commandIs + `

Examples:
  fleet command rerun last --failed
  fleet command rerun 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b --node 'web[01-20]' --dry-run

Exit codes: 0 all succeeded, 1 the request failed or the waiting ended,
2 some hosts did not succeed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "failed", Usage: "only on hosts that ended otherwise than with Success"},
			&cli.StringSliceFlag{Name: "node", Aliases: []string{"w"}, Usage: "only on the hosts `SET` of those that had it"},
			&cli.StringFlag{Name: "timeout", Usage: "it is ended on a host after `DURATION`, 5s to 48h (default: as before)"},
		}, paceFlags("as before"), sendFlags(), answerFlags(), outputFlag(), clientFlags()),
	}, 1, 1, e.rerun)
}

func (e *env) rerun(c *cli.Context) error {
	if err := checkAnswerFlags(c); err != nil {
		return err
	}
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	deliver, err := deliverWithin(c)
	if err != nil {
		return err
	}
	timeout, err := executionTimeout(c)
	if err != nil {
		return err
	}
	if err := paceOf(c, &ssm.SendCommandRequest{}, fleet.Unlimited, fleet.Unlimited); err != nil {
		return err
	}
	api, id, end, err := e.reachCommand(c)
	if err != nil {
		return err
	}
	defer end()
	d, err := describeCommand(c, api, string(id))
	if err != nil {
		return err
	}
	old := d.Command
	req := &ssm.SendCommandRequest{
		DocumentName: old.DocumentName, DocumentVersion: old.DocumentVersion, Parameters: old.Parameters, RunAs: old.RunAs,
		Comment: old.Comment, TimeoutSeconds: int(deliver / time.Second),
	}
	if err := paceOf(c, req, old.MaxConcurrency, old.MaxErrors); err != nil {
		return err
	}
	if timeout != nil {
		req.Parameters = maps.Clone(req.Parameters)
		if req.Parameters == nil {
			req.Parameters = map[string][]string{}
		}
		req.Parameters["executionTimeout"] = timeout
	}
	if err := nameDocument(req); err != nil {
		return err
	}
	s, err := again(c, api, d)
	if err != nil {
		return err
	}
	e.notes(s.notes)
	s.fill(req)
	var names []string
	for _, n := range s.nodes {
		names = append(names, n.Name)
	}
	if !c.Bool("dry-run") && len(names) > 0 {
		fmt.Fprintf(e.err, "again on %s (%d): %s\n", escapeCell(foldNames(names)), len(names), escapeCell(cut(what(old), 100)))
	}
	return e.launch(c, api, req, s.nodes)
}

// again is the targets of a command that runs once more.
func again(c *cli.Context, api *client.Client, d *commandDetail) (*selection, error) {
	some := c.Bool("failed") || len(c.StringSlice("node")) > 0
	if labels, all, ok := selectors(d.Command.Targets); ok && !some {
		s := &selection{all: all, labels: labels}
		return s, s.resolve(c, api)
	}
	fleetNow, err := newDirectory(c, api)
	if err != nil {
		return nil, err
	}
	var wanted []fleet.NodeView
	if sets := c.StringSlice("node"); len(sets) > 0 {
		if wanted, err = fleetNow.expand("--node", sets); err != nil {
			return nil, err
		}
	}
	var failed, gone []string
	s := &selection{named: true}
	for _, i := range d.CommandInvocations {
		if c.Bool("failed") {
			if !isFinal(i.Status) || i.Status == "Success" {
				continue
			}
			failed = append(failed, i.InstanceId)
		}
		if len(wanted) > 0 && !slices.ContainsFunc(wanted, func(n fleet.NodeView) bool { return string(n.InstanceId) == i.InstanceId }) {
			continue
		}
		if n := fleetNow.byWord[i.InstanceId]; len(n) == 1 {
			s.nodes = append(s.nodes, *n[0])
		} else {
			gone = append(gone, firstOf(i.InstanceName, i.InstanceId))
		}
	}
	switch {
	case c.Bool("failed") && len(failed) == 0:
		return nil, fleet.Errorf(fleet.NotFound, "no host of this command has failed").WithHint("its states: fleet command show %s", d.Command.CommandId)
	case len(gone) > 0 && len(s.nodes) == 0:
		return nil, fleet.Errorf(fleet.NotFound, "its hosts are not in the fleet any more: %s", foldNames(gone))
	case len(s.nodes) == 0:
		return nil, fleet.Errorf(fleet.NotFound, "none of these hosts had this command").WithHint("its hosts: fleet command show %s", d.Command.CommandId)
	}
	return s, nil
}

// selectors reads the targets of a command back into what run takes; false if
// they name hosts.
func selectors(targets []ssm.Target) (labels []fleet.LabelFilter, all, ok bool) {
	for _, t := range targets {
		key, isTag := strings.CutPrefix(t.Key, "tag:")
		switch {
		case t.Key == "InstanceIds" && slices.Equal(t.Values, []string{everyNode}):
			all = true
		case t.Key == "tag-key" && len(t.Values) == 1:
			labels = append(labels, fleet.LabelFilter{Key: t.Values[0]})
		case isTag:
			labels = append(labels, fleet.LabelFilter{Key: key, Values: t.Values})
		default:
			return nil, false, false
		}
	}
	return labels, all, len(targets) > 0
}

// isFinal reports whether an invocation of this status has ended.
func isFinal(status string) bool {
	return !slices.Contains([]string{"Pending", "InProgress", "Delayed", "Cancelling"}, status)
}
