package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/ssm"
)

// paceFlags are the limits of how many hosts run a command at once, and of how
// many may fail.
func paceFlags(unless string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "concurrency",
			Usage: "run it on `N` hosts at once, or on N% of them, one after another as they end (default " + unless + ")"},
		&cli.StringFlag{Name: "max-errors",
			Usage: "begin nowhere any more when more than `N` hosts, or N% of them, have failed; 0 stops at the first (default " + unless + ")"},
	}
}

// paceOf puts the limits of the command line into a request. Without a flag the
// limits of old hold.
func paceOf(c *cli.Context, req *ssm.SendCommandRequest, oldConcurrency, oldErrors string) error {
	req.MaxConcurrency, req.MaxErrors = oldConcurrency, oldErrors
	if c.IsSet("concurrency") {
		req.MaxConcurrency = c.String("concurrency")
		if fleet.CheckConcurrency(req.MaxConcurrency) != nil {
			return usagef("--concurrency %q is neither a number of hosts from 1 on nor 1%% to 100%% of them", req.MaxConcurrency).
				withHint("for example 10, or 25%%")
		}
	}
	if c.IsSet("max-errors") {
		req.MaxErrors = c.String("max-errors")
		if fleet.CheckMaxErrors(req.MaxErrors) != nil {
			return usagef("--max-errors %q is neither a number of hosts nor 0%% to 100%% of them", req.MaxErrors).
				withHint("for example 0, to stop at the first error, or 10%%")
		}
	}
	return nil
}

// paceText says what limits mean for so many hosts; nothing where they have no
// effect.
func paceText(concurrency, maxErrors string, hosts int) string {
	if concurrency == "" || maxErrors == "" {
		return ""
	}
	c := fleet.Command{MaxConcurrency: concurrency, MaxErrors: maxErrors, Targets: make([]fleet.NodeID, hosts)}
	if !c.Staged() {
		return ""
	}
	atOnce, errors := c.Limits()
	text := fmt.Sprintf("at most %d at once", atOnce)
	if atOnce == hosts {
		text = "all at once when the first ones have begun"
	}
	switch {
	case errors >= hosts-1:
		return text + ", whatever fails"
	case errors == 0:
		return text + ", until one fails"
	}
	return fmt.Sprintf("%s, until %d fail", text, errors+1)
}
