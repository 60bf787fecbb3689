//go:build planted_unsignedresult

package dispatch

import (
	"fleet/node/fleet"
	"fleet/node/ticket"
)

// A planted bug: the connection is believed, and whoever is in between.
func vouched(*ticket.SignedResult, fleet.PublicKey) error { return nil }
