package process

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fleet/node/fleet"
)

// leaky runs a script as another user below a parent that has much to leak,
// with a changed /etc/group.
func leaky(t *testing.T, groups, text string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	dir := t.TempDir()
	before, err := os.ReadFile("/etc/group")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "group"), append(before, groups...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	secret, err := os.Create(filepath.Join(dir, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	cmd := exec.Command("unshare", "--mount", "/bin/sh", "-c", "mount --bind \"$0\" /etc/group || exit 9; exec \"$1\"",
		filepath.Join(dir, "group"), os.Args[0])
	cmd.Env = append(os.Environ(), leakyVariable+"="+text, "SECRET=x")
	cmd.ExtraFiles = []*os.File{secret, secret, secret} // inherited by the parent, without close-on-exec
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 9 {
		t.Skipf("no mount namespaces here: %s", out)
	}
	if err != nil {
		t.Skipf("no mount namespaces here: %v: %s", err, out)
	}
	return string(out)
}

func TestAnotherUserGetsItsOwnAndNothingOfOurs(t *testing.T) {
	got := leaky(t, "fleetone:x:4242:nobody\nfleettwo:x:4343:root,nobody\nfleetthree:x:4444:root\n",
		`id -un; id -G; umask; for f in /proc/self/fd/*; do readlink $f; done | grep -c secret; echo "${SECRET-none}"; ulimit -c`)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 6 {
		t.Fatalf("got %q", got)
	}
	groups := " " + lines[1] + " "
	for id, want := range map[string]bool{"4242": true, "4343": true, "4444": false, "4": false, "27": false, "0": false} {
		if strings.Contains(groups, " "+id+" ") != want {
			t.Errorf("groups %s: %s is in them: %v", lines[1], id, !want)
		}
	}
	if lines[0] != "nobody" || lines[2] != "0022" || lines[3] != "0" || lines[4] != "none" {
		t.Errorf("got %q, want nobody, umask 0022, no inherited descriptor and no inherited variable", lines)
	}
}

func TestParsePasswd(t *testing.T) {
	tests := []struct {
		line string
		want Account
		ok   bool
	}{
		{"web:x:1001:1002:Web,,:/srv/web:/bin/bash", Account{Name: "web", UID: "1001", GID: "1002", Home: "/srv/web", Shell: "/bin/bash"}, true},
		{`AD\\web:*:10001:10002::/home/web:`, Account{Name: `AD\\web`, UID: "10001", GID: "10002", Home: "/home/web"}, true},
		{line: ""},
		{line: "web:x:1001:1002:Web:/srv/web"},
		{line: ":x:1001:1002:Web:/srv/web:/bin/sh"},
		{line: "web:x:-1:1002:Web:/srv/web:/bin/sh"},
		{line: "web:x:4294967295:1002:Web:/srv/web:/bin/sh"},
		{line: "web:x:1001:4294967296:Web:/srv/web:/bin/sh"},
		{line: "web:x:1001:1002:Web:/srv/web:/bin/sh:more"},
	}
	for _, test := range tests {
		if got, ok := parsePasswd(test.line); got != test.want || ok != test.ok {
			t.Errorf("%q: got %+v, %v, want %+v, %v", test.line, got, ok, test.want, test.ok)
		}
	}
	for _, name := range []string{"-option", "", "a b", "a\nb", "a:b", "$(id)", strings.Repeat("x", 300)} {
		if _, ok, _ := directoryUser(ask, name); ok || namePattern.MatchString(name) {
			t.Errorf("%q is given to programs", name)
		}
	}
	for _, number := range []string{"0", "00", "65534"} {
		if a, err := LookupUser(number); fleet.KindOf(err) != fleet.NotFound {
			t.Errorf("the number %s is the user %+v, %v; want that there is none of that name", number, a, err)
		}
	}
}

// TestADirectoryThatDoesNotAnswer has not said that there is no such user.
func TestADirectoryThatDoesNotAnswer(t *testing.T) {
	shell := func(script string) error { return exec.Command("/bin/sh", "-c", script).Run() }
	for name, test := range map[string]struct {
		out     string
		err     error
		ok, bad bool
	}{
		"known":          {out: "web:x:1001:1002:Web:/srv/web:/bin/sh\n", ok: true},
		"unknown":        {err: shell("exit 2")},
		"no getent":      {err: os.ErrNotExist},
		"nonsense":       {out: "hello"},
		"no answer":      {err: errors.New("getent gave no answer in 5s"), bad: true},
		"getent failed":  {err: shell("exit 1"), bad: true},
		"getent crashed": {err: shell("kill -9 $$"), bad: true},
	} {
		_, ok, err := directoryUser(func(string, ...string) (string, error) { return test.out, test.err }, "web")
		if ok != test.ok || (err != nil) != test.bad {
			t.Errorf("%s: %v, %v; want %v, an error: %v", name, ok, err, test.ok, test.bad)
		}
	}
}

func TestScriptsAreNotWrittenThroughWhatOthersPutThere(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	own, err := LookupUser("")
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(dir, "victim")
	for name, put := range map[string]func(string) error{
		"link":      func(p string) error { return os.Symlink(victim, p) },
		"dangling":  func(p string) error { return os.Symlink("nowhere", p) },
		"outside":   func(p string) error { return os.Symlink("/etc/passwd", p) },
		"hard link": func(p string) error { return os.Link(victim, p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o777) },
		"file":      func(p string) error { return os.WriteFile(p, nil, 0o777) },
	} {
		if err := os.WriteFile(victim, []byte("keep"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := put(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := WriteScript(root, name, []byte("#!/bin/sh\n"), own); err == nil {
			t.Errorf("%s: a script was written", name)
		}
		if err := MakeDir(root, name, own); err == nil {
			t.Errorf("%s: a directory was made", name)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "keep" {
			t.Errorf("%s: the victim holds %q, %v", name, b, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "nowhere")); err == nil {
			t.Errorf("%s: the target of a dangling link was made", name)
		}
	}
}

func TestADirectoryOfOthersIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"good": 0o711, "private": 0o700, "group": 0o720, "all": 0o702, "theirs": 0o711} {
		if err := os.Mkdir(path(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("good", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"good": true, "private": true, "group": false, "all": false, "link": false, "file": false, "missing": false}
	if os.Geteuid() == 0 {
		if err := os.Chown(path("theirs"), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		want["theirs"] = false
	}
	for name, good := range want {
		if err := CheckOwnDir(path(name)); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
