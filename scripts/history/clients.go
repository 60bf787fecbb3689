package history

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"

	"fleet/node/fleet"
	"fleet/node/ssm"
)

// Caller does one operation of the API: an api/client.Client.
type Caller interface {
	Call(ctx context.Context, operation string, req, resp any) error
}

// Keys is what clients work on.
type Keys struct {
	Node    fleet.NodeID // whose labels and name they change
	Labels  int          // how many labels
	Targets int          // how many saved targets
}

// Work lets one client do operations until ctx ends: labels, saved targets, a
// node's name, activations. It counts those that were answered in done.
func (r *Recorder) Work(ctx context.Context, c Caller, keys Keys, seed *mathrand.Rand, done *atomic.Int64) {
	p := r.Process()
	made := 0
	var activation fleet.ActivationID
	for ctx.Err() == nil {
		value := fmt.Sprintf("v%d", r.next.Add(1)) // of a write; every one is another
		verb := []Verb{Read, Read, Write, Write, Delete}[seed.IntN(5)]
		var res Result
		switch n := seed.IntN(10); {
		case n < 5:
			res = label(ctx, p, c, keys.Node, fmt.Sprintf("k%d", seed.IntN(keys.Labels)), verb, value)
		case n < 8:
			res = target(ctx, p, c, fmt.Sprintf("t%d", seed.IntN(keys.Targets)), verb, value)
		case n == 8:
			res = name(ctx, p, c, keys.Node, verb, value)
		case activation == "" && made < 20:
			made++
			activation = activate(ctx, p, c, value)
		case activation != "":
			if res = permission(ctx, p, c, activation, verb); verb == Delete {
				activation = "" // however it ended
			}
		}
		if !res.Unknown {
			done.Add(1)
		}
	}
}

// ask does one operation. An error that says what is so is an answer.
func ask(ctx context.Context, c Caller, operation string, req, resp any) Result {
	err := c.Call(ctx, operation, req, resp)
	switch fleet.KindOf(err) {
	case fleet.NotFound:
		return Result{Absent: true}
	default:
		return Result{Unknown: err != nil}
	}
}

func label(ctx context.Context, p *Process, c Caller, node fleet.NodeID, key string, verb Verb, value string) Result {
	return p.Do(Op{Key: "label " + key, Verb: verb, Value: value}, func() Result {
		switch verb {
		case Write:
			return ask(ctx, c, "AddTagsToResource", ssm.AddTagsToResourceRequest{
				ResourceType: ssm.ResourceManagedInstance, ResourceId: string(node), Tags: []ssm.Tag{{Key: key, Value: value}}}, nil)
		case Delete:
			return ask(ctx, c, "RemoveTagsFromResource", ssm.RemoveTagsFromResourceRequest{
				ResourceType: ssm.ResourceManagedInstance, ResourceId: string(node), TagKeys: []string{key}}, nil)
		}
		var list ssm.ListTagsForResourceResult
		res := ask(ctx, c, "ListTagsForResource", ssm.ListTagsForResourceRequest{
			ResourceType: ssm.ResourceManagedInstance, ResourceId: string(node)}, &list)
		for _, t := range list.TagList {
			if t.Key == key {
				res.Value = t.Value
			}
		}
		return res
	})
}

func target(ctx context.Context, p *Process, c Caller, name string, verb Verb, value string) Result {
	return p.Do(Op{Key: "target " + name, Verb: verb, Value: value, Strict: true}, func() Result {
		switch verb {
		case Write:
			return ask(ctx, c, "PutTarget", fleet.PutTargetRequest{Name: fleet.TargetName(name), Description: value, NodeSet: "web1"}, nil)
		case Delete:
			return ask(ctx, c, "DeleteTarget", fleet.DeleteTargetRequest{Name: fleet.TargetName(name)}, nil)
		}
		var list fleet.DescribeTargetsResult
		res := ask(ctx, c, "DescribeTargets", fleet.DescribeTargetsRequest{Names: []string{name}}, &list)
		for _, t := range list.Targets {
			res.Value = t.Description
		}
		return res
	})
}

// name renames a node; there is no node without a name, so Delete writes too.
func name(ctx context.Context, p *Process, c Caller, node fleet.NodeID, verb Verb, value string) Result {
	if verb != Read {
		verb = Write
	}
	return p.Do(Op{Key: "name", Verb: verb, Value: value}, func() Result {
		if verb == Write {
			return ask(ctx, c, "RenameNode", fleet.RenameNodeRequest{InstanceId: string(node), Name: value}, nil)
		}
		var list fleet.DescribeNodesResult
		res := ask(ctx, c, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{string(node)}, Brief: true}, &list)
		for _, n := range list.Nodes {
			res.Value = n.Name
		}
		return res
	})
}

func activate(ctx context.Context, p *Process, c Caller, value string) (id fleet.ActivationID) {
	p.Made(func() (string, string, bool) {
		key, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return "", "", false
		}
		var made ssm.CreateActivationResult
		err = c.Call(ctx, "CreateActivation", ssm.CreateActivationRequest{Description: value, RegistrationLimit: 1, PublicKey: key}, &made)
		id = fleet.ActivationID(made.ActivationId)
		return "activation " + made.ActivationId, value, err == nil
	})
	return id
}

// permission reads or deletes an activation; what it is never changes.
func permission(ctx context.Context, p *Process, c Caller, id fleet.ActivationID, verb Verb) Result {
	if verb == Write {
		verb = Read
	}
	return p.Do(Op{Key: "activation " + string(id), Verb: verb, Strict: true}, func() Result {
		if verb == Delete {
			return ask(ctx, c, "DeleteActivation", ssm.DeleteActivationRequest{ActivationId: string(id)}, nil)
		}
		var list ssm.DescribeActivationsResult
		res := ask(ctx, c, "DescribeActivations", ssm.DescribeActivationsRequest{
			Filters: []ssm.DescribeActivationsFilter{{FilterKey: "ActivationIds", FilterValues: []string{string(id)}}}}, &list)
		for _, a := range list.ActivationList {
			res.Value = a.Description
		}
		return res
	})
}

// Settle reads every key once more, when the faults are over: what
// was acknowledged and lost shows at the latest here.
func (r *Recorder) Settle(ctx context.Context, c Caller, keys Keys) {
	p := r.Process()
	for i := range keys.Labels {
		label(ctx, p, c, keys.Node, fmt.Sprintf("k%d", i), Read, "")
	}
	for i := range keys.Targets {
		target(ctx, p, c, fmt.Sprintf("t%d", i), Read, "")
	}
	name(ctx, p, c, keys.Node, Read, "")
}
