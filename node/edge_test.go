package node

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ssm"
)

// TestHugeTextIsRefusedAtTheEdge: what an operator or a host says of itself is
// bounded before it is decided. After all of it the voters' state is what it was.
func TestHugeTextIsRefusedAtTheEdge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 1)
		defer b.stopAll()
		c := b.client()
		defer c.Close()
		agent := b.nodes["n2"]
		huge := strings.Repeat("x", 64<<10)
		many := func(n int) []ssm.Tag {
			var tags []ssm.Tag
			for i := range n {
				tags = append(tags, ssm.Tag{Key: fmt.Sprintf("key%d", i), Value: "v"})
			}
			return tags
		}
		code, err := identity.NewCode()
		if err != nil {
			t.Fatal(err)
		}
		key := code.Key().Public()
		var made ssm.CreateActivationResult
		if err := c.Call(t.Context(), "CreateActivation", ssm.CreateActivationRequest{RegistrationLimit: 1, PublicKey: key[:]}, &made); err != nil {
			t.Fatal(err)
		}
		m := b.nodes["n1"].member.Load()
		hash, entries := m.fsm.Hash(), m.fsm.Applied()
		tag := func(tags ...ssm.Tag) any {
			return ssm.AddTagsToResourceRequest{ResourceType: "ManagedInstance", ResourceId: string(agent.ID()), Tags: tags}
		}
		for what, call := range map[string]struct {
			operation string
			req       any
		}{
			"a key of 64 KiB":            {"AddTagsToResource", tag(ssm.Tag{Key: huge, Value: "v"})},
			"a value of 64 KiB":          {"AddTagsToResource", tag(ssm.Tag{Key: "k", Value: huge})},
			"1,000 keys":                 {"AddTagsToResource", tag(many(1000)...)},
			"a million keys":             {"AddTagsToResource", tag(many(1_000_000)...)},
			"a node name of 64 KiB":      {"RenameNode", fleet.RenameNodeRequest{InstanceId: string(agent.ID()), Name: huge}},
			"a target of 64 KiB":         {"PutTarget", fleet.PutTargetRequest{Name: fleet.TargetName(huge), NodeSet: "x"}},
			"an operator of 64 KiB":      {"CreateOperator", fleet.CreateOperatorRequest{Name: huge, PublicKey: key[:], May: []string{"*"}}},
			"an activation's huge label": {"CreateActivation", ssm.CreateActivationRequest{RegistrationLimit: 1, PublicKey: key[:], Tags: []ssm.Tag{{Key: huge, Value: "v"}}}},
			"an activation's huge name":  {"CreateActivation", ssm.CreateActivationRequest{RegistrationLimit: 1, PublicKey: key[:], DefaultInstanceName: huge}},
		} {
			err := c.Call(t.Context(), call.operation, call.req, nil)
			if kind := fleet.KindOf(err); kind != fleet.Invalid && kind != fleet.TooLarge {
				t.Errorf("%s: %v", what, err)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("%s: the error has %d bytes", what, len(err.Error()))
			}
		}

		// A host names itself when it joins, and says more with its heartbeats.
		token := identity.JoinToken{
			Root: fleet.Sum(agent.root[:]), Activation: fleet.ActivationID(made.ActivationId), Code: code, Addresses: []string{b.addr("n1")},
		}
		if _, err := enrol.Join(t.Context(), enrol.JoinOptions{
			DataDir: b.data("n3"), Token: token, NodeName: huge, Advertise: "10.0.0.3:7790", Now: b.nodes["n1"].cfg.Now,
			Dial: b.net.Host("10.0.0.3").DialContext,
		}); err == nil {
			t.Error("a host joined with a name of 64 KiB")
		}
		to := quorumHost(b.nodes["n1"].ID())
		for what, req := range map[string]*rpc.HeartbeatRequest{
			"a version of 64 KiB": {Version: huge}, "a boot of 64 KiB": {Boot: huge}, "a warning of 2 KiB": {Warnings: []string{huge[:2<<10]}},
			"100 warnings": {Warnings: make([]string, 100)},
		} {
			_, err := rpc.Call[rpc.HeartbeatRequest, rpc.HeartbeatResponse](t.Context(), agent.rpc, to, rpc.MethodHeartbeat, req)
			if kind := fleet.KindOf(err); kind != fleet.Invalid && kind != fleet.TooLarge {
				t.Errorf("%s: %v", what, err)
			}
		}
		if m.fsm.Hash() != hash || m.fsm.Applied() != entries {
			t.Errorf("%d entries were applied, and the state changed: %v", m.fsm.Applied()-entries, m.fsm.Hash() != hash)
		}
	})
}
