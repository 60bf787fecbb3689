package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/ssm"
)

// launch sends a command to nodes that are known, and follows it.
func (e *env) launch(c *cli.Context, api *client.Client, req *ssm.SendCommandRequest, nodes []fleet.NodeView) error {
	// Who will be asked is known before anything is decided: that it is
	// nobody, that it is many, and later who is missing.
	if len(nodes) == 0 {
		return fleet.Errorf(fleet.NotFound, "no node matches").WithHint("see the labels: fleet node ls")
	}
	if c.Bool("dry-run") {
		return e.dryRun(c, req, nodes)
	}
	if err := e.confirmMany(c, len(nodes)); err != nil {
		return err
	}
	var sent ssm.SendCommandResult
	if err := api.Call(c.Context, "SendCommand", req, &sent); err != nil {
		return err
	}
	if sent.Command.TargetCount == 0 {
		// The labels have changed since they were looked up.
		return fleet.Errorf(fleet.NotFound, "no node matches: the command %s ran nowhere", sent.Command.CommandId).
			WithHint("see the labels: fleet node ls")
	}
	if c.Bool("detach") {
		return e.print(c, result{value: sent, names: []string{sent.Command.CommandId}, table: func(w io.Writer) {
			fmt.Fprintln(w, sent.Command.CommandId)
			fmt.Fprintf(e.err, "wait for its answers: fleet command attach %s\n", sent.Command.CommandId)
		}})
	}
	a := newAnswers(fleet.CommandID(sent.Command.CommandId))
	a.sent, a.expected = true, map[fleet.NodeID]string{}
	for _, n := range nodes {
		a.expected[n.InstanceId] = firstOf(n.Name, string(n.InstanceId))
	}
	return e.follow(c, api, a)
}

// runResult is what run and command output print as JSON.
type runResult struct {
	Command     fleet.CommandEvent      `json:"Command"`
	Invocations []fleet.InvocationEvent `json:"Invocations"`
}

// interrupted is why a context ended that a signal to this process ended.
type interrupted struct{ signal os.Signal }

func (i interrupted) Error() string { return i.signal.String() }
func (interrupted) Unwrap() error   { return context.Canceled }

// untilSignal gives a context that the next Ctrl-C or SIGTERM ends; the signal
// after that one ends the process.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(interrupted{s})
		case <-ctx.Done():
			signal.Stop(signals)
		}
	}()
	return ctx, func() {
		cancel(context.Canceled)
		<-stopped
	}
}

const (
	// tick is how often the progress is written anew while nothing happens.
	tick = 500 * time.Millisecond
	// leastTick is how often it is at most: naming who is missing costs time that
	// grows with their number.
	leastTick = 100 * time.Millisecond
)

// follow waits for the answers and prints them; what has come when the waiting
// ends before the command is printed too.
func (e *env) follow(c *cli.Context, api *client.Client, a *answers) error {
	raw := c.Bool("raw") && !e.outTTY
	table := c.String("output") == formTable
	stream := c.Bool("no-fold")
	began := e.now()
	progress := e.newProgress(table, began)

	// Not the context of the command line: a Ctrl-C first asks.
	ctx, stop := context.WithCancelCause(context.WithoutCancel(c.Context))
	defer stop(nil)
	var screen sync.Mutex // guards a, progress and what is written until the watch has ended
	ended := make(chan error, 1)
	go func() {
		ended <- api.Watch(ctx, fleet.WatchCommandRequest{CommandId: a.command, Output: true}, func(ev fleet.WatchEvent) error {
			screen.Lock()
			defer screen.Unlock()
			a.add(ev)
			if stream && table && ev.Invocation != nil && ev.Invocation.Final {
				progress.clear()
				e.writeStreamed(a, *ev.Invocation, raw)
			}
			progress.show(a, e.now())
			return nil
		})
	}()
	err := e.await(c, api, a, progress, &screen, ended, stop)
	progress.clear()
	if err != nil && a.counts.TargetCount == 0 {
		return e.leftBehind(a, err) // nothing has come
	}
	printErr := e.print(c, result{
		value: runResult{Command: a.counts, Invocations: a.sorted()}, names: []string{string(a.command)},
		table: func(w io.Writer) {
			switch {
			case c.Bool("diff"):
				e.writeDiff(w, a, raw)
			case !stream:
				e.writeFolded(w, a, raw)
			}
			fmt.Fprintf(e.err, "%s, %s\n", a.totals(), short(e.now().Sub(began)))
			if missing := a.missing(); err != nil && len(missing) > 0 {
				text := foldNames(missing)
				if others := a.counts.TargetCount - len(a.final) - len(missing); others > 0 {
					text += fmt.Sprintf(" and %d that did not begin", others)
				}
				fmt.Fprintf(e.err, "no answer yet: %s\n", escapeCell(text))
			}
			e.writeFailures(e.err, a)
		},
	})
	if printErr != nil {
		return printErr
	}
	if err != nil {
		return e.leftBehind(a, err)
	}
	if a.counts.SuccessCount < a.counts.TargetCount {
		return exitError(ExitSome)
	}
	return nil
}

// await waits until the watch has ended, or ends it.
func (e *env) await(c *cli.Context, api *client.Client, a *answers, p *progress, screen *sync.Mutex, ended <-chan error, stop context.CancelCauseFunc) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	interrupt := c.Context
	for {
		select {
		case err := <-ended:
			return err
		case <-ticker.C:
			screen.Lock()
			p.show(a, e.now())
			screen.Unlock()
		case <-interrupt.Done():
			// While somebody thinks, nothing is written over the question.
			screen.Lock()
			next := e.whatNow(c, a, context.Cause(interrupt), p, func(ctx context.Context) error {
				return cancelCommand(ctx, api, a.command, nil)
			})
			screen.Unlock()
			if next == nil {
				stop(context.Cause(interrupt))
				return <-ended
			}
			var done context.CancelFunc
			interrupt, done = next()
			defer done() // there are as many as a person types
		}
	}
}

// whatNow asks what Ctrl-C meant. The answer is how to go on waiting, or nil
// to stop. The command goes on in either case, unless it is cancelled; then the
// waiting goes on too, until all hosts have said that it is over.
func (e *env) whatNow(c *cli.Context, a *answers, cause error, p *progress,
	cancel func(context.Context) error) func() (context.Context, context.CancelFunc) {
	var s interrupted
	if !errors.As(cause, &s) || s.signal != os.Interrupt || !e.inTTY || !e.errTTY || e.again == nil {
		return nil
	}
	p.clear()
	so := "no answer yet"
	if a.counts.TargetCount > 0 {
		so = a.totals()
	}
	fmt.Fprintf(e.err, "\n%s: fleet command attach %s\n[d]etach (it goes on), [c]ancel, or continue waiting? [d/c/Enter] ", so, a.command)
	answer, err := bufio.NewReader(io.LimitReader(e.in, 64)).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	switch {
	case err != nil || strings.HasPrefix(answer, "d"):
		return nil
	case strings.HasPrefix(answer, "c"):
		// The context of the command line has ended.
		if err := cancel(context.WithoutCancel(c.Context)); err != nil {
			fmt.Fprintf(e.err, "it is not cancelled: %s\n", escapeCell(err.Error()))
		} else {
			fmt.Fprintln(e.err, "cancelled; waiting until the hosts say that it is over")
		}
	}
	return e.again
}

// leftBehind explains a wait that ended before the command did.
func (e *env) leftBehind(a *answers, err error) error {
	if a.sent || a.counts.TargetCount > 0 {
		fmt.Fprintf(e.err, "the command goes on; wait for it again: fleet command attach %s\n", a.command)
	}
	if errors.Is(err, context.Canceled) {
		return exitError(ExitFailed)
	}
	return err
}

// writeStreamed writes one answer, each line after the name of its host.
func (e *env) writeStreamed(a *answers, i fleet.InvocationEvent, raw bool) {
	name := escapeCell(firstOf(i.Name, string(i.InstanceId)))
	more := fmt.Sprintf("fleet command output %s %s", a.command, escapeCell(a.argument(i)))
	writeStream(e.out, name+": ", i.Stdout, raw, more)
	writeStream(e.out, name+"! ", i.Stderr, raw, more+" --stderr")
	if i.OutputError != "" {
		fmt.Fprintf(e.out, "%s: (%s)\n", name, escapeCell(i.OutputError))
	}
}

// progressWidth keeps the line from going on in the next row, where it could
// not be taken back.
const progressWidth = 79

// progress is one line on the terminal that is written again and again.
type progress struct {
	w     io.Writer // nil: none
	began time.Time
	last  time.Time // when it was written
	shown bool
}

func (e *env) newProgress(wanted bool, began time.Time) *progress {
	if !wanted || !e.errTTY || e.getenv("TERM") == "dumb" {
		return &progress{}
	}
	return &progress{w: e.err, began: began}
}

func (p *progress) show(a *answers, now time.Time) {
	if p.w == nil || p.shown && now.Sub(p.last) < leastTick {
		return
	}
	p.last = now
	fmt.Fprintf(p.w, "\r\x1b[K%s", cut(escapeCell(progressText(a, now.Sub(p.began), now)), progressWidth))
	p.shown = true
}

// saysWhy is after how long it is said what is waited for.
const saysWhy = 5 * time.Second

// progressText is how far it is, how fast, and until when: the rest at the rate
// so far, which says something once a few have answered.
func progressText(a *answers, elapsed time.Duration, now time.Time) string {
	done, all := a.counts.CompletedCount, a.counts.TargetCount
	text := fmt.Sprintf("%d of %d done", done, all)
	if a.counts.ErrorCount > 0 {
		text += fmt.Sprintf(", %d failed", a.counts.ErrorCount)
	}
	if running := a.counts.InProgressCount; running > 0 {
		text += fmt.Sprintf(", %d running", running)
	}
	if silent := a.counts.ReleasedCount; silent > 0 {
		text += fmt.Sprintf(", %d to begin", silent)
	}
	if waiting := a.counts.StagedCount; waiting > 0 {
		text += fmt.Sprintf(", %d waiting for their turn", waiting)
	}
	if a.counts.TerminatedCount > 0 {
		text += ", stopped after too many errors"
	}
	text += ", " + short(elapsed)
	if done >= 5 && done < all && elapsed >= time.Second {
		rate := float64(done) / elapsed.Seconds()
		text += fmt.Sprintf(" (%.1f/s, about %s left)", rate, short(time.Duration(float64(all-done)/rate*float64(time.Second))))
	}
	// A host that is down is waited for until it may not start any more: a wait
	// that nobody can explain looks like one without an end.
	away := all - done - a.counts.InProgressCount - a.counts.CancellingCount - a.counts.StagedCount - a.counts.ReleasedCount
	if left := time.Unix(0, a.counts.GivenUp.Nanos()).Sub(now); away > 0 && elapsed >= saysWhy && left > 0 {
		text += fmt.Sprintf(", %d not reached, given up in %s", away, short(left))
	}
	if missing := a.busy(); len(missing) > 0 {
		text += ", waiting for " + foldNames(missing)
	}
	return text
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
