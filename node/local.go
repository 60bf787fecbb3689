package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fleet/node/control"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/presence"
	"fleet/raftfsm/quorum"
)

// LocalStatus is what this host says of itself on its local socket.
func (n *Node) LocalStatus() fleet.LocalStatus {
	now := n.cfg.Now()
	s := fleet.LocalStatus{
		Version: n.cfg.Version, FleetId: n.info.Fleet, FleetName: n.info.Name, InstanceId: n.info.Node, Name: n.Name(),
		Role: n.role(), DataDir: n.dir.Path(), Address: n.advertised(), Leader: n.leader(), HeartbeatAge: -1,
		RingAlive: n.ringAlive(), OpenInvocations: n.runner.Open(), Disk: n.disk.State(), Warnings: n.hostWarnings(),
		Containment: n.cfg.Cgroups.String(),
	}
	switch dial, _ := n.inbound.get(); dial {
	case presence.Answers:
		s.Reach = fleet.ReachDirect
	case presence.Silent:
		s.Reach = fleet.ReachReverse
	}
	if heard := n.beats.LastHeard(); !heard.IsZero() {
		s.HeartbeatAge = now.Sub(heard).Seconds()
		s.QuorumReachable = now.Sub(heard) < 3*n.heartbeatInterval() && s.Leader != "" && n.gone.Load() == nil
	}
	if m := n.member.Load(); m != nil {
		s.Warnings = append(s.Warnings, m.outlook()...)
		s.Warnings = append(s.Warnings, m.warnings()...)
		if left := m.expires().Sub(now); !m.expires().IsZero() && left < control.CertificateWarning {
			s.Warnings = append(s.Warnings, control.CertificateEnds(n.Name(), left))
		}
	}
	if s.Role != fleet.RoleNameVoter {
		if fingerprint, err := n.fingerprint(); err == nil {
			s.Candidate = fingerprint
		}
	}
	return s
}

func (n *Node) heartbeatInterval() time.Duration {
	if n.cfg.Timing.Heartbeat > 0 {
		return n.cfg.Timing.Heartbeat
	}
	return presence.DefaultInterval
}

// LocalNodes is this host's own copy of the fleet's list.
func (n *Node) LocalNodes() fleet.LocalNodes {
	rows, asOf := n.view.list()
	out := fleet.LocalNodes{}
	if !asOf.IsZero() {
		out.AsOf = fleet.InstantOf(asOf.UnixNano())
	}
	voters := map[fleet.NodeID]bool{}
	for _, id := range n.voters() {
		voters[id] = true
	}
	ring := map[fleet.NodeID]string{}
	if r := n.ringRef.Load(); r != nil {
		for _, m := range r.Members() {
			ring[m.Node] = m.State.String()
		}
	}
	for _, row := range rows {
		role := fleet.RoleNameAgent
		if voters[row.ID] {
			role = fleet.RoleNameVoter
		}
		out.Nodes = append(out.Nodes, fleet.LocalNode{
			InstanceId: row.ID, Name: row.Name, Labels: row.Labels, Address: row.Address, Role: role, Gossip: ring[row.ID],
		})
	}
	return out
}

// WarnDiskSlow is the code of the warning that a host of the quorum writes
// slowly.
const WarnDiskSlow = "QuorumDiskSlow"

// hostWarnings says what is wrong with this host and what to do about it.
func (n *Node) hostWarnings() []fleet.Warning {
	var ws []fleet.Warning
	if gone := n.gone.Load(); gone != nil {
		ws = append(ws, fleet.Warning{
			Code: WarnRemoved, Message: gone.Message + ": it runs nothing any more",
			Remedy: "fleet join --token-file FILE makes this host a new node, with a new activation; stop an agent first that is not the service",
		})
	}
	if fenced := n.fenced.Load(); fenced != nil {
		ws = append(ws, *fenced)
	}
	if m := n.member.Load(); m != nil {
		if delay := m.quorum.DiskDelay(); delay > quorum.SlowDisk {
			ws = append(ws, fleet.Warning{
				Code:    WarnDiskSlow,
				Message: fmt.Sprintf("the disk takes %s for each write: the quorum is as slow, and elections take longer", delay.Round(10*time.Millisecond)),
				Remedy:  "look for what else uses this disk, or put " + n.dir.Path() + " on another",
			})
		}
	}
	if w := n.upgradeWarning(); w != nil {
		ws = append(ws, *w)
	}
	if r := n.retired.Load(); r != nil && r.Fenced {
		ws = append(ws, fleet.Warning{
			Code: WarnFenced, Message: fmt.Sprintf("%s; its log of that time is kept in %s", r.Message, n.dir.File(enrol.RetiredDir)),
			Remedy: fmt.Sprintf("make it a voter again: fleet quorum add %s --root-key FILE", n.Name()),
		})
	}
	if clones := n.clones.Load(); clones != nil && len(*clones) > 0 {
		ws = append(ws, fleet.Warning{
			Code:    WarnCloned,
			Message: "several hosts say that they are this node: they are heard from " + strings.Join(*clones, " and "),
			Remedy:  fleet.ClonedRemedy,
		})
	}
	if offset, ok := n.clock.Offset(); ok && offset.Abs() > enrol.ClockWarning {
		ws = append(ws, fleet.Warning{
			Code: WarnClock, Message: enrol.ClockText(offset),
			Remedy: "set the clock: chronyc makestep, or timedatectl set-ntp true",
		})
	}
	if leaf := n.agentTLS.Load().Leaf; leaf != nil {
		left := leaf.NotAfter.Sub(n.cfg.Now())
		if left < leaf.NotAfter.Sub(leaf.NotBefore)/6 {
			ws = append(ws, fleet.Warning{
				Code: WarnCertificate, Message: fmt.Sprintf("this host's certificate expires %s and was not renewed", leaf.NotAfter.UTC().Format(time.DateOnly)),
				Remedy: "check that this host reaches the quorum",
			})
		}
	}
	ws = append(ws, n.disk.Warnings()...)
	ws = append(ws, n.gossipWarnings()...)
	return append(ws, n.touchWarnings()...)
}

// outlook says how the quorum stands, as this member sees it. (An operator who
// asks the fleet hears the same from node/api, which asks the other voters.)
func (m *member) outlook() []fleet.Warning {
	var ws []fleet.Warning
	trust := m.n.trust.Load()
	if len(trust.Voters) == 1 {
		name := m.n.name(trust.Voters[0].Node)
		ws = append(ws, fleet.Warning{
			Code: "OneVoter", Message: fmt.Sprintf("one voter: when %s stops, nothing can be decided", name),
			Remedy: "fleet quorum add NODE NODE --root-key FILE",
		})
	}
	if m.quorum.Leader() == "" {
		ws = append(ws, fleet.Warning{
			Code: "NoQuorum", Message: "no leader: nothing can be decided now",
			Remedy: "fleet quorum ls shows which voters do not answer; start fleet there",
		})
	}
	return ws
}

// warnings says what only this member knows to be wrong with the quorum: which
// voters refused to sign while it led, and when its own certificate ends. A
// voter that does not answer is warned of as such, not as one that refuses.
func (m *member) warnings() []fleet.Warning {
	ws := append(m.clockWarning(), m.storeWarnings()...)
	ws = append(ws, m.stateWarnings()...)
	if m.n.Leads() {
		ws = append(ws, m.relayWarnings()...)
		refusals := m.signer.Refusals()
		for _, id := range slices.Sorted(maps.Keys(refusals)) {
			switch err := refusals[id]; fleet.KindOf(err) {
			case fleet.Unavailable, fleet.Unknown, fleet.NoQuorum:
			default:
				ws = append(ws, fleet.Warning{
					Code: "RefusedToSign", Message: fmt.Sprintf("%s did not sign a ticket: %v", m.n.name(id), err),
					Remedy: "check the clock and the log of " + m.n.name(id),
				})
			}
		}
	}
	if trust := m.n.trust.Load(); trust.Epoch > firstEpoch && len(trust.Voters) < 3 {
		ws = append(ws, fleet.Warning{
			Code: WarnRecovered,
			Message: fmt.Sprintf("the fleet was recovered by force, as epoch %d: what was decided before may be lost in part, "+
				"and until three hosts vote one stolen host is enough to make every host run something", trust.Epoch),
			Remedy: "fleet quorum add NODE NODE --root-key FILE",
		})
	}
	return ws
}

// WarnRecovered is the code of the warning that a fleet was recovered by force
// and has fewer than three voters.
const WarnRecovered = "Recovered"

// firstEpoch is that of a fleet that was never recovered.
const firstEpoch = 1

// expires is when the quorum certificate ends; zero once this host has none.
func (m *member) expires() time.Time {
	cert := m.n.quorumTLS.Load()
	if cert == nil {
		return time.Time{}
	}
	return cert.Leaf.NotAfter
}

// name is a host's name, or its ID where the name is not known.
func (n *Node) name(id fleet.NodeID) string {
	if m := n.member.Load(); m != nil {
		if row := m.fsm.Store().Node(id); row != nil {
			return row.Name
		}
	}
	return string(id)
}
