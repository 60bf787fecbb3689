package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Categories of the program's help.
const (
	categoryDaily = "daily"
	categoryHost  = "host"
	categoryMe    = "me"
	categoryNouns = "nouns"
)

// writeHelp writes the help of the whole program, of a noun or of a command.
func (e *env) writeHelp(tree, path []*cli.Command) {
	switch {
	case len(path) == 0:
		programHelp(e.out, tree)
	case len(path[len(path)-1].Subcommands) > 0:
		nounHelp(e.out, path)
	default:
		commandHelp(e.out, path)
	}
}

func programHelp(w io.Writer, tree []*cli.Command) {
	fmt.Fprint(w, "fleet: manage hosts from any of them; no server to install, no cloud to reach\n\n"+
		"Usage: fleet COMMAND [ARGUMENTS] [FLAGS]\n")
	for _, category := range []string{categoryDaily, categoryHost, categoryMe, categoryNouns} {
		fmt.Fprintf(w, "\n%s\n", category)
		var rows [][2]string
		for _, c := range tree {
			if c.Category != category || c.Hidden {
				continue
			}
			usage := c.Usage
			if len(c.Subcommands) > 0 {
				usage += ": " + strings.Join(names(c.Subcommands), ", ")
			}
			rows = append(rows, [2]string{c.Name, usage})
		}
		writePairs(w, rows)
	}
	fmt.Fprint(w, "\nfleet COMMAND --help says more.\n")
}

func nounHelp(w io.Writer, path []*cli.Command) {
	c := path[len(path)-1]
	fmt.Fprintf(w, "fleet %s: %s\n\nUsage: fleet %s COMMAND\n\n", c.Name, c.Usage, c.Name)
	var rows [][2]string
	for _, sub := range c.Subcommands {
		rows = append(rows, [2]string{strings.TrimSpace(sub.Name + " " + sub.ArgsUsage), sub.Usage})
	}
	writePairs(w, rows)
	fmt.Fprintf(w, "\nfleet %s COMMAND --help says more.\n", c.Name)
}

func commandHelp(w io.Writer, path []*cli.Command) {
	c := path[len(path)-1]
	name := (&line{path: path}).name()
	fmt.Fprintf(w, "%s: %s\n\nUsage: %s\n", name, c.Usage, strings.TrimSpace(name+" [FLAGS] "+c.ArgsUsage))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(w, "Also: %s\n", strings.Join(c.Aliases, ", "))
	}
	if c.Description != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.Description))
	}
	var rows [][2]string
	for _, f := range c.Flags {
		rows = append(rows, flagRow(f))
	}
	if len(rows) > 0 {
		fmt.Fprint(w, "\nFlags:\n")
		writePairs(w, rows)
	}
}

// flagRow is a flag and its usage; the word of the usage that stands in back
// quotes is the name of its value.
func flagRow(f cli.Flag) [2]string {
	var usage string
	if doc, ok := f.(cli.DocGenerationFlag); ok {
		usage = doc.GetUsage()
	}
	value := ""
	if _, isBool := f.(*cli.BoolFlag); !isBool {
		value = " " + firstOf(valueName(usage), "VALUE")
	}
	long := f.Names()[0]
	text := "    --" + long + value
	for _, n := range f.Names()[1:] {
		if len(n) == 1 {
			text = "-" + n + ", --" + long + value
		}
	}
	return [2]string{text, strings.ReplaceAll(usage, "`", "")}
}

// valueName is the word of a flag's usage that stands in back quotes.
func valueName(usage string) string {
	_, rest, _ := strings.Cut(usage, "`")
	name, _, ok := strings.Cut(rest, "`")
	if !ok {
		return ""
	}
	return name
}

func writePairs(w io.Writer, rows [][2]string) {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		fmt.Fprintf(w, "  %-*s  %s\n", width, r[0], r[1])
	}
}

// flags joins lists of flags.
func flags(lists ...[]cli.Flag) []cli.Flag { return slices.Concat(lists...) }
