package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// clientFlags are shared by all commands that speak to the quorum.
func clientFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "credential", Usage: "`FILE` with the operator's key (FLEET_CREDENTIAL)"},
		&cli.StringFlag{Name: "context", Usage: "`NAME` of the fleet, of several credentials in ~/.config/fleet (FLEET_CONTEXT)"},
		&cli.StringSliceFlag{Name: "connect",
			Usage: "`IP:PORT` of a quorum host to ask, instead of those in the credential; may be repeated (FLEET_ADDRESS)"},
	}
}

// timeoutFlag bounds the request; run has another --timeout.
func timeoutFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "timeout", Usage: "`DURATION` to wait for the fleet's answer, such as 30s"}}
}

func staleFlag() []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "stale",
		Usage: "answer from the memory of the host that is asked, also without a quorum"}}
}

func socketFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "socket", Usage: "`PATH` of the local agent's socket (FLEET_SOCKET)"}}
}

// connect finds the operator's credential and a quorum host.
func (e *env) connect(c *cli.Context) (*client.Client, error) {
	if err := checkForm(c); err != nil && c.IsSet("output") {
		return nil, err
	}
	cred, path, err := e.credential(c)
	if err != nil {
		return nil, e.nameFleet(c, err)
	}
	opts := client.Options{Addresses: e.addresses(c), Dial: e.dial, Now: e.now, Stale: c.Bool("stale")}
	if c.Command.Name != "run" {
		if opts.Timeout, err = durationFlag(c, "timeout", time.Second); err != nil {
			return nil, err
		}
	}
	api, err := client.Open(c.Context, cred, opts)
	if err == nil && len(opts.Addresses) == 0 {
		e.remember(path, cred, api.Quorum())
	}
	return api, err
}

// remember keeps where the voters answer in the credential, so that it still
// leads to the fleet when the hosts that it began with are gone.
func (e *env) remember(path string, cred identity.Credential, quorum []string) {
	slices.Sort(quorum)
	old := slices.Sorted(slices.Values(cred.Addresses))
	if len(quorum) == 0 || slices.Equal(old, quorum) {
		return
	}
	cred.Addresses = quorum
	// It is a help for later, and the file may be read-only on purpose.
	_ = identity.SaveCredential(path, cred)
}

// nameFleet says which fleet a credential is missing for, if this host is of one.
func (e *env) nameFleet(c *cli.Context, err error) error {
	if !isNoCredential(err) {
		return err
	}
	status, localErr := e.local(c).Status(c.Context)
	if localErr != nil || fleet.CheckName(status.FleetName) != nil {
		return err
	}
	named := fleet.Errorf(fleet.Unauthenticated, "no operator credential for %s in %s", status.FleetName, e.credentialDir()).
		WithHint("%s", fleet.HintOf(err))
	named.Err = hiddenError{errNoCredential}
	return named
}

func (e *env) addresses(c *cli.Context) []string {
	all := c.StringSlice("connect")
	if len(all) == 0 && e.getenv("FLEET_ADDRESS") != "" {
		all = []string{e.getenv("FLEET_ADDRESS")}
	}
	return splitCommas(all)
}

func splitCommas(lists []string) []string {
	var all []string
	for _, list := range lists {
		for _, v := range strings.Split(list, ",") {
			if v = strings.TrimSpace(v); v != "" {
				all = append(all, v)
			}
		}
	}
	return all
}

// errNoCredential is in the chain of errors that say that there is none.
var errNoCredential = errors.New("no credential")

func isNoCredential(err error) bool { return errors.Is(err, errNoCredential) }

// credential finds the operator's key: where a flag or the environment says,
// else the one in the operator's directory.
func (e *env) credential(c *cli.Context) (_ identity.Credential, path string, _ error) {
	path = firstOf(c.String("credential"), e.getenv("FLEET_CREDENTIAL"))
	if path == "" {
		var err error
		if path, err = e.findCredential(firstOf(c.String("context"), e.getenv("FLEET_CONTEXT"))); err != nil {
			return identity.Credential{}, "", err
		}
	}
	cred, err := identity.LoadCredential(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cred, "", fleet.Errorf(fleet.NotFound, "there is no credential at %s", path).
			WithHint("name another: --credential FILE or FLEET_CREDENTIAL")
	}
	return cred, path, err
}

func (e *env) findCredential(context string) (string, error) {
	none := func(format string, args ...any) error {
		err := fleet.Errorf(fleet.Unauthenticated, format, args...).
			WithHint("\"fleet init\" writes one; on another machine copy that file there, or name it: " +
				"--credential FILE or FLEET_CREDENTIAL")
		err.Err = hiddenError{errNoCredential}
		return err
	}
	dir := e.credentialDir()
	if dir == "" {
		return "", none("no operator credential: the home directory is not known")
	}
	if context != "" {
		if strings.ContainsAny(context, "/\\") || context == ".." {
			return "", usagef("--context %q is not the name of a fleet", context)
		}
		path := filepath.Join(dir, context)
		if _, err := os.Stat(path); err != nil {
			return "", none("no operator credential for %s: there is no %s", context, path)
		}
		return path, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for a credential: %w", err)
	}
	var found []string
	for _, entry := range entries {
		if entry.Type().IsRegular() && !strings.HasPrefix(entry.Name(), ".") && !strings.HasSuffix(entry.Name(), "~") {
			found = append(found, entry.Name())
		}
	}
	switch len(found) {
	case 0:
		return "", none("no operator credential in %s", dir)
	case 1:
		return filepath.Join(dir, found[0]), nil
	}
	slices.Sort(found)
	return "", usagef("%d fleets are known here: which one?", len(found)).
		withHint("--context NAME or FLEET_CONTEXT, one of %s", strings.Join(found, ", "))
}

// hiddenError can be found by errors.Is and prints nothing.
type hiddenError struct{ error }

func (hiddenError) Error() string   { return "" }
func (h hiddenError) Unwrap() error { return h.error }

// credentialDir is where an operator keeps credentials, one a fleet.
func (e *env) credentialDir() string {
	if dir := e.getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "fleet")
	}
	if e.home == "" {
		return ""
	}
	return filepath.Join(e.home, ".config", "fleet")
}

// local is the agent of this host, by its socket.
func (e *env) local(c *cli.Context) *client.Local {
	return client.OpenLocal(firstOf(c.String("socket"), e.getenv("FLEET_SOCKET"), config.DefaultSocket))
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// durationFlag reads a flag like 90s, 10m, 24h, 7d, or a number of unit; 0 when
// it was not given.
func durationFlag(c *cli.Context, name string, unit time.Duration) (time.Duration, error) {
	text := c.String(name)
	if text == "" {
		return 0, nil
	}
	d, err := parseDuration(text, unit)
	if err != nil || d <= 0 {
		return 0, usagef("--%s %q is not a duration like 90s, 10m or 24h", name, text)
	}
	return d, nil
}

func parseDuration(text string, unit time.Duration) (time.Duration, error) {
	const most = 3650 * 24 * time.Hour
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n < 0 || n > int64(most/unit) {
			return 0, fmt.Errorf("%q is out of range", text)
		}
		return time.Duration(n) * unit, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 12)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number of days", text)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(text)
}
