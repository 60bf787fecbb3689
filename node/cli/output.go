package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
)

// Forms of output.
const (
	formTable = "table"
	formJSON  = "json"
	formYAML  = "yaml"
	formName  = "name"
)

// outputFlag is -o.
func outputFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: formTable,
		Usage: "`FORM` of the result: table, json, yaml or name (default table)"}}
}

// result is what a command prints: the API's struct for programs, a table for
// people (which may change), and names for xargs.
type result struct {
	value any
	table func(w io.Writer)
	names []string
}

func (e *env) print(c *cli.Context, r result) error {
	switch form := c.String("output"); form {
	case formTable:
		r.table(e.out)
		return nil
	case formName:
		for _, n := range r.names {
			if _, err := fmt.Fprintln(e.out, escapeCell(n)); err != nil {
				return err
			}
		}
		return nil
	case formJSON, formYAML:
		text, err := encodeResult(r.value, form)
		if err != nil {
			return err
		}
		_, err = io.WriteString(e.out, text)
		return err
	default:
		return unknownForm(form)
	}
}

// checkForm refuses an unknown form before anything is done.
func checkForm(c *cli.Context) error {
	switch form := c.String("output"); form {
	case formTable, formJSON, formYAML, formName:
		return nil
	default:
		return unknownForm(form)
	}
}

func unknownForm(form string) error {
	return unknownValue("--output", form, formTable, formJSON, formYAML, formName)
}

func encodeResult(v any, form string) (string, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	if form == formJSON {
		return escapeJSON(string(b)) + "\n", nil
	}
	var tree any
	if err := yaml.UnmarshalWithOptions(b, &tree, yaml.UseOrderedMap()); err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	y, err := yaml.Marshal(plainNumbers(tree))
	if err != nil {
		return "", fmt.Errorf("encode: %w", err)
	}
	return escape(string(y)), nil
}

// plainNumbers replaces numbers with a fraction, as times are, by ones that
// are written without an exponent.
func plainNumbers(v any) any {
	switch v := v.(type) {
	case yaml.MapSlice:
		for i := range v {
			v[i].Value = plainNumbers(v[i].Value)
		}
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case float64:
		return plainNumber(v)
	case string:
		if _, err := strconv.ParseFloat(v, 64); err == nil {
			return quoted(v)
		}
	}
	return v
}

// quoted is text that would be read as a number, such as the label 1e9.
type quoted string

func (q quoted) MarshalYAML() ([]byte, error) { return strconv.AppendQuote(nil, string(q)), nil }

type plainNumber float64

func (n plainNumber) MarshalYAML() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(n), 'f', -1, 64), nil
}

// table aligns columns; cells are escaped.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) add(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = escapeCell(cell)
		if row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// write writes the table. On a terminal a line that is too long is cut and ends
// with "…": a line that goes on in the next is read as two.
func (t *table) write(w io.Writer) {
	var width []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], textWidth(cell))
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-textWidth(cell)+2))
			}
		}
		line := b.String()
		if r, ok := w.(*results); ok && r.width > 0 {
			line = cutWidth(line, r.width)
		}
		fmt.Fprintln(w, line)
	}
}

// properties writes names and values, one pair a line.
func properties(w io.Writer, pairs ...string) {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width, pairs[i], escapeCell(pairs[i+1]))
		}
	}
}

// ago says how long ago something was, to two digits or so.
func ago(now time.Time, at fleet.Instant) string {
	if at == 0 {
		return "never"
	}
	d := now.Sub(time.Unix(0, at.Nanos()))
	if d < 0 {
		d = 0
	}
	return short(d) + " ago"
}

func short(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// date is an instant for people, in their own zone.
func date(at fleet.Instant) string {
	if at == 0 {
		return ""
	}
	return time.Unix(0, at.Nanos()).Format("2006-01-02 15:04:05")
}

// count is "1 host", "2 hosts".
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// warningLines writes what is wrong and what to do, beside the result.
func (e *env) warningLines(warnings []fleet.Warning) {
	for _, warning := range warnings {
		fmt.Fprintf(e.err, "%s  %s\n", e.paint(e.errTTY, yellow, "WARNING"), escapeCell(warning.Message))
		if warning.Remedy != "" {
			fmt.Fprintf(e.err, "         %s\n", escapeCell(warning.Remedy))
		}
	}
}
