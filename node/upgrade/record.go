package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// RecordFile is the name of the record in the data directory.
const RecordFile = "upgrade.json"

const (
	recordVersion = 1
	maxRecord     = 16 << 10
	maxReason     = 1 << 10
)

// Stage is how far an upgrade of this host is.
type Stage string

// Stages. Pending is from before the programs are exchanged until one of the
// two that judge has spoken; the others are final.
const (
	Pending Stage = "pending"
	Done    Stage = "done" // the new program confirmed itself
	Back    Stage = "back" // the old program is in its place again
)

// Build names one program on this host.
type Build struct {
	Version string `json:"version"`
	Digest  string `json:"sha256"`
}

// Record is what this host wrote down of its last upgrade. It stays until the
// next one: the result of the command is read from it, however often the agent
// was started in between.
type Record struct {
	Format   int             `json:"format"` // 1
	Command  fleet.CommandID `json:"command"`
	Attempt  uint32          `json:"attempt"`
	From     Build           `json:"from"`
	To       Build           `json:"to"`
	Program  string          `json:"program"`  // path in whose place both lie
	Previous string          `json:"previous"` // path of the old one
	Stage    Stage           `json:"stage"`
	Began    int64           `json:"began"`           // Unix seconds, by this host's clock
	Ended    int64           `json:"ended,omitempty"` // when Stage became final
	Healthy  int             `json:"healthy_within"`  // seconds
	Tries    int             `json:"tries"`           // starts of the new program while Pending
	Quorum   bool            `json:"quorum"`          // the old program had a part in the quorum: so must the new
	Reason   string          `json:"reason,omitempty"`
}

// ParseRecord reads a record.
func ParseRecord(b []byte) (*Record, error) {
	if len(b) > maxRecord {
		return nil, fleet.Errorf(fleet.TooLarge, "the record of the last upgrade has over %d bytes", maxRecord)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade cannot be read: %w", err)
	}
	if head.Format != recordVersion {
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade has format %d; this program reads format %d", head.Format, recordVersion)
	}
	var r Record
	if err := wire.StrictJSON(b, &r); err != nil {
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade cannot be read: %w", err)
	}
	switch r.Stage {
	case Pending, Done, Back:
	default:
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade has stage %.20q", r.Stage)
	}
	if _, err := fleet.ParseCommandID(string(r.Command)); err != nil {
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade: %w", err)
	}
	for _, b := range []Build{r.From, r.To} {
		if _, err := fleet.ParseDigest(b.Digest); err != nil {
			return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade: %w", err)
		}
	}
	if !filepath.IsAbs(r.Program) || !filepath.IsAbs(r.Previous) || r.Program == r.Previous {
		return nil, fleet.Errorf(fleet.Corrupt, "the record of the last upgrade names no two programs")
	}
	return &r, nil
}

// Encode is the record as it is written.
func (r *Record) Encode() ([]byte, error) {
	r.Format = recordVersion
	r.Reason = cut(r.Reason, maxReason)
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode record of the upgrade: %w", err)
	}
	return append(b, '\n'), nil
}

// Load reads the record of a data directory; nil when there is none.
func Load(dir string) (*Record, error) {
	f, err := os.Open(filepath.Join(dir, RecordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of the upgrade: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read record of the upgrade: %w", err)
	}
	return ParseRecord(b)
}

// save writes the record so that it is whole at every moment.
func save(dir string, r *Record) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, RecordFile+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write record of the upgrade: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, filepath.Join(dir, RecordFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write record of the upgrade: %w", err)
	}
	return nil
}

// update changes the record under the lock that the agent and the guard share.
// f is given nil when there is none; nothing is written when it answers false.
func update(dir string, f func(*Record) (*Record, bool, error)) (err error) {
	unlock, err := lock(filepath.Join(dir, RecordFile+".lock"))
	if err != nil {
		return fmt.Errorf("lock record of the upgrade: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	r, err := Load(dir)
	if err != nil {
		return err
	}
	r, write, err := f(r)
	if err != nil || !write {
		return err
	}
	return save(dir, r)
}

// Confirm says that the new program is well. It reports false when the old one
// was put back before.
func Confirm(dir string, to fleet.Digest, now time.Time) (confirmed bool, err error) {
	err = update(dir, func(r *Record) (*Record, bool, error) {
		if r == nil || r.To.Digest != to.String() {
			return r, false, nil
		}
		confirmed = r.Stage != Back
		if r.Stage != Pending {
			return r, false, nil
		}
		r.Stage, r.Ended, r.Reason = Done, now.Unix(), ""
		return r, true, nil
	})
	return confirmed, err
}

// cut shortens text to n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
