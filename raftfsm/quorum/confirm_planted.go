//go:build planted_noverify

package quorum

// A planted bug: who led a moment ago leads.
func (q *Quorum) confirm() error { return nil }
