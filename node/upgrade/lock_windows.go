package upgrade

import "fleet/node/fleet"

// lock is not there: no service of Windows has a guard yet (service.Keeper).
func lock(string) (func() error, error) {
	return nil, fleet.Errorf(fleet.Unavailable, "upgrades by the fleet are not for Windows in this release")
}

func syncDir(string) error { return nil }
