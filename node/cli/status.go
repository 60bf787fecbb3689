package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

func (e *env) statusCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "status", Category: categoryDaily, Usage: "show this host and the fleet, and what is wrong with them",
		Description: `This host is shown if its agent runs, the fleet if there is an operator's
credential. Each warning, on the standard error, says what to do.

Example:
  fleet status

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(outputFlag(), staleFlag(), socketFlag(), clientFlags(), timeoutFlag()),
	}, 0, 0, e.status)
}

// statusResult is what status prints as JSON; a part that there is not is null.
type statusResult struct {
	Host  *fleet.LocalStatus     `json:"Host"`
	Fleet *fleet.GetStatusResult `json:"Fleet"`
}

func (e *env) status(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	var s statusResult
	local, localErr := e.local(c).Status(c.Context)
	var left error // what the data directory says of a host that has no agent any more
	if localErr == nil {
		s.Host = local
	} else if left = e.leftHere(); left != nil {
		localErr = left
	}
	api, err := e.connect(c)
	if err == nil {
		defer api.Close()
		s.Fleet, err = readAnyway[fleet.GetStatusResult](c, api, "GetStatus", fleet.GetStatusRequest{})
	}
	switch {
	case s.Host == nil && isNoCredential(err):
		return localErr
	case s.Host == nil && s.Fleet == nil && err != nil:
		return err
	}
	var names []string
	switch {
	case s.Fleet != nil:
		names = []string{s.Fleet.Name}
	case s.Host != nil:
		names = []string{s.Host.FleetName}
	}
	alone := s.Host != nil && !s.Host.QuorumReachable
	// A host that was removed does not reach the quorum because of that.
	if alone && !slices.ContainsFunc(s.Host.Warnings, func(w fleet.Warning) bool { return w.Code == noQuorumCode || w.Code == removedCode }) {
		s.Host.Warnings = append(s.Host.Warnings, fleet.Warning{
			Code: noQuorumCode, Message: "this host does not reach the quorum: it runs no new commands",
			Remedy: "check that the quorum hosts run and that this host reaches their port; fleet node ls names them",
		})
	}
	printErr := e.print(c, result{value: s, names: names, table: func(w io.Writer) { e.statusText(w, s) }})
	if left != nil {
		e.warningLines([]fleet.Warning{{Code: "Left", Message: left.Error(), Remedy: fleet.HintOf(left)}})
	}
	switch {
	case printErr != nil:
		return printErr
	case err != nil && !isNoCredential(err):
		return err
	case alone:
		return exitError(ExitNoQuorum)
	}
	return nil
}

// noQuorumCode is the code of a host's warning that nothing can be decided.
const noQuorumCode = "NoQuorum"

// removedCode is the code of a host's warning that it is of the fleet no more.
const removedCode = "Removed"

// readAnyway is a read that is of use without a quorum too: then it gives both
// the error and what one host of it knows.
func readAnyway[Resp any](c *cli.Context, api *client.Client, operation string, req any) (*Resp, error) {
	resp := new(Resp)
	err := api.Call(c.Context, operation, req, resp)
	if err == nil || fleet.KindOf(err) == fleet.NoQuorum && api.CallStale(c.Context, operation, req, resp) == nil {
		return resp, err
	}
	return nil, err
}

func (e *env) statusText(w io.Writer, s statusResult) {
	if h := s.Host; h != nil {
		heard := "never"
		if h.HeartbeatAge >= 0 {
			heard = short(time.Duration(h.HeartbeatAge*float64(time.Second))) + " ago"
		}
		quorum := "not reached; last answer " + heard
		if h.QuorumReachable {
			quorum = "reached, last answer " + heard
		}
		candidate := h.Candidate
		properties(w, "host", h.Name+"  "+string(h.InstanceId), "fleet", h.FleetName+"  "+string(h.FleetId), "role", h.Role,
			"address", strings.TrimSpace(h.Address+"  "+reachText(h.Reach, "")),
			"quorum", quorum, "ring", fmt.Sprintf("%d alive", h.RingAlive), "running", fmt.Sprint(h.OpenInvocations), "containment", h.Containment,
			"data", h.DataDir, "disk", diskText(h.Disk), "version", h.Version, "fingerprint", candidate)
		e.warningLines(h.Warnings)
	}
	if s.Host != nil && s.Fleet != nil {
		fmt.Fprintln(w)
	}
	if f := s.Fleet; f != nil {
		var by []string
		for _, state := range []string{fleet.PingOnline, fleet.PingConnectionLost, fleet.PingUnknown} {
			if n := f.PingStatus[state]; n > 0 {
				by = append(by, fmt.Sprintf("%d %s", n, state))
			}
		}
		nodes := fmt.Sprint(f.Nodes)
		if len(by) > 0 {
			nodes += "  " + strings.Join(by, ", ")
		}
		properties(w, "fleet", f.Name+"  "+string(f.FleetId), "nodes", nodes,
			"quorum", fmt.Sprintf("%d of %d voters answer, %d sign a ticket", f.Reachable, f.Voters, f.Threshold),
			"leader", firstOf(f.LeaderName, string(f.Leader), "none"), "commands", fmt.Sprintf("%d running", f.OpenCommands),
			"trust", fmt.Sprintf("version %d", f.TrustVersion), "features", fmt.Sprintf("level %d", f.FeatureLevel))
		var warnings []fleet.Warning
		for _, warning := range f.Warnings {
			if s.Host == nil || !contains(s.Host.Warnings, warning) {
				warnings = append(warnings, warning)
			}
		}
		e.warningLines(warnings)
	}
}

// diskText is what a host's data takes of its disk.
func diskText(d fleet.DiskState) string {
	if d.Budget == 0 {
		return "" // an agent of another version
	}
	text := fmt.Sprintf("%s of %s used", size(uint64(d.Used)), size(uint64(d.Budget)))
	if d.Total > 0 {
		text += ", " + size(uint64(d.Free)) + " free on the file system"
	}
	return text
}

func contains(all []fleet.Warning, w fleet.Warning) bool {
	for _, other := range all {
		if other == w {
			return true
		}
	}
	return false
}
