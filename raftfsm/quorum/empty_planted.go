//go:build planted_emptystore

package quorum

import "os"

// A planted bug: an empty raft.db is a new one, as bbolt thinks.
func emptyIsNew(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() == 0
}
