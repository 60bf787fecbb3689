package cli

import (
	"fmt"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"

	"fleet/node/enrol"
	"fleet/node/upgrade"
)

type versionResult struct {
	Version  string `json:"Version"`
	Go       string `json:"Go"`
	Platform string `json:"Platform"`

	// DataDirs are the formats of the data directory that this program reads: a
	// host asks a new program for them before it gets its place.
	DataDirs []string `json:"DataDirs"`
}

func (e *env) versionCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "version", Category: categoryHost, Usage: "say which version this is",
		Description: `Example:
  fleet version -o json

Exit codes: 0 done, 64 usage`,
		Flags: outputFlag(),
	}, 0, 0, func(c *cli.Context) error {
		v := versionResult{Version: e.version, Go: runtime.Version(), Platform: upgrade.ThisPlatform(), DataDirs: []string{enrol.Format}}
		return e.print(c, result{
			value: v, names: []string{v.Version},
			table: func(w io.Writer) { fmt.Fprintf(w, "fleet %s (%s, %s)\n", v.Version, v.Go, v.Platform) },
		})
	})
}
