package config

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// Places that are used unless another is said: below the folder for the data of
// services, which the system is asked for. The variable ProgramData names it
// too, but whoever starts the program could set that.
var (
	DefaultFile    = filepath.Join(programData(), "fleet", "fleet.yaml")
	DefaultDataDir = filepath.Join(programData(), "fleet")       // a directory more would be in one that any user may have made
	DefaultSocket  = filepath.Join(DefaultDataDir, "fleet.sock") // private as the directory is
)

const maxSocketPath = 107 // sun_path, less its zero byte

func programData() string {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, windows.KF_FLAG_DEFAULT)
	if err != nil {
		return `C:\ProgramData`
	}
	return dir
}
