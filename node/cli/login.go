package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

const (
	defaultLogin = 10 * time.Minute
	longestLogin = 24 * time.Hour

	// loginPause is between two looks whether the fleet knows the key.
	loginPause = 2 * time.Second
)

// grantHint says what of the command is for who types it to decide.
const grantHint = "--may names what is allowed, --admin is everything"

// pendingPrefix begins the name of the file that holds a key which the fleet
// does not know yet; the fleet's ID follows. The same key is used when login
// is repeated, so that what somebody was told to add stays right.
const pendingPrefix = ".login-"

func (e *env) loginCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "login", Category: categoryMe, ArgsUsage: "[HOST]", Usage: "become an operator of a fleet on this machine",
		Description: `It makes a key here, which never leaves this machine, shows what an operator who
may has to type to let it in, and waits for that. Ctrl-C stops the waiting; the
same command goes on with the same key.

HOST is a quorum host, a name or IP[:PORT]. On a host of the fleet it may be left
out. The fleet is known by its root key: compare the fingerprint with the one
that another operator's "fleet context show" or "fleet status" shows as the
fleet's ID, or give it with --fleet; a host that cannot prove itself under that
key is refused.

--key-file takes a key that exists instead: a credential, such as a copy of the
one that "fleet init" wrote, which is complete, or a key alone.

Examples:
  fleet login host1
  fleet login 10.0.0.5 --fleet 5b2e0c6f8d1a4e7793c0a1b2c3d4e5f6 --operator ada@laptop
  fleet login --key-file /media/usb/ada.credential

Exit codes: 0 done, 1 it failed or nobody let it in yet, 3 no quorum,
4 not allowed, 64 usage`,
		Flags: flags(outputFlag(), []cli.Flag{
			&cli.StringFlag{Name: "operator", Usage: "`NAME` under which the fleet shall know you (default: user@host)"},
			&cli.StringFlag{Name: "fleet", Aliases: []string{"root"},
				Usage: "`ID` of the fleet, which is the fingerprint of its root key: no other is accepted, and nothing is asked"},
			&cli.StringFlag{Name: "context", Usage: "keep it under this `NAME` (default: the fleet's)"},
			&cli.StringFlag{Name: "key-file", Usage: "`FILE` with a credential, or with an Ed25519 key in PEM, to use instead of a new key"},
			&cli.BoolFlag{Name: "no-wait", Usage: "show what has to be typed and stop; repeat the command to finish"},
			&cli.StringFlag{Name: "timeout", Usage: "wait at most `DURATION` to be let in (default 10m)"},
		}, socketFlag()),
	}, 0, 1, e.login)
}

// loginResult is what login prints as JSON.
type loginResult struct {
	FleetId   fleet.ID           `json:"FleetId"`
	FleetName string             `json:"FleetName"`
	Operator  fleet.OperatorName `json:"Operator"`
	PublicKey string             `json:"PublicKey"`
	Known     bool               `json:"Known"`             // the fleet knows the key
	Command   string             `json:"Command,omitempty"` // what lets it in
	Context   string             `json:"Context,omitempty"`
	File      string             `json:"File,omitempty"`
	May       []string           `json:"May,omitempty"`
}

func (e *env) login(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	wait, err := durationFlag(c, "timeout")
	if err != nil {
		return err
	}
	if wait > longestLogin {
		return usagef("--timeout %s is over 24h", c.String("timeout"))
	}
	if name := c.String("context"); name != "" {
		if err := checkContext(name); err != nil {
			return err
		}
	}
	if e.credentialDir() == "" {
		return usagef("the home directory is not known").withHint("set HOME or XDG_CONFIG_HOME")
	}
	var own *identity.PrivateKey
	if path := c.String("key-file"); path != "" {
		cred, key, err := loadKeyFile(path)
		if err != nil {
			return err
		}
		if cred != nil {
			return e.loginWithCredential(c, path, *cred)
		}
		own = key
	}
	t, err := e.loginTarget(c)
	if err != nil {
		return err
	}
	if err := e.checkFree(c, t.name, t.fleet, nil); err != nil {
		return err
	}
	cred, pending, err := e.pendingCredential(c, t, own)
	if err != nil {
		return err
	}
	r := loginResult{FleetId: t.fleet, FleetName: t.name, Operator: cred.Operator, PublicKey: cred.Key.Public().Text()}
	r.Command = fmt.Sprintf("fleet operator add %s --key %s --may SendCommand", r.Operator, r.PublicKey)
	e.sent = true
	if c.Bool("no-wait") {
		if who, api, err := e.whoIs(c.Context, cred, t.addresses); err == nil {
			defer api.Close()
			return e.keep(c, cred, pending, who, api)
		}
		return e.print(c, result{value: r, names: []string{r.PublicKey}, table: func(w io.Writer) {
			fmt.Fprintln(w, r.Command)
			fmt.Fprintf(e.err, "that is for an operator who may; %s; then repeat: fleet login %s --fleet %s\n", grantHint, firstOf(c.Args().First(), t.addresses[0]),
				t.fleet)
		}})
	}
	who, api, err := e.awaitAdmission(c, cred, t, r.Command, firstDuration(wait, defaultLogin))
	if err != nil {
		return err
	}
	defer api.Close()
	return e.keep(c, cred, pending, who, api)
}

func firstDuration(values ...time.Duration) time.Duration {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

// loginTarget is the fleet that is meant and where its quorum answers.
type loginTarget struct {
	fleet     fleet.ID
	name      string
	addresses []string
}

func (e *env) loginTarget(c *cli.Context) (*loginTarget, error) {
	pinned, err := fleetFlag(c.String("fleet"))
	if err != nil {
		return nil, err
	}
	t := &loginTarget{fleet: pinned}
	reason := "--fleet"
	host := c.Args().First()

	// The agent of this host knows its fleet, and its hosts by name.
	if status, err := e.local(c).Status(c.Context); err == nil {
		if id, err := fleet.ParseID(string(status.FleetId)); err == nil && (pinned == "" || pinned == id) {
			if addresses := e.localVoters(c, host); len(addresses) > 0 {
				t.fleet, t.addresses, reason = id, addresses, "this host's agent"
			}
		}
	}
	if len(t.addresses) == 0 {
		if host == "" {
			return nil, usagef("which fleet?").withHint("fleet login HOST, where HOST is one of its quorum hosts, a name or IP[:PORT]")
		}
		if t.addresses, err = client.Resolve(c.Context, host); err != nil {
			return nil, err
		}
	}
	seen, address, err := e.peek(c.Context, t.addresses)
	if err != nil {
		return nil, err
	}
	id := fleet.IDOf(seen.Root)
	if t.fleet != "" && t.fleet != id {
		return nil, fleet.Errorf(fleet.Unauthenticated, "%s proves to be of the fleet with the root key %s, not of %s (%s)",
			address, seen.Root.Fingerprint(), fingerprintOf(t.fleet), reason).
			WithHint("it is a host of another fleet, or somebody stands between you and the host: nothing was sent")
	}
	if t.fleet == "" {
		fmt.Fprintf(e.err, "%s is of the fleet %s\n  root key  %s\n  fleet ID  %s\n", address, firstOf(seen.Name, "(without a name)"),
			seen.Root.Fingerprint(), id)
		if !e.inTTY {
			return nil, usagef("is that the fleet you mean?").withHint("there is no terminal to answer on: if it is, say --fleet %s", id)
		}
		if err := e.confirm("Is that the fleet you mean? Compare it with what somebody who is in it sees."); err != nil {
			return nil, err
		}
		t.fleet = id
	}
	t.name = firstOf(seen.Name, "fleet-"+string(id)[:8])
	return t, nil
}

// fleetFlag reads a fleet's ID, written as an ID or as a fingerprint.
func fleetFlag(text string) (fleet.ID, error) {
	if text == "" {
		return "", nil
	}
	id, err := fleet.ParseID(strings.ToLower(strings.ReplaceAll(text, "-", "")))
	if err != nil {
		return "", usagef("--fleet %.80q is not the ID of a fleet: 32 hex digits, with or without hyphens", text).
			withHint("fleet status on a host of it shows the ID beside the name")
	}
	return id, nil
}

// fingerprintOf writes a fleet's ID as the fingerprint of its root key: both
// are the first 16 bytes of one hash.
func fingerprintOf(id fleet.ID) string {
	var groups []string
	for chunk := range slices.Chunk([]byte(id), 4) {
		groups = append(groups, string(chunk))
	}
	return strings.Join(groups, "-")
}

// localVoters is where the agent of this host knows voters: the one that is
// called host, or all when host is empty.
func (e *env) localVoters(c *cli.Context, host string) []string {
	nodes, err := e.local(c).Nodes(c.Context)
	if err != nil {
		return nil
	}
	var all []string
	for _, n := range nodes.Nodes {
		if n.Role == fleet.RoleNameVoter && (host == "" || n.Name == host || string(n.InstanceId) == host) &&
			identity.CheckAddress(n.Address) == nil {
			all = append(all, n.Address)
		}
	}
	return all
}

// peek asks the addresses in turn which fleet they are of.
func (e *env) peek(ctx context.Context, addresses []string) (seen transport.Seen, address string, _ error) {
	var failures []error
	for _, addr := range addresses {
		seen, err := transport.Peek(ctx, e.dial, addr, e.now)
		if err == nil {
			return seen, addr, nil
		}
		failures = append(failures, err)
	}
	if len(failures) == 1 {
		return seen, "", failures[0]
	}
	return seen, "", errors.Join(failures...)
}

// contextName is under which name a credential of the fleet is kept.
func contextName(c *cli.Context, fleetName string) string {
	return firstOf(c.String("context"), fleetName)
}

// checkFree refuses a name under which another key is kept. own is the key
// that may be there already.
func (e *env) checkFree(c *cli.Context, fleetName string, id fleet.ID, own *identity.Credential) error {
	name := contextName(c, fleetName)
	path := filepath.Join(e.credentialDir(), name)
	old, err := identity.LoadCredential(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fleet.Errorf(fleet.Conflict, "%s exists and cannot be read: %w", path, err).
			WithHint("keep the new one under another name: --context NAME")
	}
	switch {
	case own != nil && old.Key.Public() == own.Key.Public() && old.Fleet == id && old.Operator == own.Operator:
		return nil
	case old.Fleet != id:
		return fleet.Errorf(fleet.Conflict, "the context %s is of another fleet, with the ID %s", name, old.Fleet).
			WithHint("keep this one under another name: --context NAME")
	}
	return fleet.Errorf(fleet.Conflict, "there is a credential for %s already: operator %s, context %s", old.Name, old.Operator, name).
		WithHint("use it (fleet whoami --context %s), delete it (fleet logout %s), or keep another beside it: --context NAME", name, name)
}

// pendingCredential is the key that login began with, or own, or a new one.
func (e *env) pendingCredential(c *cli.Context, t *loginTarget, own *identity.PrivateKey) (cred identity.Credential, path string, err error) {
	path = filepath.Join(e.credentialDir(), pendingPrefix+string(t.fleet))
	cred, err = identity.LoadCredential(path)
	switch {
	case err == nil:
		name := c.String("operator")
		if (name == "" || name == string(cred.Operator)) && (own == nil || own.Public() == cred.Key.Public()) {
			return cred, path, nil
		}
		if err := os.Remove(path); err != nil {
			return cred, "", fmt.Errorf("replace the key of another name: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return cred, "", err
	}
	name := c.String("operator")
	if name == "" {
		host, err := e.hostname()
		if err != nil {
			host = "unknown"
		}
		name = string(operatorName(host))
	}
	operator, err := fleet.ParseOperatorName(name)
	if err != nil {
		return cred, "", err
	}
	if own == nil {
		key, err := identity.GenerateKey()
		if err != nil {
			return cred, "", err
		}
		own = &key
	}
	cred = identity.Credential{Fleet: t.fleet, Name: t.name, Operator: operator, Key: *own, Addresses: t.addresses}
	if err := os.MkdirAll(e.credentialDir(), 0o700); err != nil {
		return cred, "", fmt.Errorf("directory of credentials: %w", err)
	}
	return cred, path, identity.SaveCredential(path, cred)
}

// whoIs asks the fleet whom it takes the holder of a credential for.
func (e *env) whoIs(ctx context.Context, cred identity.Credential, addresses []string) (*fleet.GetCallerIdentityResult, *client.Client, error) {
	api, err := client.Open(ctx, cred, client.Options{Dial: e.dial, Now: e.now, Addresses: addresses})
	if err != nil {
		return nil, nil, err
	}
	var who fleet.GetCallerIdentityResult
	if err := api.Call(ctx, "GetCallerIdentity", fleet.GetCallerIdentityRequest{}, &who); err != nil {
		api.Close()
		return nil, nil, err
	}
	return &who, api, nil
}

// awaitAdmission waits until the fleet knows the key.
func (e *env) awaitAdmission(c *cli.Context, cred identity.Credential, t *loginTarget, command string,
	wait time.Duration) (*fleet.GetCallerIdentityResult, *client.Client, error) {
	ctx, cancel := context.WithTimeout(c.Context, wait)
	defer cancel()
	said := ""
	say := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != said {
			fmt.Fprintln(e.err, text)
			said = text
		}
	}
	for {
		who, api, err := e.whoIs(ctx, cred, t.addresses)
		if err == nil {
			return who, api, nil
		}
		switch kind := fleet.KindOf(err); {
		case ctx.Err() != nil:
		case kind == fleet.Unauthenticated:
			say("operator  %s\nkey       %s\nto be let in, somebody who may types\n  %s\n  (%s)\nwaiting for that, %s at most; Ctrl-C stops, the same command goes on",
				cred.Operator, cred.Key.Public().ID(), command, grantHint, short(wait))
		case kind == fleet.NoQuorum, kind == fleet.Unavailable, kind == fleet.Unknown, kind == fleet.NotLeader:
			say("the quorum does not answer now; trying on")
		default:
			return nil, nil, err
		}
		pause := time.NewTimer(loginPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			what := fmt.Sprintf("nobody has let %s in within %s", cred.Operator, short(wait))
			if c.Context.Err() != nil {
				what = "interrupted before somebody let " + string(cred.Operator) + " in"
			}
			return nil, nil, fleet.Errorf(fleet.Unknown, "%s", what).
				WithHint("have an operator who may type: %s; then repeat: fleet login %s --fleet %s", command,
					firstOf(c.Args().First(), t.addresses[0]), t.fleet)
		}
	}
}

// keep writes the credential of an operator whom the fleet knows and makes it
// the one that is used. pending is the file that is no longer needed; "" for
// none.
func (e *env) keep(c *cli.Context, cred identity.Credential, pending string, who *fleet.GetCallerIdentityResult, api *client.Client) error {
	if fleet.CheckName(who.FleetName) == nil {
		cred.Name = who.FleetName
	}
	if err := e.checkFree(c, cred.Name, cred.Fleet, &cred); err != nil {
		return err
	}
	cred.Addresses = mergeAddresses(api.Quorum(), cred.Addresses)
	name := contextName(c, cred.Name)
	path := filepath.Join(e.credentialDir(), name)
	if err := os.MkdirAll(e.credentialDir(), 0o700); err != nil {
		return fmt.Errorf("directory of credentials: %w", err)
	}
	if err := identity.SaveCredential(path, cred); err != nil {
		return err
	}
	if err := e.setCurrent(name); err != nil {
		return err
	}
	if pending != "" {
		if err := os.Remove(pending); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete %s: %w", pending, err)
		}
	}
	r := loginResult{FleetId: cred.Fleet, FleetName: cred.Name, Operator: cred.Operator, PublicKey: cred.Key.Public().Text(), Known: true,
		Context: name, File: path, May: who.May}
	for _, variable := range []string{"FLEET_CREDENTIAL", "FLEET_CONTEXT"} {
		if e.getenv(variable) != "" {
			e.warningLines([]fleet.Warning{{Message: variable + " is set and comes first", Remedy: "unset " + variable}})
		}
	}
	return e.print(c, result{value: r, names: []string{name}, table: func(w io.Writer) {
		properties(w, "fleet", cred.Name+"  "+string(cred.Fleet), "operator", string(cred.Operator)+", may "+mayText(who.May),
			"credential", e.tilde(path), "context", name+", used from now on")
	}})
}

// loadKeyFile reads a credential or, in PEM, a key alone.
func loadKeyFile(path string) (*identity.Credential, *identity.PrivateKey, error) {
	cred, err := identity.LoadCredential(path)
	switch {
	case err == nil:
		return &cred, nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fleet.Errorf(fleet.NotFound, "--key-file: there is no file %s", path)
	case fleet.KindOf(err) == fleet.Corrupt:
		if key, keyErr := identity.LoadKey(path); keyErr == nil {
			return nil, &key, nil
		}
		return nil, nil, fleet.Errorf(fleet.Invalid, "--key-file: %s is neither a credential nor a key in PEM", path)
	}
	return nil, nil, fleet.Errorf(fleet.KindOf(err), "--key-file: %w", err).WithHint("%s", fleet.HintOf(err))
}

// loginWithCredential takes over a credential that exists.
func (e *env) loginWithCredential(c *cli.Context, path string, cred identity.Credential) error {
	if c.String("operator") != "" {
		return usagef("--operator and a credential exclude each other: %s names the operator", path)
	}
	pinned, err := fleetFlag(c.String("fleet"))
	if err != nil {
		return err
	}
	if pinned != "" && pinned != cred.Fleet {
		return fleet.Errorf(fleet.Invalid, "%s is of the fleet %s, not of %s", path, cred.Fleet, pinned)
	}
	if err := e.checkFree(c, cred.Name, cred.Fleet, &cred); err != nil {
		return err
	}
	addresses := cred.Addresses
	if host := c.Args().First(); host != "" {
		if addresses, err = client.Resolve(c.Context, host); err != nil {
			return err
		}
		cred.Addresses = mergeAddresses(addresses, cred.Addresses)
	}
	e.sent = true
	who, api, err := e.whoIs(c.Context, cred, addresses)
	if err != nil {
		return err
	}
	defer api.Close()
	return e.keep(c, cred, "", who, api)
}

// mayText is what an operator may, for people.
func mayText(may []string) string {
	switch {
	case slices.Contains(may, "*"):
		return "do everything"
	case len(may) == 0:
		return "read"
	}
	return "read and " + strings.Join(may, ", ")
}

func (e *env) logoutCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "logout", Category: categoryMe, ArgsUsage: "[NAME]", Usage: "delete a credential from this machine",
		Description: `NAME is a context of "fleet context ls"; without one it is the one that is used.
The fleet still knows the operator and the key until "fleet operator rm".

Example:
  fleet logout acme

Exit codes: 0 done, 1 it failed, 4 there is none, 64 usage`,
		Flags: flags(yesFlag("do not ask whether the key may go"), contextFlags()[1:]),
	}, 0, 1, func(c *cli.Context) error {
		name := c.Args().First()
		if name == "" {
			which, err := e.choose(c)
			if err != nil {
				return e.nameFleet(c, err)
			}
			if which.name == "" {
				return usagef("%s names the file %s: logout deletes what is in ~/.config/fleet only", which.reason, which.path).
					withHint("fleet logout NAME, one of \"fleet context ls\"")
			}
			name = which.name
		}
		if err := e.knownContext(name); err != nil {
			return err
		}
		return e.forget(c, []string{name})
	})
}

func (e *env) whoamiCommand() *cli.Command {
	return leaf(&cli.Command{
		Name: "whoami", Category: categoryMe, Usage: "say who you are to the fleet, and what you may do",
		Description: `The fleet is asked: the answer proves that it knows the key.

Example:
  fleet whoami

Exit codes: 0 done, 1 the request failed, 3 no quorum, 4 not allowed, 64 usage`,
		Flags: flags(outputFlag(), staleFlag(), clientFlags(), timeoutFlag()),
	}, 0, 0, func(c *cli.Context) error {
		api, err := e.connect(c)
		if err != nil {
			return err
		}
		defer api.Close()
		var who fleet.GetCallerIdentityResult
		if err := api.Call(c.Context, "GetCallerIdentity", fleet.GetCallerIdentityRequest{}, &who); err != nil {
			return err
		}
		which, err := e.choose(c)
		if err != nil {
			return err
		}
		return e.print(c, result{value: who, names: []string{string(who.Operator)}, table: func(w io.Writer) {
			properties(w, "operator", string(who.Operator), "key", who.KeyId, "fleet", who.FleetName+"  "+string(who.FleetId),
				"may", mayText(who.May), "since", date(who.Created), "credential", e.tilde(which.path), "used", which.reason)
		}})
	})
}
