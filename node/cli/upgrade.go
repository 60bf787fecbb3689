package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/service"
	"fleet/node/ssm"
	"fleet/node/upgrade"
)

func (e *env) upgradeCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "upgrade", Category: categoryHost, Usage: "replace the program of the hosts, a few first", ArgsUsage: "--file FILE | upgrade ls",
		Description: `The file is checked here, given to the quorum, and from there goes from host to
host. First come the canaries, then the other hosts, --concurrency of them at a
time, then the voters one by one, the leader last. On each host the new program
is made to say its version before it gets its place, and has to be answered by
the quorum after it started: where that does not happen within --healthy-within,
or the program ends again and again, the host goes back to the one it had, by
itself. Past --max-errors of them nothing more begins.

It is a command of the document Fleet-Upgrade: who may send commands may
upgrade. What runs on a host is waited for. Given again it goes on where it
stopped; hosts that run the program count as done, those that are away are left
out. An older version is a downgrade, and goes the same way.

"fleet upgrade ls" shows which programs the hosts run.

Examples:
  fleet upgrade --file ./fleet --canary 5 --concurrency 10%
  fleet upgrade --file ./fleet --canary web01,web02 --dry-run
  fleet upgrade --file ./fleet-amd64 --file ./fleet-arm64 --yes
  fleet upgrade ls

Exit codes: 0 all hosts run it, 1 the request failed, 2 some hosts do not run it,
3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringSliceFlag{Name: "file", Usage: "`FILE` of the new program; repeated, one for each platform"},
			&cli.StringFlag{Name: "canary", Value: "1", Usage: "`N` hosts that come first, or their names: web01,web02 (default 1)"},
			&cli.StringFlag{Name: "concurrency", Value: "10%", Usage: "upgrade `N` or N% of the other hosts at a time (default 10%)"},
			&cli.StringFlag{Name: "max-errors", Value: "0", Usage: "go on while no more than `N` or N% of the other hosts failed (default 0)"},
			&cli.StringFlag{Name: "healthy-within", Usage: "`DURATION` that the new program may take to be answered by the quorum, 20s to 1h (default 3m)"},
			&cli.StringFlag{Name: "wait-for-commands", Usage: "`DURATION` that a host waits for the end of what runs on it, up to 1h (default 10m)"},
			&cli.StringSliceFlag{Name: "signature", Usage: "`FILE` with a builder's signature; may be repeated (default: the program's name and .sig, if there is one)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "show the plan, and stop"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		}, outputFlag(), clientFlags(), timeoutFlag()),
	}, 0, 1, func(c *cli.Context) error {
		switch c.Args().First() {
		case "ls", "list", "status":
			return e.upgradeLs(c)
		case "":
			return e.upgrade(c)
		}
		return usagef("fleet upgrade does not take the argument %q", c.Args().First()).withHint("fleet upgrade --file FILE, or fleet upgrade ls")
	})
}

// upgrading is one run of "fleet upgrade".
type upgrading struct {
	*env
	c     *cli.Context
	api   *client.Client
	files map[fleet.Digest]string
	order upgrade.Order
	have  []upgrade.Host // run the program: to be asked for it
	out   upgradeResult
}

// upgradeResult is what it prints as JSON.
type upgradeResult struct {
	Version  string          `json:"Version,omitempty"`
	Programs []string        `json:"Programs"` // OS/ARCH, SHA-256, size
	Phases   []upgradePhase  `json:"Phases"`
	Done     []upgradedHost  `json:"Done,omitempty"` // ran it before
	Away     []upgradedHost  `json:"Away,omitempty"` // were not heard of, and are left as they are
	Commands []ssmCommandRef `json:"Commands,omitempty"`
}

type ssmCommandRef struct {
	CommandId string `json:"CommandId"`
	Phase     string `json:"Phase"`
}

type upgradePhase struct {
	Name      string         `json:"Name"`
	AtOnce    int            `json:"AtOnce"`
	MaxErrors int            `json:"MaxErrors"`
	Hosts     []upgradedHost `json:"Hosts"`
}

// upgradedHost is one host; Status is empty where nothing was begun.
type upgradedHost struct {
	InstanceId fleet.NodeID `json:"InstanceId"`
	Name       string       `json:"Name"`
	Was        string       `json:"Was,omitempty"` // version
	Status     string       `json:"Status,omitempty"`
	Reason     string       `json:"Reason,omitempty"`
	CommandId  string       `json:"CommandId,omitempty"`
}

func (e *env) upgrade(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	u := &upgrading{env: e, c: c, files: map[fleet.Digest]string{}}
	if err := u.readFiles(); err != nil {
		return err
	}
	choice, names, err := u.readChoice()
	if err != nil {
		return err
	}
	if u.api, err = e.connect(c); err != nil {
		return err
	}
	defer u.api.Close()
	plan, err := u.plan(choice, names)
	if err != nil {
		return err
	}
	u.show(plan)
	if c.Bool("dry-run") || plan.Hosts() == 0 {
		return u.finish(plan, nil)
	}
	if !c.Bool("yes") {
		if err := e.confirm(fmt.Sprintf("Upgrade %s to %s?", count(plan.Hosts(), "host"), u.name())); err != nil {
			return err
		}
	}
	return u.finish(plan, u.run(plan))
}

// readFiles checks what is to be sent.
func (u *upgrading) readFiles() error {
	paths := u.c.StringSlice("file")
	if len(paths) == 0 {
		return usagef("which program?").withHint("fleet upgrade --file FILE, or fleet upgrade ls")
	}
	for _, path := range paths {
		p, err := upgrade.Inspect(path)
		if err != nil {
			return fleet.Errorf(fleet.KindOf(err), "--file: %w", err)
		}
		if other, twice := u.order.For(p.Platform); twice {
			return usagef("--file: %s and %s are both for %s", u.files[other.Digest], path, p.Platform)
		}
		u.order.Programs = append(u.order.Programs, p)
		u.files[p.Digest] = path
		if p.Platform == upgrade.ThisPlatform() {
			if u.order.Version, err = askVersion(u.c.Context, path); err != nil {
				return err
			}
		}
	}
	if err := u.readSignatures(paths); err != nil {
		return err
	}
	for _, d := range []struct {
		flag        string
		to          *time.Duration
		least, most time.Duration
	}{{"healthy-within", &u.order.Healthy, 20 * time.Second, time.Hour}, {"wait-for-commands", &u.order.Patience, time.Second, time.Hour}} {
		v, err := durationFlag(u.c, d.flag)
		if err != nil {
			return err
		}
		if v != 0 && (v < d.least || v > d.most) {
			return usagef("--%s %s: from %s to %s", d.flag, u.c.String(d.flag), d.least, d.most)
		}
		*d.to = v
	}
	// As the hosts will read it.
	if _, err := upgrade.ParseOrder(u.order.Parameters()); err != nil {
		return err
	}
	for _, p := range u.order.Programs {
		u.out.Programs = append(u.out.Programs, p.String())
	}
	u.out.Version = u.order.Version
	return nil
}

// askTime is what a program may take to say its version.
const askTime = 30 * time.Second

// askVersion has the program itself say what it is, as each host will.
func askVersion(ctx context.Context, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("--file: %w", err)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", fmt.Errorf("--file: %w", err)
	}
	asking, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	out, err := service.Ask(asking, abs, "version", "-o", "json")
	switch {
	case asking.Err() != nil && ctx.Err() == nil:
		return "", fleet.Errorf(fleet.Invalid, "--file: %s did not say its version within %s, and would not on the hosts", path, askTime)
	case err != nil:
		return "", fleet.Errorf(fleet.Invalid, "--file: the program does not say its version, and would not on the hosts: %w", err).
			WithHint("is it executable (chmod +x)?")
	}
	var f upgrade.Facts
	if err := json.Unmarshal(out, &f); err != nil || f.Version == "" || len(f.DataDirs) == 0 {
		return "", fleet.Errorf(fleet.Invalid, "--file: %s says its version otherwise than a release that can be upgraded to", path)
	}
	return f.Version, nil
}

// readSignatures takes those that were named, or lie beside the programs.
func (u *upgrading) readSignatures(paths []string) error {
	named := u.c.StringSlice("signature")
	if len(named) == 0 {
		for _, path := range paths {
			if _, err := os.Stat(path + signatureSuffix); !errors.Is(err, fs.ErrNotExist) {
				named = append(named, path+signatureSuffix)
			}
		}
	}
	for _, path := range named {
		b, err := readCapped(path, identity.MaxFileSignature)
		if err != nil {
			return err
		}
		s, err := identity.ParseFileSignature(b)
		if err != nil {
			return fleet.Errorf(fleet.KindOf(err), "--signature %s: %w", path, err)
		}
		if u.files[s.Digest] == "" {
			return fleet.Errorf(fleet.Invalid, "--signature %s is of another file, with the SHA-256 %s", path, s.Digest)
		}
		u.order.Signatures = append(u.order.Signatures, b)
	}
	return nil
}

// readChoice reads who comes first and how many at a time.
func (u *upgrading) readChoice() (choice upgrade.Choice, names string, err error) {
	if choice.AtOnce, err = upgrade.ParsePortion(u.c.String("concurrency"), 1); err != nil {
		return choice, "", usagef("--concurrency: %s", err)
	}
	if choice.MaxErrors, err = upgrade.ParsePortion(u.c.String("max-errors"), 0); err != nil {
		return choice, "", usagef("--max-errors: %s", err)
	}
	choice.Programs = map[fleet.Digest]bool{}
	for d := range u.files {
		choice.Programs[d] = true
	}
	text := u.c.String("canary")
	n, err := strconv.Atoi(text)
	switch {
	case err == nil && (n < 0 || n > 1000):
		return choice, "", usagef("--canary %s: a number from 0 to 1000, or names of hosts", text)
	case err == nil:
		choice.Canary = n
	default:
		names = text
	}
	return choice, names, nil
}

// hosts is the fleet as a plan sees it.
func (u *upgrading) hosts() ([]upgrade.Host, error) {
	nodes, err := describeNodes(u.c, u.api, fleet.DescribeNodesRequest{})
	if err != nil {
		return nil, err
	}
	all := make([]upgrade.Host, 0, len(nodes))
	for _, n := range nodes {
		h := upgrade.Host{
			ID: n.InstanceId, Name: firstOf(n.Name, string(n.InstanceId)), Version: n.AgentVersion,
			Voter: n.Role == fleet.RoleNameVoter, Leader: n.Leader, Online: n.PingStatus == fleet.PingOnline,
		}
		if d, err := fleet.ParseDigest(n.AgentDigest); err == nil {
			h.Digest = d
		}
		all = append(all, h)
	}
	return all, nil
}

func (u *upgrading) plan(choice upgrade.Choice, names string) (upgrade.Plan, error) {
	if names != "" {
		d, err := newDirectory(u.c, u.api)
		if err != nil {
			return upgrade.Plan{}, err
		}
		nodes, err := d.expand("--canary", []string{names})
		if err != nil {
			return upgrade.Plan{}, err
		}
		for _, n := range nodes {
			choice.Named = append(choice.Named, n.InstanceId)
		}
	}
	hosts, err := u.hosts()
	if err != nil {
		return upgrade.Plan{}, err
	}
	p := upgrade.MakePlan(hosts, choice)
	u.have = slices.Clone(p.Done)
	return p, nil
}

// name is the program for people.
func (u *upgrading) name() string {
	if u.order.Version != "" {
		return u.order.Version
	}
	return "the program " + u.order.Programs[0].Digest.String()[:12]
}

// show writes the plan for people.
func (u *upgrading) show(p upgrade.Plan) {
	for _, program := range u.order.Programs {
		fmt.Fprintf(u.err, "%s: %s, %s, %.1f MiB, SHA-256 %s\n", escapeCell(u.files[program.Digest]), firstOf(u.order.Version, "a version that cannot be asked here"),
			program.Platform, float64(program.Size)/(1<<20), program.Digest)
	}
	var newer []string
	for _, phase := range p.Phases {
		for _, h := range phase.Hosts {
			if is, known := service.NewerVersion(h.Version, u.order.Version); is && known {
				newer = append(newer, h.Name)
			}
		}
		fmt.Fprintf(u.err, "%-9s %s, %s at a time: %s\n", phase.Name, count(len(phase.Hosts), "host"), strconv.Itoa(phase.AtOnce), escapeCell(planNames(phase)))
	}
	if len(p.Done) > 0 {
		fmt.Fprintf(u.err, "%-9s %s run it already\n", "done", count(len(p.Done), "host"))
	}
	if len(p.Away) > 0 {
		fmt.Fprintf(u.err, "%-9s %s, left as they are: %s\n", "away", count(len(p.Away), "host"), escapeCell(foldNames(hostNames(p.Away))))
	}
	if len(newer) > 0 {
		fmt.Fprintf(u.err, "%s %s run a newer version: this is a downgrade. A voter whose log holds what %s does not know goes back by itself\n",
			u.paint(u.errTTY, red, "warning:"), escapeCell(foldNames(newer)), u.name())
	}
}

// planNames are the names of a phase; of voters in their order.
func planNames(p upgrade.Phase) string {
	names := hostNames(p.Hosts)
	if p.Name == upgrade.Voters {
		return strings.Join(names, ", then ")
	}
	return foldNames(names)
}

func hostNames(hosts []upgrade.Host) []string {
	names := make([]string, 0, len(hosts))
	for _, h := range hosts {
		names = append(names, h.Name)
	}
	return names
}

// phaseError is why no more is begun.
type phaseError struct {
	phase  string
	reason string
}

func (p *phaseError) Error() string { return fmt.Sprintf("stopped at the %s: %s", p.phase, p.reason) }

// run does the phases one after the other.
func (u *upgrading) run(p upgrade.Plan) error {
	for _, phase := range p.Phases {
		u.out.Phases = append(u.out.Phases, upgradePhase{Name: phase.Name, AtOnce: phase.AtOnce, MaxErrors: phase.MaxErrors})
		now := &u.out.Phases[len(u.out.Phases)-1]
		failed := 0
		for next := phase.Next(0, 0); next != nil; next = phase.Next(len(now.Hosts), failed) {
			if next[0].Voter {
				if err := u.awaitVoters(next); err != nil {
					return &phaseError{phase.Name, err.Error()}
				}
			}
			done, err := u.command(phase, next)
			now.Hosts = append(now.Hosts, done...)
			if err != nil {
				return err
			}
			for i, h := range done {
				switch h.Status {
				case "Success":
					u.have = append(u.have, next[i])
				case "": // its turn did not come
				default:
					failed++
				}
			}
		}
		if failed > phase.MaxErrors {
			return &phaseError{phase.Name, fmt.Sprintf("%s did not come to run %s", count(failed, "host"), u.name())}
		}
	}
	return nil
}

// awaitVoters waits until every voter answers: the next one's restart must not
// be what loses the quorum.
func (u *upgrading) awaitVoters(next []upgrade.Host) error {
	ctx, cancel := context.WithTimeout(u.c.Context, 2*time.Minute)
	defer cancel()
	for {
		var q fleet.DescribeQuorumResult
		err := u.api.Call(ctx, "DescribeQuorum", fleet.DescribeQuorumRequest{}, &q)
		var silent []string
		for _, m := range q.Members {
			if m.Role == fleet.RoleNameVoter && !m.Reachable {
				silent = append(silent, firstOf(m.Name, string(m.InstanceId)))
			}
		}
		if err == nil && len(silent) == 0 {
			return nil
		}
		if !sleepUntil(ctx, time.Second) {
			if err == nil {
				err = fleet.Errorf(fleet.NoQuorum, "%s does not answer", foldNames(silent))
			}
			return fmt.Errorf("%s is not begun: every other voter must answer: %w", next[0].Name, err)
		}
	}
}

func sleepUntil(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// slack is what an upgrade may take besides what was said: until the program
// came, and the agent has ended and started.
const slack = 20 * time.Minute

// deliverTime is how long the command counts: a host that is cut off by its own
// restart reports what became of it until then.
func (u *upgrading) deliverTime() time.Duration {
	return cmp.Or(u.order.Healthy, upgrade.DefaultHealthy) + cmp.Or(u.order.Patience, upgrade.DefaultPatience) + slack
}

// command upgrades some hosts by one command, and answers when each has a result.
func (u *upgrading) command(phase upgrade.Phase, hosts []upgrade.Host) ([]upgradedHost, error) {
	result := make([]upgradedHost, len(hosts))
	ids := make([]string, len(hosts))
	at := map[fleet.NodeID]int{}
	for i, h := range hosts {
		result[i] = upgradedHost{InstanceId: h.ID, Name: h.Name, Was: h.Version}
		ids[i], at[h.ID] = string(h.ID), i
	}
	for _, p := range u.order.Programs {
		path := u.files[p.Digest]
		if err := u.api.PutProgram(u.c.Context, p.Digest, p.Size, func() (io.ReadCloser, error) { return os.Open(path) }); err != nil {
			return result, fmt.Errorf("give %s to the quorum: %w", path, err)
		}
	}
	order := u.order
	order.Sources = upgrade.Spread(u.have)
	req := &ssm.SendCommandRequest{
		DocumentName: upgrade.Document, Parameters: order.Parameters(), TimeoutSeconds: int(u.deliverTime() / time.Second),
		Comment: "upgrade to " + u.name() + ": " + phase.Name,
		Targets: []ssm.Target{{Key: "InstanceIds", Values: slices.Sorted(slices.Values(ids))}},
	}
	req.MaxConcurrency, req.MaxErrors = phase.Pace(len(hosts))
	if err := nameDocument(req); err != nil {
		return result, err
	}
	var sent ssm.SendCommandResult
	if err := u.api.Call(u.c.Context, "SendCommand", req, &sent); err != nil {
		return result, err
	}
	u.out.Commands = append(u.out.Commands, ssmCommandRef{sent.Command.CommandId, phase.Name})
	for i := range result {
		result[i].CommandId = sent.Command.CommandId
	}
	fmt.Fprintf(u.err, "%s: %s  (command %s)\n", phase.Name, escapeCell(foldNames(hostNames(hosts))), sent.Command.CommandId)
	err := u.watch(fleet.CommandID(sent.Command.CommandId), phase.Rounds(len(hosts)), func(ev fleet.InvocationEvent) {
		i, ok := at[ev.InstanceId]
		if !ok || !ev.Final || result[i].Status != "" {
			return
		}
		if ev.StatusDetails == fleet.Terminated.Details() {
			result[i].CommandId = "" // too many had failed before its turn
			return
		}
		result[i].Status, result[i].Reason = ev.StatusDetails, ev.Reason
		mark := "ok"
		if ev.StatusDetails != "Success" {
			mark = u.paint(u.errTTY, red, ev.StatusDetails) + ": " + escapeCell(firstOf(ev.Reason, "no reason was given"))
		}
		fmt.Fprintf(u.err, "  %s  %s\n", escapeCell(result[i].Name), mark)
	})
	if err != nil {
		fmt.Fprintf(u.err, "the hosts that have begun go on; see what becomes of them: fleet command attach %s\n", sent.Command.CommandId)
	}
	return result, err
}

// watch follows a command to its end, also while the voter that it asks, or the
// only one that there is, is being started.
func (u *upgrading) watch(id fleet.CommandID, rounds int, f func(fleet.InvocationEvent)) error {
	deadline := u.now().Add(time.Duration(rounds)*u.deliverTime() + time.Hour)
	for {
		err := u.api.Watch(u.c.Context, fleet.WatchCommandRequest{CommandId: id}, func(ev fleet.WatchEvent) error {
			if ev.Invocation != nil {
				f(*ev.Invocation)
			}
			return nil
		})
		switch fleet.KindOf(err) {
		case fleet.NoQuorum, fleet.Unavailable, fleet.Unknown, fleet.NotLeader:
			if u.now().After(deadline) || !sleepUntil(u.c.Context, time.Second) {
				return err
			}
		default:
			return err
		}
	}
}

// finish prints what came of it.
func (u *upgrading) finish(p upgrade.Plan, err error) error {
	of := func(hosts []upgrade.Host) (all []upgradedHost) {
		for _, h := range hosts {
			all = append(all, upgradedHost{InstanceId: h.ID, Name: h.Name, Was: h.Version})
		}
		return all
	}
	u.out.Done, u.out.Away = of(p.Done), of(p.Away)
	// What was not begun stands there as well, without a status: neither its
	// turn came, nor that of its phase.
	for i, phase := range p.Phases {
		if i == len(u.out.Phases) {
			u.out.Phases = append(u.out.Phases, upgradePhase{Name: phase.Name, AtOnce: phase.AtOnce, MaxErrors: phase.MaxErrors})
		}
		now := &u.out.Phases[i]
		now.Hosts = append(now.Hosts, of(phase.Hosts[len(now.Hosts):])...)
	}
	good, bad, untouched := len(p.Done), 0, 0
	var names []string
	for _, phase := range u.out.Phases {
		for _, h := range phase.Hosts {
			switch {
			case h.Status == "Success":
				good++
			case h.Status != "" || h.CommandId != "":
				bad++
			default:
				untouched++
			}
			names = append(names, h.Name)
		}
	}
	printErr := u.print(u.c, result{value: u.out, names: names, table: func(w io.Writer) {
		if u.c.Bool("dry-run") {
			fmt.Fprintf(w, "%s would be upgraded\n", count(untouched, "host"))
			return
		}
		text := fmt.Sprintf("%s run %s", count(good, "host"), u.name())
		if bad > 0 {
			text += fmt.Sprintf(", %d do not", bad)
		}
		if untouched > 0 {
			text += fmt.Sprintf(", %d were not begun", untouched)
		}
		if len(p.Away) > 0 {
			text += fmt.Sprintf(", %d are away", len(p.Away))
		}
		fmt.Fprintln(w, text)
	}})
	var stopped *phaseError
	switch {
	case printErr != nil:
		return printErr
	case errors.As(err, &stopped):
		fmt.Fprintf(u.err, "%s\nmend what is wrong, then give the same command again: it goes on from there\n", escapeCell(err.Error()))
		return exitError(ExitSome)
	case err != nil:
		return err
	case u.c.Bool("dry-run"):
		return nil
	case bad > 0 || len(p.Away) > 0:
		return exitError(ExitSome)
	}
	return nil
}

// programView is the hosts that run one program.
type programView struct {
	Version string         `json:"Version"`
	Digest  string         `json:"Digest,omitempty"`
	Hosts   []upgradedHost `json:"Hosts"`
}

// upgradeLs shows which programs the hosts run.
func (e *env) upgradeLs(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	u := &upgrading{env: e, c: c}
	var err error
	if u.api, err = e.connect(c); err != nil {
		return err
	}
	defer u.api.Close()
	hosts, err := u.hosts()
	if err != nil {
		return err
	}
	groups := map[string]*programView{}
	for _, h := range hosts {
		v := &programView{Version: h.Version}
		if !h.Digest.IsZero() {
			v.Digest = h.Digest.String()
		}
		key := v.Version + " " + v.Digest
		if groups[key] == nil {
			groups[key] = v
		}
		groups[key].Hosts = append(groups[key].Hosts, upgradedHost{InstanceId: h.ID, Name: h.Name})
	}
	views := slices.SortedFunc(maps.Values(groups), func(a, b *programView) int {
		return cmp.Or(cmp.Compare(len(b.Hosts), len(a.Hosts)), strings.Compare(a.Version, b.Version), strings.Compare(a.Digest, b.Digest))
	})
	var versions []string
	for _, v := range views {
		versions = append(versions, firstOf(v.Version, "unknown"))
	}
	return e.print(c, result{value: struct {
		Programs []*programView `json:"Programs"`
	}{views}, names: versions, table: func(w io.Writer) {
		t := newTable("VERSION", "PROGRAM", "COUNT", "HOSTS")
		for _, v := range views {
			var names []string
			for _, h := range v.Hosts {
				names = append(names, h.Name)
			}
			t.add(firstOf(v.Version, "not heard of"), firstOf(v.Digest, "-")[:min(12, len(firstOf(v.Digest, "-")))], strconv.Itoa(len(v.Hosts)), foldNames(names))
		}
		t.write(w)
		if len(views) > 1 {
			fmt.Fprintf(e.err, "the hosts run %s; bring them to one: fleet upgrade --file FILE\n", count(len(views), "program"))
		}
	}})
}
