package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/service"
)

// unpack reads a bundle.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(b)
	}
}

// mustNotHold looks for secrets in every file of a bundle.
func mustNotHold(t *testing.T, files map[string]string, secrets map[string]string) {
	t.Helper()
	for what, secret := range secrets {
		if len(secret) < 8 {
			t.Fatalf("%s: the canary %q proves nothing", what, secret)
		}
		for name, content := range files {
			if strings.Contains(content, secret) {
				t.Errorf("%s is in %s", what, name)
			}
		}
	}
}

// Every place that holds a secret gets a canary, and the log, which everybody
// writes to, gets all of them.
func TestBundleHoldsNoSecret(t *testing.T) {
	w, f, dir := enrolled(t)
	data := filepath.Join(dir, "d")
	canaries := map[string]string{}
	plant := func(path, name, format string) {
		t.Helper()
		canary := "CANARY" + name + "0123456789abcdefXYZ"
		canaries[path] = canary
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(format, "CANARY", canary)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const pem = "-----BEGIN PRIVATE KEY-----\nCANARY\n-----END PRIVATE KEY-----\n"
	for _, name := range []string{"agent", "quorum", "issuer"} {
		plant(filepath.Join(data, "keys", name+".key"), name, pem)
	}
	plant(filepath.Join(data, "gossip.keys"), "gossip", "CANARY\n")
	plant(filepath.Join(data, "journal"), "journal", "fleet journal v1\nCANARY\n")
	plant(filepath.Join(data, "blob", strings.Repeat("ab", 32)), "output", "CANARY")
	plant(filepath.Join(data, "work", "x", "script"), "script", "CANARY")
	plant(filepath.Join(data, "quorum", "raft.db"), "raft", strings.Repeat("\x00", bundleHeader)+"CANARY")
	plant(filepath.Join(w.home, ".config", "fleet", "acme"), "credential", `{"version":1,"fleet":"f","key":"CANARY"}`)
	// A key that lies in a file of certificates by mistake.
	crt := filepath.Join(data, "keys", "agent.crt")
	b, err := os.ReadFile(crt)
	if err != nil {
		t.Fatal(err)
	}
	canaries[crt] = "CANARYcrt0123456789abcdef"
	if err := os.WriteFile(crt, append(b, []byte(strings.ReplaceAll(pem, "CANARY", canaries[crt]))...), 0o600); err != nil {
		t.Fatal(err)
	}
	canaries["join token"] = "fleet1_CANARYtoken0123456789"
	canaries["passphrase"] = "CANARYpassphrase"
	f.log = []string{"started", "join with " + canaries["join token"], `err="bad passphrase=` + canaries["passphrase"] + ` given"`}
	// What no file of this host says cannot be known; such words never get there.
	for what, canary := range canaries {
		switch filepath.Base(what) {
		case "journal", "script", "raft.db", "agent.crt", strings.Repeat("ab", 32):
		default:
			if what != "passphrase" {
				f.log = append(f.log, "a slip: "+canary)
			}
		}
	}
	out := filepath.Join(dir, "b.tar.gz")
	if code := w.run(t, "debug", "bundle", "-o", out); code != 0 || !strings.Contains(w.stdout.String(), out) {
		t.Fatalf("exit %d: %s%s", code, w.stdout.String(), w.stderr.String())
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	files := unpack(t, out)
	mustNotHold(t, files, canaries)
	for name, want := range map[string]string{
		"fleet/version.json": "1.2.3", "fleet/config.json": `"Key": "data-dir"`, "fleet/trust.json": `"`, "fleet/certificates/agent.txt": "names ",
		"fleet/data.txt": "keys/agent.key", "fleet/headers.txt": "journal", "fleet/log.txt": "started\n", "fleet/service.json": "active (running)",
		"fleet/missing.txt": "status.json", "fleet/system/proc-version": "Linux",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has no %q:\n%.600s", name, want, files[name])
		}
	}
	if !strings.Contains(files["fleet/log.txt"], redacted) {
		t.Error("nothing was redacted: the canaries did not get there")
	}
	if !strings.Contains(w.stderr.String(), "not in it: status.json: no agent runs") {
		t.Errorf("it does not say what is missing: %s", w.stderr.String())
	}
}

// A bundle of a host that runs and has just run a command with a secret in it.
func TestBundleOfARunningHost(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a host")
	}
	f := &fakeService{}
	w, dir := withService(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer cancel()
	a := newWorld(t)
	f.start = func() {
		f.mu.Lock()
		f.status = service.Status{Installed: true, Running: true, Config: f.spec.Config}
		f.mu.Unlock()
		a.now = time.Now
		agents.Go(func() {
			if code := a.main(ctx, []string{"fleet", "agent", "--config", f.spec.Config, "--log-level", "debug"}); code != 0 {
				t.Errorf("agent: exit %d: %s", code, a.stderr.String())
			}
		})
	}
	data := filepath.Join(dir, "d")
	if code := w.run(t, "init", "--name", "acme", "--root-key", filepath.Join(dir, "k"), "--node-name", "host1", "--data-dir", data, "--listen", freePort(t)); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	if code := w.run(t, "run", "--all", "--", "echo CANARYparameter0123"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	out := filepath.Join(dir, "b.tar.gz")
	if code := w.run(t, "debug", "bundle", "-o", out); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	files := unpack(t, out)
	secrets := map[string]string{"parameter and output": "CANARYparameter"}
	lines := func(path string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range regexp.MustCompile(`[A-Za-z0-9+/=]{24,}`).FindAllString(string(b), -1) {
			secrets[path+" "+word[:4]] = word
		}
	}
	for _, name := range []string{"keys/agent.key", "keys/quorum.key", "keys/issuer.key", "gossip.keys"} {
		lines(filepath.Join(data, name))
	}
	b, err := os.ReadFile(filepath.Join(w.home, ".config", "fleet", "acme"))
	if err != nil {
		t.Fatal(err)
	}
	var cred struct{ Key string }
	if err := json.Unmarshal(b, &cred); err != nil {
		t.Fatal(err)
	}
	secrets["credential"] = cred.Key
	mustNotHold(t, files, secrets)
	for name, want := range map[string]string{
		"fleet/status.json": `"Name": "host1"`, "fleet/nodes.json": "host1", "fleet/runtime.json": `"Goroutines"`, "fleet/goroutines.txt": "goroutine ",
		"fleet/process/limits": "Max open files",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has no %q:\n%.600s", name, want, files[name])
		}
	}
	if files["fleet/missing.txt"] != "" {
		t.Errorf("missing: %s", files["fleet/missing.txt"])
	}
	// The same words would be found if they were there.
	if !strings.Contains(files["fleet/goroutines.txt"], "runAgent") {
		t.Error("the goroutines are not those of the agent")
	}
}
