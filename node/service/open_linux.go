package service

// Place is where the service's program lies.
const Place = ProgramPath

// Open finds the service manager of this host.
func Open() (Manager, error) {
	s, err := openSystemd("", runCommand)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// commandEnv is the environment of a program of the system.
func commandEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="}
}
