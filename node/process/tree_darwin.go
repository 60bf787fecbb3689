package process

import (
	"os"
	"syscall"
	"time"
)

// killTree ends the child's process group.
func (p *Process) killTree(ended <-chan struct{}) (survivors int) {
	signalGroup(p.id.PID, syscall.SIGTERM)
	grace := time.NewTimer(p.spec.Grace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
	}
	signalGroup(p.id.PID, syscall.SIGKILL)
	patience := time.NewTimer(killPatience)
	defer patience.Stop()
	select {
	case <-ended:
		return 0
	case <-patience.C:
		return 1
	}
}

func (g *group) directory() *os.File { return nil }

func createIn(*syscall.SysProcAttr, *os.File) {}

// closeOnExec does nothing here: what this process inherited, a child may too.
func closeOnExec() {}
