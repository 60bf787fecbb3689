package api

import (
	"context"
	"slices"

	"fleet/node/fleet"
	"fleet/node/ssm"
	"fleet/raftfsm/state"
)

func describeActivations(_ context.Context, c *call, store *state.Store,
	req *ssm.DescribeActivationsRequest) (*ssm.DescribeActivationsResult, error) {
	size, err := pageSize(req.MaxResults, 1, 50)
	if err != nil {
		return nil, err
	}
	var kept []*fleet.Activation
	for _, a := range store.Activations() {
		keep := true
		for _, f := range req.Filters {
			switch f.FilterKey {
			case "ActivationIds":
				keep = keep && slices.Contains(f.FilterValues, string(a.ID))
			case "DefaultInstanceName":
				keep = keep && slices.Contains(f.FilterValues, a.DefaultName)
			default:
				return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidFilter, "activations are not filtered by %.80q", f.FilterKey)
			}
		}
		if keep {
			kept = append(kept, a)
		}
	}
	page, next, err := pageOf(kept, func(a *fleet.Activation) string { return string(a.ID) }, req.NextToken, size)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now().UnixNano()
	result := &ssm.DescribeActivationsResult{ActivationList: make([]ssm.Activation, 0, len(page)), NextToken: next}
	for _, a := range page {
		result.ActivationList = append(result.ActivationList, ssm.Activation{
			ActivationId: string(a.ID), Description: a.Description, DefaultInstanceName: a.DefaultName,
			RegistrationLimit: int(a.Limit), RegistrationsCount: int(a.Used),
			ExpirationDate: ssm.TimeOf(a.Expires), Expired: a.Expires <= now,
			CreatedDate: ssm.TimeOf(a.Created), Tags: tagsOf(a.Labels),
			Replaces: string(a.Replaces), ReplacesName: nameOf(store, a.Replaces),
		})
	}
	return result, nil
}
