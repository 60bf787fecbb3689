//go:build !linux && !darwin

package quorum

// checkClosed leaves it to bbolt to find that another process has the store
// open.
func checkClosed(string) error { return nil }
