package process

import (
	"syscall"
	"unsafe"
)

// awaitExit returns when the child has ended, and leaves it to be reaped
// (waitid with WEXITED and WNOWAIT, for which there is no wrapper here).
func awaitExit(pid int) {
	const (
		byPID  = 1
		exited = 0x04
		noReap = 0x20
	)
	var info [16]uint64 // larger than a siginfo
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), exited|noReap, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}
