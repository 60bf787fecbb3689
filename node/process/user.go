package process

import (
	"os"
	"os/user"

	"fleet/node/fleet"
)

// Account is a user of this machine.
type Account struct {
	Name  string
	UID   string // a number; a SID on Windows
	GID   string
	Home  string
	Shell string // "" where there is none
	Own   bool   // the user that this process runs as
}

// LookupUser finds a user by name, also one of a directory service; "" is the
// user that this process runs as. The error is of kind NotFound when there is
// no such user, Unavailable when the directory that would know does not answer,
// and Denied when this process may not start children as it.
func LookupUser(name string) (Account, error) {
	own, err := user.Current()
	if err != nil {
		return Account{}, fleet.Errorf(fleet.Other, "find the user of this process: %w", err)
	}
	a := Account{Name: own.Username, UID: own.Uid, GID: own.Gid, Home: own.HomeDir, Shell: loginShell(own.Username)}
	if name != "" {
		switch u, err := user.Lookup(name); {
		case err == nil:
			a = Account{Name: u.Username, UID: u.Uid, GID: u.Gid, Home: u.HomeDir, Shell: loginShell(u.Username)}
		case isUnknownUser(err):
			// Without cgo the lookup above knows /etc/passwd only.
			var ok bool
			switch a, ok, err = directoryUser(ask, name); {
			case err != nil:
				return Account{}, fleet.Errorf(fleet.Unavailable, "user %.64q cannot be looked up now: %w", name, err)
			case !ok:
				return Account{}, fleet.Errorf(fleet.NotFound, "user %.64q does not exist on this host", name)
			}
		default:
			return Account{}, fleet.Errorf(fleet.Other, "find user %.64q: %w", name, err)
		}
	}
	a.Own = a.UID == own.Uid
	if !a.Own && os.Geteuid() != 0 {
		return Account{}, fleet.Errorf(fleet.Denied, "run as user %.64q: the agent of this host is not root", name)
	}
	return a, nil
}
