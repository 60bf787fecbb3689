//go:build !planted_late

package runcmd

import "time"

// inTime reports whether what was to start by a stamp may still start.
func inTime(now time.Time, startBy int64) bool { return now.UnixNano() <= startBy }
