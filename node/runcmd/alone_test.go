package runcmd

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"fleet/node/fleet"
)

// pluginFunc is a plugin.
type pluginFunc func(ctx context.Context, t *Task) Outcome

func (f pluginFunc) Run(ctx context.Context, t *Task) Outcome { return f(ctx, t) }

// A step that is alone waits for what runs, lets nothing begin meanwhile, and
// two of them do not wait for each other.
func TestAlone(t *testing.T) {
	w := newWorld(time.Now())
	var busy, inside atomic.Int32
	began, end := make(chan struct{}, 8), make(chan struct{})
	alone := make(chan struct{}, 8)
	plugins := StandardPlugins()
	plugins["test:busy"] = pluginFunc(func(context.Context, *Task) Outcome {
		busy.Add(1)
		defer busy.Add(-1)
		if inside.Load() > 0 {
			return Outcome{State: fleet.Failed, Reason: "it began beside a step that is alone"}
		}
		began <- struct{}{}
		<-end
		return Outcome{State: fleet.Success}
	})
	plugins["test:alone"] = pluginFunc(func(ctx context.Context, task *Task) Outcome {
		alone <- struct{}{}
		release, err := task.Alone(ctx)
		if err != nil {
			return Outcome{State: fleet.Failed, Reason: err.Error()}
		}
		inside.Add(1)
		defer release()
		defer inside.Add(-1)
		if n := busy.Load(); n != 0 {
			return Outcome{State: fleet.Failed, Reason: "others run beside it"}
		}
		return Outcome{State: fleet.Success}
	})
	h := w.newHost(t, t.TempDir(), func(c *Config) { c.Plugins = plugins })
	h.start()
	doc := func(action string) string {
		return `{"schemaVersion":"2.2","mainSteps":[{"action":"test:` + action + `","name":"s","inputs":{}}]}`
	}
	h.deliver(t, w.delivery(w.order(1, doc("busy"), nil)))
	h.deliver(t, w.delivery(w.order(2, doc("busy"), nil)))
	<-began
	<-began
	h.deliver(t, w.delivery(w.order(3, doc("alone"), nil)))
	<-alone
	h.deliver(t, w.delivery(w.order(4, doc("alone"), nil))) // taken before or after the queue is shut
	h.deliver(t, w.delivery(w.order(5, doc("busy"), nil)))
	close(end)
	results, details := h.reports(t, 5)
	for i, r := range results {
		if r.State == fleet.Success {
			continue
		}
		// The second one may have begun while the first waited, and is told so.
		if r.Command != commandID(4) || details[i].Steps[0].Reason != "another command of this host waits to be alone, or is" {
			t.Errorf("%s: %s, %+v", r.Command, r.State.Details(), details[i])
		}
	}
}

// The patience of a step that waits to be alone ends, and others begin again.
func TestAloneGivesUp(t *testing.T) {
	w := newWorld(time.Now())
	began, end := make(chan struct{}, 1), make(chan struct{})
	plugins := StandardPlugins()
	plugins["test:busy"] = pluginFunc(func(context.Context, *Task) Outcome {
		began <- struct{}{}
		<-end
		return Outcome{State: fleet.Success}
	})
	plugins["test:alone"] = pluginFunc(func(ctx context.Context, task *Task) Outcome {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(fleet.Errorf(fleet.Unavailable, "patience is over"))
		_, err := task.Alone(ctx)
		return Outcome{State: fleet.Failed, Reason: err.Error()}
	})
	plugins["test:quick"] = pluginFunc(func(context.Context, *Task) Outcome { return Outcome{State: fleet.Success} })
	h := w.newHost(t, t.TempDir(), func(c *Config) { c.Plugins = plugins })
	h.start()
	for n, action := range []string{"busy", "alone", "quick"} {
		h.deliver(t, w.delivery(w.order(n+1, `{"schemaVersion":"2.2","mainSteps":[{"action":"test:`+action+`","name":"s","inputs":{}}]}`, nil)))
		if action == "busy" {
			<-began
		}
	}
	results, _ := h.reports(t, 2)
	for _, r := range results {
		switch r.Command {
		case commandID(2):
			if r.Reason != "patience is over" {
				t.Errorf("the step that gave up: %q", r.Reason)
			}
		case commandID(3):
			if r.State != fleet.Success {
				t.Errorf("the one after it: %s, %s", r.State.Details(), r.Reason)
			}
		default:
			t.Errorf("%s has ended", r.Command)
		}
	}
	close(end)
	h.reports(t, 3)
}
