package identity

import (
	"errors"
	"fmt"
	"io/fs"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// Credential is what an operator needs to speak to a fleet.
type Credential struct {
	Fleet     fleet.ID
	Name      string // of the fleet
	Operator  fleet.OperatorName
	Key       PrivateKey
	Addresses []string // "host:port" of quorum hosts, at least one
}

// maxCredentialAddresses bounds what a credential remembers.
const maxCredentialAddresses = 32

type credentialFile struct {
	Version   int      `json:"version"`
	Fleet     string   `json:"fleet"`
	Name      string   `json:"name"`
	Operator  string   `json:"operator"`
	Key       []byte   `json:"key"` // seed
	Addresses []string `json:"addresses"`
}

// SaveCredential writes c with mode 0600. A file that exists is replaced only
// if it holds the same key for the same operator of the same fleet (so that
// addresses can be brought up to date); else the error is of kind Conflict.
func SaveCredential(path string, c Credential) error {
	if c.Key.IsZero() {
		return fmt.Errorf("save credential %s: there is no key", path)
	}
	file := &credentialFile{
		Version: 1, Fleet: string(c.Fleet), Name: c.Name, Operator: string(c.Operator),
		Key: c.Key.seed(), Addresses: c.Addresses,
	}
	if _, err := file.credential(); err != nil {
		return fmt.Errorf("save credential %s: %w", path, err)
	}
	b, err := encodeFile(file)
	if err != nil {
		return fmt.Errorf("save credential %s: %w", path, err)
	}
	err = writeNew(path, b)
	if errors.Is(err, fs.ErrExist) {
		old, loadErr := LoadCredential(path)
		if loadErr == nil && old.Fleet == c.Fleet && old.Operator == c.Operator && old.Key.Public() == c.Key.Public() {
			err = replace(path, b)
		}
	}
	if err != nil {
		return saveError("credential", path, err)
	}
	return nil
}

// LoadCredential reads what SaveCredential wrote. A file that others may read
// is refused with kind Invalid, a damaged one with Corrupt; os.ErrNotExist
// stays visible.
func LoadCredential(path string) (Credential, error) {
	b, err := readPrivate(path, false)
	if err != nil {
		return Credential{}, err
	}
	var file credentialFile
	if err := wire.StrictJSON(b, &file); err != nil {
		return Credential{}, fleet.Errorf(fleet.Corrupt, "%s is not a credential: %w", path, err)
	}
	if file.Version != 1 {
		return Credential{}, fleet.Errorf(fleet.Invalid, "credential %s of version %d: this release knows version 1",
			path, file.Version)
	}
	c, err := file.credential()
	if err != nil {
		return Credential{}, fleet.Errorf(fleet.Corrupt, "credential %s: %w", path, err)
	}
	return c, nil
}

func (f *credentialFile) credential() (Credential, error) {
	c := Credential{Name: f.Name, Addresses: f.Addresses}
	var err error
	if c.Fleet, err = fleet.ParseID(f.Fleet); err != nil {
		return Credential{}, err
	}
	if err = fleet.CheckName(f.Name); err != nil {
		return Credential{}, err
	}
	if c.Operator, err = fleet.ParseOperatorName(f.Operator); err != nil {
		return Credential{}, err
	}
	if len(f.Key) != 32 {
		return Credential{}, fmt.Errorf("the key has %d bytes instead of 32", len(f.Key))
	}
	c.Key = KeyFromSeed([32]byte(f.Key))
	if len(f.Addresses) == 0 || len(f.Addresses) > maxCredentialAddresses {
		return Credential{}, fmt.Errorf("%d addresses; 1 to %d are needed", len(f.Addresses), maxCredentialAddresses)
	}
	for _, a := range f.Addresses {
		if err := CheckAddress(a); err != nil {
			return Credential{}, err
		}
	}
	return c, nil
}
