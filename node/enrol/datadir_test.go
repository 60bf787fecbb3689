package enrol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

var (
	testRoot  = testKey('R', 1)
	testFleet = fleet.IDOf(testRoot.Public())
	testNode  = fleet.NodeIDOf(testKey('A', 1).Public())
	testPeers = []Peer{
		{Node: fleet.NodeIDOf(testKey('A', 2).Public()), Address: "10.0.0.2:7790"},
		{Node: fleet.NodeIDOf(testKey('A', 3).Public()), Address: "[fd00::3]:7790"},
	}
	testStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// rootDER is the root certificate in testdata: certificates have random serial
// numbers, and goldens must not.
func rootDER(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join("testdata", "root-certificate.hex")
	if _, err := os.Stat(path); *update && errors.Is(err, fs.ErrNotExist) {
		der := must[[]byte](t)(identity.NewRootCertificate(testRoot, "acme", testStart))
		if err := os.WriteFile(path, hexLines(der), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := must[[]byte](t)(os.ReadFile(path))
	return must[[]byte](t)(hex.DecodeString(strings.Join(strings.Fields(string(text)), "")))
}

func testTrust(t testing.TB) *identity.Trust {
	t.Helper()
	b := must[[]byte](t)(identity.SignTrust(testRoot, identity.Trust{
		Fleet: testFleet, Epoch: 1, Version: 2, K: 1,
		Voters:  []identity.TrustVoter{{Node: testNode, Key: testKey('Q', 1).Public()}},
		Issuers: []identity.TrustIssuer{{Node: testNode, Key: testKey('I', 1).Public()}},
	}))
	return must[*identity.Trust](t)(identity.ParseTrust(b, testRoot.Public()))
}

// enrolled makes the directory of a host of the test fleet.
func enrolled(t testing.TB) *Dir {
	t.Helper()
	d := must[*Dir](t)(createDir(filepath.Join(t.TempDir(), "data")))
	root := testRoot.Public()
	for _, err := range []error{
		d.SaveTrust(testTrust(t)),
		d.SavePeers(testPeers),
		d.SaveGossipKeys([][]byte{bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)}),
		d.SaveNodeRecord([]byte("record")),
		d.finish(&Fleet{Fleet: testFleet, Name: "acme", Node: testNode, NodeName: "web01", RootCertificate: rootDER(t), RootKey: root[:]}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestDirRoundTrip(t *testing.T) {
	made := enrolled(t)
	d, f, err := OpenDir(made.Path())
	if err != nil {
		t.Fatal(err)
	}
	if f.Fleet != testFleet || f.Name != "acme" || f.Node != testNode || f.NodeName != "web01" || f.Root() != testRoot.Public() ||
		!bytes.Equal(f.RootCertificate, rootDER(t)) {
		t.Errorf("fleet.json: %+v", f)
	}
	if tr, err := d.Trust(f.Root()); err != nil || !bytes.Equal(tr.Raw(), testTrust(t).Raw()) {
		t.Errorf("trust.json: %+v, %v", tr, err)
	}
	if _, err := d.Trust(testKey('R', 2).Public()); fleet.KindOf(err) != fleet.Unauthenticated {
		t.Errorf("trust.json under another root key: %v", err)
	}
	if peers, err := d.Peers(); err != nil || !slices.Equal(peers, testPeers) {
		t.Errorf("peers: %v, %v", peers, err)
	}
	if keys, err := d.GossipKeys(); err != nil || len(keys) != 2 || keys[0][0] != 7 || keys[1][31] != 8 {
		t.Errorf("gossip keys: %x, %v", keys, err)
	}
	if b, err := os.ReadFile(d.File("keys/node.record")); err != nil || string(b) != "record" {
		t.Errorf("node record: %q, %v", b, err)
	}
}

func TestGoldenFiles(t *testing.T) {
	d := enrolled(t)
	if err := d.SaveGone(Gone{How: GoneRemoved, Message: "node web1 was removed", At: 1772366400}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"FORMAT", "fleet.json", "peers.json", "gossip.keys", "trust.json", GoneFile} {
		golden(t, name, must[[]byte](t)(os.ReadFile(d.File(name))))
	}
	if entries := must[[]os.DirEntry](t)(os.ReadDir(d.Path())); slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return strings.HasPrefix(e.Name(), ".new-")
	}) {
		t.Error("a temporary file is left")
	}
}

func TestFileModes(t *testing.T) {
	d := enrolled(t)
	if _, err := d.LoadOrCreateKey(Agent); err != nil {
		t.Fatal(err)
	}
	if err := d.SaveChain(Agent, []byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	for _, name := range files(t, d.Path()) {
		want := fs.FileMode(0o600)
		switch name {
		case "trust.json": // public, and signed
			want = 0o644
		case "keys", "blob":
			want = fs.ModeDir | 0o700
		}
		if info, err := os.Stat(d.File(name)); err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	// Replacing a file that somebody opened up closes it again.
	if err := os.Chmod(d.File("peers.json"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := d.SavePeers(nil); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(d.File("peers.json")); err != nil || info.Mode() != 0o600 {
		t.Errorf("peers.json: mode %v, %v", info.Mode(), err)
	}
}

func TestOpenDirRefuses(t *testing.T) {
	other := testKey('R', 2).Public()
	fleetJSON := func(t *testing.T, d *Dir, change func(*Fleet)) {
		t.Helper()
		root := testRoot.Public()
		f := &Fleet{Version: 1, Fleet: testFleet, Name: "acme", Node: testNode, RootCertificate: rootDER(t), RootKey: root[:]}
		change(f)
		if err := d.writeJSON("fleet.json", f, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, content string) func(*testing.T, *Dir) {
		return func(t *testing.T, d *Dir) {
			t.Helper()
			if err := os.WriteFile(d.File(name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(change func(*Fleet)) func(*testing.T, *Dir) {
		return func(t *testing.T, d *Dir) { t.Helper(); fleetJSON(t, d, change) }
	}
	for _, tc := range []struct {
		name   string
		damage func(*testing.T, *Dir)
		kind   fleet.Kind
		part   string
	}{
		{"no FORMAT", func(t *testing.T, d *Dir) { os.Remove(d.File("FORMAT")) }, fleet.NotFound, "not enrolled"},
		{"a later format", write("FORMAT", "2\n"), fleet.Corrupt, `has format "2"; this program reads format 1`},
		{"an empty FORMAT", write("FORMAT", ""), fleet.Corrupt, `has format ""`},
		{"a FORMAT that begins right", write("FORMAT", "1.5"), fleet.Corrupt, `has format "1.5"`},
		{"no fleet.json", func(t *testing.T, d *Dir) { os.Remove(d.File("fleet.json")) }, fleet.Other, "fleet.json"},
		{"an empty fleet.json", write("fleet.json", ""), fleet.Corrupt, "fleet.json is damaged"},
		{"fleet.json cut off", write("fleet.json", `{"version": 1, "fleet": "`), fleet.Corrupt, "fleet.json is damaged"},
		{"fleet.json with more", write("fleet.json", `{"version": 1, "surprise": 2}`), fleet.Corrupt, "surprise"},
		{"a later fleet.json", edit(func(f *Fleet) { f.Version = 2 }), fleet.Corrupt, "has version 2"},
		{"another root key", edit(func(f *Fleet) { f.RootKey = other[:] }), fleet.Corrupt, "does not belong to fleet"},
		{"half a root key", edit(func(f *Fleet) { f.RootKey = f.RootKey[:16] }), fleet.Corrupt, "does not belong to fleet"},
		{"no root key", edit(func(f *Fleet) { f.RootKey = nil }), fleet.Corrupt, "does not belong to fleet"},
		{"another fleet ID", edit(func(f *Fleet) { f.Fleet = fleet.IDOf(other) }), fleet.Corrupt, "does not belong to fleet"},
		{"another fleet's ID and key", edit(func(f *Fleet) { f.Fleet, f.RootKey = fleet.IDOf(other), other[:] }), fleet.Corrupt, "does not belong"},
		{"no certificate", edit(func(f *Fleet) { f.RootCertificate = nil }), fleet.Corrupt, "does not belong to fleet"},
		{"no node", edit(func(f *Fleet) { f.Node = "" }), fleet.Corrupt, "node ID"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := enrolled(t)
			tc.damage(t, d)
			_, _, err := OpenDir(d.Path())
			wantError(t, err, tc.kind, tc.part)
			if _, err := createDir(d.Path()); (err == nil) != (tc.kind == fleet.NotFound) {
				t.Errorf("createDir over it: %v", err)
			}
		})
	}
}

func TestDirRefusesDamagedFiles(t *testing.T) {
	for _, tc := range []struct {
		name, file, content string
		part                string
	}{
		{"peers", "peers.json", `{"version": 1, "peers": 5}`, "peers.json is damaged"},
		{"peers of a later version", "peers.json", `{"version": 2, "peers": []}`, "version 2"},
		{"gossip key too short", "gossip.keys", "abcd\n", "not 64 hex digits"},
		{"gossip key not hex", "gossip.keys", strings.Repeat("z", 64), "not 64 hex digits"},
		{"no gossip key", "gossip.keys", "\n", "holds no key"},
		{"chain of one", "keys/agent.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate chain"},
		{"no chain", "keys/agent.crt", "nothing", "certificate chain"},
		{"trust", "trust.json", "{}", "trust.json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := enrolled(t)
			if _, err := d.LoadOrCreateKey(Agent); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(d.File(tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, perr := d.Peers()
			_, gerr := d.GossipKeys()
			_, ierr := d.LoadIdentity(Agent)
			_, terr := d.Trust(testRoot.Public())
			err := map[string]error{"peers.json": perr, "gossip.keys": gerr, "keys/agent.crt": ierr, "trust.json": terr}[tc.file]
			if err == nil || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("got %v; want an error with %q", err, tc.part)
			}
		})
	}
	d := enrolled(t)
	os.Remove(d.File("peers.json"))
	if peers, err := d.Peers(); err != nil || peers != nil {
		t.Errorf("without peers.json: %v, %v; want none", peers, err)
	}
	if _, err := d.LoadIdentity(Quorum); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an identity that the host has not: %v; want fs.ErrNotExist", err)
	}
}

func TestKeys(t *testing.T) {
	d := enrolled(t)
	first := must[identity.PrivateKey](t)(d.LoadOrCreateKey(Quorum))
	again := must[identity.PrivateKey](t)(d.LoadOrCreateKey(Quorum))
	if first.Public() != again.Public() {
		t.Error("the second call made another key")
	}
	if err := d.SaveChain(Quorum, []byte("leaf"), []byte("root")); err != nil {
		t.Fatal(err)
	}
	id := must[*Identity](t)(d.LoadIdentity(Quorum))
	if id.Key.Public() != first.Public() || len(id.Chain) != 2 || string(id.Chain[0]) != "leaf" || string(id.Chain[1]) != "root" {
		t.Errorf("identity %v", id)
	}
	// A damaged key is not replaced by a new one: the host would become another.
	if err := os.WriteFile(d.File("keys/quorum.key"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.LoadOrCreateKey(Quorum); err == nil {
		t.Error("a damaged key was replaced")
	}
}
