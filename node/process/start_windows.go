package process

import (
	"os"
	"os/exec"
	"time"

	"fleet/node/fleet"
)

const rootDir = `C:\`

// gate is open from the start: a suspended start needs job objects, which come
// with the agent for Windows.
type gate struct{}

func (gate) open() error { return nil }
func (gate) shut()       {}

func (p *Process) spawn() (gate, error) {
	account, err := LookupUser(p.spec.User)
	if err != nil {
		return gate{}, err
	}
	if !account.Own {
		return gate{}, fleet.Errorf(fleet.Denied, "run as user %.64q: not possible on Windows", p.spec.User)
	}
	stdout, err := p.pipe(p.spec.Stdout)
	if err != nil {
		return gate{}, err
	}
	defer stdout.Close()
	stderr, err := p.pipe(p.spec.Stderr)
	if err != nil {
		return gate{}, err
	}
	defer stderr.Close()
	p.cmd = &exec.Cmd{
		Path: p.spec.Args[0], Args: p.spec.Args, Dir: p.spec.Dir, Env: p.spec.environment(), Stdout: stdout, Stderr: stderr,
	}
	if err := p.cmd.Start(); err != nil {
		return gate{}, startError(p.spec, err)
	}
	p.id = identify(p.cmd.Process.Pid, p.spec.Mark)
	return gate{}, nil
}

// killTree ends the child; there is no SIGTERM here.
func (p *Process) killTree(ended <-chan struct{}) (survivors int) {
	_ = p.cmd.Process.Kill()
	patience := time.NewTimer(killPatience)
	defer patience.Stop()
	select {
	case <-ended:
		return 0
	case <-patience.C:
		return 1
	}
}

func exitCode(state *os.ProcessState) (code, signal int) { return state.ExitCode(), 0 }
