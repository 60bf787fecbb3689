package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// contextFlags say whose key counts.
func contextFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "credential", Usage: "`FILE` with the operator's key (FLEET_CREDENTIAL)"},
		&cli.StringFlag{Name: "context", Usage: "`NAME` of the fleet, of several credentials in ~/.config/fleet (FLEET_CONTEXT)"},
	}
}

// clientFlags are shared by all commands that speak to the quorum.
func clientFlags() []cli.Flag {
	return append(contextFlags(), &cli.StringSliceFlag{Name: "connect",
		Usage: "`IP:PORT` of a quorum host to ask, instead of those in the credential; may be repeated (FLEET_ADDRESS)"})
}

// timeoutFlag bounds the request; run has another --timeout.
func timeoutFlag() []cli.Flag {
	return []cli.Flag{&cli.StringFlag{Name: "timeout", Usage: "`DURATION` to wait for the fleet's answer, such as 30s (default 20s)"}}
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
	opts := client.Options{Dial: e.dial, Now: e.now, Stale: c.Bool("stale")}
	if opts.Addresses, err = e.addresses(c); err != nil {
		return nil, err
	}
	if c.Command.Name != "run" {
		if opts.Timeout, err = durationFlag(c, "timeout"); err != nil {
			return nil, err
		}
	}
	opts.Agent = e.local(c)
	e.sent = true
	api, err := client.Open(c.Context, cred, opts)
	if err == nil && len(opts.Addresses) == 0 {
		e.remember(path, cred, api.Quorum())
	}
	return api, err
}

// maxRemembered is how many addresses a credential keeps: two quorums of five.
const maxRemembered = 10

// remember keeps where the voters answer in the credential, so that it still
// leads to the fleet when the hosts that it began with are gone. What it held
// stays, after the new: a host that lies about the quorum must not be able to
// leave only itself.
func (e *env) remember(path string, cred identity.Credential, quorum []string) {
	all := mergeAddresses(quorum, cred.Addresses)
	// The order of the voters changes from answer to answer and means nothing.
	known := len(quorum) <= len(cred.Addresses) &&
		slices.Equal(slices.Sorted(slices.Values(quorum)), slices.Sorted(slices.Values(cred.Addresses[:len(quorum)])))
	if known {
		return
	}
	cred.Addresses = all
	err := identity.SaveCredential(path, cred)
	if err == nil || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return // it is a help for later, and the file may be read-only on purpose
	}
	fmt.Fprintf(e.err, "the addresses of the quorum are not kept: %s\n", escapeCell(err.Error()))
}

// mergeAddresses is the new addresses and then the old ones, each once.
func mergeAddresses(news, old []string) []string {
	var all []string
	for _, a := range slices.Concat(news, old) {
		if !slices.Contains(all, a) && len(all) < maxRemembered && identity.CheckAddress(a) == nil {
			all = append(all, a)
		}
	}
	return all
}

// bound makes --timeout, if it was given, the time that all which follows may
// take: waiting and reading included.
func (e *env) bound(c *cli.Context) (cancel context.CancelFunc, err error) {
	d, err := durationFlag(c, "timeout")
	if err != nil || d == 0 {
		return func() {}, err
	}
	c.Context, cancel = context.WithTimeoutCause(c.Context, d,
		fleet.Errorf(fleet.Unknown, "not done within %s", d).WithHint("give it longer: --timeout DURATION"))
	return cancel, nil
}

// connectWithin connects for what --timeout bounds as a whole; end closes the
// connection.
func (e *env) connectWithin(c *cli.Context) (_ *client.Client, end func(), err error) {
	cancel, err := e.bound(c)
	if err != nil {
		return nil, nil, err
	}
	api, err := e.connect(c)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return api, func() { api.Close(); cancel() }, nil
}

// nameFleet says which fleet a credential is missing for, and which host to ask
// for one, if this host is of a fleet.
func (e *env) nameFleet(c *cli.Context, err error) error {
	if !isNoCredential(err) {
		return err
	}
	local := e.local(c)
	status, localErr := local.Status(c.Context)
	if localErr != nil || fleet.CheckName(status.FleetName) != nil {
		return err
	}
	// What the agent passes on came from others: only a name that is one is
	// put into a command that somebody will type.
	host := "HOST"
	if nodes, localErr := local.Nodes(c.Context); localErr == nil {
		var voters []string
		for _, n := range nodes.Nodes {
			if n.Role == fleet.RoleNameVoter && fleet.CheckNodeName(n.Name) == nil {
				voters = append(voters, n.Name)
			}
		}
		if len(voters) > 0 {
			host = slices.MinFunc(voters, naturalCompare)
		}
	}
	named := fleet.Errorf(fleet.Unauthenticated, "no operator credential for %s: run \"fleet login %s\"", status.FleetName, host).
		WithHint("or name one that you have: --credential FILE or FLEET_CREDENTIAL; looked for in %s", firstOf(e.credentialDir(), "no directory"))
	named.Err = hiddenError{errNoCredential}
	return named
}

// addresses are those that the operator named, if any.
func (e *env) addresses(c *cli.Context) ([]string, error) {
	name, all := "--connect", c.StringSlice("connect")
	if len(all) == 0 && e.getenv("FLEET_ADDRESS") != "" {
		name, all = "FLEET_ADDRESS", []string{e.getenv("FLEET_ADDRESS")}
	}
	return checkAddresses(name, splitCommas(all))
}

func checkAddresses(name string, all []string) ([]string, error) {
	for _, a := range all {
		if identity.CheckAddress(a) != nil {
			return nil, usagef("%s %q is not IP:PORT", name, a).withHint("for example 10.0.0.5:7790")
		}
	}
	return all, nil
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
	return client.OpenLocal(e.socket(c))
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// durationFlag reads a flag like 90s, 10m, 24h or 7d; 0 when it was not given. A
// number without a unit is refused: half of those who write it mean seconds.
func durationFlag(c *cli.Context, name string) (time.Duration, error) {
	text := c.String(name)
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(text, 10, 32); err == nil && n > 0 {
		return 0, usagef("--%s %s has no unit", name, text).withHint("--%s %ds, %dm or %dh", name, n, n, n)
	}
	d, err := parseDuration(text)
	if err != nil || d <= 0 {
		return 0, usagef("--%s %q is not a duration like 90s, 10m or 24h", name, text)
	}
	return d, nil
}

func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 12)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number of days", text)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(text)
}
