package identity

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func testCredential(w *world) Credential {
	return Credential{
		Fleet: w.fleet, Name: "acme", Operator: "root@host1", Key: w.operator,
		Addresses: []string{"10.0.0.1:7790", "host2:7790"},
	}
}

func TestCredential(t *testing.T) {
	w := newWorld(t, 1)
	path := filepath.Join(t.TempDir(), "acme")
	want := testCredential(w)
	for range 2 { // the second replaces, with other addresses
		if err := SaveCredential(path, want); err != nil {
			t.Fatal(err)
		}
		wantMode(t, path)
		got, err := LoadCredential(path)
		if err != nil {
			t.Fatal(err)
		}
		if got.Key.Public() != want.Key.Public() || got.Fleet != want.Fleet || got.Name != want.Name ||
			got.Operator != want.Operator || !reflect.DeepEqual(got.Addresses, want.Addresses) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		want.Addresses = []string{"host3:7790"}
	}
	other := testCredential(newWorld(t, 101))
	wantKind(t, SaveCredential(path, other), fleet.Conflict, "exists already")
	rotated := testCredential(w)
	rotated.Key = testKey(99)
	wantKind(t, SaveCredential(path, rotated), fleet.Conflict, "exists already")
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("files left behind: %v", entries)
	}
	for name, change := range map[string]func(*Credential){
		"key": func(c *Credential) { c.Key = PrivateKey{} }, "fleet": func(c *Credential) { c.Fleet = "x" },
		"name": func(c *Credential) { c.Name = "A b" }, "operator": func(c *Credential) { c.Operator = "" },
		"addresses": func(c *Credential) { c.Addresses = nil }, "address": func(c *Credential) { c.Addresses = []string{"x"} },
		"many addresses": func(c *Credential) { c.Addresses = make([]string, 33) },
	} {
		c := testCredential(w)
		change(&c)
		if err := SaveCredential(filepath.Join(t.TempDir(), "c"), c); err == nil {
			t.Errorf("saved with a bad %s", name)
		}
	}
}

func TestLoadCredentialRefuses(t *testing.T) {
	w := newWorld(t, 1)
	path := filepath.Join(t.TempDir(), "acme")
	if err := SaveCredential(path, testCredential(w)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	cases := []struct {
		name     string
		old, new string
		mode     os.FileMode
		kind     fleet.Kind
		part     string
	}{
		{"readable by the group", "", "", 0o640, fleet.Invalid, "chmod"},
		{"unknown version", `"version": 1`, `"version": 2`, 0o600, fleet.Invalid, "version 2"},
		{"unknown key", `"version": 1`, `"version": 1, "x": 1`, 0o600, fleet.Corrupt, "unknown key"},
		{"short key", `"key": "`, `"key": "AAAA", "operator2": "`, 0o600, fleet.Corrupt, ""},
		{"bad operator", "root@host1", "a b", 0o600, fleet.Corrupt, "operator name"},
		{"bad address", "host2:7790", "host2", 0o600, fleet.Corrupt, "HOST:PORT"},
		{"cut off", "}", "", 0o600, fleet.Corrupt, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			needsModes(t, c.mode)
			path := filepath.Join(t.TempDir(), "c")
			if err := os.WriteFile(path, []byte(strings.Replace(good, c.old, c.new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadCredential(path)
			if c.part == "chmod" {
				if !strings.Contains(fleet.HintOf(err), "chmod 600 "+path) {
					t.Errorf("hint = %q", fleet.HintOf(err))
				}
				c.part = ""
			}
			wantKind(t, err, c.kind, c.part)
		})
	}
}
