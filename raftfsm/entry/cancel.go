package entry

import (
	"fleet/node/fleet"
)

// CancelCommand cancels a command, or some targets of it. Its request is a
// CancelCommandV1; it creates nothing and has no ID.
type CancelCommand struct {
	Authority
}

// Kind is KindCancelCommand.
func (*CancelCommand) Kind() Kind { return KindCancelCommand }

// Check accepts the form.
func (e *CancelCommand) Check() error { return e.check(false) }

// CancelCommandV1 is the signed request to cancel a command.
type CancelCommandV1 struct {
	CommandId string `json:"CommandId"`
	// InstanceIds are the targets on which it is cancelled, at most 50; without
	// any, it is cancelled on all.
	InstanceIds []string `json:"InstanceIds,omitempty"`
}

// ParseCancelCommand reads the request of a CancelCommand. That the command
// exists and has these targets is not checked.
func ParseCancelCommand(b []byte) (*CancelCommandV1, error) { return parse[CancelCommandV1](b) }

func (r *CancelCommandV1) check() error {
	if _, err := fleet.ParseCommandID(r.CommandId); err != nil {
		return invalidf("InvalidCommandId", "%v", err)
	}
	return checkInstanceIDs(r.InstanceIds)
}

// checkInstanceIDs accepts nodes that are named, each once.
func checkInstanceIDs(ids []string) error {
	if len(ids) > MaxInstanceIDs {
		return invalidf(validation, "%d InstanceIds are over the limit of %d", len(ids), MaxInstanceIDs)
	}
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		if _, err := fleet.ParseNodeID(id); err != nil {
			return invalidf("InvalidInstanceId", "%v", err)
		}
		if seen[id] {
			return invalidf("DuplicateInstanceId", "node %s is named twice", id)
		}
		seen[id] = true
	}
	return nil
}
