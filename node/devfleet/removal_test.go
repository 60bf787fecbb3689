package devfleet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fleet/node"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
)

// TestRemovedHost removes a host while it runs a command: the command ends, the
// host is shut out everywhere and says so itself, and its key never comes back.
func TestRemovedHost(t *testing.T) {
	f := startFleet(t, 5, 3)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	c := s.client
	gone, other := s.host("node05"), s.host("node04")
	await(t, "the rings are whole", func() bool {
		return !slices.ContainsFunc(f.Nodes(), func(n *node.Node) bool { return n.LocalStatus().RingAlive != 5 })
	})
	id := s.send(t, s.sign(t, "SendCommand", s.script("sleep 600", gone.ID())))
	await(t, "the host runs the command", func() bool { return s.states(t, id)[gone.ID()] == "InProgress" })

	err := c.Call(t.Context(), "DeregisterManagedInstance", ssm.DeregisterManagedInstanceRequest{InstanceId: string(s.host("node02").ID())}, nil)
	if fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "is of the quorum") {
		t.Errorf("removing a voter: %v", err)
	}
	s.call(t, "DeregisterManagedInstance", ssm.DeregisterManagedInstanceRequest{InstanceId: string(gone.ID())}, nil)

	await(t, "its invocation ended, as Interrupted", func() bool {
		return s.states(t, id)[gone.ID()] == "Failed the host was removed from the fleet before its result came"
	})
	await(t, "the host says that it was removed", func() bool {
		return slices.ContainsFunc(gone.LocalStatus().Warnings, func(w fleet.Warning) bool {
			return w.Code == node.WarnRemoved && strings.Contains(w.Message, "was removed from the fleet by dev at ")
		})
	})
	if st := gone.LocalStatus(); st.QuorumReachable {
		t.Error("the removed host reaches the quorum")
	}
	await(t, "the other hosts forget it", func() bool {
		return !slices.ContainsFunc(other.LocalNodes().Nodes, func(n fleet.LocalNode) bool { return n.InstanceId == gone.ID() })
	})
	await(t, "the rings of the others drop it", func() bool {
		return !slices.ContainsFunc(f.Nodes(), func(n *node.Node) bool { return n != gone && n.LocalStatus().RingAlive != 4 })
	})
	var listed fleet.DescribeNodesResult
	s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Removed: true}, &listed)
	if len(listed.Nodes) != 1 || listed.Nodes[0].InstanceId != gone.ID() || listed.Nodes[0].Removed == nil || listed.Nodes[0].Removed.Operator != "dev" {
		t.Errorf("removed nodes: %+v", listed.Nodes)
	}

	// Its key is refused at every door, whatever it shows.
	dir := f.dataDir(5)
	if _, err := enrol.RejoinHost(t.Context(), enrol.RejoinOptions{DataDir: dir}); fleet.KindOf(err) != fleet.Denied ||
		!strings.Contains(err.Error(), "was removed from the fleet by dev") {
		t.Errorf("rejoin: %v", err)
	}
	token, err := f.token(t.Context(), c, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "copy")
	copyKey(t, dir, again)
	_, err = enrol.Join(t.Context(), enrol.JoinOptions{DataDir: again, Token: token, NodeName: "back", Advertise: gone.Address()})
	if fleet.KindOf(err) != fleet.Denied || !strings.Contains(err.Error(), "was removed from the fleet") {
		t.Errorf("join with the old key: %v", err)
	}
	// Its directory may become that of a new host, which has a key of its own.
	r, err := enrol.Join(t.Context(), enrol.JoinOptions{DataDir: dir, Token: token, NodeName: "back", Advertise: gone.Address()})
	if err != nil || r.Node == gone.ID() {
		t.Errorf("join as a new host: %+v, %v", r, err)
	}
}

// TestReplacedHost puts a new machine in the place of a host that runs a
// command: the old one is shut out as if it had been removed, the new one is
// called and labelled like it, and what ran on the old one can be read.
func TestReplacedHost(t *testing.T) {
	f := startFleet(t, 4, 3)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	old := s.host("node04")
	s.call(t, "AddTagsToResource", ssm.AddTagsToResourceRequest{ResourceType: ssm.ResourceManagedInstance, ResourceId: string(old.ID()),
		Tags: []ssm.Tag{{Key: "role", Value: "db"}}}, nil)
	id := s.send(t, s.sign(t, "SendCommand", s.script("echo begun; sleep 600", old.ID())))
	await(t, "the host runs the command", func() bool { return s.states(t, id)[old.ID()] == "InProgress" })

	code, err := identity.NewCode()
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.token(t.Context(), s.client, 1)
	if err != nil {
		t.Fatal(err)
	}
	key := code.Key().Public()
	var made ssm.CreateActivationResult
	s.call(t, "CreateActivation", ssm.CreateActivationRequest{PublicKey: key[:], Replaces: string(old.ID())}, &made)
	token.Activation, token.Code = fleet.ActivationID(made.ActivationId), code
	r, err := enrol.Join(t.Context(), enrol.JoinOptions{DataDir: filepath.Join(t.TempDir(), "new"), Token: token, Advertise: "127.0.0.1:9"})
	if err != nil || r.NodeName != "node04" || r.Replaces != old.ID() || r.Node == old.ID() {
		t.Fatalf("join: %+v, %v", r, err)
	}
	await(t, "its invocation ended, as Interrupted", func() bool {
		return s.states(t, id)[old.ID()] == "Failed the host was replaced by another before its result came"
	})
	await(t, "the old host says that it was replaced", func() bool {
		return slices.ContainsFunc(old.LocalStatus().Warnings, func(w fleet.Warning) bool {
			return w.Code == node.WarnRemoved && strings.Contains(w.Message, "was replaced by node "+string(r.Node))
		})
	})
	var listed fleet.DescribeNodesResult
	s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{"node04"}}, &listed)
	if len(listed.Nodes) != 1 || listed.Nodes[0].InstanceId != r.Node || listed.Nodes[0].Replaces != old.ID() || listed.Nodes[0].Labels["role"] != "db" {
		t.Errorf("node04 is %+v", listed.Nodes)
	}
	s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Removed: true}, &listed)
	if len(listed.Nodes) != 1 || listed.Nodes[0].Removed == nil || listed.Nodes[0].Removed.ReplacedBy != r.Node {
		t.Errorf("removed: %+v", listed.Nodes)
	}
	var invocation ssm.GetCommandInvocationResult
	s.call(t, "GetCommandInvocation", ssm.GetCommandInvocationRequest{CommandId: string(id), InstanceId: string(old.ID())}, &invocation)
	if invocation.StatusDetails != "Interrupted" {
		t.Errorf("the command of the old host: %+v", invocation)
	}
}

// TestRenamedHost learns its name by itself and keeps it.
func TestRenamedHost(t *testing.T) {
	f := startFleet(t, 2, 1)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	n := s.host("node02")
	s.call(t, "RenameNode", fleet.RenameNodeRequest{InstanceId: string(n.ID()), Name: "web1"}, nil)
	await(t, "the host has its new name", func() bool { return n.LocalStatus().Name == "web1" && n.Name() == "web1" })
	await(t, "it is written down", func() bool {
		_, info, err := enrol.OpenDir(f.dataDir(2))
		return err == nil && info.NodeName == "web1" && info.Node == n.ID()
	})
}

// copyKey puts the agent key of a data directory into a new one.
func copyKey(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, "keys", "agent.key"))
	if err == nil {
		err = os.MkdirAll(filepath.Join(to, "keys"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "keys", "agent.key"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
