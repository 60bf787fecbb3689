package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) quorumCommand() *cli.Command {
	return &cli.Command{
		Name: "quorum", Category: categoryNouns, Usage: "the hosts that decide",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list", "show"}, Usage: "list voters and eligible hosts",
				Description: `Example:
  fleet quorum ls --stale

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.quorumLs),
			leaf(&cli.Command{
				Name: "add", ArgsUsage: "NODE...", Usage: "make hosts voters",
				Description: `It runs where the root key is. Each host's request is fetched and its
fingerprint shown: compare it with the one that "fleet status" shows on that
host. No private key travels. One, three or five hosts vote; of an even number
the last stays eligible until another joins it.

Example:
  fleet quorum add host2 host3 --root-key /media/usb/acme.key

The passphrase of the root key, if it has one, is asked for, or read from the
file that FLEET_ROOT_PASSPHRASE_FILE names.

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{
					&cli.StringFlag{Name: "root-key", Usage: "`FILE` with the fleet's root key"},
					&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask whether the fingerprints are right"},
				}, outputFlag(), clientFlags(), timeoutFlag()),
			}, 1, -1, e.quorumAdd),
		},
	}
}

func (e *env) quorumLs(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	return e.printQuorum(c, api)
}

func (e *env) printQuorum(c *cli.Context, api *client.Client) error {
	q, err := readAnyway[fleet.DescribeQuorumResult](c, api, "DescribeQuorum", fleet.DescribeQuorumRequest{})
	if q == nil {
		return err
	}
	var ids []string
	for _, m := range q.Members {
		ids = append(ids, string(m.InstanceId))
	}
	printErr := e.print(c, result{value: q, names: ids, table: func(w io.Writer) {
		slices.SortFunc(q.Members, func(a, b fleet.QuorumMember) int { return naturalCompare(a.Name, b.Name) })
		t := newTable("NAME", "ID", "ROLE", "ANSWERS", "APPLIED", "ADDRESS", "FINGERPRINT")
		for _, m := range q.Members {
			answers := "no"
			if m.Reachable {
				answers = "yes"
			}
			t.add(m.Name, string(m.InstanceId), roleText(m.Role, m.Leader), answers, fmt.Sprint(m.AppliedIndex),
				m.Address, m.Fingerprint)
		}
		t.write(w)
		fmt.Fprintf(e.err, "%s to sign a ticket; trust version %d\n", count(q.Threshold, "voter"), q.TrustVersion)
	}})
	return errors.Join(err, printErr)
}

func (e *env) quorumAdd(c *cli.Context) error {
	if c.String("root-key") == "" {
		return usagef("which root key?").withHint("--root-key FILE, the file that \"fleet init\" wrote")
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	file, root, err := identity.OpenRootKeyFile(c.String("root-key"), e.passphrase)
	var path *fs.PathError
	if errors.As(err, &path) {
		return fleet.Errorf(fleet.NotFound, "--root-key: %w", path).WithHint("the file that \"fleet init\" wrote, on the media where it is kept")
	}
	if err != nil {
		return err
	}
	if file.Fleet != api.Fleet() {
		return fleet.Errorf(fleet.Invalid, "%s is the root key of the fleet %s, not of %s", file.Path, file.Name, api.FleetName())
	}
	plan, names, err := planVoters(c, api, file, root.Public(), c.Args().Slice())
	if err != nil {
		return err
	}
	e.showPlan(plan, names)
	if !c.Bool("yes") {
		if err := e.confirm("Are these the fingerprints that \"fleet status\" shows on those hosts?"); err != nil {
			return err
		}
	}
	req, err := plan.Sign(root, file, e.now())
	if err != nil {
		return err
	}
	var added fleet.AddVotersResult
	if err := api.Call(c.Context, "AddVoters", req, &added); err != nil {
		return err
	}
	if len(plan.Eligible) > 0 {
		fmt.Fprintf(e.err, "eligible: %s; one more host makes a quorum of %d: fleet quorum add NODE --root-key %s\n",
			escapeCell(nameList(plan.Eligible, names)), len(plan.Voters)+2, file.Path)
	}
	return e.printQuorum(c, api)
}

// planVoters fetches the requests of the named hosts and of those that an
// earlier call left eligible, verifies them and decides who will vote.
func planVoters(c *cli.Context, api *client.Client, file *identity.RootKeyFile, root fleet.PublicKey,
	named []string) (*enrol.VoterPlan, map[fleet.NodeID]string, error) {
	var current fleet.GetTrustResult
	if err := api.Call(c.Context, "GetTrust", fleet.GetTrustRequest{}, &current); err != nil {
		return nil, nil, err
	}
	trust, err := identity.ParseTrust(current.Trust, root)
	if err != nil {
		return nil, nil, err
	}
	// One more than committed was signed by a call that failed on its way; two
	// more means that this quorum shows an old version.
	if file.LastTrust > trust.Version+1 {
		return nil, nil, fleet.Errorf(fleet.Conflict,
			"the fleet shows version %d of trust.json, this root key has signed version %d", trust.Version, file.LastTrust).
			WithHint("the host that answers may be old or not honest: ask another with --connect IP:PORT")
	}
	ids := slices.Clone(current.Eligible)
	for _, name := range named {
		n, err := oneNode(c, api, name, true)
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(trust.Voters, func(v identity.TrustVoter) bool { return v.Node == n.InstanceId }) {
			return nil, nil, fleet.Errorf(fleet.Conflict, "%s votes already", name)
		}
		if !slices.Contains(ids, n.InstanceId) {
			ids = append(ids, n.InstanceId)
		}
	}
	all, err := describeNodes(c, api, fleet.DescribeNodesRequest{Brief: true})
	if err != nil {
		return nil, nil, err
	}
	names, keys := map[fleet.NodeID]string{}, map[fleet.NodeID]fleet.PublicKey{}
	for _, n := range all {
		names[n.InstanceId] = n.Name
		if len(n.PublicKey) == len(fleet.PublicKey{}) {
			keys[n.InstanceId] = fleet.PublicKey(n.PublicKey)
		}
	}
	var candidates [][]byte
	for _, id := range ids {
		var candidate fleet.GetCandidateResult
		if err := api.Call(c.Context, "GetCandidate", fleet.GetCandidateRequest{InstanceId: id}, &candidate); err != nil {
			return nil, nil, err
		}
		candidates = append(candidates, candidate.Candidate)
	}
	plan, err := enrol.PlanVoters(trust, candidates, func(id fleet.NodeID) (fleet.PublicKey, error) {
		// The ID is a hash of the key: what the fleet says cannot be another's.
		key, ok := keys[id]
		if !ok || fleet.NodeIDOf(key) != id || !slices.Contains(ids, id) {
			return key, fleet.Errorf(fleet.Unauthenticated, "the fleet sent the request of %s, which was not asked for", id)
		}
		return key, nil
	})
	return plan, names, err
}

func (e *env) showPlan(plan *enrol.VoterPlan, names map[fleet.NodeID]string) {
	t := newTable("NAME", "ID", "WILL BE", "FINGERPRINT")
	for _, candidate := range plan.Candidates {
		will := fleet.RoleNameVoter
		if slices.Contains(plan.Eligible, candidate.Node) {
			will = fleet.RoleNameEligible
		}
		t.add(names[candidate.Node], string(candidate.Node), will, candidate.Quorum.Fingerprint())
	}
	t.write(e.err)
	fmt.Fprintf(e.err, "voters then: %s\n", escapeCell(nameList(plan.Voters, names)))
}

func nameList(ids []fleet.NodeID, names map[fleet.NodeID]string) string {
	all := make([]string, 0, len(ids))
	for _, id := range ids {
		all = append(all, firstOf(names[id], string(id)))
	}
	slices.SortFunc(all, naturalCompare)
	return strings.Join(all, ", ")
}
