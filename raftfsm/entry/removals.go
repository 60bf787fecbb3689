package entry

import (
	"fleet/node/fleet"
)

// RemoveNode takes a host out of the fleet for good. Its request is a
// DeregisterManagedInstanceV1.
type RemoveNode struct{ Authority }

// Kind is KindRemoveNode.
func (*RemoveNode) Kind() Kind { return KindRemoveNode }

// Check accepts the form.
func (e *RemoveNode) Check() error { return e.check(false) }

// DeregisterManagedInstanceV1 is the signed request to remove a node.
type DeregisterManagedInstanceV1 struct {
	InstanceId string `json:"InstanceId"` // a node ID
}

// ParseRemoveNode reads the request of a RemoveNode.
func ParseRemoveNode(b []byte) (*DeregisterManagedInstanceV1, error) {
	return parse[DeregisterManagedInstanceV1](b)
}

func (r *DeregisterManagedInstanceV1) check() error { return checkInstance(r.InstanceId) }

// checkInstance accepts the ID of a node.
func checkInstance(id string) error {
	if _, err := fleet.ParseNodeID(id); err != nil {
		return invalidf("InvalidInstanceId", "%v", err)
	}
	return nil
}

// Leave takes a host out of the fleet by its own word.
type Leave struct {
	Stamp   int64  `msgpack:"s"`
	Request []byte `msgpack:"q"` // identity.ParseLeave reads it
}

// Kind is KindLeave.
func (*Leave) Kind() Kind { return KindLeave }

// Check accepts the form.
func (e *Leave) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	return checkBytes("farewell", e.Request, maxNodeRequest)
}
