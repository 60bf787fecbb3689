package raftfsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

func TestHandlersAreComplete(t *testing.T) {
	for k := entry.Kind(0); k < 255; k++ {
		_, decoded := entry.Decode([]byte{entry.Version, byte(k), 0x80})
		if _, ok := handlers[k]; ok != (decoded == nil) {
			t.Errorf("%s: decoded %v, handled %v", k, decoded == nil, ok)
		}
	}
}

func TestApplyPanicsOnWhatItCannotRead(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": nil, "version 2": {2, 1, 0x80}, "kind 99": {1, 99, 0x80}, "garbage": {1, 2, 0xc1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			hash := w.fsm.Hash()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				if w.fsm.Hash() != hash || w.fsm.Applied() != 1 {
					t.Error("the state changed")
				}
			}()
			w.fsm.Apply(&raft.Log{Index: 2, Type: raft.LogCommand, Data: b})
		})
	}
}

func TestApplyIgnoresRaftsOwnEntries(t *testing.T) {
	w := newWorld(t)
	if got := w.fsm.Apply(&raft.Log{Index: 2, Type: raft.LogNoop}); got != nil || w.fsm.Applied() != 1 {
		t.Errorf("Apply = %v, applied %d", got, w.fsm.Applied())
	}
}

func TestGenesis(t *testing.T) {
	w := newWorld(t)
	s := w.fsm.Store()
	f := s.Fleet()
	if !f.Genesis || f.ID != fleetID || f.Name != "test" || f.Root != rootKey.Public() || len(s.GossipKeys().Raw()[0]) != 32 || len(f.RootCertificate) == 0 {
		t.Errorf("fleet %+v", f)
	}
	if tr := s.Trust(); tr == nil || tr.Version != 1 || tr.K != 1 || len(tr.Raw()) == 0 {
		t.Errorf("trust %+v", tr)
	}
	if o := s.OperatorByKey(operatorKey.Public().ID()); o == nil || o.Name != "ada" {
		t.Errorf("operator %+v", o)
	}
	if n := s.Node(firstNode); n == nil || n.Index != 1 || s.LastStamp() != start {
		t.Errorf("node %+v, stamp %d", n, s.LastStamp())
	}
	w.refused(&entry.Genesis{Payload: storedGenesis(t)}, fleet.Conflict)
}

func TestNothingBeforeGenesis(t *testing.T) {
	other := newWorld(t)
	w := &world{tb: t, fsm: New(fleetID), now: start}
	for _, body := range []entry.Body{
		&entry.Trust{Stamp: start, Trust: trustJSON(t, rootKey, 2, 0, 3)}, other.join(1, 1), other.send(1, nil),
		&entry.Expire{Stamp: start, Command: fleet.CommandID(uuid(1))},
	} {
		w.refused(body, fleet.Invalid)
	}
}

func TestGenesisRefuses(t *testing.T) {
	foreign := key('R', 1)
	edit := func(change func(*identity.GenesisPayload)) []byte {
		p := genesisPayload(t, rootKey)
		change(&p)
		return identity.SignGenesis(rootKey, p)
	}
	for name, c := range map[string]struct {
		payload []byte
		kind    fleet.Kind
	}{
		"another fleet":       {identity.SignGenesis(foreign, genesisPayload(t, foreign)), fleet.Unauthenticated},
		"signed by another":   {identity.SignGenesis(foreign, genesisPayload(t, rootKey)), fleet.Unauthenticated},
		"another operator":    {edit(func(p *identity.GenesisPayload) { p.Operator.Keys[0] = foreign.Public() }), fleet.Invalid},
		"host of another key": {edit(func(p *identity.GenesisPayload) { p.Node.Key = foreign.Public() }), fleet.Invalid},
		"no time":             {edit(func(p *identity.GenesisPayload) { p.Node.Enrolled = 0 }), fleet.Invalid},
		"not a genesis":       {[]byte{0x80}, fleet.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{tb: t, fsm: New(fleetID), now: start}
			w.refused(&entry.Genesis{Payload: c.payload}, c.kind)
		})
	}
}

func TestTrust(t *testing.T) {
	w := newWorld(t)
	next := func(version, epoch uint32, voters int) *entry.Trust {
		return &entry.Trust{Stamp: w.now, Trust: trustJSON(t, rootKey, version, epoch, voters)}
	}
	watch := w.fsm.Store().WatchTrust()
	w.refused(next(1, 0, 1), fleet.Conflict)
	foreign := &entry.Trust{Stamp: w.now, Trust: trustJSON(t, key('R', 1), 2, 0, 3)}
	w.refused(foreign, fleet.Unauthenticated)
	altered := next(2, 0, 3)
	altered.Trust[len(altered.Trust)/2] ^= 1
	if a := w.apply(altered); a.Err == nil {
		t.Error("an altered trust.json was accepted")
	}
	if got := w.must(next(2, 5, 3)).(*identity.Trust); got.Version != 2 || got.K != 2 {
		t.Errorf("trust %+v", got)
	}
	select {
	case <-watch:
	default:
		t.Error("nobody was woken")
	}
	w.refused(next(2, 5, 3), fleet.Conflict)
	w.refused(next(3, 4, 3), fleet.Conflict)
	w.must(next(3, 5, 5))
	// A version that was signed and got lost is left out, and comes no more.
	w.must(next(5, 5, 3))
	w.refused(next(4, 5, 5), fleet.Conflict)
	// A later epoch is newer whatever its version: who recovers a fleet may not
	// know the last one.
	w.must(next(3, 6, 1))
	w.refused(next(9, 5, 5), fleet.Conflict)
	if o := w.fsm.Store().Operators(); len(o) != 1 {
		t.Errorf("%d operators; a later trust.json makes none", len(o))
	}
}

// TestForgedAuthority is a leader that proposes what no operator asked for.
func TestForgedAuthority(t *testing.T) {
	mallory := key('O', 1)
	for name, c := range map[string]struct {
		forge func(w *world, e *entry.SendCommand)
		kind  fleet.Kind
	}{
		"wrong key under the right ID": {func(w *world, e *entry.SendCommand) {
			e.Proof = identity.SignProof(mallory, w.proof("SendCommand", e.Request))
		}, fleet.Unauthenticated},
		"unknown key": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.Key = mallory.Public().ID()
			e.Proof = identity.SignProof(mallory, p)
		}, fleet.Unauthenticated},
		"unknown operator": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.Operator = "mallory"
			e.Proof = identity.SignProof(mallory, p)
		}, fleet.Unauthenticated},
		"another fleet": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.Fleet = fleet.IDOf(mallory.Public())
			e.Proof = identity.SignProof(operatorKey, p)
		}, fleet.Unauthenticated},
		"another operation": {func(w *world, e *entry.SendCommand) {
			e.Proof = identity.SignProof(operatorKey, w.proof("AddTagsToResource", e.Request))
		}, fleet.Unauthenticated},
		"a proof of a connection": {func(w *world, e *entry.SendCommand) {
			e.Proof = identity.SignProof(operatorKey, w.proof(identity.OperationConnect, e.Request))
		}, fleet.Unauthenticated},
		"altered body": {func(_ *world, e *entry.SendCommand) {
			e.Request = slices.Concat(e.Request[:len(e.Request)-1], []byte(`,"Comment":"x"}`))
		}, fleet.Unauthenticated},
		"re-targeted": {func(w *world, e *entry.SendCommand) {
			other := w.send(9, func(r *entry.SendCommandV1) { r.Targets = []fleet.Target{{Key: "tag:role", Values: []string{"db"}}} })
			e.Request = other.Request
		}, fleet.Unauthenticated},
		"altered signature": {func(_ *world, e *entry.SendCommand) { e.Proof[len(e.Proof)-1] ^= 1 }, fleet.Unauthenticated},
		"no proof at all":   {func(_ *world, e *entry.SendCommand) { e.Proof = []byte("x") }, fleet.Unauthenticated},
		"expired": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.NotAfter = w.now - 1
			e.Proof = identity.SignProof(operatorKey, p)
		}, fleet.Expired},
		"for too long": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.NotAfter = w.now + int64(identity.ProofLifetime) + 1
			e.Proof = identity.SignProof(operatorKey, p)
		}, fleet.Expired},
		"for ever": {func(w *world, e *entry.SendCommand) {
			p := w.proof("SendCommand", e.Request)
			p.NotAfter = 1<<63 - 1
			e.Proof = identity.SignProof(operatorKey, p)
		}, fleet.Expired},
		"another document": {func(_ *world, e *entry.SendCommand) { e.Document = []byte(`{"evil":true}`) }, fleet.Invalid},
		"an ID that exists": {func(w *world, e *entry.SendCommand) {
			w.must(w.send(1, nil))
			e.ID = uuid(1)
		}, fleet.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e := w.send(5, nil)
			c.forge(w, e)
			w.refused(e, c.kind)
			if w.fsm.Store().Command(fleet.CommandID(uuid(5))) != nil {
				t.Error("the command exists")
			}
		})
	}
}

func TestMay(t *testing.T) {
	for name, c := range map[string]struct {
		may []string
		ok  bool
	}{
		"all": {[]string{"*"}, true}, "this": {[]string{"AddTagsToResource", "SendCommand"}, true}, "another": {[]string{"CreateActivation"}, false},
		"a prefix": {[]string{"Send"}, false}, "another case": {[]string{"sendcommand"}, false}, "nothing": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			// No entry makes such operators: put the row there by hand.
			txn := w.fsm.Store().Write()
			txn.PutOperator(&fleet.Operator{Name: "ada", Keys: []fleet.PublicKey{key('O', 7).Public(), operatorKey.Public()}, May: c.may})
			txn.Commit()
			if c.ok {
				w.must(w.send(1, nil))
			} else {
				w.refused(w.send(1, nil), fleet.Denied)
			}
		})
	}
}

func TestRetriedRequestIsAnsweredOnce(t *testing.T) {
	w := newWorld(t)
	first := w.send(1, nil)
	made := w.must(first).(*fleet.Command)
	again := *first
	again.ID = uuid(2) // another leader draws another ID
	again.Stamp += second
	if c := w.must(&again).(*fleet.Command); c.ID != made.ID {
		t.Errorf("the retry made command %s; want %s", c.ID, made.ID)
	}
	if n := len(w.fsm.Store().Commands(0, "")); n != 1 {
		t.Errorf("%d commands; want 1", n)
	}

	// The nonce for another body, and for another kind of entry.
	other := w.send(3, func(r *entry.SendCommandV1) { r.Comment = "x" })
	p := w.proof("SendCommand", other.Request)
	p.Nonce = proofOf(t, first.Proof).Nonce
	other.Proof = identity.SignProof(operatorKey, p)
	w.refused(other, fleet.Conflict)
	p.Operation, p.Body = "DeleteActivation", fleet.Sum(first.Request)
	del := &entry.DeleteActivation{Authority: entry.Authority{Stamp: w.now, Request: first.Request, Proof: identity.SignProof(operatorKey, p)}}
	w.refused(del, fleet.Conflict)

	// After the proof has ended it is refused for that, and forgotten.
	w.now += int64(identity.ProofLifetime) + second
	w.createActivation(7, 1)
	again.Stamp = w.now
	w.refused(&again, fleet.Expired)
	again.Stamp = start // a lying stamp is raised
	w.refused(&again, fleet.Expired)
	if n := w.fsm.Store().NonceCount(operatorKey.Public().ID()); n != 1 {
		t.Errorf("%d nonces are remembered; want that of the activation", n)
	}
}

func proofOf(tb testing.TB, b []byte) *identity.SignedProof {
	tb.Helper()
	p, err := identity.ParseProof(b)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestRetriesOfEveryKind(t *testing.T) {
	w := newWorld(t)
	w.hosts(3)
	tags := []entry.Tag{{Key: "role", Value: "web"}}
	for _, body := range []entry.Body{
		&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(1), activation(1, 1))},
		&entry.AddTags{Authority: w.authority("AddTagsToResource", "", entry.AddTagsToResourceV1{ResourceType: "ManagedInstance", ResourceId: string(firstNode), Tags: tags})},
		&entry.RemoveTags{Authority: w.authority("RemoveTagsFromResource", "", entry.RemoveTagsFromResourceV1{ResourceType: "ManagedInstance", ResourceId: string(firstNode), TagKeys: []string{"role", "none"}})},
		&entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(1)})},
		w.send(1, nil), w.cancel(1, firstNode), w.cancel(1), w.target("web", nil), w.removeTarget("web"),
		w.rename(1, "web7"),
		w.remove(1), w.leave(2),
		w.appoint("bob", 2, "SendCommand"),
		w.dismiss("bob"),
	} {
		first := w.must(body)
		hash := w.fsm.Hash()
		second := w.must(body)
		if fmt.Sprint(first) != fmt.Sprint(second) || w.fsm.Hash() != hash {
			t.Errorf("%s: answered %v, then %v", body.Kind(), first, second)
		}
	}
	// The activation is gone; who made it still gets its ID.
	if a := w.must(&entry.CreateActivation{Authority: w.replay(4)}).(*fleet.Activation); a.ID != fleet.ActivationID(uuid(1)) {
		t.Errorf("activation %+v", a)
	}
}

// replay is the authority of the entry at an index after genesis.
func (w *world) replay(n int) entry.Authority {
	body, err := entry.Decode(w.log[n])
	if err != nil {
		w.tb.Fatal(err)
	}
	return *body.(authority).Signed()
}

func TestNoncesAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a table")
	}
	w := newWorld(t)
	w.quick = true
	txn := w.fsm.Store().Write()
	for i := range MaxNonces {
		txn.PutNonce(&state.Nonce{
			Key: operatorKey.Public().ID(), Nonce: [16]byte{byte(i), byte(i >> 8), byte(i >> 16), 0xff, 0xff},
			NotAfter: start + 60*second, Kind: entry.KindAddTags,
		})
	}
	txn.Commit()
	w.refused(w.send(1, nil), fleet.Throttled)
	w.now += 61 * second
	w.must(w.send(1, nil)) // the expired ones make room
}

func TestStampsNeverFall(t *testing.T) {
	w := newWorld(t)
	w.now += 100 * second
	w.createActivation(1, 5)
	if got := w.fsm.Store().LastStamp(); got != w.now {
		t.Errorf("LastStamp = %d; want %d", got, w.now)
	}
	enrol := w.join(1, 1)
	enrol.Stamp = start - 1000*second
	n := w.must(enrol).(*fleet.Node)
	if n.Enrolled != w.now || w.fsm.Store().LastStamp() != w.now {
		t.Errorf("enrolled at %d, stamp %d; want %d", n.Enrolled, w.fsm.Store().LastStamp(), w.now)
	}
}

func TestTry(t *testing.T) {
	w := newWorld(t)
	hash := w.fsm.Hash()
	e := w.send(1, nil)
	answer := w.fsm.Try(e)
	if c, ok := answer.Value.(*fleet.Command); !ok || answer.Err != nil || c.ID != fleet.CommandID(uuid(1)) {
		t.Errorf("Try = %+v", answer)
	}
	if w.fsm.Hash() != hash || w.fsm.Applied() != 1 || w.fsm.Store().Command(fleet.CommandID(uuid(1))) != nil {
		t.Error("Try changed the state")
	}
	w.must(e)
	if answer := w.fsm.Try(w.join(1, 1)); fleet.KindOf(answer.Err) != fleet.NotFound {
		t.Errorf("Try = %+v; want NotFound", answer)
	}
}

func TestWaitApplied(t *testing.T) {
	w := newWorld(t)
	if err := w.fsm.WaitApplied(t.Context(), 1); err != nil {
		t.Error(err)
	}
	done := make(chan error)
	go func() { done <- w.fsm.WaitApplied(t.Context(), 3) }()
	w.createActivation(1, 1)
	w.refused(w.join(2, 1), fleet.NotFound) // a refused entry is applied too
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := w.fsm.WaitApplied(ctx, 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitApplied = %v; want the deadline", err)
	}
}

// randomLog applies n entries, valid and not, chosen by the seed.
func randomLog(w *world, seed uint64, n int) {
	r := rand.New(rand.NewPCG(seed, 1))
	hosts, activations, commands := 1, 0, 0
	pick := func(n int) int { return r.IntN(max(n, 1)) }
	for range n {
		w.now += int64(r.IntN(20)-3) * second
		switch r.IntN(23) {
		case 0:
			activations++
			if r.IntN(3) == 0 {
				w.apply(w.createReplacing(activations, pick(hosts+1)))
				break
			}
			w.apply(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(activations),
				activation(activations, int64(1+r.IntN(5)), entry.Tag{Key: "a", Value: fmt.Sprint(activations)}, entry.Tag{Key: "b", Value: "1"}))})
		case 1:
			w.apply(&entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(pick(activations))})})
		case 2, 3:
			if a := w.apply(w.join(1+pick(activations), hosts)); a.Err == nil {
				hosts++
			}
		case 4:
			w.apply(w.join(1+pick(activations), pick(hosts)))
		case 5:
			tags := []entry.Tag{{Key: fmt.Sprintf("k%d", r.IntN(70)), Value: fmt.Sprint(r.IntN(3))}, {Key: "role", Value: fmt.Sprint(r.IntN(3))}}
			w.apply(&entry.AddTags{Authority: w.authority("AddTagsToResource", "",
				entry.AddTagsToResourceV1{ResourceType: "ManagedInstance", ResourceId: string(nodeID(pick(hosts + 1))), Tags: tags})})
		case 6:
			w.apply(&entry.RemoveTags{Authority: w.authority("RemoveTagsFromResource", "", entry.RemoveTagsFromResourceV1{
				ResourceType: "ManagedInstance", ResourceId: string(nodeID(pick(hosts))), TagKeys: []string{fmt.Sprintf("k%d", r.IntN(70)), "role"}})})
		case 7:
			commands++
			w.apply(w.send(commands, func(req *entry.SendCommandV1) {
				switch r.IntN(3) {
				case 0:
					req.Targets = []fleet.Target{{Key: "tag:role", Values: []string{"1", "2"}}}
				case 1:
					req.Targets, req.InstanceIds = nil, []string{string(nodeID(pick(hosts)))}
				}
			}))
		case 8:
			c, m := fleet.CommandID(uuid(1+pick(commands))), uint32(2+r.IntN(3))
			w.apply(&entry.Mint{Stamp: w.now, Command: c, Attempt: 1, N: m, NotBefore: w.now})
		case 9, 10:
			e := &entry.Results{Stamp: w.now, Command: fleet.CommandID(uuid(1 + pick(commands))), Attempt: 1}
			index := uint32(0)
			for range 1 + r.IntN(4) {
				e.Rows = append(e.Rows, fleet.Invocation{
					Index: index, State: fleet.InvocationState(1 + r.IntN(10)), Code: int32(r.IntN(3)), Started: w.now, Ended: w.now, Reason: "r",
				})
				index += uint32(1 + r.IntN(3))
			}
			w.apply(e)
		case 11:
			w.apply(&entry.Expire{Stamp: w.now, Command: fleet.CommandID(uuid(1 + pick(commands))), Attempt: 1})
		case 13:
			w.apply(w.target(fmt.Sprintf("t%d", r.IntN(4)), func(req *entry.PutTargetV1) { req.NodeSet = fmt.Sprintf("web[1-%d]", 2+r.IntN(9)) }))
		case 20:
			have := w.fsm.Store().GossipKeys().Version
			w.apply(w.rotate(have-uint32(r.IntN(2)), byte(r.IntN(200))))
			w.apply(w.rotation(entry.GossipStep(2+r.IntN(2)), have+uint32(r.IntN(2))))
		case 14:
			w.apply(w.removeTarget(fmt.Sprintf("t%d", r.IntN(4))))
		case 15:
			c := 1 + pick(commands)
			var nodes []fleet.NodeID
			if row := w.fsm.Store().Command(fleet.CommandID(uuid(c))); row != nil && len(row.Targets) > 0 && r.IntN(3) > 0 {
				nodes = append(nodes, row.Targets[r.IntN(len(row.Targets))])
			}
			w.apply(w.cancel(c, nodes...))
		case 12:
			host := pick(hosts)
			change, err := identity.NewAddressChange(identity.AddressChange{
				Fleet: fleetID, Node: nodeID(host), Address: fmt.Sprintf("10.1.0.%d:7790", r.IntN(256)), Epoch: uint32(w.now/second) + uint32(r.IntN(700)),
			}, key('A', host))
			if err != nil {
				w.tb.Fatal(err)
			}
			w.apply(&entry.Address{Stamp: w.now, Request: change})
		case 17:
			if r.IntN(2) == 0 {
				w.apply(w.leave(pick(hosts + 1)))
				break
			}
			w.apply(w.remove(pick(hosts + 1)))
		case 16:
			w.apply(w.rename(pick(hosts+1), fmt.Sprint("name", r.IntN(3))))
		case 18:
			may := [][]string{{"*"}, {"SendCommand"}, {"CreateOperator", "SendCommand"}}[r.IntN(3)]
			w.apply(w.appoint(fmt.Sprint("op", r.IntN(5)), 10+r.IntN(60), may...))
		case 19:
			w.apply(w.dismiss(fmt.Sprint("op", r.IntN(5))))
		case 21:
			w.apply(w.marks(fleet.VoterMark{Node: nodeID(r.IntN(3)), Term: 1, Index: 1 + r.Uint64N(100)}, fleet.VoterMark{Node: nodeID(3 + r.IntN(2))}))
		case 22:
			w.apply(&entry.Features{Stamp: w.now, Level: 1 + uint32(r.IntN(2))})
			if r.IntN(4) == 0 {
				w.now += int64(entry.KeptFor)
			}
			w.apply(&entry.Retire{Stamp: w.now})
		}
	}
}

// TestDeterminism applies one log on several replicas: equal at every step.
// Each map of the process has another seed, so an order taken from a map shows.
func TestDeterminism(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 200
	}
	w := newWorld(t)
	randomLog(w, 1, 100)
	w.quick = true
	randomLog(w, 2, n)
	accepted := 0
	replicas := []*FSM{New(fleetID), New(fleetID), New(fleetID)}
	for i, b := range w.log {
		var texts []string
		for _, f := range replicas {
			a := f.Apply(&raft.Log{Index: uint64(i + 1), Type: raft.LogCommand, Data: b}).(Answer)
			texts = append(texts, fmt.Sprint(fleet.KindOf(a.Err), a.Err))
			if a.Err == nil {
				accepted++
			}
		}
		if texts[0] != texts[1] || texts[0] != texts[2] {
			t.Fatalf("entry %d is answered %q", i+1, texts)
		}
		if i%100 == 0 || i == len(w.log)-1 {
			if h := replicas[0].Hash(); h != replicas[1].Hash() || h != replicas[2].Hash() {
				t.Fatalf("the replicas differ after entry %d", i+1)
			}
		}
	}
	if replicas[0].Hash() != w.fsm.Hash() {
		t.Error("the replicas differ from the first")
	}
	if accepted < len(w.log) { // of 3 each
		t.Errorf("only %d of %d answers were accepted: the log tests nothing", accepted, 3*len(w.log))
	}
}
