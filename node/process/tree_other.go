//go:build !linux

package process

// BootID names this boot of the machine; "" on systems without one.
func BootID() (string, error) { return "", nil }

func identify(pid int, mark string) Identity { return Identity{PID: pid, Mark: mark} }
