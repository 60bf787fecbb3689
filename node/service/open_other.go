//go:build !linux

package service

import (
	"runtime"

	"fleet/node/fleet"
)

// Open finds the service manager of this host.
func Open() (Manager, error) {
	return nil, fleet.Errorf(fleet.Unavailable, "fleet has no service for %s in this release", runtime.GOOS).
		WithHint("--foreground runs the agent in this terminal; --enroll-only stops after enrolling (then: fleet agent)")
}
