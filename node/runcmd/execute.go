package runcmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/process"
	"fleet/node/ticket"
)

// again is how long a worker waits before it asks once more for the time of
// the fleet or for room in the journal.
const again = 500 * time.Millisecond

// work takes commands from the queue until ctx ends.
func (r *Runner) work(ctx context.Context) {
	for ctx.Err() == nil {
		k, running, ok := r.next(ctx)
		if ok {
			r.execute(ctx, running, k)
			r.leave(k)
			continue
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		}
	}
}

// next takes a command from the queue, with the context in which it runs: from
// then on it can be stopped. leave must follow.
func (r *Runner) next(ctx context.Context) (journal.Key, context.Context, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 || r.sole != nil {
		return journal.Key{}, nil, false
	}
	k := r.queue[0]
	r.queue = r.queue[1:]
	if len(r.queue) > 0 {
		signal(r.wake) // for another worker
	}
	ctx, stop := context.WithCancelCause(ctx)
	r.running[k] = stop
	return k, ctx, true
}

func (r *Runner) leave(k journal.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[k](nil)
	delete(r.running, k)
	if r.sole != nil {
		signal(r.sole)
	}
}

// execute brings one accepted command to its result, or leaves it as it is
// when ctx ends first. running ends with ctx and when the command is cancelled.
func (r *Runner) execute(ctx, running context.Context, k journal.Key) {
	e, ok := r.cfg.Journal.Lookup(k)
	if !ok || e.Finished != nil {
		return
	}
	if by := r.startBy(k); by != 0 {
		e.StartBy = by
	}
	t, j, err := r.revive(&e)
	leftover := ""
	if e.Starts > 0 {
		leftover = r.killLeftovers(ctx, &e)
	}
	if err != nil {
		// It was read when it was accepted: another release of fleet reads it
		// otherwise.
		o := Outcome{State: fleet.Undeliverable, Code: -1, Reason: err.Error()}
		switch {
		case e.Cancel != nil:
			o = cancelledOutcome(leftover)
		case e.Starts > 0:
			o = Outcome{State: fleet.Interrupted, Code: -1, Reason: leftover}
		}
		r.finish(ctx, &e, o, nil)
		return
	}
	for {
		now, known := r.cfg.Clock.FleetTime()
		switch steer(&e, t, j.doc.Idempotent, now, known) {
		case courseCancelled:
			r.finish(ctx, &e, cancelledOutcome(leftover), nil)
			return
		case courseLate:
			by := t.NotAfter
			if t.Staged() {
				by = min(e.StartBy, by)
			}
			r.finish(ctx, &e, Outcome{State: fleet.DeliveryTimedOut, Code: -1, Reason: tooLate(by, now)}, nil)
			return
		case courseInterrupt:
			r.finish(ctx, &e, Outcome{State: fleet.Interrupted, Code: -1, Reason: leftover}, nil)
			return
		case courseRun:
			started := r.cfg.Now()
			err := r.cfg.Journal.Start(k, started.UnixNano(), e.StartBy)
			if err == nil {
				e.Started = started.UnixNano()
				r.begun(k)
				r.run(ctx, running, &e, j)
				return
			}
			if r.fatal(err) {
				return
			}
			r.cfg.Logger.Warn("command not started", "command", k.Command, "err", err)
		}
		// It may have been cancelled meanwhile, and that ends the wait too.
		paused := pause(running, again)
		if e.Cancel = r.cancelOf(k); !paused && e.Cancel == nil {
			if departed(running) { // the host leaves its fleet
				r.finish(ctx, &e, cancelledOutcome(leftover), nil)
			}
			return
		}
	}
}

// pause waits; false when ctx ended.
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

// revive reads an accepted command from the journal.
func (r *Runner) revive(e *journal.Entry) (*ticket.Ticket, *job, error) {
	signed, err := ticket.ParseSigned(e.Ticket)
	if err != nil {
		return nil, nil, err
	}
	t, err := ticket.Parse(signed.Ticket)
	if err != nil {
		return nil, nil, err
	}
	j, err := r.prepare(e.Document, e.Parameters, t)
	return t, j, err
}

// killLeftovers ends what is left of a command that a crash cut off, and says
// what happened, for a person.
func (r *Runner) killLeftovers(ctx context.Context, e *journal.Entry) string {
	said := "the agent of this host ended while the command ran"
	if boot, err := r.cfg.Boot(); err == nil && len(e.Spawned) > 0 && e.Spawned[0].Boot != boot {
		said = "this host was restarted while the command ran"
	}
	killed := 0
	for _, s := range e.Spawned {
		n, err := r.cfg.Kill(ctx, process.Identity{PID: s.PID, Start: s.Start, Boot: s.Boot, Mark: s.Mark})
		killed += n
		if err != nil {
			r.cfg.Logger.Error("leftover of a command not killed", "command", e.Command, "err", err)
			said += "; " + err.Error()
		}
	}
	if killed > 0 {
		said += fmt.Sprintf("; %d of its processes were still there and were killed", killed)
	}
	return said
}

// run runs a started command and journals its result.
func (r *Runner) run(ctx, running context.Context, e *journal.Entry, j *job) {
	steps, outcomes := r.runSteps(running, e.Key, j)
	whole := overall(j.steps, outcomes)
	if whole.State == fleet.Interrupted && r.cancelOf(e.Key) != nil {
		// The agent was stopped in the same moment. What the journal says counts,
		// now as after a crash.
		whole.State, whole.Reason = fleet.Cancelled, "cancelled; "+whole.Reason
	}
	if whole.State == fleet.Interrupted && j.doc.Idempotent {
		r.cfg.Logger.Info("command will be run again", "command", e.Command)
		return
	}
	r.finish(ctx, e, whole, &Detail{Steps: steps})
}

// finish journals a command's result and hands it to the reporter. The result
// is not given up while the process lives: when the disk is full, it waits.
func (r *Runner) finish(ctx context.Context, e *journal.Entry, o Outcome, d *Detail) {
	f := journal.Finished{At: r.cfg.Now().UnixNano()}
	if d != nil {
		f.Detail, f.Blobs = d.Encode(), d.Blobs()
		if _, err := r.cfg.Blobs.Cache(f.Detail); err != nil {
			r.cfg.Logger.Warn("details not kept among the blobs", "command", e.Command, "err", err)
		}
	}
	f.Result = r.sign(e.Key, e.Index, o, f.Detail, e.Started, time.Unix(0, f.At))
	for {
		err := r.cfg.Journal.Finish(e.Key, f)
		if err == nil {
			break
		}
		if r.fatal(err) {
			return
		}
		r.cfg.Logger.Warn("result not journaled", "command", e.Command, "err", err)
		if !pause(ctx, again) {
			return
		}
	}
	took := time.Duration(0)
	if e.Started != 0 {
		took = time.Duration(f.At - e.Started)
	}
	r.cfg.Logger.Info("command finished", "command", e.Command, "state", o.State.Details(), "code", o.Code, "dur", took,
		"reason", cut(o.Reason, maxReason))
	r.finished(e.Key)
}

// runSteps runs the steps of a document in order; those that were not reached
// when the agent stopped are not in what it returns.
func (r *Runner) runSteps(ctx context.Context, k journal.Key, j *job) (details []StepDetail, outcomes []Outcome) {
	dir, path, remove, err := r.makeDir(k, j.account)
	if err != nil {
		o := failed("%v", err)
		return []StepDetail{r.detail(&j.steps[0], o, r.cfg.Now(), StreamDetail{}, StreamDetail{})}, []Outcome{o}
	}
	defer remove()
	inline := inlineBudget(len(j.steps))
	for i := range j.steps {
		s := &j.steps[i]
		began := r.cfg.Now()
		var stdout, stderr StreamDetail
		var o Outcome
		if end := before(j.steps, outcomes, r.cfg.Plugins.know(s.Action), platform()); end != nil {
			o = *end
		} else if ctx.Err() != nil {
			o = StoppedOutcome(ctx, -1)
		} else {
			task := &Task{
				Command: k.Command, Attempt: k.Attempt, Alone: r.alone, Step: s, Number: i, Account: j.account, Env: j.env, Limits: r.cfg.Limits,
				Dir: dir, DirPath: path, Start: r.starter(k, j),
			}
			o, stdout, stderr = r.runStep(ctx, task, inline)
			inline -= len(stdout.Inline) + len(stderr.Inline)
		}
		details = append(details, r.detail(s, o, began, stdout, stderr))
		outcomes = append(outcomes, o)
		if o.State == fleet.Interrupted || o.State == fleet.Cancelled {
			break
		}
	}
	return details, outcomes
}

func (r *Runner) detail(s *document.Step, o Outcome, began time.Time, stdout, stderr StreamDetail) StepDetail {
	d := StepDetail{
		Name: s.Name, Plugin: s.Action, State: o.State, Skipped: o.Skipped, Code: o.Code, Reason: cut(o.Reason, maxReason),
		Stdout: stdout, Stderr: stderr,
	}
	if !o.Skipped {
		d.Started, d.Ended = began.UnixNano(), r.cfg.Now().UnixNano()
	}
	return d
}

// runStep runs one step with its plugin and takes its output.
func (r *Runner) runStep(ctx context.Context, t *Task, inline int) (o Outcome, stdout, stderr StreamDetail) {
	out, errs := newCapture(r.cfg.Blobs, r.cfg.StreamCap), newCapture(r.cfg.Blobs, r.cfg.StreamCap)
	t.Stdout, t.Stderr = out, errs
	o = r.callPlugin(ctx, t)
	stdout, note := out.finish("stdout", inline)
	stderr, note2 := errs.finish("stderr", inline-len(stdout.Inline))
	o = after(t.Step, o)
	for _, n := range []string{note, note2} {
		if n != "" {
			r.cfg.Logger.Warn("output not kept", "command", t.Command, "err", n)
			o.Reason = strings.TrimPrefix(o.Reason+"; "+n, "; ")
		}
	}
	return o, stdout, stderr
}

// callPlugin calls the plugin. One that panics fails its step and not the
// host, on which other commands run.
func (r *Runner) callPlugin(ctx context.Context, t *Task) (o Outcome) {
	defer func() {
		if p := recover(); p != nil {
			r.cfg.Logger.Error("plugin crashed", "command", t.Command, "plugin", t.Step.Action, "err", fmt.Sprint(p),
				"stack", string(debug.Stack()))
			o = failed("the plugin %s crashed", t.Step.Action)
		}
	}()
	return r.cfg.Plugins[t.Step.Action].Run(ctx, t)
}

// starter starts the processes of a command: journaled before they run, and
// marked, so that what is left of them after a crash is found.
func (r *Runner) starter(k journal.Key, j *job) process.Starter {
	return func(ctx context.Context, spec process.Spec) (process.Exit, error) {
		spec.Mark = fmt.Sprintf("%s/%s/%d", r.cfg.Self, k.Command, k.Attempt)
		spec.Cgroups = r.cfg.Cgroups
		spec.Limits.Tasks, spec.Limits.Memory, spec.Limits.CPU = r.cfg.Limits.Tasks, r.cfg.Limits.Memory, r.cfg.Limits.CPU
		if !j.account.Own {
			spec.User = j.account.Name
		}
		spec.Spawned = func(id process.Identity) error {
			err := r.cfg.Journal.Spawn(k, journal.Spawned{PID: id.PID, Start: id.Start, Boot: id.Boot, Mark: id.Mark})
			if err != nil && r.cancelOf(k) != nil {
				r.stop(k) // is about to be: the step must not seem to have failed
			}
			r.fatal(err)
			return err
		}
		return r.cfg.Starter(ctx, spec)
	}
}

// dirName is the name of a command's directory: derived from its key, since no
// foreign text may become a path.
func dirName(k journal.Key) string {
	sum := sha256.Sum256([]byte(k.String()))
	return hex.EncodeToString(sum[:16])
}

// makeDir makes a command's directory; remove removes it.
func (r *Runner) makeDir(k journal.Key, owner process.Account) (dir *os.Root, path string, remove func(), err error) {
	name := dirName(k)
	drop := func() {
		if err := r.dir.RemoveAll(name); err != nil {
			r.cfg.Logger.Warn("directory of a command not removed", "command", k.Command, "err", err)
		}
	}
	drop() // of a run that a crash cut off
	if err := process.MakeDir(r.dir, name, owner); err != nil {
		return nil, "", nil, err
	}
	if dir, err = r.dir.OpenRoot(name); err != nil {
		drop()
		return nil, "", nil, fmt.Errorf("directory of the command: %w", err)
	}
	return dir, filepath.Join(r.cfg.Dir, name), func() {
		_ = dir.Close() // only read from and written to through files
		drop()
	}, nil
}

// sweep removes the directories that a crash left.
func (r *Runner) sweep() {
	entries, err := fs.ReadDir(r.dir.FS(), ".")
	if err != nil {
		r.cfg.Logger.Warn("directories of earlier commands not removed", "err", err)
		return
	}
	for _, e := range entries {
		if _, err := hex.DecodeString(e.Name()); err != nil || len(e.Name()) != 32 {
			continue // not ours
		}
		if err := r.dir.RemoveAll(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Logger.Warn("directory of an earlier command not removed", "err", err)
		}
	}
}
