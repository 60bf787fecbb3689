//go:build planted_nowaitdelay

package process

import "time"

// A planted bug: a grandchild that keeps the pipe keeps the command.
func patienceOf(Spec) time.Duration { return 65 * time.Second }
