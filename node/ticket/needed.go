//go:build !planted_onesignature

package ticket

import "fleet/node/identity"

// needed is how many voters must sign a ticket. ThresholdFor guards against a
// Trust that nobody validated: k = 0 would accept a ticket that nobody signed.
func needed(t *identity.Trust) int { return max(t.K, identity.ThresholdFor(len(t.Voters))) }
