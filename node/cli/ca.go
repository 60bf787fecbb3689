package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) caCommand() *cli.Command {
	return &cli.Command{
		Name: "ca", Category: categoryNouns, Usage: "the keys that sign hosts' certificates",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "status", Aliases: []string{"ls", "list", "show"}, Usage: "list the issuing keys that count",
				Description: `Each voter has one; what it signed counts while trust.json names it. A key that
was taken out of use counts until the date that is shown, so that hosts have time
to renew.

Example:
  fleet ca status

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.caStatus),
			leaf(&cli.Command{
				Name: "rotate", Usage: "have the voters issue with new keys",
				Description: `Each voter makes another issuing key, which the root key certifies; no private
key travels. What the old ones signed counts for 7 more days, in which every host
that is on renews by itself. A host that was off for longer renews with
"fleet join --rejoin", or by itself when it hears from a voter.

Example:
  fleet ca rotate --root-key /media/usb/acme.key

` + rootKeyHelp,
				Flags: flags([]cli.Flag{rootKeyFlag()}, yesFlag("do not ask"), outputFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.caRotate),
		},
	}
}

// issuingKey is one issuing key as it is shown.
type issuingKey struct {
	InstanceId  fleet.NodeID  `json:"InstanceId"`
	Name        string        `json:"Name"`
	Fingerprint string        `json:"Fingerprint"`
	Until       fleet.Instant `json:"Until,omitempty"` // absent for one that is in use
}

func (e *env) caStatus(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	var current fleet.GetTrustResult
	if err := api.Call(c.Context, "GetTrust", fleet.GetTrustRequest{}, &current); err != nil {
		return err
	}
	root, err := identity.VerifyRoot(current.RootCertificate, api.Fleet())
	if err != nil {
		return err
	}
	trust, err := identity.ParseTrust(current.Trust, root)
	if err != nil {
		return err
	}
	nodes, err := describeNodes(c, api, fleet.DescribeNodesRequest{Brief: true})
	if err != nil {
		return err
	}
	return e.printIssuers(c, trust, (&rooted{nodes: nodes}).names())
}

func (e *env) printIssuers(c *cli.Context, trust *identity.Trust, names map[fleet.NodeID]string) error {
	keys := []issuingKey{}
	ids := []string{}
	for _, i := range trust.Issuers {
		k := issuingKey{InstanceId: i.Node, Name: firstOf(names[i.Node], string(i.Node)), Fingerprint: i.Key.Fingerprint()}
		if i.Until != 0 {
			k.Until = fleet.InstantOf(i.Until)
		}
		keys, ids = append(keys, k), append(ids, k.Fingerprint)
	}
	return e.print(c, result{value: keys, names: ids, table: func(w io.Writer) {
		t := newTable("NAME", "ID", "KEY", "COUNTS")
		for n, i := range trust.Issuers {
			counts := "in use"
			if until := time.Unix(0, i.Until); i.Until != 0 {
				counts = "until " + until.UTC().Format(time.RFC3339)
				if until.Before(e.now()) {
					counts = "no more"
				}
			}
			t.add(keys[n].Name, string(i.Node), keys[n].Fingerprint, counts)
		}
		t.write(w)
	}})
}

func (e *env) caRotate(c *cli.Context) error {
	r, err := e.openRooted(c)
	if err != nil {
		return err
	}
	defer r.api.Close()
	var ids []fleet.NodeID
	for _, v := range r.trust.Voters {
		ids = append(ids, v.Node)
	}
	candidates, err := r.candidates(ids, true)
	if err != nil {
		return err
	}
	plan, err := enrol.PlanRotation(r.trust, candidates, r.keys(ids), e.now())
	if err != nil {
		return err
	}
	if !c.Bool("yes") {
		if err := e.confirm(fmt.Sprintf("Give the %s of the fleet %s new issuing keys?", count(len(ids), "voter"), r.api.FleetName())); err != nil {
			return err
		}
	}
	if _, err := e.decideQuorum(r, plan, false); err != nil {
		return err
	}
	var after fleet.GetTrustResult
	if err := r.api.Call(c.Context, "GetTrust", fleet.GetTrustRequest{}, &after); err != nil {
		return err
	}
	trust, err := identity.ParseTrust(after.Trust, r.root.Public())
	if err != nil {
		return err
	}
	return e.printIssuers(c, trust, r.names())
}
