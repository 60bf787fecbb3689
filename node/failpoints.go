package node

import (
	"context"
	"strings"

	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/process"
	"fleet/node/ticket"
)

// This file says where a host stands in the life of a command, for tests that
// end it there (package failpoint). What it reads is read only if one listens.

// atTicket says that this host is at a point with the command of a ticket.
func (n *Node) atTicket(p failpoint.Point, signed []byte) {
	if n.cfg.At == nil {
		return
	}
	if s, err := ticket.ParseSigned(signed); err == nil {
		if t, err := ticket.Parse(s.Ticket); err == nil {
			n.cfg.At.Reach(p, t.Command)
		}
	}
}

// atResult says that this host is at a point with the command of a result.
func (n *Node) atResult(p failpoint.Point, result []byte) {
	if n.cfg.At == nil {
		return
	}
	if r, err := ticket.ParseResult(result); err == nil {
		n.cfg.At.Reach(p, r.Command)
	}
}

// starter starts children, and says so if a test listens.
func (n *Node) starter() process.Starter {
	if n.cfg.At == nil {
		return n.cfg.Starter
	}
	start := n.cfg.Starter
	if start == nil {
		start = process.Run
	}
	return func(ctx context.Context, spec process.Spec) (process.Exit, error) {
		command := commandOf(spec.Env)
		n.cfg.At.Reach(failpoint.Exec, command)
		if spawned := spec.Spawned; spawned != nil {
			spec.Spawned = func(id process.Identity) error {
				err := spawned(id)
				n.cfg.At.Reach(failpoint.Runs, command)
				return err
			}
		}
		exit, err := start(ctx, spec)
		n.cfg.At.Reach(failpoint.Exited, command)
		return exit, err
	}
}

// commandOf is the command that a child's environment names.
func commandOf(env []string) fleet.CommandID {
	for _, v := range env {
		if id, ok := strings.CutPrefix(v, "FLEET_COMMAND_ID="); ok {
			return fleet.CommandID(id)
		}
	}
	return ""
}
