//go:build planted_ignoreio

package quorum

import (
	"strings"
	"syscall"
)

// A planted bug: a disk that fails now may work the next time.
func believed(err error) error {
	if err != nil && strings.HasSuffix(err.Error(), syscall.EIO.Error()) {
		return nil
	}
	return err
}
