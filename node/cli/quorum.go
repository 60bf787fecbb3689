package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
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

` + rootKeyHelp,
				Flags: flags([]cli.Flag{rootKeyFlag()}, yesFlag("do not ask whether the fingerprints are right"), outputFlag(), clientFlags(), timeoutFlag()),
			}, 1, -1, e.quorumAdd),
			leaf(&cli.Command{
				Name: "remove", Aliases: []string{"rm", "delete"}, ArgsUsage: "NODE...", Usage: "take hosts out of the quorum",
				Description: `The host votes no more, its quorum certificate counts nowhere, and it goes on as
an ordinary host. A leader hands over first. What its issuing key certified
counts for 7 more days, in which the hosts renew; with --compromised for no
second, and they renew at once. To remove it from the fleet too, run "fleet node
rm" afterwards.

One, three or five hosts vote, so from three voters none can be removed alone:
replace it, or name two. With one voter left one signature makes a ticket, and
when that host stops nothing can be decided. A host that only follows the log
(eligible) is removed without the root key.

What would leave fewer than a majority that answers is refused: nothing could be
decided any more. --force goes on all the same; if those that are silent do not
come back, only "fleet quorum recover" helps, which may lose what was decided.

Examples:
  fleet quorum remove host4 host5 --root-key /media/usb/acme.key
  fleet quorum remove host4 host5 --compromised --root-key /media/usb/acme.key

` + rootKeyHelp,
				Flags: flags([]cli.Flag{rootKeyFlag(), compromisedFlag(), forceFlag()}, yesFlag("do not ask"), outputFlag(), clientFlags(), timeoutFlag()),
			}, 1, -1, e.quorumRemove),
			leaf(&cli.Command{
				Name: "replace", ArgsUsage: "NODE NODE", Usage: "have a host vote in the place of another",
				Description: `The second host votes in the place of the first, in one step of trust.json, so
that the number of voters stays what it is. It follows the log first and votes
when it has caught up; then the first votes no more, as with "fleet quorum
remove". The first may be dead. Compare the fingerprint with the one that "fleet
status" shows on the second.

Example:
  fleet quorum replace host2 host4 --root-key /media/usb/acme.key

` + rootKeyHelp,
				Flags: flags([]cli.Flag{rootKeyFlag(), compromisedFlag(), forceFlag()}, yesFlag("do not ask whether the fingerprint is right"), outputFlag(), clientFlags(), timeoutFlag()),
			}, 2, 2, e.quorumReplace),
			leaf(&cli.Command{
				Name: "renew", ArgsUsage: "[NODE...]", Usage: "sign new certificates for voters",
				Description: `Certificates of the quorum last 400 days; "fleet status" warns 60 days before, and
"fleet quorum ls" shows when they end. The keys stay, and trust.json does: only
certificates are signed and sent. Without NODE, for all voters.

When those of too many voters have ended they do not speak with each other any
more. --here then renews those of this host, whose agent must be stopped; do so
on each voter, and start them.

Examples:
  fleet quorum renew --root-key /media/usb/acme.key
  fleet quorum renew --here --root-key /media/usb/acme.key

` + rootKeyHelp,
				Flags: flags([]cli.Flag{
					rootKeyFlag(),
					&cli.BoolFlag{Name: "here", Usage: "renew the certificates in this host's data directory, without the fleet"},
					&cli.StringFlag{Name: "config", Usage: "`FILE` instead of " + config.DefaultFile + ", for --here"},
					&cli.StringFlag{Name: "data-dir", Usage: "`DIR` with the host's data, for --here (default: the configuration's)"},
				}, outputFlag(), clientFlags(), timeoutFlag()),
			}, 0, -1, e.quorumRenew),
			e.quorumRecoverCommand(),
		},
	}
}

const rootKeyHelp = `The passphrase of the root key, if it has one, is asked for, or read from the
file that FLEET_ROOT_PASSPHRASE_FILE names.

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`

func rootKeyFlag() cli.Flag {
	return &cli.StringFlag{Name: "root-key", Usage: "`FILE` with the fleet's root key"}
}

func compromisedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "compromised", Usage: "the host or its keys may be in wrong hands: what it certified counts no more at once"}
}

func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "also if fewer than a majority of the voters would answer"}
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
		t := newTable("NAME", "ID", "ROLE", "ANSWERS", "APPLIED", "ADDRESS", "CERTIFICATE", "FINGERPRINT")
		for _, m := range q.Members {
			answers := "no"
			if m.Reachable {
				answers = "yes"
			}
			t.add(m.Name, string(m.InstanceId), roleText(m.Role, m.Leader), answers, fmt.Sprint(m.AppliedIndex),
				m.Address, date(m.CertificateExpires), m.Fingerprint)
		}
		t.write(w)
		fmt.Fprintf(e.err, "%s to sign a ticket; trust version %d\n", count(q.Threshold, "voter"), q.TrustVersion)
	}})
	return errors.Join(err, printErr)
}

// openRootKey reads the root key of this fleet. Its error says what to type.
func (e *env) openRootKey(c *cli.Context) (*identity.RootKeyFile, identity.PrivateKey, error) {
	if c.String("root-key") == "" {
		return nil, identity.PrivateKey{}, usagef("which root key?").withHint("--root-key FILE, the file that \"fleet init\" wrote")
	}
	file, root, err := identity.OpenRootKeyFile(c.String("root-key"), e.passphrase)
	var path *fs.PathError
	if errors.As(err, &path) {
		err = fleet.Errorf(fleet.NotFound, "--root-key: %w", path).WithHint("the file that \"fleet init\" wrote, on the media where it is kept")
	}
	return file, root, err
}

// rooted is a change of the quorum in the making: the connection, the root key,
// and what the fleet shows of itself.
type rooted struct {
	c        *cli.Context
	api      *client.Client
	file     *identity.RootKeyFile
	root     identity.PrivateKey
	trust    *identity.Trust
	eligible []fleet.NodeID
	nodes    []fleet.NodeView
}

// openRooted connects and reads what a change of the quorum begins with. The
// root key verifies the trust.json that it is shown, and its file refuses one
// that is older than it has seen: a stolen leader must not have a removed voter
// signed in again.
func (e *env) openRooted(c *cli.Context) (*rooted, error) {
	if c.String("root-key") == "" { // before anything is asked for
		_, _, err := e.openRootKey(c)
		return nil, err
	}
	api, err := e.connect(c)
	if err != nil {
		return nil, err
	}
	r := &rooted{c: c, api: api}
	if err := e.read(r); err != nil {
		api.Close()
		return nil, err
	}
	return r, nil
}

func (e *env) read(r *rooted) (err error) {
	if r.file, r.root, err = e.openRootKey(r.c); err != nil {
		return err
	}
	if r.file.Fleet != r.api.Fleet() {
		return fleet.Errorf(fleet.Invalid, "%s is the root key of the fleet %s, not of %s", r.file.Path, r.file.Name, r.api.FleetName())
	}
	var current fleet.GetTrustResult
	if err := r.api.Call(r.c.Context, "GetTrust", fleet.GetTrustRequest{}, &current); err != nil {
		return err
	}
	if r.trust, err = identity.ParseTrust(current.Trust, r.root.Public()); err != nil {
		return err
	}
	if err := r.file.CheckShown(r.trust.Version); err != nil {
		return err
	}
	r.eligible = current.Eligible
	r.nodes, err = describeNodes(r.c, r.api, fleet.DescribeNodesRequest{Brief: true})
	return err
}

// names are the hosts' names by ID.
func (r *rooted) names() map[fleet.NodeID]string {
	names := map[fleet.NodeID]string{}
	for _, n := range r.nodes {
		names[n.InstanceId] = n.Name
	}
	return names
}

// node finds a host of this fleet by name or ID.
func (r *rooted) node(name string) (fleet.NodeID, error) {
	n, err := oneNode(r.c, r.api, name, true)
	if err != nil {
		return "", err
	}
	return n.InstanceId, nil
}

// candidates fetches the requests of hosts.
func (r *rooted) candidates(ids []fleet.NodeID, newIssuer bool) ([][]byte, error) {
	var all [][]byte
	for _, id := range ids {
		var candidate fleet.GetCandidateResult
		req := fleet.GetCandidateRequest{InstanceId: id, NewIssuer: newIssuer}
		if err := r.api.Call(r.c.Context, "GetCandidate", req, &candidate); err != nil {
			return nil, err
		}
		all = append(all, candidate.Candidate)
	}
	return all, nil
}

// keys gives the agent keys of the hosts whose requests were asked for. A node
// ID is a hash of the key: what the fleet says cannot be another's.
func (r *rooted) keys(asked []fleet.NodeID) enrol.KeyOf {
	return func(id fleet.NodeID) (fleet.PublicKey, error) {
		for _, n := range r.nodes {
			if n.InstanceId == id && slices.Contains(asked, id) && len(n.PublicKey) == len(fleet.PublicKey{}) {
				if key := fleet.PublicKey(n.PublicKey); fleet.NodeIDOf(key) == id {
					return key, nil
				}
			}
		}
		return fleet.PublicKey{}, fleet.Errorf(fleet.Unauthenticated, "the fleet sent the request of %s, which was not asked for", id)
	}
}

// decideQuorum has the root key sign a plan and the fleet decide it.
func (e *env) decideQuorum(r *rooted, plan *enrol.VoterPlan, force bool) (*fleet.ChangeQuorumResult, error) {
	req, err := plan.Sign(r.root, r.file, e.now())
	if err != nil {
		return nil, err
	}
	req.Force = force
	var done fleet.ChangeQuorumResult
	if err := r.api.Call(r.c.Context, "ChangeQuorum", req, &done); err != nil {
		return nil, err
	}
	if plan.Changes() {
		return &done, r.file.NoteTrust(done.TrustVersion)
	}
	return &done, nil
}

func (e *env) quorumAdd(c *cli.Context) error {
	r, err := e.openRooted(c)
	if err != nil {
		return err
	}
	defer r.api.Close()
	ids := slices.Clone(r.eligible) // those that an earlier call left so
	for _, name := range c.Args().Slice() {
		id, err := r.node(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(r.trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id }) {
			return fleet.Errorf(fleet.Conflict, "%s votes already", name)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	candidates, err := r.candidates(ids, false)
	if err != nil {
		return err
	}
	plan, err := enrol.PlanVoters(r.trust, candidates, r.keys(ids))
	if err != nil {
		return err
	}
	e.showPlan(plan, r.names())
	if !c.Bool("yes") {
		if err := e.confirm("Are these the fingerprints that \"fleet status\" shows on those hosts?"); err != nil {
			return err
		}
	}
	if _, err := e.decideQuorum(r, plan, false); err != nil {
		return err
	}
	if len(plan.Eligible) > 0 {
		fmt.Fprintf(e.err, "eligible: %s; one more host makes a quorum of %d: fleet quorum add NODE --root-key %s\n",
			escapeCell(nameList(plan.Eligible, r.names())), len(plan.Voters)+2, r.file.Path)
	}
	return e.printQuorum(c, r.api)
}

func (e *env) quorumRemove(c *cli.Context) error {
	if done, err := e.removeEligible(c); done || err != nil {
		return err
	}
	r, err := e.openRooted(c)
	if err != nil {
		return err
	}
	defer r.api.Close()
	var ids []fleet.NodeID
	for _, name := range c.Args().Slice() {
		id, err := r.node(name)
		if err != nil {
			return err
		}
		if slices.Contains(r.eligible, id) {
			return fleet.Errorf(fleet.Invalid, "%s only follows the log", name).WithHint("remove it by itself: fleet quorum remove %s", name)
		}
		if !slices.ContainsFunc(r.trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id }) {
			return fleet.Errorf(fleet.Conflict, "%s is not of the quorum", name)
		}
		ids = append(ids, id)
	}
	plan, err := enrol.PlanRemoval(r.trust, ids, c.Bool("compromised"), e.now())
	if err != nil {
		return err
	}
	e.showVoters(plan, r)
	if !c.Bool("yes") {
		if err := e.confirm(fmt.Sprintf("Take %s out of the quorum of the fleet %s?", nameList(plan.Removed, r.names()), r.api.FleetName())); err != nil {
			return err
		}
	}
	if _, err := e.decideQuorum(r, plan, c.Bool("force")); err != nil {
		return err
	}
	return e.printQuorum(c, r.api)
}

// removeEligible removes hosts that only follow the log, for which the root key
// has nothing to sign.
func (e *env) removeEligible(c *cli.Context) (done bool, err error) {
	if c.String("root-key") != "" {
		return false, nil
	}
	api, err := e.connect(c)
	if err != nil {
		return false, err
	}
	defer api.Close()
	var current fleet.GetTrustResult
	if err := api.Call(c.Context, "GetTrust", fleet.GetTrustRequest{}, &current); err != nil {
		return false, err
	}
	var req fleet.ChangeQuorumRequest
	for _, name := range c.Args().Slice() {
		n, err := oneNode(c, api, name, true)
		if err != nil {
			return false, err
		}
		if !slices.Contains(current.Eligible, n.InstanceId) {
			return false, nil
		}
		req.Remove = append(req.Remove, n.InstanceId)
	}
	if err := api.Call(c.Context, "ChangeQuorum", req, nil); err != nil {
		return false, err
	}
	return true, e.printQuorum(c, api)
}

func (e *env) quorumReplace(c *cli.Context) error {
	r, err := e.openRooted(c)
	if err != nil {
		return err
	}
	defer r.api.Close()
	old, err := r.node(c.Args().Get(0))
	if err != nil {
		return err
	}
	by, err := r.node(c.Args().Get(1))
	if err != nil {
		return err
	}
	ids := []fleet.NodeID{by}
	candidates, err := r.candidates(ids, false)
	if err != nil {
		return err
	}
	plan, err := enrol.PlanReplacement(r.trust, old, candidates[0], r.keys(ids), c.Bool("compromised"), e.now())
	if err != nil {
		return err
	}
	e.showPlan(plan, r.names())
	if !c.Bool("yes") {
		if err := e.confirm("Is this the fingerprint that \"fleet status\" shows on that host?"); err != nil {
			return err
		}
	}
	if _, err := e.decideQuorum(r, plan, c.Bool("force")); err != nil {
		return err
	}
	return e.printQuorum(c, r.api)
}

func (e *env) quorumRenew(c *cli.Context) error {
	if c.Bool("here") {
		return e.renewHere(c)
	}
	if c.IsSet("data-dir") || c.IsSet("config") {
		return usagef("--data-dir and --config are for --here")
	}
	r, err := e.openRooted(c)
	if err != nil {
		return err
	}
	defer r.api.Close()
	var ids []fleet.NodeID
	for _, name := range c.Args().Slice() {
		id, err := r.node(name)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(r.trust.Voters, func(v identity.TrustVoter) bool { return v.Node == id }) {
			return fleet.Errorf(fleet.Conflict, "%s does not vote", name)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		for _, v := range r.trust.Voters {
			ids = append(ids, v.Node)
		}
	}
	candidates, err := r.candidates(ids, false)
	if err != nil {
		return err
	}
	plan, err := enrol.PlanRenewal(r.trust, candidates, r.keys(ids))
	if err != nil {
		return err
	}
	if _, err := e.decideQuorum(r, plan, false); err != nil {
		return err
	}
	return e.printQuorum(c, r.api)
}

// renewHere renews the certificates in a data directory.
func (e *env) renewHere(c *cli.Context) error {
	if c.Args().Present() {
		return usagef("--here is this host: it takes no NODE")
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	file, root, err := e.openRootKey(c)
	if err != nil {
		return err
	}
	until, err := enrol.RenewHere(cfg.DataDir, root, file, e.now())
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "certificates until %s\n", until.UTC().Format(time.DateOnly))
	fmt.Fprintf(e.out, "start  %s\n", agentHint(c, cfg))
	return nil
}

// showVoters says who will vote, and what that means when it is one host.
func (e *env) showVoters(plan *enrol.VoterPlan, r *rooted) {
	fmt.Fprintf(e.err, "voters then: %s\n", escapeCell(nameList(plan.Voters, r.names())))
	if len(plan.Voters) == 1 && len(r.trust.Voters) > 1 {
		e.warningLines([]fleet.Warning{{
			Message: "with one voter, one stolen host is enough to make every host run something, and nothing is decided while it is away",
		}})
	}
}

func (e *env) showPlan(plan *enrol.VoterPlan, names map[fleet.NodeID]string) {
	t := newTable("NAME", "ID", "WILL BE", "FINGERPRINT")
	for _, candidate := range plan.Candidates {
		will := fleet.RoleNameVoter
		if slices.Contains(plan.Eligible, candidate.Node) {
			will = fleet.RoleNameEligible
		}
		t.add(names[candidate.Node], string(candidate.Node), will, candidate.Fingerprint())
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
