// Command fleet manages hosts from any of them.
package main

import (
	"os"
	"runtime/debug"

	"fleet/node/cli"
)

// version is set by the linker (-X main.version=...); without it the build
// information says what it knows.
var version string

func main() { os.Exit(cli.Main(os.Args, buildVersion())) }

func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "unversioned"
}
