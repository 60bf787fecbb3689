package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
	"fleet/node/wire"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
)

func (c *Control) removeNode(ctx context.Context, body, proof []byte) ([]byte, error) {
	req, err := entry.ParseRemoveNode(body)
	if err != nil {
		return nil, err
	}
	done, err := c.refuseMember(ctx, fleet.NodeID(req.InstanceId))
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := decideEntry[*fleet.Removal](ctx, c, &entry.RemoveNode{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("node removed", "node", r.Node.ID, "name", r.Node.Name, "operator", r.Operator)
	return json.Marshal(ssm.DeregisterManagedInstanceResult{})
}

// Leave decides a host's signed word that it goes out of the fleet.
func (c *Control) Leave(ctx context.Context, farewell []byte) (*fleet.Removal, error) {
	b, err := c.route(ctx, opLeave, farewell, nil)
	if err != nil {
		return nil, err
	}
	var r fleet.Removal
	if err := wire.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("answer of the leader: %w", err)
	}
	return &r, nil
}

func (c *Control) leave(ctx context.Context, farewell []byte) ([]byte, error) {
	l, err := identity.ParseLeave(farewell)
	if err != nil {
		return nil, err
	}
	done, err := c.refuseMember(ctx, l.Node)
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := decideEntry[*fleet.Removal](ctx, c, &entry.Leave{Stamp: c.cfg.Now().UnixNano(), Request: farewell})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("node left", "node", r.Node.ID, "name", r.Node.Name)
	return wire.Marshal(r)
}

// refuseMember refuses the end of a host that is in Raft's configuration. Apply
// refuses that of voters itself; a host that is only eligible it does not know.
// Until done is called nobody changes the quorum: a host that is being made a
// voter must not be removed in the middle of it.
func (c *Control) refuseMember(ctx context.Context, id fleet.NodeID) (done func(), err error) {
	n := c.cfg.FSM.Store().Node(id)
	if n == nil {
		return func() {}, nil // Apply says why
	}
	if done, err = c.takeTurn(ctx); err != nil {
		return nil, err
	}
	servers, err := c.cfg.Quorum.Servers()
	if err == nil && slices.ContainsFunc(servers, func(s quorum.Server) bool { return s.ID == id }) {
		err = raftfsm.OfTheQuorum(n)
	}
	if err != nil {
		done()
		return nil, err
	}
	return done, nil
}
