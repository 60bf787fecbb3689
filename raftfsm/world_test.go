package raftfsm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/entry"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	start    = int64(1767225600_000000000) // 2026-01-01, when the fleet was made
	second   = int64(time.Second)
	document = `{"schemaVersion":"2.2","mainSteps":[]}`
)

// key is the key number n of a kind; the same in every run.
func key(kind byte, n int) identity.PrivateKey {
	return identity.KeyFromSeed([32]byte{kind, byte(n), byte(n >> 8), byte(n >> 16)})
}

var (
	rootKey     = key('R', 0)
	fleetID     = fleet.IDOf(rootKey.Public())
	operatorKey = key('O', 0)
	firstKey    = key('A', 0)
	firstNode   = fleet.NodeIDOf(firstKey.Public())
)

// code is an activation's code.
func code(n int) identity.Code { return identity.Code{'C', byte(n)} }

// uuid is the ID number n.
func uuid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

// trustJSON is a version of trust.json with this many voters.
func trustJSON(tb testing.TB, root identity.PrivateKey, version, epoch uint32, voters int) []byte {
	tb.Helper()
	t := identity.Trust{Fleet: fleet.IDOf(root.Public()), Version: version, Epoch: epoch, K: identity.ThresholdFor(voters)}
	for i := range voters {
		t.Voters = append(t.Voters, identity.TrustVoter{Node: fleet.NodeIDOf(key('A', i).Public()), Key: key('Q', i).Public()})
		t.Issuers = append(t.Issuers, identity.TrustIssuer{Node: fleet.NodeIDOf(key('A', i).Public()), Key: key('I', i).Public()})
	}
	if version == 1 {
		t.FirstOperator = &identity.TrustOperator{Name: "ada", Key: operatorKey.Public()}
	}
	b, err := identity.SignTrust(root, t)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// genesisPayload is a genesis of the fleet of root. Only its certificate
// differs from run to run.
func genesisPayload(tb testing.TB, root identity.PrivateKey) identity.GenesisPayload {
	tb.Helper()
	cert, err := identity.NewRootCertificate(root, "test", time.Unix(0, start))
	if err != nil {
		tb.Fatal(err)
	}
	return identity.GenesisPayload{
		Trust: trustJSON(tb, root, 1, 0, 1), RootCertificate: cert, FleetName: "test",
		Operator: fleet.Operator{Name: "ada", Keys: []fleet.PublicKey{operatorKey.Public()}, May: []string{"*"}, Created: start},
		Node: fleet.Node{
			ID: firstNode, Name: "host1", Key: firstKey.Public(), Address: "10.0.0.1:7790",
			AddressEpoch: uint32(start / second), Enrolled: start,
		},
		GossipKey: bytes.Repeat([]byte{9}, 32),
	}
}

// golden is the content of a file under testdata, in hex; b is what -update
// writes.
func golden(tb testing.TB, name string, b []byte) []byte {
	tb.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		var lines bytes.Buffer
		for rest := hex.EncodeToString(b); rest != ""; {
			n := min(len(rest), 120)
			lines.WriteString(rest[:n] + "\n")
			rest = rest[n:]
		}
		if err := os.WriteFile(path, lines.Bytes(), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	out, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// world is a replica and the people around it.
type world struct {
	tb    testing.TB
	fsm   *FSM
	index uint64
	now   int64  // what a proposer would stamp
	nonce uint32 // of the last request
	log   [][]byte
	quick bool // do not check that refused entries change nothing
}

// newWorld is a replica after genesis.
func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{tb: tb, fsm: New(fleetID), now: start}
	w.must(&entry.Genesis{Payload: storedGenesis(tb)})
	return w
}

// storedGenesis is the genesis in testdata: certificates have random serial
// numbers, and goldens must not.
func storedGenesis(tb testing.TB) []byte {
	tb.Helper()
	path := filepath.Join("testdata", "genesis.hex")
	if _, err := os.Stat(path); err != nil && *update {
		return golden(tb, "genesis.hex", identity.SignGenesis(rootKey, genesisPayload(tb, rootKey)))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// apply applies one entry, and checks that one that is refused changes nothing.
func (w *world) apply(body entry.Body) Answer {
	w.tb.Helper()
	b, err := entry.Encode(body)
	if err != nil {
		w.tb.Fatal(err)
	}
	return w.applyBytes(b)
}

func (w *world) applyBytes(b []byte) Answer {
	w.tb.Helper()
	var before fleet.Digest
	if !w.quick {
		before = w.fsm.Hash()
	}
	w.index++
	w.log = append(w.log, b)
	answer := w.fsm.Apply(&raft.Log{Index: w.index, Type: raft.LogCommand, Data: b}).(Answer)
	if answer.Index != w.index || w.fsm.Applied() != w.index {
		w.tb.Errorf("entry %d was answered as %d, and %d is applied", w.index, answer.Index, w.fsm.Applied())
	}
	if !w.quick && answer.Err != nil && w.fsm.Hash() != before {
		w.tb.Errorf("entry %d was refused (%v) and changed the state", w.index, answer.Err)
	}
	return answer
}

// must applies an entry that must be accepted.
func (w *world) must(body entry.Body) any {
	w.tb.Helper()
	answer := w.apply(body)
	if answer.Err != nil {
		w.tb.Fatalf("%s: %v", body.Kind(), answer.Err)
	}
	return answer.Value
}

// refused applies an entry that must be refused with an error of a kind.
func (w *world) refused(body entry.Body, kind fleet.Kind) error {
	w.tb.Helper()
	answer := w.apply(body)
	if answer.Err == nil || fleet.KindOf(answer.Err) != kind {
		w.tb.Errorf("%s: answered %v, %v; want an error of kind %s", body.Kind(), answer.Value, answer.Err, kind)
	}
	return answer.Err
}

// proof is the first operator's proof for a request, with the next nonce.
func (w *world) proof(operation string, request []byte) identity.Proof {
	w.nonce++
	return identity.Proof{
		Fleet: fleetID, Operator: "ada", Key: operatorKey.Public().ID(), Operation: operation, Body: fleet.Sum(request),
		Nonce:    [16]byte{byte(w.nonce), byte(w.nonce >> 8), byte(w.nonce >> 16), byte(w.nonce >> 24)},
		NotAfter: w.now + 300*second,
	}
}

// authority is a request signed by the first operator.
func (w *world) authority(operation, id string, request any) entry.Authority {
	w.tb.Helper()
	b := encodeJSON(w.tb, request)
	return entry.Authority{Stamp: w.now, ID: id, Request: b, Proof: identity.SignProof(operatorKey, w.proof(operation, b))}
}

func encodeJSON(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// activation is a request for the activation number n.
func activation(n int, limit int64, tags ...entry.Tag) entry.CreateActivationV1 {
	public := code(n).Key().Public()
	return entry.CreateActivationV1{
		RegistrationLimit: limit, Tags: tags, DefaultInstanceName: "box", PublicKey: base64.StdEncoding.EncodeToString(public[:]),
	}
}

func (w *world) createActivation(n int, limit int64, tags ...entry.Tag) *fleet.Activation {
	w.tb.Helper()
	e := &entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(n), activation(n, limit, tags...))}
	return w.must(e).(*fleet.Activation)
}

// replacing is a request for the activation number n, whose host replaces the
// host old.
func replacing(n, old int) entry.CreateActivationV1 {
	public := code(n).Key().Public()
	return entry.CreateActivationV1{PublicKey: base64.StdEncoding.EncodeToString(public[:]), Replaces: string(nodeID(old))}
}

func (w *world) createReplacing(n, old int) *entry.CreateActivation {
	w.tb.Helper()
	return &entry.CreateActivation{Authority: w.authority("CreateActivation", uuid(n), replacing(n, old))}
}

// join is the join request of host n with the activation a.
func (w *world) join(a, n int) *entry.Enrol {
	w.tb.Helper()
	b, err := identity.NewJoinRequest(identity.JoinPayload{
		Fleet: fleetID, Activation: fleet.ActivationID(uuid(a)), Key: key('A', n).Public(), Name: fmt.Sprintf("host%d", n+1),
		Address: fmt.Sprintf("10.0.%d.%d:7790", n>>8, n&255), Epoch: uint32(w.now / second),
	}, key('A', n), code(a))
	if err != nil {
		w.tb.Fatal(err)
	}
	return &entry.Enrol{Stamp: w.now, Request: b}
}

// hosts enrols hosts 1 to n-1 (0 is the first), so that there are n.
func (w *world) hosts(n int) {
	w.tb.Helper()
	w.createActivation(1000, 1000)
	for i := 1; i < n; i++ {
		w.must(w.join(1000, i))
	}
}

// remove is a request to remove host n.
func (w *world) remove(n int) *entry.RemoveNode {
	w.tb.Helper()
	return &entry.RemoveNode{Authority: w.authority("DeregisterManagedInstance", "",
		entry.DeregisterManagedInstanceV1{InstanceId: string(nodeID(n))})}
}

// leave is host n's word that it goes.
func (w *world) leave(n int) *entry.Leave {
	w.tb.Helper()
	b, err := identity.NewLeave(identity.Leave{Fleet: fleetID, Node: nodeID(n), Epoch: uint32(w.now / second)}, key('A', n))
	if err != nil {
		w.tb.Fatal(err)
	}
	return &entry.Leave{Stamp: w.now, Request: b}
}

// signs makes an operator sign, with his key, what ada would.
func (w *world) signs(name fleet.OperatorName, by identity.PrivateKey, operation, id string, request any) entry.Authority {
	w.tb.Helper()
	b := encodeJSON(w.tb, request)
	p := w.proof(operation, b)
	p.Operator, p.Key = name, by.Public().ID()
	return entry.Authority{Stamp: w.now, ID: id, Request: b, Proof: identity.SignProof(by, p)}
}

// newOperator is a request for an operator with the key O n.
func newOperator(name string, n int, may ...string) entry.CreateOperatorV1 {
	public := key('O', n).Public()
	return entry.CreateOperatorV1{Name: name, PublicKey: base64.StdEncoding.EncodeToString(public[:]), May: may}
}

// appoint is the first operator's request for another, dismiss his for the end
// of one.
func (w *world) appoint(name string, n int, may ...string) *entry.CreateOperator {
	w.tb.Helper()
	return &entry.CreateOperator{Authority: w.authority("CreateOperator", "", newOperator(name, n, may...))}
}

func (w *world) dismiss(name string) *entry.DeleteOperator {
	w.tb.Helper()
	return &entry.DeleteOperator{Authority: w.authority("DeleteOperator", "", entry.DeleteOperatorV1{Name: name})}
}

// rename is a request to rename host n.
func (w *world) rename(n int, name string) *entry.RenameNode {
	w.tb.Helper()
	return &entry.RenameNode{Authority: w.authority("RenameNode", "", entry.RenameNodeV1{InstanceId: string(nodeID(n)), Name: name})}
}

// rotate is the leader's first step of a rotation that ada asked for; rotation a
// later step.
func (w *world) rotate(version uint32, key byte) *entry.GossipKey {
	w.tb.Helper()
	a := w.authority("RotateGossipKey", "", entry.RotateGossipKeyV1{})
	return &entry.GossipKey{
		Stamp: w.now, Step: entry.GossipKeyMade, Version: version, Key: bytes.Repeat([]byte{key}, entry.GossipKeySize),
		Request: a.Request, Proof: a.Proof,
	}
}

func (w *world) rotation(step entry.GossipStep, version uint32) *entry.GossipKey {
	return &entry.GossipKey{Stamp: w.now, Step: step, Version: version}
}

func nodeID(n int) fleet.NodeID { return fleet.NodeIDOf(key('A', n).Public()) }

// send is a request to run the document on all nodes; edit changes it.
func (w *world) send(n int, edit func(*entry.SendCommandV1)) *entry.SendCommand {
	w.tb.Helper()
	req := entry.SendCommandV1{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum([]byte(document)).String(), DocumentHashType: "Sha256",
		Targets:    []fleet.Target{{Key: "InstanceIds", Values: []string{"*"}}},
		Parameters: map[string][]string{"commands": {"true"}, "a": {"1", "2"}}, TimeoutSeconds: 60,
		MaxConcurrency: "100%", MaxErrors: "100%",
	}
	if edit != nil {
		edit(&req)
	}
	return &entry.SendCommand{
		Authority: w.authority("SendCommand", uuid(n), req), Document: []byte(document), Version: "1", ExecutionSeconds: 100,
	}
}

// target is a request to save a target; edit changes it.
func (w *world) target(name string, edit func(*entry.PutTargetV1)) *entry.PutTarget {
	w.tb.Helper()
	req := entry.PutTargetV1{Name: name, NodeSet: "web[1-3]", Targets: []fleet.Target{{Key: "tag:role", Values: []string{"web"}}}}
	if edit != nil {
		edit(&req)
	}
	return &entry.PutTarget{Authority: w.authority("PutTarget", "", req)}
}

func (w *world) removeTarget(name string) *entry.DeleteTarget {
	w.tb.Helper()
	return &entry.DeleteTarget{Authority: w.authority("DeleteTarget", "", entry.DeleteTargetV1{Name: name})}
}

// snapshotOf is the bytes of a snapshot.
func snapshotOf(tb testing.TB, f *FSM) []byte {
	tb.Helper()
	s, err := f.Snapshot()
	if err != nil {
		tb.Fatal(err)
	}
	sink := &memorySink{}
	if err := s.Persist(sink); err != nil {
		tb.Fatal(err)
	}
	s.Release()
	if !sink.closed {
		tb.Error("the sink was not closed")
	}
	return sink.Bytes()
}

// memorySink is a raft.SnapshotSink.
type memorySink struct {
	bytes.Buffer
	limit             int // of bytes, then writes fail; 0 is none
	closed, cancelled bool
}

func (s *memorySink) Write(b []byte) (int, error) {
	if s.limit > 0 && s.Len()+len(b) > s.limit {
		return 0, io.ErrShortWrite
	}
	return s.Buffer.Write(b)
}
func (s *memorySink) ID() string    { return "memory" }
func (s *memorySink) Cancel() error { s.cancelled = true; return nil }
func (s *memorySink) Close() error  { s.closed = true; return nil }

// restore makes a replica of a snapshot.
func restore(b []byte) (*FSM, error) {
	f := New(fleetID)
	return f, f.Restore(io.NopCloser(bytes.NewReader(b)))
}
