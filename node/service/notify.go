package service

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"fleet/node/logging"
)

// Notifier tells the manager that started this process how it is, as
// sd_notify(3) does. Without such a manager every call does nothing.
type Notifier struct {
	socket string
	every  time.Duration

	// Of Windows' manager: nil elsewhere. That the agent stops it was told by
	// the manager, or tells it by its end.
	ready  func()
	events logging.Events
}

// NewNotifier reads what the manager left in the environment.
func NewNotifier(getenv func(string) string) *Notifier {
	n := &Notifier{socket: getenv("NOTIFY_SOCKET")}
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	pid := getenv("WATCHDOG_PID")
	if err == nil && usec > 0 && n.socket != "" && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.every = time.Duration(usec) * time.Microsecond / 3
	}
	return n
}

// Ready says that the agent serves; state is for people.
func (n *Notifier) Ready(state string) error {
	if n.ready != nil {
		n.ready()
	}
	return n.send("READY=1\nSTATUS=" + state)
}

// Events is the event log of the system, if that is where the agent is to log;
// nil otherwise.
func (n *Notifier) Events() logging.Events { return n.events }

// State says how the agent is, for people.
func (n *Notifier) State(state string) error { return n.send("STATUS=" + state) }

// Stopping says that the agent ends by itself.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1\nSTATUS=stopping") }

// Alive is to be called every Interval: without it the manager ends the agent.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// Interval is how often Alive is to be called; 0 for never.
func (n *Notifier) Interval() time.Duration { return n.every }

func (n *Notifier) send(message string) error {
	if n.socket == "" {
		return nil
	}
	// A name that begins with @ is an abstract one, for net as for systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	_, err = conn.Write([]byte(message))
	if err = errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
