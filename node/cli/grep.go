package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

const (
	maxMatches  = 100_000 // in JSON, which is held in memory
	maxGrepLine = 64 << 10
)

func (e *env) grepCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "grep", ArgsUsage: "PATTERN [COMMAND...]", Usage: "search what the hosts wrote",
		Description: `It searches both streams of every host, all that was kept of them, line by line:
"web1:12:text" is line 12 of the output, "web1!3:text" line 3 of the error
stream. PATTERN is a regular expression (RE2). Without a COMMAND it searches the
newest one, or the newest N with --last; with several, the beginning of each
command's ID comes first. A line over 64 KiB is searched in parts.

` + commandIs + `

Examples:
  fleet command grep 'I/O error'
  fleet command grep -i -l warning 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b
  fleet command grep -c . --last 5

Exit codes: 0 a line matched, 1 none did or the request failed (which says so),
2 some of the output could not be searched, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(outputFlag(), []cli.Flag{
			&cli.BoolFlag{Name: "ignore-case", Aliases: []string{"i"}, Usage: "capitals and small letters are the same"},
			&cli.BoolFlag{Name: "invert-match", Aliases: []string{"v"}, Usage: "the lines that do not match"},
			&cli.BoolFlag{Name: "hosts", Aliases: []string{"l"}, Usage: "only the names of hosts with such a line"},
			&cli.BoolFlag{Name: "count", Aliases: []string{"c"}, Usage: "only how many such lines each host has"},
			&cli.IntFlag{Name: "last", Value: 1, Usage: "search the newest `N` commands when none is named (default 1)"},
		}, clientFlags(), waitFlag()),
	}, 1, -1, e.grep)
}

// match is one line that was found.
type match struct {
	CommandId  fleet.CommandID `json:"CommandId"`
	InstanceId fleet.NodeID    `json:"InstanceId"`
	Name       string          `json:"Name"`
	Stream     string          `json:"Stream"`
	Line       int             `json:"Line"`
	Text       string          `json:"Text"`
}

// search is one run of grep.
type search struct {
	env     *env
	pattern *regexp.Regexp
	invert  bool
	hosts   bool
	count   bool
	ids     bool // the command's ID comes first
	form    string

	found      bool
	incomplete bool
	matches    []match  // for JSON
	names      []string // for names
}

func (e *env) grep(c *cli.Context) error {
	text := c.Args().First()
	if c.Bool("ignore-case") {
		text = "(?i)" + text
	}
	pattern, err := regexp.Compile(text)
	if err != nil {
		return usagef("PATTERN: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: ")).
			withHint("what is meant as it stands needs a backslash: '\\[error\\]'; the syntax is that of RE2")
	}
	if c.Bool("hosts") && c.Bool("count") {
		return usagef("--hosts and --count exclude each other")
	}
	var ids []fleet.CommandID
	for _, text := range c.Args().Tail() {
		if err := checkCommandID(text); err != nil {
			return err
		}
	}
	last := c.Int("last")
	switch {
	case last < 1 || last > 1000:
		return usagef("--last %d is not between 1 and 1000", last)
	case c.Args().Len() > 1 && c.IsSet("last"):
		return usagef("--last is for when no COMMAND is named")
	}
	api, end, err := e.connectWithin(c)
	if err != nil {
		return err
	}
	defer end()
	for _, text := range c.Args().Tail() {
		id, err := findCommandID(c, api, text)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		newest, err := newestCommands(c, api, ssm.ListCommandsRequest{}, last)
		if err != nil {
			return err
		}
		for _, cmd := range newest.Commands {
			ids = append(ids, fleet.CommandID(cmd.CommandId))
		}
		if len(ids) == 0 {
			return fleet.Errorf(fleet.NotFound, "no command has run yet").WithHint(sayWhatRunsHint)
		}
	}
	s := &search{env: e, pattern: pattern, invert: c.Bool("invert-match"), hosts: c.Bool("hosts"), count: c.Bool("count"),
		ids: len(ids) > 1, form: c.String("output"), matches: []match{}}
	for _, id := range ids {
		if err := s.command(c, api, id); err != nil {
			return err
		}
	}
	if s.form != formTable {
		if err := e.print(c, result{value: s.matches, names: s.names}); err != nil {
			return err
		}
	}
	switch {
	case s.incomplete:
		return exitError(ExitSome)
	case !s.found:
		return exitError(ExitFailed)
	}
	return nil
}

// command searches the answers that one command has by now.
func (s *search) command(c *cli.Context, api *client.Client, id fleet.CommandID) error {
	a, err := present(c, api, id)
	if err != nil {
		return err
	}
	if missing := a.counts.TargetCount - len(a.final); missing > 0 {
		fmt.Fprintf(s.env.err, "%s: %s without an answer yet\n", id, count(missing, "host"))
	}
	labels := a.labels()
	for _, i := range a.sorted() {
		n := 0
		for _, stream := range []string{fleet.StreamStdout, fleet.StreamStderr} {
			found, err := s.stream(c, api, id, i, labels[i.InstanceId], stream)
			n += found
			switch {
			case errors.Is(err, errTooManyMatches):
				return err
			case err != nil && c.Context.Err() == nil && fleet.KindOf(err) != fleet.NoQuorum:
				s.incomplete = true
				fmt.Fprintf(s.env.err, "%s: not searched: %s\n", escapeCell(labels[i.InstanceId]), escapeCell(err.Error()))
			case err != nil:
				return err
			}
		}
		s.found = s.found || n > 0
		if n > 0 {
			s.names = append(s.names, string(i.InstanceId))
		}
		if s.form != formTable {
			continue
		}
		switch head := s.head(id) + escapeCell(labels[i.InstanceId]); {
		case s.hosts && n > 0:
			fmt.Fprintln(s.env.out, head)
		case s.count:
			fmt.Fprintf(s.env.out, "%s:%d\n", head, n)
		}
	}
	return nil
}

func (s *search) head(id fleet.CommandID) string {
	if !s.ids {
		return ""
	}
	return string(id)[:8] + " "
}

var errTooManyMatches = fleet.Errorf(fleet.TooLarge, "more than %d lines match", maxMatches).
	WithHint("a narrower PATTERN, or text instead of %s", "-o json")

// stream searches one stream of one host.
func (s *search) stream(c *cli.Context, api *client.Client, id fleet.CommandID, i fleet.InvocationEvent, name, stream string) (found int, err error) {
	text, mark := i.Stdout, ":"
	if stream == fleet.StreamStderr {
		text, mark = i.Stderr, "!"
	}
	if text.Total == 0 && i.OutputError == "" {
		return 0, nil
	}
	var src io.Reader = strings.NewReader(streamText(text))
	if text.Truncated || i.OutputError != "" {
		out, err := api.Output(c.Context, fleet.GetCommandOutputRequest{CommandId: id, InstanceId: i.InstanceId, Stream: stream})
		if err != nil {
			return 0, err
		}
		defer out.Close() //nolint:errcheck // nothing is written
		src = out
	}
	err = eachLine(src, func(n int, line []byte) error {
		if s.pattern.Match(line) == s.invert {
			return nil
		}
		found++
		switch {
		case s.form != formTable:
			if len(s.matches) == maxMatches {
				return errTooManyMatches
			}
			s.matches = append(s.matches, match{id, i.InstanceId, i.Name, stream, n, strings.ToValidUTF8(string(line), "\ufffd")})
		case !s.hosts && !s.count:
			_, err := fmt.Fprintf(s.env.out, "%s%s%s%d:%s\n", s.head(id), escapeCell(name), mark, n, escape(string(line)))
			return err
		}
		return nil
	})
	return found, err
}

// eachLine calls f with each line, without its end, and its number from 1. A
// long line comes in parts of one number.
func eachLine(src io.Reader, f func(n int, line []byte) error) error {
	r := bufio.NewReaderSize(src, maxGrepLine)
	for n, whole := 1, true; ; {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 && (whole || len(bytes.TrimSuffix(line, []byte("\n"))) > 0) {
			if ferr := f(n, bytes.TrimSuffix(line, []byte("\n"))); ferr != nil {
				return ferr
			}
		}
		switch whole = !errors.Is(err, bufio.ErrBufferFull); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && whole:
			return fleet.Errorf(fleet.Unavailable, "the output ended early: %w", err)
		case whole:
			n++
		}
	}
}

// present is a command with the answers that it has by now; nothing is waited
// for.
func present(c *cli.Context, api *client.Client, id fleet.CommandID) (*answers, error) {
	a := newAnswers(id)
	// The present state of each target comes first, and then the counters.
	err := api.Watch(c.Context, fleet.WatchCommandRequest{CommandId: id, Output: true}, func(ev fleet.WatchEvent) error {
		a.add(ev)
		if ev.Command != nil && !ev.Command.Ended {
			return errSeenEnough
		}
		return nil
	})
	if errors.Is(err, errSeenEnough) {
		err = nil
	}
	return a, err
}

// errSeenEnough ends a watch; no other attempt would show more.
var errSeenEnough = fleet.Errorf(fleet.Invalid, "the present state has been seen")
