package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
)

// A context is a credential in ~/.config/fleet by the name of its file, which
// is the fleet's unless another was said. Which of several is meant unless a
// flag or a variable says so stands in a file beside them.

// contextFile holds the name of the current context. It begins with a dot, so
// that it is no credential.
const contextFile = ".context"

// contextFileVersion is the version of its format.
const contextFileVersion = 1

const maxContextFile = 4 << 10

// contextPattern leaves out hidden files and what editors leave behind (name~).
var contextPattern = onFirstUse(`^[a-zA-Z0-9][a-zA-Z0-9_.@-]{0,63}$`)

func checkContext(name string) error {
	if !contextPattern().MatchString(name) {
		return usagef("%.80q is not the name of a context", name).
			withHint("1 to 64 letters, digits and _.@-, beginning with a letter or digit; fleet context ls lists them")
	}
	return nil
}

type currentContext struct {
	Version int    `json:"version"`
	Current string `json:"current"`
}

func encodeContext(name string) ([]byte, error) {
	b, err := json.Marshal(currentContext{contextFileVersion, name})
	return append(b, '\n'), err
}

// parseContext reads the file of the current context.
func parseContext(b []byte) (string, error) {
	if len(b) > maxContextFile {
		return "", fmt.Errorf("over %d bytes", maxContextFile)
	}
	var c currentContext
	if err := wire.StrictJSON(b, &c); err != nil {
		return "", err
	}
	if c.Version != contextFileVersion {
		return "", fmt.Errorf("version %d: this release knows version %d", c.Version, contextFileVersion)
	}
	if !contextPattern().MatchString(c.Current) {
		return "", fmt.Errorf("%.80q is not the name of a context", c.Current)
	}
	return c.Current, nil
}

// current is the name of the current context; "" when none was chosen.
func (e *env) current() (string, error) {
	path := filepath.Join(e.credentialDir(), contextFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("current context: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxContextFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("current context: %w", err)
	}
	name, err := parseContext(b)
	if err != nil {
		return "", fleet.Errorf(fleet.Corrupt, "the file of the current context, %s: %w", path, err).
			WithHint("choose one anew: fleet context use NAME")
	}
	return name, nil
}

// setCurrent remembers the current context; "" forgets it.
func (e *env) setCurrent(name string) error {
	path := filepath.Join(e.credentialDir(), contextFile)
	if name == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("current context: %w", err)
		}
		return nil
	}
	b, err := encodeContext(name)
	if err != nil {
		return err
	}
	// A new file takes the old one's place, so that nobody reads half of it.
	f, err := os.CreateTemp(filepath.Dir(path), contextFile+".*") // of mode 0600
	if err != nil {
		return fmt.Errorf("current context: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("current context: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// contexts are the names of all credentials that are kept.
func (e *env) contexts() ([]string, error) {
	dir := e.credentialDir()
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for a credential: %w", err)
	}
	var found []string
	for _, entry := range entries {
		if entry.Type().IsRegular() && contextPattern().MatchString(entry.Name()) {
			found = append(found, entry.Name())
		}
	}
	slices.Sort(found)
	return found, nil
}

// chosen is the credential that counts, and what made it count.
type chosen struct {
	path   string
	name   string // of the context; "" when a file was named
	reason string
}

// choose finds the operator's credential: what a flag says, else the
// environment, else the current context, else the only one.
func (e *env) choose(c *cli.Context) (chosen, error) {
	path, name, reason := c.String("credential"), c.String("context"), "--credential"
	if path != "" && name != "" {
		return chosen{}, usagef("--credential and --context exclude each other: each names a credential")
	}
	if path == "" && name == "" {
		path, name, reason = e.getenv("FLEET_CREDENTIAL"), e.getenv("FLEET_CONTEXT"), "FLEET_CREDENTIAL"
		if path == "" {
			reason = "FLEET_CONTEXT"
		}
	} else if path == "" {
		reason = "--context"
	}
	if path != "" {
		return chosen{path: path, reason: reason}, nil
	}
	if name != "" && strings.ContainsAny(name, "/\\") || name == ".." {
		return chosen{}, usagef("%s %q is not the name of a fleet", reason, name)
	}
	dir := e.credentialDir()
	if dir == "" {
		return chosen{}, noCredential("no operator credential: the home directory is not known")
	}
	found, err := e.contexts()
	if err != nil {
		return chosen{}, err
	}
	if name == "" && len(found) > 0 {
		if name, err = e.current(); err != nil {
			return chosen{}, err
		}
		reason = "current"
		if name != "" && !slices.Contains(found, name) {
			return chosen{}, fleet.Errorf(fleet.NotFound, "the current context is %s, and %s holds no credential for it", name, dir).
				WithHint("choose another: fleet context use NAME, one of %s", strings.Join(found, ", "))
		}
	}
	switch {
	case name != "" && slices.Contains(found, name):
		return chosen{filepath.Join(dir, name), name, reason}, nil
	case name != "" && len(found) > 0:
		refused := fleet.Errorf(fleet.NotFound, "no operator credential for %s in %s", name, dir)
		if s := suggest(found, name); s != "" {
			return chosen{}, refused.WithHint("did you mean %s? fleet context ls lists %s", s, strings.Join(found, ", "))
		}
		return chosen{}, refused.WithHint("the fleets that are known there: %s", strings.Join(found, ", "))
	case name != "":
		return chosen{}, noCredential("no operator credential for %s: %s holds none", name, dir)
	case len(found) == 0:
		return chosen{}, noCredential("no operator credential in %s", dir)
	case len(found) == 1:
		return chosen{filepath.Join(dir, found[0]), found[0], "the only one"}, nil
	}
	return chosen{}, usagef("%d fleets are known here: which one?", len(found)).
		withHint("fleet context use NAME, --context NAME or FLEET_CONTEXT, one of %s", strings.Join(found, ", "))
}

func noCredential(format string, args ...any) error {
	err := fleet.Errorf(fleet.Unauthenticated, format, args...).
		WithHint("\"fleet init\" writes one on the first host; elsewhere: fleet login HOST; or name one: --credential FILE or FLEET_CREDENTIAL")
	err.Err = hiddenError{errNoCredential}
	return err
}

// credential loads the operator's key.
func (e *env) credential(c *cli.Context) (_ identity.Credential, path string, _ error) {
	which, err := e.choose(c)
	if err != nil {
		return identity.Credential{}, "", err
	}
	cred, err := identity.LoadCredential(which.path)
	if errors.Is(err, fs.ErrNotExist) {
		return cred, "", fleet.Errorf(fleet.NotFound, "there is no credential at %s", which.path).
			WithHint("name another: --credential FILE or FLEET_CREDENTIAL")
	}
	if errors.Is(err, fs.ErrPermission) {
		return cred, "", fleet.Errorf(fleet.Denied, "the credential %s may not be read by this user", which.path).
			WithHint("use a credential of your own, which \"fleet login\" makes; name it: --credential FILE or FLEET_CREDENTIAL")
	}
	return cred, which.path, err
}

func (e *env) contextCommand() *cli.Command {
	return &cli.Command{
		Name: "context", Aliases: []string{"contexts"}, Category: categoryMe, Usage: "the fleets that you have a credential for",
		Subcommands: []*cli.Command{
			leaf(&cli.Command{
				Name: "ls", Aliases: []string{"list"}, Usage: "list them; * is the one that is used",
				Description: `Nothing is asked: it lists the files in ~/.config/fleet.

Example:
  fleet context ls

Exit codes: 0 done, 1 it failed, 64 usage`,
				Flags: outputFlag(),
			}, 0, 0, e.contextLs),
			leaf(&cli.Command{
				Name: "show", Aliases: []string{"get"}, ArgsUsage: "[NAME]", Usage: "show one, or the one that is used and why",
				Description: `The one that is used is what --credential or --context says, else
FLEET_CREDENTIAL or FLEET_CONTEXT, else what "fleet context use" chose, else the
only one.

Example:
  fleet context show

Exit codes: 0 done, 1 it failed, 4 there is none, 64 usage`,
				Flags: flags(outputFlag(), contextFlags()),
			}, 0, 1, e.contextShow),
			leaf(&cli.Command{
				Name: "use", ArgsUsage: "NAME", Usage: "use it from now on",
				Description: `Example:
  fleet context use acme

Exit codes: 0 done, 1 there is no such context, 64 usage`,
			}, 1, 1, e.contextUse),
			leaf(&cli.Command{
				Name: "rm", Aliases: []string{"delete"}, ArgsUsage: "NAME...", Usage: "delete the credentials of contexts",
				Description: `It does what "fleet logout" does, for contexts by name: the key is gone from
this machine, and the fleet still knows it.

Example:
  fleet context rm acme

Exit codes: 0 done, 1 it failed, 64 usage`,
				Flags: yesFlag("do not ask whether the keys may go"),
			}, 1, -1, e.contextRm),
		},
	}
}

func yesFlag(usage string) []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: usage}}
}

// contextView is a context as programs read it.
type contextView struct {
	Name      string             `json:"Name"`
	Current   bool               `json:"Current"`
	Reason    string             `json:"Reason,omitempty"` // why it is the current one
	File      string             `json:"File"`
	FleetId   fleet.ID           `json:"FleetId,omitempty"`
	FleetName string             `json:"FleetName,omitempty"`
	Operator  fleet.OperatorName `json:"Operator,omitempty"`
	KeyId     string             `json:"KeyId,omitempty"`
	PublicKey string             `json:"PublicKey,omitempty"`
	Addresses []string           `json:"Addresses,omitempty"`
	Problem   string             `json:"Problem,omitempty"` // why it cannot be used
}

type contextsResult struct {
	Contexts []contextView `json:"Contexts"`
}

func viewContext(name, path string) contextView {
	v := contextView{Name: name, File: path}
	cred, err := identity.LoadCredential(path)
	if err != nil {
		v.Problem = err.Error()
		return v
	}
	public := cred.Key.Public()
	v.FleetId, v.FleetName, v.Operator, v.Addresses = cred.Fleet, cred.Name, cred.Operator, cred.Addresses
	v.KeyId, v.PublicKey = public.ID().String(), public.Text()
	return v
}

func (e *env) contextLs(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	names, err := e.contexts()
	if err != nil {
		return err
	}
	which, chooseErr := e.choose(c)
	r := contextsResult{Contexts: []contextView{}}
	for _, name := range names {
		v := viewContext(name, filepath.Join(e.credentialDir(), name))
		if chooseErr == nil && which.path == v.File {
			v.Current, v.Reason = true, which.reason
		}
		r.Contexts = append(r.Contexts, v)
	}
	if len(names) == 0 {
		fmt.Fprintf(e.err, "%s holds no credential; fleet login HOST makes one\n", firstOf(e.tilde(e.credentialDir()), "~/.config/fleet"))
	}
	if chooseErr == nil && which.name == "" {
		fmt.Fprintf(e.err, "%s is used, by %s\n", escapeCell(which.path), which.reason)
	}
	return e.print(c, result{value: r, names: names, table: func(w io.Writer) {
		t := newTable("", "NAME", "FLEET", "OPERATOR", "KEY", "ADDRESSES")
		for _, v := range r.Contexts {
			mark := " "
			if v.Current {
				mark = "*"
			}
			if v.Problem != "" {
				t.add(mark, v.Name, "", "", "", "cannot be used: "+v.Problem)
				continue
			}
			t.add(mark, v.Name, v.FleetName+" "+string(v.FleetId)[:8], string(v.Operator), v.KeyId, strings.Join(v.Addresses, " "))
		}
		t.write(w)
	}})
}

func (e *env) contextShow(c *cli.Context) error {
	if err := checkForm(c); err != nil {
		return err
	}
	which, err := e.choose(c)
	if name := c.Args().First(); name != "" {
		if err := e.knownContext(name); err != nil {
			return err
		}
		path := filepath.Join(e.credentialDir(), name)
		if err != nil || which.path != path {
			which = chosen{path: path, name: name}
		}
	} else if err != nil {
		return e.nameFleet(c, err)
	}
	v := viewContext(which.name, which.path)
	v.Current, v.Reason = which.reason != "", which.reason
	if v.Problem != "" {
		_, err := identity.LoadCredential(which.path)
		return err
	}
	return e.print(c, result{value: v, names: []string{firstOf(v.Name, v.File)}, table: func(w io.Writer) {
		properties(w, "context", v.Name, "used", v.Reason, "fleet", v.FleetName+"  "+string(v.FleetId), "operator", string(v.Operator),
			"key", v.KeyId, "public key", v.PublicKey, "file", e.tilde(v.File), "addresses", strings.Join(v.Addresses, " "))
	}})
}

// knownContext refuses the name of a context that there is not.
func (e *env) knownContext(name string) error {
	if err := checkContext(name); err != nil {
		return err
	}
	found, err := e.contexts()
	if err != nil || slices.Contains(found, name) {
		return err
	}
	refused := fleet.Errorf(fleet.NotFound, "there is no context %q in %s", name, e.credentialDir())
	if s := suggest(found, name); s != "" {
		return refused.WithHint("did you mean %s?", s)
	}
	return refused.WithHint("see which there are: fleet context ls")
}

func (e *env) contextUse(c *cli.Context) error {
	name := c.Args().First()
	if err := e.knownContext(name); err != nil {
		return err
	}
	if _, err := identity.LoadCredential(filepath.Join(e.credentialDir(), name)); err != nil {
		return err
	}
	if err := e.setCurrent(name); err != nil {
		return err
	}
	fmt.Fprintf(e.err, "the context is %s\n", name)
	for _, variable := range []string{"FLEET_CREDENTIAL", "FLEET_CONTEXT"} {
		if e.getenv(variable) != "" {
			e.warningLines([]fleet.Warning{{Message: variable + " is set and comes first", Remedy: "unset " + variable}})
		}
	}
	return nil
}

func (e *env) contextRm(c *cli.Context) error {
	for _, name := range c.Args().Slice() {
		if err := e.knownContext(name); err != nil {
			return err
		}
	}
	return e.forget(c, c.Args().Slice())
}

// forget deletes the credentials of contexts from this machine.
func (e *env) forget(c *cli.Context, names []string) error {
	if !c.Bool("yes") {
		question := fmt.Sprintf("Delete the key of %s? Without a copy of it elsewhere it is gone for good.", strings.Join(names, ", "))
		if err := e.confirm(question); err != nil {
			return err
		}
	}
	current, err := e.current()
	if err != nil {
		current = ""
	}
	for _, name := range names {
		path := filepath.Join(e.credentialDir(), name)
		cred, loadErr := identity.LoadCredential(path)
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("delete the credential: %w", err)
		}
		if name == current {
			if err := e.setCurrent(""); err != nil {
				return err
			}
		}
		if loadErr != nil {
			fmt.Fprintf(e.err, "%s deleted\n", e.tilde(path))
			continue
		}
		fmt.Fprintf(e.err, "%s deleted. %s still knows operator %s and its key; to end that: fleet operator rm %s\n",
			e.tilde(path), cred.Name, cred.Operator, cred.Operator)
	}
	return nil
}
