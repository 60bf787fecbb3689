package api

import (
	"fmt"
	"testing"

	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

func TestDescribeTargets(t *testing.T) {
	f := newFixture(t)
	f.write(func(txn *state.Txn) {
		for i := range 250 {
			txn.PutSavedTarget(&fleet.SavedTarget{Name: fleet.TargetName(fmt.Sprintf("t%03d", i)), NodeSet: "web[1-3]",
				Selectors: []fleet.Target{{Key: "tag:env", Values: []string{"prod"}}}, Operator: "ada", Modified: epoch.UnixNano()})
		}
	})
	c := f.client()
	var all []fleet.TargetView
	req := fleet.DescribeTargetsRequest{}
	for {
		page := ask[fleet.DescribeTargetsResult](t, c, "DescribeTargets", req)
		if len(page.Targets) > targetsPage {
			t.Fatalf("a page of %d", len(page.Targets))
		}
		all = append(all, page.Targets...)
		if req.NextToken = page.NextToken; req.NextToken == "" {
			break
		}
	}
	if len(all) != 250 || all[0].Name != "t000" || all[249].Name != "t249" || all[7].Targets[0].Key != "tag:env" || all[7].Modified != fleet.InstantOf(epoch.UnixNano()) {
		t.Errorf("%d targets, the eighth %+v", len(all), all[7])
	}
	named := ask[fleet.DescribeTargetsResult](t, c, "DescribeTargets", fleet.DescribeTargetsRequest{Names: []string{"t009", "t003"}})
	if len(named.Targets) != 2 || named.Targets[0].Name != "t003" {
		t.Errorf("named: %+v", named)
	}
	for _, req := range []fleet.DescribeTargetsRequest{{Names: []string{"nothere"}}, {Names: []string{"a/b"}}, {MaxResults: 101}, {NextToken: "x"}} {
		if err := c.Call(t.Context(), "DescribeTargets", req, nil); fleet.KindOf(err) != fleet.NotFound && fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%+v: %v", req, err)
		}
	}
}
