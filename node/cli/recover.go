package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) quorumRecoverCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "recover", Usage: "make one voter decide alone, when the others are lost",
		Description: `For a fleet that can decide nothing any more because too many voters are gone for
good. It runs on a voter that is left, as root, with its agent stopped, where
the root key is. If several are left, choose the one with the highest index.

What this host's log holds counts from then on, also what no majority ever had;
what only the others had is lost. The fleet enters a new epoch, in which this
host alone votes and one signature makes a ticket, until others are made voters
again. The lost ones are fenced off: if they come back, no host believes them,
and they say so; "fleet quorum add" makes them voters again, with new keys.

It is refused while so many others answer that there is a quorum: a recovery
would make two fleets of one. --force does it all the same, and also from a host
that was away when the quorum changed last.

Example:
  systemctl stop fleet
  fleet quorum recover --root-key /media/usb/acme.key
  systemctl start fleet
  fleet quorum add host2 host3 --root-key /media/usb/acme.key

The passphrase of the root key, if it has one, is asked for, or read from the
file that FLEET_ROOT_PASSPHRASE_FILE names.

Exit codes: 0 done, 1 it failed and nothing changed, 64 usage`,
		Flags: flags([]cli.Flag{
			rootKeyFlag(),
			&cli.BoolFlag{Name: "force", Usage: "also if other voters answer, or this host is behind"},
		}, yesFlag("do not ask"), []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "`FILE` instead of " + config.DefaultFile},
			&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with the host's data (default: the configuration's)"},
		}, outputFlag()),
	}, 0, 0, e.quorumRecover)
}

func (e *env) quorumRecover(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	file, root, err := e.openRootKey(c)
	if err != nil {
		return err
	}
	done, err := enrol.RecoverFleet(c.Context, enrol.RecoverOptions{
		DataDir: cfg.DataDir, Root: root, File: file, Force: c.Bool("force"), Now: e.now, Dial: e.dial,
		Confirm: func(r *enrol.Recoverable) error {
			e.showRecoverable(r)
			if c.Bool("yes") {
				return nil
			}
			return e.confirm(fmt.Sprintf("Make %s the only voter of the fleet %s?", r.NodeName, r.Fleet))
		},
	})
	if err != nil {
		return err
	}
	return e.recovered(c, cfg, file, done)
}

// recovered says what was done, and what comes next.
func (e *env) recovered(c *cli.Context, cfg *config.Config, file *identity.RootKeyFile, done *enrol.Recovered) error {
	return e.print(c, result{value: done, names: []string{string(done.Node)}, table: func(w io.Writer) {
		fmt.Fprintf(w, "%s votes alone, in epoch %d, trust version %d\n", escapeCell(done.NodeName), done.Epoch, done.TrustVersion)
		fmt.Fprintf(w, "start  %s\n", agentHint(c, cfg))
		fmt.Fprintf(w, "then   fleet quorum add NODE NODE --root-key %s\n", escapeCell(file.Path))
	}})
}

// showRecoverable says what counts from now on and what may be lost.
func (e *env) showRecoverable(r *enrol.Recoverable) {
	written := "at a time that is not known"
	if !r.Written.IsZero() {
		written = fmt.Sprintf("made at %s, %s ago", r.Written.UTC().Format(time.RFC3339), e.now().Sub(r.Written).Round(time.Second))
	}
	fmt.Fprintf(e.err, "newest entry here  %d, %s\n", r.Index, written)
	fmt.Fprintf(e.err, "other voters       %s\n", escapeCell(voterStates(r.Voters)))
	e.warningLines([]fleet.Warning{{
		Message: "what the others decided after that entry is lost, if they decided anything; what this host has counts, also if no majority ever had it",
	}, aloneWarning(r)})
}

// aloneWarning is what it means that one host votes.
func aloneWarning(r *enrol.Recoverable) fleet.Warning {
	return fleet.Warning{
		Message: fmt.Sprintf("from then on %s alone decides and signs, in epoch %d: one stolen host is enough to make every host run something, until three hosts vote", r.NodeName, r.Epoch),
	}
}

// voterStates is the other voters, and whether they run.
func voterStates(voters []enrol.RecoverableVoter) string {
	var gone []string
	for _, v := range voters {
		state := "does not answer"
		if v.Answered {
			state = "ANSWERS"
		}
		gone = append(gone, fmt.Sprintf("%s (%s)", v.Name, state))
	}
	return strings.Join(gone, ", ")
}
