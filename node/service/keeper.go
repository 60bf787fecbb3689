package service

import "context"

// Keeper is a manager under which the program of the running agent can be
// exchanged: it has a place for the program, starts the agent again when it
// ends, and runs a guard beside it. systemd is one.
type Keeper interface {
	Manager

	// Runs is an error unless this manager started the process, from Program.
	Runs(ctx context.Context, pid int) error

	// Program is the path of what the service starts.
	Program() string

	// Ask runs a program and gives what it wrote to its standard output.
	Ask(ctx context.Context, args ...string) ([]byte, error)

	// Relabel gives a file that was written what the system expects of it
	// there: contexts of SELinux.
	Relabel(ctx context.Context, path string) error

	// Guard runs a program as a service of its own, outside the agent's control
	// group, which also starts at boot, until Unguard. It returns when the
	// program has said that it is ready.
	Guard(ctx context.Context, args []string) error

	// Unguard takes that service away; its process goes on to its own end.
	Unguard(ctx context.Context) error
}

// Ask runs a program, and gives what it wrote to its standard output.
func Ask(ctx context.Context, args ...string) ([]byte, error) { return runCommand(ctx, args...) }

var _ Keeper = (*systemd)(nil)
