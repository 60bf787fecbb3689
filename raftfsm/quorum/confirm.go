//go:build !planted_noverify

package quorum

// confirm asks the followers whether this host still leads.
func (q *Quorum) confirm() error { return q.wait(q.raft.VerifyLeader) }
