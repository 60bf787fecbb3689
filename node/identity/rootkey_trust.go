package identity

import (
	"fmt"

	"fleet/node/fleet"
)

// This file is what the root-key file remembers of the trust.json that were
// signed with it. The root key is the one thing that a stolen quorum cannot
// forge, so whoever holds it must not be led to sign two different files of one
// version (hosts would disagree for ever), nor to sign after an old one that a
// stolen leader shows (a voter that was removed would come back).

// SignTrust signs t as the version after t.Version, or after the last one that
// this root key signed if that is higher: a version that was signed and did not
// reach the fleet is not signed again for something else. The very same content
// again is the same file again. What was signed is on disk before it is
// returned.
//
// t.Version is the version that the fleet shows. Kind Conflict: it is older than
// one that it showed before.
func (f *RootKeyFile) SignTrust(root PrivateKey, t Trust) ([]byte, error) {
	_, raw, err := readRootKeyFile(f.Path)
	if err != nil {
		return nil, err
	}
	if err := checkShown(f.Path, raw, t.Version); err != nil {
		return nil, err
	}
	shown := t.Version
	if raw.Trust > shown {
		t.Version = raw.Trust
		same, err := SignTrust(root, t)
		if err != nil {
			return nil, err
		}
		if fleet.Sum(same).String() == raw.TrustDigest {
			return same, f.record(raw.Trust, shown, same)
		}
	}
	t.Version = max(raw.Trust, shown) + 1
	signed, err := SignTrust(root, t)
	if err != nil {
		return nil, err
	}
	return signed, f.record(t.Version, shown, signed)
}

// CheckShown refuses, with kind Conflict, a version of trust.json that a fleet
// shows and that is older than one that it showed before.
func (f *RootKeyFile) CheckShown(version uint32) error {
	_, raw, err := readRootKeyFile(f.Path)
	if err != nil {
		return err
	}
	return checkShown(f.Path, raw, version)
}

func checkShown(path string, raw *rootKeyFile, version uint32) error {
	if version < raw.TrustShown {
		return fleet.Errorf(fleet.Conflict, "the fleet shows version %d of trust.json; it has shown version %d to root-key file %s before",
			version, raw.TrustShown, path).
			WithHint("the host that answers may be old or not honest: ask another with --connect IP:PORT")
	}
	return nil
}

// NoteTrust remembers that the fleet has decided a version: nothing is signed
// after an older one from then on.
func (f *RootKeyFile) NoteTrust(version uint32) error {
	_, raw, err := readRootKeyFile(f.Path)
	if err != nil {
		return err
	}
	if version <= raw.TrustShown {
		return nil
	}
	raw.TrustShown = version
	return f.write(raw)
}

// record notes on disk what is about to be sent.
func (f *RootKeyFile) record(version, shown uint32, signed []byte) error {
	now, raw, err := readRootKeyFile(f.Path)
	if err != nil {
		return err
	}
	digest := fleet.Sum(signed).String()
	switch {
	case now.Fleet != f.Fleet:
		return fleet.Errorf(fleet.Conflict, "root-key file %s now belongs to fleet %s", f.Path, now.Fleet)
	case version < raw.Trust || version == raw.Trust && raw.TrustDigest != "" && raw.TrustDigest != digest:
		return fleet.Errorf(fleet.Conflict, "root-key file %s signed another trust.json of version %d in the meantime", f.Path, raw.Trust).
			WithHint("run the command again")
	}
	raw.Trust, raw.TrustDigest, raw.TrustShown = version, digest, max(raw.TrustShown, shown)
	if err := f.write(raw); err != nil {
		return err
	}
	f.LastTrust = version
	return nil
}

func (f *RootKeyFile) write(raw *rootKeyFile) error {
	b, err := encodeFile(raw)
	if err != nil {
		return fmt.Errorf("record trust version in %s: %w", f.Path, err)
	}
	if err := replace(f.Path, b); err != nil {
		return fmt.Errorf("record trust version in %s: %w", f.Path, err)
	}
	return nil
}
