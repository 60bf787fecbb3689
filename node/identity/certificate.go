package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"fleet/node/fleet"
)

// How long certificates are valid. The root's outlives the fleet: its key is
// pinned by every host, so a date on it would only be a way to lose them all.
const (
	RootValidity   = 100 * 365 * 24 * time.Hour
	QuorumValidity = 400 * 24 * time.Hour // quorum and issuer certificates
	AgentValidity  = 30 * 24 * time.Hour

	// NotBeforeSlack is how far certificates are back-dated, so that a host
	// whose clock is a day behind can enrol.
	NotBeforeSlack = 24 * time.Hour
)

// Peer is what a verified chain says about its holder.
type Peer struct {
	Fleet  fleet.ID
	Role   fleet.Role // agent or quorum
	Node   fleet.NodeID
	Key    fleet.PublicKey // of the leaf
	Issuer fleet.PublicKey // that certified an agent; zero for quorum

	NotBefore, NotAfter time.Time // of the leaf

	// Source is the IP address that the peer's connection comes from; no part of
	// the identity, empty where nobody needs it.
	Source string
}

const rootNamePrefix = "fleet root of "

// RootName is the fleet's name in a root certificate, for people; "" if there
// is none that could be one. It is what the owner of the root key says.
func RootName(c *x509.Certificate) string {
	name, ok := strings.CutPrefix(c.Subject.CommonName, rootNamePrefix)
	if !ok || fleet.CheckName(name) != nil {
		return ""
	}
	return name
}

// NewRootCertificate makes the self-signed certificate of a fleet's root key,
// in DER. The name is for people who look at the certificate.
func NewRootCertificate(root PrivateKey, name string, now time.Time) ([]byte, error) {
	if root.IsZero() {
		return nil, errors.New("make root certificate: there is no key")
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: rootNamePrefix + name},
		NotBefore:             now.Add(-NotBeforeSlack),
		NotAfter:              now.Add(RootValidity),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
	}
	return sign(template, template, root.Public(), root)
}

// IssueQuorum certifies a host's quorum key, in DER: 400 days.
func IssueQuorum(root PrivateKey, rootDER []byte, node fleet.NodeID, key fleet.PublicKey, now time.Time) ([]byte, error) {
	return issue(root, rootDER, fleet.RoleQuorum, node, key, now)
}

// IssueIssuer certifies a voter's issuing key, in DER: 400 days, and it may
// certify agents, not other issuers.
func IssueIssuer(root PrivateKey, rootDER []byte, node fleet.NodeID, key fleet.PublicKey, now time.Time) ([]byte, error) {
	return issue(root, rootDER, fleet.RoleIssuer, node, key, now)
}

// IssueAgent certifies a host's agent key, in DER: 30 days, and never longer
// than the issuer's own certificate. The node ID must be that of the key.
func IssueAgent(issuer PrivateKey, issuerDER []byte, node fleet.NodeID, key fleet.PublicKey, now time.Time) ([]byte, error) {
	if node != fleet.NodeIDOf(key) {
		return nil, fleet.Errorf(fleet.Invalid, "certify %s: its agent key belongs to %s", node, fleet.NodeIDOf(key))
	}
	return issue(issuer, issuerDER, fleet.RoleAgent, node, key, now)
}

// issue is the one place where certificates are made. What goes into one
// depends on the row of the node and the key alone, never on a wish of the
// asking side.
func issue(by PrivateKey, byDER []byte, role fleet.Role, node fleet.NodeID, key fleet.PublicKey, now time.Time) ([]byte, error) {
	what := func(err error) error { return fmt.Errorf("certify %s as %s: %w", node, role, err) }
	if by.IsZero() || key.IsZero() {
		return nil, what(errors.New("there is no key"))
	}
	if _, err := fleet.ParseNodeID(string(node)); err != nil {
		return nil, what(err)
	}
	parent, err := x509.ParseCertificate(byDER)
	if err != nil {
		return nil, what(err)
	}
	if have, err := keyOf(parent); err != nil || have != by.Public() || by.Public() == key {
		return nil, what(errors.New("the signing key and certificate do not belong together"))
	}
	id := fleet.IDOf(by.Public())
	validity := QuorumValidity
	if role == fleet.RoleAgent {
		validity = AgentValidity
		name, err := nameOf(parent)
		if err != nil || name.role != fleet.RoleIssuer {
			return nil, what(errors.New("the signing certificate is not an issuer's"))
		}
		id = name.fleet
	} else if _, err := verifyRoot(parent, id); err != nil {
		return nil, what(err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: string(node)},
		URIs:                  []*url.URL{{Scheme: "fleet", Host: string(id), Path: "/" + role.String() + "/" + string(node)}},
		NotBefore:             latest(now.Add(-NotBeforeSlack), parent.NotBefore),
		NotAfter:              earliest(now.Add(validity), parent.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if role == fleet.RoleIssuer {
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
		template.IsCA, template.MaxPathLenZero = true, true
	}
	if !template.NotAfter.After(now) {
		return nil, fleet.Errorf(fleet.Expired, "certify %s as %s: the signing certificate expired on %s",
			node, role, clock(parent.NotAfter))
	}
	return sign(template, parent, key, by)
}

func sign(template, parent *x509.Certificate, key fleet.PublicKey, by PrivateKey) ([]byte, error) {
	// Without a serial number of ours the library draws a random one.
	der, err := x509.CreateCertificate(rand.Reader, template, parent, ed25519.PublicKey(key[:]), by.Signer())
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return der, nil
}

// VerifyChain checks a chain exactly as a peer presents it, leaf first: either
// {quorum, root} or {agent, issuer, root}. The root must be that of fleetID.
// Errors are of kind Expired when only the time is wrong, else Unauthenticated.
//
// Whether the peer still counts (revoked, in trust.json, in the Raft
// configuration) is for the caller to decide.
func VerifyChain(chain []*x509.Certificate, fleetID fleet.ID, now time.Time) (Peer, error) {
	if len(chain) != 2 && len(chain) != 3 {
		return Peer{}, refuse("%d certificates instead of 2 or 3", len(chain))
	}
	for _, c := range chain {
		if c == nil {
			return Peer{}, refuse("a certificate is missing")
		}
	}
	root := chain[len(chain)-1]
	rootKey, err := verifyRoot(root, fleetID)
	if err != nil {
		return Peer{}, err
	}
	peer := Peer{Fleet: fleetID, Role: fleet.RoleQuorum, NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter}
	parent, parentKey := root, rootKey
	if len(chain) == 3 {
		peer.Role = fleet.RoleAgent
		if peer.Issuer, _, err = verifyLink(chain[1], root, rootKey, fleetID, fleet.RoleIssuer); err != nil {
			return Peer{}, err
		}
		if peer.Issuer == rootKey {
			return Peer{}, refuse("the issuer uses the root key")
		}
		parent, parentKey = chain[1], peer.Issuer
	}
	if peer.Key, peer.Node, err = verifyLink(chain[0], parent, parentKey, fleetID, peer.Role); err != nil {
		return Peer{}, err
	}
	if peer.Key == parentKey || peer.Key == rootKey {
		return Peer{}, refuse("the %s uses the key of its issuer", peer.Role)
	}
	if peer.Role == fleet.RoleAgent && peer.Node != fleet.NodeIDOf(peer.Key) {
		return Peer{}, refuse("%s is not the node ID of the agent's key", peer.Node)
	}
	// Time comes last: the hint to look at the clock is only for those whose
	// certificates are otherwise ours.
	for i, role := range chainRoles[len(chain)] {
		if err := checkTime(chain[i], role, now); err != nil {
			return Peer{}, err
		}
	}
	return peer, nil
}

var chainRoles = map[int][]string{2: {"quorum", "root"}, 3: {"agent", "issuer", "root"}}

// VerifyRoot checks that der is the self-signed certificate of the fleet's root
// key and returns that key. It looks at no clock.
func VerifyRoot(der []byte, fleetID fleet.ID) (fleet.PublicKey, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return fleet.PublicKey{}, refuse("the root certificate: %w", err)
	}
	return verifyRoot(c, fleetID)
}

// CertificateKey is the Ed25519 key of a certificate. It proves nothing about
// the certificate.
func CertificateKey(c *x509.Certificate) (fleet.PublicKey, error) { return keyOf(c) }

// TLSCertificate joins a key and its chain, leaf first and root last, for
// crypto/tls.
func TLSCertificate(key PrivateKey, chainDER ...[]byte) tls.Certificate {
	c := tls.Certificate{Certificate: chainDER, PrivateKey: key.Signer()}
	if len(chainDER) > 0 {
		// Only saves crypto/tls the work of parsing it per handshake; a leaf
		// that does not parse fails there.
		c.Leaf, _ = x509.ParseCertificate(chainDER[0])
	}
	return c
}

func verifyRoot(c *x509.Certificate, fleetID fleet.ID) (fleet.PublicKey, error) {
	key, err := keyOf(c)
	if err != nil {
		return key, err
	}
	if fleet.IDOf(key) != fleetID {
		return key, refuse("the root key %s belongs to fleet %s, not %s", key.Fingerprint(), fleet.IDOf(key), fleetID).
			WithHint("this host or file belongs to another fleet")
	}
	if !mayCertify(c) || !bytes.Equal(c.RawIssuer, c.RawSubject) {
		return key, refuse("the root certificate is not a self-signed authority")
	}
	return key, checkSignature(c, key)
}

// verifyLink checks one certificate below its parent: names, flags, signature.
// Its time is checked by VerifyChain.
func verifyLink(c, parent *x509.Certificate, parentKey fleet.PublicKey, fleetID fleet.ID, role fleet.Role) (
	key fleet.PublicKey, node fleet.NodeID, err error) {
	if key, err = keyOf(c); err != nil {
		return key, "", err
	}
	name, err := nameOf(c)
	if err != nil {
		return key, "", err
	}
	if name.fleet != fleetID {
		return key, "", refuse("a certificate of fleet %s, not %s", name.fleet, fleetID)
	}
	if name.role != role {
		return key, "", refuse("a certificate of role %s where %s belongs", name.role, role)
	}
	if role == fleet.RoleIssuer {
		if !mayCertify(c) || c.MaxPathLen != 0 || !c.MaxPathLenZero {
			return key, "", refuse("the issuer's certificate is not an authority for leaves alone")
		}
	} else if !c.BasicConstraintsValid || c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature {
		return key, "", refuse("the %s certificate is not a plain leaf", role)
	}
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
		return key, "", refuse("the %s certificate names another issuer than the next one", role)
	}
	return key, name.node, checkSignature(c, parentKey)
}

func mayCertify(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage == x509.KeyUsageCertSign
}

// keyOf accepts Ed25519 alone, and no extension that the parser did not
// understand but had to.
func keyOf(c *x509.Certificate) (fleet.PublicKey, error) {
	key, ok := c.PublicKey.(ed25519.PublicKey)
	if !ok || len(key) != ed25519.PublicKeySize || c.SignatureAlgorithm != x509.PureEd25519 {
		return fleet.PublicKey{}, refuse("a certificate is not Ed25519 throughout")
	}
	if len(c.UnhandledCriticalExtensions) != 0 {
		return fleet.PublicKey{}, refuse("a certificate has a critical extension that is not known here")
	}
	return fleet.PublicKey(key), nil
}

func checkSignature(c *x509.Certificate, by fleet.PublicKey) error {
	if !ed25519.Verify(by[:], c.RawTBSCertificate, c.Signature) {
		return refuse("a certificate is not signed by the key of the next one")
	}
	return nil
}

func checkTime(c *x509.Certificate, role string, now time.Time) error {
	const hint = "compare this machine's clock with the other's (date -u) and set the wrong one (chronyc makestep, or timedatectl set-ntp true); " +
		"if both are right, the certificate must be renewed"
	if now.Before(c.NotBefore) {
		return fleet.Errorf(fleet.Expired, "the %s certificate is valid from %s, but here it is %s",
			role, clock(c.NotBefore), clock(now)).WithHint(hint)
	}
	if now.After(c.NotAfter) {
		return fleet.Errorf(fleet.Expired, "the %s certificate was valid until %s, but here it is %s",
			role, clock(c.NotAfter), clock(now)).WithHint(hint)
	}
	return nil
}

// name is what the one URI of a certificate says.
type name struct {
	fleet fleet.ID
	role  fleet.Role
	node  fleet.NodeID
}

var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// nameOf reads the single URI name. It looks at the bytes of the extension
// rather than at the parsed lists: the parser drops kinds of names that it does
// not know and normalises URLs, and both would let a second spelling through.
func nameOf(c *x509.Certificate) (name, error) {
	var ext []byte
	found := 0
	for _, e := range c.Extensions {
		if e.Id.Equal(subjectAltName) {
			ext, found = e.Value, found+1
		}
	}
	// SEQUENCE { [6] IA5String }, both lengths in one byte.
	const sequence, uriTag = 0x30, 0x86
	if found != 1 || len(ext) < 4 || len(ext) > 127 ||
		ext[0] != sequence || int(ext[1]) != len(ext)-2 || ext[2] != uriTag || int(ext[3]) != len(ext)-4 {
		return name{}, refuse("a certificate does not have exactly one name, a URI")
	}
	return parseName(string(ext[4:]))
}

func parseName(uri string) (name, error) {
	rest, ok := strings.CutPrefix(uri, "fleet://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return name{}, refuse("the name %.100q is not fleet://FLEET/ROLE/NODE", uri)
	}
	var n name
	var err error
	if n.fleet, err = fleet.ParseID(parts[0]); err != nil {
		return name{}, refuse("the name %.100q: %w", uri, err)
	}
	if n.node, err = fleet.ParseNodeID(parts[2]); err != nil {
		return name{}, refuse("the name %.100q: %w", uri, err)
	}
	for _, role := range []fleet.Role{fleet.RoleAgent, fleet.RoleQuorum, fleet.RoleIssuer} {
		if parts[1] == role.String() {
			n.role = role
			return n, nil
		}
	}
	return name{}, refuse("the name %.100q has no known role", uri)
}

func refuse(format string, args ...any) *fleet.Error {
	return fleet.Errorf(fleet.Unauthenticated, "certificate refused: "+format, args...)
}

// clock writes a time for people.
func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
