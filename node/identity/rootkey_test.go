package identity

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func TestRootKeyFile(t *testing.T) {
	w := newWorld(t, 1)
	phrase := []byte("correct horse battery staple")
	for name, passphrase := range map[string][]byte{"in the clear": nil, "sealed": phrase} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "acme.key")
			if err := CreateRootKeyFile(path, "acme", w.root, w.rootDER, passphrase, w.now); err != nil {
				t.Fatal(err)
			}
			wantMode(t, path)
			wantKind(t, CreateRootKeyFile(path, "acme", w.root, w.rootDER, nil, w.now), fleet.Conflict, "exists already")
			asked := 0
			f, key, err := OpenRootKeyFile(path, func() ([]byte, error) { asked++; return phrase, nil })
			if err != nil {
				t.Fatal(err)
			}
			if key.Public() != w.root.Public() || f.Fleet != w.fleet || f.Name != "acme" || f.LastTrust != 0 ||
				!bytes.Equal(f.Certificate, w.rootDER) || !f.Created.Equal(w.now) || f.Sealed != (passphrase != nil) {
				t.Errorf("got %+v", f)
			}
			if want := len(passphrase) != 0; (asked == 1) != want {
				t.Errorf("asked %d times for the passphrase", asked)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if f.Sealed && bytes.Contains(content, []byte(`"key"`)) {
				t.Error("a sealed file holds the key in the clear")
			}
			if !f.Sealed {
				return
			}
			_, _, err = OpenRootKeyFile(path, nil)
			wantKind(t, err, fleet.Denied, "sealed with a passphrase")
			_, _, err = OpenRootKeyFile(path, func() ([]byte, error) { return []byte("wrong"), nil })
			wantKind(t, err, fleet.Denied, "passphrase is wrong")
			stop := errors.New("terminal closed")
			if _, _, err = OpenRootKeyFile(path, func() ([]byte, error) { return nil, stop }); !errors.Is(err, stop) {
				t.Errorf("the prompt's error is lost: %v", err)
			}
			// A sealed key may lie where everybody can read it.
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadRootKeyFile(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRootKeyFileSignsOneOfAVersion is what keeps two trust.json of one version
// from being signed, and a stolen leader from having one signed after an old one.
func TestRootKeyFileSignsOneOfAVersion(t *testing.T) {
	w := newWorld(t, 1)
	path := filepath.Join(t.TempDir(), "acme.key")
	if err := CreateRootKeyFile(path, "acme", w.root, w.rootDER, nil, w.now); err != nil {
		t.Fatal(err)
	}
	open := func() *RootKeyFile {
		t.Helper()
		f, err := ReadRootKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	one := bigTrust(w)
	one.Version = 4
	other := one
	other.Issuers = one.Issuers[:1]
	sign := func(f *RootKeyFile, tr Trust, want uint32) []byte {
		t.Helper()
		b, err := f.SignTrust(w.root, tr)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := ParseTrust(b, w.root.Public())
		if err != nil || signed.Version != want || f.LastTrust != want || open().LastTrust != want {
			t.Fatalf("signed %+v, %v, the file says %d; want version %d", signed, err, open().LastTrust, want)
		}
		return b
	}
	first := sign(open(), one, 5)
	if again := sign(open(), one, 5); !bytes.Equal(first, again) {
		t.Error("the same content again is another file")
	}
	sign(open(), other, 6) // version 5 is taken, whether or not the fleet has it
	sign(open(), one, 7)
	one.Version = 7 // the fleet has taken it
	sign(open(), one, 8)

	// From here on the fleet has shown version 7.
	one.Version = 6
	_, err := open().SignTrust(w.root, one)
	wantKind(t, err, fleet.Conflict, "the fleet shows version 6 of trust.json; it has shown version 7")
	wantKind(t, open().CheckShown(6), fleet.Conflict, "it has shown version 7")
	if err := open().NoteTrust(9); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(open().NoteTrust(8), open().CheckShown(9)); err != nil {
		t.Error(err)
	}
	wantKind(t, open().CheckShown(8), fleet.Conflict, "it has shown version 9")

	// Two who opened it at the same time.
	one.Version = 9
	a, b := open(), open()
	sign(a, one, 10)
	sign(b, other2(one), 11)
	wantKind(t, a.record(10, 9, []byte("x")), fleet.Conflict, "signed another trust.json of version 11")
	wantKind(t, a.record(11, 9, []byte("x")), fleet.Conflict, "signed another trust.json of version 11")
	wantMode(t, path)
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("files left behind: %v", entries)
	}
	if _, key, err := OpenRootKeyFile(path, nil); err != nil || key.Public() != w.root.Public() {
		t.Errorf("after signing: %v", err)
	}
}

func other2(t Trust) Trust {
	t.Epoch++
	return t
}

func TestRootKeyFileRefuses(t *testing.T) {
	w, other := newWorld(t, 1), newWorld(t, 101)
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	err := CreateRootKeyFile(none, "acme", w.root, other.rootDER, nil, w.now)
	wantKind(t, err, fleet.Unauthenticated, "belongs to fleet")
	wantKind(t, CreateRootKeyFile(none, "A b", w.root, w.rootDER, nil, w.now), fleet.Invalid, "fleet name")
	if err := CreateRootKeyFile(none, "acme", PrivateKey{}, w.rootDER, nil, w.now); err == nil {
		t.Error("saved the zero key")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("files left behind: %v", entries)
	}
	path := filepath.Join(dir, "good")
	if err := CreateRootKeyFile(path, "acme", w.root, w.rootDER, nil, w.now); err != nil {
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
		kind     fleet.Kind
		part     string
	}{
		{"unknown version", `"version": 1`, `"version": 2`, fleet.Invalid, "version 2"},
		{"unknown key", `"version": 1`, `"version": 1, "x": 1`, fleet.Corrupt, "unknown key"},
		{"other fleet", string(w.fleet), string(other.fleet), fleet.Corrupt, "belongs to fleet"},
		{"no key", `"key"`, `"sealed"`, fleet.Corrupt, ""},
		{"neither", `"key": "`, `"sealed": "", "key": "`, fleet.Corrupt, ""},
		{"bad name", `"acme"`, `"A b"`, fleet.Corrupt, "fleet name"},
		{"bad date", `2026-03-01`, `2026-99-01`, fleet.Corrupt, "parsing time"},
		{"cut off", "}", "", fleet.Corrupt, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			text := strings.Replace(good, c.old, c.new, 1)
			if c.name == "neither" {
				text = good[:strings.Index(good, `"key"`)] + `"key": ""}`
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := OpenRootKeyFile(path, func() ([]byte, error) { return []byte("x"), nil })
			wantKind(t, err, c.kind, c.part)
		})
	}
	needsModes(t, 0o640)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = ReadRootKeyFile(path)
	wantKind(t, err, fleet.Invalid, "lets others read it")
}
