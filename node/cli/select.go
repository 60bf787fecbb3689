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
	selectTargetsHint  = "--all, --node SET, --target NAME or --label KEY=VALUE"
	tooManyTargetsHint = "select more of them at once with --label"
)

// selectFlags say on which hosts. The short ones are those of ClusterShell.
func selectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "run on every host"},
		&cli.StringSliceFlag{Name: "node", Aliases: []string{"w"},
			Usage: "run on the hosts `SET`: names or IDs, web[01-20], web*, @TARGET, @*; several with commas or repeated"},
		&cli.StringSliceFlag{Name: "target", Aliases: []string{"g"}, Usage: "run on the hosts of the saved target `NAME`, as --node @NAME; may be repeated"},
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
	notes []string         // what a person should know about that
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
	for _, name := range c.StringSlice("target") {
		if _, err := fleet.ParseTargetName(name); err != nil {
			return nil, nil, err
		}
		s.sets = append(s.sets, "@"+name)
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
		return nil, nil, usagef("on which hosts?").withHint(selectTargetsHint + "; or the hosts first: fleet run SET -- COMMAND")
	}
	// What no fleet could mean is said before one is asked.
	for _, set := range slices.Concat(s.sets, s.exclude) {
		if err := checkSet(set); err != nil {
			return nil, nil, err
		}
	}
	return s, rest, nil
}

// selects reports whether an argument looks like a flag that selects hosts.
func selects(arg string) bool {
	name, _, _ := strings.Cut(arg, "=")
	return slices.Contains([]string{"--all", "--node", "--target", "--label", "-l", "-w", "-g", "-a"}, name)
}

// resolve finds out whom the selection means now. Whom it means is decided
// once more, by its labels, when the command is; names and sets become IDs
// here, and what is signed holds the IDs.
func (s *selection) resolve(c *cli.Context, api *client.Client) error {
	labelled, err := s.labelsOfTarget(c, api)
	if err != nil {
		return err
	}
	if labelled || len(s.sets) == 0 && len(s.exclude) == 0 {
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
	s.notes = d.notes
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

// labelsOfTarget takes a saved target that is the whole selection, and is made
// of labels only, as those labels: so it selects when the command is decided,
// also a host that has just got them.
func (s *selection) labelsOfTarget(c *cli.Context, api *client.Client) (bool, error) {
	if len(s.sets) != 1 || len(s.exclude) > 0 {
		return false, nil
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(s.sets[0]), "@")
	if _, err := fleet.ParseTargetName(name); !ok || err != nil {
		return false, nil
	}
	t, err := findTarget(c, api, name)
	if err != nil {
		return false, err
	}
	labels, ok := targetLabels(*t)
	if !ok || t.NodeSet != "" {
		return false, nil
	}
	s.labels = append(s.labels, labels...)
	return true, nil
}

// targetLabels are the labels of a saved target.
func targetLabels(t fleet.TargetView) ([]fleet.LabelFilter, bool) {
	var targets []ssm.Target
	for _, s := range t.Targets {
		targets = append(targets, ssm.Target(s))
	}
	labels, _, ok := selectors(targets)
	return labels, ok
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
	byWord map[string][]*fleet.NodeView // by ID, one each, and by name

	// target finds a saved target.
	target func(name string) (*fleet.TargetView, error)
	known  map[string][]string // IDs of the nodes of targets that were looked up
	notes  []string            // what a person should know about them
}

func newDirectory(c *cli.Context, api *client.Client) (*directory, error) {
	all, err := describeNodes(c, api, fleet.DescribeNodesRequest{Brief: true})
	if err != nil {
		return nil, err
	}
	d := &directory{all: all, target: func(name string) (*fleet.TargetView, error) { return findTarget(c, api, name) }}
	d.index()
	return d, nil
}

// index enters every node by its ID and its name. A name in the form of an ID
// is not entered: hosts choose their names when they join, and one that took
// another's ID would get what is meant for that.
func (d *directory) index() {
	d.byWord, d.known = map[string][]*fleet.NodeView{}, map[string][]string{}
	for i := range d.all {
		n := &d.all[i]
		d.byWord[string(n.InstanceId)] = append(d.byWord[string(n.InstanceId)], n)
		if _, err := fleet.ParseNodeID(n.Name); err != nil {
			d.byWord[n.Name] = append(d.byWord[n.Name], n)
		}
	}
}

// expand is the nodes of node sets. A name that no host has, or several have,
// is refused wherever it stands: who takes away a host that does not exist has
// mistyped one that does.
func (d *directory) expand(flag string, sets []string) ([]fleet.NodeView, error) {
	var nodes []fleet.NodeView
	seen := map[fleet.NodeID]bool{}
	for _, text := range sets {
		ids, missing, err := d.ids(text, nil)
		switch {
		case err != nil:
			return nil, err
		case len(missing) > 0:
			return nil, d.unknown(missing)
		case len(ids) == 0:
			// It must not fall back to other selectors.
			return nil, fleet.Errorf(fleet.NotFound, "%s %s names no host", flag, text).WithHint("see which there are: fleet node ls")
		}
		for _, id := range ids {
			if n := d.byWord[id][0]; !seen[n.InstanceId] {
				seen[n.InstanceId] = true
				nodes = append(nodes, *n)
			}
		}
	}
	return nodes, nil
}

// members is the IDs of the nodes of a saved target. within are the targets in
// whose node sets it was met. A host of the set that the fleet does not have is
// noted only: a target outlives hosts.
func (d *directory) members(name string, within []string) ([]string, error) {
	if ids, ok := d.known[name]; ok {
		return slices.Clone(ids), nil
	}
	path := append(slices.Clone(within), name)
	if slices.Contains(within, name) {
		return nil, fleet.Errorf(fleet.Invalid, "the target %s means itself: @%s", name, strings.Join(path, " is made of @")).
			WithHint("replace one of them: fleet target put NAME SET")
	}
	t, err := d.target(name)
	if err != nil {
		return nil, err
	}
	labels, ok := targetLabels(*t)
	if !ok && len(t.Targets) > 0 {
		return nil, fleet.Errorf(fleet.Invalid, "the target %s has labels that this program does not understand", name).WithHint("a newer one may")
	}
	ids := nodeNames(d.all)
	if t.NodeSet != "" {
		var missing []string
		if ids, missing, err = d.ids(t.NodeSet, path); err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			d.notes = append(d.notes, fmt.Sprintf("target %s names hosts that are not in the fleet: %s", name, foldNames(missing)))
		}
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return !hasLabels(*d.byWord[id][0], labels) })
	d.known[name] = ids
	return slices.Clone(ids), nil
}

// ids is the IDs of the nodes of a node set, and the names in it, wherever they
// stand, that no node has.
func (d *directory) ids(text string, within []string) (ids, missing []string, err error) {
	var ambiguous error
	set, err := nodeset.Expand(text, maxNamed, nodeset.Fleet{
		Group: func(name string) ([]string, error) {
			if name == everyNode {
				return nodeNames(d.all), nil
			}
			return d.members(name, within)
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
	})
	switch {
	case err != nil:
		return nil, nil, err
	case ambiguous != nil:
		return nil, nil, ambiguous
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	for _, id := range set.Names() {
		if !slices.Contains(missing, id) {
			ids = append(ids, id)
		}
	}
	return ids, missing, nil
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
