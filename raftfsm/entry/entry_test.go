package entry

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	testStamp   = int64(1767225600_000000000) // 2026-01-01
	testID      = "6f1d2c3b-4a59-4687-9768-56a4b3c2d1e0"
	testCommand = fleet.CommandID(testID)
)

func authority(id string) Authority {
	return Authority{Stamp: testStamp, ID: id, Random: []byte{1, 2}, Request: []byte(`{"A":"b"}`), Proof: []byte("proof")}
}

// samples has one valid body of each kind, with every field set.
func samples() []Body {
	return []Body{
		&Genesis{Payload: []byte("signed genesis")},
		&Trust{Stamp: testStamp, Trust: []byte("trust.json")},
		&CreateActivation{authority(testID)},
		&DeleteActivation{authority("")},
		&Enrol{Stamp: testStamp, Request: []byte("join request")},
		&AddTags{authority("")},
		&RemoveTags{authority("")},
		&SendCommand{Authority: authority(testID), Document: []byte("{}"), Version: "1", ExecutionSeconds: 3600},
		&Mint{Stamp: testStamp, Command: testCommand, Attempt: 1, N: 2, NotBefore: testStamp},
		&Results{Stamp: testStamp, Command: testCommand, Attempt: 1, Rows: []fleet.Invocation{
			{Index: 300, State: fleet.InProgress, Code: -1},
			{
				Index: 301, State: fleet.Failed, Code: 7, Started: testStamp, Ended: testStamp + 1, Detail: fleet.Sum(nil), DetailSize: 9,
				Reason: "step 1 failed", Signature: bytes.Repeat([]byte{7}, 64),
			},
		}},
		&Expire{Stamp: testStamp, Command: testCommand, Attempt: 1},
		&Address{Stamp: testStamp, Request: []byte("change of address")},
		&CancelCommand{authority("")},
		&RemoveNode{authority("")},
		&Leave{Stamp: testStamp, Request: []byte("farewell")},
		&RenameNode{authority("")},
		&CreateOperator{authority("")},
		&DeleteOperator{authority("")},
		&PutTarget{authority("")},
		&DeleteTarget{authority("")},
		&Release{Stamp: testStamp, Command: testCommand, Attempt: 1, Indexes: []uint32{0, 300, 70000}},
		&GossipKey{Stamp: testStamp, Step: GossipKeyMade, Version: 1, Key: bytes.Repeat([]byte{8}, 32), Request: []byte("{}"), Proof: []byte("proof")},
		&Retire{Stamp: testStamp},
		&Features{Stamp: testStamp, Level: 2},
		&Marks{Stamp: testStamp, Marks: []fleet.VoterMark{{Node: "mi-00000000000000001", Term: 3, Index: 70000}, {Node: "mi-00000000000000002"}}},
	}
}

func TestEveryKindIsDecoded(t *testing.T) {
	seen := map[Kind]bool{}
	for _, body := range samples() {
		seen[body.Kind()] = true
		if err := body.Check(); err != nil {
			t.Errorf("%s: Check: %v", body.Kind(), err)
		}
		b, err := Encode(body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", body.Kind(), err)
			continue
		}
		if again, err := Encode(got); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s: decoded and encoded again it is another entry (%v)", body.Kind(), err)
		}
	}
	for k := range kinds {
		if !seen[k] {
			t.Errorf("no sample of %s", k)
		}
	}
	if len(seen) != len(kinds) {
		t.Errorf("%d kinds have samples, %d have decoders", len(seen), len(kinds))
	}
}

// TestGolden holds the bytes of each kind: the logs of running fleets have them.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "entries.txt")
	if *update {
		var out strings.Builder
		for _, body := range samples() {
			b, err := Encode(body)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%s %x\n", body.Kind(), b)
		}
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	golden := map[string][]byte{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, digits, _ := strings.Cut(lines.Text(), " ")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		golden[name] = b
	}
	for _, body := range samples() {
		b, err := Encode(body)
		if err != nil {
			t.Fatal(err)
		}
		if want := golden[body.Kind().String()]; !bytes.Equal(b, want) {
			t.Errorf("%s is written as\n%x, and logs have\n%x", body.Kind(), b, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	mint, err := Encode(samples()[8])
	if err != nil {
		t.Fatal(err)
	}
	with := func(i int, v byte) []byte {
		b := bytes.Clone(mint)
		b[i] = v
		return b
	}
	extra := append([]byte{Version, byte(KindExpire)}, wire.MustMarshal(map[string]any{"s": 1, "c": "x", "a": 1, "new": true})...)
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"only a version":      {Version},
		"version 0":           with(0, 0),
		"version 2":           with(0, 2),
		"kind 0":              with(1, 0),
		"kind 99":             with(1, 99),
		"kind 255":            with(1, 255),
		"no body":             mint[:2],
		"cut body":            mint[:len(mint)-1],
		"bytes after it":      append(bytes.Clone(mint), 0xc0),
		"body of another":     with(1, byte(KindTrust)),
		"a field of tomorrow": extra,
		"too large":           append([]byte{Version, byte(KindGenesis)}, make([]byte, MaxSize)...),
		"allocation bomb":     {Version, byte(KindResults), 0x81, 0xa1, 'r', 0xdd, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := Decode(b)
			if !errors.Is(err, ErrUnknown) {
				t.Errorf("Decode = %v, %v; want ErrUnknown", body, err)
			}
		})
	}
}

func TestEncodeRefusesLargeEntries(t *testing.T) {
	e := &SendCommand{Authority: authority(testID), Document: make([]byte, MaxDocument)}
	e.Request = make([]byte, MaxRequest)
	if _, err := Encode(e); fleet.KindOf(err) != fleet.TooLarge {
		t.Errorf("Encode = %v; want TooLarge", err)
	}
}

func TestKinds(t *testing.T) {
	for operation, want := range map[string]Kind{
		"CreateActivation": KindCreateActivation, "DeleteActivation": KindDeleteActivation,
		"AddTagsToResource": KindAddTags, "RemoveTagsFromResource": KindRemoveTags, "SendCommand": KindSendCommand,
		"DeregisterManagedInstance": KindRemoveNode, "RenameNode": KindRenameNode, "CreateOperator": KindCreateOperator, "DeleteOperator": KindDeleteOperator,
		"PutTarget": KindPutTarget, "DeleteTarget": KindDeleteTarget,
	} {
		if k, ok := KindOf(operation); !ok || k != want || k.Operation() != operation {
			t.Errorf("KindOf(%q) = %v, %v", operation, k, ok)
		}
	}
	for _, operation := range []string{"", "Mint", "sendcommand", "Enrol"} {
		if k, ok := KindOf(operation); ok {
			t.Errorf("KindOf(%q) = %v", operation, k)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	rows := func(edit func([]fleet.Invocation)) Body {
		e := samples()[9].(*Results)
		edit(e.Rows)
		return e
	}
	auth := func(edit func(*SendCommand)) Body {
		e := samples()[7].(*SendCommand)
		edit(e)
		return e
	}
	for name, body := range map[string]Body{
		"genesis without payload":     &Genesis{},
		"trust without stamp":         &Trust{Trust: []byte("x")},
		"trust of a far time":         &Trust{Stamp: MaxStamp + 1, Trust: []byte("x")},
		"trust too large":             &Trust{Stamp: testStamp, Trust: make([]byte, MaxTrust+1)},
		"activation without ID":       &CreateActivation{authority("")},
		"activation with another ID":  &CreateActivation{authority("A")},
		"removal with an ID":          &RemoveNode{authority(testID)},
		"tags with an ID":             &AddTags{authority(testID)},
		"join request too large":      &Enrol{Stamp: testStamp, Request: make([]byte, maxNodeRequest+1)},
		"address without request":     &Address{Stamp: testStamp},
		"farewell without request":    &Leave{Stamp: testStamp},
		"farewell too large":          &Leave{Stamp: testStamp, Request: make([]byte, maxNodeRequest+1)},
		"target with an ID":           &PutTarget{authority(testID)},
		"removed target with an ID":   &DeleteTarget{authority(testID)},
		"no request":                  auth(func(e *SendCommand) { e.Request = nil }),
		"request too large":           auth(func(e *SendCommand) { e.Request = make([]byte, MaxRequest+1) }),
		"no proof":                    auth(func(e *SendCommand) { e.Proof = nil }),
		"proof too large":             auth(func(e *SendCommand) { e.Proof = make([]byte, MaxProof+1) }),
		"too much random":             auth(func(e *SendCommand) { e.Random = make([]byte, MaxRandom+1) }),
		"negative stamp":              auth(func(e *SendCommand) { e.Stamp = -1 }),
		"no document":                 auth(func(e *SendCommand) { e.Document = nil }),
		"document too large":          auth(func(e *SendCommand) { e.Document = make([]byte, MaxDocument+1) }),
		"document version":            auth(func(e *SendCommand) { e.Version = "0" }),
		"no execution time":           auth(func(e *SendCommand) { e.ExecutionSeconds = 0 }),
		"long execution time":         auth(func(e *SendCommand) { e.ExecutionSeconds = MaxExecutionSeconds + 1 }),
		"mint of no command":          &Mint{Stamp: testStamp, NotBefore: testStamp, N: 2},
		"mint from no time":           &Mint{Stamp: testStamp, Command: testCommand, N: 2},
		"expire of no command":        &Expire{Stamp: testStamp, Command: "x"},
		"an answer twice":             &Expire{Stamp: testStamp, Command: testCommand, Said: []Said{{1, "a"}, {1, "b"}}},
		"an empty answer":             &Expire{Stamp: testStamp, Command: testCommand, Said: []Said{{1, ""}}},
		"a long answer":               &Expire{Stamp: testStamp, Command: testCommand, Said: []Said{{1, strings.Repeat("a", MaxSaidText+1)}}},
		"too many answers":            &Expire{Stamp: testStamp, Command: testCommand, Said: make([]Said, MaxSaid+1)},
		"no rows":                     &Results{Stamp: testStamp, Command: testCommand},
		"rows out of order":           rows(func(r []fleet.Invocation) { r[1].Index = 299 }),
		"a row twice":                 rows(func(r []fleet.Invocation) { r[1].Index = 300 }),
		"rows of two shards":          rows(func(r []fleet.Invocation) { r[1].Index = 512 }),
		"pending row":                 rows(func(r []fleet.Invocation) { r[0].State = fleet.Pending }),
		"row in no state":             rows(func(r []fleet.Invocation) { r[0].State = 200 }),
		"long reason":                 rows(func(r []fleet.Invocation) { r[0].Reason = strings.Repeat("x", MaxReason+1) }),
		"reason that is not text":     rows(func(r []fleet.Invocation) { r[0].Reason = "\xff" }),
		"short signature":             rows(func(r []fleet.Invocation) { r[0].Signature = []byte{1} }),
		"row that ended before 1970":  rows(func(r []fleet.Invocation) { r[0].Ended = -1 }),
		"row that decides for itself": rows(func(r []fleet.Invocation) { r[0].Decided = 9 }),
		"row that releases itself":    rows(func(r []fleet.Invocation) { r[0].Released = 9 }),
		"row that is released":        rows(func(r []fleet.Invocation) { r[0].State = fleet.Released }),
		"release of no command":       &Release{Stamp: testStamp, Indexes: []uint32{1}},
		"release at no time":          &Release{Command: testCommand, Indexes: []uint32{1}},
		"gossip key of no step":       &GossipKey{Stamp: testStamp},
		"gossip key of another step":  &GossipKey{Stamp: testStamp, Step: 4},
		"gossip key that is short":    &GossipKey{Stamp: testStamp, Step: GossipKeyMade, Key: make([]byte, 31)},
		"gossip key without time":     &GossipKey{Step: GossipKeyMade, Key: make([]byte, 32)},
		"gossip key used and made":    &GossipKey{Stamp: testStamp, Step: GossipKeyUsed, Key: make([]byte, 32)},
		"gossip key half signed":      &GossipKey{Stamp: testStamp, Step: GossipKeyMade, Key: make([]byte, 32), Request: []byte("{}")},
		"release of nobody":           &Release{Stamp: testStamp, Command: testCommand},
		"release of one twice":        &Release{Stamp: testStamp, Command: testCommand, Indexes: []uint32{1, 1}},
		"release out of order":        &Release{Stamp: testStamp, Command: testCommand, Indexes: []uint32{2, 1}},
		"release of too many":         &Release{Stamp: testStamp, Command: testCommand, Indexes: make([]uint32, MaxReleased+1)},
		"too many rows": &Results{Stamp: testStamp, Command: testCommand,
			Rows: make([]fleet.Invocation, fleet.ShardSize+1)},
	} {
		t.Run(name, func(t *testing.T) {
			err := body.Check()
			if k := fleet.KindOf(err); k != fleet.Invalid && k != fleet.TooLarge {
				t.Errorf("Check = %v; want Invalid or TooLarge", err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, body := range samples() {
		b, err := Encode(body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrUnknown) {
				t.Fatalf("an error that is not ErrUnknown: %v", err)
			}
			return
		}
		if body.Kind() != Kind(b[1]) {
			t.Fatalf("kind %d was decoded as %s", b[1], body.Kind())
		}
		_ = body.Check()
		again, err := Encode(body)
		if err != nil {
			// Foreign bytes may be in a shorter form than ours.
			return
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("encoded again it cannot be read: %v", err)
		}
	})
}

// TestLevels: every kind after the first twenty says which feature level it
// needs, and none needs more than this release has.
func TestLevels(t *testing.T) {
	for kind := range kinds {
		level, said := levels[kind]
		if kind > KindDeleteTarget && !said {
			t.Errorf("%s: say in levels (features.go) which feature level it needs", kind)
		}
		if said && (level <= BaseLevel || level > MaxLevel) {
			t.Errorf("%s needs feature level %d, which is not between %d and %d", kind, level, BaseLevel+1, MaxLevel)
		}
	}
	for kind := range levels {
		if _, ok := kinds[kind]; !ok {
			t.Errorf("a level for %s, which is no kind", kind)
		}
	}
}
