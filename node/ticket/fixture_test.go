package ticket

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got, as hex, with testdata/name, or writes it there with
// -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		var out strings.Builder
		for rest := got; len(rest) > 0; {
			n := min(32, len(rest))
			out.WriteString(hex.EncodeToString(rest[:n]) + "\n")
			rest = rest[n:]
		}
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := readGolden(t, name); !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %x\nwant %x", name, got, want)
	}
}

func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testKey(n byte) identity.PrivateKey { return identity.KeyFromSeed([32]byte{n, 1}) }

// testNodes are n node IDs in no order.
func testNodes(n int) []fleet.NodeID {
	nodes := make([]fleet.NodeID, n)
	for i := range nodes {
		sum := fleet.Sum([]byte{byte(i), byte(i >> 8)})
		nodes[i] = fleet.NodeIDOf(fleet.PublicKey(sum))
	}
	return nodes
}

var testFleet = fleet.IDOf(testKey(1).Public())

// testTrust has as many voters as keys, with key numbers from 10.
func testTrust(voters int) *identity.Trust {
	t := &identity.Trust{Fleet: testFleet, Epoch: 3, Version: 5, K: identity.ThresholdFor(voters)}
	for n := range voters {
		t.Voters = append(t.Voters, identity.TrustVoter{Node: testNodes(5)[n], Key: testKey(byte(10 + n)).Public()})
	}
	return t
}

var testStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano()

func testCommand() *fleet.Command {
	const second = int64(time.Second)
	return &fleet.Command{
		ID: "01234567-89ab-cdef-0123-456789abcdef", Attempt: 1,
		Document: fleet.Sum([]byte("document")), ParametersDigest: fleet.Sum([]byte("parameters")), RunAs: "www-data",
		Targets: testNodes(5), Created: testStart, NotAfter: testStart + 60*second, Expires: testStart + 3600*second,
		Mint:           fleet.Mint{N: 2, NotBefore: testStart + second},
		MaxConcurrency: fleet.Unlimited, MaxErrors: fleet.Unlimited,
	}
}

func testResult() Result {
	return Result{
		Fleet: testFleet, Command: testCommand().ID, Attempt: 1, Index: 3, Node: fleet.NodeIDOf(testKey(40).Public()),
		State: fleet.Failed, Code: 7, Started: testStart, Ended: testStart + 5, Detail: fleet.Sum([]byte("detail")),
		DetailSize: 6, Reason: "step runScript exited with 7",
	}
}

func wantKind(t *testing.T, err error, kind fleet.Kind, part string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted; want %s", kind)
	}
	if fleet.KindOf(err) != kind {
		t.Errorf("kind of %q = %s, want %s", err, fleet.KindOf(err), kind)
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("error %q does not contain %q", err, part)
	}
}
