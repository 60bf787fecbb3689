//go:build planted_onesignature

package ticket

import "fleet/node/identity"

// A planted bug: one stolen voter is root everywhere.
func needed(*identity.Trust) int { return 1 }
