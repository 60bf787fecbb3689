package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fleet/node/fleet"
	"fleet/node/service"
)

// GuardCommand is the word on the command line by which a program is the guard.
const GuardCommand = "__upgrade-guard"

// askTime is what a program may take to say its version.
const askTime = 30 * time.Second

// Facts is what a program says of itself, asked for its version as JSON.
type Facts struct {
	Version  string   `json:"Version"`
	Platform string   `json:"Platform"`
	DataDirs []string `json:"DataDirs"` // formats of the data directory that it reads
}

// Step is the upgrade of one host by one command.
type Step struct {
	Command fleet.CommandID
	Attempt uint32

	Fleet    fleet.ID
	Self     fleet.Digest // of the program that runs
	Version  string       // of it
	Platform string       // of it
	PID      int          // of it
	DataDir  string
	Format   string // of the data directory
	Quorum   bool   // this host has a part in the quorum
	Signers  []fleet.PublicKey

	// Keeper finds the manager of this host's service; an error says why
	// nobody would start a new program here.
	Keeper func() (service.Keeper, error)

	// Fetch finds somebody who has the program, and gives what he sends to
	// take, until take succeeds or fails for a reason OfThisHost.
	Fetch func(ctx context.Context, o Order, p Program, take func(io.Reader) error) error

	// Alone waits until nothing else runs on this host, and lets nothing begin
	// until release is called.
	Alone func(ctx context.Context) (release func(), err error)

	// Restart asks the agent to end in order. Its manager starts the program
	// that lies in its place then.
	Restart func()

	Now func() time.Time
	Log *slog.Logger
	Out io.Writer // of the step, for whoever reads the command's output
}

// ErrRestarting is returned by Run when the agent is about to end: whether the
// new program is well is seen when the step runs again, in it or in the old one.
var ErrRestarting = errors.New("the agent ends, for its new program to start")

// Run brings the host to the program of the order. nil says that it runs, and
// is well.
func (s *Step) Run(ctx context.Context, o Order) error {
	want, ok := o.For(s.Platform)
	if !ok {
		var have []string
		for _, p := range o.Programs {
			have = append(have, p.Platform)
		}
		return fleet.Errorf(fleet.Invalid, "there is no program for %s in the order, only for %s", s.Platform, strings.Join(have, ", ")).
			WithHint("fleet upgrade --file may be repeated, once for each platform")
	}
	r, err := Load(s.DataDir)
	if err != nil {
		return err
	}
	mine := r != nil && r.Command == s.Command && r.Attempt == s.Attempt
	switch {
	case s.Self == want.Digest && mine && r.Stage == Done:
		s.say("runs %s, which took the place of %s", s.Version, r.From.Version)
		return nil
	case s.Self == want.Digest:
		s.say("runs %s already", s.Version)
		return nil
	case mine && r.Stage == Back:
		return fleet.Errorf(fleet.Conflict, "it went back to %s: %s", s.Version, r.Reason)
	case mine && r.Stage == Done:
		return fleet.Errorf(fleet.Conflict, "%s ran here and was replaced since, by another hand", r.To.Version)
	case r != nil && r.Stage == Pending:
		// Wake has written down how an upgrade ended that this program did not
		// survive: this one is under way at this moment.
		return fleet.Errorf(fleet.Conflict, "another upgrade of this host is under way: %s", r.Command)
	}
	return s.replace(ctx, o, want)
}

func (s *Step) say(format string, args ...any) {
	fmt.Fprintf(s.Out, format+"\n", args...)
}

func (s *Step) replace(ctx context.Context, o Order, want Program) error {
	if err := CheckSigned(want, s.Fleet, o.Signatures, s.Signers); err != nil {
		return err
	}
	keeper, err := s.Keeper()
	if err != nil {
		return err
	}
	if err := keeper.Runs(ctx, s.PID); err != nil {
		return err
	}
	p := place{keeper.Program()}
	there, err := DigestOf(p.program)
	if err != nil {
		return p.plain("read the program", err)
	}
	if there != s.Self {
		return fleet.Errorf(fleet.Conflict, "%s is not the program that runs: it was replaced, and the agent not started since", p.program).
			WithHint("restart the agent, and upgrade again")
	}
	if err := s.Fetch(ctx, o, want, func(from io.Reader) error { return p.write(want, from) }); err != nil {
		return err
	}
	facts, err := s.check(ctx, keeper, p, o)
	if err != nil {
		return errors.Join(err, p.discard())
	}
	s.say("%s is here and starts: %s", facts.Version, want.Digest)
	waiting, cancel := context.WithTimeoutCause(ctx, o.Patience, fleet.Errorf(fleet.Unavailable,
		"other commands still ran on this host after %s: nothing was changed", o.Patience))
	defer cancel()
	release, err := s.Alone(waiting)
	if err != nil {
		return errors.Join(err, p.discard())
	}
	defer release()
	return s.exchange(ctx, keeper, p, o, want, facts)
}

// check has the new program say who it is: one that cannot be started, is for
// another platform, hangs, or cannot read this host's data never gets its place.
func (s *Step) check(ctx context.Context, keeper service.Keeper, p place, o Order) (Facts, error) {
	if err := keeper.Relabel(ctx, p.next()); err != nil {
		return Facts{}, err
	}
	asking, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	out, err := keeper.Ask(asking, p.next(), "version", "-o", "json")
	for tries := 0; err != nil && strings.Contains(err.Error(), "text file busy") && tries < 20; tries++ {
		// A child that was being started while the file was written has it
		// open until its own program begins.
		if !pause(asking, 50*time.Millisecond) {
			break
		}
		out, err = keeper.Ask(asking, p.next(), "version", "-o", "json")
	}
	bad := func(format string, args ...any) (Facts, error) {
		return Facts{}, fleet.Errorf(fleet.Invalid, "the new program is not used: "+format, args...)
	}
	switch {
	case asking.Err() != nil && ctx.Err() == nil:
		return bad("it did not say its version within %s", askTime)
	case err != nil && strings.Contains(err.Error(), "permission denied"):
		return bad("it may not be started from %s, which may be mounted noexec: %w", filepath.Dir(p.program), err)
	case err != nil:
		return bad("it does not start: %w", err)
	}
	var f Facts
	if err := json.Unmarshal(out, &f); err != nil || f.Version == "" || len(f.Version) > maxVersion {
		return bad("it does not say its version as fleet does")
	}
	switch {
	case f.Platform != s.Platform:
		return bad("it is for %.40q, this host is %s", f.Platform, s.Platform)
	case o.Version != "" && f.Version != o.Version:
		return bad("it says that it is %.64q, the order says %s", f.Version, o.Version)
	case !slices.Contains(f.DataDirs, s.Format):
		return bad("%s reads data directories of format %s, this host has format %s", f.Version, strings.Join(f.DataDirs, ", "), s.Format)
	}
	return f, nil
}

// exchange is the part in which the order of things counts: the guard runs, and
// would run again after a power cut, before the new program is in its place.
func (s *Step) exchange(ctx context.Context, keeper service.Keeper, p place, o Order, want Program, facts Facts) error {
	if err := p.keep(); err != nil {
		return errors.Join(err, p.discard())
	}
	if err := keeper.Relabel(ctx, p.previous()); err != nil {
		return errors.Join(err, p.discard())
	}
	r := &Record{
		Command: s.Command, Attempt: s.Attempt, From: Build{s.Version, s.Self.String()}, To: Build{facts.Version, want.Digest.String()},
		Program: p.program, Previous: p.previous(), Stage: Pending, Began: s.Now().Unix(), Healthy: int(o.Healthy / time.Second), Quorum: s.Quorum,
	}
	if err := update(s.DataDir, func(*Record) (*Record, bool, error) { return r, true, nil }); err != nil {
		return errors.Join(err, p.discard())
	}
	err := keeper.Guard(ctx, []string{p.previous(), GuardCommand, s.DataDir})
	if err == nil {
		err = p.exchange()
	}
	if err == nil {
		err = keeper.Relabel(ctx, p.program)
	}
	if err != nil {
		return s.undo(p, err)
	}
	s.Log.Info("program exchanged", "version", facts.Version, "was", s.Version, "command", s.Command)
	s.say("%s is in the place of %s; the agent starts anew", facts.Version, s.Version)
	s.Restart()
	<-ctx.Done()
	return ErrRestarting
}

// undo takes back an exchange that did not come about. The guard sees by the
// record that it is over.
func (s *Step) undo(p place, why error) error {
	return errors.Join(why, p.putBack(), p.discard(), update(s.DataDir, func(r *Record) (*Record, bool, error) {
		if r == nil || r.Command != s.Command || r.Stage != Pending {
			return r, false, nil
		}
		r.Stage, r.Ended, r.Reason = Back, s.Now().Unix(), why.Error()
		return r, true, nil
	}))
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Begin is what an agent does about its last upgrade before it does anything
// else: it counts the start, and says whether it has to be confirmed. An error
// says that this program has given itself up: the agent must end.
func Begin(dir string, self fleet.Digest, now time.Time) (prove bool, err error) {
	var given error
	err = update(dir, func(r *Record) (*Record, bool, error) {
		course, why := Wake(r, self)
		switch course {
		case Prove:
			r.Tries++
			prove = true
			return r, true, nil
		case PutBack:
			if err := (place{r.Program}).putBack(); err != nil {
				return r, false, err
			}
			r.Stage, r.Ended, r.Reason = Back, now.Unix(), why
			given = fleet.Errorf(fleet.Unavailable, "%s gives itself up: %s; %s is in its place again", r.To.Version, why, r.From.Version)
			return r, true, nil
		case WasBack:
			r.Stage, r.Ended, r.Reason = Back, now.Unix(), why
			return r, true, nil
		}
		return r, false, nil
	})
	return prove, errors.Join(err, given)
}

// Exists reports whether there is a record, so that a host that was never
// upgraded makes no lock.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, RecordFile))
	return err == nil
}
