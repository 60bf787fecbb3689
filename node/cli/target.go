package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/nodeset"
	"fleet/node/ssm"
)

func (e *env) targetCommand() *cli.Command {
	return &cli.Command{
		Name: "target", Aliases: []string{"targets"}, Category: categoryNouns, Usage: "choices of hosts that are saved under a name",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list saved targets",
				Description: `Examples:
  fleet target ls
  fleet target ls -o name

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.targetLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "NAME", Usage: "show a saved target and the hosts that it means now",
				Description: `Example:
  fleet target show web

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.targetShow),
			leaf(&cli.Command{
				Name: "put", ArgsUsage: "NAME [SET...]", Usage: "save a target, or replace it",
				Description: `A SET is a node set as "fleet run" takes it, other targets (@db) included. Labels
narrow it; without a SET they select by themselves. The target is the definition,
not the hosts: those are looked up when it is used, "fleet run" shows and signs
them. Use it as --target NAME, or as @NAME in a node set.

Examples:
  fleet target put web 'web[01-20]' --description "the front row"
  fleet target put prod-db --label env=prod --label role=db
  fleet target put canary '@web&*1'

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), []cli.Flag{
					&cli.StringSliceFlag{Name: "node", Aliases: []string{"w"}, Usage: "the hosts `SET`, as the argument"},
					&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"},
						Usage: "hosts with the label `KEY=VALUE`; KEY=A,B is either; repeated, all must hold"},
					&cli.StringFlag{Name: "description", Usage: "`TEXT` that is kept with it"},
				}, clientFlags(), timeoutFlag()),
			}, 1, -1, e.targetPut),
			leaf(&cli.Command{
				Name: "rm", Aliases: []string{"delete"}, ArgsUsage: "NAME...", Usage: "forget saved targets",
				Description: `The hosts and the commands that ran on them stay.

Example:
  fleet target rm web

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(clientFlags(), timeoutFlag()),
			}, 1, -1, e.targetRm),
		},
	}
}

// describeTargets lists saved targets: those named, or all.
func describeTargets(c *cli.Context, api *client.Client, names ...string) (*fleet.DescribeTargetsResult, error) {
	all := &fleet.DescribeTargetsResult{Targets: []fleet.TargetView{}}
	req := fleet.DescribeTargetsRequest{Names: names}
	for {
		var page fleet.DescribeTargetsResult
		if err := api.Call(c.Context, "DescribeTargets", req, &page); err != nil {
			return nil, err
		}
		all.Targets = append(all.Targets, page.Targets...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			return all, nil
		}
	}
}

// findTarget finds one saved target; for a name that there is not, it knows a
// similar one.
func findTarget(c *cli.Context, api *client.Client, name string) (*fleet.TargetView, error) {
	found, err := describeTargets(c, api, name)
	if err == nil {
		return &found.Targets[0], nil
	}
	if fleet.KindOf(err) != fleet.NotFound {
		return nil, err
	}
	all, allErr := describeTargets(c, api)
	if allErr != nil {
		return nil, err // the first says more
	}
	var names []string
	for _, t := range all.Targets {
		names = append(names, string(t.Name))
	}
	if s := suggest(names, name); s != "" {
		return nil, fleet.Errorf(fleet.NotFound, "there is no target %q", name).WithHint("did you mean %s? see which there are: fleet target ls", s)
	}
	return nil, err
}

func (e *env) targetLs(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	all, err := describeTargets(c, api)
	if err != nil {
		return err
	}
	names := []string{}
	for _, t := range all.Targets {
		names = append(names, string(t.Name))
	}
	return e.print(c, result{value: all, names: names, table: func(w io.Writer) {
		t := newTable("NAME", "NODES", "LABELS", "CHANGED", "BY", "DESCRIPTION")
		for _, s := range all.Targets {
			t.add(string(s.Name), cut(s.NodeSet, 40), selectorText(s.Targets), date(s.Modified), string(s.Operator), s.Description)
		}
		t.write(w)
	}})
}

// selectorText writes selectors as they are typed: "env=prod,test rack".
func selectorText(selectors []fleet.Target) string {
	var all []string
	for _, s := range selectors {
		if key, isTag := strings.CutPrefix(s.Key, "tag:"); isTag {
			all = append(all, key+"="+strings.Join(s.Values, ","))
		} else {
			all = append(all, strings.Join(s.Values, ","))
		}
	}
	return strings.Join(all, " ")
}

// targetDetail is what target show prints as JSON.
type targetDetail struct {
	Target fleet.TargetView `json:"Target"`
	Nodes  []fleet.NodeView `json:"Nodes"`
}

func (e *env) targetShow(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	t, err := findTarget(c, api, c.Args().First())
	if err != nil {
		return err
	}
	d, err := e.membersOf(c, api, *t)
	if err != nil {
		return err
	}
	return e.print(c, result{value: d, names: nodeNames(d.Nodes), table: func(w io.Writer) {
		t := d.Target
		properties(w, "name", string(t.Name), "description", t.Description, "nodes", t.NodeSet, "labels", selectorText(t.Targets),
			"changed", date(t.Modified), "by", string(t.Operator), "hosts now", count(len(d.Nodes), "host"))
		if len(d.Nodes) == 0 {
			return
		}
		fmt.Fprintln(w)
		rows := newTable("NAME", "ID", "LABELS")
		for _, n := range d.Nodes {
			rows.add(n.Name, string(n.InstanceId), labelText(n.Labels))
		}
		rows.write(w)
	}})
}

// membersOf is the hosts that a target means now.
func (e *env) membersOf(c *cli.Context, api *client.Client, t fleet.TargetView) (*targetDetail, error) {
	d, err := newDirectory(c, api)
	if err != nil {
		return nil, err
	}
	ids, err := d.members(string(t.Name), nil)
	if err != nil {
		return nil, err
	}
	detail := &targetDetail{Target: t, Nodes: []fleet.NodeView{}}
	for _, id := range ids {
		detail.Nodes = append(detail.Nodes, *d.byWord[id][0])
	}
	slices.SortFunc(detail.Nodes, func(a, b fleet.NodeView) int { return naturalCompare(a.Name, b.Name) })
	e.notes(d.notes)
	return detail, nil
}

// notes writes what was noticed beside the result.
func (e *env) notes(all []string) {
	for _, n := range all {
		fmt.Fprintf(e.err, "note: %s\n", escapeCell(n))
	}
}

func (e *env) targetPut(c *cli.Context) error {
	name, err := fleet.ParseTargetName(c.Args().First())
	if err != nil {
		return err
	}
	labels, err := labelFilters(c)
	if err != nil {
		return err
	}
	sets := slices.Concat(c.StringSlice("node"), c.Args().Tail())
	for _, set := range sets {
		if err := checkSet(set); err != nil {
			return err
		}
	}
	if len(sets) == 0 && len(labels) == 0 {
		return usagef("which hosts is %s?", name).withHint("a node set, as in: fleet target put %s 'web[01-20]', or --label KEY=VALUE", name)
	}
	req := fleet.PutTargetRequest{Name: name, Description: c.String("description"), NodeSet: strings.Join(sets, ",")}
	var send ssm.SendCommandRequest
	(&selection{labels: labels}).fill(&send)
	for _, t := range send.Targets {
		req.Targets = append(req.Targets, fleet.Target(t))
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	var saved fleet.TargetView
	if err := api.Call(c.Context, "PutTarget", req, &saved); err != nil {
		return err
	}
	// It is saved. Whom it means now is a help, and may be nobody yet.
	d, err := e.membersOf(c, api, saved)
	if err != nil {
		fmt.Fprintf(e.err, "%s is saved, but cannot be used: %s\n", name, escapeCell(err.Error()))
		return exitError(ExitFailed)
	}
	return e.print(c, result{value: saved, names: []string{string(saved.Name)}, table: func(w io.Writer) {
		var names []string
		for _, n := range d.Nodes {
			names = append(names, n.Name)
		}
		fmt.Fprintf(w, "%s  %s\n", saved.Name, escapeCell(strings.TrimSpace(count(len(names), "host")+"  "+foldNames(names))))
	}})
}

// checkSet reads a node set without a fleet: what is wrong with its form.
func checkSet(set string) error {
	if strings.TrimSpace(set) == "" {
		return usagef("a node set is empty")
	}
	_, err := nodeset.Expand(set, maxNamed, nodeset.Fleet{
		Group: func(name string) ([]string, error) {
			if name != everyNode {
				if _, err := fleet.ParseTargetName(name); err != nil {
					return nil, err
				}
			}
			return nil, nil
		},
		Match: func(string) []string { return nil },
	})
	return err
}

func (e *env) targetRm(c *cli.Context) error {
	var names []fleet.TargetName
	for _, arg := range c.Args().Slice() {
		name, err := fleet.ParseTargetName(arg)
		if err != nil {
			return err
		}
		names = append(names, name)
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	for _, name := range names {
		if err := api.Call(c.Context, "DeleteTarget", fleet.DeleteTargetRequest{Name: name}, nil); err != nil {
			return err
		}
	}
	return nil
}
