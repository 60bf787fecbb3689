package cli

import (
	"fmt"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
)

func (e *env) initCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "init", Category: categoryHost, Usage: "start a new fleet with this host as its first",
		Description: `It makes the root key, which is needed again only to change the quorum and
belongs on removable media, and the credential of the first operator. Then it
installs and starts the service and returns when the agent is ready. What the
command line says of the host is written to ` + config.DefaultFile + `.

Example:
  fleet init --name acme --root-key /media/usb/acme.key

Exit codes: 0 done, 1 it failed, 3 no quorum, 64 usage`,
		Flags: flags([]cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the fleet"},
			&cli.StringFlag{Name: "root-key", Usage: "write the root key to the new `FILE`, outside the data directory"},
			&cli.BoolFlag{Name: "passphrase",
				Usage: "protect the root key; asked for, or read from the file that FLEET_ROOT_PASSPHRASE_FILE names"},
			&cli.StringFlag{Name: "node-name", Usage: "`NAME` of this host (default: the system's host name)"},
			&cli.StringFlag{Name: "operator", Usage: "`NAME` of the first operator (default: user@host)"},
			&cli.StringFlag{Name: "credential", Usage: "write the operator's key to the new `FILE` (default ~/.config/fleet/NAME)"},
		}, enrolFlags(), hostFlags()),
	}, 0, 0, e.init)
}

func (e *env) init(c *cli.Context) error {
	opts, err := e.initOptions(c)
	if err != nil {
		return err
	}
	cfg, err := e.hostConfig(c)
	if err != nil {
		return err
	}
	if opts.NodeName, err = e.nodeName(cfg); err != nil {
		return err
	}
	if opts.Operator == "" {
		opts.Operator = operatorName(opts.NodeName)
	}
	opts.DataDir = cfg.DataDir
	if opts.Advertise, err = e.advertise(c.Context, cfg, anywhere, anywhere6); err != nil {
		return err
	}
	plan, err := e.checkService(c, cfg)
	if err != nil {
		return err
	}
	if c.Bool("passphrase") || e.getenv(PassphraseFile) != "" {
		if opts.Passphrase, err = e.newPassphrase(); err != nil {
			return err
		}
	}
	r, err := enrol.Init(c.Context, *opts)
	if err != nil {
		return err
	}
	e.sent = true
	e.describeInit(c, cfg, opts, r, plan)
	err = e.settle(c, cfg, plan)
	if plan != nil {
		e.warnOneVoter(r.NodeName)
	}
	return err
}

func (e *env) initOptions(c *cli.Context) (*enrol.InitOptions, error) {
	name := c.String("name")
	if name == "" {
		return nil, usagef("what is the fleet called?").withHint("--name NAME")
	}
	if err := fleet.CheckName(name); err != nil {
		return nil, err
	}
	if c.String("root-key") == "" {
		return nil, usagef("where should the root key go?").
			withHint("--root-key FILE, best on removable media: it is needed again to add, remove or recover quorum hosts")
	}
	credential := c.String("credential")
	if credential == "" {
		dir := e.credentialDir()
		if dir == "" {
			return nil, usagef("the home directory is not known").withHint("--credential FILE")
		}
		credential = filepath.Join(dir, name)
	}
	return &enrol.InitOptions{
		Name: name, RootKeyPath: c.String("root-key"), CredentialPath: credential,
		Operator: fleet.OperatorName(c.String("operator")), Now: e.now,
	}, nil
}

// operatorName is who types, for people: it proves nothing.
func operatorName(host string) fleet.OperatorName {
	who := "operator"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	short, _, _ := strings.Cut(host, ".")
	name := fleet.OperatorName(who + "@" + short)
	if _, err := fleet.ParseOperatorName(string(name)); err != nil {
		return "operator"
	}
	return name
}

func (e *env) describeInit(c *cli.Context, cfg *config.Config, opts *enrol.InitOptions, r *enrol.InitResult, p *plan) {
	fmt.Fprintf(e.out, "fleet       %s  %s\n", r.Name, r.Fleet)
	fmt.Fprintf(e.out, "node        %s  %s  at %s\n", r.NodeName, r.Node, opts.Advertise)
	fmt.Fprintf(e.out, "root key    %s   store it offline; needed to add, remove or recover quorum hosts\n", r.RootKeyPath)
	fmt.Fprintf(e.out, "credential  %s   yours: operator %q, may do everything\n", e.tilde(r.CredentialPath), opts.Operator)
	if p != nil {
		_, logs := p.manager.Commands()
		fmt.Fprintf(e.out, "config      %s   data %s   logs %s\n", p.spec.Config, opts.DataDir, logs)
		return
	}
	fmt.Fprintf(e.out, "data        %s\n", opts.DataDir)
	if c.Bool("enroll-only") {
		fmt.Fprintf(e.out, "start it    %s\n", agentHint(c, cfg))
	}
	e.warnOneVoter(r.NodeName)
}

func (e *env) warnOneVoter(name string) {
	fmt.Fprintf(e.err, "%s     one voter: when %s stops, nothing can be decided. Next: let two more hosts join (fleet activation create), then fleet quorum add\n",
		e.paint(e.errTTY, yellow, "WARNING"), name)
}

// tilde writes paths below the home directory as people do.
func (e *env) tilde(path string) string {
	if rest, ok := strings.CutPrefix(path, e.home+string(filepath.Separator)); ok && e.home != "" {
		return "~/" + rest
	}
	return path
}
