//go:build !planted_emptystore

package quorum

// emptyIsNew says whether an empty raft.db may be taken for a new one: never.
// bbolt would, and what this host has acknowledged would be gone.
func emptyIsNew(string) bool { return false }
