package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
)

// Manual pages, in roff, from the literals that the help is made of: one for
// the program and one for each command, fleet-node-ls.1. Packages ship them.

// manCommand is not in the help: it is for who builds packages.
func (e *env) manCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "man", Hidden: true, ArgsUsage: "DIR", Usage: "write the manual pages into a directory",
		Description: `The directory is made if it is not there; pages that are there are replaced.

Example:
  fleet man /usr/share/man/man1

Exit codes: 0 done, 1 it failed, 64 usage`,
	}, 1, 1, func(c *cli.Context) error {
		dir := c.Args().First()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fleet.Errorf(fleet.Invalid, "the directory of the manual pages: %w", err)
		}
		pages := manPages(e.commands(), e.version)
		var failures []error
		for name, page := range pages {
			failures = append(failures, os.WriteFile(filepath.Join(dir, name), page, 0o644))
		}
		if err := errors.Join(failures...); err != nil {
			return err
		}
		fmt.Fprintf(e.err, "%s in %s\n", count(len(pages), "page"), dir)
		return nil
	})
}

// manPages are all pages by the name of their file.
func manPages(tree []*cli.Command, version string) map[string][]byte {
	pages := map[string][]byte{}
	var all []string
	var walk func(tree, path []*cli.Command)
	walk = func(tree, path []*cli.Command) {
		for _, c := range tree {
			if c.Hidden {
				continue
			}
			here := append(path[:len(path):len(path)], c)
			if len(c.Subcommands) > 0 {
				walk(c.Subcommands, here)
				continue
			}
			name := "fleet-" + strings.Join(names(here), "-")
			all = append(all, name)
			pages[name+".1"] = manPage(here, version)
		}
	}
	walk(tree, nil)
	var b bytes.Buffer
	roffHead(&b, "fleet", version, "manage hosts from any of them")
	fmt.Fprint(&b, ".SH SYNOPSIS\n.B fleet\n.I COMMAND\n[\\,\\fIARGUMENTS\\fR] [\\fIFLAGS\\fR]\n.SH DESCRIPTION\n.nf\n")
	var help bytes.Buffer
	programHelp(&help, tree)
	fmt.Fprint(&b, roffLines(help.String()))
	fmt.Fprint(&b, ".fi\n.SH SEE ALSO\n")
	for i, name := range all {
		comma := ","
		if i == len(all)-1 {
			comma = ""
		}
		fmt.Fprintf(&b, ".BR %s (1)%s\n", roff(name), comma)
	}
	pages["fleet.1"] = b.Bytes()
	return pages
}

func manPage(path []*cli.Command, version string) []byte {
	c := path[len(path)-1]
	var b bytes.Buffer
	roffHead(&b, "fleet-"+strings.Join(names(path), "-"), version, c.Usage)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n%s\n", roff((&line{path: path}).name()), roff(strings.TrimSpace("[FLAGS] "+c.ArgsUsage)))
	if c.Description != "" {
		fmt.Fprintf(&b, ".SH DESCRIPTION\n.nf\n%s.fi\n", roffLines(strings.TrimSpace(c.Description)+"\n"))
	}
	if len(c.Flags) > 0 {
		fmt.Fprint(&b, ".SH OPTIONS\n")
		for _, f := range c.Flags {
			row := flagRow(f)
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(strings.TrimSpace(row[0])), roff(row[1]))
		}
	}
	fmt.Fprint(&b, ".SH SEE ALSO\n.BR fleet (1)\n")
	return b.Bytes()
}

// roffHead begins a page. It has no date, so that the same source gives the
// same bytes.
func roffHead(b *bytes.Buffer, name, version, usage string) {
	fmt.Fprintf(b, ".TH %s 1 \"\" \"fleet %s\" \"fleet\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), roff(version), roff(name), roff(usage))
}

// roff escapes one line of text: a backslash is roff's, a hyphen would become
// a typographic one that nobody can paste, and a dot or an apostrophe at the
// beginning would be a request.
func roff(s string) string {
	s = strings.NewReplacer("\\", "\\e", "-", "\\-", "\n", " ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = "\\&" + s
	}
	return s
}

func roffLines(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		b.WriteString(roff(strings.TrimSuffix(l, "\n")) + "\n")
	}
	return b.String()
}
