package service

// Open finds the service manager of this host.
func Open() (Manager, error) {
	s, err := openSystemd("", runCommand)
	if err != nil {
		return nil, err
	}
	return s, nil
}
