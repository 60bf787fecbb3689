package control

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
)

// mutations is what each signed operation becomes: one row an operation.
var mutations = map[string]func(c *Control, ctx context.Context, body, proof []byte) ([]byte, error){
	"CreateActivation":       (*Control).createActivation,
	"DeleteActivation":       (*Control).deleteActivation,
	"AddTagsToResource":      (*Control).addTags,
	"RemoveTagsFromResource": (*Control).removeTags,
	"SendCommand":            (*Control).sendCommand,
	"CancelCommand":          (*Control).cancelCommand,

	"DeregisterManagedInstance": (*Control).removeNode,
	"RenameNode":                (*Control).renameNode,
	"CreateOperator":            (*Control).createOperator,
	"DeleteOperator":            (*Control).deleteOperator,
	"PutTarget":                 (*Control).putTarget,
	"DeleteTarget":              (*Control).deleteTarget,
	"RotateGossipKey":           (*Control).rotateGossipKey,
}

// authority stamps a request: all that is not determined by it is decided
// here, by the proposer, and travels in the entry.
func (c *Control) authority(body, proof []byte) entry.Authority {
	return entry.Authority{Stamp: c.cfg.Now().UnixNano(), Request: body, Proof: proof}
}

// creation is authority for an entry that creates an object.
func (c *Control) creation(body, proof []byte) (entry.Authority, error) {
	a := c.authority(body, proof)
	var err error
	a.ID, err = newUUID()
	return a, err
}

// decideEntry proposes an authority entry and checks the type of the answer.
func decideEntry[T any](ctx context.Context, c *Control, body entry.Body) (T, error) {
	value, err := c.propose(ctx, body)
	answer, ok := value.(T)
	if err == nil && !ok {
		err = fmt.Errorf("apply answered %T, want %T", value, answer)
	}
	return answer, err
}

func (c *Control) createActivation(ctx context.Context, body, proof []byte) ([]byte, error) {
	req, err := entry.ParseCreateActivation(body)
	if err != nil {
		return nil, err
	}
	done, err := c.refuseMember(ctx, fleet.NodeID(req.Replaces))
	if err != nil {
		return nil, err
	}
	defer done()
	a, err := c.creation(body, proof)
	if err != nil {
		return nil, err
	}
	activation, err := decideEntry[*fleet.Activation](ctx, c, &entry.CreateActivation{Authority: a})
	if err != nil {
		return nil, err
	}
	return json.Marshal(ssm.CreateActivationResult{ActivationId: string(activation.ID)})
}

func (c *Control) deleteActivation(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseDeleteActivation(body); err != nil {
		return nil, err
	}
	if _, err := c.propose(ctx, &entry.DeleteActivation{Authority: c.authority(body, proof)}); err != nil {
		return nil, err
	}
	return json.Marshal(ssm.DeleteActivationResult{})
}

func (c *Control) addTags(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseAddTags(body); err != nil {
		return nil, err
	}
	if _, err := c.propose(ctx, &entry.AddTags{Authority: c.authority(body, proof)}); err != nil {
		return nil, err
	}
	return json.Marshal(ssm.AddTagsToResourceResult{})
}

func (c *Control) removeTags(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseRemoveTags(body); err != nil {
		return nil, err
	}
	if _, err := c.propose(ctx, &entry.RemoveTags{Authority: c.authority(body, proof)}); err != nil {
		return nil, err
	}
	return json.Marshal(ssm.RemoveTagsFromResourceResult{})
}

func (c *Control) sendCommand(ctx context.Context, body, proof []byte) ([]byte, error) {
	req, err := entry.ParseSendCommand(body)
	if err != nil {
		return nil, err
	}
	content, version, ok := document.Builtin(req.DocumentName)
	if !ok {
		return nil, fleet.CodeErrorf(fleet.NotFound, "InvalidDocument", "no document %q", req.DocumentName).
			WithHint("this release has %s", strings.Join(document.BuiltinNames(), ", "))
	}
	doc, err := document.Parse(content)
	if err != nil {
		return nil, fmt.Errorf("built-in document %s: %w", req.DocumentName, err)
	}
	seconds, err := document.ExecutionSeconds(doc, req.Parameters)
	if err != nil {
		return nil, err
	}
	a, err := c.creation(body, proof)
	if err != nil {
		return nil, err
	}
	cmd, err := decideEntry[*fleet.Command](ctx, c, &entry.SendCommand{
		Authority: a, Document: content, Version: version, ExecutionSeconds: uint32(seconds),
	})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("command accepted", "command", cmd.ID, "document", cmd.DocumentName, "operator", cmd.Operator, "targets", len(cmd.Targets))
	return json.Marshal(ssm.SendCommandResult{Command: CommandView(cmd)})
}

func (c *Control) cancelCommand(ctx context.Context, body, proof []byte) ([]byte, error) {
	if _, err := entry.ParseCancelCommand(body); err != nil {
		return nil, err
	}
	cmd, err := decideEntry[*fleet.Command](ctx, c, &entry.CancelCommand{Authority: c.authority(body, proof)})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.Info("command cancelled", "command", cmd.ID, "cancelling", cmd.Count(fleet.CancelPending, fleet.CancelInProgress))
	return json.Marshal(ssm.CancelCommandResult{})
}

// Enrol decides a join request, here or on the leader. It checks what can be
// checked before the log: Apply checks it all again.
func (c *Control) Enrol(ctx context.Context, request []byte) (*fleet.Node, error) {
	b, err := c.route(ctx, opEnrol, request, nil)
	if err != nil {
		return nil, err
	}
	return parseNode(b)
}

func (c *Control) enrol(ctx context.Context, request []byte) ([]byte, error) {
	p, _, err := identity.ParseJoinRequest(request)
	if err != nil {
		return nil, err
	}
	body := &entry.Enrol{Stamp: c.cfg.Now().UnixNano(), Request: request}
	// A host that asks again gets its row; only what changes something is logged.
	if row := c.cfg.FSM.Store().NodeByKey(p.Key); row != nil && row.Address == p.Address {
		if a := c.cfg.FSM.Try(body); a.Err != nil {
			return nil, a.Err
		}
		return encodeNode(row)
	} else if a := c.cfg.FSM.Store().Activation(p.Activation); row == nil && a != nil {
		if a.Replaces != "" {
			done, err := c.refuseMember(ctx, a.Replaces)
			if err != nil {
				return nil, err
			}
			defer done()
		} else if p.Name == "" && a.DefaultName == "" {
			// Its ID would become its name: the host knows a better one.
			return nil, fleet.CodeErrorf(fleet.Invalid, fleet.CodeNoNodeName, "the host gives no name, and activation %s has none", a.ID).
				WithHint("name the host: --node-name NAME")
		}
	}
	node, err := decideEntry[*fleet.Node](ctx, c, body)
	if err != nil {
		return nil, err
	}
	if node.Replaces != "" {
		c.cfg.Logger.Info("node replaced", "node", node.Replaces, "name", node.Name, "by", node.ID)
	}
	return encodeNode(node)
}

// ChangeAddress decides a host's signed word that it answers elsewhere now.
func (c *Control) ChangeAddress(ctx context.Context, change []byte) (*fleet.Node, error) {
	b, err := c.route(ctx, opChangeAddress, change, nil)
	if err != nil {
		return nil, err
	}
	return parseNode(b)
}

func (c *Control) changeAddress(ctx context.Context, change []byte) ([]byte, error) {
	p, err := identity.ParseAddressChange(change)
	if err != nil {
		return nil, err
	}
	if row := c.cfg.FSM.Store().Node(p.Node); row != nil && row.Address == p.Address && p.Verify(row.Key) == nil {
		return encodeNode(row)
	}
	node, err := decideEntry[*fleet.Node](ctx, c, &entry.Address{Stamp: c.cfg.Now().UnixNano(), Request: change})
	if err != nil {
		return nil, err
	}
	return encodeNode(node)
}

// encodeNode and parseNode carry a row between two quorum hosts.
func encodeNode(n *fleet.Node) ([]byte, error) { return wire.Marshal(n) }

func parseNode(b []byte) (*fleet.Node, error) {
	var n fleet.Node
	if err := wire.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("answer of the leader: %w", err)
	}
	return &n, nil
}
