package process

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"fleet/node/fleet"
)

const rootDir = `C:\`

// gate is the child's only thread: it was made suspended and has run nothing,
// not even the loader.
type gate struct{ thread windows.Handle }

func (g gate) open() error {
	_, err := windows.ResumeThread(g.thread)
	g.shut()
	return err
}

// shut gives the thread back; that fails only for a handle that is not ours.
func (g gate) shut() { _ = windows.CloseHandle(g.thread) }

// spawn makes the child, suspended and in its job. If this process dies before
// the child is in the job, which are a few instructions, a process stays that
// has run nothing and never will.
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
		SysProcAttr: &syscall.SysProcAttr{
			// Without a console of ours: Ctrl-C in it would reach the child.
			CreationFlags: windows.CREATE_SUSPENDED | windows.CREATE_NO_WINDOW,
		},
	}
	if err := p.cmd.Start(); err != nil {
		return gate{}, startError(p.spec, err)
	}
	p.id = identify(p.cmd.Process.Pid, p.spec.Mark)
	if p.group != nil {
		var placed error
		err := p.cmd.Process.WithHandle(func(h uintptr) { placed = p.group.place(windows.Handle(h)) })
		if err = errors.Join(err, placed); err != nil {
			p.exit.Uncontained = err.Error()
			p.group.leave()
			p.group = nil
		}
	}
	thread, err := threadOf(p.cmd.Process.Pid)
	if err != nil {
		_ = p.cmd.Process.Kill() // it has run nothing; the first error says more
		_ = p.cmd.Wait()
		return gate{}, fmt.Errorf("start %s: %w", p.spec.Args[0], err)
	}
	return gate{thread}, nil
}

// threadOf opens the first thread of a process. exec.Cmd has closed the handle
// that CreateProcess gave.
func threadOf(pid int) (windows.Handle, error) {
	threads, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPTHREAD, 0)
	if err != nil {
		return 0, fmt.Errorf("list threads: %w", err)
	}
	defer func() { _ = windows.CloseHandle(threads) }()
	entry := windows.ThreadEntry32{Size: uint32(unsafe.Sizeof(windows.ThreadEntry32{}))}
	for err = windows.Thread32First(threads, &entry); err == nil; err = windows.Thread32Next(threads, &entry) {
		if entry.OwnerProcessID == uint32(pid) {
			h, err := windows.OpenThread(windows.THREAD_SUSPEND_RESUME, false, entry.ThreadID)
			if err != nil {
				return 0, fmt.Errorf("open the thread of process %d: %w", pid, err)
			}
			return h, nil
		}
	}
	return 0, fmt.Errorf("find the thread of process %d: %w", pid, err)
}

// killTree ends the job. There is no SIGTERM here: a service has no console
// from which Ctrl-Break could reach the child.
func (p *Process) killTree(ended <-chan struct{}) (survivors int) {
	if p.group != nil {
		survivors = p.group.terminate()
	} else {
		_ = p.cmd.Process.Kill() // it may have ended; who is still there is counted below
	}
	patience := time.NewTimer(killPatience)
	defer patience.Stop()
	select {
	case <-ended:
		return survivors
	case <-patience.C:
		return max(1, survivors)
	}
}

func exitCode(state *os.ProcessState) (code, signal int) { return state.ExitCode(), 0 }

// outputPipe is os.Pipe with an end for reading that has deadlines: a read of an
// anonymous pipe cannot be interrupted, and a grandchild that keeps the other
// end would hold it for ever. Nobody but the system, the administrators and we
// may open it.
func outputPipe() (r, w *os.File, err error) {
	name, err := windows.UTF16PtrFromString(`\\.\pipe\fleet-output-` + rand.Text())
	if err != nil {
		return nil, nil, err
	}
	sd, err := windows.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;OW)")
	if err != nil {
		return nil, nil, err
	}
	sa := &windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), SecurityDescriptor: sd}
	reading, err := windows.CreateNamedPipe(name,
		windows.PIPE_ACCESS_INBOUND|windows.FILE_FLAG_OVERLAPPED|windows.FILE_FLAG_FIRST_PIPE_INSTANCE,
		windows.PIPE_TYPE_BYTE|windows.PIPE_REJECT_REMOTE_CLIENTS, 1, 0, pumpSize, 0, sa)
	if err != nil {
		return nil, nil, err
	}
	writing, err := windows.CreateFile(name, windows.GENERIC_WRITE, 0, nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		_ = windows.CloseHandle(reading) // the first error says more
		return nil, nil, err
	}
	return os.NewFile(uintptr(reading), "output"), os.NewFile(uintptr(writing), "output"), nil
}
