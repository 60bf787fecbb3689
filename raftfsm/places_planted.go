//go:build planted_onemore

package raftfsm

import "fleet/node/fleet"

// A planted bug: off by one.
func places(c *fleet.Command) int {
	concurrency, _ := c.Limits()
	return concurrency + 1
}
