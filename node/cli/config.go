package cli

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"fleet/node/config"
	"fleet/node/fleet"
)

func (e *env) configCommand() *cli.Command {
	return &cli.Command{
		Name: "config", Category: categoryHost, Usage: "what this host is told about itself",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get", "ls", "list"}, Usage: "show every value and where it comes from",
				Description: `A value comes from the first of a flag, a variable, the file and the default.
The flags are those of "fleet agent": say them as you would there. All that is
wrong is listed at once, and the exit code is 1 then. An agent that runs has
the values of its start; this reads them anew.

Examples:
  fleet config show
  fleet config show --config ./fleet.yaml -o json

Exit codes: 0 done, 1 a value is wrong or the file cannot be read, 64 usage`,
				Flags: flags(outputFlag(), hostFlags()),
			}, 0, 0, e.configShow),
		},
	}
}

// configResult is what config show prints as JSON.
type configResult struct {
	File     string         `json:"File"` // that was read; "" for none
	Values   []config.Value `json:"Values"`
	Problems []string       `json:"Problems"`
}

func (e *env) configShow(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	sources, err := e.configSources(c)
	if err != nil {
		return err
	}
	e.sent = true // what the file says is no mistake of the command line
	cfg, err := config.Read(sources)
	if err != nil {
		return err
	}
	r := configResult{File: cfg.File(), Values: cfg.Values(), Problems: cfg.Problems()}
	var keys []string
	for _, v := range r.Values {
		keys = append(keys, v.Key)
	}
	err = e.print(c, result{value: r, names: keys, table: func(w io.Writer) {
		t := newTable("KEY", "VALUE", "FROM", "FLAG", "VARIABLE")
		for _, v := range r.Values {
			from := v.Source
			if v.Line > 0 {
				from = fmt.Sprintf("%s:%d", v.Source, v.Line)
			}
			t.add(v.Key, v.Value, from, v.Flag, v.Env)
		}
		t.write(w)
		if r.File == "" {
			fmt.Fprintf(e.err, "there is no configuration file %s\n", escapeCell(sources.File))
		}
	}})
	if err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return fleet.Errorf(fleet.KindOf(err), "%w", err).WithHint("each line says what is allowed; fleet agent does not start before that")
	}
	return nil
}
