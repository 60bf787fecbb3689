//go:build !linux

package process

import "context"

// BootID names this boot of the machine; "" on systems without one.
func BootID() (string, error) { return "", nil }

func identify(pid int, mark string) Identity { return Identity{PID: pid, Mark: mark} }

// KillLeftover does nothing here: without the start time of a process, the
// leftover of an earlier run cannot be told from a stranger with its number.
func KillLeftover(context.Context, Identity) (killed int, err error) { return 0, nil }
