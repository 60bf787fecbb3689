package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/devfleet"
	"fleet/node/document"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// TestForgedLeader is a leader that was stolen and proposes what nobody with
// the right asked for: operators' requests, enrolments, trust. It may write
// what it likes into the log; every replica refuses it in Apply, alike, and is
// what it was before.
func TestForgedLeader(t *testing.T) {
	t.Run("three replicas", func(t *testing.T) { newReplicas(t).tryAll(t) })
	t.Run("leader of a fleet", func(t *testing.T) { newStolenLeader(t).tryAll(t) })
}

// court is a fleet's replicas, and what a stolen leader has and knows of them:
// its own keys, and what operators signed.
type court struct {
	fleet    fleet.ID
	operator fleet.OperatorName
	key      identity.PrivateKey // the operator's, to make what he signed
	thief    identity.PrivateKey // some key of the leader's host
	trust    *identity.Trust
	node     fleet.NodeID // enrolled

	now      int64 // stamp of the next entry
	replicas []*raftfsm.FSM
	propose  func(t *testing.T, b []byte) raftfsm.Answer // applied by all replicas when it returns
}

// newReplicas makes three bare state machines that get the same entries.
func newReplicas(t *testing.T) *court {
	t.Helper()
	c := &court{operator: "ada", key: newKey(t), thief: newKey(t), now: time.Now().UnixNano()}
	root, agent := newKey(t), newKey(t)
	c.fleet, c.node = fleet.IDOf(root.Public()), fleet.NodeIDOf(agent.Public())
	raw, err := identity.SignTrust(root, identity.Trust{
		Fleet: c.fleet, Version: 1, Epoch: 1, K: 1, FirstOperator: &identity.TrustOperator{Name: c.operator, Key: c.key.Public()},
		Voters:  []identity.TrustVoter{{Node: c.node, Key: c.thief.Public()}},
		Issuers: []identity.TrustIssuer{{Node: c.node, Key: newKey(t).Public()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.trust, err = identity.ParseTrust(raw, root.Public()); err != nil {
		t.Fatal(err)
	}
	certificate, err := identity.NewRootCertificate(root, "test", time.Unix(0, c.now))
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	c.replicas = []*raftfsm.FSM{raftfsm.New(c.fleet), raftfsm.New(c.fleet), raftfsm.New(c.fleet)}
	c.propose = func(t *testing.T, b []byte) raftfsm.Answer {
		t.Helper()
		index++
		var first raftfsm.Answer
		for i, f := range c.replicas {
			a := f.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: b}).(raftfsm.Answer)
			if i == 0 {
				first = a
			} else if (a.Err == nil) != (first.Err == nil) || a.Err != nil && a.Err.Error() != first.Err.Error() {
				t.Errorf("replica %d answers %v, replica 0 %v", i, a.Err, first.Err)
			}
		}
		return first
	}
	c.accept(t, &entry.Genesis{Payload: identity.SignGenesis(root, identity.GenesisPayload{
		Trust: raw, RootCertificate: certificate, FleetName: "test", GossipKey: bytes.Repeat([]byte{9}, 32),
		Operator: fleet.Operator{Name: c.operator, Keys: []fleet.PublicKey{c.key.Public()}, May: []string{"*"}, Created: c.now},
		Node:     fleet.Node{ID: c.node, Name: "host1", Key: agent.Public(), Address: "10.0.0.1:7790", Enrolled: c.now},
	})})
	return c
}

// newStolenLeader starts a fleet of three voters and takes its leader's place.
func newStolenLeader(t *testing.T) *court {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fleet")
	f, err := devfleet.Start(t.Context(), devfleet.Options{
		Dir: dir, Nodes: 3, Quorum: 3, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cred, stolen := f.Credential(), f.Nodes()[0]
	c := &court{fleet: cred.Fleet, operator: cred.Operator, key: cred.Key, now: time.Now().UnixNano(), node: stolen.ID()}
	data, info, err := enrol.OpenDir(filepath.Join(dir, stolen.Name()))
	if err != nil {
		t.Fatal(err)
	}
	quorum, err := data.LoadIdentity(enrol.Quorum)
	if err != nil {
		t.Fatal(err)
	}
	c.thief = quorum.Key
	if c.trust, err = data.Trust(info.Root()); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes() {
		c.replicas = append(c.replicas, n.FSM())
	}
	c.propose = func(t *testing.T, b []byte) raftfsm.Answer {
		t.Helper()
		return proposeOn(t, f, b)
	}
	return c
}

// proposeOn proposes on whoever leads until the entry is decided, and waits
// until all voters have applied it. (An entry that was decided twice is answered
// as it was the first time.)
func proposeOn(t *testing.T, f *devfleet.Fleet, b []byte) raftfsm.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := errors.New("no leader")
		if leader := f.Leader(); leader != nil {
			var a raftfsm.Answer
			if a, err = leader.ProposeBytes(ctx, b); err == nil {
				for _, n := range f.Nodes() {
					if err := n.FSM().WaitApplied(ctx, a.Index); err != nil {
						t.Fatal(err)
					}
				}
				return a
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("nothing is decided: %v", err)
		}
	}
}

func newKey(t *testing.T) identity.PrivateKey {
	t.Helper()
	k, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newID(t *testing.T) string {
	t.Helper()
	s := hex.EncodeToString(nonce(t))
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func nonce(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// hash is that of all replicas.
func (c *court) hash(t *testing.T) fleet.Digest {
	t.Helper()
	first := c.replicas[0].Hash()
	for i, f := range c.replicas {
		if h := f.Hash(); h != first {
			t.Fatalf("replica %d has the hash %s, replica 0 %s", i, h, first)
		}
	}
	return first
}

func (c *court) apply(t *testing.T, body entry.Body) raftfsm.Answer {
	t.Helper()
	b, err := entry.Encode(body)
	if err != nil {
		t.Fatal(err)
	}
	return c.propose(t, b)
}

func (c *court) accept(t *testing.T, body entry.Body) raftfsm.Answer {
	t.Helper()
	a := c.apply(t, body)
	if a.Err != nil {
		t.Fatalf("%s: %v", body.Kind(), a.Err)
	}
	return a
}

// proof is what the operator would sign.
func (c *court) proof(t *testing.T, operation string, request []byte) identity.Proof {
	t.Helper()
	return identity.Proof{
		Fleet: c.fleet, Operator: c.operator, Key: c.key.Public().ID(), Operation: operation, Body: fleet.Sum(request),
		Nonce: [16]byte(nonce(t)), NotAfter: c.now + int64(time.Minute),
	}
}

func (c *court) authority(t *testing.T, operation, id string, request any) entry.Authority {
	t.Helper()
	b, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	return entry.Authority{Stamp: c.now, ID: id, Request: b, Proof: identity.SignProof(c.key, c.proof(t, operation, b))}
}

// send is the operator's request to run the built-in document on one node.
func (c *court) send(t *testing.T) *entry.SendCommand {
	t.Helper()
	content, version, _ := document.Builtin("AWS-RunShellScript")
	return &entry.SendCommand{
		Authority: c.authority(t, "SendCommand", newID(t), entry.SendCommandV1{
			DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
			Targets:    []fleet.Target{{Key: "tag:role", Values: []string{"nobody"}}},
			Parameters: map[string][]string{"commands": {"true"}}, TimeoutSeconds: 60, MaxConcurrency: "100%", MaxErrors: "100%",
		}),
		Document: content, Version: version, ExecutionSeconds: 60,
	}
}

func (c *court) addTags(t *testing.T) *entry.AddTags {
	t.Helper()
	return &entry.AddTags{Authority: c.authority(t, "AddTagsToResource", "", entry.AddTagsToResourceV1{
		ResourceType: "ManagedInstance", ResourceId: string(c.node), Tags: []entry.Tag{{Key: "role", Value: "web"}},
	})}
}

// activation is the operator's request for an activation, and its code.
func (c *court) appointment(t *testing.T, key fleet.PublicKey, may ...string) *entry.CreateOperator {
	t.Helper()
	return &entry.CreateOperator{Authority: c.authority(t, "CreateOperator", "", entry.CreateOperatorV1{
		Name: "op" + newID(t)[:8], PublicKey: base64.StdEncoding.EncodeToString(key[:]), May: may,
	})}
}

func (c *court) removal(t *testing.T, node fleet.NodeID) *entry.RemoveNode {
	t.Helper()
	return &entry.RemoveNode{Authority: c.authority(t, "DeregisterManagedInstance", "",
		entry.DeregisterManagedInstanceV1{InstanceId: string(node)})}
}

func (c *court) activation(t *testing.T) (*entry.CreateActivation, identity.Code) {
	t.Helper()
	code, err := identity.NewCode()
	if err != nil {
		t.Fatal(err)
	}
	key := code.Key().Public()
	request := map[string]any{"RegistrationLimit": 1, "PublicKey": key[:]}
	return &entry.CreateActivation{Authority: c.authority(t, "CreateActivation", newID(t), request)}, code
}

// join is a request to enrol with an activation, with the signatures of these
// keys, which need not be the right ones.
func (c *court) join(t *testing.T, activation fleet.ActivationID, agent, agentSigns, codeSigns identity.PrivateKey) *entry.Enrol {
	t.Helper()
	code, err := identity.NewCode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.NewJoinRequest(identity.JoinPayload{
		Fleet: c.fleet, Activation: activation, Key: agent.Public(), Name: "stolen", Address: "10.0.0.66:7790",
		Epoch: uint32(c.now / int64(time.Second)),
	}, agent, code)
	if err != nil {
		t.Fatal(err)
	}
	_, req, err := identity.ParseJoinRequest(b)
	if err != nil {
		t.Fatal(err)
	}
	req.AgentSig, req.CodeSig = agentSigns.Sign(identity.UseJoin, req.Payload), codeSigns.Sign(identity.UseJoin, req.Payload)
	return &entry.Enrol{Stamp: c.now, Request: wire.MustMarshal(req)}
}

// falseTrust is the next trust.json of a fleet, in its right form, signed with
// a key that is not the root's.
func (c *court) falseTrust(t *testing.T, of fleet.ID, by identity.PrivateKey) []byte {
	t.Helper()
	root := newKey(t)
	next := *c.trust
	next.Version, next.FirstOperator, next.Fleet = c.trust.Version+1, nil, fleet.IDOf(root.Public())
	raw, err := identity.SignTrust(root, next) // it signs for the fleet of its key only
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Payload   []byte `json:"payload"`
		Signature []byte `json:"signature"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	file.Payload = bytes.ReplaceAll(file.Payload, []byte(next.Fleet), []byte(of))
	file.Signature = by.Sign(identity.UseTrust, file.Payload)
	return []byte(jsonOf(t, file))
}

// forgeries are entries that must be refused, each with the kind of the error.
var forgeries = []struct {
	name  string
	kind  fleet.Kind
	forge func(t *testing.T, c *court) entry.Body
}{
	{"command signed with the leader's key under the operator's", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		e.Proof = identity.SignProof(c.thief, c.proof(t, "SendCommand", e.Request))
		return e
	}},
	{"command signed with the leader's key", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		p := c.proof(t, "SendCommand", e.Request)
		p.Key = c.thief.Public().ID()
		e.Proof = identity.SignProof(c.thief, p)
		return e
	}},
	{"command of an operator that does not exist", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		p := c.proof(t, "SendCommand", e.Request)
		p.Operator = "mallory"
		e.Proof = identity.SignProof(c.key, p)
		return e
	}},
	{"command without a proof", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		e.Proof = []byte{0x80}
		return e
	}},
	{"altered parameters", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		e.Request = bytes.Replace(e.Request, []byte(`"true"`), []byte(`"evil"`), 1)
		return e
	}},
	{"altered targets", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		few, all := []byte(`"Key":"tag:role","Values":["nobody"]`), []byte(`"Key":"InstanceIds","Values":["*"]`)
		if !bytes.Contains(e.Request, few) {
			t.Fatalf("no targets in %s", e.Request)
		}
		e.Request = bytes.Replace(e.Request, few, all, 1)
		return e
	}},
	{"proof of a connection", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		e.Proof = identity.SignProof(c.key, c.proof(t, identity.OperationConnect, e.Request))
		return e
	}},
	{"proof for another fleet", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		p := c.proof(t, "SendCommand", e.Request)
		p.Fleet = fleet.IDOf(c.thief.Public())
		e.Proof = identity.SignProof(c.key, p)
		return e
	}},
	{"labels signed for as a command", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.addTags(t)
		e.Proof = identity.SignProof(c.key, c.proof(t, "SendCommand", e.Request))
		return e
	}},
	{"labels of another node", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.addTags(t)
		e.Request = bytes.Replace(e.Request, []byte(c.node), []byte(fleet.NodeIDOf(c.thief.Public())), 1)
		return e
	}},
	{"document that was not signed for", fleet.Invalid, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		e.Document = bytes.Replace(e.Document, []byte("commands"), []byte("commandz"), 1)
		return e
	}},
	{"used proof with another body", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		used, e := c.addTags(t), c.addTags(t)
		c.accept(t, used)
		e.Request, e.Proof = bytes.Replace(e.Request, []byte("web"), []byte("db"), 1), used.Proof
		return e
	}},
	{"used nonce with another body", fleet.Conflict, func(t *testing.T, c *court) entry.Body {
		used, e := c.addTags(t), c.addTags(t)
		c.accept(t, used)
		e.Request = bytes.Replace(e.Request, []byte("web"), []byte("db"), 1)
		was, err := identity.ParseProof(used.Proof)
		if err != nil {
			t.Fatal(err)
		}
		p := c.proof(t, "AddTagsToResource", e.Request)
		p.Nonce = was.Nonce
		e.Proof = identity.SignProof(c.key, p)
		return e
	}},
	{"expired proof under a stamp of its time", fleet.Expired, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		c.now += 2 * int64(time.Minute)
		c.accept(t, c.addTags(t)) // the time of the fleet has passed the proof's
		return e
	}},
	{"proof that lasts too long", fleet.Expired, func(t *testing.T, c *court) entry.Body {
		e := c.send(t)
		p := c.proof(t, "SendCommand", e.Request)
		p.NotAfter = c.now + int64(time.Hour)
		e.Proof = identity.SignProof(c.key, p)
		return e
	}},
	{"operator who may not", fleet.Denied, func(t *testing.T, c *court) entry.Body {
		limited := newKey(t)
		for _, f := range c.replicas {
			txn := f.Store().Write()
			txn.PutOperator(&fleet.Operator{
				Name: "limited", Keys: []fleet.PublicKey{limited.Public()}, May: []string{"AddTagsToResource"}, Created: c.now,
			})
			txn.Commit()
		}
		sign := func(operation string, a *entry.Authority) {
			p := c.proof(t, operation, a.Request)
			p.Operator, p.Key = "limited", limited.Public().ID()
			a.Proof = identity.SignProof(limited, p)
		}
		tags, e := c.addTags(t), c.send(t)
		sign("AddTagsToResource", &tags.Authority)
		sign("SendCommand", &e.Authority)
		c.accept(t, tags)
		return e
	}},
	{"activation with the leader's key", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e, _ := c.activation(t)
		other, _ := c.activation(t)
		e.Request = other.Request
		return e
	}},
	{"activation deleted by nobody", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		a, _ := c.activation(t)
		c.accept(t, a)
		e := &entry.DeleteActivation{Authority: c.authority(t, "DeleteActivation", "", entry.DeleteActivationV1{ActivationId: a.ID})}
		e.Proof = identity.SignProof(c.thief, c.proof(t, "DeleteActivation", e.Request))
		return e
	}},
	{"target saved by nobody", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := &entry.PutTarget{Authority: c.authority(t, "PutTarget", "", entry.PutTargetV1{Name: "web", NodeSet: "web1"})}
		e.Proof = identity.SignProof(c.thief, c.proof(t, "PutTarget", e.Request))
		return e
	}},
	{"target widened", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := &entry.PutTarget{Authority: c.authority(t, "PutTarget", "", entry.PutTargetV1{Name: "web", NodeSet: "web1"})}
		e.Request = []byte(`{"Name":"web","NodeSet":"@*"}`)
		return e
	}},
	{"target removed by nobody", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		c.accept(t, &entry.PutTarget{Authority: c.authority(t, "PutTarget", "", entry.PutTargetV1{Name: "web", NodeSet: "web1"})})
		e := &entry.DeleteTarget{Authority: c.authority(t, "DeleteTarget", "", entry.DeleteTargetV1{Name: "web"})}
		e.Proof = identity.SignProof(c.thief, c.proof(t, "DeleteTarget", e.Request))
		return e
	}},
	{"enrolment without the code", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		a, _ := c.activation(t)
		c.accept(t, a)
		host := newKey(t)
		return c.join(t, fleet.ActivationID(a.ID), host, host, host)
	}},
	{"enrolment without the host's key", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		a, code := c.activation(t)
		c.accept(t, a)
		return c.join(t, fleet.ActivationID(a.ID), newKey(t), code.Key(), code.Key())
	}},
	{"enrolment with the code as the host's key", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		a, code := c.activation(t)
		c.accept(t, a)
		return c.join(t, fleet.ActivationID(a.ID), code.Key(), code.Key(), code.Key())
	}},
	{"enrolment with no activation", fleet.NotFound, func(t *testing.T, c *court) entry.Body {
		host := newKey(t)
		return c.join(t, fleet.ActivationID(newID(t)), host, host, c.thief)
	}},
	{"second enrolment with an activation for one", fleet.Throttled, func(t *testing.T, c *court) entry.Body {
		a, code := c.activation(t)
		c.accept(t, a)
		first, second := newKey(t), newKey(t)
		c.accept(t, c.join(t, fleet.ActivationID(a.ID), first, first, code.Key()))
		return c.join(t, fleet.ActivationID(a.ID), second, second, code.Key())
	}},
	{"enrolled host again, signed by another", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		a, code := c.activation(t)
		c.accept(t, a)
		host := newKey(t)
		c.accept(t, c.join(t, fleet.ActivationID(a.ID), host, host, code.Key()))
		return c.join(t, fleet.ActivationID(a.ID), host, c.thief, code.Key())
	}},
	{"host removed by the leader", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.removal(t, fleet.NodeIDOf(c.thief.Public()))
		e.Proof = identity.SignProof(c.thief, c.proof(t, "DeregisterManagedInstance", e.Request))
		return e
	}},
	{"another host removed than the operator meant", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.removal(t, fleet.NodeIDOf(c.thief.Public()))
		e.Request = bytes.Replace(e.Request, []byte(fleet.NodeIDOf(c.thief.Public())), []byte(c.node), 1)
		return e
	}},
	{"host made to leave by the leader", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		own := newKey(t)
		b, err := identity.NewLeave(identity.Leave{Fleet: c.fleet, Node: fleet.NodeIDOf(own.Public()), Epoch: uint32(c.now / int64(time.Second))}, own)
		if err != nil {
			t.Fatal(err)
		}
		l, err := identity.ParseLeave(b)
		if err != nil {
			t.Fatal(err)
		}
		payload := bytes.Replace(l.Payload, []byte(l.Node), []byte(c.node), 1)
		return &entry.Leave{Stamp: c.now, Request: identity.EncodeSigned(payload, c.thief.Sign(identity.UseLeave, payload))}
	}},
	{"operator made by the leader", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.appointment(t, c.thief.Public(), "*")
		e.Proof = identity.SignProof(c.thief, c.proof(t, "CreateOperator", e.Request))
		return e
	}},
	{"operator with another key than was signed for", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := c.appointment(t, newKey(t).Public(), "*")
		e.Request = c.appointment(t, c.thief.Public(), "*").Request
		return e
	}},
	{"operator who grants more than he has", fleet.Denied, func(t *testing.T, c *court) entry.Body {
		limited := newKey(t)
		few := c.appointment(t, limited.Public(), "CreateOperator")
		c.accept(t, few)
		e := c.appointment(t, newKey(t).Public(), "SendCommand")
		var named struct{ Name string }
		if err := json.Unmarshal(few.Request, &named); err != nil {
			t.Fatal(err)
		}
		p := c.proof(t, "CreateOperator", e.Request)
		p.Operator, p.Key = fleet.OperatorName(named.Name), limited.Public().ID()
		e.Proof = identity.SignProof(limited, p)
		return e
	}},
	{"the operator dismissed by the leader", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		e := &entry.DeleteOperator{Authority: c.authority(t, "DeleteOperator", "", entry.DeleteOperatorV1{Name: "dev"})}
		e.Proof = identity.SignProof(c.thief, c.proof(t, "DeleteOperator", e.Request))
		return e
	}},
	{"voter removed, signed by the operator", fleet.Conflict, func(t *testing.T, c *court) entry.Body {
		return c.removal(t, c.trust.Voters[0].Node)
	}},
	{"removed host enrolled again", fleet.Denied, func(t *testing.T, c *court) entry.Body {
		a, code := c.activation(t)
		c.accept(t, a)
		host := newKey(t)
		c.accept(t, c.join(t, fleet.ActivationID(a.ID), host, host, code.Key()))
		c.accept(t, c.removal(t, fleet.NodeIDOf(host.Public())))
		again, code := c.activation(t)
		c.accept(t, again)
		return c.join(t, fleet.ActivationID(again.ID), host, host, code.Key())
	}},
	{"address of another host", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		own := newKey(t)
		b, err := identity.NewAddressChange(identity.AddressChange{
			Fleet: c.fleet, Node: fleet.NodeIDOf(own.Public()), Address: "10.0.0.66:7790", Epoch: uint32(c.now/int64(time.Second)) + 1,
		}, own)
		if err != nil {
			t.Fatal(err)
		}
		change, err := identity.ParseAddressChange(b)
		if err != nil {
			t.Fatal(err)
		}
		payload := bytes.Replace(change.Payload, []byte(change.Node), []byte(c.node), 1)
		return &entry.Address{Stamp: c.now, Request: identity.EncodeSigned(payload, c.thief.Sign(identity.UseAddress, payload))}
	}},
	{"trust.json signed by a voter", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		return &entry.Trust{Stamp: c.now, Trust: c.falseTrust(t, c.fleet, c.thief)}
	}},
	{"trust.json of another root key", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		root := newKey(t)
		return &entry.Trust{Stamp: c.now, Trust: c.falseTrust(t, fleet.IDOf(root.Public()), root)}
	}},
	{"altered trust.json", fleet.Unauthenticated, func(t *testing.T, c *court) entry.Body {
		var file map[string][]byte
		if err := json.Unmarshal(c.trust.Raw(), &file); err != nil {
			t.Fatal(err)
		}
		version := func(n uint32) []byte { return []byte(`"version":` + jsonOf(t, n)) }
		if !bytes.Contains(file["payload"], version(c.trust.Version)) {
			t.Fatalf("no version in %s", file["payload"])
		}
		file["payload"] = bytes.Replace(file["payload"], version(c.trust.Version), version(c.trust.Version+1), 1)
		return &entry.Trust{Stamp: c.now, Trust: []byte(jsonOf(t, file))}
	}},
	{"trust.json that is not the next", fleet.Conflict, func(_ *testing.T, c *court) entry.Body {
		return &entry.Trust{Stamp: c.now, Trust: c.trust.Raw()}
	}},
	{"genesis of the leader's own", fleet.Conflict, func(*testing.T, *court) entry.Body { return &entry.Genesis{Payload: []byte{0x80}} }},
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (c *court) tryAll(t *testing.T) {
	// That the true ones are accepted shows what the forged ones are refused for.
	c.accept(t, c.send(t))
	c.accept(t, c.addTags(t))
	for _, f := range forgeries {
		t.Run(f.name, func(t *testing.T) {
			body := f.forge(t, c)
			before := c.hash(t)
			a := c.apply(t, body)
			if fleet.KindOf(a.Err) != f.kind {
				t.Errorf("answered %v, %v; want an error of kind %s", a.Value, a.Err, f.kind)
			}
			if after := c.hash(t); after != before {
				t.Errorf("refused, and the state went from %s to %s", before, after)
			}
		})
	}
}
