//go:build planted_ignoreio

package quorum

// A planted bug: a disk that fails now may work the next time.
func believed(err error) error {
	if err != nil && isNotFound(err) {
		return err
	}
	return nil
}
