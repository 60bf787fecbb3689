package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fleet/node/identity"
)

// On a host that is not of the quorum, with a credential whose addresses do not
// answer from there, every command goes through that host's agent by itself.
func TestOrdinaryHost(t *testing.T) {
	w, f := startFleet(t, 4, 3)
	cred := f.Credential()
	cred.Addresses = []string{"127.0.0.1:1"}
	path := filepath.Join(t.TempDir(), "credential")
	if err := identity.SaveCredential(path, cred); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	host := newWorld(t)
	host.now = time.Now
	socket := strings.Replace(w.vars["FLEET_SOCKET"], "node01", "node04", 1)
	host.vars = map[string]string{"FLEET_CREDENTIAL": path, "FLEET_SOCKET": socket}
	for args, want := range map[string]string{
		"run --all -- echo hello": "hello", "node ls": "node04", "quorum ls": "leader", "status": "3 of 3 voters answer",
		"activation create --expires 1h --limit 1": "fleet1_",
	} {
		if err := os.WriteFile(path, before, 0o600); err != nil { // the addresses that were learnt are forgotten
			t.Fatal(err)
		}
		code := host.run(t, words(args)...)
		// An election in between is none of this test's business.
		for deadline := time.Now().Add(time.Minute); code == ExitNoQuorum && time.Now().Before(deadline); {
			code = host.run(t, words(args)...)
		}
		if code != ExitDone || !strings.Contains(host.stdout.String(), want) {
			t.Errorf("%s: exit %d: %s%s", args, code, host.stdout.String(), host.stderr.String())
		}
	}
	// What the quorum says of its addresses is kept for the next time.
	if kept, err := identity.LoadCredential(path); err != nil || len(kept.Addresses) != 4 {
		t.Errorf("addresses kept: %v, %v; want the voters' three and the old one", kept.Addresses, err)
	}

	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	host.vars["FLEET_SOCKET"] = filepath.Join(t.TempDir(), "none")
	if code := host.run(t, "run", "--all", "--", "true"); code != ExitNoQuorum || strings.Contains(host.stderr.String(), "agent") {
		t.Errorf("without an agent: exit %d: %s", code, host.stderr.String())
	}
	host.vars["FLEET_SOCKET"] = socket
	for _, n := range f.Nodes()[:3] {
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if code := host.run(t, "node", "ls", "--timeout", "5s"); code != ExitNoQuorum ||
		!strings.Contains(host.stderr.String(), "through this host's agent: this host reaches no quorum host") {
		t.Errorf("with the quorum gone: exit %d: %s", code, host.stderr.String())
	}
}
