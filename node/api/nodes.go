package api

import (
	"cmp"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/nodeset"
	"fleet/node/presence"
	"fleet/node/ssm"
	"fleet/raftfsm/state"
)

const (
	maxNodesPage  = 1000
	maxFilters    = 20
	maxNodeFilter = 1000
)

// said is what was said lately about the fleet, beside what was decided.
type said struct {
	seen   map[fleet.NodeID]presence.Seen
	quorum control.QuorumView
	now    time.Time
	lost   time.Duration
}

// ask asks the voters for what they have heard and who they are, both at once:
// either may wait for a voter that does not answer.
func (c *call) ask(ctx context.Context) (*said, error) {
	s := &said{now: c.cfg.Now(), lost: c.cfg.Lost}
	var err error
	var both sync.WaitGroup
	both.Go(func() { s.seen = c.cfg.Control.Presence(ctx) })
	both.Go(func() { s.quorum, err = c.cfg.Control.Quorum(ctx) })
	both.Wait()
	return s, err
}

// ping is how a host seems.
func (s *said) ping(id fleet.NodeID) string {
	seen, ok := s.seen[id]
	switch {
	case !ok || seen.LastSeen.IsZero():
		return fleet.PingUnknown
	case s.now.Sub(seen.LastSeen) > s.lost && !connected(seen):
		return fleet.PingConnectionLost
	}
	return fleet.PingOnline
}

// connected reports whether a voter has a connection that the host opened, on
// which pings are answered. That gossip has the host for dead is never asked:
// any member could say so.
func connected(seen presence.Seen) bool {
	for _, r := range seen.Reach {
		if r.Reverse {
			return true
		}
	}
	return false
}

func (s *said) role(id fleet.NodeID) string {
	for _, server := range s.quorum.Servers {
		if server.ID == id {
			if server.Voter {
				return fleet.RoleNameVoter
			}
			return fleet.RoleNameEligible
		}
	}
	return fleet.RoleNameAgent
}

func (s *said) view(n *fleet.Node) fleet.NodeView {
	v := fleet.NodeView{
		InstanceId: n.ID, Name: n.Name, PublicKey: n.Key[:], Address: n.Address, Labels: n.Labels,
		Role: s.role(n.ID), Leader: s.quorum.Leader == n.ID, PingStatus: s.ping(n.ID),
		ActivationId: n.Activation, Replaces: n.Replaces, Enrolled: fleet.InstantOf(n.Enrolled),
	}
	v.Reach, v.ReachVia = s.reach(n.ID)
	if seen, ok := s.seen[n.ID]; ok {
		v.AgentVersion, v.Warnings = seen.Version, seen.Warnings
		if !seen.Program.IsZero() {
			v.AgentDigest = seen.Program.String()
		}
		if seen.Starts >= fleet.UnstableStarts {
			v.Warnings = append(slices.Clone(v.Warnings), fleet.WarnUnstable)
		}
		if !seen.LastSeen.IsZero() {
			v.LastPing = fleet.InstantOf(seen.LastSeen.UnixNano())
		}
	}
	return v
}

// reach is how the leader gets to a host, by what it and the others say.
func (s *said) reach(id fleet.NodeID) (how string, via fleet.NodeID) {
	of := s.seen[id].Reach
	leader := of[s.quorum.Leader]
	var others []fleet.NodeID
	for voter, r := range of {
		if r.Reverse && voter != s.quorum.Leader {
			others = append(others, voter)
		}
	}
	slices.Sort(others)
	known := s.quorum.Leader != ""
	switch {
	case known && !leader.Reverse && len(others) == 0 && s.ping(id) == fleet.PingConnectionLost:
		return fleet.ReachUnreachable, "" // whatever was once known of dialling it
	case leader.Dial == presence.Answers:
		return fleet.ReachDirect, ""
	case leader.Reverse && leader.Dial == presence.NotDialled:
		return "", "" // it is called, and one does not know yet whether it could be dialled
	case leader.Reverse:
		return fleet.ReachReverse, ""
	case len(others) > 0 && known:
		return fleet.ReachRelayed, others[0]
	case leader.Dial == presence.Silent:
		return fleet.ReachUnreachable, ""
	}
	return "", ""
}

func nodeKey(n *fleet.Node) string { return string(n.ID) }

func describeNodes(ctx context.Context, c *call, store *state.Store,
	req *fleet.DescribeNodesRequest) (*fleet.DescribeNodesResult, error) {
	size, err := pageSize(req.MaxResults, 1, maxNodesPage)
	if err != nil {
		return nil, err
	}
	if req.Removed && len(req.PingStatus) > 0 {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.ValidationException, "Removed and PingStatus exclude each other")
	}
	all := registry{node: store.Node, named: store.NodesByName, list: store.Nodes, gone: store.Removal}
	if req.Removed {
		all, req.Brief = removedNodes(store), true // nothing is said about them any more
	}
	nodes, err := namedNodes(all, req.Nodes)
	if err != nil {
		return nil, err
	}
	if len(req.Labels) > maxFilters || len(req.PingStatus) > maxFilters {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.ValidationException, "more than %d filters of one kind", maxFilters)
	}
	if req.Brief && len(req.PingStatus) > 0 {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.ValidationException, "Brief and PingStatus exclude each other")
	}
	s := &said{}
	if !req.Brief {
		if s, err = c.ask(ctx); err != nil {
			return nil, err
		}
	}
	nodes = slices.DeleteFunc(nodes, func(n *fleet.Node) bool {
		return !hasLabels(n, req.Labels) || len(req.PingStatus) > 0 && !slices.Contains(req.PingStatus, s.ping(n.ID))
	})
	page, next, err := pageOf(nodes, nodeKey, req.NextToken, size)
	if err != nil {
		return nil, err
	}
	result := &fleet.DescribeNodesResult{Nodes: make([]fleet.NodeView, 0, len(page)), NextToken: next}
	for _, n := range page {
		v := s.view(n)
		if req.Brief {
			v.Role, v.PingStatus, v.Reach, v.ReachVia = "", "", "", ""
		}
		if req.Removed {
			v.Removed = removedView(store.Removal(n.ID))
		}
		result.Nodes = append(result.Nodes, v)
	}
	return result, nil
}

// registry is a list of nodes in which names are looked up.
type registry struct {
	node  func(fleet.NodeID) *fleet.Node
	named func(string) []*fleet.Node
	list  func() []*fleet.Node
	gone  func(fleet.NodeID) *fleet.Removal // nil: it lists those that are gone
}

// removedNodes is the rows of the hosts that are of the fleet no more, as they
// were last.
func removedNodes(store *state.Store) registry {
	var rows []*fleet.Node
	for _, r := range store.Removals() {
		rows = append(rows, &r.Node)
	}
	return registry{
		node: func(id fleet.NodeID) *fleet.Node {
			if r := store.Removal(id); r != nil {
				return &r.Node
			}
			return nil
		},
		named: func(name string) (found []*fleet.Node) {
			for _, n := range rows {
				if n.Name == name {
					found = append(found, n)
				}
			}
			return found
		},
		list: func() []*fleet.Node { return rows },
	}
}

func removedView(r *fleet.Removal) *fleet.RemovedView {
	return &fleet.RemovedView{At: fleet.InstantOf(r.At), Operator: r.Operator, ReplacedBy: r.ReplacedBy}
}

// nameOf is the name of a host that is, or was, of the fleet.
func nameOf(store *state.Store, id fleet.NodeID) string {
	if n := store.Node(id); n != nil {
		return n.Name
	}
	if r := store.Removal(id); r != nil {
		return r.Node.Name
	}
	return ""
}

// noNode says that there is no node of that name, and which was perhaps meant.
func noNode(in registry, name string) error {
	const hint = "see which there are: fleet node ls"
	e := fleet.CodeErrorf(fleet.NotFound, ssm.InvalidInstanceId, "there is no node %.80q", name)
	var known []string
	for _, n := range in.list() {
		known = append(known, n.Name)
	}
	if near := nodeset.Nearest(known, name); near != "" {
		return e.WithHint("did you mean %s? "+hint, near)
	}
	return e.WithHint(hint)
}

// namedNodes finds nodes by ID or name, in order of their IDs; all nodes when
// none is named. A name finds all hosts that have it.
func namedNodes(in registry, names []string) ([]*fleet.Node, error) {
	if len(names) == 0 {
		return in.list(), nil
	}
	if len(names) > maxNodeFilter {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.ValidationException, "%d names are over the limit of %d",
			len(names), maxNodeFilter)
	}
	found := map[fleet.NodeID]*fleet.Node{}
	for _, name := range names {
		var matches []*fleet.Node
		if id, err := fleet.ParseNodeID(name); err == nil {
			if n := in.node(id); n != nil {
				matches = append(matches, n)
			} else if in.gone != nil && in.gone(id) != nil {
				return nil, fleet.CodeErrorf(fleet.NotFound, ssm.InvalidInstanceId, "%s", state.RemovedText(in.gone(id))).
					WithHint("what is known of it: fleet node show %s", id)
			}
		} else {
			matches = in.named(name)
		}
		if len(matches) == 0 {
			return nil, noNode(in, name)
		}
		for _, n := range matches {
			found[n.ID] = n
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *fleet.Node) int { return cmp.Compare(a.ID, b.ID) }), nil
}

func hasLabels(n *fleet.Node, filters []fleet.LabelFilter) bool {
	for _, f := range filters {
		value, ok := n.Labels[f.Key]
		if !ok || len(f.Values) > 0 && !slices.Contains(f.Values, value) {
			return false
		}
	}
	return true
}

func describeInstanceInformation(ctx context.Context, c *call, store *state.Store,
	req *ssm.DescribeInstanceInformationRequest) (*ssm.DescribeInstanceInformationResult, error) {
	size, err := pageSize(req.MaxResults, 5, 50)
	if err != nil {
		return nil, err
	}
	filters := req.Filters
	for _, f := range req.InstanceInformationFilterList {
		filters = append(filters, ssm.InstanceInformationStringFilter{Key: f.Key, Values: f.ValueSet})
	}
	for _, f := range filters {
		if len(f.Values) == 0 || len(f.Values) > 100 {
			return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidInstanceInformationFilterValue,
				"a filter has 1 to 100 values, %.80q has %d", f.Key, len(f.Values))
		}
	}
	s, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	var kept []*fleet.Node
	for _, n := range store.Nodes() {
		keep := true
		for _, f := range filters {
			matches, err := s.matches(n, f)
			if err != nil {
				return nil, err
			}
			keep = keep && matches
		}
		if keep {
			kept = append(kept, n)
		}
	}
	page, next, err := pageOf(kept, nodeKey, req.NextToken, size)
	if err != nil {
		return nil, err
	}
	list := make([]ssm.InstanceInformation, 0, len(page))
	for _, n := range page {
		list = append(list, s.information(n))
	}
	return &ssm.DescribeInstanceInformationResult{InstanceInformationList: list, NextToken: next}, nil
}

// information is a node in SSM's shape, which has no word for "not heard of
// yet": Inactive comes closest.
func (s *said) information(n *fleet.Node) ssm.InstanceInformation {
	v := s.view(n)
	info := ssm.InstanceInformation{
		InstanceId: string(n.ID), PingStatus: pingOf(v.PingStatus), LastPingDateTime: ssm.Time(v.LastPing),
		AgentVersion: v.AgentVersion, ActivationId: string(n.Activation), RegistrationDate: ssm.Time(v.Enrolled),
		ResourceType: ssm.ResourceManagedInstance, Name: n.Name, ComputerName: n.Name,
	}
	if host, _, err := net.SplitHostPort(n.Address); err == nil {
		info.IPAddress = host
	}
	return info
}

func pingOf(status string) string {
	if status == fleet.PingUnknown {
		return ssm.PingInactive
	}
	return status
}

func (s *said) matches(n *fleet.Node, f ssm.InstanceInformationStringFilter) (bool, error) {
	has := func(v string) (bool, error) { return slices.Contains(f.Values, v), nil }
	switch f.Key {
	case "InstanceIds":
		return has(string(n.ID))
	case "PingStatus":
		return has(pingOf(s.ping(n.ID)))
	case "AgentVersion":
		return has(s.seen[n.ID].Version)
	case "ActivationIds":
		return has(string(n.Activation))
	case "ResourceType":
		return has(ssm.ResourceManagedInstance)
	case "tag-key":
		return slices.ContainsFunc(f.Values, func(k string) bool { _, ok := n.Labels[k]; return ok }), nil
	}
	if label, ok := strings.CutPrefix(f.Key, "tag:"); ok {
		value, has := n.Labels[label]
		return has && slices.Contains(f.Values, value), nil
	}
	return false, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilterKey, "nodes are not filtered by %.80q", f.Key)
}

func listTagsForResource(_ context.Context, _ *call, store *state.Store,
	req *ssm.ListTagsForResourceRequest) (*ssm.ListTagsForResourceResult, error) {
	if req.ResourceType != ssm.ResourceManagedInstance {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidResourceType, "the resource type %.80q has no tags here; %s has",
			req.ResourceType, ssm.ResourceManagedInstance)
	}
	id, err := fleet.ParseNodeID(req.ResourceId)
	if err != nil {
		return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidResourceId, "%v", err)
	}
	n := store.Node(id)
	if n == nil {
		return nil, fleet.CodeErrorf(fleet.NotFound, ssm.InvalidResourceId, "there is no node %s", id)
	}
	return &ssm.ListTagsForResourceResult{TagList: tagsOf(n.Labels)}, nil
}

// tagsOf lists labels by key.
func tagsOf(labels map[string]string) []ssm.Tag {
	tags := make([]ssm.Tag, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		tags = append(tags, ssm.Tag{Key: k, Value: labels[k]})
	}
	return tags
}
