package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/raftfsm"
)

func (e *env) leaveCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "leave", Category: categoryHost, Usage: "take this host out of its fleet for good, cleanly",
		Description: `The quorum removes the host, its key never counts again, and its agent stops;
an installed service is stopped and does not start at boot any more. While
commands run here it refuses; --force cancels them and reports that first. The
data directory stays until "fleet uninstall --purge", and the fleet keeps the
history: what ran here, and that the host left. "fleet join" makes the machine
a new node, with a new key.
A host of the quorum cannot leave, and without a quorum nothing changes. From
another host: fleet node rm.

Example:
  fleet leave
  fleet leave --force --yes

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not root, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "cancel the fleet's commands that run here"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		}, outputFlag(), socketFlag()),
	}, 0, 0, e.leave)
}

func (e *env) leave(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	local := e.local(c)
	status, err := local.Status(c.Context)
	if err != nil {
		if left := e.leftHere(); left != nil {
			return left
		}
		return err
	}
	if status.Role != fleet.RoleNameAgent {
		return raftfsm.OfTheQuorum(&fleet.Node{ID: status.InstanceId, Name: status.Name})
	}
	if !c.Bool("yes") {
		running := ""
		if n := status.OpenInvocations; n > 0 && c.Bool("force") {
			running = fmt.Sprintf(", cancels %s that run here", count(n, "command"))
		}
		question := fmt.Sprintf("%s (%s) goes out of fleet %s for good%s, and its agent stops. %s stays until fleet uninstall --purge; nothing of the history is lost. Leave the fleet?",
			status.Name, status.InstanceId, status.FleetName, running, status.DataDir)
		if err := e.confirm(question); err != nil {
			return err
		}
	}
	e.sent = true
	left, err := local.Leave(c.Context, fleet.LeaveRequest{Force: c.Bool("force")})
	if err != nil {
		return err
	}
	disabled, serviceErr := e.disableService(c, left.DataDir)
	printErr := e.print(c, result{value: left, names: []string{string(left.InstanceId)}, table: func(w io.Writer) {
		service := ""
		if disabled {
			service = "stopped, and not started at boot any more"
		}
		cancelled := ""
		if left.Cancelled > 0 {
			cancelled = count(left.Cancelled, "command")
		}
		properties(w, "left", fmt.Sprintf("fleet %s on %s", left.FleetName, date(left.At)),
			"host", left.Name+"  "+string(left.InstanceId), "cancelled", cancelled, "service", service,
			"next", "fleet uninstall --purge; or make this host a new node: fleet join --token-file FILE")
	}})
	if left.Unreported > 0 {
		e.warningLines([]fleet.Warning{{
			Code: "Unreported", Message: fmt.Sprintf("the quorum did not take %s in time: it says that they were interrupted", count(left.Unreported, "result")),
			Remedy: "the outputs are in " + left.DataDir,
		}})
	}
	if serviceErr != nil {
		return errors.Join(printErr, fleet.Errorf(fleet.KindOf(serviceErr), "the host left the fleet, but its service was not disabled: %w", serviceErr).
			WithHint("the host has left; keep its service from starting: fleet uninstall --purge"))
	}
	return printErr
}

// disableService ends the service that runs a data directory, if there is one.
func (e *env) disableService(c *cli.Context, dataDir string) (bool, error) {
	manager, err := e.manager()
	if err != nil {
		return false, nil // no service manager that could have it
	}
	status, err := manager.Status(c.Context)
	if err != nil || !status.Installed || status.Foreign {
		return false, err
	}
	cfg, err := config.Load(config.Sources{File: status.Config})
	if err != nil || filepath.Clean(cfg.DataDir) != filepath.Clean(dataDir) {
		return false, nil // it runs another host, or nothing
	}
	return true, manager.Disable(context.WithoutCancel(c.Context)) // the host has left
}

// leftHere is what the data directory of this host says if the host left its
// fleet; nil if it did not, or if that may not be read.
func (e *env) leftHere() error {
	cfg, err := config.Load(config.Sources{File: firstOf(e.getenv("FLEET_CONFIG"), config.DefaultFile), Getenv: e.getenv})
	if err != nil {
		return nil
	}
	if _, _, err := enrol.OpenDir(cfg.DataDir); errors.Is(err, enrol.ErrLeft) {
		return err
	}
	return nil
}
