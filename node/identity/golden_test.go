package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// goldenOnce is a file that was made once and is never made again by -update
// while it exists: there is chance in it.
func goldenOnce(t *testing.T, name string, make func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	b, err := os.ReadFile(path)
	if *update && errors.Is(err, fs.ErrNotExist) {
		b = make()
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The formats that outlive a process. A difference here is a new version of the
// format, or a mistake.
func TestGoldenFormats(t *testing.T) {
	w := newWorld(t, 1)
	rootDER := fromHex(t, goldenOnce(t, "root-certificate.hex", func() []byte { return hexLines(w.rootDER) }))
	if _, err := VerifyRoot(rootDER, w.fleet); err != nil {
		t.Fatal(err)
	}
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	golden(t, "trust-first.json", w.signedTrust(t))
	golden(t, "trust.json", must(SignTrust(w.root, bigTrust(w))))
	golden(t, "join-token.txt", []byte(testToken(w).Encode()+"\n"))
	golden(t, "join-request.hex", hexLines(must(NewJoinRequest(w.joinPayload(), w.agent, Code{4, 5, 6}))))
	golden(t, "address-change.hex", hexLines(must(NewAddressChange(testChange(w), w.agent))))
	golden(t, "rejoin.hex", hexLines(must(NewRejoin(Rejoin{Fleet: w.fleet, Key: w.agent.Public(), Epoch: 1767225600}, w.agent))))
	golden(t, "leave.hex", hexLines(must(NewLeave(testLeave(w), w.agent))))
	golden(t, "node-record.hex", hexLines(must(SignNodeRecord(w.issuer, w.nodeRecord()))))
	golden(t, "proof.hex", hexLines(SignProof(w.operator, w.proof())))
	golden(t, "candidate.hex", hexLines(must(NewCandidate(testCandidate(w), w.agent, w.quorum, w.issuer))))
	golden(t, "file-signature.json", must(SignFile(w.operator, testFileSignature(w))))
	golden(t, "genesis.hex", hexLines(SignGenesis(w.root, w.genesis(t, rootDER))))

	dir := t.TempDir()
	file := func(name string, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return must(os.ReadFile(filepath.Join(dir, name)))
	}
	golden(t, "credential.json", file("c", SaveCredential(filepath.Join(dir, "c"), testCredential(w))))
	golden(t, "agent-key.pem", file("k", SaveKey(filepath.Join(dir, "k"), w.agent)))
	golden(t, "root-key.json", file("r", CreateRootKeyFile(filepath.Join(dir, "r"), "acme", w.root, rootDER, nil, w.now)))
	goldenOnce(t, "root-key-sealed.json", func() []byte {
		return file("s", CreateRootKeyFile(filepath.Join(dir, "s"), "acme", w.root, rootDER, []byte("golden"), w.now))
	})
}

// What an earlier release wrote is still read.
func TestGoldenFormatsAreRead(t *testing.T) {
	w := newWorld(t, 1)
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	trust, err := ParseTrust(read("trust-first.json"), w.root.Public())
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = ParseTrust(read("trust.json"), w.root.Public())
	check("trust.json", err)
	_, err = ParseJoinToken(string(read("join-token.txt")))
	check("join token", err)
	_, join, err := ParseJoinRequest(fromHex(t, read("join-request.hex")))
	check("join request", err)
	check("join request", join.Verify(Code{4, 5, 6}.Key().Public()))
	change, err := ParseAddressChange(fromHex(t, read("address-change.hex")))
	check("address change", err)
	check("address change", change.Verify(w.agent.Public()))
	_, err = ParseRejoin(fromHex(t, read("rejoin.hex")))
	check("rejoin request", err)
	farewell, err := ParseLeave(fromHex(t, read("leave.hex")))
	check("farewell", err)
	check("farewell", farewell.Verify(w.agent.Public()))
	_, err = VerifyNodeRecord(fromHex(t, read("node-record.hex")), trust, w.now)
	check("node record", err)
	proof, err := ParseProof(fromHex(t, read("proof.hex")))
	check("proof", err)
	check("proof", proof.Verify(w.operator.Public()))
	candidate, err := ParseCandidate(fromHex(t, read("candidate.hex")))
	check("candidate", err)
	check("candidate", candidate.Verify(w.agent.Public()))
	_, _, err = ParseGenesis(fromHex(t, read("genesis.hex")), w.fleet)
	check("genesis", err)

	// Private files are refused as they lie in a work tree: with their mode.
	private := func(name string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, read(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	credential, err := LoadCredential(private("credential.json"))
	check("credential", err)
	key, err := LoadKey(private("agent-key.pem"))
	check("key", err)
	_, root, err := OpenRootKeyFile(private("root-key.json"), nil)
	check("root key", err)
	_, sealed, err := OpenRootKeyFile(private("root-key-sealed.json"), func() ([]byte, error) { return []byte("golden"), nil })
	check("sealed root key", err)
	if sealed.Public() != w.root.Public() {
		t.Error("the sealed file holds another key")
	}
	if credential.Key.Public() != w.operator.Public() || key.Public() != w.agent.Public() || root.Public() != w.root.Public() {
		t.Error("a key file holds another key")
	}
}
