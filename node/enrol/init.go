package enrol

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// InitOptions says what fleet to start and where.
type InitOptions struct {
	DataDir string
	Name    string // of the fleet

	// RootKeyPath is where the root key is written; a path inside DataDir is
	// refused, because a stolen host would then be the whole fleet.
	RootKeyPath string
	Passphrase  []byte // protects the root-key file when not empty

	NodeName  string // of this host
	Advertise string // "ip:port" where the others reach this host

	Operator       fleet.OperatorName // the first operator
	CredentialPath string             // where its key is written

	Now func() time.Time
}

// InitResult says what Init made.
type InitResult struct {
	Fleet          fleet.ID
	Name           string
	Node           fleet.NodeID
	NodeName       string
	RootKeyPath    string
	Root           fleet.PublicKey
	CredentialPath string
	Credential     identity.Credential
}

// GenesisFile is where Init leaves log entry 1 for the first start of the host.
const GenesisFile = "genesis"

// Init starts a fleet on this host: it makes the root key, the first operator
// and this host as the only voter. On error nothing is left that would stand
// in the way of another try.
func Init(_ context.Context, o InitOptions) (_ *InitResult, err error) {
	if err := checkInit(&o); err != nil {
		return nil, err
	}
	// What is not there yet is removed again on error. What is there stays: an
	// agent key, for example, may be that of an enrolment that was cut short.
	var undo []string
	made := func(paths ...string) {
		for _, path := range paths {
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				undo = append(undo, path)
			}
		}
	}
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, os.RemoveAll(undo[i]))
			}
		}
	}()
	dir := &Dir{path: o.DataDir}
	made(dir.path, dir.File("keys"), dir.File("blob"), dir.File("gossip.keys"), dir.File("trust.json"), dir.File("peers.json"),
		dir.File("fleet.json"), dir.File("FORMAT"), dir.File("journal"), dir.File(GenesisFile))
	for _, name := range []string{Agent, Quorum, Issuer} {
		made(dir.File("keys/"+name+".key"), dir.File("keys/"+name+".crt"))
	}
	if dir, err = createDir(o.DataDir); err != nil {
		return nil, err
	}
	now := o.Now()

	root, err := identity.GenerateKey()
	if err != nil {
		return nil, err
	}
	rootDER, err := identity.NewRootCertificate(root, o.Name, now)
	if err != nil {
		return nil, err
	}
	fleetID := fleet.IDOf(root.Public())
	keys := map[string]identity.PrivateKey{}
	for _, name := range []string{Agent, Quorum, Issuer} {
		if keys[name], err = dir.LoadOrCreateKey(name); err != nil {
			return nil, err
		}
	}
	node := fleet.NodeIDOf(keys[Agent].Public())
	if err := certify(dir, root, rootDER, keys, node, now); err != nil {
		return nil, err
	}

	operatorKey, err := identity.GenerateKey()
	if err != nil {
		return nil, err
	}
	trust, err := identity.SignTrust(root, identity.Trust{
		Fleet: fleetID, Epoch: 1, Version: 1, K: 1,
		Issuers:       []identity.TrustIssuer{{Node: node, Key: keys[Issuer].Public()}},
		Voters:        []identity.TrustVoter{{Node: node, Key: keys[Quorum].Public()}},
		FirstOperator: &identity.TrustOperator{Name: o.Operator, Key: operatorKey.Public()},
	})
	if err != nil {
		return nil, err
	}
	parsed, err := identity.ParseTrust(trust, root.Public())
	if err != nil {
		return nil, err
	}
	gossipKey := make([]byte, 32)
	if _, err := rand.Read(gossipKey); err != nil {
		return nil, fmt.Errorf("make gossip key: %w", err)
	}
	genesis := identity.SignGenesis(root, identity.GenesisPayload{
		Trust: trust, RootCertificate: rootDER, FleetName: o.Name, GossipKey: gossipKey,
		Operator: fleet.Operator{Name: o.Operator, Keys: []fleet.PublicKey{operatorKey.Public()}, May: []string{"*"}, Created: now.UnixNano()},
		Node: fleet.Node{
			ID: node, Name: o.NodeName, Key: keys[Agent].Public(), Address: o.Advertise,
			AddressEpoch: uint32(now.Unix()), Enrolled: now.UnixNano(),
		},
	})
	for _, step := range []func() error{
		func() error { return dir.SaveTrust(parsed) },
		func() error { return dir.SaveGossipKeys([][]byte{gossipKey}) },
		func() error { return dir.SavePeers([]Peer{{Node: node, Address: o.Advertise}}) },
		func() error { return dir.write(GenesisFile, genesis, 0o600) },
		func() error { return dir.createJournal(now.UnixNano()) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}

	// The two files that leave the data directory come after all that can
	// fail inside it; FORMAT, which makes the host enrolled, comes last.
	if err := identity.CreateRootKeyFile(o.RootKeyPath, o.Name, root, rootDER, o.Passphrase, now); err != nil {
		return nil, err
	}
	undo = append(undo, o.RootKeyPath)
	made(filepath.Dir(o.CredentialPath))
	cred := identity.Credential{
		Fleet: fleetID, Name: o.Name, Operator: o.Operator, Key: operatorKey, Addresses: []string{o.Advertise},
	}
	if err := os.MkdirAll(filepath.Dir(o.CredentialPath), 0o700); err != nil {
		return nil, fmt.Errorf("create the credential's directory: %w", err)
	}
	if err := identity.SaveCredential(o.CredentialPath, cred); fleet.KindOf(err) == fleet.Conflict {
		return nil, fleet.Errorf(fleet.Conflict, "%w", err).WithHint("write it elsewhere with --credential FILE, or move the old one away")
	} else if err != nil {
		return nil, err
	}
	undo = append(undo, o.CredentialPath)
	rootPublic := root.Public()
	if err := dir.finish(&Fleet{
		Fleet: fleetID, Name: o.Name, Node: node, NodeName: o.NodeName, RootCertificate: rootDER, RootKey: rootPublic[:],
	}); err != nil {
		return nil, err
	}
	return &InitResult{
		Fleet: fleetID, Name: o.Name, Node: node, NodeName: o.NodeName, RootKeyPath: o.RootKeyPath,
		Root: rootPublic, CredentialPath: o.CredentialPath, Credential: cred,
	}, nil
}

func checkInit(o *InitOptions) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := fleet.CheckName(o.Name); err != nil {
		return err
	}
	if err := fleet.CheckNodeName(o.NodeName); err != nil {
		return err
	}
	if _, err := fleet.ParseOperatorName(string(o.Operator)); err != nil {
		return err
	}
	if err := checkAdvertise(o.Advertise); err != nil {
		return err
	}
	if o.RootKeyPath == "" {
		return fleet.Errorf(fleet.Invalid, "where should the root key go? It is needed to add, remove or recover quorum hosts").
			WithHint("--root-key FILE, best on removable media")
	}
	if o.CredentialPath == "" {
		return fleet.Errorf(fleet.Invalid, "where should the first operator's credential go?").WithHint("--credential FILE")
	}
	// Before the files below: they are there too, and must not be moved away,
	// if this fleet was started already.
	if err := refuseEnrolled(o.DataDir); err != nil {
		return err
	}
	data, err := filepath.Abs(o.DataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	key, err := filepath.Abs(o.RootKeyPath)
	if err != nil {
		return fmt.Errorf("root key file: %w", err)
	}
	if within(resolve(data), resolve(key)) {
		return fleet.Errorf(fleet.Invalid, "the root key would lie in the data directory %s: whoever steals this host would own the fleet", data).
			WithHint("--root-key FILE outside it, best on removable media")
	}
	for _, file := range []struct{ what, path string }{{"root key file", o.RootKeyPath}, {"credential", o.CredentialPath}} {
		if _, err := os.Lstat(file.path); err == nil {
			return fleet.Errorf(fleet.Conflict, "the %s %s exists already", file.what, file.path).
				WithHint("name another path, or move the old file away")
		}
	}
	return nil
}

// resolve follows the symbolic links of an absolute path, also those that lead
// to what does not exist yet: Init makes the data directory, and a link to it
// then leads into it.
func resolve(path string) string { return resolveLinks(path, 40) }

func resolveLinks(path string, links int) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	parent := filepath.Dir(path)
	if parent == path {
		return path
	}
	parent = resolveLinks(parent, links)
	path = filepath.Join(parent, filepath.Base(path))
	to, err := os.Readlink(path)
	if err != nil || links == 0 {
		return path
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(parent, to)
	}
	return resolveLinks(to, links-1)
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

func checkAdvertise(addr string) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().Zone() != "" {
		return fleet.Errorf(fleet.Invalid, "the address %.100q that other hosts should use is not IP:PORT", addr).
			WithHint("--advertise IP:PORT, for example --advertise 10.0.0.5:7790")
	}
	return nil
}

// certify signs the three identities of a first host and saves their chains.
func certify(dir *Dir, root identity.PrivateKey, rootDER []byte, keys map[string]identity.PrivateKey, node fleet.NodeID, now time.Time) error {
	quorum, err := identity.IssueQuorum(root, rootDER, node, keys[Quorum].Public(), now)
	if err != nil {
		return err
	}
	issuer, err := identity.IssueIssuer(root, rootDER, node, keys[Issuer].Public(), now)
	if err != nil {
		return err
	}
	agent, err := identity.IssueAgent(keys[Issuer], issuer, node, keys[Agent].Public(), now)
	if err != nil {
		return err
	}
	return errors.Join(
		dir.SaveChain(Quorum, quorum, rootDER),
		dir.SaveChain(Issuer, issuer, rootDER),
		dir.SaveChain(Agent, agent, issuer, rootDER))
}
