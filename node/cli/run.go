package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/nodeset"
	"fleet/node/ssm"
)

const (
	shellDocument      = "AWS-RunShellScript"
	defaultDelivery    = time.Minute
	leastDelivery      = 30 * time.Second
	askFrom            = 51 // targets
	maxNamed           = 50 // SSM's limit of InstanceIds
	maxScript          = 48 << 10
	everyNode          = "*"
	unlimited          = "100%" // of concurrency and of errors
	sayWhatRunsHint    = "fleet run --all -- uname -r"
	selectTargetsHint  = "--all, --node NAME or --label KEY=VALUE"
	tooManyTargetsHint = "select more of them at once with --label"
)

func (e *env) runCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "run", Category: categoryDaily, ArgsUsage: "[--] COMMAND...", Usage: "run a command on hosts and show every answer",
		Description: `The command begins at the first word that is not a flag, or after --: what
follows is the command's, its flags too. The words are joined by spaces and run
by the shell of each host, as root. Equal answers are shown once, with the names
of their hosts; then who did not succeed, with what to do.

--all is every host. --node takes names or IDs. --label KEY=VALUE selects by
label: KEY=A,B is either, repeated labels must all hold.

The command is a decided thing of its own: Ctrl-C stops the waiting, not the
command, and "fleet command show" tells how it went.

Examples:
  fleet run --all -- uname -r
  fleet run --label env=prod --label role=web,api -- systemctl is-active nginx
  fleet run --node web1,web2 --timeout 10m -- 'apt-get update && apt-get -y upgrade'
  fleet run --node web1 --script ./check.sh

Exit codes: 0 all succeeded, 1 the request failed, 2 some hosts did not succeed,
3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "run on every host"},
			&cli.StringSliceFlag{Name: "node", Usage: "run on the host `NODE`, a name, an ID or a set such as web[01-20]; several with commas or repeated"},
			&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"},
				Usage: "run on hosts with the label `KEY=VALUE`; KEY=A,B is either; repeated, all must hold"},
			&cli.StringFlag{Name: "timeout", Usage: "kill it on a host after `DURATION`, 5s to 48h (default 1h)"},
			&cli.StringFlag{Name: "deliver-within", Value: "60s",
				Usage: "do not start it on hosts that are not reached within `DURATION`, 30s or more (default 60s)"},
			&cli.StringFlag{Name: "script", Usage: "run `FILE` instead of a command; - is the standard input"},
			&cli.StringFlag{Name: "user", Usage: "run as `USER` of the host instead of root"},
			&cli.StringFlag{Name: "comment", Usage: "`TEXT` that is kept with the command"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait for answers; print the command's ID"},
			&cli.BoolFlag{Name: "dry-run", Usage: "list the hosts that would run it, and stop"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask, however many hosts there are"},
			&cli.BoolFlag{Name: "no-fold", Usage: "show each answer when its host is done, not all at the end, each line after the name of the host"},
			&cli.BoolFlag{Name: "raw", Usage: "do not escape control characters in output; not on a terminal"},
		}, outputFlag(), clientFlags()),
	}, 0, -1, e.run)
}

// runResult is what run and command output print as JSON.
type runResult struct {
	Command     fleet.CommandEvent      `json:"Command"`
	Invocations []fleet.InvocationEvent `json:"Invocations"`
}

func (e *env) run(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	req, err := e.sendRequest(c)
	if err != nil {
		return err
	}
	s, err := readSelection(c)
	if err != nil {
		return err
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	if err := s.resolve(c, api); err != nil {
		return err
	}
	var nodes []fleet.NodeView
	if !c.Bool("detach") || c.Bool("dry-run") || len(s.labels) > 0 || e.inTTY {
		// Who will be asked is known before anything is decided: that it is
		// nobody, that it is many, and later who is missing.
		if nodes, err = s.members(c, api); err != nil {
			return err
		}
		if len(nodes) == 0 {
			return fleet.Errorf(fleet.NotFound, "no node matches").WithHint("see the labels: fleet node ls")
		}
	}
	if c.Bool("dry-run") {
		return e.dryRun(c, nodes)
	}
	if err := e.confirmMany(c, s, len(nodes)); err != nil {
		return err
	}
	s.fill(req)
	var sent ssm.SendCommandResult
	if err := api.Call(c.Context, "SendCommand", req, &sent); err != nil {
		return err
	}
	if sent.Command.TargetCount == 0 {
		// The labels have changed since they were looked up.
		return fleet.Errorf(fleet.NotFound, "no node matches: the command %s ran nowhere", sent.Command.CommandId).
			WithHint("see the labels: fleet node ls")
	}
	if c.Bool("detach") {
		return e.print(c, result{value: sent, names: []string{sent.Command.CommandId}, table: func(w io.Writer) {
			fmt.Fprintln(w, sent.Command.CommandId)
		}})
	}
	a := newAnswers(fleet.CommandID(sent.Command.CommandId))
	a.sent, a.expected = true, map[fleet.NodeID]string{}
	for _, n := range nodes {
		a.expected[n.InstanceId] = firstOf(n.Name, string(n.InstanceId))
	}
	return e.follow(c, api, a, c.Bool("no-fold"))
}

// sendRequest makes the request of what to run; where comes later.
func (e *env) sendRequest(c *cli.Context) (*ssm.SendCommandRequest, error) {
	text, err := e.script(c)
	if err != nil {
		return nil, err
	}
	deliver, err := durationFlag(c, "deliver-within", time.Second)
	if err != nil {
		return nil, err
	}
	if deliver == 0 {
		deliver = defaultDelivery
	}
	if deliver < leastDelivery {
		return nil, usagef("--deliver-within %s is less than %s", deliver, leastDelivery)
	}
	timeout, err := durationFlag(c, "timeout", time.Second)
	if err != nil {
		return nil, err
	}
	if timeout != 0 && (timeout < document.MinTimeout || timeout > document.MaxTimeout) {
		return nil, usagef("--timeout %s: from 5s to 48h", c.String("timeout"))
	}
	content, _, ok := document.Builtin(shellDocument)
	if !ok {
		return nil, fmt.Errorf("the document %s is missing in this program", shellDocument)
	}
	req := &ssm.SendCommandRequest{
		DocumentName: shellDocument, DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Parameters: map[string][]string{"commands": {text}}, TimeoutSeconds: int(deliver / time.Second),
		Comment: c.String("comment"), RunAs: c.String("user"), MaxConcurrency: unlimited, MaxErrors: unlimited,
	}
	if timeout > 0 {
		req.Parameters["executionTimeout"] = []string{strconv.Itoa(int(timeout / time.Second))}
	}
	return req, nil
}

// script is what the shell is given: the words of the command line, or a file.
func (e *env) script(c *cli.Context) (string, error) {
	path := c.String("script")
	switch {
	case path == "" && c.Args().Len() == 0:
		return "", usagef("what should run?").withHint(sayWhatRunsHint)
	case path == "":
		return strings.Join(c.Args().Slice(), " "), nil
	case c.Args().Len() > 0:
		return "", usagef("--script and a command exclude each other")
	}
	src := e.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fleet.Errorf(fleet.Invalid, "--script: %w", err)
		}
		defer f.Close() //nolint:errcheck // nothing is written
		src = f
	}
	b, err := io.ReadAll(io.LimitReader(src, maxScript+1))
	if err != nil {
		return "", fleet.Errorf(fleet.Invalid, "--script: %w", err)
	}
	if len(b) > maxScript {
		return "", fleet.Errorf(fleet.TooLarge, "--script: over %d bytes", maxScript)
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		return "", usagef("--script: it is empty")
	}
	return string(b), nil
}

// selection is which hosts are meant.
type selection struct {
	all    bool
	nodes  []string // names or IDs; IDs after resolve
	labels []fleet.LabelFilter
}

func readSelection(c *cli.Context) (*selection, error) {
	labels, err := labelFilters(c)
	if err != nil {
		return nil, err
	}
	nodes, err := expandNodes(c.StringSlice("node"))
	if err != nil {
		return nil, err
	}
	s := &selection{all: c.Bool("all"), nodes: nodes, labels: labels}
	switch {
	case len(s.nodes) > maxNamed:
		return nil, usagef("%d hosts are named, %d can be", len(s.nodes), maxNamed).withHint(tooManyTargetsHint)
	case s.all && (len(s.nodes) > 0 || len(labels) > 0):
		return nil, usagef("--all is every host: --node and --label would mean fewer")
	case !s.all && len(s.nodes) == 0 && len(labels) == 0 && slices.ContainsFunc(c.Args().Slice(), selects):
		return nil, usagef("on which hosts?").withHint("flags after the first word are the command's own: put %s before it", selectTargetsHint)
	case !s.all && len(s.nodes) == 0 && len(labels) == 0:
		return nil, usagef("on which hosts?").withHint(selectTargetsHint)
	}
	return s, nil
}

// expandNodes lists the hosts that the values of --node name. A value is a list
// with commas or, with one of the characters []!&^, a node set as ClusterShell
// writes it. A set that comes to nothing is an error: it must not fall back to
// other selectors.
func expandNodes(values []string) ([]string, error) {
	var names []string
	for _, v := range values {
		if !strings.ContainsAny(v, "[]!&^") {
			names = append(names, splitCommas([]string{v})...)
			continue
		}
		set, err := nodeset.Parse(v, maxNamed)
		if err != nil {
			return nil, err
		}
		if set.Len() == 0 {
			return nil, usagef("--node %s names no host", v)
		}
		names = append(names, set.Names()...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// selects reports whether an argument looks like a flag that selects hosts.
func selects(arg string) bool {
	name, _, _ := strings.Cut(arg, "=")
	return slices.Contains([]string{"--all", "--node", "--label", "-l"}, name)
}

// resolve turns names into IDs. A name that several hosts have is refused:
// which one was meant cannot be known.
func (s *selection) resolve(c *cli.Context, api *client.Client) error {
	known := func(n string) bool { _, err := fleet.ParseNodeID(n); return err == nil }
	if !slices.ContainsFunc(s.nodes, func(n string) bool { return !known(n) }) {
		return nil
	}
	found, err := describeNodes(c, api, fleet.DescribeNodesRequest{Nodes: s.nodes, Brief: true})
	if err != nil {
		return err
	}
	var ids []string
	for _, name := range s.nodes {
		if known(name) {
			ids = append(ids, name)
			continue
		}
		n, err := theOne(slices.DeleteFunc(slices.Clone(found), func(n fleet.NodeView) bool { return n.Name != name }), name)
		if err != nil {
			return err
		}
		ids = append(ids, string(n.InstanceId))
	}
	slices.Sort(ids)
	s.nodes = slices.Compact(ids)
	return nil
}

// fill writes the selection into the request.
func (s *selection) fill(req *ssm.SendCommandRequest) {
	if len(s.nodes) > 0 && len(s.labels) == 0 && len(s.nodes) <= maxNamed {
		req.InstanceIds = s.nodes
		return
	}
	if s.all {
		req.Targets = []ssm.Target{{Key: "InstanceIds", Values: []string{everyNode}}}
	}
	if len(s.nodes) > 0 {
		req.Targets = append(req.Targets, ssm.Target{Key: "InstanceIds", Values: s.nodes})
	}
	for _, l := range s.labels {
		if len(l.Values) == 0 {
			req.Targets = append(req.Targets, ssm.Target{Key: "tag-key", Values: []string{l.Key}})
		} else {
			req.Targets = append(req.Targets, ssm.Target{Key: "tag:" + l.Key, Values: l.Values})
		}
	}
}

// members lists the hosts that the selection means now.
func (s *selection) members(c *cli.Context, api *client.Client) ([]fleet.NodeView, error) {
	return describeNodes(c, api, fleet.DescribeNodesRequest{Nodes: s.nodes, Labels: s.labels, Brief: true})
}

func (e *env) dryRun(c *cli.Context, nodes []fleet.NodeView) error {
	return e.print(c, result{value: fleet.DescribeNodesResult{Nodes: nodes}, names: nodeNames(nodes), table: func(w io.Writer) {
		t := newTable("NAME", "ID", "LABELS")
		slices.SortFunc(nodes, func(a, b fleet.NodeView) int { return naturalCompare(a.Name, b.Name) })
		for _, n := range nodes {
			t.add(n.Name, string(n.InstanceId), labelText(n.Labels))
		}
		t.write(w)
		fmt.Fprintf(e.err, "%s would run it\n", count(len(nodes), "host"))
	}})
}

// confirmMany asks before a command goes to many hosts, where somebody can
// answer.
func (e *env) confirmMany(c *cli.Context, s *selection, hosts int) error {
	if c.Bool("yes") || !e.inTTY || len(s.nodes) > 0 || hosts < askFrom {
		return nil
	}
	return e.confirm(fmt.Sprintf("Run on %d hosts?", hosts))
}

// follow waits for the answers and prints them; what has come when the waiting
// ends before the command is printed too.
func (e *env) follow(c *cli.Context, api *client.Client, a *answers, stream bool) error {
	raw := c.Bool("raw") && !e.outTTY
	table := c.String("output") == formTable
	began := e.now()
	progress := e.newProgress(table)
	err := api.Watch(c.Context, fleet.WatchCommandRequest{CommandId: a.command, Output: true}, func(ev fleet.WatchEvent) error {
		a.add(ev)
		if stream && table && ev.Invocation != nil && ev.Invocation.Final {
			progress.clear()
			e.writeStreamed(a, *ev.Invocation, raw)
		}
		progress.show(a)
		return nil
	})
	progress.clear()
	if err != nil && a.counts.TargetCount == 0 {
		return e.leftBehind(c.Context, a, err) // nothing has come
	}
	printErr := e.print(c, result{
		value: runResult{Command: a.counts, Invocations: a.sorted()}, names: []string{string(a.command)},
		table: func(w io.Writer) {
			if !stream {
				e.writeFolded(w, a, raw)
			}
			fmt.Fprintf(e.err, "%s, %s\n", a.totals(), short(e.now().Sub(began)))
			if missing := a.missing(); err != nil && len(missing) > 0 {
				text := foldNames(missing)
				if others := a.counts.TargetCount - len(a.final) - len(missing); others > 0 {
					text += fmt.Sprintf(" and %d that did not begin", others)
				}
				fmt.Fprintf(e.err, "no answer yet: %s\n", escapeCell(text))
			}
			e.writeFailures(e.err, a)
		},
	})
	if printErr != nil {
		return printErr
	}
	if err != nil {
		return e.leftBehind(c.Context, a, err)
	}
	if a.counts.SuccessCount < a.counts.TargetCount {
		return exitError(ExitSome)
	}
	return nil
}

// leftBehind explains a wait that ended before the command did.
func (e *env) leftBehind(ctx context.Context, a *answers, err error) error {
	if a.sent || a.counts.TargetCount > 0 {
		fmt.Fprintf(e.err, "the command goes on: fleet command show %s\nits answers: fleet command output %s\n", a.command, a.command)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return exitError(ExitFailed)
	}
	return err
}

// writeStreamed writes one answer, each line after the name of its host.
func (e *env) writeStreamed(a *answers, i fleet.InvocationEvent, raw bool) {
	name := escapeCell(firstOf(i.Name, string(i.InstanceId)))
	more := fmt.Sprintf("fleet command output %s %s", a.command, escapeCell(a.argument(i)))
	writeStream(e.out, name+": ", i.Stdout, raw, more)
	writeStream(e.out, name+"! ", i.Stderr, raw, more+" --stderr")
	if i.OutputError != "" {
		fmt.Fprintf(e.out, "%s: (%s)\n", name, escapeCell(i.OutputError))
	}
}

// progressWidth keeps the line from going on in the next row, where it could
// not be taken back.
const progressWidth = 79

// progress is one line on the terminal that is written again and again.
type progress struct {
	w     io.Writer // nil: none
	shown bool
}

func (e *env) newProgress(wanted bool) *progress {
	if !wanted || !e.errTTY || e.getenv("TERM") == "dumb" {
		return &progress{}
	}
	return &progress{w: e.err}
}

func (p *progress) show(a *answers) {
	if p.w == nil {
		return
	}
	text := fmt.Sprintf("%d of %d done, %d running", a.counts.CompletedCount, a.counts.TargetCount, len(a.open))
	if a.counts.ErrorCount > 0 {
		text += fmt.Sprintf(", %d failed", a.counts.ErrorCount)
	}
	if missing := a.missing(); len(missing) > 0 {
		text += ", waiting for " + foldNames(missing)
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", cut(escapeCell(text), progressWidth))
	p.shown = true
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
