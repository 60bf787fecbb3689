package raftfsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// fullWorld has a row in every table.
func fullWorld(tb testing.TB) *world {
	w := newWorld(tb)
	w.must(&entry.Trust{Stamp: w.now, Trust: trustJSON(tb, rootKey, 2, 0, 3)})
	w.createActivation(1, 4, entry.Tag{Key: "role", Value: "web"}, entry.Tag{Key: "site", Value: "lund"})
	w.createActivation(2, 1)
	w.must(w.join(1, 1))
	w.must(w.join(1, 2))
	w.must(w.join(2, 3))
	w.must(&entry.DeleteActivation{Authority: w.authority("DeleteActivation", "", entry.DeleteActivationV1{ActivationId: uuid(2)})})
	tags := entry.AddTagsToResourceV1{ResourceType: "ManagedInstance", ResourceId: string(firstNode), Tags: []entry.Tag{{Key: "role", Value: "db"}}}
	w.must(&entry.AddTags{Authority: w.authority("AddTagsToResource", "", tags)})
	untag := entry.RemoveTagsFromResourceV1{ResourceType: "ManagedInstance", ResourceId: string(nodeID(1)), TagKeys: []string{"site"}}
	w.must(&entry.RemoveTags{Authority: w.authority("RemoveTagsFromResource", "", untag)})
	change, err := identity.NewAddressChange(identity.AddressChange{
		Fleet: fleetID, Node: nodeID(1), Address: "10.5.5.5:7790", Epoch: uint32(w.now/second) + 9,
	}, key('A', 1))
	if err != nil {
		tb.Fatal(err)
	}
	w.must(&entry.Address{Stamp: w.now, Request: change})
	w.must(w.send(1, nil))
	w.must(w.send(2, func(r *entry.SendCommandV1) {
		r.Targets, r.InstanceIds = nil, []string{string(nodeID(1)), string(nodeID(2))}
	}))
	w.must(w.target("web", nil))
	w.must(w.target("all", func(r *entry.PutTargetV1) { r.NodeSet, r.Targets, r.Description = "@*", nil, "every host" }))
	w.must(w.target("gone", nil))
	w.must(w.removeTarget("gone"))
	w.now += 10 * second
	w.must(w.results(w.command(1), fleet.Invocation{Index: 0, State: fleet.InProgress, Code: -1, Started: w.now}, fleet.Invocation{
		Index: 2, State: fleet.Failed, Code: 3, Started: w.now, Ended: w.now, Detail: fleet.Sum(nil), DetailSize: 5,
		Reason: "step 1", Signature: bytes.Repeat([]byte{1}, 64),
	}))
	w.must(&entry.Mint{Stamp: w.now, Command: w.command(1).ID, Attempt: 1, N: 2, NotBefore: w.now})
	w.now += 200 * second
	w.must(&entry.Expire{Stamp: w.now, Command: w.command(1).ID, Attempt: 1})
	w.must(w.cancel(2, w.command(2).Targets[0]))
	w.must(w.join(1, 4))
	w.must(w.rename(1, "web7"))
	w.must(w.rename(4, "web8"))
	w.must(w.rename(4, "web9"))
	w.must(w.remove(4))
	w.must(w.appoint("bob", 2, "SendCommand", "DeleteOperator"))
	bob := w.signs("bob", key('O', 2), "SendCommand", uuid(3), bobsCommand())
	w.must(&entry.SendCommand{Authority: bob, Document: []byte(document), Version: "1", ExecutionSeconds: 100})
	w.must(w.appoint("eve", 3, "*"))
	w.must(w.dismiss("bob"))
	w.must(w.join(1, 5))
	w.must(w.leave(5))
	w.must(w.paced(7, "2", "1"))
	w.must(w.stage(7, 0, 1, 2))
	w.now += second
	w.must(w.release(7, 0, 2))
	w.must(w.results(w.command(7), fleet.Invocation{Index: 0, State: fleet.InProgress, Code: -1}))
	w.createActivation(4, 1, entry.Tag{Key: "role", Value: "db"})
	w.must(w.join(4, 6))
	w.must(w.rename(6, "db1"))
	w.must(w.createReplacing(5, 6))
	w.must(w.join(5, 7))
	w.must(w.createReplacing(6, 7))
	w.must(w.join(6, 8))
	w.must(w.createReplacing(7, 8))
	w.must(w.rotate(1, 77))
	w.must(w.rotation(entry.GossipKeyUsed, 2))
	w.must(&entry.Retire{Stamp: w.now})
	w.must(&entry.Features{Stamp: w.now, Level: entry.MaxLevel})
	w.must(w.marks(fleet.VoterMark{Node: firstNode, Term: 2, Index: 40}, fleet.VoterMark{Node: nodeID(2)}))
	return w
}

// bobsCommand is a command on host 1.
func bobsCommand() entry.SendCommandV1 {
	return entry.SendCommandV1{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum([]byte(document)).String(), DocumentHashType: "Sha256",
		InstanceIds: []string{string(nodeID(1))}, TimeoutSeconds: 60, MaxConcurrency: "100%", MaxErrors: "100%",
	}
}

// TestGolden holds a log and the snapshot of the state it makes. Both formats
// live on the disks of running fleets: what is in testdata must be read, and
// mean the same, for ever.
func TestGolden(t *testing.T) {
	w := fullWorld(t)
	var log bytes.Buffer
	for _, b := range w.log {
		log.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		log.Write(b)
	}
	snapshot := snapshotOf(t, w.fsm)
	if want := golden(t, "log.hex", log.Bytes()); !bytes.Equal(want, log.Bytes()) {
		t.Error("the entries are written differently")
	}
	if want := golden(t, "snapshot.hex", snapshot); !bytes.Equal(want, snapshot) {
		t.Error("the snapshot is written differently")
	}
	hash := w.fsm.Hash()
	if want := golden(t, "hash.hex", hash[:]); !bytes.Equal(want, hash[:]) {
		t.Errorf("the state's hash is %s; want %x", hash, want)
	}
	old := New(fleetID)
	index := uint64(0)
	for b := golden(t, "log.hex", log.Bytes()); len(b) > 0; {
		n := binary.BigEndian.Uint32(b)
		index++
		if a := old.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: b[4 : 4+n]}).(Answer); a.Err != nil {
			t.Fatalf("entry %d of the stored log: %v", index, a.Err)
		}
		b = b[4+n:]
	}
	if old.Hash() != hash {
		t.Error("the stored log makes another state")
	}
	restored, err := restore(golden(t, "snapshot.hex", snapshot))
	if err != nil || restored.Hash() != hash || restored.Applied() != w.index {
		t.Errorf("the stored snapshot makes another state (%v)", err)
	}
}

func TestGoldenHasEveryKind(t *testing.T) {
	seen := map[entry.Kind]bool{}
	for _, b := range fullWorld(t).log {
		seen[entry.Kind(b[1])] = true
	}
	for k := range handlers {
		if !seen[k] {
			t.Errorf("no entry of %s", k)
		}
	}
}

// TestSnapshotRoundTrip restores 100 random states: equal, and equal in what
// comes after.
func TestSnapshotRoundTrip(t *testing.T) {
	states := uint64(100)
	if testing.Short() {
		states = 20
	}
	for seed := range states {
		w := newWorld(t)
		w.quick = true
		randomLog(w, seed, 20+int(seed)/2)
		b := snapshotOf(t, w.fsm)
		f, err := restore(b)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if f.Hash() != w.fsm.Hash() || f.Applied() != w.fsm.Applied() {
			t.Fatalf("seed %d: the restored state differs", seed)
		}
		if again := snapshotOf(t, f); !bytes.Equal(again, b) {
			t.Fatalf("seed %d: its snapshot differs", seed)
		}
		n := len(w.log)
		randomLog(w, seed, 20)
		for i, b := range w.log[n:] {
			f.Apply(&raft.Log{Index: uint64(n + i + 1), Type: raft.LogCommand, Data: b})
		}
		if f.Hash() != w.fsm.Hash() {
			t.Fatalf("seed %d: the restored state goes another way", seed)
		}
	}
}

func TestEmptySnapshot(t *testing.T) {
	f := New(fleetID)
	b := snapshotOf(t, f)
	restored, err := restore(b)
	if err != nil || restored.Hash() != f.Hash() || restored.Store().Fleet().Genesis {
		t.Errorf("restore: %v", err)
	}
	w := newWorld(t)
	hash := w.fsm.Hash()
	if err := w.fsm.Restore(io.NopCloser(bytes.NewReader(b))); fleet.KindOf(err) != fleet.Corrupt || w.fsm.Hash() != hash {
		t.Errorf("an empty snapshot in place of a state: %v", err)
	}
}

func TestRestoreWakesWatchers(t *testing.T) {
	w := fullWorld(t)
	b := snapshotOf(t, w.fsm)
	old := w.fsm.Store()
	waiting, next := make(chan error), w.index+1
	go func() { waiting <- w.fsm.WaitApplied(t.Context(), next) }()
	w.createActivation(8, 1)
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if err := w.fsm.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.Abandoned():
	default:
		t.Error("the old store was not abandoned")
	}
	select {
	case <-w.fsm.Store().Abandoned():
		t.Error("the new store was abandoned")
	default:
	}
	if w.fsm.Store() == old || w.fsm.Applied() != w.index-1 {
		t.Errorf("applied %d; want %d", w.fsm.Applied(), w.index-1)
	}
}

// TestDamagedSnapshots flips bits, cuts and appends: every kind of field is hit
// many times. With a step of 1 instead of 5 it also passes, in a minute.
func TestDamagedSnapshots(t *testing.T) {
	b := snapshotOf(t, fullWorld(t).fsm)
	step := 5
	if testing.Short() {
		step = 37
	}
	f := New(fleetID)
	check := func(what string, at int, damaged []byte) {
		if err := f.Restore(io.NopCloser(bytes.NewReader(damaged))); fleet.KindOf(err) != fleet.Corrupt {
			t.Fatalf("%s at byte %d of %d: %v; want it refused", what, at, len(b), err)
		}
	}
	r := rand.New(rand.NewPCG(5, 6))
	for i := 0; i < len(b); i += step {
		damaged := bytes.Clone(b)
		damaged[i] ^= 1 << r.IntN(8)
		check("a flipped bit", i, damaged)
	}
	for i := 0; i < len(b); i += 7 * step {
		check("a cut", i, b[:i])
	}
	check("a byte more", len(b), append(bytes.Clone(b), 0))
	check("a snapshot more", len(b), append(bytes.Clone(b), b...))
	if f.Applied() != 0 || f.Store().Fleet().Genesis {
		t.Error("a refused snapshot left something")
	}
	if err := f.Restore(io.NopCloser(io.MultiReader(bytes.NewReader(b[:100]), failing{}))); !errors.Is(err, errDisk) {
		t.Errorf("a failing disk: %v", err)
	}
	if err := f.Restore(io.NopCloser(bytes.NewReader(b))); err != nil {
		t.Error(err)
	}
}

var errDisk = errors.New("disk is sick")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDisk }

func TestPersistCancels(t *testing.T) {
	w := fullWorld(t)
	s, err := w.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	sink := &memorySink{limit: 10}
	if err := s.Persist(sink); err == nil || sink.closed || !sink.cancelled {
		t.Errorf("Persist = %v, closed %v, cancelled %v", err, sink.closed, sink.cancelled)
	}
}

func TestSnapshotIsOfItsMoment(t *testing.T) {
	w := fullWorld(t)
	hash, index := w.fsm.Hash(), w.index
	s, err := w.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	randomLog(w, 1, 20)
	sink := &memorySink{}
	if err := s.Persist(sink); err != nil {
		t.Fatal(err)
	}
	if f, err := restore(sink.Bytes()); err != nil || f.Hash() != hash || f.Applied() != index {
		t.Errorf("restored: %v", err)
	}
}

// rewrite makes a snapshot whose bytes are sound of one whose rows change
// returns: nil drops a row.
func rewrite(tb testing.TB, b []byte, change func(table string, row []byte) [][]byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := &frameWriter{w: &out, sum: sha256.New()}
	in := &frameReader{r: bytes.NewReader(b[len(magic)+1:]), sum: sha256.New()}
	if err := w.write(b[:len(magic)+1]); err != nil {
		tb.Fatal(err)
	}
	for {
		f, _, err := in.next()
		if err != nil {
			tb.Fatal(err)
		}
		if f.Table == tableEnd {
			break
		}
		for _, row := range change(f.Table, f.Row) {
			if err := w.body(wire.MustMarshal(&frame{f.Table, row})); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := w.frame(tableEnd, &trailer{w.frames, fleet.Digest(w.sum.Sum(nil))}); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// edit changes the rows of one table that are a T.
func edit[T any](tb testing.TB, table string, change func(*T) bool) func(string, []byte) [][]byte {
	return func(in string, b []byte) [][]byte {
		if in != table {
			return [][]byte{b}
		}
		row := new(T)
		if err := wire.UnmarshalStrict(b, row); err != nil {
			tb.Fatal(err)
		}
		if !change(row) {
			return nil
		}
		return [][]byte{wire.MustMarshal(row)}
	}
}

// add puts rows before the first of a table.
func add(table string, rows ...any) func(string, []byte) [][]byte {
	done := false
	return func(in string, b []byte) [][]byte {
		if in != table || done {
			return [][]byte{b}
		}
		done = true
		var out [][]byte
		for _, row := range rows {
			out = append(out, wire.MustMarshal(row))
		}
		return append(out, b)
	}
}

// after puts a row after the first n of a table.
func after(table string, n int, row any) func(string, []byte) [][]byte {
	return func(in string, b []byte) [][]byte {
		if in != table {
			return [][]byte{b}
		}
		if n--; n == 0 {
			return [][]byte{b, wire.MustMarshal(row)}
		}
		return [][]byte{b}
	}
}

// TestForgedSnapshots is a stolen voter that sends a snapshot whose bytes are
// sound and whose rows nobody signed for.
func TestForgedSnapshots(t *testing.T) {
	w := fullWorld(t)
	b := snapshotOf(t, w.fsm)
	if f, err := restore(rewrite(t, b, func(_ string, row []byte) [][]byte { return [][]byte{row} })); err != nil || f.Hash() != w.fsm.Hash() {
		t.Fatalf("unchanged: %v", err)
	}
	mallory := key('O', 1).Public()
	newest := w.command(2)
	send := w.send(50, nil)
	evil := *newest
	evil.ID = fleet.CommandID(uuid(50))
	signed := w.fsm.Store().Request(entry.KindSendCommand, uuid(2))
	moved := *signed
	moved.Object = uuid(50)
	old := *w.command(1) // signed, and long over
	own := w.signs("mallory", key('O', 1), "CreateOperator", "", newOperator("mallory", 1, "*"))
	mallorys := &state.Appointment{Index: 2, Kind: entry.KindCreateOperator, Stamp: w.now, Request: own.Request, Proof: own.Proof}
	gone := &fleet.Removal{Node: *w.fsm.Store().Node(nodeID(3)), At: w.now, Operator: "ada"}
	for name, c := range map[string]struct {
		change func(string, []byte) [][]byte
		want   string
	}{
		"an appointment nobody signed":   {edit(t, tableAppoint, func(a *state.Appointment) bool { a.Request[len(a.Request)-3] ^= 1; return true }), "not the one that was signed"},
		"an operator who made himself":   {add(tableAppoint, mallorys), "no operator"},
		"appointments out of order":      {edit(t, tableAppoint, func(a *state.Appointment) bool { a.Index = 7; return true }), "came later"},
		"another appointment":            {edit(t, tableAppoint, func(a *state.Appointment) bool { a.Kind = entry.KindAddTags; return true }), "makes no operator"},
		"an appointment at another time": {edit(t, tableAppoint, func(a *state.Appointment) bool { a.Stamp += 3000 * second; return true }), "after the state's last entry"},
		"a command of who was not there yet": {edit(t, tableRequests, func(r *state.Request) bool {
			if r.Object == uuid(3) {
				r.Stamp -= second
			}
			return true
		}), "no operator"},
		"another operator":        {add(tableOperators, &fleet.Operator{Name: "mallory", Keys: []fleet.PublicKey{mallory}, May: []string{"*"}}), "not what was signed"},
		"another operator's key":  {edit(t, tableOperators, func(o *fleet.Operator) bool { o.Keys = append(o.Keys, mallory); return true }), "not what was signed"},
		"no operator":             {edit(t, tableOperators, func(*fleet.Operator) bool { return false }), "no operator"},
		"a genesis of another":    {edit(t, tableFleet, func(r *bytesRow) bool { r.Bytes[len(r.Bytes)-1] ^= 1; return true }), "not signed by the root key"},
		"a trust.json of another": {edit(t, tableTrust, func(r *bytesRow) bool { r.Bytes = trustJSON(t, key('R', 1), 2, 0, 3); return true }), "not signed by the root key"},
		"a command nobody signed": {add(tableCommands, &evil), "nobody signed"},
		"an old command in a new life": {edit(t, tableCommands, func(c *fleet.Command) bool {
			if c.ID == old.ID {
				c.Created, c.NotAfter, c.Expires, c.Ended = w.now, w.now+60*second, w.now+280*second, 0
			}
			return true
		}), "not what was signed"},
		"a command for longer": {edit(t, tableCommands, func(c *fleet.Command) bool { c.Expires += second; return true }), "not what was signed"},
		"another script":       {edit(t, tableCommands, func(c *fleet.Command) bool { c.Parameters = []byte{0x80}; return true }), "not what was signed"},
		"another user":         {edit(t, tableCommands, func(c *fleet.Command) bool { c.RunAs = "bob"; return true }), "not what was signed"},
		"another document":     {edit(t, tableContents, func(r *bytesRow) bool { r.Bytes = []byte("evil"); return true }), "no document"},
		"another named target": {edit(t, tableCommands, func(c *fleet.Command) bool {
			if len(c.Selectors) == 0 {
				c.Targets = slices.Clone(c.Targets)
				c.Targets[0] = firstNode
				slices.Sort(c.Targets)
			}
			return true
		}), "nobody named"},
		"one named target less": {edit(t, tableCommands, func(c *fleet.Command) bool {
			if len(c.Selectors) == 0 {
				c.Targets = c.Targets[:1]
			}
			return true
		}), "not those that were named"},
		"targets out of order": {edit(t, tableCommands, func(c *fleet.Command) bool { slices.Reverse(c.Targets); return true }), "not in order"},
		"no mint":              {edit(t, tableCommands, func(c *fleet.Command) bool { c.Mint.N = 0; return true }), "no valid mint"},
		"a command that ended": {edit(t, tableCommands, func(c *fleet.Command) bool { c.Ended = w.now; return true }), "counts"},
		"a row that is not counted": {edit(t, tableShards, func(s *state.Shard) bool {
			s.Rows[0].State, s.Rows[0].Decided = fleet.Success, 9
			return true
		}), "counts"},
		"a shard of nothing":        {edit(t, tableShards, func(s *state.Shard) bool { s.N = 9; return true }), "does not have the rows"},
		"a shard of no command":     {edit(t, tableShards, func(s *state.Shard) bool { s.Command = "x"; return true }), "no command"},
		"a proof for another ID":    {add(tableRequests, &moved), "also said to have made"},
		"a request nobody signed":   {add(tableRequests, &state.Request{Kind: entry.KindSendCommand, Object: uuid(50), Stamp: w.now, Request: send.Request, Proof: signed.Proof}), "not the one that was signed"},
		"a request at another time": {edit(t, tableRequests, func(r *state.Request) bool { r.Stamp += 3000 * second; return true }), "after the state's last entry"},
		"a request long ago":        {edit(t, tableRequests, func(r *state.Request) bool { r.Stamp -= 3000 * second; return true }), "no rights yet"},
		"what is not kept":          {add(tableRequests, &state.Request{Kind: entry.KindAddTags, Object: "x", Stamp: w.now}), "nothing is kept"},
		"a host nobody let in": {add(tableNodes, &fleet.Node{
			ID: fleet.NodeIDOf(mallory), Key: mallory, Activation: fleet.ActivationID(uuid(1)), Address: "10.0.0.9:7790", Enrolled: w.now,
		}), "never asked"},
		"a host as old as the fleet": {add(tableNodes, &fleet.Node{
			ID: fleet.NodeIDOf(mallory), Name: "host1", Key: mallory, Address: "10.0.0.9:7790", Enrolled: start,
		}), "not what was signed"},
		"a host's key": {edit(t, tableNodes, func(n *fleet.Node) bool {
			if n.ID == nodeID(1) {
				n.Key = mallory
			}
			return true
		}), "not what was signed"},
		"a host both in and gone": {add(tableRemovals, gone), "twice"},
		"a removal that nobody signed": {func(table string, b []byte) [][]byte {
			if table == tableNodes {
				return edit(t, tableNodes, func(n *fleet.Node) bool { return n.ID != nodeID(3) })(table, b)
			}
			return add(tableRemovals, gone)(table, b)
		}, "nobody signed"},
		"another name":                   {edit(t, tableNodes, func(n *fleet.Node) bool { n.Name = "web6"; return true }), "not what was signed"},
		"a name that is no more":         {edit(t, tableRemovals, func(r *fleet.Removal) bool { r.Node.Name = "web8"; return true }), "not what was signed"},
		"a farewell that was never said": {edit(t, tableRemovals, func(r *fleet.Removal) bool { r.Operator = ""; return true }), "never said that it leaves"},
		"a farewell at another time": {edit(t, tableRemovals, func(r *fleet.Removal) bool {
			if r.Operator == "" {
				r.At--
			}
			return true
		}), "not what was signed"},
		"a farewell that another signed": {edit(t, tableRequests, func(r *state.Request) bool {
			if r.Kind == entry.KindLeave {
				l, err := identity.ParseLeave(r.Request)
				if err != nil {
					t.Fatal(err)
				}
				r.Request = identity.EncodeSigned(l.Payload, key('A', 1).Sign(identity.UseLeave, l.Payload))
			}
			return true
		}), "not signed by"},
		"a farewell kept for later": {func(table string, b []byte) [][]byte {
			if table == tableRequests {
				return edit(t, tableRequests, func(r *state.Request) bool {
					if r.Kind == entry.KindLeave {
						b, err := identity.NewLeave(identity.Leave{Fleet: fleetID, Node: nodeID(5), Epoch: uint32(start/second) - 3600}, key('A', 5))
						if err != nil {
							t.Fatal(err)
						}
						r.Request = b
					}
					return true
				})(table, b)
			}
			return [][]byte{b}
		}, "was signed at"},
		"a removal by another": {edit(t, tableRemovals, func(r *fleet.Removal) bool {
			if r.Operator != "" {
				r.Operator = "eve"
			}
			return true
		}), "not what was signed"},
		"a removal at another time":   {edit(t, tableRemovals, func(r *fleet.Removal) bool { r.At--; return true }), "not what was signed"},
		"a removed host's key":        {edit(t, tableRemovals, func(r *fleet.Removal) bool { r.Node.Key = mallory; return true }), "not what was signed"},
		"a removed host let in again": {add(tableNodes, &w.fsm.Store().Removal(nodeID(4)).Node), "twice"},
		"a label that is none":        {edit(t, tableNodes, func(n *fleet.Node) bool { n.Labels = map[string]string{"aws:x": ""}; return true }), "label"},
		"an address that is none":     {edit(t, tableNodes, func(n *fleet.Node) bool { n.Address = "x"; return true }), "address"},
		"more hosts than were let in": {edit(t, tableActivations, func(a *fleet.Activation) bool { a.Used = 1; return true }), "which was used 1 times"},
		"an activation for more": {edit(t, tableActivations, func(a *fleet.Activation) bool {
			a.Limit = 1000
			return true
		}), "not what was signed"},
		"an activation's key": {edit(t, tableActivations, func(a *fleet.Activation) bool { a.Key = mallory; return true }), "not what was signed"},
		"used too often":      {edit(t, tableActivations, func(a *fleet.Activation) bool { a.Used = 5; return true }), "was used 5 times of 4"},
		"a target of more":    {edit(t, tableTargets, func(s *fleet.SavedTarget) bool { s.NodeSet = "@*"; return true }), "not what was signed"},
		"a target's labels": {edit(t, tableTargets, func(s *fleet.SavedTarget) bool {
			s.Selectors = nil
			return true
		}), "not what was signed"},
		"another's target":            {edit(t, tableTargets, func(s *fleet.SavedTarget) bool { s.Operator = "mallory"; return true }), "not what was signed"},
		"a target that nobody signed": {edit(t, tableTargets, func(s *fleet.SavedTarget) bool { s.Name = "db"; return true }), "nobody signed for"},
		"a mark twice":                {add(tableMarks, w.fsm.Store().Mark(firstNode)), "twice"},
		"a feature level twice":       {add(tableFeatures, &featuresRow{entry.MaxLevel}), "twice"},
		"a feature level too high":    {edit(t, tableFeatures, func(f *featuresRow) bool { f.Level++; return true }), "this release knows"},
		"no feature level":            {edit(t, tableFeatures, func(f *featuresRow) bool { f.Level = 1; return true }), "this release knows"},
		"a target twice":              {add(tableTargets, w.fsm.Store().SavedTarget("all")), "twice"},
		"no clock":                    {edit(t, tableClock, func(*clockRow) bool { return false }), "after the state's last entry"},
		"no index":                    {edit(t, tableApplied, func(*appliedRow) bool { return false }), "which entries"},
		"no genesis":                  {edit(t, tableFleet, func(*bytesRow) bool { return false }), "before the genesis"},
		"no trust":                    {edit(t, tableTrust, func(*bytesRow) bool { return false }), "trust"},
		"two clocks":                  {add(tableClock, &clockRow{w.now}), "twice"},
		"two geneses":                 {add(tableFleet, &bytesRow{storedGenesis(t)}), "twice"},
		"a node twice":                {add(tableNodes, w.fsm.Store().Node(nodeID(1))), "twice"},
		"a command twice":             {add(tableCommands, newest), "twice"},
		"a request twice":             {add(tableRequests, signed), "twice"},
		"a row that is none":          {func(string, []byte) [][]byte { return [][]byte{{0xc1}} }, "extension types"},
		"a row with new words":        {add(tableClock, map[string]any{"s": w.now, "new": 1}), "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := restore(rewrite(t, b, c.change))
			if fleet.KindOf(err) != fleet.Corrupt || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("%v; want it refused with %q", err, c.want)
			}
		})
	}
}

// TestSnapshotCannotTakeBack is a replica that knows more than the snapshot
// admits.
func TestSnapshotCannotTakeBack(t *testing.T) {
	w := fullWorld(t)
	later := fullWorld(t)
	later.must(&entry.Trust{Stamp: later.now, Trust: trustJSON(t, rootKey, 3, 0, 1)})
	if err := later.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, w.fsm)))); !strings.Contains(fmt.Sprint(err), "would replace epoch 0, version 3") {
		t.Errorf("an older trust.json: %v", err)
	}
	gone := fullWorld(t)
	gone.must(gone.remove(3))
	if err := gone.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, w.fsm)))); !strings.Contains(fmt.Sprint(err), "knows nothing of that") {
		t.Errorf("a removed host let in again: %v", err)
	}
	dismissed := fullWorld(t)
	dismissed.must(dismissed.dismiss("eve"))
	if err := dismissed.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, w.fsm)))); !strings.Contains(fmt.Sprint(err), "made or ended an operator") {
		t.Errorf("an operator's rights come back: %v", err)
	}
	// What bob signs after his end, for a time before it: a fresh replica cannot
	// know better, one that was there does.
	late := fullWorld(t)
	late.now += second
	late.createActivation(9, 1)
	back := late.signs("bob", key('O', 2), "SendCommand", uuid(4), bobsCommand())
	ended := late.fsm.Store().FormerOperators()[0].Ended
	forged := rewrite(t, snapshotOf(t, late.fsm), add(tableRequests, &state.Request{
		Kind: entry.KindSendCommand, Object: uuid(4), Stamp: ended, Request: back.Request, Proof: back.Proof,
	}))
	if err := late.fsm.Restore(io.NopCloser(bytes.NewReader(forged))); !strings.Contains(fmt.Sprint(err), "has not seen it") {
		t.Errorf("a command of one who may no more, for the time when he did: %v", err)
	}
	// What ada signed and nobody decided, an hour after it ended.
	kept := fullWorld(t)
	e := kept.appoint("gus", 20, "*")
	last := kept.fsm.Store().Appointments()
	kept.now += 3600 * second
	kept.createActivation(9, 1)
	forged = rewrite(t, snapshotOf(t, kept.fsm), after(tableAppoint, len(last), &state.Appointment{
		Index: last[len(last)-1].Index + 1, Kind: entry.KindCreateOperator, Stamp: e.Stamp, Request: e.Request, Proof: e.Proof,
	}))
	if err := kept.fsm.Restore(io.NopCloser(bytes.NewReader(forged))); !strings.Contains(fmt.Sprint(err), "has not seen it") {
		t.Errorf("an operator by a request that has ended: %v", err)
	}
	older := fullWorld(t)
	later.now += second
	later.must(later.target("web", func(r *entry.PutTargetV1) { r.NodeSet = "web1" }))
	older.must(&entry.Trust{Stamp: older.now, Trust: trustJSON(t, rootKey, 3, 0, 1)})
	if err := later.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, older.fsm)))); !strings.Contains(fmt.Sprint(err), "target web would become what it was before") {
		t.Errorf("an older target: %v", err)
	}
	// The one command, under another ID: this replica saw the first.
	other := newWorld(t)
	known := newWorld(t)
	first := known.send(1, nil)
	known.must(first)
	again := *first
	again.ID = uuid(2)
	other.must(&again)
	if err := known.fsm.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, other.fsm)))); !strings.Contains(fmt.Sprint(err), "also said to have made") {
		t.Errorf("a command under another ID: %v", err)
	}
}
