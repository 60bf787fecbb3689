//go:build !planted_onemore

package raftfsm

import "fleet/node/fleet"

// places is how many targets of a command may be at work at once.
func places(c *fleet.Command) int {
	concurrency, _ := c.Limits()
	return concurrency
}
