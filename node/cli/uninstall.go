package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/service"
)

func (e *env) uninstallCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "uninstall", Category: categoryHost, Usage: "remove the service from this host, with --purge all of fleet's data",
		Description: `It lists what it removes and asks first. Without --purge the host keeps its
identity: "fleet agent --service" brings the service back. The host's row stays
in the fleet until "fleet node rm NAME"; "fleet leave", before this, is the
clean way. What a package installed goes with the package.

Example:
  fleet uninstall
  fleet uninstall --purge --yes

Exit codes: 0 done, 1 it failed, 4 not root, 64 usage`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "purge", Usage: "also remove the data directory with this host's keys, and the configuration"},
			&cli.BoolFlag{Name: "yes", Usage: "do not ask"},
			&cli.BoolFlag{Name: "force", Usage: "also when this host votes: the quorum then has one voter less that answers"},
			&cli.StringFlag{Name: "config", Usage: "`FILE` with the configuration of the host (default: the service's)"},
		},
	}, 0, 0, e.uninstall)
}

// removal is what uninstall is about to do.
type removal struct {
	manager service.Manager // nil where there is none
	status  service.Status
	paths   []string // that the manager removes
	host    *enrol.Fleet
	left    bool // the host left its fleet: no row of it stays
	voter   bool
	others  int    // voters besides this host
	data    string // directory to be removed; "" keeps it
	config  string // file to be removed; "" keeps it
}

func (e *env) uninstall(c *cli.Context) error {
	r, cfg, err := e.planRemoval(c)
	if err != nil {
		return err
	}
	if len(r.paths) == 0 && r.data == "" && r.config == "" && !r.status.Running {
		fmt.Fprintln(e.err, "there is nothing to remove")
		return nil
	}
	if r.voter && !c.Bool("force") {
		text := "nothing can be decided any more, and the fleet cannot be changed or told to run anything"
		if r.others > 0 {
			text = fmt.Sprintf("%d voters stay, of %d that count: the fleet survives the loss of one less", r.others, r.others+1)
		}
		return fleet.Errorf(fleet.Conflict, "%s votes in the quorum of %s; without it %s", r.host.NodeName, r.host.Name, text).
			WithHint("take it out of the quorum first; or, if that is meant, --force")
	}
	if r.status.Foreign {
		return fleet.Errorf(fleet.Conflict, "fleet did not write the service file %s", r.status.File).
			WithHint("systemctl disable --now fleet, and remove the file; then again")
	}
	if !r.status.Running && e.agentAnswers(c.Context, cfg) {
		return fleet.Errorf(fleet.Conflict, "an agent that is not the service runs on this host: it answers at %s", cfg.Socket).
			WithHint("stop it first")
	}
	e.listRemoval(r)
	if !c.Bool("yes") {
		if err := e.confirm("Remove this?"); err != nil {
			return err
		}
	}
	if err := e.remove(c.Context, r); err != nil {
		return err
	}
	fmt.Fprintln(e.out, "removed")
	if r.host != nil && !r.left && (!r.voter || r.others > 0) { // else there is nobody left who keeps rows
		fmt.Fprintf(e.err, "the row of %s stays in fleet %s: fleet node rm %s, on a host that stays, forgets it\n",
			escapeCell(r.host.NodeName), escapeCell(r.host.Name), escapeCell(r.host.NodeName))
	}
	return nil
}

func (e *env) planRemoval(c *cli.Context) (*removal, *config.Config, error) {
	r := &removal{}
	manager, err := e.manager()
	switch {
	case err == nil:
		r.manager = manager
		if r.status, err = manager.Status(c.Context); err == nil {
			r.paths, err = manager.Removes(c.Context)
		}
		if err != nil {
			return nil, nil, err
		}
	case !c.Bool("purge"):
		return nil, nil, err // there is no service to remove
	}
	file := firstOf(c.String("config"), e.getenv("FLEET_CONFIG"), r.status.Config, config.DefaultFile)
	cfg, err := config.Load(config.Sources{File: file, FileRequired: c.String("config") != "", Getenv: e.getenv})
	if err != nil {
		return nil, nil, err
	}
	if err := r.look(cfg.DataDir); err != nil {
		return nil, nil, err
	}
	if c.Bool("purge") {
		if r.host != nil {
			r.data = cfg.DataDir
		}
		if _, err := os.Stat(file); err == nil {
			r.config = file
		}
	}
	return r, cfg, nil
}

// look reads what the data directory says of this host. A directory that does
// not hold a fleet is never removed.
func (r *removal) look(dir string) error {
	d, host, err := enrol.OpenDir(dir)
	if errors.Is(err, enrol.ErrNotEnrolled) {
		return nil
	}
	if r.left = errors.Is(err, enrol.ErrLeft); err != nil && !r.left {
		return err
	}
	r.host = host
	trust, err := d.Trust(host.Root())
	if err != nil {
		return err
	}
	for _, v := range trust.Voters {
		if v.Node == host.Node {
			r.voter = true
		} else {
			r.others++
		}
	}
	return nil
}

func (e *env) agentAnswers(ctx context.Context, cfg *config.Config) bool {
	_, err := client.OpenLocal(cfg.Socket).Status(ctx)
	return err == nil
}

func (e *env) listRemoval(r *removal) {
	if r.status.Running {
		fmt.Fprintf(e.err, "stops    the service, %s; commands that run on this host are ended\n", r.status.State)
	}
	for _, p := range r.paths {
		fmt.Fprintf(e.err, "removes  %s\n", p)
	}
	if r.data != "" {
		fmt.Fprintf(e.err, "removes  %s with everything in it: this host's keys, journal and outputs, and its copy of what was decided\n", r.data)
	}
	if r.config != "" {
		fmt.Fprintf(e.err, "removes  %s\n", r.config)
	}
	if r.status.Packaged {
		fmt.Fprintln(e.err, "keeps    the program and the service file, which belong to a package")
	}
	if r.data == "" && r.host != nil {
		fmt.Fprintln(e.err, "keeps    the data directory and the configuration (--purge removes them)")
	}
	if r.manager != nil {
		fmt.Fprintln(e.err, "keeps    what the system's log holds of it")
	}
	if r.voter {
		fmt.Fprintf(e.err, "%s  %s votes: the quorum keeps %d of its %d voters\n", e.paint(e.errTTY, yellow, "WARNING"), escapeCell(r.host.NodeName), r.others, r.others+1)
	}
}

func (e *env) remove(ctx context.Context, r *removal) error {
	if r.manager != nil {
		if err := r.manager.Uninstall(ctx); err != nil {
			return err
		}
	}
	if r.data != "" {
		// FORMAT last: what is left of a directory that could not be removed
		// whole can still be recognised and removed by doing this again.
		if err := removeTree(r.data, "FORMAT", "fleet.json", "trust.json"); err != nil {
			return fmt.Errorf("remove the data directory: %w", err)
		}
	}
	if r.config != "" {
		if err := os.Remove(r.config); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the configuration: %w", err)
		}
		_ = os.Remove(filepath.Dir(r.config)) // if nothing else is in it
	}
	return nil
}

// removeTree removes a directory, the named files of it last. A directory that
// something is mounted on stays, empty.
func removeTree(dir string, last ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	isLast := map[string]bool{}
	for _, name := range last {
		isLast[name] = true
	}
	for _, entry := range entries {
		if !isLast[entry.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	for i := len(last) - 1; i >= 0; i-- {
		if err := os.Remove(filepath.Join(dir, last[i])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, syscall.EBUSY) {
		return err
	}
	return nil
}
