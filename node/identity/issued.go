package identity

import (
	"crypto/x509"
	"time"

	"fleet/node/fleet"
)

// CheckIssued checks a certificate that the root key is said to have signed for
// a host: that it is of this role (quorum or issuer), for this node and this
// key, and valid at now. The host calls it before it puts the certificate to use.
func CheckIssued(der, rootDER []byte, role fleet.Role, node fleet.NodeID, key fleet.PublicKey, now time.Time) error {
	root, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return refuse("the root certificate: %w", err)
	}
	rootKey, err := keyOf(root)
	if err != nil {
		return err
	}
	id := fleet.IDOf(rootKey)
	if _, err := verifyRoot(root, id); err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return refuse("the %s certificate: %w", role, err)
	}
	gotKey, gotNode, err := verifyLink(cert, root, rootKey, id, role)
	if err != nil {
		return err
	}
	if gotNode != node || gotKey != key {
		return refuse("the %s certificate is for another host or key", role)
	}
	return checkTime(cert, role.String(), now)
}
