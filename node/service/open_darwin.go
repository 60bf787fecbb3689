package service

// Place is where the service's program lies.
const Place = launchdProgram

// Open finds the service manager of this host.
func Open() (Manager, error) { return &launchd{run: runCommand}, nil }

// commandEnv is the environment of a program of the system.
func commandEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}
