package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/authz"
	"fleet/node/fleet"
	"fleet/node/identity"
)

func (e *env) operatorCommand() *cli.Command {
	return &cli.Command{
		Name: "operator", Aliases: []string{"operators"}, Category: categoryNouns, Usage: "the people and programs who may sign requests",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list operators and what they may",
				Description: `Example:
  fleet operator ls
  fleet operator ls --former

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{&cli.BoolFlag{Name: "former", Usage: "those whose rights have ended"}},
					outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
			}, 0, 0, e.operatorLs),
			leaf(&cli.Command{
				Name: "add", Aliases: []string{"create"}, ArgsUsage: "NAME", Usage: "let somebody sign requests",
				Description: `The key is made where it stays: "fleet login" on the other machine shows what to
type here, and --key takes what it shows. --new makes a credential file here, to
be carried to another machine; only the public key goes to the fleet.

--may names operations, --admin is all of them. Nobody can grant what he may not
do himself. Reading needs no grant, but for CreateBackup. The operations:
  ` + strings.Join(grantable(), "\n  ") + `

Examples:
  fleet operator add ada@laptop --key ed25519:pQ... --admin
  fleet operator add ci --new ci.credential --may SendCommand

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{
					&cli.StringFlag{Name: "key", Usage: "`PUBLICKEY` that \"fleet login\" showed"},
					&cli.StringFlag{Name: "new", Usage: "make a key and write a credential to the new `FILE`"},
					&cli.StringSliceFlag{Name: "may", Usage: "`OPERATION` to allow; several with commas, or repeated"},
					&cli.BoolFlag{Name: "admin", Usage: "allow everything"},
				}, outputFlag(), clientFlags(), timeoutFlag()),
			}, 1, 1, e.operatorAdd),
			leaf(&cli.Command{
				Name: "rm", Aliases: []string{"delete"}, ArgsUsage: "NAME...", Usage: "end operators' rights",
				Description: `Open connections end at once, and the key never counts again. What the operator
has sent goes on, and activations that he made stay: see "fleet activation ls".
The last operator who may everything stays too.

Examples:
  fleet operator rm ci
  fleet operator rm ada@laptop --yes

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
				Flags: flags([]cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask before you end your own rights"}},
					clientFlags(), timeoutFlag()),
			}, 1, -1, e.operatorRm),
		},
	}
}

// grantable is the operations that an operator may be granted.
func grantable() []string {
	var all []string
	for _, op := range authz.Operations {
		if op.Class.Granted() {
			all = append(all, op.Name)
		}
	}
	slices.Sort(all)
	return all
}

func describeOperators(c *cli.Context, api *client.Client) (*fleet.DescribeOperatorsResult, error) {
	result := new(fleet.DescribeOperatorsResult)
	return result, api.Call(c.Context, "DescribeOperators", fleet.DescribeOperatorsRequest{}, result)
}

func (e *env) operatorLs(c *cli.Context) error {
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	all, err := describeOperators(c, api)
	if err != nil {
		return err
	}
	list := all.Operators
	if c.Bool("former") {
		list = all.Former
	}
	names := make([]string, 0, len(list))
	for _, o := range list {
		names = append(names, string(o.Name))
	}
	return e.print(c, result{value: all, names: names, table: func(w io.Writer) {
		t := newTable("NAME", "MAY", "SINCE", "KEY")
		if c.Bool("former") {
			t = newTable("NAME", "MAY", "SINCE", "ENDED", "KEY")
		}
		for _, o := range list {
			row := []string{string(o.Name), grantText(o.May), date(o.Created)}
			if c.Bool("former") {
				row = append(row, date(o.Ended))
			}
			t.add(append(row, strings.Join(o.Keys, " "))...)
		}
		t.write(w)
	}})
}

// grantText is what was granted to an operator, for a table.
func grantText(may []string) string {
	if slices.Contains(may, authz.All) {
		return "everything"
	}
	return strings.Join(may, " ")
}

func (e *env) operatorAdd(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	name, err := fleet.ParseOperatorName(c.Args().First())
	if err != nil {
		return usagef("%s", err)
	}
	req := fleet.CreateOperatorRequest{Name: string(name), May: splitCommas(c.StringSlice("may"))}
	switch {
	case c.Bool("admin") && len(req.May) > 0:
		return usagef("--admin and --may exclude each other: --admin is everything")
	case c.Bool("admin"):
		req.May = []string{authz.All}
	case len(req.May) == 0:
		return usagef("what may %s do?", name).withHint("--may OPERATION,... or --admin; fleet operator add --help lists the operations")
	}
	for _, word := range req.May {
		if word != authz.All && !slices.Contains(grantable(), word) {
			return usagef("--may %q is no operation that is granted", word).
				withHint("one of %s", strings.Join(grantable(), ", "))
		}
	}
	path := c.String("new")
	if (path == "") == (c.String("key") == "") {
		return usagef("name the key: either --key PUBLICKEY or --new FILE").
			withHint("\"fleet login\" on the other machine makes a key and shows it")
	}
	var key identity.PrivateKey
	var public fleet.PublicKey
	if path != "" {
		if key, err = identity.GenerateKey(); err != nil {
			return err
		}
		public = key.Public()
	} else if public, err = fleet.ParsePublicKey(c.String("key")); err != nil {
		return err
	}
	req.PublicKey = public[:]
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	if path != "" {
		// It is written first: a key that the fleet knows and nobody has would
		// hold the name.
		if _, err := os.Lstat(path); err == nil {
			return fleet.Errorf(fleet.Conflict, "--new %s: the file exists", path).WithHint("name another file")
		}
		if err := identity.SaveCredential(path, identity.Credential{
			Fleet: api.Fleet(), Name: api.FleetName(), Operator: name, Key: key, Addresses: mergeAddresses(api.Quorum(), nil),
		}); err != nil {
			return err
		}
	}
	var made fleet.CreateOperatorResult
	if err := api.Call(c.Context, "CreateOperator", req, &made); err != nil {
		if path != "" && fleet.KindOf(err) != fleet.Unknown {
			err = errors.Join(err, os.Remove(path))
		}
		return err
	}
	return e.print(c, result{value: made, names: []string{string(name)}, table: func(w io.Writer) {
		fmt.Fprintf(w, "%s may %s\n", escapeCell(string(name)), escapeCell(grantText(made.Operator.May)))
		if path != "" {
			fmt.Fprintf(w, "credential  %s   carry it to the other machine: fleet login --key-file FILE\n", escapeCell(path))
		}
	}})
}

func (e *env) operatorRm(c *cli.Context) error {
	var names []fleet.OperatorName
	for _, arg := range c.Args().Slice() {
		name, err := fleet.ParseOperatorName(arg)
		if err != nil {
			return usagef("%s", err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	api, err := e.connect(c)
	if err != nil {
		return err
	}
	defer api.Close()
	if slices.Contains(names, api.Operator()) {
		if !c.Bool("yes") {
			if err := e.confirm(fmt.Sprintf("End your own rights in the fleet %s (you are %s)?", api.FleetName(), api.Operator())); err != nil {
				return err
			}
		}
		// Last, since nothing can be asked for after it.
		names = append(slices.DeleteFunc(names, func(n fleet.OperatorName) bool { return n == api.Operator() }), api.Operator())
	}
	for _, name := range names {
		if err := api.Call(c.Context, "DeleteOperator", fleet.DeleteOperatorRequest{Name: string(name)}, nil); err != nil {
			return err
		}
		fmt.Fprintf(e.err, "the rights of %s have ended\n", escapeCell(string(name)))
	}
	return nil
}
