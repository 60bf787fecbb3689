//go:build planted_late

package runcmd

import "time"

// A planted bug: what waited for its turn starts, however long that took.
func inTime(time.Time, int64) bool { return true }
