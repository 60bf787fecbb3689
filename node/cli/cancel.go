package cli

import (
	"cmp"
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
	"fleet/raftfsm/entry"
)

func (e *env) commandCancelCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "cancel", ArgsUsage: "COMMAND", Usage: "cancel a command, everywhere or on some hosts",
		Description: `Where the command runs, its processes are ended: SIGTERM, a few seconds later
SIGKILL. What they had written is kept. Where it has not begun, it never does.
Where it has ended, nothing changes: cancelling too late or twice is no error.

It waits until each host has said how it ended. A host that cannot be reached is
"Cancelling" until the time to deliver the command is over; Ctrl-C and --timeout
stop the waiting, not the cancelling.

` + commandIs + `

Examples:
  fleet command cancel last
  fleet command cancel 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b --node web[01-03]
  fleet command cancel 6d5f --detach

Exit codes: 0 it is over on all hosts, 1 the request failed, 2 some hosts have
not said yet that it is over, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(outputFlag(), []cli.Flag{
			&cli.StringSliceFlag{Name: "node", Aliases: []string{"w"},
				Usage: "cancel on the hosts `SET`: names or IDs, web[01-20], web*; several with commas or repeated (default: all)"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait until it is over"},
		}, clientFlags(), waitFlag()),
	}, 1, 1, e.commandCancel)
}

func (e *env) commandCancel(c *cli.Context) error {
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	for _, set := range c.StringSlice("node") {
		if strings.Trim(set, ", ") == "" {
			return usagef("--node names no host") // must not mean all of them
		}
	}
	unbounded := c.Context
	api, id, end, err := e.reachCommand(c)
	if err != nil {
		return err
	}
	defer end()
	var nodes []fleet.NodeID
	if sets := c.StringSlice("node"); len(sets) > 0 {
		d, err := newDirectory(c, api)
		if err != nil {
			return err
		}
		named, err := d.expand("--node", sets)
		if err != nil {
			return err
		}
		for _, n := range named {
			nodes = append(nodes, n.InstanceId)
		}
	}
	if err := cancelCommand(c.Context, api, id, nodes); err != nil {
		return err
	}
	if !c.Bool("detach") {
		if err := awaitCancelled(c.Context, api, id, nodes); err != nil && c.Context.Err() == nil {
			return err
		}
	}
	// What has come is told, also when the waiting was cut short.
	c.Context = context.WithoutCancel(unbounded)
	d, err := describeCommand(c, api, string(id))
	if err != nil {
		return err
	}
	if len(nodes) > 0 {
		d.CommandInvocations = slices.DeleteFunc(d.CommandInvocations, func(i ssm.CommandInvocation) bool {
			return !slices.Contains(nodes, fleet.NodeID(i.InstanceId))
		})
	}
	err = e.print(c, result{value: d, names: []string{string(id)}, table: func(w io.Writer) { writeStates(w, d) }})
	open := slices.DeleteFunc(slices.Clone(d.CommandInvocations), func(i ssm.CommandInvocation) bool { return isFinal(i.Status) })
	if err != nil || len(open) == 0 {
		return err
	}
	fmt.Fprintf(e.err, "the cancel stands; %s not said yet that it is over: fleet command show %s\n", have(len(open)), id)
	switch {
	case errors.Is(unbounded.Err(), context.Canceled):
		return exitError(ExitFailed)
	case c.Bool("detach"):
		return nil
	}
	return exitError(ExitSome)
}

func have(hosts int) string {
	if hosts == 1 {
		return "1 host has"
	}
	return fmt.Sprintf("%d hosts have", hosts)
}

// cancelCommand has the fleet decide that a command is cancelled, on these
// nodes or, without any, on all. It returns when that is decided, which is
// before it is over: who wants to see that watches the command. A command that
// has ended is no error.
func cancelCommand(ctx context.Context, api *client.Client, id fleet.CommandID, nodes []fleet.NodeID) error {
	if len(nodes) == 0 {
		return api.Call(ctx, "CancelCommand", ssm.CancelCommandRequest{CommandId: string(id)}, nil)
	}
	for part := range slices.Chunk(nodes, entry.MaxInstanceIDs) {
		req := ssm.CancelCommandRequest{CommandId: string(id)}
		for _, n := range part {
			req.InstanceIds = append(req.InstanceIds, string(n))
		}
		if err := api.Call(ctx, "CancelCommand", req, nil); err != nil {
			return err
		}
	}
	return nil
}

// awaitCancelled waits until these targets, or all, have ended.
func awaitCancelled(ctx context.Context, api *client.Client, id fleet.CommandID, nodes []fleet.NodeID) error {
	over := errors.New("over")
	waiting := map[fleet.NodeID]bool{}
	for _, n := range nodes {
		waiting[n] = true
	}
	err := api.Watch(ctx, fleet.WatchCommandRequest{CommandId: id}, func(ev fleet.WatchEvent) error {
		if ev.Invocation != nil && ev.Invocation.Final {
			delete(waiting, ev.Invocation.InstanceId)
		}
		if len(nodes) > 0 && len(waiting) == 0 {
			return over
		}
		return nil
	})
	if errors.Is(err, over) {
		return nil
	}
	return err
}

// writeStates writes what became of a command, the hosts of one fate together.
func writeStates(w io.Writer, d *commandDetail) {
	type fate struct{ state, why string }
	hosts := map[fate][]string{}
	var fates []fate
	for _, i := range d.CommandInvocations {
		f := fate{statusText(i.Status, i.StatusDetails), i.TraceOutput}
		if hosts[f] == nil {
			fates = append(fates, f)
		}
		hosts[f] = append(hosts[f], firstOf(i.InstanceName, i.InstanceId))
	}
	slices.SortFunc(fates, func(a, b fate) int {
		return cmp.Or(cmp.Compare(len(hosts[b]), len(hosts[a])), strings.Compare(a.state, b.state), strings.Compare(a.why, b.why))
	})
	t := newTable("STATUS", "HOSTS", "NAMES", "WHY")
	for _, f := range fates {
		t.add(f.state, strconv.Itoa(len(hosts[f])), foldNames(hosts[f]), f.why)
	}
	t.write(w)
}
