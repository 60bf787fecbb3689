package control

import (
	"context"
	"encoding/json"

	"fleet/node/authz"
	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

func (c *Control) createOperator(ctx context.Context, body, proof []byte) ([]byte, error) {
	req, err := entry.ParseCreateOperator(body)
	if err != nil {
		return nil, err
	}
	// Apply takes any name: which operations there are changes with releases. A
	// word that means nothing is a mistake of whoever typed it.
	for _, word := range req.May {
		if op, ok := authz.Lookup(word); word != authz.All && (!ok || !op.Class.Granted()) {
			return nil, fleet.CodeErrorf(fleet.Invalid, "ValidationException", "there is no operation %.64q to grant", word).
				WithHint("see which there are: fleet operator add --help")
		}
	}
	o, err := decideEntry[*fleet.Operator](ctx, c, &entry.CreateOperator{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("operator made", "operator", o.Name, "may", o.May)
	return json.Marshal(fleet.CreateOperatorResult{Operator: OperatorView(o)})
}

func (c *Control) deleteOperator(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseDeleteOperator(body); err != nil {
		return nil, err
	}
	name, err := decideEntry[fleet.OperatorName](ctx, c, &entry.DeleteOperator{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("operator's rights ended", "operator", name)
	return json.Marshal(fleet.DeleteOperatorResult{})
}

// OperatorView is an operator as the API shows him.
func OperatorView(o *fleet.Operator) fleet.OperatorView {
	v := fleet.OperatorView{Name: o.Name, May: o.May, Created: fleet.InstantOf(o.Created)}
	for _, k := range o.Keys {
		v.Keys = append(v.Keys, k.Text())
	}
	return v
}
