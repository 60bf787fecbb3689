package enrol

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/journal"
	"fleet/node/private"
	"fleet/node/wire"
)

// Format is the version of the data directory's layout. It stands alone in the
// file FORMAT; another version is refused, never guessed.
const Format = "1"

// Dir is the data directory of one enrolled host:
//
//	FORMAT          version of this layout
//	fleet.json      which fleet this is, which host, the root certificate
//	trust.json      the newest trust.json held
//	keys/           agent.key agent.crt; on candidates and voters quorum.key quorum.crt issuer.key issuer.crt
//	gossip.keys     hex, one a line, the first is used
//	peers.json      hosts of the quorum and their last known addresses
//	journal  blob/  what ran here and what it printed
//	quorum/         Raft's stores, on candidates and voters
//	gone.json       that the host is of the fleet no more, and why
//
// The keys stay on the host: no private key travels. Methods are safe for
// concurrent use; files are replaced by rename, never written in place.
type Dir struct {
	path string
	mu   sync.Mutex // serialises replacing files
}

// Fleet is the content of fleet.json.
type Fleet struct {
	Version         int          `json:"version"` // 1
	Fleet           fleet.ID     `json:"fleet"`
	Name            string       `json:"name"` // the fleet's
	Node            fleet.NodeID `json:"node"`
	NodeName        string       `json:"node_name"`
	RootCertificate []byte       `json:"root_certificate"` // DER
	RootKey         []byte       `json:"root_key"`         // the 32-byte public key
}

// Root is the root's public key.
func (f *Fleet) Root() fleet.PublicKey {
	var k fleet.PublicKey
	copy(k[:], f.RootKey)
	return k
}

// Peer is a host of the quorum and where it was last known to answer.
type Peer struct {
	Node    fleet.NodeID `json:"node"`
	Address string       `json:"address"`
}

type peersFile struct {
	Version int    `json:"version"` // 1
	Peers   []Peer `json:"peers"`
}

// ErrNotEnrolled is returned by OpenDir for a directory without a fleet in it.
var ErrNotEnrolled = errors.New("this host is not enrolled")

// ErrLeft is in the chain of what OpenDir says of a directory whose host left
// its fleet, beside what the directory holds. The error around it has the words.
var ErrLeft error = errLeft{}

type errLeft struct{}

func (errLeft) Error() string { return "" }

// OpenDir opens the data directory of an enrolled host and checks its layout.
func OpenDir(path string) (*Dir, *Fleet, error) {
	d := &Dir{path: path}
	format, err := os.ReadFile(d.File("FORMAT"))
	if errors.Is(err, fs.ErrNotExist) {
		e := fleet.Errorf(fleet.NotFound, "no fleet in %s: %w", path, ErrNotEnrolled)
		return nil, nil, e.WithHint(`"fleet init" starts a fleet, "fleet join" enrols in one; or name another --data-dir`)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open data directory: %w", err)
	}
	if got := strings.TrimSpace(string(format)); got != Format {
		e := fleet.Errorf(fleet.Corrupt, "the data directory %s has format %.20q; this program reads format %s", path, got, Format)
		return nil, nil, e.WithHint("run the release of fleet that wrote it")
	}
	if err := refuseUsurped(path); err != nil {
		return nil, nil, err
	}
	var f Fleet
	if err := d.readJSON("fleet.json", &f); err != nil {
		return nil, nil, err
	}
	if f.Version != 1 {
		return nil, nil, fleet.Errorf(fleet.Corrupt, "%s has version %d; this program reads version 1", d.File("fleet.json"), f.Version)
	}
	root, err := identity.VerifyRoot(f.RootCertificate, f.Fleet)
	if err != nil || len(f.RootKey) != len(root) || f.Root() != root {
		return nil, nil, fleet.Errorf(fleet.Corrupt, "%s is damaged: the root key in it does not belong to fleet %.40q", d.File("fleet.json"), f.Fleet)
	}
	if _, err := fleet.ParseNodeID(string(f.Node)); err != nil {
		return nil, nil, fleet.Errorf(fleet.Corrupt, "%s is damaged: %w", d.File("fleet.json"), err)
	}
	if gone, err := d.Gone(); err != nil {
		return nil, nil, err
	} else if gone != nil && gone.How == GoneLeft {
		e := fleet.Errorf(fleet.NotFound, "%s", gone.Message)
		e.Err = ErrLeft
		return d, &f, e.WithHint(`"fleet join" makes it a new node, with a new activation`)
	}
	return d, &f, nil
}

// refuseEnrolled is an error unless the directory is absent or empty of a fleet.
// One whose host is of its fleet no more counts as empty.
func refuseEnrolled(path string) error {
	d, f, err := OpenDir(path)
	if errors.Is(err, ErrNotEnrolled) || errors.Is(err, ErrLeft) {
		return nil
	}
	if err != nil {
		return err
	}
	if gone, err := d.Gone(); err != nil || gone != nil {
		return err
	}
	return fleet.Errorf(fleet.Conflict, "%s already holds host %s of fleet %s (%s)", d.path, f.Node, f.Name, f.Fleet).
		WithHint(`"fleet status" shows it, "fleet agent --service" starts it if it does not run; to enrol in another fleet give it an empty --data-dir`)
}

// refuseUsurped refuses a directory in which another user of the host could put
// what this program then believes.
func refuseUsurped(path string) error {
	why, err := private.Usurped(path)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if why != "" {
		return fleet.Errorf(fleet.Denied, "the data directory %s is not safe: %s", path, why).
			WithHint("remove it, or if all in it is yours: %s", private.Repair(path))
	}
	return nil
}

// createDir makes a data directory, which must be absent or empty of a fleet.
func createDir(path string) (*Dir, error) {
	if err := refuseEnrolled(path); err != nil {
		return nil, err
	}
	_, err := os.Lstat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if !fresh { // what is in it may be of another hand
		if err := refuseUsurped(path); err != nil {
			return nil, err
		}
	}
	if err := (&Dir{path: path}).forgetGone(); err != nil {
		return nil, err
	}
	// Others may pass through the directory, to the working directory of a
	// command that runs as them, and see nothing else.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	if err := private.Restrict(path); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	if err := refuseUsurped(path); err != nil { // by who made it in between
		return nil, err
	}
	for _, dir := range []string{"keys", "blob"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o700); err != nil {
			return nil, fmt.Errorf("create data directory: %w", err)
		}
	}
	return &Dir{path: path}, nil
}

// finish writes FORMAT, last of all: a directory without it is not enrolled,
// so that an enrolment cut short can be done again.
func (d *Dir) finish(f *Fleet) error {
	f.Version = 1
	if err := d.writeJSON("fleet.json", f, 0o600); err != nil {
		return err
	}
	return d.write("FORMAT", []byte(Format+"\n"), 0o600)
}

// SaveName writes down that the host has another name.
func (d *Dir) SaveName(f *Fleet, name string) error {
	next := *f
	next.NodeName = name
	return d.writeJSON("fleet.json", &next, 0o600)
}

// Path is the directory itself.
func (d *Dir) Path() string { return d.path }

// File is the path of a file in the directory.
func (d *Dir) File(name string) string { return filepath.Join(d.path, filepath.FromSlash(name)) }

// Trust reads trust.json and verifies it under the root key.
func (d *Dir) Trust(root fleet.PublicKey) (*identity.Trust, error) {
	b, err := os.ReadFile(d.File("trust.json"))
	if err != nil {
		return nil, fmt.Errorf("read trust.json: %w", err)
	}
	t, err := identity.ParseTrust(b, root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.File("trust.json"), err)
	}
	return t, nil
}

// SaveTrust replaces trust.json.
func (d *Dir) SaveTrust(t *identity.Trust) error { return d.write("trust.json", t.Raw(), 0o644) }

// Peers reads peers.json; none when it is absent.
func (d *Dir) Peers() ([]Peer, error) {
	var p peersFile
	err := d.readJSON("peers.json", &p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && p.Version != 1 {
		err = fleet.Errorf(fleet.Corrupt, "%s has version %d; this program reads version 1", d.File("peers.json"), p.Version)
	}
	return p.Peers, err
}

// SavePeers replaces peers.json.
func (d *Dir) SavePeers(peers []Peer) error {
	return d.writeJSON("peers.json", peersFile{Version: 1, Peers: peers}, 0o600)
}

// GossipKeys reads the gossip keys.
func (d *Dir) GossipKeys() ([][]byte, error) {
	b, err := os.ReadFile(d.File("gossip.keys"))
	if err != nil {
		return nil, fmt.Errorf("read gossip keys: %w", err)
	}
	var keys [][]byte
	for _, line := range strings.Fields(string(b)) {
		k, err := hex.DecodeString(line)
		if err != nil || len(k) != 32 {
			return nil, fleet.Errorf(fleet.Corrupt, "%s: a key is not 64 hex digits", d.File("gossip.keys"))
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fleet.Errorf(fleet.Corrupt, "%s holds no key", d.File("gossip.keys"))
	}
	return keys, nil
}

// SaveGossipKeys replaces the gossip keys; the first seals.
func (d *Dir) SaveGossipKeys(keys [][]byte) error {
	var b bytes.Buffer
	for _, k := range keys {
		fmt.Fprintln(&b, hex.EncodeToString(k))
	}
	return d.write("gossip.keys", b.Bytes(), 0o600)
}

// createJournal makes the agent's journal, unless an earlier try of the same
// enrolment did. Made here it knows since when it is; one that the agent has to
// make again later has lost that, and refuses what may have run before.
func (d *Dir) createJournal(origin int64) error {
	path := d.File("journal")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	return journal.Create(path, origin)
}

// SaveNodeRecord replaces the host's signed node record.
func (d *Dir) SaveNodeRecord(b []byte) error { return d.write("keys/node.record", b, 0o600) }

// Identity is one key of the host and its certificate chain, leaf first.
type Identity struct {
	Key   identity.PrivateKey
	Chain [][]byte // DER; for an issuer the issuer and the root certificate
}

// TLS is the identity as crypto/tls wants it.
func (i *Identity) TLS() tls.Certificate { return identity.TLSCertificate(i.Key, i.Chain...) }

// Names of the identities in keys/.
const (
	Agent  = "agent"
	Quorum = "quorum"
	Issuer = "issuer"
)

// LoadIdentity reads a key and its chain; fs.ErrNotExist when the host has none.
func (d *Dir) LoadIdentity(name string) (*Identity, error) {
	key, err := identity.LoadKey(d.File("keys/" + name + ".key"))
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(d.File("keys/" + name + ".crt"))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	id := &Identity{Key: key}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		id.Chain = append(id.Chain, block.Bytes)
	}
	if len(id.Chain) < 2 {
		return nil, fleet.Errorf(fleet.Corrupt, "%s does not hold a certificate chain", d.File("keys/"+name+".crt"))
	}
	return id, nil
}

// LoadOrCreateKey reads a key, or makes and keeps a new one.
func (d *Dir) LoadOrCreateKey(name string) (identity.PrivateKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := d.File("keys/" + name + ".key")
	key, err := identity.LoadKey(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = identity.GenerateKey(); err != nil {
		return key, err
	}
	return key, identity.SaveKey(path, key)
}

// SaveChain replaces the certificate chain of an identity.
func (d *Dir) SaveChain(name string, chain ...[]byte) error {
	var b bytes.Buffer
	for _, der := range chain {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return fmt.Errorf("encode certificate: %w", err)
		}
	}
	return d.write("keys/"+name+".crt", b.Bytes(), 0o600)
}

func (d *Dir) readJSON(name string, v any) error {
	b, err := os.ReadFile(d.File(name))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := wire.StrictJSON(b, v); err != nil {
		return fleet.Errorf(fleet.Corrupt, "%s is damaged: %w", d.File(name), err)
	}
	return nil
}

func (d *Dir) writeJSON(name string, v any, mode fs.FileMode) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(b, '\n'), mode)
}

// write replaces a file so that a crash leaves the old or the new one.
func (d *Dir) write(name string, b []byte, mode fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writeError(name, replaceFile(d.File(name), b, mode))
}

func (d *Dir) writeError(name string, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fleet.Errorf(fleet.Unavailable, "write %s: the disk of %s is full", name, d.path).
			WithHint("free some space there and repeat the command; a join that is repeated is counted once")
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func replaceFile(path string, b []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if _, err = tmp.Write(b); err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // directories cannot be synced there
		return nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
