package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"fleet/node/devfleet"
)

// The scripts of testdata/script run the real program, as a process, the way a
// person or another script runs it: exit codes, both streams, environment,
// files and terminals are the real ones. Each command has a script of its own
// name (TestEveryCommandHasAScript). All but those that start a fleet of their
// own speak to one fleet of three hosts, so a script must not change what
// another relies on: it labels, adds and removes only things that it made.
//
// Beside testscript's own commands there are:
//
//	exits CODE PROGRAM ARGS...     it ends with CODE
//	until PATTERN PROGRAM ARGS...  it is run until its stdout matches
//	await FILE                     FILE appears
//	source FILE                    the exports of FILE, as a shell's "."
//	capture NAME                   NAME is the trimmed stdout of the last program
//
// and the variables DEV (the shared fleet's directory), PORT (a free port) and
// FLEET_* for that fleet.

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fleet": func() { os.Exit(Main(os.Args, "1.2.3")) },
	})
}

const scriptDir = "testdata/script"

func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	f, err := devfleet.Start(t.Context(), devfleet.Options{
		Dir: filepath.Join(shortDir(t), "f"), Nodes: 3, Quorum: 1, Version: "1.2.3", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	env, err := f.WriteEnv()
	if err != nil {
		t.Fatal(err)
	}
	vars, err := exports(env)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: scriptDir, UpdateScripts: *update, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			if err := os.Mkdir(home, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			_, port, _ := strings.Cut(freePort(t), ":")
			e.Setenv("HOME", home)
			e.Setenv("DEV", filepath.Dir(env))
			e.Setenv("PORT", port)
			for _, v := range vars {
				e.Setenv(v[0], v[1])
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": scriptExits, "until": scriptUntil, "await": scriptAwait, "source": scriptSource, "capture": scriptCapture,
		},
	})
}

// exports reads the variables of a file of shell exports.
func exports(path string) (vars [][2]string, _ error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "="); ok {
			vars = append(vars, [2]string{name, strings.Trim(value, "'")})
		}
	}
	return vars, nil
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	default:
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n[stdout]\n%s[stderr]\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// scriptDeadline bounds waiting in a script, on a busy machine too.
const scriptDeadline = time.Minute

func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN PROGRAM ARGS...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.Now().Add(scriptDeadline)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no %q within %s; the last time: %v\n[stdout]\n%s[stderr]\n%s",
				args[0], scriptDeadline, err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	path := ts.MkAbs(args[0])
	deadline := time.Now().Add(scriptDeadline)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not appear within %s", path, scriptDeadline)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func scriptSource(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: source FILE")
	}
	vars, err := exports(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, v := range vars {
		ts.Setenv(v[0], v[1])
	}
}

func scriptCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// commandWords are the names on the way to a command: "node", "ls".
func commandWords(path []*cli.Command) []string { return names(path) }

// Who adds a command is told here what it needs.
func TestEveryCommandHasAScript(t *testing.T) {
	leaves(newWorld(t).commands(), nil, func(path []*cli.Command) {
		if path[len(path)-1].Hidden {
			return
		}
		words := commandWords(path)
		file := filepath.Join(scriptDir, strings.Join(words, "-")+".txtar")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("fleet %s has no script: add node/cli/%s, which runs it against a real fleet (see node-ls.txtar beside it)",
				strings.Join(words, " "), file)
			return
		}
		runs := regexp.MustCompile(`(?m)^[^#\n]*\bfleet (.* )?` + regexp.QuoteMeta(strings.Join(words, " ")) + `\b`)
		if !runs.Match(b) {
			t.Errorf("node/cli/%s does not run fleet %s", file, strings.Join(words, " "))
		}
	})
}

// Help texts of commands that there are no more are not kept.
func TestNoHelpWithoutACommand(t *testing.T) {
	known := []string{"fleet.txt"}
	var walk func(tree []*cli.Command, prefix string)
	walk = func(tree []*cli.Command, prefix string) {
		for _, c := range tree {
			known = append(known, prefix+c.Name+".txt")
			walk(c.Subcommands, prefix+c.Name+"-")
		}
	}
	walk(newWorld(t).commands(), "")
	entries, err := os.ReadDir("testdata/help")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(known, entry.Name()) {
			t.Errorf("node/cli/testdata/help/%s belongs to no command: remove it", entry.Name())
		}
	}
}
