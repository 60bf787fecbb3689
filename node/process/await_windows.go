package process

import "golang.org/x/sys/windows"

// awaitExit returns when the child has ended; its handle is kept by exec.Cmd.
func awaitExit(pid int) {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return // it has ended: cmd.Wait says how
	}
	defer func() { _ = windows.CloseHandle(h) }()
	_, _ = windows.WaitForSingleObject(h, windows.INFINITE)
}
