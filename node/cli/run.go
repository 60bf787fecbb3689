package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/runcmd"
	"fleet/node/ssm"
)

const (
	shellDocument   = "Fleet-RunShellScript"
	defaultDelivery = time.Minute
	leastDelivery   = 30 * time.Second
	askFrom         = 51 // targets
	maxScript       = 48 << 10
	sayWhatRunsHint = "fleet run --all -- uname -r"
)

// shells are the words of --shell.
var shells = []string{"auto", "sh", "bash", "powershell"}

func (e *env) runCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "run", Category: categoryDaily, ArgsUsage: "[--] COMMAND...  |  run [FLAGS] SET -- COMMAND...", Usage: "run a command on hosts and show every answer",
		Description: `The command begins at the first word that is not a flag, or after --: what
follows is the command's, its flags too. The words are joined by spaces and run
by the shell of each host, as root. Without a command it is read from --script
or from the standard input, if that is not a terminal.

Which hosts: --all is every host. --node takes names, IDs and node sets as
ClusterShell writes them: web[01-20], web[1-9/2], rack[1-2]n[01-04], web* and
@* (all), @NAME for a saved target; "," adds, "!" takes away, "&" keeps what is in both, "^" what is in one.
--label KEY=VALUE selects by label: KEY=A,B is either, KEY alone any value;
repeated labels must all hold. --exclude takes hosts away from all of that. Quote a set for your shell.

A host's output comes when it is done, not before. Equal answers are then shown
once, with the names of their hosts; --diff shows how the others differ from the
largest group; --no-fold shows each answer when its host is done, each line after
the host's name (a "!" instead of the ":" marks the error stream). At the end
stand one line of totals, and who did not succeed with what to do.

The script gets a small environment of its own (PATH, HOME, LANG and what says
which command and host it is) and what --env adds: values arrive byte for byte,
whatever they hold. They are kept with the command, for every operator to read:
they are no place for secrets.

--concurrency runs it on some hosts at a time, --max-errors ends that when too
many have failed: those that run go on, the others end as Terminated. All hosts
take the command at once and wait; the first to run is one alone, then two more
for each that begins, up to the limit. A host that falls silent in its turn keeps
its place until its time is over, so that there are never more.

The command is a decided thing of its own: Ctrl-C on a terminal asks whether to
cancel it or only to stop waiting; elsewhere it stops waiting. The command goes
on unless it is cancelled, and "fleet command attach" waits for it again.

Examples:
  fleet run --all -- uname -r
  fleet run 'web[01-20]!web07' -- systemctl is-active nginx
  fleet run --label env=prod --label role=web,api --diff -- cat /etc/resolv.conf
  fleet run --node web1,web2 --timeout 10m -- 'apt-get update && apt-get -y upgrade'
  fleet run --label role=web --concurrency 10% --max-errors 2 -- apt-get -y upgrade
  fleet run --all --exclude db1 --env "WHO=$USER" --script ./check.sh

Exit codes: 0 all succeeded, 1 the request failed or the waiting ended,
2 some hosts did not succeed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(selectFlags(), []cli.Flag{
			&cli.StringFlag{Name: "timeout", Usage: "end it on a host after `DURATION`, 5s to 48h (default 1h)"},
			&cli.StringFlag{Name: "script", Usage: "run `FILE` instead of a command; - is the standard input"},
			&cli.StringFlag{Name: "shell", Value: "auto",
				Usage: "`SHELL` that runs it: auto, sh, bash or powershell; auto is /bin/sh or what the first line names (#!), on Windows PowerShell"},
			&cli.GenericFlag{Name: "env", Aliases: []string{"e"}, Value: &rawValues{}, Usage: "set a variable `NAME=VALUE` for it; may be repeated"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER` of the host instead of root"},
			&cli.StringFlag{Name: "workdir", Usage: "begin in `DIRECTORY` of the host (default: the home of its user)"},
			&cli.StringFlag{Name: "comment", Usage: "`TEXT` that is kept with the command"},
		}, paceFlags("all"), sendFlags(), answerFlags(), outputFlag(), clientFlags()),
	}, 0, -1, e.run)
}

// sendFlags say how a command is sent.
func sendFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "deliver-within", Value: "60s",
			Usage: "do not start it on hosts that are not reached within `DURATION`, 30s or more, of sending it and of their turn (default 60s)"},
		&cli.BoolFlag{Name: "detach", Usage: "do not wait for answers; print the command's ID"},
		&cli.BoolFlag{Name: "dry-run", Usage: "list the hosts that would run it, and stop"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask, however many hosts there are"},
	}
}

// answerFlags say how answers are shown.
func answerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "diff", Usage: "show how answers differ from those of the largest group"},
		&cli.BoolFlag{Name: "no-fold", Usage: "show each answer when its host is done, not all at the end, each line after the name of the host"},
		&cli.BoolFlag{Name: "raw", Usage: "do not escape control characters in output; not on a terminal"},
	}
}

func (e *env) run(c *cli.Context) error {
	if err := checkAnswerFlags(c); err != nil {
		return err
	}
	s, words, err := readSelection(c)
	if err != nil {
		return err
	}
	req, err := e.sendRequest(c, words)
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
	e.notes(s.notes)
	s.fill(req)
	return e.launch(c, api, req, s.nodes)
}

func checkAnswerFlags(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	if c.Bool("diff") && c.Bool("no-fold") {
		return usagef("--diff and --no-fold exclude each other: differences are known when all have answered")
	}
	return nil
}

// sendRequest makes the request of what to run; where comes later.
func (e *env) sendRequest(c *cli.Context, words []string) (*ssm.SendCommandRequest, error) {
	text, err := e.script(c, words)
	if err != nil {
		return nil, err
	}
	if err := checkText(text); err != nil {
		return nil, usagef("what should run cannot travel: %s", err)
	}
	deliver, err := deliverWithin(c)
	if err != nil {
		return nil, err
	}
	timeout, err := executionTimeout(c)
	if err != nil {
		return nil, err
	}
	if s := c.String("shell"); !slices.Contains(shells, s) {
		return nil, usagef("--shell %q is none of %s", s, strings.Join(shells, ", ")).
			withHint("another interpreter: a --script whose first line names it, such as #!/usr/bin/python3")
	}
	variables, err := variables(c)
	if err != nil {
		return nil, err
	}
	req := &ssm.SendCommandRequest{
		DocumentName: shellDocument, Parameters: map[string][]string{"commands": {text}}, TimeoutSeconds: int(deliver / time.Second),
		Comment: c.String("comment"), RunAs: c.String("user"),
	}
	if err := paceOf(c, req, fleet.Unlimited, fleet.Unlimited); err != nil {
		return nil, err
	}
	if timeout != nil {
		req.Parameters["executionTimeout"] = timeout
	}
	if len(variables) > 0 {
		req.Parameters["environment"] = variables
	}
	if s := c.String("shell"); s != "auto" {
		req.Parameters["shell"] = []string{s}
	}
	if dir := c.String("workdir"); dir != "" {
		req.Parameters["workingDirectory"] = []string{dir}
	}
	return req, nameDocument(req)
}

// nameDocument says in the request, by its digest, which content of the
// document is meant: it is signed, so that no voter puts another in its place.
func nameDocument(req *ssm.SendCommandRequest) error {
	content, _, ok := document.Builtin(req.DocumentName)
	if !ok {
		return fleet.Errorf(fleet.NotFound, "this program does not know the document %q", req.DocumentName).
			WithHint("it knows %s", strings.Join(document.BuiltinNames(), ", "))
	}
	req.DocumentHash, req.DocumentHashType = fleet.Sum(content).String(), "Sha256"
	return nil
}

// executionTimeout is --timeout as the parameter of the built-in documents; nil
// when it is not given.
func executionTimeout(c *cli.Context) ([]string, error) {
	timeout, err := durationFlag(c, "timeout")
	switch {
	case err != nil || timeout == 0:
		return nil, err
	case timeout < document.MinTimeout || timeout > document.MaxTimeout:
		return nil, usagef("--timeout %s: from 5s to 48h", c.String("timeout"))
	}
	return []string{strconv.Itoa(int(timeout / time.Second))}, nil
}

func deliverWithin(c *cli.Context) (time.Duration, error) {
	deliver, err := durationFlag(c, "deliver-within")
	switch {
	case err != nil:
		return 0, err
	case deliver == 0:
		return defaultDelivery, nil
	case deliver < leastDelivery:
		return 0, usagef("--deliver-within %s is less than %s", deliver, leastDelivery)
	}
	return deliver, nil
}

// rawValues is a flag that may be repeated and keeps each value as it is. The
// library's own lists trim spaces, and replace what is not UTF-8.
type rawValues []string

// copied is what the library sets under the other names of the flag, whose
// value is this same one. No argument can hold a NUL.
const copied = "\x00"

func (r *rawValues) Set(s string) error {
	if s != copied {
		*r = append(*r, s)
	}
	return nil
}
func (r *rawValues) String() string    { return "" }
func (r *rawValues) Serialize() string { return copied }

// variables reads --env and checks it as the hosts will.
func variables(c *cli.Context) ([]string, error) {
	values, ok := c.Generic("env").(*rawValues)
	if !ok {
		return nil, nil
	}
	all := []string(*values)
	for _, v := range all {
		name, _, ok := strings.Cut(v, "=")
		if !ok {
			return nil, usagef("--env %.64q is not NAME=VALUE", name)
		}
		if err := checkText(v); err != nil {
			return nil, usagef("--env %.64q: %s", name, err).withHint("bytes that are no text: encode them, for example with base64")
		}
	}
	if err := runcmd.CheckEnvironment(all); err != nil {
		return nil, usagef("--env: %s", err)
	}
	return all, nil
}

// script is what the shell is given: the words of the command line, a file, or
// what is piped in.
func (e *env) script(c *cli.Context, words []string) (string, error) {
	path, what := c.String("script"), "--script"
	switch {
	case path == "" && len(words) == 1 && words[0] == "-":
		path, what = "-", "standard input"
	case path == "" && len(words) > 0:
		return strings.Join(words, " "), nil
	case path == "" && e.inTTY:
		return "", usagef("what should run?").withHint(sayWhatRunsHint)
	case path == "":
		path, what = "-", "standard input"
	case len(words) > 0:
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
	switch {
	case err != nil:
		return "", fleet.Errorf(fleet.Invalid, "%s: %w", what, err)
	case len(b) > maxScript:
		return "", fleet.Errorf(fleet.TooLarge, "%s: over %d bytes", what, maxScript).WithHint("put the file on the hosts another way, and run it there")
	case len(strings.TrimSpace(string(b))) == 0 && what == "standard input":
		return "", usagef("what should run? The standard input is empty").withHint(sayWhatRunsHint)
	case len(strings.TrimSpace(string(b))) == 0:
		return "", usagef("%s: it is empty", what)
	}
	return string(b), nil
}

// checkText accepts what travels in JSON as it is: other bytes would silently
// become other ones.
func checkText(s string) error {
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return errors.New("it is not UTF-8 text without NUL")
	}
	return nil
}

// dryRun lists who would run a command.
func (e *env) dryRun(c *cli.Context, req *ssm.SendCommandRequest, nodes []fleet.NodeView) error {
	return e.print(c, result{value: fleet.DescribeNodesResult{Nodes: nodes}, names: nodeNames(nodes), table: func(w io.Writer) {
		t := newTable("NAME", "ID", "LABELS")
		slices.SortFunc(nodes, func(a, b fleet.NodeView) int { return naturalCompare(a.Name, b.Name) })
		for _, n := range nodes {
			t.add(n.Name, string(n.InstanceId), labelText(n.Labels))
		}
		t.write(w)
		text := count(len(nodes), "host") + " would run it"
		if pace := paceText(req.MaxConcurrency, req.MaxErrors, len(nodes)); pace != "" {
			text += ": " + pace
		}
		fmt.Fprintln(e.err, text)
	}})
}
