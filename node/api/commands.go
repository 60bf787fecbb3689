package api

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync"
	"time"

	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/runcmd"
	"fleet/node/ssm"
	"fleet/raftfsm/state"
)

const (
	commandsPage    = 50
	commandsBatch   = 100 // rows read from the state at a time
	detailsAtATime  = 8
	stageExecuting  = "Executing"
	stageComplete   = "Complete"
	timeLayoutInput = "2006-01-02T15:04:05Z"
)

// commandsAfter is all commands, newest first, after the one named.
func commandsAfter(store *state.Store, after fleet.CommandID) iter.Seq[*fleet.Command] {
	return func(yield func(*fleet.Command) bool) {
		for {
			batch := store.Commands(commandsBatch, after)
			for _, cmd := range batch {
				if !yield(cmd) {
					return
				}
				after = cmd.ID
			}
			if len(batch) < commandsBatch {
				return
			}
		}
	}
}

func listCommands(_ context.Context, _ *call, store *state.Store, req *ssm.ListCommandsRequest) (*ssm.ListCommandsResult, error) {
	size, err := pageSize(req.MaxResults, 1, commandsPage)
	if err != nil {
		return nil, err
	}
	keep, err := commandFilter(req.Filters, true)
	if err != nil {
		return nil, err
	}
	var node fleet.NodeID
	if req.InstanceId != "" {
		if node, err = parseInstance(store, req.InstanceId); err != nil {
			return nil, err
		}
	}
	after, err := pageKey(req.NextToken)
	if err != nil {
		return nil, err
	}
	commands := commandsAfter(store, fleet.CommandID(after))
	if req.CommandId != "" {
		cmd, err := findCommand(store, req.CommandId)
		if err != nil {
			return nil, err
		}
		commands = func(yield func(*fleet.Command) bool) { yield(cmd) }
	}
	result := &ssm.ListCommandsResult{Commands: []ssm.Command{}}
	for cmd := range commands {
		if _, ok := state.TargetIndex(cmd, node); node != "" && !ok {
			continue
		}
		status, _ := control.CommandStatus(cmd)
		if !keep(cmd, status) {
			continue
		}
		if len(result.Commands) == size {
			result.NextToken = pageToken(result.Commands[size-1].CommandId)
			break
		}
		result.Commands = append(result.Commands, control.CommandView(cmd))
	}
	return result, nil
}

// findCommand parses an ID and finds its command.
func findCommand(store *state.Store, text string) (*fleet.Command, error) {
	id, err := fleet.ParseCommandID(text)
	if err != nil {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidCommandId, "%v", err)
	}
	cmd := store.Command(id)
	if cmd == nil {
		return nil, fleet.CodeErrorf(fleet.NotFound, ssm.InvalidCommandId, "there is no command %s", id).
			WithHint("see which there are: fleet command ls")
	}
	return cmd, nil
}

// parseInstance parses the ID of a node that is, or was, of the fleet: what ran
// on a host can be read when it is gone.
func parseInstance(store *state.Store, text string) (fleet.NodeID, error) {
	id, err := fleet.ParseNodeID(text)
	if err != nil {
		return "", fleet.CodeErrorf(fleet.Invalid, ssm.InvalidInstanceId, "%v", err)
	}
	if store.Node(id) == nil && store.Removal(id) == nil {
		return "", fleet.CodeErrorf(fleet.NotFound, ssm.InvalidInstanceId, "there is no node %s", id).
			WithHint("see which there are: fleet node ls")
	}
	return id, nil
}

// commandFilter makes one function of SSM's filters: of a command and the
// status that counts, its own or that of an invocation.
func commandFilter(filters []ssm.CommandFilter, stages bool) (func(cmd *fleet.Command, status string) bool, error) {
	if len(filters) > 5 {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilterKey, "%d filters are over the limit of 5", len(filters))
	}
	var all []func(*fleet.Command, string) bool
	for _, f := range filters {
		value := f.Value
		switch {
		case f.Key == "InvokedAfter" || f.Key == "InvokedBefore":
			at, err := time.Parse(timeLayoutInput, value)
			if err != nil {
				return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilterValue,
					"%s %.40q is not a time like 2026-07-07T00:00:00Z", f.Key, value)
			}
			limit, after := at.UnixNano(), f.Key == "InvokedAfter"
			all = append(all, func(cmd *fleet.Command, _ string) bool {
				return after && cmd.Created > limit || !after && cmd.Created < limit
			})
		case f.Key == "Status":
			all = append(all, func(_ *fleet.Command, status string) bool { return status == value })
		case f.Key == "DocumentName":
			all = append(all, func(cmd *fleet.Command, _ string) bool { return cmd.DocumentName == value })
		case f.Key == "Operator": // ours
			all = append(all, func(cmd *fleet.Command, _ string) bool { return string(cmd.Operator) == value })
		case f.Key == "ExecutionStage" && stages:
			if value != stageExecuting && value != stageComplete {
				return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilterValue, "ExecutionStage is %s or %s, not %.40q",
					stageExecuting, stageComplete, value)
			}
			all = append(all, func(cmd *fleet.Command, _ string) bool { return cmd.Open() == (value == stageExecuting) })
		default:
			return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilterKey, "commands are not filtered by %.40q", f.Key)
		}
	}
	return func(cmd *fleet.Command, status string) bool {
		for _, keep := range all {
			if !keep(cmd, status) {
				return false
			}
		}
		return true
	}, nil
}

// position is where a list of invocations goes on: after this target of this
// command.
type position struct {
	command fleet.CommandID
	index   uint32
}

func (p position) token() string { return pageToken(fmt.Sprintf("%s/%d", p.command, p.index)) }

func parsePosition(token string) (*position, error) {
	key, err := pageKey(token)
	if err != nil || key == "" {
		return nil, err
	}
	command, index, ok := strings.Cut(key, "/")
	n, err := strconv.ParseUint(index, 10, 32)
	if !ok || err != nil {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidNextToken, "the NextToken is not one that was given out")
	}
	return &position{fleet.CommandID(command), uint32(n)}, nil
}

func listCommandInvocations(ctx context.Context, c *call, store *state.Store,
	req *ssm.ListCommandInvocationsRequest) (*ssm.ListCommandInvocationsResult, error) {
	size, err := pageSize(req.MaxResults, 1, commandsPage)
	if err != nil {
		return nil, err
	}
	keep, err := commandFilter(req.Filters, false)
	if err != nil {
		return nil, err
	}
	from, err := parsePosition(req.NextToken)
	if err != nil {
		return nil, err
	}
	rows, err := invocations(store, req.CommandId, req.InstanceId, from)
	if err != nil {
		return nil, err
	}
	var kept []row
	result := &ssm.ListCommandInvocationsResult{CommandInvocations: []ssm.CommandInvocation{}}
	for r := range rows {
		if !keep(r.cmd, r.inv.State.Status()) {
			continue
		}
		if len(kept) == size {
			last := kept[size-1]
			result.NextToken = position{last.cmd.ID, last.inv.Index}.token()
			break
		}
		kept = append(kept, r)
	}
	var details []fetched
	if req.Details {
		details = c.details(ctx, kept)
	}
	for i, r := range kept {
		view := invocationView(store, r)
		if details != nil {
			c.addPlugins(ctx, &view, r, details[i])
		}
		result.CommandInvocations = append(result.CommandInvocations, view)
	}
	return result, nil
}

// row is one target of one command.
type row struct {
	cmd *fleet.Command
	inv *fleet.Invocation
}

func (r row) node() fleet.NodeID { return r.cmd.Targets[r.inv.Index] }

// invocations goes through the targets of one command or of all, newest first,
// of one node or of all, after a position.
func invocations(store *state.Store, command, instance string, from *position) (iter.Seq[row], error) {
	var node fleet.NodeID
	var err error
	if instance != "" {
		if node, err = parseInstance(store, instance); err != nil {
			return nil, err
		}
	}
	var commands iter.Seq[*fleet.Command]
	if command != "" {
		cmd, err := findCommand(store, command)
		if err != nil {
			return nil, err
		}
		commands = func(yield func(*fleet.Command) bool) { yield(cmd) }
	} else {
		commands = func(yield func(*fleet.Command) bool) {
			if from == nil {
				commandsAfter(store, "")(yield)
				return
			}
			// The command of the position may have more targets to give.
			if cmd := store.Command(from.command); cmd != nil && !yield(cmd) {
				return
			}
			commandsAfter(store, from.command)(yield)
		}
	}
	return func(yield func(row) bool) {
		for cmd := range commands {
			first, end := uint32(0), uint32(len(cmd.Targets))
			if from != nil && cmd.ID == from.command {
				first = from.index + 1
			}
			if node != "" {
				i, ok := state.TargetIndex(cmd, node)
				if !ok || i < first {
					continue
				}
				first, end = i, i+1
			}
			for i := first; i < end; i++ {
				if inv := store.Invocation(cmd.ID, i); inv != nil && !yield(row{cmd, inv}) {
					return
				}
			}
		}
	}, nil
}

func invocationView(store *state.Store, r row) ssm.CommandInvocation {
	v := ssm.CommandInvocation{
		CommandId: string(r.cmd.ID), InstanceId: string(r.node()), Comment: r.cmd.Comment,
		DocumentName: r.cmd.DocumentName, DocumentVersion: r.cmd.DocumentVersion, RequestedDateTime: ssm.TimeOf(r.cmd.Created),
		Status: r.inv.State.Status(), StatusDetails: r.inv.State.Details(), TraceOutput: r.inv.Reason,
		CommandPlugins: []ssm.CommandPlugin{},
	}
	v.InstanceName = nameOf(store, r.node())
	return v
}

// fetched is the details of one invocation or why there are none.
type fetched struct {
	detail *runcmd.Detail
	err    error
}

// details fetches those of all rows, a few at a time.
func (c *call) details(ctx context.Context, rows []row) []fetched {
	all := make([]fetched, len(rows))
	slots := make(chan struct{}, detailsAtATime)
	var wg sync.WaitGroup
	for i, r := range rows {
		if r.inv.Detail.IsZero() {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			all[i].detail, all[i].err = c.cfg.Control.Detail(ctx, r.cmd, r.inv)
		})
	}
	wg.Wait()
	return all
}

func (c *call) addPlugins(ctx context.Context, v *ssm.CommandInvocation, r row, f fetched) {
	if f.err != nil {
		v.TraceOutput = strings.TrimSpace(v.TraceOutput + "\n" + outputError(f.err))
		return
	}
	if f.detail == nil {
		return
	}
	for i := range f.detail.Steps {
		step := &f.detail.Steps[i]
		stdout, _, err := c.streamText(ctx, r.node(), &step.Stdout, ssm.MaxPluginOutput)
		stderr, _, err2 := c.streamText(ctx, r.node(), &step.Stderr, ssm.MaxPluginOutput)
		output := joinOutput(stdout, stderr)
		if err != nil || err2 != nil {
			output = outputError(firstError(err, err2))
		}
		v.CommandPlugins = append(v.CommandPlugins, ssm.CommandPlugin{
			Name: step.Name, Status: step.State.Status(), StatusDetails: step.State.Details(), ResponseCode: int(step.Code),
			ResponseStartDateTime: ssm.TimeOf(step.Started), ResponseFinishDateTime: ssm.TimeOf(step.Ended), Output: output,
		})
	}
}

func getCommandInvocation(ctx context.Context, c *call, store *state.Store,
	req *ssm.GetCommandInvocationRequest) (*ssm.GetCommandInvocationResult, error) {
	r, err := findInvocation(store, req.CommandId, req.InstanceId)
	if err != nil {
		return nil, err
	}
	result := &ssm.GetCommandInvocationResult{
		CommandId: req.CommandId, InstanceId: req.InstanceId, Comment: r.cmd.Comment,
		DocumentName: r.cmd.DocumentName, DocumentVersion: r.cmd.DocumentVersion, PluginName: req.PluginName,
		ResponseCode: int(r.inv.Code), Status: r.inv.State.Status(), StatusDetails: r.inv.State.Details(),
		ExecutionStartDateTime: ssm.ISO(r.inv.Started), ExecutionEndDateTime: ssm.ISO(r.inv.Ended),
		ExecutionElapsedTime: elapsed(r.inv.Started, r.inv.Ended),
	}
	detail, err := c.cfg.Control.Detail(ctx, r.cmd, r.inv)
	if err != nil {
		return nil, err
	}
	if detail == nil || len(detail.Steps) == 0 {
		return result, nil
	}
	step, err := findStep(detail, req.PluginName)
	if err != nil {
		return nil, err
	}
	result.PluginName, result.ResponseCode = step.Name, int(step.Code)
	result.Status, result.StatusDetails = step.State.Status(), step.State.Details()
	result.ExecutionStartDateTime, result.ExecutionEndDateTime = ssm.ISO(step.Started), ssm.ISO(step.Ended)
	result.ExecutionElapsedTime = elapsed(step.Started, step.Ended)
	if result.StandardOutputContent, err = c.cutText(ctx, r.node(), &step.Stdout, ssm.MaxStandardOutput); err != nil {
		return nil, err
	}
	if result.StandardErrorContent, err = c.cutText(ctx, r.node(), &step.Stderr, ssm.MaxStandardError); err != nil {
		return nil, err
	}
	return result, nil
}

// findInvocation finds one target; all ways of not finding it are SSM's
// InvocationDoesNotExist, on which clients wait and ask again.
func findInvocation(store *state.Store, command, instance string) (row, error) {
	id, err := fleet.ParseCommandID(command)
	if err != nil {
		return row{}, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidCommandId, "%v", err)
	}
	node, err := fleet.ParseNodeID(instance)
	if err != nil {
		return row{}, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidInstanceId, "%v", err)
	}
	if cmd := store.Command(id); cmd != nil {
		if i, ok := state.TargetIndex(cmd, node); ok {
			if inv := store.Invocation(id, i); inv != nil {
				return row{cmd, inv}, nil
			}
		}
	}
	return row{}, fleet.CodeErrorf(fleet.NotFound, ssm.InvocationDoesNotExist, "the command %s was not sent to %s", id, node)
}

// elapsed is SSM's text for a duration: ISO 8601, seconds with milliseconds.
func elapsed(from, to int64) string {
	if from == 0 || to < from {
		return ""
	}
	return fmt.Sprintf("PT%.3fS", time.Duration(to-from).Seconds())
}
