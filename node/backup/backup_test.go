package backup

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"filippo.io/age"
	"github.com/hashicorp/raft"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

// founded is a fleet of one host, as its first entry makes it.
type founded struct {
	id       fleet.ID
	operator identity.PrivateKey
	fsm      *raftfsm.FSM
}

const first = fleet.OperatorName("ada@desk")

func found(t testing.TB) *founded {
	t.Helper()
	now := time.Now()
	key := func() identity.PrivateKey {
		k, err := identity.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	root, operator, agent := key(), key(), key()
	f := &founded{id: fleet.IDOf(root.Public()), operator: operator}
	f.fsm = raftfsm.New(f.id)
	cert, err := identity.NewRootCertificate(root, "acme", now)
	if err != nil {
		t.Fatal(err)
	}
	node := fleet.NodeIDOf(agent.Public())
	trust, err := identity.SignTrust(root, identity.Trust{
		Fleet: f.id, Epoch: 1, Version: 1, K: 1,
		Issuers:       []identity.TrustIssuer{{Node: node, Key: key().Public()}},
		Voters:        []identity.TrustVoter{{Node: node, Key: key().Public()}},
		FirstOperator: &identity.TrustOperator{Name: first, Key: operator.Public()},
	})
	if err != nil {
		t.Fatal(err)
	}
	genesis := identity.SignGenesis(root, identity.GenesisPayload{
		Trust: trust, RootCertificate: cert, FleetName: "acme", GossipKey: bytes.Repeat([]byte{7}, 32),
		Operator: fleet.Operator{Name: first, Keys: []fleet.PublicKey{operator.Public()}, May: []string{"*"}, Created: now.UnixNano()},
		Node:     fleet.Node{ID: node, Name: "host1", Key: agent.Public(), Address: "10.0.0.1:7790", AddressEpoch: uint32(now.Unix()), Enrolled: now.UnixNano()},
	})
	body, err := entry.Encode(&entry.Genesis{Payload: genesis})
	if err != nil {
		t.Fatal(err)
	}
	if a := f.fsm.Apply(&raft.Log{Index: 1, Data: body}).(raftfsm.Answer); a.Err != nil {
		t.Fatal(a.Err)
	}
	return f
}

// state is the fleet's state as a part has it.
func (f *founded) state(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f.fsm.WriteState(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (f *founded) signature() identity.FileSignature {
	return identity.FileSignature{Fleet: f.id, Operator: first, Made: 1_700_000_000}
}

func recipient(t testing.TB) *age.X25519Identity {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// part is what a test puts into a backup.
type part struct {
	name string
	data []byte
}

// written is a backup with these parts.
func (f *founded) written(t testing.TB, to age.Recipient, parts ...part) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, f.id, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if err := w.part(p.name, bytes.NewReader(p.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(f.operator, f.signature()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func wantKind(t *testing.T, err error, kind fleet.Kind, text string) {
	t.Helper()
	if fleet.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v (%v), want %v with %q", err, fleet.KindOf(err), kind, text)
	}
}

func TestRoundTrip(t *testing.T) {
	f, k := found(t), recipient(t)
	key := bytes.Repeat([]byte("k"), 100)
	b := f.written(t, k.Recipient(), part{StatePart, f.state(t)}, part{"keys/agent.key", key}, part{"keys/none", nil})
	if bytes.Contains(b, key[:20]) || bytes.Contains(b, []byte("host1")) {
		t.Error("the backup is not encrypted")
	}
	got, err := Read(bytes.NewReader(b), k)
	if err != nil {
		t.Fatal(err)
	}
	if got.FSM.Hash() != f.fsm.Hash() || got.FSM.Applied() != 1 {
		t.Error("another state than was written")
	}
	if !bytes.Equal(got.Parts["keys/agent.key"], key) || got.Parts["keys/none"] == nil || len(got.Parts) != 2 {
		t.Errorf("got the parts %v", got.Parts)
	}
	if got.Signature.Operator != first || got.Signature.Made != 1_700_000_000 || !got.SignedByOperator() {
		t.Errorf("got the signature %+v", got.Signature)
	}
}

func TestAStrangersSignatureIsSeen(t *testing.T) {
	f, k := found(t), recipient(t)
	stranger, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	f.operator = stranger
	got, err := Read(bytes.NewReader(f.written(t, k.Recipient(), part{StatePart, f.state(t)})), k)
	if err != nil {
		t.Fatal(err)
	}
	if got.SignedByOperator() {
		t.Error("a stranger's backup counts as an operator's")
	}
}

func TestReadRefuses(t *testing.T) {
	f, k := found(t), recipient(t)
	state := f.state(t)
	whole := f.written(t, k.Recipient(), part{StatePart, state})
	read := func(b []byte, ids ...age.Identity) error {
		_, err := Read(bytes.NewReader(b), ids...)
		return err
	}
	wantKind(t, read(whole, recipient(t)), fleet.Denied, "does not open")
	wantKind(t, read([]byte("hello"), k), fleet.Corrupt, "no backup")
	for cut := 1; cut < len(whole); cut += 97 {
		if err := read(whole[:cut], k); err == nil {
			t.Fatalf("a backup cut to %d of %d bytes is taken", cut, len(whole))
		}
	}
	for at := 0; at < len(whole); at += 61 {
		b := bytes.Clone(whole)
		b[at] ^= 1
		if err := read(b, k); err == nil {
			t.Fatalf("a backup with byte %d changed is taken", at)
		}
	}
	damaged := bytes.Clone(state)
	damaged[len(damaged)/2] ^= 1
	wantKind(t, read(f.written(t, k.Recipient(), part{StatePart, damaged}), k), fleet.Corrupt, "snapshot")
	wantKind(t, read(f.written(t, k.Recipient(), part{StatePart, state[:len(state)-1]}), k), fleet.Corrupt, "snapshot")
	wantKind(t, read(f.written(t, k.Recipient(), part{StatePart, append(bytes.Clone(state), 0)}), k), fleet.Corrupt, "snapshot")
	wantKind(t, read(f.written(t, k.Recipient(), part{StatePart, found(t).state(t)}), k), fleet.Corrupt, "")
	wantKind(t, read(f.written(t, k.Recipient(), part{StatePart, state}, part{"keys/big", make([]byte, maxSmall+1)}), k), fleet.Corrupt, "over")
}

func TestWriterRefuses(t *testing.T) {
	f := found(t)
	var b plain
	begin := func() *Writer {
		w, err := newWriter(&b, f.id)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	state := f.state(t)
	for name, bytes := range map[string]io.Reader{
		"a state cut short":   bytes.NewReader(state[:len(state)-9]),
		"no state":            bytes.NewReader(nil),
		"another fleet's":     bytes.NewReader(found(t).state(t)),
		"a connection's end":  io.MultiReader(bytes.NewReader(state[:100]), iotest.ErrReader(errors.New("cut"))),
		"something behind it": bytes.NewReader(append(slices.Clone(state), state...)),
	} {
		if _, err := begin().State(f.id, bytes); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	w := begin()
	if err := w.Part("keys/a", bytes.NewReader(nil)); err == nil {
		t.Error("a key was written before the state")
	}
	if _, err := w.State(f.id, bytes.NewReader(state)); err != nil {
		t.Error(err)
	}
	if err := w.Part("../x", bytes.NewReader(nil)); err == nil {
		t.Error("a path was written")
	}
}

type plain struct{ bytes.Buffer }

func (*plain) Close() error { return nil }

// inner is what is encrypted, made by steps that need not follow the rules.
func (f *founded) inner(t testing.TB, steps ...func(*Writer) error) []byte {
	t.Helper()
	var b plain
	w, err := newWriter(&b, f.id)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		if err := step(w); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func frame(kind byte, body string) func(*Writer) error {
	return func(w *Writer) error { return w.frame(kind, []byte(body)) }
}

func (f *founded) stateStep(t testing.TB) func(*Writer) error {
	return func(w *Writer) error {
		_, err := w.State(f.id, bytes.NewReader(f.state(t)))
		return err
	}
}

func (f *founded) end(w *Writer) error { return w.Close(f.operator, f.signature()) }

func TestForm(t *testing.T) {
	f := found(t)
	state := f.stateStep(t)
	other := func(change func(*identity.FileSignature)) func(*Writer) error {
		return func(w *Writer) error {
			s := f.signature()
			change(&s)
			return w.Close(f.operator, s)
		}
	}
	late := func(w *Writer) error { // what comes after the end is not signed
		if err := f.end(w); err != nil {
			return err
		}
		return errors.Join(w.frame(framePart, []byte("keys/late")), w.out.Flush())
	}
	unsigned := func(w *Writer) error {
		w.sum.Write([]byte{1})
		return f.end(w)
	}
	for name, c := range map[string]struct {
		steps []func(*Writer) error
		want  string
	}{
		"data before a part":     {[]func(*Writer) error{frame(frameData, "x"), state, f.end}, "before the first part"},
		"no state":               {[]func(*Writer) error{f.end}, "no state"},
		"a key before the state": {[]func(*Writer) error{frame(framePart, "keys/a"), state, f.end}, "cannot stand"},
		"two states":             {[]func(*Writer) error{state, frame(framePart, StatePart), f.end}, "cannot stand"},
		"a part twice":           {[]func(*Writer) error{state, frame(framePart, "keys/a"), frame(framePart, "keys/a"), f.end}, "cannot stand"},
		"a path":                 {[]func(*Writer) error{state, frame(framePart, "/etc/passwd"), f.end}, "cannot stand"},
		"an unknown frame":       {[]func(*Writer) error{state, frame(9, "x"), f.end}, "kind 9"},
		"something behind":       {[]func(*Writer) error{state, late}, "follows its end"},
		"another content":        {[]func(*Writer) error{state, unsigned}, "not what ada@desk signed"},
		"another fleet": {[]func(*Writer) error{state, other(func(s *identity.FileSignature) {
			s.Fleet = fleet.ID(strings.Repeat("0", 32))
		})}, "signed for fleet"},
		"no signature": {[]func(*Writer) error{state, func(w *Writer) error { return w.out.Flush() }}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readPlain(bytes.NewReader(f.inner(t, c.steps...)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := readPlain(bytes.NewReader(f.inner(t, state, f.end))); err != nil {
		t.Error("the whole one:", err)
	}
	newer := f.inner(t, state, f.end)
	newer[len(magic)]++
	_, err := readPlain(bytes.NewReader(newer))
	wantKind(t, err, fleet.Invalid, "version 2")
}

var update = flag.Bool("update", false, "rewrite the golden file")

// TestGolden reads a backup of version 1 as it lies in somebody's safe.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "backup.v1")
	if *update {
		f := found(t)
		b := f.inner(t, f.stateStep(t), frame(framePart, "keys/a"), frame(frameData, "key"), f.end)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readPlain(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if nodes := got.State().Nodes(); len(nodes) != 1 || nodes[0].Name != "host1" || string(got.Parts["keys/a"]) != "key" || !got.SignedByOperator() {
		t.Errorf("got %+v with %v", nodes, got.Parts)
	}
}

func FuzzRead(f *testing.F) {
	fl := found(f)
	f.Add(fl.inner(f, fl.stateStep(f), fl.end))
	f.Add(fl.inner(f, fl.stateStep(f), frame(framePart, "keys/a"), frame(frameData, "key"), fl.end))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readPlain(bytes.NewReader(b))
		if (got == nil || got.FSM == nil) && err == nil {
			t.Error("neither a backup nor an error")
		}
	})
}
