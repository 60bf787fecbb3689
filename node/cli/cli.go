// Package cli is the command line: arguments become a request, answers become
// text for people or JSON for programs.
//
// One file a noun, one literal a command, and no decisions: what a command may
// do is decided where the request arrives. Shared by all: flags stand before
// or after arguments (arrange.go), help is written from the same literals
// (help.go), results go to stdout and all else to stderr, the exit code comes
// from the kind of the error. What hosts wrote is escaped before it reaches a
// terminal (escape.go), because a host that is not ours any more must not be
// able to write to the screen of whoever looks at it.
//
// urfave/cli reads flags and runs the action; its own help, suggestions and
// exits are not used, because it stops reading flags at the first argument and
// writes help where errors belong.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"fleet/node/fleet"
	"fleet/node/service"
	"fleet/node/transport"
	"fleet/node/upgrade"
)

// Exit codes.
const (
	ExitDone       = 0
	ExitFailed     = 1
	ExitSome       = 2 // some targets did not succeed
	ExitNoQuorum   = 3
	ExitNotAllowed = 4
	ExitUsage      = 64
)

// env is the world of one invocation, so that tests can make one.
type env struct {
	in       io.Reader
	out, err io.Writer

	// Which of the three are terminals, and how wide the standard output is;
	// 0 when it has no width.
	inTTY, outTTY, errTTY bool
	width                 int

	getenv   func(string) string
	home     string // home directory; "" if unknown
	hostname func() (string, error)
	now      func() time.Time
	version  string
	dial     transport.DialFunc // nil: the system's

	manager      func() (service.Manager, error) // of this host's service
	program      func() (string, error)          // path of this program
	readyTimeout time.Duration                   // for an agent that was started to become ready

	// sent is set once somebody else may have been asked: what is invalid from
	// then on may be another's fault than the command line's.
	sent bool

	// again gives a context that the next signal ends, for who was interrupted
	// and goes on.
	again func() (context.Context, context.CancelFunc)

	// password reads a line from the terminal without showing it.
	password func() ([]byte, error)
}

// Main runs one command line and answers the exit code. version is the
// program's.
func Main(args []string, version string) int {
	// The first signal asks for an orderly end; the next one ends the process.
	ctx, stop := untilSignal(context.Background())
	defer stop()
	// A reader that has gone (fleet node ls | head -1) is an error of the write
	// and not the end of the process; ignoring the signal instead would make
	// the commands that an agent starts inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	home, _ := os.UserHomeDir() // without one, paths below it are errors where they are needed
	e := &env{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		inTTY: isTerminal(os.Stdin), outTTY: isTerminal(os.Stdout), errTTY: isTerminal(os.Stderr),
		getenv: os.Getenv, home: home, hostname: os.Hostname, now: time.Now, version: version,
		manager: service.Open, program: programPath, readyTimeout: readyTimeout,
		again:    func() (context.Context, context.CancelFunc) { return untilSignal(context.Background()) },
		password: func() ([]byte, error) { return term.ReadPassword(int(os.Stdin.Fd())) },
	}
	if e.outTTY {
		e.width, _, _ = term.GetSize(int(os.Stdout.Fd())) // 0, no limit, when it is not known
	}
	return e.main(ctx, args)
}

// programPath is where this program lies, links followed.
func programPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// commands is the whole tree, in the order of the help.
func (e *env) commands() []*cli.Command {
	return []*cli.Command{
		e.runCommand(),
		e.statusCommand(),

		e.initCommand(),
		e.joinCommand(),
		e.agentCommand(),
		e.leaveCommand(),
		e.doctorCommand(),
		e.configCommand(),
		e.uninstallCommand(),
		e.upgradeCommand(),
		e.debugCommand(),
		e.devCommand(),
		e.versionCommand(),

		e.loginCommand(),
		e.logoutCommand(),
		e.whoamiCommand(),
		e.contextCommand(),
		e.completionCommand(),
		e.manCommand(),

		e.nodeCommand(),
		e.operatorCommand(),
		e.activationCommand(),
		e.quorumCommand(),
		e.gossipKeyCommand(),
		e.caCommand(),
		e.revokeCommand(),
		e.commandCommand(), e.targetCommand(),
		e.backupCommand(),
	}
}

func (e *env) main(ctx context.Context, args []string) int {
	if len(args) > 1 && args[1] == completeCommand {
		e.complete(ctx, args[2:])
		return ExitDone
	}
	if len(args) == 3 && args[1] == upgrade.GuardCommand {
		return e.fail(e.guard(ctx, args[2]))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &results{w: e.out, width: e.width, gone: cancel}
	one := *e
	one.out = out
	return one.fail(out.outcome(one.invoke(ctx, args)))
}

func (e *env) invoke(ctx context.Context, args []string) error {
	tree := e.commands()
	line, err := arrange(tree, args[min(1, len(args)):])
	if err != nil {
		return err
	}
	if line.help {
		e.writeHelp(tree, line.path)
		return nil
	}
	app := &cli.App{
		Name: "fleet", Commands: tree, Writer: io.Discard, ErrWriter: io.Discard,
		HideHelp: true, HideVersion: true, DisableSliceFlagSeparator: true,
		ExitErrHandler: func(*cli.Context, error) {}, // it would end the process
	}
	return app.RunContext(ctx, line.args())
}

// results is the standard output. It keeps the first error of a write: a
// result that did not arrive is a failure, wherever it was written.
type results struct {
	w     io.Writer
	width int    // of the terminal; 0 when it is none
	gone  func() // ends the work for a reader that has gone
	err   error
}

func (r *results) Write(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.w.Write(b)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err // the path would be a fiction: /dev/stdout
		}
		r.err = fmt.Errorf("write output: %w", err)
		if errors.Is(err, syscall.EPIPE) {
			r.gone()
		}
	}
	return n, r.err
}

// outcome is err, or that a write failed, which may be behind err.
func (r *results) outcome(err error) error {
	var silent exitError
	switch {
	case r.err == nil:
		return err
	case errors.Is(r.err, syscall.EPIPE):
		// Who reads has what was wanted. What the work came to still counts,
		// but not that it was cut short.
		if errors.As(err, &silent) {
			return err
		}
		return nil
	case err == nil, errors.Is(err, r.err), errors.As(err, &silent):
		return r.err
	}
	return errors.Join(err, r.err)
}

// fail reports an error, if it is one, and answers its exit code.
func (e *env) fail(err error) int {
	if err == nil {
		return ExitDone
	}
	var silent exitError
	if errors.As(err, &silent) {
		return int(silent)
	}
	fmt.Fprintf(e.err, "%s %s\n", e.paint(e.errTTY, red, "error:"), indentRest(escape(err.Error())))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(e.err, "%s  %s\n", e.paint(e.errTTY, bold, "hint:"), indentRest(escape(hint)))
	}
	if !e.sent && fleet.KindOf(err) == fleet.Invalid {
		return ExitUsage
	}
	return exitCode(err)
}

// indentRest keeps the lines after the first apart from what follows.
func indentRest(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}

// exitError ends the program with a code when all has been said.
type exitError int

func (exitError) Error() string { return "" }

// usageError is a command line that says nothing we know.
type usageError struct{ message, hint string }

func (u *usageError) Error() string { return u.message }

func usagef(format string, args ...any) *usageError {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

func (u *usageError) withHint(format string, args ...any) *usageError {
	u.hint = fmt.Sprintf(format, args...)
	return u
}

func hintOf(err error) string {
	var usage *usageError
	if errors.As(err, &usage) {
		return usage.hint
	}
	return fleet.HintOf(err)
}

func exitCode(err error) int {
	var usage *usageError
	if errors.As(err, &usage) {
		return ExitUsage
	}
	switch fleet.KindOf(err) {
	case fleet.NoQuorum, fleet.NotLeader:
		return ExitNoQuorum
	case fleet.Denied, fleet.Unauthenticated:
		return ExitNotAllowed
	}
	return ExitFailed
}

// leaf completes the literal of a command that does something: a mistake in
// its flags is a usage error, and it takes between least and most arguments
// (most below 0 is any number).
func leaf(c *cli.Command, least, most int, action func(c *cli.Context) error) *cli.Command {
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
		return usagef("%s: %s", c.HelpName, err)
	}
	c.HideHelp = true
	c.Action = func(ctx *cli.Context) error {
		n := ctx.Args().Len()
		switch {
		case n < least:
			return usagef("fleet %s needs %s", commandName(ctx), c.ArgsUsage).withHint("fleet %s --help", commandName(ctx))
		case most >= 0 && n > most:
			return usagef("fleet %s does not take the argument %q", commandName(ctx), ctx.Args().Get(most)).
				withHint("fleet %s --help", commandName(ctx))
		}
		return offerStale(ctx, action(ctx))
	}
	return c
}

// offerStale says, of a read that found no quorum, that there is an answer
// without one.
func offerStale(ctx *cli.Context, err error) error {
	if fleet.KindOf(err) != fleet.NoQuorum || flagOf(ctx.Command, "stale") == nil || ctx.Bool("stale") {
		return err
	}
	var e *fleet.Error
	if !errors.As(err, &e) || strings.Contains(fleet.HintOf(err), "--stale") {
		return err
	}
	offered := fleet.Errorf(e.Kind, "%w", err)
	return offered.WithHint("%s", strings.TrimPrefix(fleet.HintOf(err)+"; what one host remembers: --stale", "; "))
}

// commandName is the path of the running command: "node ls".
func commandName(ctx *cli.Context) string {
	return strings.TrimPrefix(ctx.Command.HelpName, "fleet ")
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

// paint colours text that goes to a terminal.
func (e *env) paint(tty bool, style, text string) string {
	if !tty || e.getenv("NO_COLOR") != "" || e.getenv("TERM") == "dumb" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}
