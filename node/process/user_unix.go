//go:build linux || darwin

package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// directoryPatience bounds questions to a directory service (LDAP, SSSD), which
// the programs of the system ask for us.
const directoryPatience = 5 * time.Second

// namePattern is what is given to those programs: nothing that is an option.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@\\$-]{0,255}$`)

// numberPattern is what they take for the number of a user instead: "0" would
// be root by another name, which who compares names does not know.
var numberPattern = regexp.MustCompile(`^[0-9]+$`)

// passwdFields are those of one line of passwd(5).
const passwdFields = 7

// noSuchKey is getent's exit code for a name that nobody knows.
const noSuchKey = 2

// directoryUser finds a user that /etc/passwd does not have, by getent. A
// directory that gives no answer has not said that there is no such user: that
// is an error.
func directoryUser(ask func(program string, args ...string) (string, error), name string) (_ Account, ok bool, _ error) {
	if !namePattern.MatchString(name) || numberPattern.MatchString(name) {
		return Account{}, false, nil
	}
	out, err := ask("getent", "passwd", name)
	var exit *exec.ExitError
	switch {
	case errors.Is(err, os.ErrNotExist), errors.As(err, &exit) && exit.ExitCode() == noSuchKey:
		return Account{}, false, nil
	case err != nil:
		return Account{}, false, err
	}
	a, ok := parsePasswd(strings.TrimSuffix(out, "\n"))
	return a, ok, nil
}

// parsePasswd reads one line of passwd(5).
func parsePasswd(line string) (Account, bool) {
	f := strings.Split(line, ":")
	if len(f) != passwdFields || f[0] == "" {
		return Account{}, false
	}
	for _, id := range f[2:4] {
		if n, err := strconv.ParseUint(id, 10, 32); err != nil || n == 1<<32-1 { // which setuid takes for "as it is"
			return Account{}, false
		}
	}
	return Account{Name: f[0], UID: f[2], GID: f[3], Home: f[5], Shell: f[6]}, true
}

// loginShell is a user's, from /etc/passwd.
func loginShell(name string) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if a, ok := parsePasswd(s.Text()); ok && a.Name == name {
			return a.Shell
		}
	}
	return ""
}

// groupsOf are all groups of a user, as at a login: also those of a directory
// service, which only the system's own programs know, and with the primary one.
func groupsOf(name, primary string) ([]uint32, error) {
	var ids []string
	if namePattern.MatchString(name) {
		if out, err := ask("id", "-G", name); err == nil {
			ids = strings.Fields(out)
		}
	}
	if len(ids) == 0 { // a system without id: /etc/group only
		u, err := user.Lookup(name)
		if err == nil {
			ids, err = u.GroupIds()
		}
		if err != nil {
			return nil, fmt.Errorf("groups of user %.64q: %w", name, err)
		}
	}
	groups := make([]uint32, 0, len(ids)+1)
	for _, id := range append(ids, primary) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("groups of user %.64q: %w", name, err)
		}
		groups = append(groups, uint32(n))
	}
	return groups, nil
}

// ask runs a program of the system and gives what it prints.
func ask(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), directoryPatience)
	defer cancel()
	var path string
	for _, dir := range []string{"/usr/bin", "/bin"} {
		if p := filepath.Join(dir, program); isFile(p) {
			path = p
		}
	}
	if path == "" {
		return "", os.ErrNotExist
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Dir = rootDir
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%s gave no answer in %s", program, directoryPatience)
	}
	return string(out), err
}

func isUnknownUser(err error) bool { return errors.As(err, new(user.UnknownUserError)) }

func ownedByUs(info os.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
