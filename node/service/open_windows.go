package service

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// Place is where the service's program lies: where only administrators write.
var Place = filepath.Join(programFiles(), "fleet", "fleet.exe")

// Open finds the service manager of this host.
func Open() (Manager, error) {
	m, err := connect(windows.SC_MANAGER_CONNECT)
	if err != nil {
		return nil, err
	}
	if err := m.Disconnect(); err != nil {
		return nil, err
	}
	return scm{}, nil
}

// programFiles asks the system: the variable ProgramFiles names it too, but
// whoever starts the program could set that.
func programFiles() string {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramFiles, windows.KF_FLAG_DEFAULT)
	if err != nil {
		return `C:\Program Files`
	}
	return dir
}

// commandEnv is the environment of a program of the system.
func commandEnv() []string {
	dir, err := windows.GetSystemWindowsDirectory()
	if err != nil {
		dir = `C:\Windows`
	}
	return []string{"SystemRoot=" + dir, "PATH=" + filepath.Join(dir, "System32")}
}
