package cli

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fleet/node/fleet"
)

// check runs one line and compares its exit code and, as patterns, what it
// writes.
func (w *world) check(t *testing.T, code int, out, err string, args ...string) {
	t.Helper()
	if got := w.run(t, args...); got != code {
		t.Errorf("fleet %s: exit %d, want %d", strings.Join(args, " "), got, code)
	}
	if !regexp.MustCompile(out).MatchString(w.stdout.String()) {
		t.Errorf("fleet %s: stdout:\n%s\nwant %s", strings.Join(args, " "), w.stdout.String(), out)
	}
	if !regexp.MustCompile(err).MatchString(w.stderr.String()) {
		t.Errorf("fleet %s: stderr:\n%s\nwant %s", strings.Join(args, " "), w.stderr.String(), err)
	}
}

// newest is the ID of the newest command.
func (w *world) newest(t *testing.T) string {
	t.Helper()
	w.check(t, 0, `^[0-9a-f-]{36}\n$`, ``, "command", "ls", "--limit", "1", "-o", "name")
	return strings.TrimSpace(w.stdout.String())
}

func TestRunWhereAndHow(t *testing.T) {
	w, _ := startFleet(t, 3, 1)
	nasty := "\"; rm -rf / #\n'$(id)`id`\\ \t*{{ commands }}é"
	dir := shortDir(t)
	script := filepath.Join(dir, "check.sh")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Where.
	w.check(t, 0, `^node\[01-02\] \(2\)\n  x\n$`, ``, "run", "node[01-02]", "--", "echo", "x")
	w.check(t, 0, `^node\[01,03\] \(2\)\n`, ``, "run", "-w", "node[01-03]!node02", "echo", "x")
	w.check(t, 0, `^node\[01,03\] \(2\)\n`, ``, "run", "--all", "--exclude", "node02", "--", "echo", "x")
	w.check(t, 0, `^node03 \(1\)\n`, ``, "run", "-l", "env=dev", "-x", "node02", "--", "echo", "x")
	w.check(t, 0, `^node\[01-03\] \(3\)\n`, ``, "run", "-w", "@*", "--", "echo", "x")
	w.check(t, 0, `^node02 \(1\)\n`, ``, "run", "-w", "*2", "--", "echo", "x")
	w.check(t, 1, `^$`, `there are no nodes node\[04-09\]\n`, "run", "-w", "node[01-09]", "--", "echo", "x")
	w.check(t, 1, `^$`, `there is no node "nodo02"\nhint: +did you mean node02\?`, "run", "--all", "-x", "nodo02", "--", "echo", "x")
	w.check(t, 1, `^$`, `no node matches`, "run", "--all", "-x", "@*", "--", "echo", "x")
	w.check(t, 0, `(?s)^NAME.*node01.*node03`, `^2 hosts would run it\n$`, "run", "--all", "-x", "node02", "--dry-run", "--", "rm", "-rf", "/")

	// What.
	w.check(t, 0, `  \|`+regexp.QuoteMeta(strings.ReplaceAll(escape(nasty), "\n", "\n  "))+`\|\n`, ``,
		"run", "-w", "node01", "--env", "V="+nasty, "--env", "E=", "--", `printf '|%s|%s' "$V" "$E"; test "${E-x}" = ""`)
	w.check(t, 0, `  \| a,b=c \|\|\|\n`, ``, "run", "-w", "node01", "-e", "V= a,b=c ", "-e", "E=", "--", `echo "|$V||$E|"`)
	w.check(t, 0, `  /usr/bin\n`, ``, "run", "-w", "node01", "--workdir", "/usr/bin", "--", "pwd")
	w.check(t, 64, `^$`, `--env "V" is not NAME=VALUE`, "run", "-w", "node01", "--env", "V", "--", "x")
	w.check(t, 64, `^$`, `"1V" is not the name of a variable`, "run", "-w", "node01", "--env", "1V=x", "--", "x")
	w.check(t, 64, `^$`, `LD_PRELOAD may not be set: it would make other code run`, "run", "-w", "node01", "--env", "LD_PRELOAD=secret", "--", "x")
	if strings.Contains(w.stderr.String(), "secret") {
		t.Errorf("a value is shown: %s", w.stderr.String())
	}
	w.check(t, 64, `^$`, `fleet's own`, "run", "-w", "node01", "--env", "FLEET_X=1", "--", "x")
	w.check(t, 64, `^$`, `not UTF-8`, "run", "-w", "node01", "--env", "V=\xff", "--", "x")
	w.check(t, 64, `^$`, `cannot travel`, "run", "-w", "node01", "--", "echo \xff")
	w.check(t, 64, `^$`, `--shell "zsh" is none of auto, sh, bash, powershell`, "run", "-w", "node01", "--shell", "zsh", "--", "x")
	w.check(t, 2, `^$`, `PowerShell is not installed on this host`, "run", "-w", "node01", "--shell", "powershell", "--", "x")
	write("#!/usr/bin/env -S sed -n 2p\nsecond\n")
	w.check(t, 0, `  second\n`, ``, "run", "-w", "node01", "--script", script)
	write("#!/nonexistent\necho by sh\n")
	w.check(t, 0, `  by sh\n`, ``, "run", "-w", "node01", "--script", script, "--shell", "sh")
	w.check(t, 0, `^node01 \(1\)\n`, ``, "run", "--shell", "sh", "--script", script, "-w", "node01")
	w.stdin.WriteString("echo from stdin\n")
	w.check(t, 0, `  from stdin\n`, ``, "run", "-w", "node01")
	w.stdin.WriteString("echo from stdin\n")
	w.check(t, 0, `  from stdin\n`, ``, "run", "-w", "node01", "-")
	w.stdin.WriteString("echo from stdin\n")
	w.check(t, 0, `  from stdin\n`, ``, "run", "-w", "node01", "--script", "-")
	w.check(t, 64, `^$`, `what should run\? The standard input is empty`, "run", "-w", "node01")
	w.check(t, 64, `^$`, `--diff and --no-fold exclude each other`, "run", "--all", "--diff", "--no-fold", "--", "x")

	// How answers are shown.
	w.check(t, 0, `(?s)^node\[01,03\] \(2\)\n  a\n  b\nnode02 \(1\)  differs from node\[01,03\]\n  @@ -1,2 \+1,2 @@\n   a\n  -b\n  \+\\x1b\[31mc\n$`, ``,
		"run", "--all", "--diff", "--", `echo a; case $FLEET_NODE_ID in `+w.id(t, "node02")+`) printf '\033[31mc\n';; *) echo b;; esac`)
	w.check(t, 2, `(?s)^node\[01,03\] \(2\)\n  a\nnode02 \(1\)  Failed, exit code 3  differs from node\[01,03\]\n  \(the same output\)\n$`, `2 Success, 1 Failed of 3`,
		"run", "--all", "--diff", "--", `echo a; test $FLEET_NODE_ID != `+w.id(t, "node02")+` || exit 3`)
}

// id is the ID of a host.
func (w *world) id(t *testing.T, name string) string {
	t.Helper()
	w.check(t, 0, `^mi-[0-9a-f]{17}\n$`, ``, "node", "ls", name, "-o", "name")
	return strings.TrimSpace(w.stdout.String())
}

const hostileScript = `printf 'plain\n=cmd|calc\n\033]0;owned\007 match\n\377\n'; echo 'err match' >&2`

func TestCommandVerbs(t *testing.T) {
	w, _ := startFleet(t, 3, 1)
	dir := shortDir(t)

	// ls and its filters.
	w.check(t, 1, `^$`, `no command has run yet`, "command", "grep", "x")
	w.check(t, 2, ``, ``, "run", "--all", "--", `echo hello; test $FLEET_NODE_ID != `+w.id(t, "node02")+` || exit 3`)
	failed := w.newest(t)
	w.check(t, 0, ``, ``, "run", "node[01-02]", "--", hostileScript)
	id := w.newest(t)
	w.check(t, 0, `^`+id+`\n`+failed+`\n$`, ``, "command", "ls", "--since", "1h", "-o", "name")
	w.check(t, 0, `^$`, ``, "command", "ls", "--since", time.Now().Add(time.Hour).Format("2006-01-02T15:04"), "-o", "name")
	w.check(t, 0, `^`+failed+`\n$`, ``, "command", "ls", "--node", "node03", "-o", "name")
	w.check(t, 0, `^`+failed+`\n$`, ``, "command", "ls", "--status", "Failed", "--document", shellDocument, "-o", "name")
	w.check(t, 0, `^$`, ``, "command", "ls", "--operator", "nobody", "-o", "name")
	w.check(t, 0, `COMMAND +REQUESTED +BY +STATUS`, ``, "command", "ls")
	by := regexp.MustCompile(`\d\d:\d\d:\d\d +(\S+)`).FindStringSubmatch(w.stdout.String())
	if by == nil {
		t.Fatalf("nobody sent it: %s", w.stdout.String())
	}
	w.check(t, 0, `^`+id+`\n`+failed+`\n$`, ``, "command", "ls", "--operator", by[1], "-o", "name")
	w.check(t, 64, `^$`, `--since "yesterday" is neither a duration nor a time\nhint: +for example 2h`, "command", "ls", "--since", "yesterday")

	// attach and show.
	w.check(t, 2, `^node\[01-03\]|(?s)^node\[01,03\] \(2\)\n  hello\nnode02 \(1\)  Failed, exit code 3\n  hello\n$`, `2 Success, 1 Failed of 3`, "command", "attach", failed)
	w.check(t, 2, `(?m)^node02: hello$`, ``, "command", "attach", failed, "--no-fold")
	w.check(t, 0, `(?s)^command .*by  +`+by[1]+`.*node02 +mi-.* Failed`, `(?s)output: fleet command output.*not successful:\n  node02  Failed.*\n    read the output above, or fleet command output `+failed+` node02 --stderr`,
		"command", "show", failed)
	w.check(t, 1, `^$`, `there is no command`, "command", "attach", "00000000-0000-4000-8000-000000000000")

	// A command's ID is long; its beginning will do, and the newest is "last".
	w.check(t, 0, `^`+id+`\n$`, ``, "command", "show", "last", "-o", "name")
	w.check(t, 0, `^`+failed+`\n$`, ``, "command", "show", failed[:9], "-o", "name")
	w.check(t, 0, `^node02: hello\n`, `^$`, "command", "output", failed[:9], "node[02]")
	w.check(t, 0, `^node01:1:hello\n`, `^$`, "command", "grep", "hello", failed[:9])
	w.check(t, 1, `^$`, `none of the newest 2 commands begins with 00000000-0000\nhint: .*command ls`, "command", "show", "00000000-0000")
	w.check(t, 64, `^$`, `"las"`, "command", "show", "las")
	w.check(t, 64, `^$`, `"abc"`, "command", "attach", "abc")

	// output of several.
	w.check(t, 0, `^node01: hello\nnode02: hello\n$`, `^$`, "command", "output", failed, "node[01-02]")
	w.check(t, 0, `(?m)^node02: \\x1b\]0;owned\\x07 match\nnode02: \\xff$`, `^$`, "command", "output", id, "node01", "node02")
	w.check(t, 0, `^node01! err match\nnode02! err match\n$`, ``, "command", "output", id, "node[01-02]", "--stderr")
	w.check(t, 2, `^node01: plain\n`, `node03: the command .* was not sent to`, "command", "output", id, "node[01,03]")
	w.check(t, 0, "^node01: plain\nnode01: =cmd.calc\nnode01: \x1b", ``, "command", "output", id, "node[01]", "--raw")

	// grep.
	w.check(t, 0, `^node01:3:\\x1b\]0;owned\\x07 match\nnode01!1:err match\nnode02:3:.*\nnode02!1:err match\n$`, `^$`, "command", "grep", "match")
	w.check(t, 0, `^node01:2\nnode02:2\n$`, ``, "command", "grep", "-c", "match", id)
	w.check(t, 0, `^node01:0\nnode02:1\nnode03:0\n$|^node01:1\nnode02:1\nnode03:1\n$`, ``, "command", "grep", "-c", "-i", "HELLO", failed)
	w.check(t, 0, `^node01\nnode02\n$`, ``, "command", "grep", "-l", "match")
	w.check(t, 0, `^`+id[:8]+` node01:1:plain\n.*\n`+failed[:8]+` node01:1:hello\n`, ``, "command", "grep", "plain|hello", "--last", "2")
	w.check(t, 0, `(?m)^node01:1:plain\nnode01:2:=cmd\|calc\nnode01:4:\\xff$`, ``, "command", "grep", "-v", "match")
	w.check(t, 0, `"Line": 3,`, ``, "command", "grep", "match", "-o", "json")
	w.check(t, 1, `^$`, `^$`, "command", "grep", "nothing like it")
	w.check(t, 64, `^$`, `PATTERN: missing closing \)`, "command", "grep", "(")
	w.check(t, 64, `^$`, `"xx"`, "command", "grep", "x", "xx")

	// export.
	file := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	w.check(t, 0, `^$`, `out.json: 2 hosts of 2\n`, "command", "export", id, filepath.Join(dir, "out.json"))
	var r runResult
	if err := json.Unmarshal(file("out.json"), &r); err != nil || len(r.Invocations) != 2 || !bytes.HasSuffix(r.Invocations[0].Stdout.Bytes, []byte("\xff\n")) || r.Invocations[0].Stderr.Text != "err match\n" {
		t.Errorf("json: %v %+v", err, r)
	}
	w.check(t, 1, `^$`, `out.json is there already`, "command", "export", id, filepath.Join(dir, "out.json"))
	w.check(t, 0, `^$`, ``, "command", "export", id, filepath.Join(dir, "d"))
	if got := string(file("d/node01.out")); got != "plain\n=cmd|calc\n\x1b]0;owned\x07 match\n\xff\n" {
		t.Errorf("node01.out: %q", got)
	}
	if got := string(file("d/node02.err")); got != "err match\n" {
		t.Errorf("node02.err: %q", got)
	}
	if info, err := os.Stat(filepath.Join(dir, "d", "node01.out")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v", info.Mode(), err)
	}
	if !bytes.Contains(file("d/index.json"), []byte(`"ErrFile": "node02.err"`)) {
		t.Errorf("index: %s", file("d/index.json"))
	}
	w.check(t, 0, `^command,node,`, `^$`, "command", "export", id, "-", "-o", "csv")
	rows, err := csv.NewReader(&w.stdout).ReadAll()
	if err != nil || len(rows) != 3 || rows[1][1] != "node01" || !strings.Contains(rows[1][9], `\x1b]0;owned\x07 match`) {
		t.Errorf("csv: %v %q", err, rows)
	}
	w.check(t, 0, ``, ``, "run", "-w", "node01", "--", "echo '=1+1'; head -c 100000 /dev/zero | tr '\\0' x; echo")
	long := w.newest(t)
	w.check(t, 0, ``, ``, "command", "export", long, filepath.Join(dir, "long.csv"))
	if rows, err := csv.NewReader(bytes.NewReader(file("long.csv"))).ReadAll(); err != nil || !strings.HasPrefix(rows[1][9], "'=1+1\n") || len(rows[1][9]) != 100_007 {
		t.Errorf("long csv: %v, %d bytes", err, len(rows[1][9]))
	}
	w.check(t, 0, `^node01:1\n$`, `^$`, "command", "grep", "-c", "=", long)

	// rerun.
	w.check(t, 2, `(?s)^node02 \(1\)  Failed, exit code 3`, `^again on node02 \(1\): echo hello; test`, "command", "rerun", failed, "--failed")
	w.check(t, 2, `node\[01,03\] \(2\)`, `again on node\[01-03\] \(3\)`, "command", "rerun", failed)
	w.check(t, 0, `node03 \(1\)\n  hello`, ``, "command", "rerun", failed, "--node", "node03")
	w.check(t, 0, `node02`, `^1 host would run it`, "command", "rerun", failed, "--failed", "--dry-run")
	w.check(t, 1, `^$`, `no host of this command has failed`, "command", "rerun", id, "--failed")
	w.check(t, 1, `^$`, `none of these hosts had this command`, "command", "rerun", id, "--node", "node03")
	w.check(t, 0, `^[0-9a-f-]{36}\n$`, `again on node\[01-02\] \(2\)`, "command", "rerun", id, "--detach")
	if again := strings.TrimSpace(w.stdout.String()); again == id {
		t.Error("it is the same command")
	}
}

// Ctrl-C on a terminal asks; Enter waits on, d stops waiting.
func TestInterruptOnATerminal(t *testing.T) {
	w, _ := startFleet(t, 1, 1)
	dir := shortDir(t)
	w.inTTY, w.errTTY = true, true
	w.vars["TERM"] = "dumb" // no progress
	begin := func(answer string) (interrupt func(), done chan int) {
		ctx, cancel := context.WithCancelCause(t.Context())
		w.stdin.Reset()
		w.stdin.WriteString(answer)
		w.stdout.Reset()
		w.stderr.Reset()
		w.again = func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }
		done = make(chan int, 1)
		began, end := filepath.Join(dir, "began"), filepath.Join(dir, "end")
		_ = os.Remove(began)
		go func() {
			done <- w.main(ctx, []string{"fleet", "run", "--all", "--", "touch " + began + "; while ! test -e " + end + "; do sleep 0.1; done; echo over"})
		}()
		await(t, began)
		return func() { cancel(interrupted{os.Interrupt}) }, done
	}
	interrupt, done := begin("d\n")
	interrupt()
	if code := <-done; code != ExitFailed || !regexp.MustCompile(`(?s)1 without an answer yet of 1: fleet command attach .*\n\[d\]etach.*goes on; wait for it again: fleet command attach [0-9a-f-]{36}\n$`).MatchString(w.stderr.String()) {
		t.Errorf("detached: exit %d: %s", code, w.stderr.String())
	}
	interrupt, done = begin("\n")
	interrupt()
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != ExitDone || !strings.Contains(w.stdout.String(), "  over\n") || !strings.Contains(w.stderr.String(), "[d]etach") {
		t.Errorf("waited on: exit %d: %s%s", code, w.stdout.String(), w.stderr.String())
	}
	if err := os.Remove(filepath.Join(dir, "end")); err != nil {
		t.Fatal(err)
	}
	interrupt, done = begin("c\n")
	interrupt()
	if code := <-done; code != ExitSome || !strings.Contains(w.stderr.String(), "cancelled; waiting") ||
		!strings.Contains(w.stderr.String(), "1 Cancelled of 1") || !strings.Contains(w.stderr.String(), " --failed\n") {
		t.Errorf("cancelled: exit %d: %s%s", code, w.stdout.String(), w.stderr.String())
	}
	// SIGTERM does not ask: nobody may be there.
	if w.whatNow(nil, newAnswers("c"), interrupted{syscall.SIGTERM}, &progress{}, nil) != nil {
		t.Error("it was asked about")
	}
}

func TestProgressText(t *testing.T) {
	a := newAnswers("c")
	a.counts = fleet.CommandEvent{TargetCount: 200, CompletedCount: 50, ErrorCount: 2, InProgressCount: 30}
	a.expected = map[fleet.NodeID]string{"mi-1": "web1", "mi-2": "web2"}
	now := time.Unix(1000, 0)
	if got, want := progressText(a, 10*time.Second, now), "50 of 200 done, 2 failed, 30 running, 10s (5.0/s, about 30s left), waiting for web[1-2]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.counts = fleet.CommandEvent{TargetCount: 3, CompletedCount: 1}
	if got, want := progressText(a, 100*time.Millisecond, now), "1 of 3 done, 0.1s, waiting for web[1-2]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// Two are down.
	a.counts = fleet.CommandEvent{TargetCount: 4, CompletedCount: 1, InProgressCount: 1, GivenUp: fleet.InstantOf(now.Add(80 * time.Second).UnixNano())}
	if got, want := progressText(a, 10*time.Second, now), "1 of 4 done, 1 running, 10s, 2 not reached, given up in 80s, waiting for web[1-2]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.counts = fleet.CommandEvent{TargetCount: 40, CompletedCount: 12, ErrorCount: 1, InProgressCount: 3, ReleasedCount: 1, StagedCount: 24}
	a.open = map[fleet.NodeID]fleet.InvocationEvent{
		"a": {Name: "web1", StatusDetails: "InProgress"}, "b": {Name: "web2", StatusDetails: "Released"}, "c": {Name: "web3", StatusDetails: "Staged"},
	}
	if got, want := progressText(a, time.Minute, now), "12 of 40 done, 1 failed, 3 running, 1 to begin, 24 waiting for their turn, 60s (0.2/s, about 2m left), waiting for web[1-2]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.counts = fleet.CommandEvent{TargetCount: 40, CompletedCount: 38, ErrorCount: 3, InProgressCount: 2, TerminatedCount: 20}
	delete(a.open, "c")
	if got, want := progressText(a, time.Minute, now), "38 of 40 done, 3 failed, 2 running, stopped after too many errors"; !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCSVCell(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "text": "text", "=1+1": "'=1+1", "+cmd": "'+cmd", "-1": "-1", "-x": "'-x", "@SUM(A1)": "'@SUM(A1)", "  =x": "'  =x",
		"\t=x": "'\t=x", "\tx": "'\tx", "a\n=b": "a\n=b", "1e9": "1e9", "\x1b[31m": `\x1b[31m`, "\r=x": `\r=x`, "\n=x": "'\n=x",
	} {
		if got := csvCell(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestFileName(t *testing.T) {
	for in, want := range map[string]string{
		"web1.example.org": "web1.example.org", "../../etc/passwd": "etc-passwd", ".hidden": "hidden", "a/b\\c": "a-b-c", "a\x00b": "a-b", "": "",
		"-rf": "rf", "NUL": "host-NUL", "con.x": "host-con.x", "é": "", strings.Repeat("x", 300): strings.Repeat("x", 200),
	} {
		if got := fileName(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 7, 7, 12, 0, 0, 0, time.FixedZone("x", 7200))
	for text, want := range map[string]string{
		"2h": "2026-07-07T08:00:00Z", "90": "", "90s": "2026-07-07T09:58:30Z", "7d": "2026-06-30T10:00:00Z", "2026-07-07": "2026-07-06T22:00:00Z",
		"2026-07-07T09:30": "2026-07-07T07:30:00Z", "2026-07-07 09:30:05": "2026-07-07T07:30:05Z", "2026-07-07T09:30:00Z": "2026-07-07T09:30:00Z",
		"yesterday": "", "": "", "-5m": "", "0": "", "2026-13-01": "",
	} {
		got, err := parseSince(text, now)
		if (err != nil) != (want == "") || err == nil && got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: got %v, %v; want %s", text, got, err, want)
		}
	}
}

func TestEachLine(t *testing.T) {
	long := strings.Repeat("x", maxGrepLine)
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil}, {"a", []string{"1a"}}, {"a\n\nb\n", []string{"1a", "2", "3b"}}, {long + "y\nz", []string{"1" + long, "1y", "2z"}},
		{long + "\nz\n", []string{"1" + long, "2z"}},
	} {
		var got []string
		err := eachLine(strings.NewReader(c.in), func(n int, line []byte) error {
			got = append(got, fmt.Sprintf("%d%s", n, line))
			return nil
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%.20q: got %.60q, %v", c.in, got, err)
		}
	}
}

func TestLineWriter(t *testing.T) {
	for _, escaped := range []bool{true, false} {
		var out bytes.Buffer
		w := newLineWriter(&out, "h: ", escaped)
		for _, part := range []string{"a", "b\nc\n\n\xc3", "\xa9\x1b", "z"} {
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		want := "h: ab\nh: c\nh: \nh: é\x1bz\n"
		if escaped {
			want = strings.ReplaceAll(want, "\x1b", `\x1b`)
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

// More than fifty hosts are asked about, however they were selected, where
// somebody can answer.
func TestManyHostsAreAskedAbout(t *testing.T) {
	for _, c := range []struct {
		line   string
		tty    bool
		hosts  int
		answer string
		ok     bool
		asked  bool
	}{
		{"run -w web[1-50] -- x", true, 50, "n\n", true, false},
		{"run -w web[1-51] -- x", true, 51, "n\n", false, true},
		{"run --all -- x", true, 51, "y\n", true, true},
		{"run --all -- x", true, 5000, "\n", false, true},
		{"run --all -y -- x", true, 5000, "n\n", true, false},
		{"run --all -- x", false, 5000, "n\n", true, false},
	} {
		w := newWorld(t)
		w.inTTY = c.tty
		w.stdin.WriteString(c.answer)
		err := w.confirmMany(runContext(t, c.line), c.hosts)
		if (err == nil) != c.ok || strings.Contains(w.stderr.String(), fmt.Sprintf("Run on %d hosts? [y/N]", c.hosts)) != c.asked {
			t.Errorf("%s, %d hosts: %v, %q", c.line, c.hosts, err, w.stderr.String())
		}
	}
}

// The line of the progress is not written at each of thousands of answers.
func TestProgressIsPaced(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, began: testNow}
	a := newAnswers("c")
	for i := range 1000 {
		p.show(a, testNow.Add(time.Duration(i)*time.Millisecond))
	}
	if n := strings.Count(out.String(), "\r"); n != 10 {
		t.Errorf("written %d times in a second, want 10", n)
	}
	p.clear()
	p.show(a, testNow.Add(1001*time.Millisecond)) // what was cleared is written again
	if n := strings.Count(out.String(), "done"); n != 11 {
		t.Errorf("written %d times after it was cleared, want 11", n)
	}
}
