package raftfsm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
)

func TestActivation(t *testing.T) {
	w := newWorld(t)
	a := w.createActivation(1, 3, entry.Tag{Key: "role", Value: "web"})
	if a.Limit != 3 || a.Used != 0 || a.Key != code(1).Key().Public() || a.Labels["role"] != "web" || a.Operator != "ada" ||
		a.Expires != w.now+int64(24*time.Hour) || a.Created != w.now {
		t.Errorf("activation %+v", a)
	}
	again := &entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(1), activation(2, 1))}
	w.refused(again, fleet.Conflict)
	late := activation(2, 1)
	late.ExpirationDate = float64(w.now/second) + 31*86400
	w.refused(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(2), late)}, fleet.Invalid)

	n := w.must(w.join(1, 1)).(*fleet.Node)
	if n.ID != nodeID(1) || n.Name != "host2" || n.Labels["role"] != "web" || n.Activation != a.ID || n.Enrolled != w.now || n.Index != w.index {
		t.Errorf("node %+v", n)
	}
	if used := w.fsm.Store().Activation(a.ID).Used; used != 1 {
		t.Errorf("the activation was used %d times; want 1", used)
	}
	del := &entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(1)})}
	if id := w.must(del); id != a.ID {
		t.Errorf("deleted %v", id)
	}
	if w.fsm.Store().Node(nodeID(1)) == nil {
		t.Error("the node went with its activation")
	}
	w.refused(w.join(1, 2), fleet.NotFound)
	if n := w.must(w.join(1, 1)).(*fleet.Node); n.ID != nodeID(1) {
		t.Errorf("the node's retry got %+v", n)
	}
	gone := &entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(1)})}
	w.refused(gone, fleet.NotFound)
	// Its ID cannot be taken by another while its nodes are there.
	w.refused(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(1), activation(1, 1))}, fleet.Conflict)
}

func TestEnrolRefuses(t *testing.T) {
	type payload = identity.JoinPayload
	sign := func(p payload, agent identity.PrivateKey, c identity.Code) *entry.Enrol {
		b, err := identity.NewJoinRequest(p, agent, c)
		if err != nil {
			t.Fatal(err)
		}
		return &entry.Enrol{Stamp: start, Request: b}
	}
	valid := func(n int) payload {
		return payload{
			Fleet: fleetID, Activation: fleet.ActivationID(uuid(1)), Key: key('A', n).Public(), Address: "10.0.0.9:7790", Epoch: uint32(start / second),
		}
	}
	for name, c := range map[string]struct {
		make func(w *world) *entry.Enrol
		kind fleet.Kind
	}{
		"wrong code": {func(*world) *entry.Enrol { return sign(valid(1), key('A', 1), code(2)) }, fleet.Unauthenticated},
		"another fleet": {func(*world) *entry.Enrol {
			p := valid(1)
			p.Fleet = fleet.IDOf(key('R', 1).Public())
			return sign(p, key('A', 1), code(1))
		}, fleet.Unauthenticated},
		"unknown activation": {func(*world) *entry.Enrol {
			p := valid(1)
			p.Activation = fleet.ActivationID(uuid(9))
			return sign(p, key('A', 1), code(1))
		}, fleet.NotFound},
		"expired": {func(w *world) *entry.Enrol {
			e := sign(valid(1), key('A', 1), code(1))
			e.Stamp = start + int64(24*time.Hour)
			return e
		}, fleet.Expired},
		"spent": {func(w *world) *entry.Enrol {
			w.must(sign(valid(2), key('A', 2), code(1)))
			return sign(valid(1), key('A', 1), code(1))
		}, fleet.Throttled},
		"altered": {func(*world) *entry.Enrol {
			e := sign(valid(1), key('A', 1), code(1))
			e.Request[len(e.Request)/3] ^= 1
			return e
		}, fleet.Unauthenticated},
		"not a request": {func(*world) *entry.Enrol { return &entry.Enrol{Stamp: start, Request: []byte{0x80}} }, fleet.Invalid},
		"an enrolled host's key, forged": {func(w *world) *entry.Enrol {
			w.must(sign(valid(1), key('A', 1), code(1)))
			e := sign(valid(1), key('A', 1), code(1))
			for i := range e.Request { // both signatures, wherever they stand
				if i > len(e.Request)-140 && i%7 == 0 {
					e.Request[i] ^= 1
				}
			}
			return e
		}, fleet.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.createActivation(1, 1)
			e := c.make(w)
			before := len(w.fsm.Store().Nodes())
			answer := w.apply(e)
			if k := fleet.KindOf(answer.Err); answer.Err == nil || k != c.kind && !(c.kind == fleet.Unauthenticated && k == fleet.Invalid) {
				t.Errorf("answered %v, %v; want %s", answer.Value, answer.Err, c.kind)
			}
			if n := len(w.fsm.Store().Nodes()); n != before {
				t.Errorf("%d nodes; want %d", n, before)
			}
		})
	}
}

// TestRaceForOneUse is 100 hosts that want the one place of an activation, and
// ask again until they are refused.
func TestRaceForOneUse(t *testing.T) {
	for seed := range uint64(5) {
		w := newWorld(t)
		w.createActivation(1, 1)
		var requests []*entry.Enrol
		for i := 1; i <= 100; i++ {
			requests = append(requests, w.join(1, i), w.join(1, i))
		}
		rand.New(rand.NewPCG(seed, 2)).Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })
		won := map[fleet.NodeID]int{}
		for _, e := range requests {
			answer := w.apply(e)
			if n, ok := answer.Value.(*fleet.Node); ok && answer.Err == nil {
				won[n.ID]++
			} else if fleet.KindOf(answer.Err) != fleet.Throttled {
				t.Fatalf("answered %v", answer.Err)
			}
		}
		if len(won) != 1 || len(w.fsm.Store().Nodes()) != 2 || w.fsm.Store().Activation(fleet.ActivationID(uuid(1))).Used != 1 {
			t.Errorf("hosts %v won, %d nodes; want one host", won, len(w.fsm.Store().Nodes()))
		}
		for id, n := range won {
			if n != 2 {
				t.Errorf("%s asked twice and was answered %d times", id, n)
			}
		}
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.createActivation(1, 5)
	bare := activation(2, 5)
	bare.DefaultInstanceName = ""
	w.must(&entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(2), bare)})
	for i, c := range []struct {
		activation int
		name, want string
	}{{1, "web7", "web7"}, {1, "", "box"}, {2, "", string(nodeID(12))}} {
		b, err := identity.NewJoinRequest(identity.JoinPayload{
			Fleet: fleetID, Activation: fleet.ActivationID(uuid(c.activation)), Key: key('A', 10+i).Public(), Name: c.name,
			Address: "h.example:7790", Epoch: 1<<32 - 1, // a clock far ahead
		}, key('A', 10+i), code(c.activation))
		if err != nil {
			t.Fatal(err)
		}
		n := w.must(&entry.Enrol{Stamp: w.now, Request: b}).(*fleet.Node)
		if n.Name != c.want || int64(n.AddressEpoch) != w.now/second {
			t.Errorf("node %+v; want the name %s and the epoch of the stamp", n, c.want)
		}
	}
}

func TestAddress(t *testing.T) {
	w := newWorld(t)
	w.hosts(2)
	change := func(by, node int, address string, epoch int64) *entry.Address {
		p := identity.AddressChange{Fleet: fleetID, Node: nodeID(node), Address: address, Epoch: uint32(epoch)}
		if by == node {
			b, err := identity.NewAddressChange(p, key('A', by))
			if err != nil {
				t.Fatal(err)
			}
			return &entry.Address{Stamp: w.now, Request: b}
		}
		p.Node = nodeID(by)
		b, err := identity.NewAddressChange(p, key('A', by))
		if err != nil {
			t.Fatal(err)
		}
		return &entry.Address{Stamp: w.now, Request: b}
	}
	now := w.now / second
	n := w.must(change(1, 1, "10.9.9.9:7790", now+5)).(*fleet.Node)
	if n.Address != "10.9.9.9:7790" || int64(n.AddressEpoch) != now+5 || n.Index != w.index {
		t.Errorf("node %+v", n)
	}
	hash := w.fsm.Hash()
	w.must(change(1, 1, "10.9.9.9:7790", now+5)) // again
	if w.fsm.Hash() != hash {
		t.Error("a repeated change changed something")
	}
	w.refused(change(1, 1, "10.9.9.8:7790", now+5), fleet.Conflict)
	w.refused(change(1, 1, "10.9.9.8:7790", now+4), fleet.Conflict)
	w.refused(change(1, 1, "10.9.9.8:7790", now+601), fleet.Invalid)
	w.refused(change(7, 0, "10.9.9.8:7790", now+6), fleet.NotFound) // of a host that is not enrolled
	forged := change(1, 1, "10.9.9.8:7790", now+6)
	forged.Request[len(forged.Request)-1] ^= 1
	w.refused(forged, fleet.Unauthenticated)
	w.must(change(1, 1, "10.9.9.8:7790", now+600))
}

func TestLabels(t *testing.T) {
	w := newWorld(t)
	add := func(node fleet.NodeID, tags ...entry.Tag) *entry.AddTags {
		return &entry.AddTags{Authority: w.authority("AddTagsToResource", "",
			entry.AddTagsToResourceV1{ResourceType: "ManagedInstance", ResourceId: string(node), Tags: tags})}
	}
	remove := func(node fleet.NodeID, keys ...string) *entry.RemoveTags {
		return &entry.RemoveTags{Authority: w.authority("RemoveTagsFromResource", "",
			entry.RemoveTagsFromResourceV1{ResourceType: "ManagedInstance", ResourceId: string(node), TagKeys: keys})}
	}
	before := w.fsm.Store().Node(firstNode)
	n := w.must(add(firstNode, entry.Tag{Key: "role", Value: "web"}, entry.Tag{Key: "site", Value: ""})).(*fleet.Node)
	if !maps.Equal(n.Labels, map[string]string{"role": "web", "site": ""}) || n.Index != w.index {
		t.Errorf("node %+v", n)
	}
	if len(before.Labels) != 0 {
		t.Error("a row that was read has changed")
	}
	n = w.must(add(firstNode, entry.Tag{Key: "role", Value: "db"})).(*fleet.Node)
	if n.Labels["role"] != "db" || len(n.Labels) != 2 {
		t.Errorf("node %+v", n)
	}
	n = w.must(remove(firstNode, "role", "none", "site")).(*fleet.Node)
	if n.Labels != nil {
		t.Errorf("labels %v; want none", n.Labels)
	}
	var tags []entry.Tag
	for i := range entry.MaxLabels {
		tags = append(tags, entry.Tag{Key: fmt.Sprint("k", i), Value: "v"})
	}
	w.must(add(firstNode, tags...))
	w.must(add(firstNode, tags[3]))
	w.refused(add(firstNode, entry.Tag{Key: "one-more", Value: "v"}), fleet.Invalid)
	w.refused(add(nodeID(9), tags[0]), fleet.NotFound)
	w.refused(remove(nodeID(9), "k1"), fleet.NotFound)
}
