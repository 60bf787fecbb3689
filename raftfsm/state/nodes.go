package state

import (
	"fleet/node/fleet"
)

// Node is the node of this ID; nil if there is none.
func (v View) Node(id fleet.NodeID) *fleet.Node {
	return first[fleet.Node](v, "nodes", "id", string(id))
}

// FindNode is Node with an error of kind NotFound for who asked for it.
func (v View) FindNode(id fleet.NodeID) (*fleet.Node, error) {
	if n := v.Node(id); n != nil {
		return n, nil
	}
	if r := v.Removal(id); r != nil {
		return nil, fleet.CodeErrorf(fleet.NotFound, "InvalidInstanceId", "%s", RemovedText(r))
	}
	return nil, fleet.CodeErrorf(fleet.NotFound, "InvalidInstanceId", "no node %.32q is enrolled in this fleet", string(id)).
		WithHint("see the enrolled nodes with: fleet node ls")
}

// NodeByKey is the node with this agent key; nil if there is none.
func (v View) NodeByKey(key fleet.PublicKey) *fleet.Node {
	return first[fleet.Node](v, "nodes", "key", string(key[:]))
}

// Nodes is all nodes by ID.
func (v View) Nodes() []*fleet.Node { return all[fleet.Node](v, "nodes", "id") }

// NodesByName is the nodes of this name by ID: names are not unique.
func (v View) NodesByName(name string) []*fleet.Node {
	return all[fleet.Node](v, "nodes", "name", name)
}

// NodesByActivation is the nodes that enrolled with an activation, by ID.
func (v View) NodesByActivation(id fleet.ActivationID) []*fleet.Node {
	return all[fleet.Node](v, "nodes", "activation", string(id))
}

// WatchNodes is closed when any node changes.
func (v View) WatchNodes() <-chan struct{} { return v.watch("nodes") }

// PutNode adds or replaces a node.
func (t *Txn) PutNode(n *fleet.Node) { t.put("nodes", n) }
