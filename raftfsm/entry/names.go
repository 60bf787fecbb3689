package entry

import (
	"fleet/node/fleet"
)

// RenameNode gives a node another name. Its request is a RenameNodeV1.
type RenameNode struct{ Authority }

// Kind is KindRenameNode.
func (*RenameNode) Kind() Kind { return KindRenameNode }

// Check accepts the form.
func (e *RenameNode) Check() error { return e.check(false) }

// RenameNodeV1 is the signed request to rename a node.
type RenameNodeV1 struct {
	InstanceId string `json:"InstanceId"` // a node ID
	Name       string `json:"Name"`       // fleet.CheckNodeName's; others may have it too
}

// ParseRenameNode reads the request of a RenameNode.
func ParseRenameNode(b []byte) (*RenameNodeV1, error) { return parse[RenameNodeV1](b) }

func (r *RenameNodeV1) check() error {
	if err := checkInstance(r.InstanceId); err != nil {
		return err
	}
	if err := fleet.CheckNodeName(r.Name); err != nil {
		return invalidf(validation, "%v", err)
	}
	if _, err := fleet.ParseNodeID(r.Name); err == nil {
		return invalidf(validation, "Name %s has the form of a node ID", r.Name)
	}
	return nil
}
