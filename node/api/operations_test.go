package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"fleet/node/api/client"
	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/presence"
	"fleet/node/runcmd"
	"fleet/node/ssm"
	"fleet/node/wire"
	"fleet/raftfsm/state"
)

// ask is Call that must succeed.
func ask[Resp any](t *testing.T, c *client.Client, operation string, req any) Resp {
	t.Helper()
	var resp Resp
	if err := c.Call(t.Context(), operation, req, &resp); err != nil {
		t.Fatalf("%s: %v", operation, err)
	}
	return resp
}

// code is Call that must fail, with SSM's name or the kind's.
func code(t *testing.T, c *client.Client, operation string, req any) string {
	t.Helper()
	err := c.Call(t.Context(), operation, req, nil)
	var e *fleet.Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: got %v, want an error of the fleet's", operation, err)
	}
	if e.Code != "" {
		return e.Code
	}
	return e.Kind.String()
}

// fill makes n nodes, web1 to webN, of which three say different things.
func (f *fixture) fill(n int) {
	f.write(func(txn *state.Txn) {
		for i := 1; i <= n; i++ {
			txn.PutNode(newNode(i, fmt.Sprintf("web%d", i), map[string]string{"n": fmt.Sprint(i), "env": []string{"prod", "test"}[i%2]}))
		}
	})
	f.control.set(func(c *fakeControl) {
		c.seen = map[fleet.NodeID]presence.Seen{
			nodeID(1): {LastSeen: epoch.Add(-10 * time.Second), Version: "1.2.3", Warnings: []string{"ClockOff"}},
			nodeID(2): {LastSeen: epoch.Add(-10 * time.Minute), Version: "1.2.2"},
		}
		c.quorum.Servers = []control.ServerView{{ID: nodeID(1), Voter: true, Reachable: true, Applied: 7}, {ID: nodeID(2)}}
	})
}

func TestDescribeNodes(t *testing.T) {
	f := newFixture(t)
	f.fill(25)
	f.write(func(txn *state.Txn) { txn.PutNode(newNode(900, "web1", nil)) }) // a second one of this name
	c := f.client()

	all := ask[fleet.DescribeNodesResult](t, c, "DescribeNodes", nil).Nodes
	if len(all) != 26 || !slices.IsSortedFunc(all, func(a, b fleet.NodeView) int { return strings.Compare(string(a.InstanceId), string(b.InstanceId)) }) {
		t.Errorf("%d nodes, want 26 in order of IDs", len(all))
	}
	byID := map[fleet.NodeID]fleet.NodeView{}
	for _, n := range all {
		byID[n.InstanceId] = n
	}
	one, two, three := byID[nodeID(1)], byID[nodeID(2)], byID[nodeID(3)]
	if one.PingStatus != fleet.PingOnline || one.Role != fleet.RoleNameVoter || !one.Leader || one.AgentVersion != "1.2.3" || len(one.Warnings) != 1 {
		t.Errorf("the leader: %+v", one)
	}
	if two.PingStatus != fleet.PingConnectionLost || two.Role != fleet.RoleNameEligible || two.Leader {
		t.Errorf("the lost one: %+v", two)
	}
	if three.PingStatus != fleet.PingUnknown || three.Role != fleet.RoleNameAgent || three.LastPing != 0 {
		t.Errorf("one that was never heard of: %+v", three)
	}
	key := fakeKey(3)
	if !bytes.Equal(three.PublicKey, key[:]) {
		t.Errorf("key: %x", three.PublicKey)
	}

	tests := []struct {
		name string
		req  fleet.DescribeNodesRequest
		want int
	}{
		{"by ID", fleet.DescribeNodesRequest{Nodes: []string{string(nodeID(3))}}, 1},
		{"by name", fleet.DescribeNodesRequest{Nodes: []string{"web3"}}, 1},
		{"by a name that two have", fleet.DescribeNodesRequest{Nodes: []string{"web1"}}, 2},
		{"twice named", fleet.DescribeNodesRequest{Nodes: []string{"web3", string(nodeID(3))}}, 1},
		{"label", fleet.DescribeNodesRequest{Labels: []fleet.LabelFilter{{Key: "env", Values: []string{"prod"}}}}, 12},
		{"either", fleet.DescribeNodesRequest{Labels: []fleet.LabelFilter{{Key: "env", Values: []string{"prod", "test"}}}}, 25},
		{"both", fleet.DescribeNodesRequest{Labels: []fleet.LabelFilter{{Key: "env", Values: []string{"prod"}}, {Key: "n", Values: []string{"2", "3"}}}}, 1},
		{"has a label", fleet.DescribeNodesRequest{Labels: []fleet.LabelFilter{{Key: "env"}}}, 25},
		{"status", fleet.DescribeNodesRequest{PingStatus: []string{fleet.PingUnknown}}, 24},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ask[fleet.DescribeNodesResult](t, c, "DescribeNodes", tt.req).Nodes; len(got) != tt.want {
				t.Errorf("got %d nodes, want %d", len(got), tt.want)
			}
		})
	}
	if got := code(t, c, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{"web3", "web99"}}); got != ssm.InvalidInstanceId {
		t.Errorf("an unknown name: got %s", got)
	}

	var paged []fleet.NodeView
	req := fleet.DescribeNodesRequest{MaxResults: 10}
	for pages := 1; ; pages++ {
		page := ask[fleet.DescribeNodesResult](t, c, "DescribeNodes", req)
		paged = append(paged, page.Nodes...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	if len(paged) != len(all) {
		t.Errorf("%d nodes in pages, want %d", len(paged), len(all))
	}

	brief := ask[fleet.DescribeNodesResult](t, c, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{string(nodeID(1))}, Brief: true}).Nodes[0]
	if brief.PingStatus != "" || brief.Role != "" || brief.Name != "web1" {
		t.Errorf("brief: %+v", brief)
	}
}

func TestDescribeInstanceInformation(t *testing.T) {
	f := newFixture(t)
	f.fill(60)
	c := f.client()
	page := ask[ssm.DescribeInstanceInformationResult](t, c, "DescribeInstanceInformation", nil)
	if len(page.InstanceInformationList) != 50 || page.NextToken == "" {
		t.Errorf("%d on the first page, want 50 and a token", len(page.InstanceInformationList))
	}
	next := ask[ssm.DescribeInstanceInformationResult](t, c, "DescribeInstanceInformation", ssm.DescribeInstanceInformationRequest{NextToken: page.NextToken})
	if len(next.InstanceInformationList) != 10 || next.NextToken != "" {
		t.Errorf("%d on the second page, want 10", len(next.InstanceInformationList))
	}
	filter := func(key string, values ...string) ssm.DescribeInstanceInformationRequest {
		return ssm.DescribeInstanceInformationRequest{Filters: []ssm.InstanceInformationStringFilter{{Key: key, Values: values}}}
	}
	for _, tt := range []struct {
		req  ssm.DescribeInstanceInformationRequest
		want int
	}{
		{filter("InstanceIds", string(nodeID(1)), string(nodeID(2))), 2},
		{filter("PingStatus", ssm.PingOnline, ssm.PingConnectionLost), 2},
		{filter("tag:n", "7"), 1},
		{filter("tag-key", "nothing"), 0},
		{filter("AgentVersion", "1.2.2"), 1},
		{ssm.DescribeInstanceInformationRequest{InstanceInformationFilterList: []ssm.InstanceInformationFilter{{Key: "InstanceIds", ValueSet: []string{string(nodeID(9))}}}}, 1},
	} {
		got := ask[ssm.DescribeInstanceInformationResult](t, c, "DescribeInstanceInformation", tt.req)
		if len(got.InstanceInformationList) != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.req, len(got.InstanceInformationList), tt.want)
		}
	}
	info := ask[ssm.DescribeInstanceInformationResult](t, c, "DescribeInstanceInformation", filter("InstanceIds", string(nodeID(1)))).InstanceInformationList[0]
	want := ssm.InstanceInformation{
		InstanceId: string(nodeID(1)), PingStatus: "Online", LastPingDateTime: ssm.TimeOf(epoch.Add(-10 * time.Second).UnixNano()), AgentVersion: "1.2.3",
		RegistrationDate: ssm.TimeOf(epoch.UnixNano()), ResourceType: "ManagedInstance", Name: "web1", IPAddress: "10.0.0.1", ComputerName: "web1",
	}
	if info != want {
		t.Errorf("got %+v\nwant %+v", info, want)
	}
	if got := code(t, c, "DescribeInstanceInformation", filter("Colour", "red")); got != ssm.InvalidFilterKey {
		t.Errorf("unknown filter: got %s", got)
	}
	if got := code(t, c, "DescribeInstanceInformation", filter("PingStatus")); got != ssm.InvalidInstanceInformationFilterValue {
		t.Errorf("filter without values: got %s", got)
	}
}

func TestListTags(t *testing.T) {
	f := newFixture(t)
	f.fill(2)
	c := f.client()
	got := ask[ssm.ListTagsForResourceResult](t, c, "ListTagsForResource", ssm.ListTagsForResourceRequest{ResourceType: "ManagedInstance", ResourceId: string(nodeID(1))})
	if want := []ssm.Tag{{Key: "env", Value: "test"}, {Key: "n", Value: "1"}}; !slices.Equal(got.TagList, want) {
		t.Errorf("got %v, want %v", got.TagList, want)
	}
	if got := code(t, c, "ListTagsForResource", ssm.ListTagsForResourceRequest{ResourceType: "Document", ResourceId: "x"}); got != ssm.InvalidResourceType {
		t.Errorf("got %s", got)
	}
	if got := code(t, c, "ListTagsForResource", ssm.ListTagsForResourceRequest{ResourceType: "ManagedInstance", ResourceId: "x"}); got != ssm.InvalidResourceId {
		t.Errorf("got %s", got)
	}
}

func TestDescribeActivations(t *testing.T) {
	f := newFixture(t)
	id := func(i int) fleet.ActivationID { return fleet.ActivationID(uuid(i)) }
	f.write(func(txn *state.Txn) {
		for i := range 60 {
			txn.PutActivation(&fleet.Activation{
				ID: id(i), Key: newKey(t).Public(), Limit: 5, Used: uint32(i % 5), Expires: epoch.Add(time.Duration(i-1) * time.Hour).UnixNano(),
				Labels: map[string]string{"env": "prod"}, DefaultName: fmt.Sprintf("name%d", i), Created: epoch.UnixNano(),
			})
		}
	})
	c := f.client()
	page := ask[ssm.DescribeActivationsResult](t, c, "DescribeActivations", nil)
	if len(page.ActivationList) != 50 || page.NextToken == "" {
		t.Fatalf("got %d, want a page of 50", len(page.ActivationList))
	}
	a := page.ActivationList
	if !a[0].Expired || !a[1].Expired || a[2].Expired || a[3].RegistrationsCount != 3 || a[3].Tags[0].Key != "env" {
		t.Errorf("got %+v", a[:4])
	}
	one := ask[ssm.DescribeActivationsResult](t, c, "DescribeActivations", ssm.DescribeActivationsRequest{
		Filters: []ssm.DescribeActivationsFilter{{FilterKey: "DefaultInstanceName", FilterValues: []string{"name7"}}},
	})
	if len(one.ActivationList) != 1 || one.ActivationList[0].ActivationId != uuid(7) {
		t.Errorf("by name: got %+v", one)
	}
	if got := code(t, c, "DescribeActivations", ssm.DescribeActivationsRequest{Filters: []ssm.DescribeActivationsFilter{{FilterKey: "Colour"}}}); got != ssm.InvalidFilter {
		t.Errorf("got %s", got)
	}
}

func uuid(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }

// send writes a command to web1 to webN with these states.
func (f *fixture) send(i int, states ...fleet.InvocationState) fleet.CommandID {
	id := fleet.CommandID(uuid(i))
	f.write(func(txn *state.Txn) { f.put(txn, i, states...) })
	return id
}

func (f *fixture) put(txn *state.Txn, i int, states ...fleet.InvocationState) {
	created := epoch.Add(time.Duration(i) * time.Second)
	cmd := &fleet.Command{
		ID: fleet.CommandID(uuid(i)), Attempt: 1, Operator: f.cred.Operator, DocumentName: "AWS-RunShellScript", DocumentVersion: "1",
		Parameters: wire.MustMarshal(wire.StringMap{"commands": {"uname"}}), Created: created.UnixNano(), DeliverySeconds: 60, ExecutionSeconds: 3600,
		NotAfter: created.Add(time.Minute).UnixNano(), Expires: created.Add(2 * time.Hour).UnixNano(), MaxConcurrency: "100%", MaxErrors: "100%",
		Counts: make([]uint32, 11), Selectors: []fleet.Target{{Key: "InstanceIds", Values: []string{"*"}}},
	}
	for n := range states {
		cmd.Targets = append(cmd.Targets, nodeID(n+1))
	}
	slices.Sort(cmd.Targets)
	open := false
	rows := make([]fleet.Invocation, len(states))
	for n, s := range states {
		index, _ := state.TargetIndex(cmd, nodeID(n+1))
		rows[index] = fleet.Invocation{Index: index, State: s, Code: -1}
		if s.Final() {
			rows[index].Code, rows[index].Detail = 0, detailOf(n+1)
			rows[index].Started, rows[index].Ended = created.UnixNano(), created.Add(1500*time.Millisecond).UnixNano()
		}
		cmd.Counts[s]++
		open = open || !s.Final()
	}
	if !open {
		cmd.Ended = created.Add(time.Minute).UnixNano()
	}
	txn.PutCommand(cmd)
	for n := 0; n*fleet.ShardSize < len(rows); n++ {
		shard := rows[n*fleet.ShardSize : min(len(rows), (n+1)*fleet.ShardSize)]
		txn.PutShard(&state.Shard{Command: cmd.ID, N: uint32(n), Rows: shard})
	}
}

// detailOf names the details of node i, wherever a test keeps them.
func detailOf(i int) fleet.Digest { return fleet.Sum(fmt.Append(nil, "detail of ", i)) }

// wrote keeps what node i wrote, in one step.
func (f *fixture) wrote(i int, stdout, stderr string) {
	f.control.set(func(c *fakeControl) {
		if c.details == nil {
			c.details, c.blobs = map[fleet.Digest]*runcmd.Detail{}, map[fleet.Digest][]byte{}
		}
		c.details[detailOf(i)] = &runcmd.Detail{Version: 1, Steps: []runcmd.StepDetail{{
			Name: "runShellScript", Plugin: "aws:runShellScript", State: fleet.Success, Started: epoch.UnixNano(), Ended: epoch.Add(time.Second).UnixNano(),
			Stdout: c.stream(stdout), Stderr: c.stream(stderr),
		}}}
	})
}

// stream keeps short text inside and long text in a blob.
func (f *fakeControl) stream(text string) runcmd.StreamDetail {
	s := runcmd.StreamDetail{Total: uint64(len(text)), Digest: fleet.Sum([]byte(text)), Stored: uint64(len(text))}
	if len(text) <= 4096 {
		s.Inline = []byte(text)
	} else {
		s.Blob = s.Digest
		f.blobs[s.Blob] = []byte(text)
	}
	return s
}

func TestListCommands(t *testing.T) {
	f := newFixture(t)
	f.fill(3)
	for i := 1; i <= 120; i++ {
		f.send(i, fleet.Success, fleet.Success)
	}
	f.send(121, fleet.Success, fleet.Failed, fleet.Success)
	f.send(122, fleet.Pending)
	c := f.client()
	var all []ssm.Command
	var req ssm.ListCommandsRequest
	for {
		page := ask[ssm.ListCommandsResult](t, c, "ListCommands", req)
		all = append(all, page.Commands...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			break
		}
	}
	if len(all) != 122 || all[0].CommandId != uuid(122) || all[121].CommandId != uuid(1) {
		t.Errorf("%d commands, first %s: want 122, newest first", len(all), all[0].CommandId)
	}
	filter := func(pairs ...string) ssm.ListCommandsRequest {
		var r ssm.ListCommandsRequest
		for i := 0; i < len(pairs); i += 2 {
			r.Filters = append(r.Filters, ssm.CommandFilter{Key: pairs[i], Value: pairs[i+1]})
		}
		return r
	}
	for _, tt := range []struct {
		name string
		req  ssm.ListCommandsRequest
		want []int
	}{
		{"failed", filter("Status", "Failed"), []int{121}},
		{"open", filter("ExecutionStage", "Executing"), []int{122}},
		{"late", filter("InvokedAfter", "2026-07-07T12:02:00Z"), []int{122, 121}},
		{"early and one more", filter("InvokedBefore", "2026-07-07T12:00:03Z", "DocumentName", "AWS-RunShellScript"), []int{2, 1}},
		{"of an operator", filter("Operator", string(f.cred.Operator), "Status", "Failed"), []int{121}},
		{"of nobody", filter("Operator", "nobody"), nil},
		{"of a node", ssm.ListCommandsRequest{InstanceId: string(nodeID(3))}, []int{121}},
		{"by ID", ssm.ListCommandsRequest{CommandId: uuid(5)}, []int{5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, cmd := range ask[ssm.ListCommandsResult](t, c, "ListCommands", tt.req).Commands {
				got = append(got, cmd.CommandId)
			}
			var want []string
			for _, i := range tt.want {
				want = append(want, uuid(i))
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
	for _, tt := range []struct {
		req  ssm.ListCommandsRequest
		want string
	}{
		{ssm.ListCommandsRequest{CommandId: "x"}, ssm.InvalidCommandId},
		{ssm.ListCommandsRequest{CommandId: uuid(999)}, ssm.InvalidCommandId},
		{ssm.ListCommandsRequest{InstanceId: "x"}, ssm.InvalidInstanceId},
		{filter("Colour", "red"), ssm.InvalidFilterKey},
		{filter("InvokedAfter", "yesterday"), ssm.InvalidFilterValue},
		{filter("ExecutionStage", "Half"), ssm.InvalidFilterValue},
		{ssm.ListCommandsRequest{MaxResults: 51}, ssm.ValidationException},
	} {
		if got := code(t, c, "ListCommands", tt.req); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.req, got, tt.want)
		}
	}
}

func TestListCommandInvocations(t *testing.T) {
	f := newFixture(t)
	f.fill(70)
	states := make([]fleet.InvocationState, 70)
	for i := range states {
		states[i] = fleet.Success
	}
	states[4] = fleet.Failed
	f.send(1, states...)
	f.send(2, fleet.Success, fleet.InProgress)
	f.wrote(1, "Linux\n", "warning\n")
	c := f.client()
	list := func(req ssm.ListCommandInvocationsRequest) (all []ssm.CommandInvocation) {
		for {
			page := ask[ssm.ListCommandInvocationsResult](t, c, "ListCommandInvocations", req)
			all = append(all, page.CommandInvocations...)
			if req.NextToken = page.NextToken; req.NextToken == "" {
				return all
			}
		}
	}
	if got := list(ssm.ListCommandInvocationsRequest{CommandId: uuid(1)}); len(got) != 70 {
		t.Errorf("of one command: got %d, want 70", len(got))
	}
	if got := list(ssm.ListCommandInvocationsRequest{MaxResults: 7}); len(got) != 72 || got[0].CommandId != uuid(2) {
		t.Errorf("of all: got %d, want 72, newest first", len(got))
	}
	if got := list(ssm.ListCommandInvocationsRequest{InstanceId: string(nodeID(2)), MaxResults: 1}); len(got) != 2 || got[0].Status != "InProgress" {
		t.Errorf("of one node: got %+v", got)
	}
	failed := list(ssm.ListCommandInvocationsRequest{Filters: []ssm.CommandFilter{{Key: "Status", Value: "Failed"}}})
	if len(failed) != 1 || failed[0].InstanceName != "web5" {
		t.Errorf("failed: got %+v", failed)
	}
	detailed := list(ssm.ListCommandInvocationsRequest{CommandId: uuid(2), Details: true})
	byName := map[string]ssm.CommandInvocation{}
	for _, i := range detailed {
		byName[i.InstanceName] = i
	}
	plugins := byName["web1"].CommandPlugins
	if len(plugins) != 1 || plugins[0].Output != "Linux\n\n----------ERROR-------\nwarning\n" || plugins[0].Name != "runShellScript" || plugins[0].Status != "Success" {
		t.Errorf("details: got %+v", plugins)
	}
	if got := byName["web2"]; got.Status != "InProgress" || len(got.CommandPlugins) != 0 {
		t.Errorf("one that runs: got %+v", got)
	}
	if got := code(t, c, "ListCommandInvocations", ssm.ListCommandInvocationsRequest{NextToken: pageToken("nonsense")}); got != ssm.InvalidNextToken {
		t.Errorf("bad token: got %s", got)
	}
}

func TestGetCommandInvocation(t *testing.T) {
	f := newFixture(t)
	f.fill(3)
	id := f.send(1, fleet.Success, fleet.Pending, fleet.Failed)
	f.wrote(1, strings.Repeat("ä", 30000), strings.Repeat("e", 8000))
	c := f.client()
	get := func(node int) ssm.GetCommandInvocationResult {
		return ask[ssm.GetCommandInvocationResult](t, c, "GetCommandInvocation", ssm.GetCommandInvocationRequest{CommandId: string(id), InstanceId: string(nodeID(node))})
	}
	one := get(1)
	if n := utf8.RuneCountInString(one.StandardOutputContent); n != 24000 || !strings.HasSuffix(one.StandardOutputContent, "ä--output truncated--") {
		t.Errorf("stdout of %d characters: ...%s", n, one.StandardOutputContent[len(one.StandardOutputContent)-40:])
	}
	if one.StandardErrorContent != strings.Repeat("e", 8000) {
		t.Errorf("stderr of %d bytes is cut", len(one.StandardErrorContent))
	}
	if one.ExecutionElapsedTime != "PT1.000S" || one.ExecutionStartDateTime != "2026-07-07T12:00:00.000Z" || one.PluginName != "runShellScript" {
		t.Errorf("got %+v", one)
	}
	two := get(2)
	if two.Status != "Pending" || two.ResponseCode != -1 || two.ExecutionStartDateTime != "" {
		t.Errorf("pending: got %+v", two)
	}
	for _, tt := range []struct {
		req  ssm.GetCommandInvocationRequest
		want string
	}{
		{ssm.GetCommandInvocationRequest{CommandId: uuid(9), InstanceId: string(nodeID(1))}, ssm.InvocationDoesNotExist},
		{ssm.GetCommandInvocationRequest{CommandId: string(id), InstanceId: string(nodeID(9))}, ssm.InvocationDoesNotExist},
		{ssm.GetCommandInvocationRequest{CommandId: "x", InstanceId: string(nodeID(9))}, ssm.InvalidCommandId},
		{ssm.GetCommandInvocationRequest{CommandId: string(id), InstanceId: "x"}, ssm.InvalidInstanceId},
		{ssm.GetCommandInvocationRequest{CommandId: string(id), InstanceId: string(nodeID(1)), PluginName: "another"}, ssm.InvalidPluginName},
	} {
		if got := code(t, c, "GetCommandInvocation", tt.req); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.req, got, tt.want)
		}
	}
}

func TestJoinOutput(t *testing.T) {
	long := func(c string, n int) string { return strings.Repeat(c, n) }
	tests := []struct{ name, stdout, stderr string }{
		{"both short", "out", "err"},
		{"only stdout", long("o", 5000), ""},
		{"only stderr", "", long("e", 5000)},
		{"long and short", long("o", 5000), "err"},
		{"short and long", "out", long("e", 5000)},
		{"both long", long("o", 5000), long("e", 5000)},
		{"exactly full", long("o", 1200), long("e", 2500-len(errorRule)-1200)},
		{"not ASCII", long("ö", 5000), long("é", 5000)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := joinOutput(tt.stdout, tt.stderr)
			if n := utf8.RuneCountInString(got); n > ssm.MaxPluginOutput {
				t.Errorf("%d characters", n)
			}
			whole := utf8.RuneCountInString(tt.stdout)+utf8.RuneCountInString(tt.stderr)+len(errorRule) <= ssm.MaxPluginOutput
			if want := tt.stdout + errorRule + tt.stderr; tt.stderr != "" && whole && got != want {
				t.Errorf("cut without need: %d of %d", len(got), len(want))
			}
			if !utf8.ValidString(got) {
				t.Error("a character was cut")
			}
		})
	}
}

func TestGetCommandOutput(t *testing.T) {
	f := newFixture(t)
	f.fill(2)
	id := f.send(1, fleet.Success, fleet.InProgress)
	binary := strings.Repeat("\x00\xff\x1b[31m\n", 20000)
	f.wrote(1, binary, "short")
	c := f.client()
	read := func(req fleet.GetCommandOutputRequest) (string, error) {
		req.CommandId = id
		r, err := c.Output(t.Context(), req)
		if err != nil {
			return "", err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), err
	}
	if got, err := read(fleet.GetCommandOutputRequest{InstanceId: nodeID(1)}); err != nil || got != binary {
		t.Errorf("stdout: %d of %d bytes, %v", len(got), len(binary), err)
	}
	if got, err := read(fleet.GetCommandOutputRequest{InstanceId: nodeID(1), Stream: "stderr", StepName: "runShellScript"}); err != nil || got != "short" {
		t.Errorf("stderr: %q, %v", got, err)
	}
	if _, err := read(fleet.GetCommandOutputRequest{InstanceId: nodeID(2)}); fleet.KindOf(err) != fleet.NotFound || !strings.Contains(err.Error(), "InProgress") {
		t.Errorf("of one that runs: %v", err)
	}
	if _, err := read(fleet.GetCommandOutputRequest{InstanceId: nodeID(1), Stream: "stdlog"}); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("of no stream: %v", err)
	}
	// A blob that is gone is an error, not an empty output.
	f.control.set(func(c *fakeControl) { clear(c.blobs) })
	if _, err := read(fleet.GetCommandOutputRequest{InstanceId: nodeID(1)}); fleet.KindOf(err) != fleet.Unavailable {
		t.Errorf("of a lost blob: %v", err)
	}
}

func TestWatchCommand(t *testing.T) {
	f := newFixture(t)
	f.fill(3)
	id := f.send(1, fleet.Pending, fleet.InProgress, fleet.Pending)
	f.wrote(1, "\xff\xfe", "")
	f.wrote(2, "hello\n", strings.Repeat("e", fleet.MaxEventOutput+10))
	c := f.client()
	var mu sync.Mutex
	var got []string
	finals := map[string]fleet.InvocationEvent{}
	step := make(chan struct{}, 100)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		done <- c.Watch(ctx, fleet.WatchCommandRequest{CommandId: id, Output: true}, func(e fleet.WatchEvent) error {
			mu.Lock()
			defer mu.Unlock()
			if i := e.Invocation; i != nil {
				got = append(got, i.Name+" "+i.StatusDetails)
				if i.Final {
					finals[i.Name] = *i
				}
			} else {
				got = append(got, fmt.Sprintf("%s %d/%d", e.Command.Status, e.Command.CompletedCount, e.Command.TargetCount))
			}
			step <- struct{}{}
			return nil
		})
	}()
	wait := func(n int) {
		for range n {
			select {
			case <-step:
			case <-ctx.Done():
				mu.Lock()
				defer mu.Unlock()
				t.Fatalf("no event; so far %q", got)
			}
		}
	}
	wait(2) // web2 runs, counters
	f.send(1, fleet.Success, fleet.InProgress, fleet.Pending)
	wait(2)
	// One change while a heartbeat is due, then the rest in one.
	time.Sleep(120 * time.Millisecond)
	f.send(1, fleet.Success, fleet.Success, fleet.DeliveryTimedOut)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := []string{"web2 InProgress", "InProgress 0/3", "web1 Success", "InProgress 1/3"}
	if !slices.Equal(got[:4], want) {
		t.Errorf("got %q, want %q first", got, want)
	}
	if last := got[len(got)-1]; last != "Failed 3/3" || len(got) != 7 {
		t.Errorf("got %q", got)
	}
	if o := finals["web1"].Stdout; o.Text != "" || string(o.Bytes) != "\xff\xfe" || o.Total != 2 {
		t.Errorf("output that is not UTF-8: %+v", o)
	}
	if o := finals["web2"].Stdout; o.Text != "hello\n" || o.Truncated {
		t.Errorf("stdout: %+v", o)
	}
	if o := finals["web2"].Stderr; len(o.Text) != fleet.MaxEventOutput || !o.Truncated || o.Total != fleet.MaxEventOutput+10 {
		t.Errorf("stderr: %d bytes, %+v", len(o.Text), o.Truncated)
	}
	if e := finals["web3"]; e.StatusDetails != "DeliveryTimedOut" || e.OutputError == "" {
		t.Errorf("output on no host that answers: %+v", e)
	}
}

func TestWatchOfAnEndedCommand(t *testing.T) {
	f := newFixture(t)
	f.fill(1)
	id := f.send(1, fleet.Success)
	c := f.client()
	events := 0
	err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(fleet.WatchEvent) error { events++; return nil })
	if err != nil || events != 2 {
		t.Errorf("%d events, %v", events, err)
	}
	err = c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: fleet.CommandID(uuid(2))}, nil)
	if fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("an unknown command: %v", err)
	}
}

// A host that is cut off from the quorum must not let a watcher wait for
// changes that it will not hear of.
func TestWatchNoticesALostQuorum(t *testing.T) {
	f := newFixture(t)
	f.fill(1)
	id := f.send(1, fleet.Pending)
	c := f.client(func(_ *identity.Credential, o *client.Options) { o.Timeout = 3 * time.Second })
	began := false
	err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(fleet.WatchEvent) error {
		if !began {
			began = true
			f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.NoQuorum, "no quorum: 1 of 3 voters") })
		}
		return nil
	})
	if fleet.KindOf(err) != fleet.NoQuorum || !began {
		t.Errorf("got %v, want no quorum", err)
	}
}

// A stream that broke is opened again, and each final state is told once.
func TestWatchComesBack(t *testing.T) {
	f := newFixture(t)
	f.fill(2)
	id := f.send(1, fleet.Success, fleet.Pending)
	c := f.client()
	broke := false
	var got []string
	err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(e fleet.WatchEvent) error {
		if e.Invocation != nil {
			got = append(got, e.Invocation.Name+" "+e.Invocation.StatusDetails)
		}
		if e.Command != nil && !broke {
			broke = true
			f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.Unavailable, "try another") })
			time.AfterFunc(200*time.Millisecond, func() {
				f.control.set(func(c *fakeControl) { c.readErr = nil })
				f.send(1, fleet.Success, fleet.Success)
			})
		}
		return nil
	})
	if want := []string{"web1 Success", "web2 Success"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestWatchEndsWithTheRight(t *testing.T) {
	f := newFixture(t)
	f.fill(1)
	id := f.send(1, fleet.Pending)
	c := f.client()
	began := false
	err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: id}, func(fleet.WatchEvent) error {
		if !began {
			began = true
			f.write(func(txn *state.Txn) {
				txn.PutOperator(&fleet.Operator{Name: f.cred.Operator, Keys: []fleet.PublicKey{newKey(t).Public()}})
			})
		}
		return nil
	})
	if fleet.KindOf(err) != fleet.Unauthenticated {
		t.Errorf("got %v, want unauthenticated", err)
	}
}

func TestStatusAndQuorum(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Warnings = func() []fleet.Warning { return []fleet.Warning{{Code: "OneVoter"}} }
	})
	f.fill(5)
	f.send(1, fleet.Pending)
	f.control.set(func(c *fakeControl) {
		c.quorum.Servers = []control.ServerView{
			{ID: nodeID(1), Voter: true, Reachable: true, Applied: 9}, {ID: nodeID(2), Voter: true}, {ID: nodeID(3), Voter: true, Reachable: true},
			{ID: nodeID(4), Reachable: true},
		}
		c.eligible = []fleet.NodeID{nodeID(4)}
	})
	c := f.client()
	s := ask[fleet.GetStatusResult](t, c, "GetStatus", nil)
	if s.Name != "acme" || s.Nodes != 5 || s.Voters != 3 || s.Reachable != 2 || s.OpenCommands != 1 || s.LeaderName != "web1" || s.Version != "1.2.3" ||
		s.PingStatus[fleet.PingUnknown] != 3 {
		t.Errorf("got %+v", s)
	}
	var codes []string
	for _, w := range s.Warnings {
		codes = append(codes, w.Code)
	}
	if want := []string{"OneVoter", "VoterUnreachable", "NoSpareVoter", "ClockOff"}; !slices.Equal(codes, want) {
		t.Errorf("warnings: got %v, want %v", codes, want)
	}
	q := ask[fleet.DescribeQuorumResult](t, c, "DescribeQuorum", nil)
	if len(q.Members) != 4 || q.Leader != nodeID(1) || q.Members[3].Role != fleet.RoleNameEligible || q.Threshold != 1 || q.Members[0].Fingerprint == "" {
		t.Errorf("got %+v", q)
	}
	trust := ask[fleet.GetTrustResult](t, c, "GetTrust", nil)
	if _, err := identity.ParseTrust(trust.Trust, f.store.Fleet().Root); err != nil || len(trust.Eligible) != 1 {
		t.Errorf("got %+v, %v", trust, err)
	}
	if root, err := identity.VerifyRoot(trust.RootCertificate, f.cred.Fleet); err != nil || root != f.store.Fleet().Root {
		t.Errorf("root certificate: %v", err)
	}
	candidate := ask[fleet.GetCandidateResult](t, c, "GetCandidate", fleet.GetCandidateRequest{InstanceId: nodeID(2)})
	if string(candidate.Candidate) != "candidate of "+string(nodeID(2)) {
		t.Errorf("got %s", candidate.Candidate)
	}
	if got := code(t, c, "GetCandidate", fleet.GetCandidateRequest{InstanceId: nodeID(99)}); got != ssm.InvalidInstanceId {
		t.Errorf("got %s", got)
	}
}

func TestWholeRunes(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""}, {"abc", "abc"}, {"ä", "ä"}, {"aä"[:2], "a"}, {"€"[:2], ""}, {"x😀"[:4], "x"}, {"\xff\xff", "\xff\xff"}, {"\x80\x80\x80\x80", "\x80\x80\x80\x80"},
	} {
		if got := string(wholeRunes([]byte(tt.in))); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzPageToken(f *testing.F) {
	f.Add(pageToken("x"))
	f.Add(position{fleet.CommandID(uuid(1)), 7}.token())
	f.Fuzz(func(t *testing.T, token string) {
		key, err := pageKey(token)
		if err == nil && key != "" && pageToken(key) == "" {
			t.Error("no token")
		}
		if p, err := parsePosition(token); err == nil && p != nil && p.token() == "" {
			t.Error("no token")
		}
	})
}
