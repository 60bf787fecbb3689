package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows/svc"
)

type eventShelf chan string

func (s eventShelf) Info(_ uint32, text string) error    { s <- "info " + text; return nil }
func (s eventShelf) Warning(_ uint32, text string) error { s <- "warning " + text; return nil }
func (s eventShelf) Error(_ uint32, text string) error   { s <- "error " + text; return nil }

// managed runs an agent as the manager would, with what it is told.
type managed struct {
	requests chan svc.ChangeRequest
	told     chan svc.Status
	end      chan uint32
	events   eventShelf
}

func manage(t *testing.T, agent func(context.Context, *Notifier) error) *managed {
	t.Helper()
	m := &managed{make(chan svc.ChangeRequest), make(chan svc.Status, 100), make(chan uint32, 1), make(eventShelf, 10)}
	h := &scmHandler{ctx: t.Context(), agent: agent, events: m.events}
	go func() {
		_, code := h.Execute(nil, m.requests, m.told)
		m.end <- code
	}()
	return m
}

// until waits for a state.
func (m *managed) until(t *testing.T, want svc.State) svc.Status {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case s := <-m.told:
			if s.State == want {
				return s
			}
		case <-deadline:
			t.Fatalf("the manager was never told %d", want)
		}
	}
}

func TestHandler(t *testing.T) {
	for _, command := range []svc.Cmd{svc.Stop, svc.Shutdown, svc.PreShutdown} {
		goOn := make(chan struct{})
		m := manage(t, func(ctx context.Context, n *Notifier) error {
			<-goOn
			if n.Events() == nil {
				return errors.New("no event log")
			}
			if err := errors.Join(n.Ready("x"), n.Ready("again"), n.Alive(), n.State("y")); err != nil {
				return err
			}
			<-ctx.Done()
			<-goOn
			return n.Stopping()
		})
		if s := m.until(t, svc.StartPending); s.WaitHint == 0 || s.Accepts != 0 {
			t.Errorf("while it starts: %+v", s)
		}
		goOn <- struct{}{}
		if s := m.until(t, svc.Running); s.Accepts != scmAccepts {
			t.Errorf("when it is ready: %+v", s)
		}
		m.requests <- svc.ChangeRequest{Cmd: command}
		first := m.until(t, svc.StopPending)
		if later := m.until(t, svc.StopPending); later.CheckPoint <= first.CheckPoint || later.WaitHint == 0 {
			t.Errorf("the manager hears nothing more of an agent that takes its time: %+v, %+v", first, later)
		}
		goOn <- struct{}{}
		if code := <-m.end; code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestHandlerOfAnAgentThatFails(t *testing.T) {
	m := manage(t, func(context.Context, *Notifier) error { return errors.New("no disk") })
	if code := <-m.end; code != 1 {
		t.Errorf("exit code %d", code)
	}
	if text := <-m.events; !strings.Contains(text, "error agent failed: no disk") {
		t.Errorf("event %q", text)
	}
	// Who ends well, but unasked, is to be started again.
	m = manage(t, func(context.Context, *Notifier) error { return nil })
	if code := <-m.end; code != 1 {
		t.Errorf("an end that nobody asked for: exit code %d", code)
	}
}

// What the manager of a real Windows, or of Wine, keeps of the service.
func TestServiceControlManager(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Skip("no service control manager:", err)
	}
	st, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Installed {
		t.Skip("fleet is installed on this host")
	}
	removes, err := m.Removes(t.Context())
	if err != nil || len(removes) != 0 {
		t.Errorf("removes %q, %v, of what is not installed", removes, err)
	}
	if err := m.Uninstall(t.Context()); err != nil {
		t.Errorf("uninstall what is not there: %v", err)
	}
	lines, err := m.Logs(t.Context(), 5)
	if err != nil || !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "Get-WinEvent") }) {
		t.Errorf("logs %q, %v", lines, err)
	}
}
