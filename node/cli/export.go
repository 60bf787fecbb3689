package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// Forms of an export besides formJSON.
const (
	formCSV = "csv"
	formDir = "dir"
)

func (e *env) exportCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "export", ArgsUsage: "COMMAND FILE", Usage: "write a command and all that was kept of its output to files",
		Description: `FILE is new: nothing is overwritten; - is the standard output, for json and csv.

json  {Command, Invocations}, each with its whole output: text, or base64 in
      Bytes when it is not UTF-8.
csv   a line for each host. A cell that a spreadsheet could take for a formula
      begins with a single quote; control characters are shown as escapes.
dir   FILE becomes a directory: index.json with the states, and for each host
      NAME.out and, if it wrote errors, NAME.err, byte for byte.

The files are readable by their owner only. A command that has not ended is
exported with what has come.

` + commandIs + `

Examples:
  fleet command export 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b out.json
  fleet command export 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b -o csv - > out.csv
  fleet command export 6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b -o dir ./out

Exit codes: 0 done, 1 the request failed, 2 some of the output could not be
read, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"o"}, Usage: "`FORM`: json, csv or dir (default: by the end of FILE's name, else dir)"},
		}, clientFlags(), waitFlag()),
	}, 2, 2, e.export)
}

func (e *env) export(c *cli.Context) error {
	if err := checkCommandID(c.Args().First()); err != nil {
		return err
	}
	path := c.Args().Get(1)
	form := c.String("format")
	if form == "" {
		switch filepath.Ext(path) {
		case ".json":
			form = formJSON
		case ".csv":
			form = formCSV
		default:
			form = formDir
		}
	}
	switch {
	case !slices.Contains([]string{formJSON, formCSV, formDir}, form):
		return unknownValue("--format", form, "json", "csv", "dir")
	case form == formDir && path == "-":
		return usagef("a directory cannot go to the standard output").withHint("-o json or -o csv")
	case path == "":
		return usagef("FILE has no name")
	}
	if _, err := os.Lstat(path); path != "-" && !errors.Is(err, fs.ErrNotExist) {
		return fleet.Errorf(fleet.Conflict, "%s is there already", path).WithHint("name a new one: nothing is overwritten")
	}
	api, id, end, err := e.reachCommand(c)
	if err != nil {
		return err
	}
	defer end()
	d, err := describeCommand(c, api, string(id))
	if err != nil {
		return err
	}
	a, err := present(c, api, id)
	if err != nil {
		return err
	}
	x := &exporter{env: e, c: c, api: api, detail: d, answers: a}
	if form == formDir {
		err = x.directory(path)
	} else {
		err = x.file(path, form)
	}
	if err != nil {
		return err
	}
	if path != "-" {
		fmt.Fprintf(e.err, "%s: %s of %d\n", path, count(len(a.final), "host"), a.counts.TargetCount)
	}
	if x.incomplete {
		return exitError(ExitSome)
	}
	return nil
}

// exporter writes one command to files.
type exporter struct {
	env        *env
	c          *cli.Context
	api        *client.Client
	detail     *commandDetail
	answers    *answers
	incomplete bool // some output could not be read
}

// whole is all that was kept of one stream. What cannot be read is said, and
// the beginning taken, which is there.
func (x *exporter) whole(i fleet.InvocationEvent, stream string) ([]byte, error) {
	text := i.Stdout
	if stream == fleet.StreamStderr {
		text = i.Stderr
	}
	if !text.Truncated && i.OutputError == "" {
		return []byte(streamText(text)), nil
	}
	b, err := x.read(i, stream)
	switch kind := fleet.KindOf(err); {
	case err == nil:
		return b, nil
	case x.c.Context.Err() != nil, kind == fleet.NoQuorum, kind == fleet.Denied, kind == fleet.Unauthenticated:
		return nil, err
	}
	x.incomplete = true
	fmt.Fprintf(x.env.err, "%s: %s not read: %s\n", escapeCell(firstOf(i.Name, string(i.InstanceId))), stream, escapeCell(err.Error()))
	return []byte(streamText(text)), nil
}

func (x *exporter) read(i fleet.InvocationEvent, stream string) ([]byte, error) {
	out, err := x.api.Output(x.c.Context, fleet.GetCommandOutputRequest{
		CommandId: x.answers.command, InstanceId: i.InstanceId, Stream: stream,
	})
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // nothing is written
	b, err := io.ReadAll(out)
	if err != nil {
		return nil, fleet.Errorf(fleet.Unavailable, "the output ended early: %w", err)
	}
	return b, nil
}

// full is an invocation with its whole output.
func (x *exporter) full(i fleet.InvocationEvent) (fleet.InvocationEvent, error) {
	for stream, text := range map[string]*fleet.OutputText{fleet.StreamStdout: &i.Stdout, fleet.StreamStderr: &i.Stderr} {
		b, err := x.whole(i, stream)
		if err != nil {
			return i, err
		}
		text.Text, text.Bytes = string(b), nil
		if !utf8.Valid(b) {
			text.Text, text.Bytes = "", b
		}
		text.Truncated = uint64(len(b)) < text.Total
	}
	return i, nil
}

// file writes json or csv, host by host: all together may be more than memory.
func (x *exporter) file(path, form string) error {
	w := x.env.out
	write := x.json
	if form == formCSV {
		write = x.csv
	}
	if path == "-" {
		return write(w)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if err = errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) // half of it would look like all
	}
	return nil
}

func (x *exporter) json(w io.Writer) error {
	cmd, err := json.Marshal(x.detail.Command)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if _, err := fmt.Fprintf(w, "{\"Command\":%s,\n\"Invocations\":[", escapeJSON(string(cmd))); err != nil {
		return err
	}
	for n, i := range x.answers.sorted() {
		i, err := x.full(i)
		if err != nil {
			return err
		}
		b, err := json.Marshal(i)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		separator := ",\n"
		if n == 0 {
			separator = "\n"
		}
		if _, err := io.WriteString(w, separator+escapeJSON(string(b))); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, "\n]}\n")
	return err
}

func (x *exporter) csv(w io.Writer) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"command", "node", "id", "status", "details", "exit_code", "reason", "started", "ended", "stdout", "stderr"}}
	for _, i := range x.answers.sorted() {
		i, err := x.full(i)
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			string(x.answers.command), i.Name, string(i.InstanceId), i.Status, i.StatusDetails, strconv.Itoa(i.ResponseCode), i.Reason,
			date(i.Started), date(i.Ended), streamText(i.Stdout), streamText(i.Stderr),
		})
		if err := writeRows(out, rows); err != nil {
			return err
		}
		rows = rows[:0]
	}
	return writeRows(out, rows) // the head, of a command without answers
}

func writeRows(out *csv.Writer, rows [][]string) error {
	for _, row := range rows {
		for i := range row {
			row[i] = csvCell(row[i])
		}
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// csvCell makes text of a host fit for a spreadsheet: what it would take for a
// formula, also behind spaces, is text by a quote before it. Numbers stay
// numbers.
func csvCell(s string) string {
	s = escape(s)
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return s
	}
	if t := strings.TrimLeft(s, " \t\n"); t != "" && strings.ContainsAny(t[:1], "=+-@") || strings.HasPrefix(s, "\t") {
		return "'" + s
	}
	return s
}

// directory writes one file for each stream of each host.
func (x *exporter) directory(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	root, err := os.OpenRoot(path) // no name of a host leads out of it
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer root.Close() //nolint:errcheck // its files are closed one by one
	type entry struct {
		fleet.InvocationEvent
		OutFile string `json:"OutFile"`
		ErrFile string `json:"ErrFile,omitempty"`
	}
	index := struct {
		Command     any     `json:"Command"`
		Invocations []entry `json:"Invocations"`
	}{x.detail.Command, []entry{}}
	taken := map[string]bool{}
	for _, i := range x.answers.sorted() {
		name := fileName(i.Name)
		if lower := strings.ToLower(name); name == "" || taken[lower] {
			name += "." + fileName(string(i.InstanceId))
		}
		taken[strings.ToLower(name)] = true
		en := entry{InvocationEvent: i, OutFile: name + ".out"}
		for stream, file := range map[string]string{fleet.StreamStdout: name + ".out", fleet.StreamStderr: name + ".err"} {
			b, err := x.whole(i, stream)
			if err == nil && stream == fleet.StreamStderr && len(b) == 0 {
				continue
			}
			if err == nil {
				err = writeNew(root, file, b)
			}
			if err != nil {
				return err
			}
			if stream == fleet.StreamStderr {
				en.ErrFile = file
			}
		}
		for _, o := range []*fleet.OutputText{&en.Stdout, &en.Stderr} {
			o.Text, o.Bytes, o.Truncated = "", nil, false
		}
		index.Invocations = append(index.Invocations, en)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(index); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return writeNew(root, "index.json", []byte(escapeJSON(b.String())))
}

func writeNew(root *os.Root, name string, b []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// reservedNames are names of devices on Windows, whatever follows a dot.
var reservedNames = []string{"con", "prn", "aux", "nul", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9",
	"lpt1", "lpt2", "lpt3", "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9"}

// fileName is a host's name as the name of a file: what is no letter, digit,
// dot or hyphen becomes a hyphen. Names of hosts have none of these, but what
// names files here came over the network.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
	s = strings.TrimLeft(s[:min(len(s), 200)], ".-")
	first, _, _ := strings.Cut(strings.ToLower(s), ".")
	if slices.Contains(reservedNames, first) {
		return "host-" + s
	}
	return s
}
