package api

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"fleet/node/api/client"
	"fleet/node/control"
	"fleet/node/fleet"
	"fleet/node/runcmd"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// eventWrite is how long a client may take for one event. One that takes
// longer is cut off and comes again: nothing is queued for it.
const eventWrite = 15 * time.Second

// eventFetch is how long the output of a few hosts may take to come; less than
// a client waits for a sign of life.
const eventFetch = 10 * time.Second

// watchCommand streams the course of a command: first its present state, then
// each change, until it ended. The stream follows the state of this host and
// asks the quorum at every heartbeat whether that is still the fleet's; if not,
// it says so and ends, and the client goes to another host.
func watchCommand(ctx context.Context, c *call) error {
	req, err := decode[fleet.WatchCommandRequest](c.body)
	if err != nil {
		return err
	}
	store, err := c.confirmed(ctx)
	if err != nil {
		return err
	}
	if _, err := findCommand(store, string(req.CommandId)); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.Header().Set("Cache-Control", "no-store")
	w := &watcher{call: c, req: req, sent: map[uint32]fleet.InvocationState{}}
	err = w.follow(ctx, store)
	if err != nil && ctx.Err() == nil && c.w.began {
		return w.send(client.EventError, client.BodyOf(public(err)))
	}
	return err
}

// confirmed is a read that the quorum stands behind.
func (c *call) confirmed(ctx context.Context) (*state.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	return c.cfg.Control.Read(ctx, false)
}

type watcher struct {
	*call
	req  *fleet.WatchCommandRequest
	sent map[uint32]fleet.InvocationState // by index
	last fleet.CommandEvent
}

func (w *watcher) follow(ctx context.Context, store *state.Store) error {
	beat := time.NewTicker(w.cfg.Heartbeat)
	defer beat.Stop()
	for {
		changed, abandoned := store.WatchCommand(w.req.CommandId), store.Abandoned()
		ended, err := w.report(ctx, store.Snapshot())
		if ended || err != nil {
			return err
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
				waiting = false
			case <-abandoned:
				if store, err = w.confirmed(ctx); err != nil {
					return err
				}
				waiting = false
			case <-beat.C:
				if err := w.beat(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// beat says that the stream lives, if it should.
func (w *watcher) beat(ctx context.Context) error {
	if err := w.authorize(ctx, w.caller, w.op); err != nil {
		return err
	}
	if _, err := w.confirmed(ctx); err != nil {
		return err
	}
	return w.write([]byte(": alive\n\n"))
}

// report sends what changed since the last report; ended is whether that was
// all there will be.
func (w *watcher) report(ctx context.Context, store *state.Store) (ended bool, err error) {
	cmd := store.Command(w.req.CommandId)
	if cmd == nil {
		return false, fleet.Errorf(fleet.NotFound, "the command %s is gone", w.req.CommandId)
	}
	var changed []row
	for n := uint32(0); n*fleet.ShardSize < uint32(len(cmd.Targets)); n++ {
		rows := store.Shard(cmd.ID, n)
		for i := range rows {
			inv := &rows[i]
			if inv.State != fleet.Pending && w.sent[inv.Index] != inv.State {
				changed = append(changed, row{cmd, inv})
			}
		}
	}
	for len(changed) > 0 {
		// A part at a time, so that the first output is seen before the last
		// is fetched.
		part := changed[:min(len(changed), detailsAtATime)]
		changed = changed[len(part):]
		for i, e := range w.events(ctx, store, part) {
			if err := w.send(client.EventData, fleet.WatchEvent{Invocation: e}); err != nil {
				return false, err
			}
			w.sent[part[i].inv.Index] = part[i].inv.State
		}
	}
	if now := commandEvent(cmd); now != w.last {
		w.last = now
		if err := w.send(client.EventData, fleet.WatchEvent{Command: &now}); err != nil {
			return false, err
		}
	}
	return !cmd.Open(), nil
}

// events makes those of a few rows, with their output if it was asked for. It
// is bounded in time, because nothing is sent meanwhile.
func (w *watcher) events(ctx context.Context, store *state.Store, rows []row) []*fleet.InvocationEvent {
	ctx, cancel := context.WithTimeout(ctx, eventFetch)
	defer cancel()
	events := make([]*fleet.InvocationEvent, len(rows))
	var all sync.WaitGroup
	for i, r := range rows {
		events[i] = w.event(store, r)
		if w.req.Output && !r.inv.Detail.IsZero() {
			all.Go(func() { w.addOutput(ctx, events[i], r) })
		}
	}
	all.Wait()
	return events
}

func (w *watcher) event(store *state.Store, r row) *fleet.InvocationEvent {
	e := &fleet.InvocationEvent{
		InstanceId: r.node(), Status: r.inv.State.Status(), StatusDetails: r.inv.State.Details(),
		ResponseCode: int(r.inv.Code), Reason: r.inv.Reason, Final: r.inv.State.Final(),
		Started: fleet.InstantOf(r.inv.Started), Ended: fleet.InstantOf(r.inv.Ended),
	}
	e.Name = nameOf(store, r.node())
	return e
}

func (w *watcher) addOutput(ctx context.Context, e *fleet.InvocationEvent, r row) {
	detail, err := w.cfg.Control.Detail(ctx, r.cmd, r.inv)
	if err != nil {
		e.OutputError = outputError(err)
		return
	}
	if detail == nil {
		return
	}
	stdout := func(s *runcmd.StepDetail) *runcmd.StreamDetail { return &s.Stdout }
	stderr := func(s *runcmd.StepDetail) *runcmd.StreamDetail { return &s.Stderr }
	if e.Stdout, err = w.together(ctx, r.node(), detail, stdout); err == nil {
		e.Stderr, err = w.together(ctx, r.node(), detail, stderr)
	}
	if err != nil {
		e.OutputError = outputError(err)
	}
}

// together joins one stream of all steps, in their order.
func (w *watcher) together(ctx context.Context, host fleet.NodeID, d *runcmd.Detail,
	pick func(*runcmd.StepDetail) *runcmd.StreamDetail) (fleet.OutputText, error) {
	var out fleet.OutputText
	var b []byte
	for i := range d.Steps {
		s := pick(&d.Steps[i])
		out.Total += s.Total
		out.Kept += s.Stored
		if s.Total == 0 || len(b) == fleet.MaxEventOutput {
			continue
		}
		part, err := w.head(ctx, host, s, fleet.MaxEventOutput-len(b))
		if err != nil {
			return out, err
		}
		b = append(b, part...)
	}
	out.Truncated = uint64(len(b)) < out.Total
	text := b
	if out.Truncated {
		text = wholeRunes(b)
	}
	if utf8.Valid(text) {
		out.Text = string(text)
	} else {
		out.Bytes = b
	}
	return out, nil
}

// wholeRunes is b without a character that the cut has split.
func wholeRunes(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if start := len(b) - i; utf8.RuneStart(b[start]) {
			if !utf8.FullRune(b[start:]) {
				return b[:start]
			}
			break
		}
	}
	return b
}

func commandEvent(cmd *fleet.Command) fleet.CommandEvent {
	view := control.CommandView(cmd)
	e := fleet.CommandEvent{
		CommandId: cmd.ID, Status: view.Status, StatusDetails: view.StatusDetails, TargetCount: view.TargetCount,
		CompletedCount: view.CompletedCount, SuccessCount: cmd.Count(fleet.Success), ErrorCount: view.ErrorCount,
		DeliveryTimedOutCount: view.DeliveryTimedOutCount, InProgressCount: cmd.Count(fleet.InProgress), CancellingCount: cmd.Count(fleet.CancelPending, fleet.CancelInProgress), Ended: !cmd.Open(),
		GivenUp:     fleet.InstantOf(cmd.ReachBy() + int64(entry.Skew)),
		StagedCount: cmd.Count(fleet.Staged), ReleasedCount: cmd.Count(fleet.Released), TerminatedCount: cmd.Count(fleet.Terminated),
	}
	if cmd.Staged() {
		e.MaxConcurrency, e.MaxErrors = cmd.MaxConcurrency, cmd.MaxErrors
	}
	return e
}

// send writes one server-sent event; JSON has no line breaks.
func (w *watcher) send(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return w.write(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, b))
}

// write sends at once, within the time of one event.
func (w *watcher) write(b []byte) error {
	if err := w.rc.SetWriteDeadline(time.Now().Add(eventWrite)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	if _, err := w.w.Write(b); err != nil {
		return fleet.Errorf(fleet.Unavailable, "write event: %w", err)
	}
	if err := w.rc.Flush(); err != nil {
		return fleet.Errorf(fleet.Unavailable, "write event: %w", err)
	}
	return nil
}
