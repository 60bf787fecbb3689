package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/service"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is no node/cli/%s: make it with go test ./node/cli -run '^%s$' -update, and read what it says", path, t.Name())
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

var testNow = time.Date(2026, 7, 7, 12, 0, 0, 0, time.UTC)

// world is an env whose ends the test holds.
type world struct {
	*env
	stdin          *bytes.Buffer
	stdout, stderr bytes.Buffer
	vars           map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{stdin: &bytes.Buffer{}, vars: map[string]string{}}
	w.env = &env{
		in: w.stdin, out: &w.stdout, err: &w.stderr, getenv: func(k string) string { return w.vars[k] },
		home: t.TempDir(), hostname: func() (string, error) { return "web1.example.net", nil },
		now: func() time.Time { return testNow }, version: "1.2.3",
		password: func() ([]byte, error) { return nil, io.EOF },
		manager:  func() (service.Manager, error) { return nil, errNoManager },
		program:  func() (string, error) { return "/usr/bin/fleet", nil }, readyTimeout: 30 * time.Second,
	}
	return w
}

var errNoManager = fleet.Errorf(fleet.Unavailable, "systemd does not run this host").WithHint("--foreground or --enroll-only")

func (w *world) run(t *testing.T, args ...string) int {
	t.Helper()
	w.stdout.Reset()
	w.stderr.Reset()
	return w.main(t.Context(), append([]string{"fleet"}, args...))
}

// leaves calls f for each command that does something.
func leaves(tree []*cli.Command, path []*cli.Command, f func(path []*cli.Command)) {
	for _, c := range tree {
		here := append(slices.Clone(path), c)
		if len(c.Subcommands) == 0 {
			f(here)
		} else {
			leaves(c.Subcommands, here, f)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	leaves(newWorld(t).commands(), nil, func(path []*cli.Command) {
		c := path[len(path)-1]
		name := (&line{path: path}).name()
		for _, want := range []string{"Example", "Exit codes: 0", "  " + name} {
			if !strings.Contains(c.Description, want) {
				t.Errorf("%s: the description has no %q", name, want)
			}
		}
		if c.Usage == "" || strings.HasSuffix(c.Usage, ".") {
			t.Errorf("%s: usage %q", name, c.Usage)
		}
		if strings.Contains(c.Description, "\t") {
			t.Errorf("%s: tab in the description", name)
		}
		seen := map[string]bool{}
		for _, f := range c.Flags {
			for _, n := range f.Names() {
				if seen[n] {
					t.Errorf("%s: flag %s twice", name, n)
				}
				seen[n] = true
			}
			if doc, ok := f.(cli.DocGenerationFlag); !ok || doc.GetUsage() == "" {
				t.Errorf("%s: flag %s has no usage", name, f.Names()[0])
			}
		}
	})
}

func TestHelp(t *testing.T) {
	w := newWorld(t)
	help := func(file string, args ...string) {
		if code := w.run(t, args...); code != ExitDone {
			t.Errorf("%v: exit %d: %s", args, code, w.stderr.String())
		}
		for l := range strings.Lines(w.stdout.String()) {
			if utf8.RuneCountInString(l) > 160 {
				t.Errorf("%v: a line of %d characters: %s", args, utf8.RuneCountInString(l), l)
			}
		}
		golden(t, filepath.Join("help", file+".txt"), w.stdout.String())
	}
	help("fleet", "--help")
	for _, c := range w.commands() {
		help(c.Name, c.Name, "--help")
		for _, sub := range c.Subcommands {
			help(c.Name+"-"+sub.Name, c.Name, sub.Name, "-h")
		}
	}
	if w.run(t); !strings.HasPrefix(w.stdout.String(), "fleet: manage hosts") {
		t.Error("no arguments: no help")
	}
}

func TestArrange(t *testing.T) {
	tree := newWorld(t).commands()
	tests := []struct {
		line string
		want string // what urfave/cli reads
	}{
		{"node ls", "fleet node ls --"},
		{"nodes list", "fleet node ls --"},
		{"node ls web1 -o json", "fleet node ls --output=json -- web1"},
		{"node ls -o json web1", "fleet node ls --output=json -- web1"},
		{"node -o json ls", "fleet node ls --output=json --"},
		{"-o json node ls", "fleet node ls --output=json --"},
		{"--credential f status", "fleet status --credential=f --"},
		{"node ls --output=json web1 --stale", "fleet node ls --output=json --stale -- web1"},
		{"node get web1", "fleet node show -- web1"},
		{"node label web1 rack-", "fleet node label -- web1 rack-"},
		{"activation delete a", "fleet activation rm -- a"},
		{"run --all -- uname -r", "fleet run --all -- uname -r"},
		{"run --all apt-get install -y x -- z", "fleet run --all -- apt-get install -y x -- z"},
		{"run uname --all --help", "fleet run -- uname --all --help"},
		{"run --all -- a -- b", "fleet run --all -- a -- b"},
		{"run --all -- --help", "fleet run --all -- --help"},
		{"run -l a=b,c -l d=e -y -- x", "fleet run --label=a=b,c --label=d=e --yes -- x"},
		{"run --label=a=b -- x", "fleet run --label=a=b -- x"},
		{"run --all=false -- x", "fleet run --all=false -- x"},
		{"join --token-file -", "fleet join --token-file=- --"},
		{"join -", "fleet join -- -"},
		{"--version", "fleet version --"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			l, err := arrange(tree, strings.Fields(tt.line))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(l.args(), " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // in stderr
	}{
		{"unknown command", []string{"nodde", "ls"}, `fleet has no command "nodde"` + "\nhint:  did you mean fleet node?"},
		{"unknown subcommand", []string{"node", "shwo", "x"}, `did you mean fleet node show?`},
		{"nothing like it", []string{"frobnicate"}, `fleet --help lists what there is`},
		{"half a command", []string{"node"}, `one of ls, show, label`},
		{"unknown flag", []string{"node", "ls", "--outptu", "json"}, `did you mean --output?`},
		{"beginning of a flag", []string{"run", "--detac", "--all", "--", "x"}, `did you mean --detach?`},
		{"one dash", []string{"node", "ls", "-output", "json"}, `no flag "-output"`},
		{"two dashes", []string{"node", "ls", "--o", "json"}, `no flag "--o"`},
		{"another command's flag", []string{"--detach", "node", "ls"}, `fleet node ls has no flag "--detach"`},
		{"flag of the remote command", []string{"run", "--all", "-r", "uname"}, `what runs on the hosts comes after --`},
		{"flag after the remote command", []string{"run", "uname", "--all"}, `put --all, --node SET, --target NAME or --label KEY=VALUE before it`},
		{"flag without its value", []string{"node", "ls", "-o"}, `-o needs a value`},
		{"not a number", []string{"command", "ls", "--limit", "many"}, `invalid value "many"`},
		{"too few arguments", []string{"node", "show"}, `fleet node show needs NODE`},
		{"too many arguments", []string{"node", "show", "a", "b"}, `does not take the argument "b"`},
		{"unknown form", []string{"version", "-o", "xml"}, `none of table, json, yaml, name`},
		{"misspelt form", []string{"version", "-o", "yml"}, "name\nhint:  did you mean yaml?"},
		{"misspelt state", []string{"command", "ls", "--status", "inprogress"}, "did you mean InProgress?"},
		{"misspelt status", []string{"node", "ls", "--status", "onlin"}, "did you mean Online?"},
		{"run nothing", []string{"run", "--all"}, `what should run?`},
		{"run nowhere", []string{"run", "--", "uname"}, `on which hosts?`},
		{"run everywhere and somewhere", []string{"run", "--all", "--node", "a", "--", "uname"}, `--all is every host`},
		{"label without a key", []string{"run", "--label", "=x", "--", "uname"}, `not KEY`},
		{"deliver at once", []string{"run", "--all", "--deliver-within", "5s", "--", "uname"}, `less than 30s`},
		{"no duration", []string{"run", "--all", "--timeout", "soon", "--", "uname"}, `not a duration`},
		{"script and command", []string{"run", "--all", "--script", "x", "--", "uname"}, `exclude each other`},
		{"init without a name", []string{"init", "--enroll-only"}, `what is the fleet called?`},
		{"init without a root key", []string{"init", "--enroll-only", "--name", "acme"}, `where should the root key go?`},
		{"join both ways", []string{"join", "--foreground", "--enroll-only"}, `exclude each other`},
		{"join without a token", []string{"join", "--enroll-only"}, `there is no token`},
		{"quorum add without the key", []string{"quorum", "add", "x"}, `which root key?`},
		{"bad status", []string{"node", "ls", "--status", "fine"}, `none of Online`},
		{"credential and context", []string{"node", "ls", "--credential", "f", "--context", "acme"}, `--credential and --context exclude each other`},
		{"bad name of a fleet", []string{"init", "--enroll-only", "--name", "A", "--root-key", "/k"}, `fleet name "A"`},
		{"bad log level", []string{"agent", "--log-level", "loud"}, `log.level (--log-level)`},
		{"bad listen", []string{"agent", "--listen", "x"}, `listen (--listen)`},
		{"bad host name", []string{"join", "--enroll-only", "--node-name", "a b"}, `name (--node-name)`},
		{"not a command's ID", []string{"command", "show", "xx"}, `"xx"`},
		{"not a command's ID of output", []string{"command", "output", "xx"}, `"xx"`},
		{"not a command's state", []string{"command", "ls", "--status", "bogus"}, `none of Pending, InProgress, Success, Failed, TimedOut, Cancelling, Cancelled`},
		{"form of a stream", []string{"command", "output", "00000000-0000-4000-8000-000000000000", "web1", "-o", "json"}, `--output goes with the answers of all hosts`},
		{"not an activation's ID", []string{"activation", "rm", "nonsense"}, `"nonsense"`},
		{"bad label", []string{"node", "label", "web1", "aws:x=y"}, `label key "aws:x"`},
		{"bad label to remove", []string{"node", "label", "web1", "@-"}, `label key "@"`},
		{"expires", []string{"activation", "create", "--expires", "40d"}, `--expires 40d is over 30d`},
		{"bad address of a token", []string{"activation", "create", "--address", "host1"}, `--address "host1" is not IP:PORT`},
		{"target of nothing", []string{"target", "put", "web"}, `which hosts is web?`},
		{"bad name of a target", []string{"target", "put", "a/b", "web1"}, `target name "a/b"`},
		{"bad node set of a target", []string{"target", "put", "web", "web[1"}, `this [ is not closed`},
		{"bad target in a target", []string{"target", "put", "web", "@-"}, `"-" is no name`},
		{"short time limit", []string{"run", "--all", "--timeout", "1s", "x"}, `--timeout 1s: from 5s to 48h`},
		{"two voters", []string{"dev", "--quorum", "2"}, `2 voters of 3 nodes`},
		{"limit", []string{"activation", "create", "--limit", "0"}, `not between 1 and 1000`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if code := w.run(t, tt.args...); code != ExitUsage {
				t.Errorf("exit %d, want %d", code, ExitUsage)
			}
			if !strings.Contains(w.stderr.String(), tt.want) {
				t.Errorf("got %q, want %q", w.stderr.String(), tt.want)
			}
			if w.stdout.Len() > 0 {
				t.Errorf("on stdout: %q", w.stdout.String())
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	tests := []struct {
		err  error
		want int
	}{
		{nil, ExitDone},
		{errors.New("x"), ExitFailed},
		{fleet.Errorf(fleet.NotFound, "x"), ExitFailed},
		{exitError(ExitSome), ExitSome},
		{fleet.Errorf(fleet.NoQuorum, "x"), ExitNoQuorum},
		{fmt.Errorf("call: %w", fleet.Errorf(fleet.NoQuorum, "x")), ExitNoQuorum},
		{fleet.Errorf(fleet.Denied, "x"), ExitNotAllowed},
		{fleet.Errorf(fleet.Unauthenticated, "x"), ExitNotAllowed},
		{usagef("x"), ExitUsage},
	}
	for _, tt := range tests {
		if got := newWorld(t).fail(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What a server says is shown as text, whoever the server is.
func TestErrorsAreEscaped(t *testing.T) {
	w := newWorld(t)
	w.fail(fleet.Errorf(fleet.NotFound, "no node \x1b]0;owned\x07").WithHint("try\x1b[2J\u202e"))
	want := "error: no node \\x1b]0;owned\\x07\nhint:  try\\x1b[2J\\u202e\n"
	if got := w.stderr.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTokenIsNeverAnArgument(t *testing.T) {
	token := identity.JoinToken{Activation: "6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b", Code: identity.Code{1}, Addresses: []string{"10.0.0.1:7790"}}.Encode()
	for _, args := range [][]string{{"join", token}, {"join", "--enroll-only", token}, {"join", "--", token}} {
		w := newWorld(t)
		if code := w.run(t, args...); code != ExitUsage || !strings.Contains(w.stderr.String(), "does not belong on the command line") {
			t.Errorf("%d: %s", code, w.stderr.String())
		}
		if strings.Contains(w.stdout.String()+w.stderr.String(), token[:20]) {
			t.Error("the token is repeated")
		}
	}
	for _, args := range [][]string{{"join", "--token", token}, {"join", "--token=" + token}} {
		w := newWorld(t)
		if code := w.run(t, args...); code != ExitUsage || strings.Contains(w.stderr.String(), token[:20]) {
			t.Errorf("%d: %s", code, w.stderr.String())
		}
	}
	leaves(newWorld(t).commands(), nil, func(path []*cli.Command) {
		for _, f := range path[len(path)-1].Flags {
			for _, n := range f.Names() {
				if n == "token" || strings.Contains(n, "passphrase-") || n == "password" {
					t.Errorf("%s takes a secret as a flag", (&line{path: path}).name())
				}
			}
		}
	})
}

func TestTokenSources(t *testing.T) {
	want := identity.JoinToken{Activation: "6d5f0c9e-2b1f-4d39-9f2e-6a1c4f6f1d0b", Code: identity.Code{1}, Addresses: []string{"10.0.0.1:7790"}}
	file := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(file, []byte(want.Encode()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		path string
		set  func(*world)
	}{
		{"file", file, func(*world) {}},
		{"standard input", "-", func(w *world) { w.stdin.WriteString(want.Encode() + "\n") }},
		{"environment", "", func(w *world) { w.vars["FLEET_TOKEN"] = want.Encode() }},
		{"file before environment", file, func(w *world) { w.vars["FLEET_TOKEN"] = "fleet1_other" }},
		{"prompt", "", func(w *world) {
			w.inTTY = true
			w.password = func() ([]byte, error) { return []byte(want.Encode()), nil }
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.set(w)
			got, err := w.token(tt.path)
			if err != nil || got.Encode() != want.Encode() {
				t.Errorf("got another token, or %v", err)
			}
		})
	}
	w := newWorld(t)
	w.vars["FLEET_TOKEN"] = "fleet1_" + strings.Repeat("secret", 300)
	if _, err := w.token(""); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a damaged token: %v", err)
	}
}

func TestCredential(t *testing.T) {
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	save := func(w *world, name string) {
		t.Helper()
		path := filepath.Join(w.home, ".config", "fleet", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		cred := identity.Credential{Fleet: fleet.ID(strings.Repeat("a", 32)), Name: name, Operator: "me", Key: key, Addresses: []string{"10.0.0.1:7790"}}
		if err := identity.SaveCredential(path, cred); err != nil {
			t.Fatal(err)
		}
	}
	find := func(w *world, args ...string) (identity.Credential, error) {
		var cred identity.Credential
		var found error
		app := &cli.App{Flags: clientFlags(), Action: func(c *cli.Context) error {
			cred, _, found = w.credential(c)
			return nil
		}}
		if err := app.Run(append([]string{"x"}, args...)); err != nil {
			t.Fatal(err)
		}
		return cred, found
	}

	w := newWorld(t)
	_, err = find(w)
	if !isNoCredential(err) || !strings.Contains(err.Error(), "no operator credential in "+w.home) || fleet.HintOf(err) == "" {
		t.Errorf("none: %v", err)
	}
	save(w, "acme")
	if cred, err := find(w); err != nil || cred.Name != "acme" {
		t.Errorf("the only one: %v, %v", cred.Name, err)
	}
	save(w, "beta")
	if _, err := find(w); exitCode(err) != ExitUsage || !strings.Contains(hintOf(err), "acme, beta") {
		t.Errorf("two: %v", err)
	}
	if cred, err := find(w, "--context", "beta"); err != nil || cred.Name != "beta" {
		t.Errorf("by flag: %v, %v", cred.Name, err)
	}
	w.vars["FLEET_CONTEXT"] = "acme"
	if cred, err := find(w); err != nil || cred.Name != "acme" {
		t.Errorf("by variable: %v, %v", cred.Name, err)
	}
	if _, err := find(w, "--context", "gamma"); fleet.KindOf(err) != fleet.NotFound || !strings.Contains(err.Error(), "no operator credential for gamma") ||
		!strings.Contains(fleet.HintOf(err), "acme, beta") {
		t.Errorf("unknown: %v", err)
	}
	if _, err := find(w, "--context", "../x"); exitCode(err) != ExitUsage {
		t.Errorf("a path: %v", err)
	}
	w.vars["FLEET_CREDENTIAL"] = filepath.Join(w.home, ".config", "fleet", "beta")
	if cred, err := find(w); err != nil || cred.Name != "beta" {
		t.Errorf("by path: %v, %v", cred.Name, err)
	}
	if cred, err := find(w, "--context", "acme"); err != nil || cred.Name != "acme" {
		t.Errorf("flag before the variable of a path: %v, %v", cred.Name, err)
	}
	if _, err := find(w, "--credential", "/nowhere"); fleet.KindOf(err) != fleet.NotFound {
		t.Errorf("no file: %v", err)
	}
	if err := os.Chmod(w.vars["FLEET_CREDENTIAL"], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := find(w); err == nil {
		t.Error("a file that others may read was accepted")
	}
}

func TestVersion(t *testing.T) {
	w := newWorld(t)
	if code := w.run(t, "version"); code != 0 || !strings.HasPrefix(w.stdout.String(), "fleet 1.2.3 (go") {
		t.Errorf("%d %s", code, w.stdout.String())
	}
	if w.run(t, "version", "-o", "name"); w.stdout.String() != "1.2.3\n" {
		t.Errorf("name: %q", w.stdout.String())
	}
	w.run(t, "version", "-o", "yaml")
	if !strings.HasPrefix(w.stdout.String(), "Version: 1.2.3\n") {
		t.Errorf("yaml: %q", w.stdout.String())
	}
}

func TestDurations(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Duration
		bad  bool
	}{
		{"90s", 90 * time.Second, false}, {"10m", 10 * time.Minute, false},
		{"7d", 7 * 24 * time.Hour, false}, {"1h30m", 90 * time.Minute, false},
		{"", 0, true}, {"90", 0, true}, {"-1", 0, true}, {"9999999999999999999", 0, true}, {"xd", 0, true}, {"soon", 0, true}, {"9223372036854775807", 0, true},
	} {
		got, err := parseDuration(tt.text)
		if (err != nil) != tt.bad || got != tt.want && !tt.bad {
			t.Errorf("%q: got %v, %v", tt.text, got, err)
		}
	}
}

func TestJSONKeepsItsMeaning(t *testing.T) {
	in := map[string]string{"x": "a\u202eb\u0085c\x1bd\u2028\"\\ é😀\U000E0041"}
	text, err := encodeResult(in, formJSON)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range text {
		if hostile(r) && r != '\n' && r < 0x10000 {
			t.Errorf("%U in %q", r, text)
		}
	}
	var out map[string]string
	if err := json.Unmarshal([]byte(text), &out); err != nil || out["x"] != in["x"] {
		t.Errorf("got %q, %v, want %q", out["x"], err, in["x"])
	}
}

func TestYAMLNumbers(t *testing.T) {
	text, err := encodeResult(map[string]any{"a": []any{1.795319581554074e+09, 7}, "b": map[string]any{"c": 0.5, "d": "1e9"}}, formYAML)
	if want := "a:\n- 1795319581.554074\n- 7\nb:\n  c: 0.5\n  d: \"1e9\"\n"; err != nil || text != want {
		t.Errorf("got %q, %v, want %q", text, err, want)
	}
}

// fullDisk takes nothing, as /dev/full.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

func TestWriteErrors(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"version", "-o", "json"}, {"version", "-o", "name"}, {"--help"}, {"run", "--help"}} {
		w := newWorld(t)
		w.out = fullDisk{}
		if code := w.run(t, args...); code != ExitFailed || w.stderr.String() != "error: write output: no space left on device\n" {
			t.Errorf("%v: exit %d: %s", args, code, w.stderr.String())
		}
	}
}

func TestRemember(t *testing.T) {
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	path := filepath.Join(w.home, "cred")
	old := identity.Credential{Fleet: fleet.ID(strings.Repeat("a", 32)), Name: "acme", Operator: "me", Key: key,
		Addresses: []string{"10.0.0.1:1", "10.0.0.2:1"}}
	if err := identity.SaveCredential(path, old); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		quorum []string
		want   string
	}{
		{nil, "10.0.0.1:1 10.0.0.2:1"},
		{[]string{"10.0.0.2:1", "10.0.0.1:1"}, "10.0.0.1:1 10.0.0.2:1"},
		{[]string{"10.9.9.9:1"}, "10.9.9.9:1 10.0.0.1:1 10.0.0.2:1"}, // one that would leave only itself
		{[]string{"10.0.0.2:1", "10.0.0.3:1"}, "10.0.0.2:1 10.0.0.3:1 10.9.9.9:1 10.0.0.1:1"},
		{[]string{"10.0.1.1:1", "10.0.1.2:1", "10.0.1.3:1", "10.0.1.4:1", "10.0.1.5:1"},
			"10.0.1.1:1 10.0.1.2:1 10.0.1.3:1 10.0.1.4:1 10.0.1.5:1 10.0.0.2:1 10.0.0.3:1 10.9.9.9:1 10.0.0.1:1"},
		{[]string{"10.0.2.1:1", "10.0.2.2:1"},
			"10.0.2.1:1 10.0.2.2:1 10.0.1.1:1 10.0.1.2:1 10.0.1.3:1 10.0.1.4:1 10.0.1.5:1 10.0.0.2:1 10.0.0.3:1 10.9.9.9:1"},
	} {
		cred, err := identity.LoadCredential(path)
		if err != nil {
			t.Fatal(err)
		}
		w.remember(path, cred, tt.quorum)
		if cred, err = identity.LoadCredential(path); err != nil || strings.Join(cred.Addresses, " ") != tt.want {
			t.Errorf("%v: got %v, %v, want %s", tt.quorum, cred.Addresses, err, tt.want)
		}
	}
}

func TestConfirm(t *testing.T) {
	w := newWorld(t)
	if err := w.confirm("Go?"); exitCode(err) != ExitUsage || !strings.Contains(hintOf(err), "--yes") {
		t.Errorf("without a terminal: %v", err)
	}
	w.inTTY = true
	for answer, yes := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yep\n": false} {
		w.stdin.Reset()
		w.stdin.WriteString(answer)
		if err := w.confirm("Go?"); (err == nil) != yes {
			t.Errorf("%q: %v", answer, err)
		}
	}
}

func TestTextWidth(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "web1": 4, "é": 1, "e\u0301": 1, "日本": 4, "한국": 4, "ｆ": 2, "🚀": 2, "a\u200db": 2, "Ω": 1, "…": 1,
	} {
		if got := textWidth(text); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
	for _, tt := range []struct {
		text    string
		columns int
		want    string
	}{
		{"short", 80, "short"}, {"exactly", 7, "exactly"}, {"too long", 7, "too lo…"}, {"too  long", 6, "too…"},
		{"日本日本", 8, "日本日本"}, {"日本日本", 7, "日本日…"}, {"日本日本", 6, "日本…"},
	} {
		if got := cutWidth(tt.text, tt.columns); got != tt.want {
			t.Errorf("%q in %d: got %q, want %q", tt.text, tt.columns, got, tt.want)
		}
	}
}

// On a terminal no line of a table goes on in the next; elsewhere nothing is cut.
func TestNarrowTerminal(t *testing.T) {
	w := newWorld(t)
	table := newTable("NAME", "LABELS")
	table.add("日本", strings.Repeat("x", 100))
	table.add("web1", "y")
	w.width = 20
	var cut, whole bytes.Buffer
	table.write(&results{w: &cut, width: w.width})
	table.write(&results{w: &whole})
	if want := "NAME  LABELS\n日本  " + strings.Repeat("x", 13) + "…\nweb1  y\n"; cut.String() != want {
		t.Errorf("got %q, want %q", cut.String(), want)
	}
	if !strings.Contains(whole.String(), strings.Repeat("x", 100)) {
		t.Errorf("got %q", whole.String())
	}
}

// A read that found no quorum says how to read without one.
func TestStaleIsOffered(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		flags []cli.Flag
		args  []string
		want  string
	}{
		{staleFlag(), nil, "start it; what one host remembers: --stale"},
		{staleFlag(), []string{"--stale"}, "start it"},
		{nil, nil, "start it"},
	} {
		app := &cli.App{ExitErrHandler: func(*cli.Context, error) {}, Commands: []*cli.Command{
			leaf(&cli.Command{Name: "c", Flags: tt.flags}, 0, 0, func(*cli.Context) error {
				return fleet.Errorf(fleet.NoQuorum, "no quorum").WithHint("start it")
			}),
		}}
		err := app.Run(append([]string{"x", "c"}, tt.args...))
		if got := hintOf(err); got != tt.want || w.fail(err) != ExitNoQuorum || err.Error() != "no quorum" {
			t.Errorf("%v: got %q of %v", tt.args, got, err)
		}
	}
}
