package enrol

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// This file is what of the data directory belongs to a host of the quorum: how
// it takes a new issuing key into use, and how it stops being of the quorum.

// NextIssuer is an issuing key that has its certificate and waits for a
// trust.json that names it.
const NextIssuer = "issuer-next"

// UseNextIssuer puts the waiting issuing key in the place of the present one.
// What is cut short is finished by LoadIssuer.
func (d *Dir) UseNextIssuer() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ext := range []string{".crt", ".key"} {
		if err := os.Rename(d.File("keys/"+NextIssuer+ext), d.File("keys/"+Issuer+ext)); err != nil {
			return fmt.Errorf("take the new issuing key into use: %w", err)
		}
	}
	return nil
}

// LoadIssuer reads the issuing key and its certificate.
func (d *Dir) LoadIssuer() (*Identity, error) {
	id, err := d.LoadIdentity(Issuer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(id.Chain[0])
	if err != nil {
		return nil, fleet.Errorf(fleet.Corrupt, "%s: %w", d.File("keys/"+Issuer+".crt"), err)
	}
	certified, err := identity.CertificateKey(leaf)
	if err != nil {
		return nil, err
	}
	if certified == id.Key.Public() {
		return id, nil
	}
	next, err := identity.LoadKey(d.File("keys/" + NextIssuer + ".key"))
	if err != nil || next.Public() != certified {
		return nil, fleet.Errorf(fleet.Corrupt, "the issuing certificate in %s is not for the key beside it", d.File("keys"))
	}
	if err := os.Rename(d.File("keys/"+NextIssuer+".key"), d.File("keys/"+Issuer+".key")); err != nil {
		return nil, fmt.Errorf("take the new issuing key into use: %w", err)
	}
	return d.LoadIdentity(Issuer)
}

// Names of what stays of a host's time in the quorum.
const (
	RetiredFile = "retired.json"
	RetiredDir  = "quorum.retired" // its log
)

// Retired says that the host voted, or followed the log, and does so no more.
type Retired struct {
	Version int           `json:"version"` // 1
	Message string        `json:"message"` // for a person: why
	Fenced  bool          `json:"fenced"`  // the fleet was recovered by force without it: its log may hold what is nowhere else
	At      fleet.Instant `json:"at"`
	Done    bool          `json:"done"` // false: keys and log are still in place
}

// Retired is what the directory says about the host's time in the quorum; nil
// if there was none or it lasts.
func (d *Dir) Retired() (*Retired, error) {
	var r Retired
	err := d.readJSON(RetiredFile, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case r.Version != 1:
		return nil, fleet.Errorf(fleet.Corrupt, "%s has version %d; this program reads version 1", d.File(RetiredFile), r.Version)
	}
	return &r, nil
}

// Retire ends the host's time in the quorum: keys and certificates go, so that
// it makes new ones if it is to come back, and the log is set aside, in the
// place of an earlier one. A log must never be taken up again: what the others
// decided meanwhile may contradict it. Written down first, so that what is cut
// short is finished (see FinishRetiring) and not mistaken for a loss.
func (d *Dir) Retire(r Retired) error {
	r.Version, r.Done = 1, false
	if err := d.writeJSON(RetiredFile, &r, 0o600); err != nil {
		return err
	}
	return d.FinishRetiring()
}

// FinishRetiring does what is left of Retire.
func (d *Dir) FinishRetiring() error {
	r, err := d.Retired()
	if err != nil || r == nil || r.Done {
		return err
	}
	if _, err := os.Lstat(d.File("quorum")); err == nil {
		if err := os.RemoveAll(d.File(RetiredDir)); err != nil {
			return fmt.Errorf("set the log aside: %w", err)
		}
		if err := os.Rename(d.File("quorum"), d.File(RetiredDir)); err != nil {
			return fmt.Errorf("set the log aside: %w", err)
		}
	}
	for _, name := range []string{Quorum, Issuer, NextIssuer} {
		for _, ext := range []string{".crt", ".key"} {
			if err := os.Remove(d.File("keys/" + name + ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove the keys of the quorum: %w", err)
			}
		}
	}
	r.Done = true
	return d.writeJSON(RetiredFile, r, 0o600)
}

// ForgetRetired notes that the host is of the quorum again.
func (d *Dir) ForgetRetired() error {
	if err := os.Remove(d.File(RetiredFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", RetiredFile, err)
	}
	return nil
}
