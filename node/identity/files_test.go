package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"fleet/node/fleet"
)

func TestSaveAndLoadKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.key")
	key := testKey(9)
	if err := SaveKey(path, key); err != nil {
		t.Fatal(err)
	}
	got, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Public() != key.Public() {
		t.Error("another key came back")
	}
	wantMode(t, path)
	wantKind(t, SaveKey(path, testKey(10)), fleet.Conflict, "exists already")
	if got, err := LoadKey(path); err != nil || got.Public() != key.Public() {
		t.Errorf("a refused save changed the file: %v", err)
	}
	if err := SaveKey(filepath.Join(dir, "none.key"), PrivateKey{}); err == nil {
		t.Error("saved the zero key")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("files left behind: %v", entries)
	}
	if _, err := LoadKey(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// wantMode checks that only the owner may read the file.
func wantMode(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %#o, want 0600", info.Mode().Perm())
	}
}

// needsModes skips a test of a mode that Windows has not; node/private tests
// what it has instead.
func needsModes(t *testing.T, mode os.FileMode) {
	t.Helper()
	if runtime.GOOS == "windows" && mode != 0o600 {
		t.Skip("Windows has no mode bits")
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if err := SaveKey(good, testKey(9)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name    string
		content string
		mode    os.FileMode
		kind    fleet.Kind
	}{
		{"readable by the group", string(text), 0o640, fleet.Invalid},
		{"readable by all", string(text), 0o604, fleet.Invalid},
		{"writable by all", string(text), 0o602, fleet.Invalid},
		{"empty", "", 0o600, fleet.Corrupt},
		{"cut off", string(text[:len(text)/2]), 0o600, fleet.Corrupt},
		{"two keys", string(text) + string(text), 0o600, fleet.Corrupt},
		{"other block", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o600, fleet.Corrupt},
		{"not PKCS#8", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, fleet.Corrupt},
		{"too large", string(make([]byte, maxPrivateFile+1)), 0o600, fleet.TooLarge},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			needsModes(t, c.mode)
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := LoadKey(path)
			wantKind(t, err, c.kind, path)
		})
	}
	_, err = LoadKey(dir)
	wantKind(t, err, fleet.Invalid, "regular file")
}

// A file system without hard links takes the other way to a new file, which
// must not overwrite either.
func TestWriteInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := writeInPlace(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	wantMode(t, path)
	if err := writeInPlace(path, []byte("two")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second write: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "one" {
		t.Errorf("content %q", b)
	}
}

// TestSaveError: a path that cannot be written says why, and what to do.
func TestSaveError(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "usb", "acme.key")
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	err = SaveKey(missing, key)
	if fleet.KindOf(err) != fleet.NotFound || !strings.HasSuffix(err.Error(), "there is no directory "+filepath.Dir(missing)) || !strings.Contains(fleet.HintOf(err), "mount") {
		t.Errorf("got %v with %q", err, fleet.HintOf(err))
	}
	err = saveError("key", "/data/agent.key", &fs.PathError{Op: "write", Path: "/data/.agent.key-1", Err: syscall.ENOSPC})
	if err.Error() != "key file /data/agent.key is not written: the disk is full" || !strings.Contains(fleet.HintOf(err), "free some space") {
		t.Errorf("got %v with %q", err, fleet.HintOf(err))
	}
}
