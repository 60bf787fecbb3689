package api

import (
	"context"
	"slices"

	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

const targetsPage = 100

func describeTargets(_ context.Context, _ *call, store *state.Store,
	req *fleet.DescribeTargetsRequest) (*fleet.DescribeTargetsResult, error) {
	size, err := pageSize(req.MaxResults, 1, targetsPage)
	if err != nil {
		return nil, err
	}
	targets := store.SavedTargets()
	for _, name := range req.Names {
		if _, err := fleet.ParseTargetName(name); err != nil {
			return nil, err
		}
		if store.SavedTarget(fleet.TargetName(name)) == nil {
			return nil, fleet.Errorf(fleet.NotFound, "there is no target %q", name).WithHint("see which there are: fleet target ls")
		}
	}
	if len(req.Names) > 0 {
		targets = slices.DeleteFunc(targets, func(t *fleet.SavedTarget) bool { return !slices.Contains(req.Names, string(t.Name)) })
	}
	page, next, err := pageOf(targets, func(t *fleet.SavedTarget) string { return string(t.Name) }, req.NextToken, size)
	if err != nil {
		return nil, err
	}
	result := &fleet.DescribeTargetsResult{Targets: make([]fleet.TargetView, 0, len(page)), NextToken: next}
	for _, t := range page {
		result.Targets = append(result.Targets, fleet.ViewOf(t))
	}
	return result, nil
}
