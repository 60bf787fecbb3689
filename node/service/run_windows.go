package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"

	"fleet/node/fleet"
	"fleet/node/logging"
)

// How the manager is kept patient while the agent starts or stops: each
// checkpoint asks for patience anew.
const (
	scmCheckpoint = 2 * time.Second
	scmPatience   = 10 * time.Second // from a checkpoint to the next
	scmAccepts    = svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown
)

// Supervised runs the agent, and tells the manager that started this process how it
// is. Under the service control manager it logs to the event log, also the
// error that it ends with, since nobody sees what a service prints.
func Supervised(ctx context.Context, getenv func(string) string, agent func(context.Context, *Notifier) error) error {
	service, err := svc.IsWindowsService()
	if err != nil {
		return fmt.Errorf("find out what started this process: %w", err)
	}
	if !service {
		return agent(ctx, NewNotifier(getenv))
	}
	h := &scmHandler{ctx: ctx, agent: agent}
	log, err := eventlog.Open(scmName)
	if err != nil {
		return fmt.Errorf("open the event log: %w", err) // the manager reports the end of this process
	}
	h.events = log
	defer log.Close()
	if err := svc.Run(scmName, h); err != nil {
		return errors.Join(h.err, fmt.Errorf("speak to the service control manager: %w", err))
	}
	return h.err
}

// scmHandler runs the agent as the manager of Windows asks.
type scmHandler struct {
	ctx    context.Context // that of the process
	agent  func(context.Context, *Notifier) error
	events logging.Events
	err    error // how the agent ended; read when the manager has let go
}

// Execute returns when the agent has ended. What it returns is the last word
// to the manager, which starts the agent again unless it was asked to stop.
func (h *scmHandler) Execute(_ []string, requests <-chan svc.ChangeRequest, tell chan<- svc.Status) (specific bool, code uint32) {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	ready, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	notify := &Notifier{events: h.events, ready: func() { once.Do(func() { close(ready) }) }}
	now := svc.Status{State: svc.StartPending, WaitHint: uint32(scmPatience.Milliseconds())}
	tell <- now
	go func() { ended <- h.agent(ctx, notify) }()
	checkpoint := time.NewTicker(scmCheckpoint)
	defer checkpoint.Stop()
	asked := false
	for {
		select {
		case <-ready:
			ready = nil
			if !asked {
				now = svc.Status{State: svc.Running, Accepts: scmAccepts}
				tell <- now
			}
		case <-checkpoint.C:
			if now.State != svc.Running {
				now.CheckPoint++
				tell <- now
			}
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				tell <- now
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				if !asked {
					asked = true
					now = svc.Status{State: svc.StopPending, WaitHint: uint32(scmPatience.Milliseconds())}
					tell <- now
					stop()
				}
			}
		case h.err = <-ended:
			if h.err != nil {
				text := "agent failed: " + h.err.Error()
				if hint := fleet.HintOf(h.err); hint != "" {
					text += " (" + hint + ")"
				}
				_ = logging.WriteEvent(h.events, slog.LevelError, text) // the exit code says it too
			}
			if h.err != nil || !asked {
				return true, 1
			}
			return false, 0
		}
	}
}
