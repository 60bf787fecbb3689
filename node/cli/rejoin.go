package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/service"
)

// rejoin renews the certificate of a host that was off until it ended.
func (e *env) rejoin(c *cli.Context) error {
	if c.IsSet("token-file") || c.IsSet("node-name") {
		return usagef("--rejoin keeps the host's key and name: it takes neither --token-file nor --node-name").
			withHint("a new node needs an empty --data-dir: fleet join --token-file FILE")
	}
	addresses, err := checkAddresses("ADDRESS", c.Args().Slice())
	if err != nil {
		return err
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	e.sent = true
	r, err := enrol.RejoinHost(c.Context, enrol.RejoinOptions{
		DataDir: cfg.DataDir, Addresses: addresses, Now: e.now, Dial: e.dial,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "fleet  %s  %s\n", escapeCell(r.Name), r.Fleet)
	fmt.Fprintf(e.out, "node        %s  %s  has a certificate of today\n", escapeCell(r.NodeName), r.Node)
	for _, warning := range r.Warnings {
		e.warningLines([]fleet.Warning{{Message: warning}})
	}
	if c.Bool("foreground") {
		return e.runAgent(c.Context, cfg, service.NewNotifier(e.getenv))
	}
	fmt.Fprintf(e.out, "start  %s\n", agentHint(c, cfg))
	return nil
}
