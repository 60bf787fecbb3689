//go:build !planted_nowaitdelay

package process

import "time"

// patienceOf is how long others than the child may hold its output open.
func patienceOf(spec Spec) time.Duration { return spec.Drain }
