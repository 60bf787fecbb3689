package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

func (e *env) nodeCommand() *cli.Command {
	return &cli.Command{
		Name: "node", Aliases: []string{"nodes"}, Category: categoryNouns, Usage: "the hosts of the fleet",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, ArgsUsage: "[NODE...]", Usage: "list hosts",
				Description: `A NODE is a name or an ID. Without an operator's credential the list is this
host's own copy, with its age.

Examples:
  fleet node ls
  fleet node ls --label env=prod,test --status ConnectionLost -o name

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), labelFlag(), []cli.Flag{
					&cli.StringFlag{Name: "status",
						Usage: "only hosts that are `STATUS`: Online, ConnectionLost, Unknown; several with commas"},
					&cli.BoolFlag{Name: "removed", Usage: "the hosts that were removed from the fleet, or left it"},
				}, staleFlag(), socketFlag(), clientFlags(), timeoutFlag()),
			}, 0, -1, e.nodeLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "NODE", Usage: "show one host",
				Description: `Example:
  fleet node show web1

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.nodeShow),
			leaf(&cli.Command{
				Name: "label", ArgsUsage: "NODE KEY=VALUE... [KEY-...]", Usage: "set labels of a host, or remove them",
				Description: `KEY=VALUE sets a label, KEY- removes it. Labels select hosts for commands, so
only operators set them.

Examples:
  fleet node label web1 env=prod rack=b7
  fleet node label web1 rack-

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), clientFlags(), timeoutFlag()),
			}, 2, -1, e.nodeLabel),
			leaf(&cli.Command{
				Name: "rename", ArgsUsage: "NODE NAME", Usage: "give a host another name",
				Description: `Names are for people and need not be unique; a host is its ID. The system's own
host name is not changed.

Example:
  fleet node rename mi-0123456789abcdef0 web1

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), clientFlags(), timeoutFlag()),
			}, 2, 2, e.nodeRename),
			e.nodeRmCommand(),
		},
	}
}

func labelFlag() []cli.Flag {
	return []cli.Flag{&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"},
		Usage: "only hosts with the label `KEY=VALUE`; KEY=A,B is either; repeated, all must hold"}}
}

// labelFilters reads --label.
func labelFilters(c *cli.Context) ([]fleet.LabelFilter, error) {
	var all []fleet.LabelFilter
	for _, text := range c.StringSlice("label") {
		key, values, hasValues := strings.Cut(text, "=")
		if key == "" {
			return nil, usagef("--label %q is not KEY or KEY=VALUE", text)
		}
		f := fleet.LabelFilter{Key: key}
		if hasValues {
			f.Values = strings.Split(values, ",")
		}
		all = append(all, f)
	}
	return all, nil
}

func (e *env) nodeLs(c *cli.Context) error {
	labels, err := labelFilters(c)
	if err != nil {
		return err
	}
	req := fleet.DescribeNodesRequest{Nodes: c.Args().Slice(), Labels: labels,
		PingStatus: splitCommas([]string{c.String("status")}), Removed: c.Bool("removed")}
	if req.Removed && len(req.PingStatus) > 0 {
		return usagef("--removed and --status exclude each other")
	}
	for _, s := range req.PingStatus {
		if s != fleet.PingOnline && s != fleet.PingConnectionLost && s != fleet.PingUnknown {
			return unknownValue("--status", s, fleet.PingOnline, fleet.PingConnectionLost, fleet.PingUnknown)
		}
	}
	api, err := e.connect(c)
	if isNoCredential(err) && len(req.Nodes) == 0 && len(labels) == 0 && len(req.PingStatus) == 0 && !req.Removed {
		return e.localNodes(c, err)
	}
	if err != nil {
		return err
	}
	defer api.Close()
	nodes, err := describeNodes(c, api, req)
	if err != nil {
		return err
	}
	return e.print(c, result{
		value: fleet.DescribeNodesResult{Nodes: nodes}, names: nodeNames(nodes),
		table: func(w io.Writer) {
			if req.Removed {
				e.removedTable(w, nodes)
			} else {
				e.nodeTable(w, nodes)
			}
		},
	})
}

// describeNodes fetches all pages.
func describeNodes(c *cli.Context, api *client.Client, req fleet.DescribeNodesRequest) ([]fleet.NodeView, error) {
	nodes := []fleet.NodeView{}
	for {
		var page fleet.DescribeNodesResult
		if err := api.Call(c.Context, "DescribeNodes", req, &page); err != nil {
			return nil, err
		}
		nodes = append(nodes, page.Nodes...)
		if page.NextToken == "" {
			return nodes, nil
		}
		req.NextToken = page.NextToken
	}
}

func nodeNames(nodes []fleet.NodeView) []string {
	all := make([]string, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, string(n.InstanceId))
	}
	return all
}

func (e *env) nodeTable(w io.Writer, nodes []fleet.NodeView) {
	slices.SortFunc(nodes, func(a, b fleet.NodeView) int {
		if byName := naturalCompare(a.Name, b.Name); byName != 0 {
			return byName
		}
		return strings.Compare(string(a.InstanceId), string(b.InstanceId))
	})
	t := newTable("NAME", "ID", "ROLE", "STATUS", "HEARD", "REACH", "ADDRESS", "VERSION", "LABELS")
	byID := namesOf(nodes)
	for _, n := range nodes {
		t.add(n.Name, string(n.InstanceId), roleText(n.Role, n.Leader), n.PingStatus, ago(e.now(), n.LastPing), reachText(n.Reach, byID[n.ReachVia]), n.Address,
			n.AgentVersion, labelText(n.Labels))
	}
	t.write(w)
	for _, n := range nodes {
		for _, code := range n.Warnings {
			e.warningLines([]fleet.Warning{{Message: n.Name + " warns: " + code}})
		}
	}
}

func roleText(role string, leader bool) string {
	if leader {
		return "leader"
	}
	return role
}

// reachText says how the quorum calls a host.
func reachText(reach, via string) string {
	if reach == fleet.ReachRelayed {
		return strings.TrimSpace(reach + " " + via)
	}
	return reach
}

// namesOf are the names of nodes, where they differ from one another or not.
func namesOf(nodes []fleet.NodeView) map[fleet.NodeID]string {
	names := map[fleet.NodeID]string{}
	for _, n := range nodes {
		names[n.InstanceId] = n.Name
	}
	return names
}

func labelText(labels map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, k+"="+labels[k])
	}
	return strings.Join(all, " ")
}

// localNodes lists what this host knows without a credential.
func (e *env) localNodes(c *cli.Context, noCredential error) error {
	if err := checkForm(c); err != nil {
		return err
	}
	local, err := e.local(c).Nodes(c.Context)
	if err != nil {
		return noCredential
	}
	names := make([]string, 0, len(local.Nodes))
	for _, n := range local.Nodes {
		names = append(names, string(n.InstanceId))
	}
	fmt.Fprintf(e.err, "this host's own copy, confirmed %s (no operator credential)\n", ago(e.now(), local.AsOf))
	return e.print(c, result{value: local, names: names, table: func(w io.Writer) {
		slices.SortFunc(local.Nodes, func(a, b fleet.LocalNode) int { return naturalCompare(a.Name, b.Name) })
		t := newTable("NAME", "ID", "ROLE", "GOSSIP", "ADDRESS", "LABELS")
		for _, n := range local.Nodes {
			t.add(n.Name, string(n.InstanceId), n.Role, n.Gossip, n.Address, labelText(n.Labels))
		}
		t.write(w)
	}})
}

// oneNode finds the node that a person means.
func oneNode(c *cli.Context, api *client.Client, name string, brief bool) (*fleet.NodeView, error) {
	nodes, err := describeNodes(c, api, fleet.DescribeNodesRequest{Nodes: []string{name}, Brief: brief})
	if err != nil {
		return nil, err
	}
	return theOne(nodes, name)
}

// theOne refuses a name that several hosts have: each has an ID of its own.
func theOne(nodes []fleet.NodeView, name string) (*fleet.NodeView, error) {
	if len(nodes) == 1 {
		return &nodes[0], nil
	}
	return nil, fleet.Errorf(fleet.Conflict, "%d nodes are called %s", len(nodes), name).
		WithHint("name it by its ID: %s; or give one another name: fleet node rename ID NAME", strings.Join(nodeNames(nodes), ", "))
}

func (e *env) nodeShow(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	n, err := oneNode(c, api, c.Args().First(), false)
	if err != nil {
		return e.showRemoved(c, api, c.Args().First(), err)
	}
	return e.print(c, result{value: n, names: []string{string(n.InstanceId)}, table: func(w io.Writer) {
		properties(w, "name", n.Name, "ID", string(n.InstanceId), "role", roleText(n.Role, n.Leader), "status", n.PingStatus,
			"heard", ago(e.now(), n.LastPing), "reach", reachText(n.Reach, string(n.ReachVia)), "address", n.Address, "version", n.AgentVersion, "labels", labelText(n.Labels),
			"enrolled", date(n.Enrolled), "activation", string(n.ActivationId), "replaces", string(n.Replaces), "warnings", strings.Join(n.Warnings, " "))
	}})
}

func (e *env) nodeLabel(c *cli.Context) error {
	set := []ssm.Tag{}
	var remove []string
	for _, arg := range c.Args().Tail() {
		key, value, isSet := strings.Cut(arg, "=")
		removed, isRemove := strings.CutSuffix(arg, "-")
		switch {
		case isSet:
			if err := fleet.CheckLabel(key, value); err != nil {
				return err
			}
			set = append(set, ssm.Tag{Key: key, Value: value})
		case isRemove:
			if err := fleet.CheckLabel(removed, ""); err != nil {
				return err
			}
			remove = append(remove, removed)
		default:
			return usagef("%q is neither KEY=VALUE nor KEY-", arg)
		}
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	n, err := oneNode(c, api, c.Args().First(), true)
	if err != nil {
		return err
	}
	if len(set) > 0 {
		err = api.Call(c.Context, "AddTagsToResource", ssm.AddTagsToResourceRequest{
			ResourceType: ssm.ResourceManagedInstance, ResourceId: string(n.InstanceId), Tags: set,
		}, nil)
		if err != nil {
			return err
		}
	}
	if len(remove) > 0 {
		err = api.Call(c.Context, "RemoveTagsFromResource", ssm.RemoveTagsFromResourceRequest{
			ResourceType: ssm.ResourceManagedInstance, ResourceId: string(n.InstanceId), TagKeys: remove,
		}, nil)
		if err != nil {
			return err
		}
	}
	var tags ssm.ListTagsForResourceResult
	err = api.Call(c.Context, "ListTagsForResource", ssm.ListTagsForResourceRequest{
		ResourceType: ssm.ResourceManagedInstance, ResourceId: string(n.InstanceId),
	}, &tags)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	for _, tag := range tags.TagList {
		labels[tag.Key] = tag.Value
	}
	return e.print(c, result{value: tags, names: []string{string(n.InstanceId)}, table: func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s\n", escapeCell(n.Name), firstOf(escapeCell(labelText(labels)), "no labels"))
	}})
}

func (e *env) nodeRename(c *cli.Context) error {
	name := c.Args().Get(1)
	if err := fleet.CheckNodeName(name); err != nil {
		return usagef("%s", err)
	}
	if _, err := fleet.ParseNodeID(name); err == nil {
		return usagef("the name %s has the form of a node ID", name)
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	n, err := oneNode(c, api, c.Args().First(), true)
	if err != nil {
		return err
	}
	err = api.Call(c.Context, "RenameNode", fleet.RenameNodeRequest{InstanceId: string(n.InstanceId), Name: name}, nil)
	if err != nil {
		return err
	}
	was := n.Name
	n.Name = name
	return e.print(c, result{value: n, names: []string{string(n.InstanceId)}, table: func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s  was %s\n", n.InstanceId, escapeCell(name), escapeCell(was))
	}})
}

// until is how long something still lasts.
func until(now time.Time, at fleet.Instant) string {
	d := time.Unix(0, at.Nanos()).Sub(now)
	if d <= 0 {
		return "expired"
	}
	return "in " + short(d)
}
