package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

// write makes changes in one transaction.
func write(s *Store, change func(*Txn)) {
	txn := s.Write()
	change(txn)
	txn.Commit()
}

func node(n int, name string, labels map[string]string) *fleet.Node {
	return &fleet.Node{ID: fleet.NodeID(fmt.Sprintf("mi-%017x", n)), Name: name, Key: fleet.PublicKey{byte(n)}, Labels: labels}
}

func command(n int, created int64, targets int) *fleet.Command {
	c := &fleet.Command{ID: fleet.CommandID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n)), Attempt: 1, Created: created}
	for i := range targets {
		c.Targets = append(c.Targets, node(i, "", nil).ID)
	}
	return c
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestEmpty(t *testing.T) {
	s := New()
	if s.Fleet().Genesis || s.Trust() != nil || s.LastStamp() != 0 || s.Node("x") != nil || s.Operator("x") != nil ||
		s.Activation("x") != nil || s.Command("x") != nil || s.Shard("x", 0) != nil || s.Invocation("x", 0) != nil ||
		s.Invocations("x") != nil || s.Content(fleet.Digest{}) != nil || s.Nonce(fleet.KeyID{}, [16]byte{}) != nil ||
		s.Request(entry.KindEnrol, "x") != nil || len(s.Nodes())+len(s.Commands(0, ""))+len(s.OpenCommands()) != 0 {
		t.Error("an empty store is not empty")
	}
	for name, err := range map[string]error{
		"node": second(s.FindNode("x")), "command": second(s.FindCommand("x")),
	} {
		if fleet.KindOf(err) != fleet.NotFound {
			t.Errorf("%s: %v; want NotFound", name, err)
		}
	}
	if err := second(s.FindOperator("x")); fleet.KindOf(err) != fleet.Unauthenticated {
		t.Errorf("operator: %v; want Unauthenticated", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestNodes(t *testing.T) {
	s := New()
	write(s, func(txn *Txn) {
		txn.PutNode(node(2, "web", nil))
		txn.PutNode(node(1, "web", nil))
		txn.PutNode(node(3, "web2", nil))
		if txn.Node(node(3, "", nil).ID) == nil {
			t.Error("a transaction does not see what it wrote")
		}
	})
	var names []string
	for _, n := range s.Nodes() {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); got != "web web web2" {
		t.Errorf("Nodes = %s", got)
	}
	if byName := s.NodesByName("web"); len(byName) != 2 || byName[0].ID > byName[1].ID {
		t.Errorf("NodesByName = %v", byName)
	}
	if n := s.NodeByKey(fleet.PublicKey{2}); n == nil || n.ID != node(2, "", nil).ID {
		t.Errorf("NodeByKey = %v", n)
	}
	if n := s.NodeByKey(fleet.PublicKey{9}); n != nil {
		t.Errorf("NodeByKey of no node = %v", n)
	}
}

func TestOperators(t *testing.T) {
	s := New()
	a, b := fleet.PublicKey{1}, fleet.PublicKey{2}
	write(s, func(txn *Txn) { txn.PutOperator(&fleet.Operator{Name: "ada", Keys: []fleet.PublicKey{a, b}}) })
	for _, key := range []fleet.PublicKey{a, b} {
		if o := s.OperatorByKey(key.ID()); o == nil || o.Name != "ada" {
			t.Errorf("OperatorByKey(%s) = %v", key.ID(), o)
		}
	}
	if o := s.OperatorByKey(fleet.PublicKey{3}.ID()); o != nil {
		t.Errorf("OperatorByKey of no operator = %v", o)
	}
}

func TestCommandsPage(t *testing.T) {
	s := New()
	// Three of one stamp: the ID decides. Negative stamps must not wrap.
	created := []int64{-5, 10, 10, 10, 20, 1 << 62}
	write(s, func(txn *Txn) {
		for i, at := range created {
			c := command(i, at, 1)
			if i%2 == 0 {
				c.Ended = at + 1
			}
			txn.PutCommand(c)
		}
	})
	ids := func(cs []*fleet.Command) (out []int) {
		for _, c := range cs {
			var n int
			fmt.Sscanf(string(c.ID[24:]), "%x", &n)
			out = append(out, n)
		}
		return out
	}
	for _, c := range []struct {
		limit  int
		before fleet.CommandID
		want   []int
	}{
		{0, "", []int{5, 4, 3, 2, 1, 0}},
		{2, "", []int{5, 4}},
		{2, command(4, 0, 0).ID, []int{3, 2}},
		{10, command(2, 0, 0).ID, []int{1, 0}},
		{10, command(0, 0, 0).ID, nil},
		{10, command(77, 0, 0).ID, nil},
	} {
		if got := ids(s.Commands(c.limit, c.before)); !slices.Equal(got, c.want) {
			t.Errorf("Commands(%d, %q) = %v; want %v", c.limit, c.before, got, c.want)
		}
	}
	if got := ids(s.OpenCommands()); !slices.Equal(got, []int{1, 3, 5}) {
		t.Errorf("OpenCommands = %v; want 1, 3, 5", got)
	}
	write(s, func(txn *Txn) {
		c := *s.Command(command(3, 0, 0).ID)
		c.Ended = 99
		txn.PutCommand(&c)
	})
	if got := ids(s.OpenCommands()); !slices.Equal(got, []int{1, 5}) {
		t.Errorf("OpenCommands = %v; want 1, 5", got)
	}
}

func TestInvocations(t *testing.T) {
	s := New()
	c := command(1, 1, 600)
	shard := &Shard{Command: c.ID, N: 2}
	for i := 512; i < 600; i++ {
		shard.Rows = append(shard.Rows, fleet.Invocation{Index: uint32(i), State: fleet.Success})
	}
	write(s, func(txn *Txn) { txn.PutCommand(c); txn.PutShard(shard) })
	rows := s.Invocations(c.ID)
	if len(rows) != 600 {
		t.Fatalf("%d rows; want 600", len(rows))
	}
	for i, r := range rows {
		want := fleet.Pending
		if i >= 512 {
			want = fleet.Success
		}
		if int(r.Index) != i || r.State != want || r.State == fleet.Pending && r.Code != -1 {
			t.Errorf("row %d is %+v", i, r)
		}
		if one := s.Invocation(c.ID, uint32(i)); one == nil || one.State != want {
			t.Errorf("Invocation(%d) = %v", i, one)
		}
	}
	for _, index := range []uint32{600, 767, 768, 1 << 31, 1<<32 - 1} {
		if r := s.Invocation(c.ID, index); r != nil {
			t.Errorf("Invocation(%d) = %v; want none", index, r)
		}
	}
	for n, want := range map[uint32]int{0: 256, 1: 256, 2: 88, 3: 0, 1<<32 - 1: 0} {
		if got := len(s.Shard(c.ID, n)); got != want {
			t.Errorf("shard %d has %d rows; want %d", n, got, want)
		}
	}
	if i, ok := TargetIndex(c, c.Targets[300]); !ok || i != 300 {
		t.Errorf("TargetIndex = %d, %v; want 300", i, ok)
	}
	if _, ok := TargetIndex(c, "mi-fffffffffffffffff"); ok {
		t.Error("TargetIndex finds a node that is no target")
	}
}

func TestWatches(t *testing.T) {
	s := New()
	c, old := command(1, 1, 1), command(2, 1, 1)
	write(s, func(txn *Txn) { txn.PutCommand(old) })
	nodes, commands, one, other := s.WatchNodes(), s.WatchCommands(), s.WatchCommand(c.ID), s.WatchCommand(old.ID)
	trust := s.WatchTrust()
	before := s.Snapshot()
	write(s, func(txn *Txn) { txn.PutCommand(c) })
	if !closed(commands) || !closed(one) {
		t.Error("a new command wakes nobody")
	}
	if closed(nodes) || closed(other) || closed(trust) {
		t.Error("a new command wakes those who wait for something else")
	}
	if before.Command(c.ID) != nil || s.Command(c.ID) == nil {
		t.Error("a snapshot changes, or the store does not")
	}
	if !closed(before.WatchCommands()) {
		t.Error("a watch from a snapshot misses the change after it")
	}
	if closed(s.Snapshot().WatchCommands()) {
		t.Error("a watch from a new snapshot fires without a change")
	}

	txn := s.Write()
	nodes = s.WatchNodes()
	txn.PutNode(node(1, "a", nil))
	txn.Abort()
	if closed(nodes) || len(s.Nodes()) != 0 {
		t.Error("an aborted change is seen")
	}

	snap := s.Snapshot()
	s.Abandon()
	if !closed(s.Abandoned()) || !closed(snap.Abandoned()) {
		t.Error("an abandoned store does not say so")
	}
}

func TestNonces(t *testing.T) {
	s := New()
	key, other := fleet.KeyID{1}, fleet.KeyID{2}
	write(s, func(txn *Txn) {
		for i := range 10 {
			txn.PutNonce(&Nonce{Key: key, Nonce: [16]byte{byte(i)}, NotAfter: int64(i)})
		}
		txn.PutNonce(&Nonce{Key: other, Nonce: [16]byte{1}, NotAfter: 100})
	})
	if n := s.NonceCount(key); n != 10 {
		t.Errorf("NonceCount = %d; want 10", n)
	}
	write(s, func(txn *Txn) { txn.PruneNonces(4, 100) })
	if s.NonceCount(key) != 6 || s.Nonce(key, [16]byte{3}) != nil || s.Nonce(key, [16]byte{4}) == nil {
		t.Errorf("after 4: %d left; want 4 to 9", s.NonceCount(key))
	}
	write(s, func(txn *Txn) { txn.PruneNonces(50, 2) })
	if n := s.NonceCount(key); n != 4 {
		t.Errorf("%d left; want 4, since only 2 were to go", n)
	}
	write(s, func(txn *Txn) { txn.PruneNonces(50, 100) })
	if s.NonceCount(key) != 0 || s.NonceCount(other) != 1 || len(s.Nonces()) != 1 {
		t.Errorf("after 50: %d and %d left; want 0 and 1", s.NonceCount(key), s.NonceCount(other))
	}
}

func TestContentsAndRequests(t *testing.T) {
	s := New()
	write(s, func(txn *Txn) {
		txn.PutContent([]byte("a"))
		txn.PutContent([]byte("a"))
		txn.PutRequest(&Request{Kind: entry.KindEnrol, Object: "x", Request: []byte("1")})
		txn.PutRequest(&Request{Kind: entry.KindSendCommand, Object: "x", Request: []byte("2")})
	})
	if got := s.Content(fleet.Sum([]byte("a"))); string(got) != "a" || len(s.Contents()) != 1 {
		t.Errorf("Content = %q, %d contents", got, len(s.Contents()))
	}
	if r := s.Request(entry.KindSendCommand, "x"); r == nil || string(r.Request) != "2" {
		t.Errorf("Request = %v", r)
	}
	write(s, func(txn *Txn) { txn.DeleteRequest(txn.Request(entry.KindSendCommand, "x")) })
	if len(s.Requests()) != 1 || s.Request(entry.KindEnrol, "x") == nil {
		t.Errorf("%d requests are left; want the other one", len(s.Requests()))
	}
}

func TestResolve(t *testing.T) {
	s := New()
	write(s, func(txn *Txn) {
		txn.PutNode(node(1, "a", map[string]string{"role": "web", "site": "lund"}))
		txn.PutNode(node(2, "b", map[string]string{"role": "db", "site": "lund"}))
		txn.PutNode(node(3, "c", map[string]string{"role": "web"}))
		txn.PutNode(node(4, "d", nil))
	})
	id := func(n int) string { return string(node(n, "", nil).ID) }
	sel := func(pairs ...string) (out []fleet.Target) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, fleet.Target{Key: pairs[i], Values: strings.Split(pairs[i+1], ",")})
		}
		return out
	}
	for _, c := range []struct {
		name      string
		ids       []string
		selectors []fleet.Target
		want      []int
		code      string
	}{
		{"named, in any order", []string{id(3), id(1)}, nil, []int{1, 3}, ""},
		{"named, unknown", []string{id(1), id(9)}, nil, nil, "InvalidInstanceId"},
		{"named twice", []string{id(1), id(1)}, nil, nil, "DuplicateInstanceId"},
		{"all", nil, sel("InstanceIds", "*"), []int{1, 2, 3, 4}, ""},
		{"a label", nil, sel("tag:role", "web"), []int{1, 3}, ""},
		{"values are or", nil, sel("tag:role", "web,db"), []int{1, 2, 3}, ""},
		{"keys are and", nil, sel("tag:role", "web", "tag:site", "lund"), []int{1}, ""},
		{"the same key twice is and", nil, sel("tag:role", "web", "tag:role", "db"), nil, ""},
		{"tag-key", nil, sel("tag-key", "site"), []int{1, 2}, ""},
		{"tag-key of two", nil, sel("tag-key", "site,role"), []int{1, 2, 3}, ""},
		{"selected by ID and label", nil, sel("InstanceIds", id(1)+","+id(2), "tag:role", "db"), []int{2}, ""},
		{"selected by an unknown ID", nil, sel("InstanceIds", id(1)+","+id(9)), nil, "InvalidInstanceId"},
		{"nothing matches", nil, sel("tag:role", "mail"), nil, ""},
		{"an empty value matches only itself", nil, []fleet.Target{{Key: "tag:none", Values: []string{""}}}, nil, ""},
		{"an unknown key", nil, sel("PlatformName", "Debian"), nil, ""},
		{"no selector", nil, nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := s.Resolve(c.ids, c.selectors)
			var e *fleet.Error
			if c.code != "" {
				if !errors.As(err, &e) || e.Code != c.code {
					t.Errorf("Resolve = %v, %v; want %s", got, err, c.code)
				}
				return
			}
			var want []fleet.NodeID
			for _, n := range c.want {
				want = append(want, node(n, "", nil).ID)
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("Resolve = %v, %v; want %v", got, err, want)
			}
		})
	}
}
