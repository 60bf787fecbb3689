package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/nodeset"
	"fleet/node/ssm"
)

func (e *env) commandCommand() *cli.Command {
	return &cli.Command{
		Name: "command", Aliases: []string{"commands"}, Category: categoryNouns, Usage: "commands that ran or are running",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list commands, newest first",
				Description: `--since takes how long ago (90s, 2h, 7d) or a time: 2026-07-07,
2026-07-07T09:30 or 2026-07-07T09:30:00Z, without a zone in that of this machine.

Examples:
  fleet command ls
  fleet command ls --limit 200 --status Failed --since 24h
  fleet command ls --node web1 --operator ci

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), []cli.Flag{
					&cli.IntFlag{Name: "limit", Value: 20, Usage: "at most `N` commands (default 20)"},
					&cli.StringFlag{Name: "status",
						Usage: "only commands that are `STATUS`: " + strings.Join(commandStates, ", ")},
					&cli.StringFlag{Name: "node", Usage: "only commands that `NODE`, a name or an ID, is a target of"},
					&cli.StringFlag{Name: "operator", Usage: "only commands that the operator `NAME` sent"},
					&cli.StringFlag{Name: "since", Usage: "only commands sent after `WHEN`, a duration or a time"},
					&cli.StringFlag{Name: "document", Usage: "only commands that ran the document `NAME`"},
				}, staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.commandLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "COMMAND", Usage: "show one command, the state of each host and what to do",
				Description: commandIs + `

Examples:
  fleet command show 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b
  fleet command show last

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.commandShow),
			leaf(&cli.Command{
				Name: "attach", ArgsUsage: "COMMAND", Usage: "wait for a command and show its answers, as run does",
				Description: `It goes on where the command is now: what has come is shown, for the rest it
waits. Ctrl-C asks, as in run.

` + commandIs + `

Examples:
  fleet command attach 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b
  fleet command attach last

Exit codes: 0 all succeeded, 1 the request failed or the waiting ended,
2 some hosts did not succeed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(answerFlags(), outputFlag(), clientFlags(), waitFlag()),
			}, 1, 1, e.commandAttach),
			leaf(&cli.Command{
				Name: "output", ArgsUsage: "COMMAND [NODE...]", Usage: "show what the hosts wrote",
				Description: `Without a NODE it shows the answers of all hosts as "fleet run" does, and waits
for those that are missing; --timeout bounds the waiting. With one NODE it writes
all that was kept of one stream of that host, byte for byte when the standard
output is not a terminal and --raw is given, and says if that is not all that
was written. With several, or a node set, each line comes after the name of its
host.

` + commandIs + `

Examples:
  fleet command output 6d5f
  fleet command output 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b web1 --raw > web1.out
  fleet command output 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b 'web[01-20]' --stderr

Exit codes: 0 done, 1 the request failed, 2 some hosts did not succeed,
3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), []cli.Flag{
					&cli.BoolFlag{Name: "stderr", Usage: "the error stream instead of the output; needs a NODE"},
					&cli.StringFlag{Name: "step", Usage: "`NAME` of the step, of a document with several; needs a NODE"},
				}, answerFlags(), clientFlags(), waitFlag()),
			}, 1, -1, e.commandOutput),
			e.grepCommand(), e.exportCommand(), e.commandCancelCommand(), e.rerunCommand(),
		},
	}
}

// waitFlag bounds commands that wait for hosts.
func waitFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "timeout", Usage: "stop waiting and reading after `DURATION`, such as 30s (default: never)"}}
}

// commandStates are the words of --status.
var commandStates = []string{"Pending", "InProgress", "Success", "Failed", "TimedOut", "Cancelling", "Cancelled"}

// commandFilters makes SSM's filters of the flags of command ls.
func (e *env) commandFilters(c *cli.Context) ([]ssm.CommandFilter, error) {
	var all []ssm.CommandFilter
	add := func(key, value string) {
		if value != "" {
			all = append(all, ssm.CommandFilter{Key: key, Value: value})
		}
	}
	s := c.String("status")
	if s != "" && !slices.Contains(commandStates, s) {
		return nil, unknownValue("--status", s, commandStates...)
	}
	if text := c.String("since"); text != "" {
		since, err := parseSince(text, e.now())
		if err != nil {
			return nil, err
		}
		add("InvokedAfter", since.UTC().Format("2006-01-02T15:04:05Z"))
	}
	add("Status", s)
	add("Operator", c.String("operator"))
	add("DocumentName", c.String("document"))
	return all, nil
}

// parseSince reads how long ago something was, or when.
func parseSince(text string, now time.Time) (time.Time, error) {
	if d, err := parseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("--since %q is neither a duration nor a time", text).withHint("for example 2h, 7d, 2026-07-07 or 2026-07-07T09:30")
}

func (e *env) commandLs(c *cli.Context) error {
	limit := c.Int("limit")
	if limit < 1 || limit > 10000 {
		return usagef("--limit %d is not between 1 and 10000", limit)
	}
	filters, err := e.commandFilters(c)
	if err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	req := ssm.ListCommandsRequest{Filters: filters}
	if name := c.String("node"); name != "" {
		n, err := oneNode(c, api, name, true)
		if err != nil {
			return err
		}
		req.InstanceId = string(n.InstanceId)
	}
	all, err := newestCommands(c, api, req, limit)
	if err != nil {
		return err
	}
	var ids []string
	for _, cmd := range all.Commands {
		ids = append(ids, cmd.CommandId)
	}
	return e.print(c, result{value: all, names: ids, table: func(w io.Writer) {
		t := newTable("COMMAND", "REQUESTED", "BY", "STATUS", "DONE", "ERRORS", "WHAT")
		for _, cmd := range all.Commands {
			t.add(cmd.CommandId, date(fleet.Instant(cmd.RequestedDateTime)), cmd.Operator, statusText(cmd.Status, cmd.StatusDetails),
				fmt.Sprintf("%d/%d", cmd.CompletedCount, cmd.TargetCount), strconv.Itoa(cmd.ErrorCount), cut(what(cmd), 60))
		}
		t.write(w)
	}})
}

// commandsPage is how many commands are asked for at a time: each may name 5000
// hosts and hold a script.
const commandsPage = 20

// newestCommands lists at most limit commands, newest first.
func newestCommands(c *cli.Context, api *client.Client, req ssm.ListCommandsRequest, limit int) (*ssm.ListCommandsResult, error) {
	all := &ssm.ListCommandsResult{Commands: []ssm.Command{}}
	for len(all.Commands) < limit {
		req.MaxResults = min(commandsPage, limit-len(all.Commands))
		var page ssm.ListCommandsResult
		if err := api.Call(c.Context, "ListCommands", req, &page); err != nil {
			return nil, err
		}
		all.Commands = append(all.Commands, page.Commands...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			break
		}
	}
	return all, nil
}

// statusText is the details, which say more, except where they say the same.
func statusText(status, details string) string {
	if status == details || details == "" {
		return status
	}
	return details
}

// what is what a command does, briefly.
func what(cmd ssm.Command) string {
	if cmd.Comment != "" {
		return cmd.Comment
	}
	if lines := cmd.Parameters["commands"]; len(lines) > 0 {
		return lines[0]
	}
	return cmd.DocumentName
}

func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-3]) + "..."
}

// commandDetail is what command show prints as JSON.
type commandDetail struct {
	Command            ssm.Command             `json:"Command"`
	CommandInvocations []ssm.CommandInvocation `json:"CommandInvocations"`
}

func (e *env) commandShow(c *cli.Context) error {
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	id, err := findCommandID(c, api, c.Args().First())
	if err != nil {
		return err
	}
	d, err := describeCommand(c, api, string(id))
	if err != nil {
		return err
	}
	return e.print(c, result{value: d, names: []string{d.Command.CommandId}, table: func(w io.Writer) { e.commandText(w, d) }})
}

func describeCommand(c *cli.Context, api *client.Client, id string) (*commandDetail, error) {
	var commands ssm.ListCommandsResult
	if err := api.Call(c.Context, "ListCommands", ssm.ListCommandsRequest{CommandId: id}, &commands); err != nil {
		return nil, err
	}
	if len(commands.Commands) != 1 {
		return nil, fleet.Errorf(fleet.NotFound, "there is no command %s", id)
	}
	d := &commandDetail{Command: commands.Commands[0], CommandInvocations: []ssm.CommandInvocation{}}
	req := ssm.ListCommandInvocationsRequest{CommandId: id, MaxResults: 50}
	for {
		var page ssm.ListCommandInvocationsResult
		if err := api.Call(c.Context, "ListCommandInvocations", req, &page); err != nil {
			return nil, err
		}
		d.CommandInvocations = append(d.CommandInvocations, page.CommandInvocations...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			return d, nil
		}
	}
}

func (e *env) commandText(w io.Writer, d *commandDetail) {
	cmd := d.Command
	properties(w, "command", cmd.CommandId, "document", cmd.DocumentName+" "+cmd.DocumentVersion, "what", what(cmd),
		"requested", date(fleet.Instant(cmd.RequestedDateTime)), "by", cmd.Operator, "as user", cmd.RunAs, "status", statusText(cmd.Status, cmd.StatusDetails),
		"targets", fmt.Sprintf("%d, %d done, %d with errors, %d not heard of in time", cmd.TargetCount, cmd.CompletedCount,
			cmd.ErrorCount, cmd.DeliveryTimedOutCount),
		"pace", paceText(cmd.MaxConcurrency, cmd.MaxErrors, cmd.TargetCount),
		"expires", date(fleet.Instant(cmd.ExpiresAfter)))
	fmt.Fprintln(w)
	slices.SortFunc(d.CommandInvocations, func(a, b ssm.CommandInvocation) int {
		return naturalCompare(a.InstanceName, b.InstanceName)
	})
	t := newTable("NAME", "ID", "STATUS", "WHY")
	for _, i := range d.CommandInvocations {
		t.add(i.InstanceName, i.InstanceId, statusText(i.Status, i.StatusDetails), i.TraceOutput)
	}
	t.write(w)
	switch {
	case cmd.CompletedCount < cmd.TargetCount:
		fmt.Fprintf(e.err, "wait for the rest: fleet command attach %s\n", cmd.CommandId)
	case cmd.CompletedCount > 0:
		fmt.Fprintf(e.err, "output: fleet command output %s\n", cmd.CommandId)
	}
	e.writeFailures(e.err, d.answers())
}

// answers is the final states as run has them, without output.
func (d *commandDetail) answers() *answers {
	a := newAnswers(fleet.CommandID(d.Command.CommandId))
	a.counts.TargetCount = d.Command.TargetCount
	for _, i := range d.CommandInvocations {
		if isFinal(i.Status) {
			a.add(fleet.WatchEvent{Invocation: &fleet.InvocationEvent{InstanceId: fleet.NodeID(i.InstanceId), Name: i.InstanceName,
				Status: i.Status, StatusDetails: i.StatusDetails, Reason: i.TraceOutput, Final: true}})
		}
	}
	return a
}

func (e *env) commandAttach(c *cli.Context) error {
	if err := checkAnswerFlags(c); err != nil {
		return err
	}
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	api, id, end, err := e.reachCommand(c)
	if err != nil {
		return err
	}
	defer end()
	return e.follow(c, api, newAnswers(id))
}

func (e *env) commandOutput(c *cli.Context) error {
	if err := checkAnswerFlags(c); err != nil {
		return err
	}
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	names := c.Args().Tail()
	switch {
	case len(names) == 0 && (c.Bool("stderr") || c.String("step") != ""):
		return usagef("--stderr and --step need a NODE")
	case len(names) > 0 && c.String("output") != formTable:
		return usagef("--output goes with the answers of all hosts: with a NODE the bytes of one stream are written as they are")
	case len(names) > 0 && (c.Bool("diff") || c.Bool("no-fold")):
		return usagef("--diff and --no-fold go with the answers of all hosts")
	}
	api, id, end, err := e.reachCommand(c)
	if err != nil {
		return err
	}
	defer end()
	switch {
	case len(names) == 0:
		return e.follow(c, api, newAnswers(id))
	case len(names) > 1 || nodeset.IsExpression(names[0]):
		return e.outputOfMany(c, api, id, names)
	}
	n, err := oneNode(c, api, names[0], true)
	if err != nil {
		return err
	}
	w := e.out
	if !c.Bool("raw") || e.outTTY {
		w = &escapeWriter{w: e.out}
	}
	return e.writeOutput(c, api, id, n, w)
}

// outputOfMany writes one stream of several hosts, each line after the host's
// name. Those that have none, as they were not among the targets, are named at
// the end.
func (e *env) outputOfMany(c *cli.Context, api *client.Client, id fleet.CommandID, sets []string) error {
	d, err := newDirectory(c, api)
	if err != nil {
		return err
	}
	nodes, err := d.expand("NODE", sets)
	if err != nil {
		return err
	}
	slices.SortFunc(nodes, func(a, b fleet.NodeView) int { return naturalCompare(a.Name, b.Name) })
	failed := false
	for i := range nodes {
		mark := ": "
		if c.Bool("stderr") {
			mark = "! "
		}
		err := e.writeOutput(c, api, id, &nodes[i], newLineWriter(e.out, escapeCell(nodes[i].Name)+mark, !c.Bool("raw") || e.outTTY))
		switch kind := fleet.KindOf(err); {
		case kind == fleet.NotFound || kind == fleet.Unavailable && c.Context.Err() == nil:
			fmt.Fprintf(e.err, "%s: %s\n", escapeCell(nodes[i].Name), escapeCell(err.Error()))
			failed = true
		case err != nil:
			return err
		}
	}
	if failed {
		return exitError(ExitSome)
	}
	return nil
}

// writeOutput writes all that was kept of one stream of one host.
func (e *env) writeOutput(c *cli.Context, api *client.Client, id fleet.CommandID, n *fleet.NodeView, w io.Writer) error {
	req := fleet.GetCommandOutputRequest{CommandId: id, InstanceId: n.InstanceId, StepName: c.String("step")}
	if c.Bool("stderr") {
		req.Stream = fleet.StreamStderr
	}
	out, err := api.Output(c.Context, req)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // nothing is written
	kept, err := io.Copy(w, counted{out})
	var read readError
	switch {
	case errors.As(err, &read) && c.Context.Err() != nil:
		return context.Cause(c.Context)
	case errors.As(err, &read):
		return fleet.Errorf(fleet.Unavailable, "the output ended early: %w", err).WithHint("try again")
	case err != nil:
		return err // of writing
	}
	if w, ok := w.(interface{ flush() error }); ok {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if uint64(kept) < out.Total {
		fmt.Fprintf(e.err, "%s: kept %s of %s\n", escapeCell(n.Name), size(uint64(kept)), size(out.Total))
	}
	return nil
}

// counted marks the errors of reading, to tell them from those of writing.
type counted struct{ io.Reader }

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readError{err}
	}
	return n, err
}

type readError struct{ error }

func (r readError) Unwrap() error { return r.error }
