package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

func describeQuorum(ctx context.Context, c *call, store *state.Store,
	_ *fleet.DescribeQuorumRequest) (*fleet.DescribeQuorumResult, error) {
	view, err := c.cfg.Control.Quorum(ctx)
	if err != nil {
		return nil, err
	}
	result := &fleet.DescribeQuorumResult{Leader: view.Leader, Members: make([]fleet.QuorumMember, 0, len(view.Servers))}
	if t := view.Trust; t != nil {
		result.Threshold, result.TrustVersion, result.TrustEpoch = t.K, t.Version, t.Epoch
	}
	for _, server := range view.Servers {
		m := fleet.QuorumMember{
			InstanceId: server.ID, Role: fleet.RoleNameEligible, Leader: server.ID == view.Leader,
			Reachable: server.Reachable, AppliedIndex: server.Applied,
		}
		if !server.Expires.IsZero() {
			m.CertificateExpires = fleet.InstantOf(server.Expires.UnixNano())
		}
		if server.Voter {
			m.Role = fleet.RoleNameVoter
		}
		if n := store.Node(server.ID); n != nil {
			m.Name, m.Address = n.Name, n.Address
		}
		if view.Trust != nil {
			for _, v := range view.Trust.Voters {
				if v.Node == server.ID {
					m.Fingerprint = v.Key.Fingerprint()
				}
			}
		}
		result.Members = append(result.Members, m)
	}
	return result, nil
}

func getTrust(ctx context.Context, c *call, store *state.Store, _ *fleet.GetTrustRequest) (*fleet.GetTrustResult, error) {
	trust := store.Trust()
	if trust == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "this host does not hold the fleet's first log entry yet")
	}
	eligible, err := c.cfg.Control.Eligible(ctx)
	if err != nil {
		return nil, err
	}
	return &fleet.GetTrustResult{Trust: trust.Raw(), RootCertificate: store.Fleet().RootCertificate, Eligible: eligible}, nil
}

func getCandidate(ctx context.Context, c *call, store *state.Store,
	req *fleet.GetCandidateRequest) (*fleet.GetCandidateResult, error) {
	id, err := parseInstance(store, string(req.InstanceId))
	if err != nil {
		return nil, err
	}
	candidate, err := c.cfg.Control.Candidate(ctx, id, req.NewIssuer)
	if err != nil {
		return nil, err
	}
	return &fleet.GetCandidateResult{Candidate: candidate}, nil
}

// getStatus also answers from a host's own memory, as far as that goes: it is
// what people ask when nothing else answers.
func getStatus(ctx context.Context, c *call, store *state.Store, _ *fleet.GetStatusRequest) (*fleet.GetStatusResult, error) {
	s, err := c.ask(ctx)
	if err != nil {
		return nil, err
	}
	nodes := store.Nodes()
	f := store.Fleet()
	result := &fleet.GetStatusResult{
		FleetId: f.ID, Name: f.Name, Time: fleet.InstantOf(c.cfg.Now().UnixNano()), Answered: c.cfg.Self, Version: c.cfg.Version,
		Leader: s.quorum.Leader, Nodes: len(nodes), PingStatus: map[string]int{}, OpenCommands: len(store.OpenCommands()),
		FeatureLevel: store.Features(),
	}
	if t := s.quorum.Trust; t != nil {
		result.Threshold, result.TrustVersion = t.K, t.Version
	}
	if n := store.Node(s.quorum.Leader); n != nil {
		result.LeaderName = n.Name
	}
	for _, server := range s.quorum.Servers {
		switch {
		case !server.Voter:
		case server.Reachable:
			result.Voters, result.Reachable = result.Voters+1, result.Reachable+1
		default:
			result.Voters++
		}
	}
	for _, n := range nodes {
		result.PingStatus[s.ping(n.ID)]++
	}
	if c.cfg.Warnings != nil {
		result.Warnings = c.cfg.Warnings()
	}
	result.Warnings = append(result.Warnings, s.warnings(store, result)...)
	return result, nil
}

// unstable names the hosts that start again and again.
func (s *said) unstable(store *state.Store) []fleet.Warning {
	var hosts []string
	for _, n := range store.Nodes() {
		if starts := s.seen[n.ID].Starts; starts >= fleet.UnstableStarts {
			hosts = append(hosts, fmt.Sprintf("%s (%d times)", n.Name, starts))
		}
	}
	if len(hosts) == 0 {
		return nil
	}
	text := strings.Join(hosts[:min(len(hosts), 3)], ", ")
	if len(hosts) > 3 {
		text += fmt.Sprintf(" and %d more", len(hosts)-3)
	}
	return []fleet.Warning{{
		Code: fleet.WarnUnstable, Message: "started again and again in the last ten minutes: " + text,
		Remedy: "journalctl -u fleet on the host says why its agent ends",
	}}
}

// warnings is what the answers of the voters and the heartbeats say is wrong.
func (s *said) warnings(store *state.Store, r *fleet.GetStatusResult) []fleet.Warning {
	var all []fleet.Warning
	for _, server := range s.quorum.Servers {
		if server.Reachable {
			if left := server.Expires.Sub(s.now); !server.Expires.IsZero() && left < control.CertificateWarning {
				all = append(all, control.CertificateEnds(nameOf(store, server.ID), left))
			}
			continue
		}
		name := string(server.ID)
		if n := store.Node(server.ID); n != nil {
			name = n.Name
		}
		if slices.Contains(s.seen[server.ID].Warnings, fleet.WarnQuorumStore) {
			all = append(all, fleet.Warning{
				Code: fleet.WarnQuorumStore, Message: fmt.Sprintf("%s does not vote: its quorum store was refused", name),
				Remedy: fmt.Sprintf("fleet status on %s says why and what to do; it runs commands as before", name),
			})
			continue
		}
		all = append(all, fleet.Warning{
			Code: "VoterUnreachable", Message: fmt.Sprintf("%s of the quorum does not answer", name),
			Remedy: fmt.Sprintf("start fleet on %s, or check the network to it", name),
		})
	}
	newest := uint32(0)
	for _, server := range s.quorum.Servers {
		newest = max(newest, server.Level)
	}
	for _, server := range s.quorum.Servers {
		if server.Level == 0 || server.Level == newest {
			continue
		}
		name := string(server.ID)
		if n := store.Node(server.ID); n != nil {
			name = n.Name
		}
		all = append(all, fleet.Warning{
			Code: "QuorumHostBehind", Message: fmt.Sprintf("%s of the quorum knows feature level %d, others %d: what needs it is not decided", name, server.Level, newest),
			Remedy: "update fleet on " + name,
		})
	}
	if r.Reachable < r.Voters && r.Reachable == r.Voters/2+1 {
		all = append(all, fleet.Warning{
			Code:    "NoSpareVoter",
			Message: fmt.Sprintf("%d of %d voters answer: one less and nothing can be decided", r.Reachable, r.Voters),
			Remedy:  "bring the other voters back",
		})
	}
	for _, n := range store.Nodes() {
		if clones := s.seen[n.ID].Clones; clones != nil {
			all = append(all, fleet.Warning{
				Code: fleet.WarnCloned,
				Message: fmt.Sprintf("several hosts say that they are %s (%s): they are heard from %s; nothing is delivered to them",
					n.Name, n.ID, strings.Join(clones, " and ")),
				Remedy: fleet.ClonedRemedy,
			})
		}
	}
	all = append(all, s.unstable(store)...)
	known := map[string]bool{fleet.WarnCloned: true, fleet.WarnQuorumStore: true} // what the host that answers has said itself
	for _, w := range r.Warnings {
		known[w.Code] = true
	}
	hosts := map[string][]string{}
	for _, n := range store.Nodes() {
		for _, code := range s.seen[n.ID].Warnings {
			if !known[code] {
				hosts[code] = append(hosts[code], n.Name)
			}
		}
	}
	for _, code := range slices.Sorted(maps.Keys(hosts)) {
		names := hosts[code]
		text := strings.Join(names[:min(len(names), 3)], ", ")
		if len(names) > 3 {
			text += fmt.Sprintf(" and %d more", len(names)-3)
		}
		all = append(all, fleet.Warning{Code: code, Message: text + ": " + code, Remedy: "fleet status on the host says more"})
	}
	return all
}
