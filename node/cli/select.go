package cli

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/nodeset"
	"fleet/node/ssm"
	"fleet/raftfsm/entry"
)

const (
	maxNamed           = entry.MaxTargetNodes
	everyNode          = "*"
	selectTargetsHint  = "--all, --node SET or --label KEY=VALUE"
	tooManyTargetsHint = "select more of them at once with --label"
)

// selectFlags say on which hosts. The short ones are those of ClusterShell.
func selectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "run on every host"},
		&cli.StringSliceFlag{Name: "node", Aliases: []string{"w"},
			Usage: "run on the hosts `SET`: names or IDs, web[01-20], web*, @*; several with commas or repeated"},
		&cli.StringSliceFlag{Name: "exclude", Aliases: []string{"x"}, Usage: "do not run on the hosts `SET`, whatever else selects them"},
		&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"},
			Usage: "run on hosts with the label `KEY=VALUE`; KEY=A,B is either; repeated, all must hold"},
	}
}

// selection is which hosts are meant.
type selection struct {
	all     bool
	sets    []string // node sets, joined
	exclude []string
	labels  []fleet.LabelFilter

	// After resolve.
	nodes []fleet.NodeView // whom it means now
	named bool             // they are sent by ID; if not, the labels select
}

// readSelection reads the flags, and the node set in the place of a command:
// "fleet run web[01-20] -- uname". rest is the words of the command.
func readSelection(c *cli.Context) (s *selection, rest []string, err error) {
	rest = c.Args().Slice()
	s = &selection{all: c.Bool("all"), sets: c.StringSlice("node"), exclude: c.StringSlice("exclude")}
	if s.labels, err = labelFilters(c); err != nil {
		return nil, nil, err
	}
	none := !s.all && len(s.sets) == 0 && len(s.labels) == 0
	if none && len(rest) > 1 && rest[1] == "--" {
		s.sets, rest, none = rest[:1], rest[2:], false
	}
	for flag, sets := range map[string][]string{"--node": s.sets, "--exclude": s.exclude} {
		for _, set := range sets {
			if strings.TrimSpace(set) == "" {
				return nil, nil, usagef("%s names no host", flag)
			}
		}
	}
	switch {
	case s.all && (len(s.sets) > 0 || len(s.labels) > 0):
		return nil, nil, usagef("--all is every host: --node and --label would mean fewer").withHint("all but some: --all --exclude SET")
	case none && len(s.exclude) > 0:
		return nil, nil, usagef("on which hosts?").withHint("--exclude takes hosts away from others: --all --exclude SET")
	case none && slices.ContainsFunc(rest, selects):
		return nil, nil, usagef("on which hosts?").withHint("flags after the first word are the command's own: put %s before it", selectTargetsHint)
	case none:
		return nil, nil, usagef("on which hosts?").withHint(selectTargetsHint)
	}
	// What no fleet could mean is said before one is asked.
	for _, set := range slices.Concat(s.sets, s.exclude) {
		if !strings.ContainsAny(set, "@*?") {
			if _, err := nodeset.Parse(set, maxNamed); err != nil {
				return nil, nil, err
			}
		}
	}
	return s, rest, nil
}

// selects reports whether an argument looks like a flag that selects hosts.
func selects(arg string) bool {
	name, _, _ := strings.Cut(arg, "=")
	return slices.Contains([]string{"--all", "--node", "--label", "-l", "-w", "-a"}, name)
}

// resolve finds out whom the selection means now. Whom it means is decided
// once more, by its labels, when the command is; names and sets become IDs
// here, and what is signed holds the IDs.
func (s *selection) resolve(c *cli.Context, api *client.Client) error {
	if len(s.sets) == 0 && len(s.exclude) == 0 {
		var err error
		s.nodes, err = describeNodes(c, api, fleet.DescribeNodesRequest{Labels: s.labels, Brief: true})
		return err
	}
	d, err := newDirectory(c, api)
	if err != nil {
		return err
	}
	chosen := d.all
	if len(s.sets) > 0 {
		if chosen, err = d.expand("--node", s.sets); err != nil {
			return err
		}
	}
	excluded, err := d.expand("--exclude", s.exclude)
	if err != nil {
		return err
	}
	out := map[fleet.NodeID]bool{}
	for _, n := range excluded {
		out[n.InstanceId] = true
	}
	for _, n := range chosen {
		if !out[n.InstanceId] && hasLabels(n, s.labels) {
			s.nodes = append(s.nodes, n)
		}
	}
	if s.named = true; len(s.nodes) > maxNamed {
		return usagef("%d hosts are named, %d can be", len(s.nodes), maxNamed).withHint(tooManyTargetsHint)
	}
	return nil
}

// hasLabels reports whether filters keep a node, as the quorum decides it.
func hasLabels(n fleet.NodeView, filters []fleet.LabelFilter) bool {
	for _, f := range filters {
		v, ok := n.Labels[f.Key]
		if !ok || len(f.Values) > 0 && !slices.Contains(f.Values, v) {
			return false
		}
	}
	return true
}

// directory is the whole fleet by name, to expand node sets in.
type directory struct {
	all    []fleet.NodeView
	byWord map[string][]*fleet.NodeView // by ID and by name
}

func newDirectory(c *cli.Context, api *client.Client) (*directory, error) {
	all, err := describeNodes(c, api, fleet.DescribeNodesRequest{Brief: true})
	if err != nil {
		return nil, err
	}
	d := &directory{all: all, byWord: map[string][]*fleet.NodeView{}}
	d.index()
	return d, nil
}

func (d *directory) index() {
	for i := range d.all {
		n := &d.all[i]
		d.byWord[string(n.InstanceId)] = append(d.byWord[string(n.InstanceId)], n)
		if n.Name != string(n.InstanceId) {
			d.byWord[n.Name] = append(d.byWord[n.Name], n)
		}
	}
}

// expand is the nodes of node sets. A name that no host has, or several have,
// is refused wherever it stands: who takes away a host that does not exist has
// mistyped one that does.
func (d *directory) expand(flag string, sets []string) ([]fleet.NodeView, error) {
	var nodes []fleet.NodeView
	var missing []string
	var ambiguous error
	seen := map[fleet.NodeID]bool{}
	world := nodeset.Fleet{
		Group: func(name string) ([]string, error) {
			if name == everyNode {
				return nodeNames(d.all), nil
			}
			return nil, fleet.Errorf(fleet.NotFound, "there is no target %q", name)
		},
		Match: func(pattern string) (ids []string) {
			for _, n := range d.all {
				if ok, err := path.Match(pattern, n.Name); ok && err == nil {
					ids = append(ids, string(n.InstanceId))
				}
			}
			return ids
		},
		Name: func(word string) string {
			switch found := d.byWord[word]; len(found) {
			case 0:
				missing = append(missing, word)
				return word
			case 1:
				return string(found[0].InstanceId)
			default:
				if ambiguous == nil {
					ambiguous = sameName(found, word)
				}
				return word
			}
		},
	}
	for _, text := range sets {
		set, err := nodeset.Expand(text, maxNamed, world)
		switch {
		case err != nil:
			return nil, err
		case ambiguous != nil:
			return nil, ambiguous
		case len(missing) > 0:
			return nil, d.unknown(missing)
		case set.Len() == 0:
			// It must not fall back to other selectors.
			return nil, fleet.Errorf(fleet.NotFound, "%s %s names no host", flag, text).WithHint("see which there are: fleet node ls")
		}
		for _, id := range set.Names() {
			if n := d.byWord[id][0]; !seen[n.InstanceId] {
				seen[n.InstanceId] = true
				nodes = append(nodes, *n)
			}
		}
	}
	return nodes, nil
}

func sameName(nodes []*fleet.NodeView, name string) error {
	views := make([]fleet.NodeView, len(nodes))
	for i, n := range nodes {
		views[i] = *n
	}
	_, err := theOne(views, name)
	return err
}

// unknown is the error for names that no host has, all at once.
func (d *directory) unknown(missing []string) error {
	const hint = "see which there are: fleet node ls"
	slices.Sort(missing)
	missing = slices.Compact(missing)
	if len(missing) > 1 {
		return fleet.Errorf(fleet.NotFound, "there are no nodes %s", foldNames(missing)).WithHint(hint)
	}
	var known []string
	for _, n := range d.all {
		known = append(known, n.Name)
	}
	e := fleet.Errorf(fleet.NotFound, "there is no node %q", missing[0])
	if s := suggest(known, missing[0]); s != "" {
		return e.WithHint("did you mean %s? "+hint, s)
	}
	return e.WithHint(hint)
}

// fill writes the selection into the request.
func (s *selection) fill(req *ssm.SendCommandRequest) {
	if s.named {
		ids := nodeNames(s.nodes)
		slices.Sort(ids)
		if len(s.labels) == 0 && len(ids) <= entry.MaxInstanceIDs {
			req.InstanceIds = ids
			return
		}
		req.Targets = append(req.Targets, ssm.Target{Key: "InstanceIds", Values: ids})
	}
	if s.all && !s.named {
		req.Targets = []ssm.Target{{Key: "InstanceIds", Values: []string{everyNode}}}
	}
	for _, l := range s.labels {
		if len(l.Values) == 0 {
			req.Targets = append(req.Targets, ssm.Target{Key: "tag-key", Values: []string{l.Key}})
		} else {
			req.Targets = append(req.Targets, ssm.Target{Key: "tag:" + l.Key, Values: l.Values})
		}
	}
}

// confirmMany asks before a command goes to many hosts, where somebody can
// answer.
func (e *env) confirmMany(c *cli.Context, hosts int) error {
	if c.Bool("yes") || !e.inTTY || hosts < askFrom {
		return nil
	}
	return e.confirm(fmt.Sprintf("Run on %d hosts?", hosts))
}
