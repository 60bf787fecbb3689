//go:build failpoints && unix

package cli

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"fleet/node/failpoint"
	"fleet/node/fleet"
)

// failpoints is a program that a test can end at an exact step: the directory
// FLEET_FAILPOINTS holds a file with the name of a point, and in it the number
// of the process that gets SIGKILL when this one is there. The first to be there
// takes the file, by renaming it to NAME.hit. One that ends itself goes no
// further.
func failpoints() failpoint.Hook {
	dir := os.Getenv("FLEET_FAILPOINTS")
	if dir == "" {
		return nil
	}
	return func(p failpoint.Point, _ fleet.CommandID) {
		file := filepath.Join(dir, string(p))
		if p == "" || os.Rename(file, file+".hit") != nil {
			return
		}
		b, err := os.ReadFile(file + ".hit")
		if err != nil {
			return
		}
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			return
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended before
		if pid == os.Getpid() {
			select {}
		}
	}
}
