package cli

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A command that sleeps on three hosts is cancelled on one, then everywhere,
// then once more; what had ended stays.
func TestCommandCancel(t *testing.T) {
	w, _ := startFleet(t, 3, 3)
	dir := shortDir(t)
	script := "echo begun; mkdir " + dir + "/$FLEET_NODE_ID; sleep 300"
	if code := w.run(t, "run", "--all", "--detach", "--", script); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	id := strings.TrimSpace(w.stdout.String())
	awaitMany(t, filepath.Join(dir, "mi-*"), 3)
	for _, step := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"--node", "node04"}, 1, ``, `there is no node "node04"`},
		{[]string{"--node", ""}, 64, ``, `--node names no host`},
		{[]string{"--node", "node02"}, 0, `^STATUS +HOSTS +NAMES +WHY\nCancelled +1 +node02 +cancelled while it ran\n$`, `^$`},
		{[]string{"--node", "node02"}, 0, `\nCancelled +1 +node02 `, `^$`},
		{[]string{"--detach"}, 0, `(?m)^Cancel(led|ling) `, ``},
		{nil, 0, `\nCancelled +3 +node\[01-03\] +cancelled while it ran\n$`, `^$`},
		{[]string{"-o", "name"}, 0, `^` + id + `\n$`, `^$`},
	} {
		if code := w.run(t, append([]string{"command", "cancel", id}, step.args...)...); code != step.code {
			t.Errorf("%q: exit %d, want %d", step.args, code, step.code)
		}
		if !regexp.MustCompile(step.out).MatchString(w.stdout.String()) || !regexp.MustCompile(step.err).MatchString(w.stderr.String()) {
			t.Errorf("%q: stdout\n%s\nstderr\n%s\nwant %s and %s", step.args, w.stdout.String(), w.stderr.String(), step.out, step.err)
		}
	}
	if code := w.run(t, "command", "show", id); code != 0 || !regexp.MustCompile(`(?m)^status +Cancelled$`).MatchString(w.stdout.String()) {
		t.Errorf("exit %d: %s", code, w.stdout.String())
	}
	// The output until then is there.
	if code := w.run(t, "command", "output", id); code != ExitSome || !strings.Contains(w.stdout.String(), "begun") || !strings.Contains(w.stderr.String(), "it was cancelled") {
		t.Errorf("exit %d: %s%s", code, w.stdout.String(), w.stderr.String())
	}
	if code := w.run(t, "command", "ls", "--status", "Cancelled", "-o", "name"); code != 0 || w.stdout.String() != id+"\n" {
		t.Errorf("exit %d: %s", code, w.stdout.String())
	}

	// What has ended is not changed, and that is no error.
	if code := w.run(t, "run", "--all", "--", "true"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	if code := w.run(t, "command", "ls", "--limit", "1", "-o", "name"); code != 0 {
		t.Fatal(code)
	}
	ended := strings.TrimSpace(w.stdout.String())
	if code := w.run(t, "command", "cancel", ended, "-o", "json"); code != 0 {
		t.Errorf("exit %d: %s", code, w.stderr.String())
	}
	var d commandDetail
	if err := json.Unmarshal(w.stdout.Bytes(), &d); err != nil || d.Command.Status != "Success" || len(d.CommandInvocations) != 3 {
		t.Errorf("%v: %s", err, w.stdout.String())
	}
	if code := w.run(t, "command", "cancel", "00000000-0000-4000-8000-000000000000"); code != ExitFailed || !strings.Contains(w.stderr.String(), "there is no command") {
		t.Errorf("exit %d: %s", code, w.stderr.String())
	}
}

// A host that is away is waited for only as long as was asked.
func TestCommandCancelOfAHostThatIsAway(t *testing.T) {
	w, f := startFleet(t, 2, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Nodes()[1].Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if code := w.run(t, "run", "--all", "--detach", "--", "sleep 300"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	id := strings.TrimSpace(w.stdout.String())
	if code := w.run(t, "command", "cancel", id, "--timeout", "12s"); code != ExitSome {
		t.Errorf("exit %d, want %d: %s", code, ExitSome, w.stderr.String())
	}
	want := `(?s)\nCancelled +1 +node01 .*\nCancelling +1 +node02 +-\n$`
	if !regexp.MustCompile(want).MatchString(w.stdout.String()) || !strings.Contains(w.stderr.String(), "the cancel stands; 1 host has not said yet that it is over") {
		t.Errorf("stdout\n%s\nstderr\n%s", w.stdout.String(), w.stderr.String())
	}
}

// awaitMany waits until this many files match.
func awaitMany(t *testing.T, pattern string, many int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) >= many {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d files match %s, want %d", len(found), pattern, many)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
