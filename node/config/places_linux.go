package config

// Places that are used unless another is said.
const (
	DefaultFile    = "/etc/fleet/fleet.yaml"
	DefaultDataDir = "/var/lib/fleet"
	DefaultSocket  = "/run/fleet/fleet.sock"

	maxSocketPath = 107 // sun_path, less its zero byte
)
