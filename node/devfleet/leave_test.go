package devfleet

import (
	"errors"
	"strings"
	"testing"

	"fleet/node/enrol"
	"fleet/node/fleet"
)

// TestLeave lets a host go by itself, and not while it runs something, decides,
// or cannot ask.
func TestLeave(t *testing.T) {
	f := startFleet(t, 3, 1)
	s := &scene{Fleet: f, dir: t.TempDir()}
	s.connect(t)
	c := s.client
	voter, gone, alone := s.host("node01"), s.host("node02"), s.host("node03")
	id := s.send(t, s.sign(t, "SendCommand", s.script("sleep 600", gone.ID())))
	await(t, "the host runs the command", func() bool { return s.states(t, id)[gone.ID()] == "InProgress" })

	if _, _, err := voter.Leave(t.Context(), fleet.LeaveRequest{Force: true}); fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "is of the quorum") {
		t.Errorf("a voter: %v", err)
	}
	if _, _, err := gone.Leave(t.Context(), fleet.LeaveRequest{}); fleet.KindOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "1 of the fleet's commands") {
		t.Errorf("while it runs a command: %v", err)
	}
	if got := s.states(t, id)[gone.ID()]; got != "InProgress" {
		t.Errorf("the command is %q after a refusal", got)
	}
	r, done, err := gone.Leave(t.Context(), fleet.LeaveRequest{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Cancelled != 1 || r.Unreported != 0 || r.InstanceId != gone.ID() || r.Name != "node02" {
		t.Errorf("result %+v", r)
	}
	if got := s.states(t, id)[gone.ID()]; !strings.HasPrefix(got, "Cancelled") {
		t.Errorf("its command is %q: the result did not go before the host", got)
	}
	var listed fleet.DescribeNodesResult
	s.call(t, "DescribeNodes", fleet.DescribeNodesRequest{Removed: true}, &listed)
	if len(listed.Nodes) != 1 || listed.Nodes[0].InstanceId != gone.ID() || listed.Nodes[0].Removed == nil || listed.Nodes[0].Removed.Operator != "" {
		t.Errorf("removed nodes: %+v", listed.Nodes)
	}
	if _, _, err := gone.Leave(t.Context(), fleet.LeaveRequest{}); fleet.KindOf(err) != fleet.Denied {
		t.Errorf("once more: %v", err)
	}
	done()
	<-gone.Done()
	if err := gone.Err(); err != nil {
		t.Errorf("the host that left ended with %v", err)
	}
	dir := f.dataDir(2)
	if _, _, err := enrol.OpenDir(dir); !errors.Is(err, enrol.ErrLeft) || !strings.Contains(err.Error(), "this host left fleet dev on 20") {
		t.Errorf("its directory: %v", err)
	}
	token, err := f.token(t.Context(), c, 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := enrol.Join(t.Context(), enrol.JoinOptions{DataDir: dir, Token: token, NodeName: "back", Advertise: gone.Address()})
	if err != nil || again.Node == gone.ID() {
		t.Errorf("join as a new host: %+v, %v", again, err)
	}

	// Without a quorum nobody goes.
	if err := voter.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := alone.Leave(t.Context(), fleet.LeaveRequest{}); fleet.KindOf(err) != fleet.NoQuorum || !strings.Contains(err.Error(), "still of fleet dev, nothing changed") {
		t.Errorf("without a quorum: %v", err)
	}
	if _, _, err := enrol.OpenDir(f.dataDir(3)); err != nil {
		t.Errorf("the host that could not leave: %v", err)
	}
	select {
	case <-alone.Done():
		t.Error("the host that could not leave stopped")
	default:
	}
}
