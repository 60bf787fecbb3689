package config

// Places that are used unless another is said. macOS keeps the state of its own
// daemons in /var/db; /Library/Application Support is for applications, and its
// space breaks the scripts of whoever forgets to quote it.
const (
	DefaultFile    = "/etc/fleet/fleet.yaml"
	DefaultDataDir = "/var/db/fleet"
	DefaultSocket  = "/var/run/fleet/fleet.sock"

	maxSocketPath = 103 // sun_path, less its zero byte
)
