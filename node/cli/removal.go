package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

func (e *env) nodeRmCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "rm", Aliases: []string{"delete", "remove"}, ArgsUsage: "NODE...", Usage: "remove hosts from the fleet for good",
		Description: `The registry forgets the host, every quorum host closes its connections, and
its key never counts again. What was open on it ends, as Undeliverable or
Interrupted. To bring the machine back, let it join as a new node, with a new
activation: "fleet join" in its data directory makes another key. To have another
machine take its place, name and labels, leave it and make an activation with
"fleet activation create --replaces".
Hosts of the quorum cannot be removed. A host that goes by itself says so with
"fleet leave".

Examples:
  fleet node rm web7
  fleet node rm mi-0123456789abcdef0 web8 --yes

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
			outputFlag(), clientFlags(), timeoutFlag()),
	}, 1, -1, e.nodeRm)
}

func (e *env) nodeRm(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	nodes := []fleet.NodeView{}
	seen := map[fleet.NodeID]bool{}
	for _, name := range c.Args().Slice() { // all are known before one is removed
		n, err := oneNode(c, api, name, true)
		if err != nil {
			return err
		}
		if !seen[n.InstanceId] {
			seen[n.InstanceId] = true
			nodes = append(nodes, *n)
		}
	}
	if !c.Bool("yes") {
		if err := e.confirm(removalQuestion(api.FleetName(), nodes)); err != nil {
			return err
		}
	}
	removed := []fleet.NodeView{}
	for _, n := range nodes {
		err := api.Call(c.Context, "DeregisterManagedInstance", ssm.DeregisterManagedInstanceRequest{InstanceId: string(n.InstanceId)}, nil)
		if err != nil {
			for _, done := range removed { // what is done is done
				fmt.Fprintf(e.err, "removed %s %s\n", escapeCell(done.Name), done.InstanceId)
			}
			return err
		}
		removed = append(removed, n)
	}
	return e.print(c, result{
		value: fleet.DescribeNodesResult{Nodes: removed}, names: nodeNames(removed),
		table: func(w io.Writer) {
			for _, n := range removed {
				fmt.Fprintf(w, "removed %s %s\n", escapeCell(n.Name), n.InstanceId)
			}
		},
	})
}

func removalQuestion(fleetName string, nodes []fleet.NodeView) string {
	const most = 10
	var names []string
	for _, n := range nodes[:min(len(nodes), most)] {
		names = append(names, fmt.Sprintf("%s (%s)", n.Name, n.InstanceId))
	}
	text := strings.Join(names, ", ")
	if len(nodes) > most {
		text += fmt.Sprintf(" and %d more", len(nodes)-most)
	}
	return fmt.Sprintf("Remove %s from the fleet %s for good: %s?", count(len(nodes), "host"), fleetName, text)
}

// removedTable lists hosts that are of the fleet no more.
func (e *env) removedTable(w io.Writer, nodes []fleet.NodeView) {
	t := newTable("NAME", "ID", "REMOVED", "BY", "ENROLLED", "LABELS")
	for _, n := range nodes {
		if n.Removed == nil {
			continue
		}
		t.add(n.Name, string(n.InstanceId), date(n.Removed.At), removedBy(n.Removed), date(n.Enrolled), labelText(n.Labels))
	}
	t.write(w)
}

func removedBy(r *fleet.RemovedView) string {
	switch {
	case r.ReplacedBy != "":
		return string(r.Operator) + ", replaced by " + string(r.ReplacedBy)
	case r.Operator == "":
		return "itself"
	}
	return string(r.Operator)
}

// showRemoved looks for a host among those that are gone, if that is why it was
// not found.
func (e *env) showRemoved(c *cli.Context, api *client.Client, name string, notFound error) error {
	if fleet.KindOf(notFound) != fleet.NotFound {
		return notFound
	}
	nodes, err := describeNodes(c, api, fleet.DescribeNodesRequest{Nodes: []string{name}, Removed: true})
	if err != nil {
		return notFound
	}
	n, err := theOne(nodes, name)
	if err != nil {
		return err
	}
	return e.print(c, result{value: n, names: []string{string(n.InstanceId)}, table: func(w io.Writer) {
		properties(w, "name", n.Name, "ID", string(n.InstanceId), "removed", date(n.Removed.At)+" by "+removedBy(n.Removed),
			"address", n.Address, "labels", labelText(n.Labels), "enrolled", date(n.Enrolled), "activation", string(n.ActivationId), "replaces", string(n.Replaces))
	}})
}
