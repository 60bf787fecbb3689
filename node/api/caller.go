package api

import (
	"context"
	"slices"

	"fleet/node/fleet"
	"fleet/raftfsm/state"
)

// getCallerIdentity tells an operator who the fleet takes them for.
func getCallerIdentity(_ context.Context, c *call, store *state.Store,
	_ *fleet.GetCallerIdentityRequest) (*fleet.GetCallerIdentityResult, error) {
	o := store.Operator(c.caller.operator)
	if o == nil || !holds(o, c.caller.key) {
		return nil, fleet.Errorf(fleet.Unauthenticated, "the key of operator %q is no longer known to the fleet", c.caller.operator)
	}
	f := store.Fleet()
	return &fleet.GetCallerIdentityResult{
		FleetId: f.ID, FleetName: f.Name, Operator: o.Name, KeyId: c.caller.key.String(), Keys: len(o.Keys),
		May: slices.Clone(o.May), Created: fleet.InstantOf(o.Created),
	}, nil
}
