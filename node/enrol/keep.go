package enrol

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

// keptParts is what a backup keeps of one host of the quorum: who it is. It is
// enough to be this host again on another machine.
var keptParts = []string{
	"fleet.json", "trust.json", "gossip.keys", "keys/agent.key", "keys/agent.crt", "keys/quorum.key", "keys/quorum.crt", "keys/issuer.key", "keys/issuer.crt",
}

// keptPrefix begins the names of these parts in a backup.
const keptPrefix = "host/"

// Kept gives what a backup keeps of the host of a data directory, by the name of
// the part: private keys among it. The host must be one of the quorum, which
// can go on from a backup; a reinstalled ordinary host enrols anew.
func Kept(dataDir string, of fleet.ID) (map[string][]byte, error) {
	d, f, err := OpenDir(dataDir)
	if err != nil {
		return nil, err
	}
	if f.Fleet != of {
		return nil, fleet.Errorf(fleet.Conflict, "the host of %s is of the fleet %s, which is another", dataDir, f.Name)
	}
	parts := map[string][]byte{}
	for _, name := range keptParts {
		b, err := os.ReadFile(d.File(name))
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "keys/") {
			return nil, fleet.Errorf(fleet.Conflict, "the host %s is not one of the quorum: it has no %s", f.NodeName, filepath.Base(name)).
				WithHint("run it on a voter; fleet quorum ls names them")
		}
		if err != nil {
			return nil, fmt.Errorf("read what is to be kept of this host: %w", err)
		}
		parts[keptPrefix+name] = b
	}
	return parts, nil
}

// KeptHost is the host whose keys a backup has; nil if it has none.
func KeptHost(parts map[string][]byte) (*Fleet, error) {
	b, ok := parts[keptPrefix+"fleet.json"]
	if !ok {
		return nil, nil
	}
	var f Fleet
	if err := wire.StrictJSON(b, &f); err != nil {
		return nil, fleet.Errorf(fleet.Corrupt, "the host in the backup: %w", err)
	}
	if f.Version != 1 {
		return nil, fleet.Errorf(fleet.Corrupt, "the host in the backup is written in version %d; this program reads version 1", f.Version)
	}
	root, err := identity.VerifyRoot(f.RootCertificate, f.Fleet)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(f.RootKey, root[:]) {
		return nil, fleet.Errorf(fleet.Corrupt, "the host in the backup names a root key that is not its fleet's")
	}
	if _, err := fleet.ParseNodeID(string(f.Node)); err != nil {
		return nil, err
	}
	return &f, nil
}

// restoreHost makes a data directory of the host whose keys are in a backup; its
// journal begins at origin. finish is called when all that is to be in it is.
func restoreHost(path string, f *Fleet, parts map[string][]byte, origin int64) (d *Dir, finish func() error, err error) {
	for _, name := range keptParts {
		if _, ok := parts[keptPrefix+name]; !ok {
			return nil, nil, fleet.Errorf(fleet.Corrupt, "the backup lacks %s of the host %s", name, f.NodeName)
		}
	}
	if d, err = createDir(path); err != nil {
		return nil, nil, err
	}
	for _, name := range keptParts {
		if name == "fleet.json" {
			continue // with FORMAT, at the end
		}
		if err := d.write(name, parts[keptPrefix+name], 0o600); err != nil {
			return nil, nil, err
		}
	}
	if err := d.createJournal(origin); err != nil {
		return nil, nil, err
	}
	return d, func() error { return d.finish(f) }, nil
}
