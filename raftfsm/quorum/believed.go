//go:build !planted_ignoreio

package quorum

// believed is what is made of a store's answer: an error is an error.
func believed(err error) error { return err }
