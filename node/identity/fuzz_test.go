package identity

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// The property of every target below: no panic, and what is accepted encodes
// to the bytes that came.

// seedGolden adds what lies in testdata, read as hex.
func seedGolden(f *testing.F, names ...string) {
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(fromHex(f, b))
	}
}

func FuzzParseTrust(f *testing.F) {
	w := newWorld(f, 1)
	big, err := SignTrust(w.root, bigTrust(w))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(w.signedTrust(f), true)
	f.Add(big, true)
	for _, b := range [][]byte{w.signedTrust(f), big} {
		var file trustFile
		if err := wire.StrictJSON(b, &file); err != nil {
			f.Fatal(err)
		}
		f.Add(file.Payload, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole { // the fuzzer cannot sign: a payload behind a good signature
			b, _ = encodeFile(&trustFile{Payload: b, Signature: w.root.Sign(UseTrust, b)})
		}
		trust, err := ParseTrust(b, w.root.Public())
		if err != nil {
			return
		}
		again, err := SignTrust(w.root, *trust)
		if err != nil {
			t.Fatalf("accepted but cannot be signed: %v", err)
		}
		if _, err := ParseTrust(again, w.root.Public()); err != nil {
			t.Fatalf("signed again and refused: %v", err)
		}
		if !bytes.Equal(trust.Raw(), b) {
			t.Fatal("Raw is not the input")
		}
	})
}

func FuzzParseJoinToken(f *testing.F) {
	w := newWorld(f, 1)
	f.Add(testToken(w).Encode())
	f.Add("  " + testToken(w).Encode() + "\n")
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseJoinToken(s)
		if err != nil {
			return
		}
		if again := token.Encode(); again != string(bytes.TrimSpace([]byte(s))) {
			t.Fatalf("a second spelling of one token: %q and %q", s, again)
		}
	})
}

func FuzzParseJoinRequest(f *testing.F) {
	w := newWorld(f, 1)
	seedGolden(f, "join-request.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		p, r, err := ParseJoinRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(wire.MustMarshal(r), b) || !bytes.Equal(wire.MustMarshal(&joinPayload{1, p}), r.Payload) {
			t.Fatal("a second encoding of one request")
		}
		if r.Verify(w.root.Public()) == nil {
			t.Fatal("verified without the code")
		}
	})
}

func FuzzParseAddressChange(f *testing.F) {
	seedGolden(f, "address-change.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseAddressChange(b)
		if err != nil {
			return
		}
		payload := wire.MustMarshal(&addressChange{1, s.AddressChange})
		if !bytes.Equal(EncodeSigned(payload, s.Signature), b) {
			t.Fatal("a second encoding of one change")
		}
	})
}

func FuzzParseLeave(f *testing.F) {
	seedGolden(f, "leave.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseLeave(b)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeSigned(wire.MustMarshal(&leave{1, s.Leave}), s.Signature), b) {
			t.Fatal("a second encoding of one farewell")
		}
	})
}

func FuzzParseNodeRecord(f *testing.F) {
	w := newWorld(f, 1)
	seedGolden(f, "node-record.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseNodeRecord(b)
		if err != nil {
			return
		}
		again, err := SignNodeRecord(w.issuer, r)
		if err != nil {
			t.Fatalf("accepted but cannot be signed: %v", err)
		}
		// The issuer's four bytes and the signature are the signer's.
		if !bytes.Equal(again[5:len(again)-64], b[5:len(b)-64]) {
			t.Fatal("a second encoding of one record")
		}
	})
}

func FuzzParseProof(f *testing.F) {
	seedGolden(f, "proof.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseProof(b)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeSigned(wire.MustMarshal(&proof{1, s.Proof}), s.Signature), b) {
			t.Fatal("a second encoding of one proof")
		}
	})
}

func FuzzParseCandidate(f *testing.F) {
	seedGolden(f, "candidate.hex")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseCandidate(b)
		if err != nil {
			return
		}
		payload := wire.MustMarshal(&candidate{1, s.Candidate})
		again := wire.MustMarshal(&candidateEnvelope{payload, s.AgentSig, s.QuorumSig, s.IssuerSig})
		if !bytes.Equal(again, b) {
			t.Fatal("a second encoding of one request")
		}
	})
}

func FuzzParseGenesis(f *testing.F) {
	w := newWorld(f, 1)
	good := SignGenesis(w.root, w.genesis(f, w.rootDER))
	f.Add(good, true)
	var g genesis
	payload, _, err := DecodeSigned(good, MaxGenesis, "genesis", &g)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload, false)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		if !whole {
			b = EncodeSigned(b, w.root.Sign(UseGenesis, b))
		}
		p, trust, err := ParseGenesis(b, w.fleet)
		if err != nil {
			return
		}
		if !bytes.Equal(SignGenesis(w.root, *p), b) {
			t.Fatal("a second encoding of one genesis")
		}
		if trust.FirstOperator == nil || trust.FirstOperator.Key != p.Operator.Keys[0] {
			t.Fatal("an operator that trust.json does not name")
		}
	})
}

// FuzzVerifyChain takes certificates in DER, one after the other.
func FuzzVerifyChain(f *testing.F) {
	w := newWorld(f, 1)
	f.Add(bytes.Join([][]byte{w.quorumDER, w.rootDER}, nil))
	f.Add(bytes.Join([][]byte{w.agentDER, w.issuerDER, w.rootDER}, nil))
	f.Add(bytes.Join([][]byte{w.issuerDER, w.rootDER}, nil))
	// Serial numbers are random and each fuzzing process makes its own
	// certificates: what is accepted is judged by what it says.
	keys := map[fleet.Role]fleet.PublicKey{fleet.RoleQuorum: w.quorum.Public(), fleet.RoleAgent: w.agent.Public()}
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := x509.ParseCertificates(b)
		if err != nil {
			return
		}
		peer, err := VerifyChain(chain, w.fleet, w.now)
		if err != nil {
			return
		}
		if key, ok := keys[peer.Role]; !ok || peer.Key != key || peer.Node != w.node || peer.Fleet != w.fleet {
			t.Fatalf("accepted a peer that nobody certified: %+v", peer)
		}
	})
}

func FuzzParseCode(f *testing.F) {
	f.Add(Code{1, 2, 3}.Text())
	f.Fuzz(func(t *testing.T, s string) {
		code, err := ParseCode(s)
		if err != nil {
			return
		}
		if again, err := ParseCode(code.Text()); err != nil || again != code {
			t.Fatal("the code's own text is not read")
		}
	})
}

// Key files lie on the host's own disk, but a disk may return anything.
func FuzzPrivateFiles(f *testing.F) {
	for _, name := range []string{"credential.json", "agent-key.pem", "root-key.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := LoadKey(path); err == nil && k.IsZero() {
			t.Fatal("no key and no error")
		}
		if c, err := LoadCredential(path); err == nil && c.Key.IsZero() {
			t.Fatal("no key and no error")
		}
		if _, k, err := OpenRootKeyFile(path, nil); err == nil && k.IsZero() {
			t.Fatal("no key and no error")
		}
	})
}
