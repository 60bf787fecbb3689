// Package service is fleet as a service of the operating system: it installs
// the program and what starts it at boot, starts and stops it, and speaks to
// the manager that runs it.
//
//   - One fleet service a host. What another hand installed under its name is
//     named and left alone unless the caller forces.
//   - The program is copied to its place whole or not at all; one that is
//     there already and newer stays.
//   - Nothing is guessed: on a system whose service manager is not known here,
//     Open says so and what to do instead.
//   - The agent is not confined: it runs commands as root, and a sandbox around
//     it would be one around each of them. What each command may use is limited
//     by node/process, in control groups that the service delegates.
//
// Linux has systemd, macOS launchd, Windows its service control manager; OpenRC
// and sysvinit are absent. The commands of the first two are run by
// node/process, which alone starts children; Windows' manager is spoken to by
// calls, and Supervised answers it for an agent that it started.
package service

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"fleet/node/fleet"
	"fleet/node/process"
)

// Spec is what a service is made of.
type Spec struct {
	Binary  string // path of the running program: it is copied to where the service starts it
	Version string // of the running program
	Config  string // path of the configuration file that the service reads
	DataDir string // of the host, for contexts of SELinux
	Force   bool   // replace a newer program, and a service file of another hand
}

// Status is what the manager says of the service.
type Status struct {
	Installed bool   `json:"Installed"`
	Running   bool   `json:"Running"`
	State     string `json:"State,omitempty"`    // the manager's words, such as "active (running)"
	Restarts  int    `json:"Restarts"`           // since it was started; 0 on Windows, which does not tell
	Result    string `json:"Result,omitempty"`   // of the last end, such as "exit-code"; "" or "success" when it is well
	File      string `json:"File,omitempty"`     // path of the service file
	Packaged  bool   `json:"Packaged,omitempty"` // the file belongs to a package: it is not ours to change
	Foreign   bool   `json:"Foreign,omitempty"`  // the file is neither a package's nor written by fleet
	Config    string `json:"Config,omitempty"`   // path of the configuration file that it reads
	Program   string `json:"Program,omitempty"`  // what it starts
	Copied    bool   `json:"Copied,omitempty"`   // fleet put the program there, so that Uninstall takes it away
}

// Manager is the service manager of one platform. Methods return when the
// manager has done what was asked, Start and Restart when it has begun.
type Manager interface {
	// Check says what keeps Install from succeeding, and changes nothing.
	Check(ctx context.Context, spec Spec) error
	// Install puts program and service file in their places, to start at boot.
	// Done again it replaces what it wrote before.
	Install(ctx context.Context, spec Spec) error
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	Restart(ctx context.Context) error
	Status(ctx context.Context) (Status, error)
	// Disable stops the service for good: it does not start at boot. What
	// Install wrote stays.
	Disable(ctx context.Context) error
	// Removes lists the paths that Uninstall removes.
	Removes(ctx context.Context) ([]string, error)
	// Uninstall stops the service and removes what Install wrote.
	Uninstall(ctx context.Context) error
	// Commands are what a person types to restart the service and to read its log.
	Commands() (restart, logs string)
	// Logs are the last lines that the service logged, the oldest first.
	Logs(ctx context.Context, lines int) ([]string, error)
}

// Run runs a program of the system and gives what it wrote to its standard
// output. An error holds what it wrote to its standard error.
type Run func(ctx context.Context, args ...string) ([]byte, error)

// Limits of a program of the system.
const (
	commandTimeout = time.Minute
	maxOutput      = 8 << 20 // bytes that are kept
	maxComplaint   = 1 << 10 // bytes of an error
)

// runCommand is Run with real children.
func runCommand(ctx context.Context, args ...string) ([]byte, error) {
	var stdout, stderr limited
	stdout.max, stderr.max = maxOutput, maxComplaint
	exit, err := process.Run(ctx, process.Spec{
		Args: args, Stdout: &stdout, Stderr: &stderr, Timeout: commandTimeout,
		Env: commandEnv(),
	})
	switch {
	case err != nil:
		return nil, err
	case exit.Code != 0:
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = fmt.Sprintf("exit code %d", exit.Code)
		}
		return stdout.Bytes(), fleet.Errorf(fleet.Other, "%s: %s", strings.Join(args, " "), said)
	}
	return stdout.Bytes(), nil
}

// limited keeps the first bytes of what is written to it.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	if room := l.max - l.Len(); room > 0 {
		_, _ = l.Buffer.Write(b[:min(room, len(b))]) // a buffer never fails
	}
	return len(b), nil
}
