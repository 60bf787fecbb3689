package cli

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestParseContext(t *testing.T) {
	b, err := encodeContext("acme")
	if err != nil {
		t.Fatal(err)
	}
	if want := "{\"version\":1,\"current\":\"acme\"}\n"; string(b) != want {
		t.Errorf("version 1: got %q, want %q", b, want)
	}
	if got, err := parseContext(b); err != nil || got != "acme" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, text := range map[string]string{
		"another version": `{"version":2,"current":"acme"}`, "no version": `{"current":"acme"}`, "no name": `{"version":1}`,
		"a path": `{"version":1,"current":"../x"}`, "a hidden file": `{"version":1,"current":".x"}`,
		"an unknown member": `{"version":1,"current":"acme","x":1}`, "more after it": `{"version":1,"current":"acme"}{}`,
		"nothing": "", "too long": `{"version":1,"current":"` + strings.Repeat("a", maxContextFile) + `"}`,
	} {
		if got, err := parseContext([]byte(text)); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func FuzzParseContext(f *testing.F) {
	f.Add([]byte(`{"version":1,"current":"acme"}`))
	f.Add([]byte(`{"version":1,"current":"../x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if name, err := parseContext(b); err == nil && checkContext(name) != nil {
			t.Errorf("accepted %q", name)
		}
	})
}

// What is beside the credentials is none.
func TestContextsAreCredentialsOnly(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, ".config", "fleet")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"acme", "acme~", contextFile, pendingPrefix + "x", "a b", "x\x1b[2J"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.contexts(); err != nil || strings.Join(got, " ") != "acme" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestUnreadableCredential: what another user may not read is said so.
func TestUnreadableCredential(t *testing.T) {
	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		t.Skip("every file may be read")
	}
	file := filepath.Join(t.TempDir(), "credential")
	if err := os.WriteFile(file, nil, 0); err != nil {
		t.Fatal(err)
	}
	newWorld(t).check(t, 4, `^$`, `may not be read by this user\nhint: +use a credential of your own`, "whoami", "--credential", file)
}
