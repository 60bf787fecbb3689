package enrol

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

func TestInit(t *testing.T) {
	o := initOptions(t.TempDir())
	r := must[*InitResult](t)(Init(t.Context(), o))
	d, f, err := OpenDir(o.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if f.Fleet != r.Fleet || f.Name != "acme" || f.Node != r.Node || f.NodeName != "host1" || f.Root() != r.Root || fleet.IDOf(r.Root) != r.Fleet {
		t.Errorf("fleet.json %+v, result %+v", f, r)
	}
	trust := must[*identity.Trust](t)(d.Trust(r.Root))
	if trust.Version != 1 || trust.K != 1 || len(trust.Voters) != 1 || trust.Voters[0].Node != r.Node {
		t.Errorf("trust %+v", trust)
	}
	if peers, err := d.Peers(); err != nil || !slices.Equal(peers, []Peer{{Node: r.Node, Address: o.Advertise}}) {
		t.Errorf("peers %v, %v", peers, err)
	}
	for name, role := range map[string]fleet.Role{Agent: fleet.RoleAgent, Quorum: fleet.RoleQuorum} {
		id := must[*Identity](t)(d.LoadIdentity(name))
		var chain []*x509.Certificate
		for _, der := range id.Chain {
			chain = append(chain, must[*x509.Certificate](t)(x509.ParseCertificate(der)))
		}
		peer, err := identity.VerifyChain(chain, r.Fleet, time.Now())
		if err != nil || peer.Role != role || peer.Node != r.Node || peer.Key != id.Key.Public() {
			t.Errorf("%s: %+v, %v", name, peer, err)
		}
	}
	issuer := must[*Identity](t)(d.LoadIdentity(Issuer))
	if !trust.Issuer(issuer.Key.Public(), time.Now()) || !trust.IsVoter(r.Node, must[*Identity](t)(d.LoadIdentity(Quorum)).Key.Public()) {
		t.Error("trust.json does not name the host's own keys")
	}
	genesis, gtrust, err := identity.ParseGenesis(must[[]byte](t)(os.ReadFile(d.File(GenesisFile))), r.Fleet)
	if err != nil || gtrust.Version != 1 || genesis.Node.ID != r.Node || genesis.Operator.Name != "ada" || genesis.FleetName != "acme" {
		t.Errorf("genesis %+v, %v", genesis, err)
	}
	if keys, err := d.GossipKeys(); err != nil || string(keys[0]) != string(genesis.GossipKey) {
		t.Errorf("gossip keys %x, %v", keys, err)
	}
	root, key, err := identity.OpenRootKeyFile(o.RootKeyPath, nil)
	if err != nil || key.Public() != r.Root || root.Fleet != r.Fleet || root.Name != "acme" {
		t.Errorf("root-key file %+v, %v", root, err)
	}
	cred := must[identity.Credential](t)(identity.LoadCredential(o.CredentialPath))
	if cred.Fleet != r.Fleet || cred.Operator != "ada" || cred.Key.Public() != genesis.Operator.Keys[0] || !slices.Equal(cred.Addresses, []string{o.Advertise}) {
		t.Errorf("credential of %s in %s", cred.Operator, cred.Fleet)
	}
	for _, path := range []string{o.RootKeyPath, o.CredentialPath} {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", path, info.Mode(), err)
		}
	}
	for _, name := range files(t, d.Path()) {
		if info, err := os.Stat(d.File(name)); err != nil || name != "trust.json" && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v; others may read it", name, info.Mode(), err)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	inside := "would lie in the data directory"
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, base string, o *InitOptions)
		kind   fleet.Kind
		part   string
	}{
		{"fleet name", func(_ *testing.T, _ string, o *InitOptions) { o.Name = "Acme!" }, fleet.Invalid, "fleet name"},
		{"no node name", func(_ *testing.T, _ string, o *InitOptions) { o.NodeName = "" }, fleet.Invalid, "node name"},
		{"operator", func(_ *testing.T, _ string, o *InitOptions) { o.Operator = "a b" }, fleet.Invalid, "operator name"},
		{"no address", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "" }, fleet.Invalid, "not IP:PORT"},
		{"a host name", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "host1:7790" }, fleet.Invalid, "not IP:PORT"},
		{"port 0", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "10.0.0.1:0" }, fleet.Invalid, "not IP:PORT"},
		{"any address", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "0.0.0.0:7790" }, fleet.Invalid, "not IP:PORT"},
		{"any IPv6 address", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "[::]:7790" }, fleet.Invalid, "not IP:PORT"},
		{"a zone", func(_ *testing.T, _ string, o *InitOptions) { o.Advertise = "[fe80::1%eth0]:7790" }, fleet.Invalid, "not IP:PORT"},
		{"no root key path", func(_ *testing.T, _ string, o *InitOptions) { o.RootKeyPath = "" }, fleet.Invalid, "where should the root key go"},
		{"no credential path", func(_ *testing.T, _ string, o *InitOptions) { o.CredentialPath = "" }, fleet.Invalid, "where should"},
		{"root key in the data directory", func(_ *testing.T, _ string, o *InitOptions) {
			o.RootKeyPath = filepath.Join(o.DataDir, "root.key")
		}, fleet.Invalid, inside},
		{"root key deeper", func(_ *testing.T, _ string, o *InitOptions) {
			o.RootKeyPath = filepath.Join(o.DataDir, "a", "..", "keys", "root.key")
		}, fleet.Invalid, inside},
		{"root key is the data directory", func(_ *testing.T, _ string, o *InitOptions) { o.RootKeyPath = o.DataDir }, fleet.Invalid, inside},
		{"root key through a link to the data directory", func(t *testing.T, base string, o *InitOptions) {
			mkdir(t, o.DataDir)
			link(t, o.DataDir, filepath.Join(base, "usb"))
			o.RootKeyPath = filepath.Join(base, "usb", "root.key")
		}, fleet.Invalid, inside},
		{"root key through a link to a directory not made yet", func(t *testing.T, base string, o *InitOptions) {
			link(t, o.DataDir, filepath.Join(base, "usb"))
			o.RootKeyPath = filepath.Join(base, "usb", "root.key")
		}, fleet.Invalid, inside},
		{"root key through a relative link to it", func(t *testing.T, base string, o *InitOptions) {
			link(t, "data", filepath.Join(base, "usb2"))
			link(t, "usb2/keys", filepath.Join(base, "usb"))
			o.RootKeyPath = filepath.Join(base, "usb", "root.key")
		}, fleet.Invalid, inside},
		{"data directory is a link to where the root key goes", func(t *testing.T, base string, o *InitOptions) {
			mkdir(t, filepath.Join(base, "usb"))
			link(t, filepath.Join(base, "usb"), o.DataDir)
			o.RootKeyPath = filepath.Join(base, "usb", "root.key")
		}, fleet.Invalid, inside},
		{"root key is a link into the data directory", func(t *testing.T, base string, o *InitOptions) {
			link(t, filepath.Join(o.DataDir, "root.key"), o.RootKeyPath)
		}, fleet.Invalid, inside},
		{"links in a circle", func(t *testing.T, base string, o *InitOptions) {
			link(t, filepath.Join(base, "b"), filepath.Join(base, "a"))
			link(t, filepath.Join(base, "a"), filepath.Join(base, "b"))
			o.RootKeyPath = filepath.Join(base, "a", "root.key")
		}, fleet.Other, "too many"},
		{"root key file exists", func(t *testing.T, _ string, o *InitOptions) { write(t, o.RootKeyPath) }, fleet.Conflict, "the root key file"},
		{"credential exists", func(t *testing.T, _ string, o *InitOptions) {
			mkdir(t, filepath.Dir(o.CredentialPath))
			write(t, o.CredentialPath)
		}, fleet.Conflict, "the credential"},
		{"root key and credential in one file", func(_ *testing.T, _ string, o *InitOptions) { o.CredentialPath = o.RootKeyPath }, fleet.Conflict, "root.key"},
		{"no directory for the root key", func(_ *testing.T, base string, o *InitOptions) {
			o.RootKeyPath = filepath.Join(base, "missing", "root.key")
		}, fleet.NotFound, "missing"},
		{"no directory for the credential", func(t *testing.T, base string, o *InitOptions) {
			write(t, filepath.Join(base, "file"))
			o.CredentialPath = filepath.Join(base, "file", "ada.json")
		}, fleet.Other, "credential"},
		{"data directory is a file", func(t *testing.T, _ string, o *InitOptions) { write(t, o.DataDir) }, fleet.Other, "data"},
		{"a damaged FORMAT", func(t *testing.T, _ string, o *InitOptions) {
			mkdir(t, o.DataDir)
			write(t, filepath.Join(o.DataDir, "FORMAT"))
		}, fleet.Corrupt, "has format"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			o := initOptions(base)
			tc.change(t, base, &o)
			before := files(t, base)
			r, err := Init(t.Context(), o)
			wantError(t, err, tc.kind, tc.part)
			if r != nil {
				t.Error("a result beside the error")
			}
			if after := files(t, base); !slices.Equal(after, before) {
				t.Errorf("left behind: %v; before: %v", after, before)
			}
		})
	}
}

func TestInitTwice(t *testing.T) {
	o := initOptions(t.TempDir())
	must[*InitResult](t)(Init(t.Context(), o))
	before := files(t, filepath.Dir(o.DataDir))
	// The same command again: what is wrong is the fleet that is there, not the
	// root key file that must not be moved away.
	_, err := Init(t.Context(), o)
	wantError(t, err, fleet.Conflict, "already holds host")
	if hint := fleet.HintOf(err); hint == "" {
		t.Error("no hint")
	}
	o.RootKeyPath += ".2"
	o.CredentialPath += ".2"
	_, err = Init(t.Context(), o)
	wantError(t, err, fleet.Conflict, "already holds host")
	if after := files(t, filepath.Dir(o.DataDir)); !slices.Equal(after, before) {
		t.Errorf("files after: %v; before: %v", after, before)
	}
}

func TestInitCanBeRepeatedAfterAFailure(t *testing.T) {
	base := t.TempDir()
	o := initOptions(base)
	write(t, filepath.Join(base, "cred")) // in the credential's way, which comes last
	if _, err := Init(t.Context(), o); err == nil {
		t.Fatal("a credential in a file's place was accepted")
	}
	if after := files(t, base); !slices.Equal(after, []string{"cred"}) {
		t.Errorf("left behind: %v", after)
	}
	notEnrolled(t, o.DataDir)
	if err := os.Remove(filepath.Join(base, "cred")); err != nil {
		t.Fatal(err)
	}
	r := must[*InitResult](t)(Init(t.Context(), o))
	if _, f, err := OpenDir(o.DataDir); err != nil || f.Fleet != r.Fleet {
		t.Errorf("after the second try: %+v, %v", f, err)
	}
}

// TestFailedInitKeepsWhatWasThere: the agent key of an enrolment that was cut
// short is a host's identity.
func TestFailedInitKeepsWhatWasThere(t *testing.T) {
	base := t.TempDir()
	o := initOptions(base)
	d := must[*Dir](t)(createDir(o.DataDir))
	key := must[identity.PrivateKey](t)(d.LoadOrCreateKey(Agent))
	write(t, filepath.Join(base, "cred"))
	if _, err := Init(t.Context(), o); err == nil {
		t.Fatal("accepted")
	}
	if again := must[identity.PrivateKey](t)(d.LoadOrCreateKey(Agent)); again.Public() != key.Public() {
		t.Error("the agent key is gone")
	}
	if got, want := files(t, o.DataDir), []string{"blob", "keys", "keys/agent.key"}; !slices.Equal(got, want) {
		t.Errorf("left behind: %v, want %v", got, want)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			t.Skip("no symbolic links here")
		}
		t.Fatal(err)
	}
}
