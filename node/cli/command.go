package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

func (e *env) commandCommand() *cli.Command {
	return &cli.Command{
		Name: "command", Aliases: []string{"commands"}, Category: categoryNouns, Usage: "commands that ran or are running",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list commands, newest first",
				Description: `Examples:
  fleet command ls
  fleet command ls --limit 200 --status Failed
  fleet command ls --node web1

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), []cli.Flag{
					&cli.IntFlag{Name: "limit", Value: 20, Usage: "at most `N` commands (default 20)"},
					&cli.StringFlag{Name: "status",
						Usage: "only commands that are `STATUS`: " + strings.Join(commandStates, ", ")},
					&cli.StringFlag{Name: "node", Usage: "only commands that `NODE`, a name or an ID, is a target of"},
				}, staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.commandLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "COMMAND", Usage: "show one command and the state of each host",
				Description: `Example:
  fleet command show 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.commandShow),
			leaf(&cli.Command{
				Name: "output", ArgsUsage: "COMMAND [NODE]", Usage: "show what the hosts wrote",
				Description: `Without a NODE it shows the answers of all hosts as "fleet run" does, and waits
for those that are missing; --timeout bounds the waiting. With a NODE it writes
all that was kept of one stream of that host, byte for byte when the standard
output is not a terminal and --raw is given, and says if that is not all that
was written.

Examples:
  fleet command output 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b
  fleet command output 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b web1 --raw > web1.out

Exit codes: 0 done, 1 the request failed, 2 some hosts did not succeed,
3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), []cli.Flag{
					&cli.BoolFlag{Name: "stderr", Usage: "the error stream instead of the output; needs a NODE"},
					&cli.StringFlag{Name: "step", Usage: "`NAME` of the step, of a document with several; needs a NODE"},
					&cli.BoolFlag{Name: "raw", Usage: "do not escape control characters; not on a terminal"},
				}, clientFlags(), []cli.Flag{
					&cli.StringFlag{Name: "timeout", Usage: "stop waiting and reading after `DURATION`, such as 30s (default: never)"},
				}),
			}, 1, 2, e.commandOutput),
		},
	}
}

// commandStates are the words of --status.
var commandStates = []string{"Pending", "InProgress", "Success", "Failed", "TimedOut", "Cancelled"}

func (e *env) commandLs(c *cli.Context) error {
	limit := c.Int("limit")
	if limit < 1 || limit > 10000 {
		return usagef("--limit %d is not between 1 and 10000", limit)
	}
	s := c.String("status")
	if s != "" && !slices.Contains(commandStates, s) {
		return usagef("--status %q is none of %s", s, strings.Join(commandStates, ", "))
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	var req ssm.ListCommandsRequest
	if s != "" {
		req.Filters = append(req.Filters, ssm.CommandFilter{Key: "Status", Value: s})
	}
	if name := c.String("node"); name != "" {
		n, err := oneNode(c, api, name, true)
		if err != nil {
			return err
		}
		req.InstanceId = string(n.InstanceId)
	}
	all := ssm.ListCommandsResult{Commands: []ssm.Command{}}
	for len(all.Commands) < limit {
		req.MaxResults = min(50, limit-len(all.Commands))
		var page ssm.ListCommandsResult
		if err := api.Call(c.Context, "ListCommands", req, &page); err != nil {
			return err
		}
		all.Commands = append(all.Commands, page.Commands...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			break
		}
	}
	var ids []string
	for _, cmd := range all.Commands {
		ids = append(ids, cmd.CommandId)
	}
	return e.print(c, result{value: all, names: ids, table: func(w io.Writer) {
		t := newTable("COMMAND", "REQUESTED", "STATUS", "DONE", "ERRORS", "WHAT")
		for _, cmd := range all.Commands {
			t.add(cmd.CommandId, date(fleet.Instant(cmd.RequestedDateTime)), statusText(cmd.Status, cmd.StatusDetails),
				fmt.Sprintf("%d/%d", cmd.CompletedCount, cmd.TargetCount), strconv.Itoa(cmd.ErrorCount), cut(what(cmd), 60))
		}
		t.write(w)
	}})
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
	id, err := fleet.ParseCommandID(c.Args().First())
	if err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
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
		"requested", date(fleet.Instant(cmd.RequestedDateTime)), "status", statusText(cmd.Status, cmd.StatusDetails),
		"targets", fmt.Sprintf("%d, %d done, %d with errors, %d not reached in time", cmd.TargetCount, cmd.CompletedCount,
			cmd.ErrorCount, cmd.DeliveryTimedOutCount),
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
	if cmd.CompletedCount > 0 {
		fmt.Fprintf(e.err, "output: fleet command output %s\n", cmd.CommandId)
	}
}

func (e *env) commandOutput(c *cli.Context) error {
	id, err := fleet.ParseCommandID(c.Args().First())
	if err != nil {
		return err
	}
	name := c.Args().Get(1)
	switch {
	case name == "" && (c.Bool("stderr") || c.String("step") != ""):
		return usagef("--stderr and --step need a NODE")
	case name != "" && c.String("output") != formTable:
		return usagef("--output goes with the answers of all hosts: with a NODE the bytes of one stream are written as they are")
	}
	cancel, err := e.bound(c)
	if err != nil {
		return err
	}
	defer cancel()
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	if name == "" {
		return e.follow(c, api, newAnswers(id), false)
	}
	n, err := oneNode(c, api, name, true)
	if err != nil {
		return err
	}
	req := fleet.GetCommandOutputRequest{CommandId: id, InstanceId: n.InstanceId, StepName: c.String("step")}
	if c.Bool("stderr") {
		req.Stream = fleet.StreamStderr
	}
	out, err := api.Output(c.Context, req)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // nothing is written
	w := e.out
	if !c.Bool("raw") || e.outTTY {
		w = &escapeWriter{w: e.out}
	}
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
	if esc, ok := w.(*escapeWriter); ok {
		if err := esc.flush(); err != nil {
			return err
		}
	}
	if uint64(kept) < out.Total {
		fmt.Fprintf(e.err, "kept %s of %s\n", size(uint64(kept)), size(out.Total))
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
