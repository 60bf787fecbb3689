package identity

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxFileSignature is the size of the largest file signature that is read.
const MaxFileSignature = 4 << 10

// FileSignature says that an operator vouches for a file: the list of a
// release's checksums, a new version of the program. It lies beside the file
// and names it by content, so that renaming the file changes nothing.
type FileSignature struct {
	Fleet    fleet.ID
	Operator fleet.OperatorName
	Key      fleet.PublicKey // of the operator; whether it counts is for the reader to know
	Digest   fleet.Digest    // SHA-256 of the file
	Size     int64           // bytes of the file
	Made     int64           // Unix seconds, by the signer's clock
}

type fileSignaturePayload struct {
	Format   int    `json:"format"` // 1
	Fleet    string `json:"fleet"`
	Operator string `json:"operator"`
	Key      []byte `json:"key"`
	Digest   string `json:"sha256"`
	Size     int64  `json:"size"`
	Made     int64  `json:"made"`
}

// SignFile signs for a file with an operator's key; s.Key is taken from key.
func SignFile(key PrivateKey, s FileSignature) ([]byte, error) { return signFile(key, UseFile, s) }

// SignBackup is SignFile for what a backup holds: it counts for nothing else.
func SignBackup(key PrivateKey, s FileSignature) ([]byte, error) { return signFile(key, UseBackup, s) }

func signFile(key PrivateKey, use Use, s FileSignature) ([]byte, error) {
	s.Key = key.Public()
	if err := s.check(); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(&fileSignaturePayload{
		Format: 1, Fleet: string(s.Fleet), Operator: string(s.Operator), Key: s.Key[:], Digest: s.Digest.String(), Size: s.Size, Made: s.Made,
	})
	if err != nil {
		return nil, fmt.Errorf("encode file signature: %w", err)
	}
	b, err := json.Marshal(&trustFile{Payload: payload, Signature: key.Sign(use, payload)})
	if err != nil {
		return nil, fmt.Errorf("encode file signature: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseFileSignature reads a file signature and verifies that the key in it
// made it. Whose key that is, and whether he may, is for the caller to know.
func ParseFileSignature(b []byte) (FileSignature, error) { return parseFileSignature(b, UseFile) }

// ParseBackupSignature is ParseFileSignature for the end of a backup.
func ParseBackupSignature(b []byte) (FileSignature, error) { return parseFileSignature(b, UseBackup) }

func parseFileSignature(b []byte, use Use) (FileSignature, error) {
	if len(b) > MaxFileSignature {
		return FileSignature{}, fleet.Errorf(fleet.TooLarge, "a file signature of over %d bytes", MaxFileSignature)
	}
	var file trustFile
	if err := wire.StrictJSON(b, &file); err != nil {
		return FileSignature{}, fleet.Errorf(fleet.Invalid, "this is not a file signature: %w", err)
	}
	var p fileSignaturePayload
	if err := wire.StrictJSON(file.Payload, &p); err != nil {
		return FileSignature{}, fleet.Errorf(fleet.Invalid, "this is not a file signature: %w", err)
	}
	if p.Format != 1 {
		return FileSignature{}, fleet.Errorf(fleet.Invalid, "a file signature of format %d: this release knows format 1", p.Format)
	}
	s := FileSignature{Operator: fleet.OperatorName(p.Operator), Size: p.Size, Made: p.Made}
	if len(p.Key) != len(s.Key) {
		return FileSignature{}, fleet.Errorf(fleet.Invalid, "the key of the file signature has %d bytes", len(p.Key))
	}
	s.Key = fleet.PublicKey(p.Key)
	var err error
	if s.Fleet, err = fleet.ParseID(p.Fleet); err != nil {
		return FileSignature{}, err
	}
	digest, err := hex.DecodeString(p.Digest)
	if err != nil || len(digest) != len(s.Digest) || hex.EncodeToString(digest) != p.Digest {
		return FileSignature{}, fleet.Errorf(fleet.Invalid, "the digest of the file signature is not a SHA-256 in lower-case hex")
	}
	s.Digest = fleet.Digest(digest)
	if err := s.check(); err != nil {
		return FileSignature{}, err
	}
	if !Verify(s.Key, use, file.Payload, file.Signature) {
		return FileSignature{}, fleet.Errorf(fleet.Unauthenticated, "the signature is not that of the key that it names")
	}
	return s, nil
}

func (s *FileSignature) check() error {
	if s.Key.IsZero() {
		return fleet.Errorf(fleet.Invalid, "a file signature without a key")
	}
	if _, err := fleet.ParseID(string(s.Fleet)); err != nil {
		return err
	}
	if _, err := fleet.ParseOperatorName(string(s.Operator)); err != nil {
		return err
	}
	if s.Size < 0 || s.Made < 0 {
		return fleet.Errorf(fleet.Invalid, "a file signature with a negative size or time")
	}
	return nil
}
