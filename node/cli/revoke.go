package cli

import (
	"flag"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
)

// revocable says which command revokes a kind of thing.
var revocable = []struct {
	kind, does string
	action     func(e *env, c *cli.Context) error
}{
	{"node", "fleet node rm", (*env).nodeRm},
	{"operator", "fleet operator rm", (*env).operatorRm},
	{"activation", "fleet activation rm", (*env).activationRm},
}

func (e *env) revokeCommand() *cli.Command {
	kinds := make([]string, 0, len(revocable))
	for _, r := range revocable {
		kinds = append(kinds, r.kind)
	}
	return leaf(&cli.Command{
		Name: "revoke", Category: categoryNouns, ArgsUsage: strings.Join(kinds, "|") + " NAME...", Usage: "end what a key may, everywhere",
		Description: `The key of a host, an operator or an activation never counts again. Open
connections and streams end within 30 seconds on every host: of a removed host
also those over which it spoke Raft or was called, of an operator also the one
that he uses at the moment.

A host that votes is taken out of the quorum first, which the root key has to
sign: "fleet quorum replace OLD NEW --compromised". It is the same as "fleet node
rm", "fleet operator rm" and "fleet activation rm".

Examples:
  fleet revoke node web7
  fleet revoke operator ada@laptop --yes

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(yesFlag("do not ask"), outputFlag(), clientFlags(), timeoutFlag()),
	}, 2, -1, e.revoke)
}

func (e *env) revoke(c *cli.Context) error {
	kind := c.Args().First()
	for _, r := range revocable {
		if r.kind == strings.ToLower(kind) {
			return r.action(e, withoutFirst(c))
		}
	}
	if kind == fleet.RoleNameVoter || kind == "quorum" {
		return usagef("a voter is taken out of the quorum, with the root key").withHint("fleet quorum replace OLD NEW --compromised --root-key FILE")
	}
	return usagef("%q cannot be revoked", kind).withHint("one of node, operator, activation")
}

// withoutFirst is the same call without its first argument.
func withoutFirst(c *cli.Context) *cli.Context {
	set := flag.NewFlagSet(c.Command.Name, flag.ContinueOnError)
	_ = set.Parse(append([]string{"--"}, c.Args().Tail()...)) // there are no flags in it
	rest := cli.NewContext(c.App, set, c)
	rest.Command = c.Command
	return rest
}
