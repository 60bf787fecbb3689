package control

import (
	"context"
	"encoding/json"

	"fleet/node/fleet"
	"fleet/node/ssm"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

func (c *Control) removeNode(ctx context.Context, body, proof []byte) ([]byte, error) {
	req, err := entry.ParseRemoveNode(body)
	if err != nil {
		return nil, err
	}
	if err := c.refuseMember(fleet.NodeID(req.InstanceId)); err != nil {
		return nil, err
	}
	r, err := decideEntry[*fleet.Removal](ctx, c, &entry.RemoveNode{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("node removed", "node", r.Node.ID, "name", r.Node.Name, "operator", r.Operator)
	return json.Marshal(ssm.DeregisterManagedInstanceResult{})
}

// refuseMember refuses the end of a host that is in Raft's configuration. Apply
// refuses that of voters itself; a host that is only eligible it does not know.
func (c *Control) refuseMember(id fleet.NodeID) error {
	n := c.cfg.FSM.Store().Node(id)
	if n == nil {
		return nil // Apply says why
	}
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return err
	}
	for _, s := range servers {
		if s.ID == id {
			return raftfsm.OfTheQuorum(n)
		}
	}
	return nil
}
