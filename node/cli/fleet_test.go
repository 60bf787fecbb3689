package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/devfleet"
)

// startFleet starts a fleet and gives a world that speaks to it, as DIR/env
// would make one.
func startFleet(t *testing.T, nodes, voters int) (*world, *devfleet.Fleet) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	f, err := devfleet.Start(t.Context(), devfleet.Options{
		Dir: filepath.Join(shortDir(t), "f"), Nodes: nodes, Quorum: voters, Version: "1.2.3", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := f.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	path, err := f.WriteEnv()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.now = time.Now
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok {
			t.Fatalf("line %q of %s", line, path)
		}
		w.vars[name] = strings.Trim(value, "'")
	}
	return w, f
}

// shortDir is a directory whose path leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestVerbs(t *testing.T) {
	w, _ := startFleet(t, 3, 1)
	var command string // ID of the last one
	steps := []struct {
		args     string
		code     int
		out, err string // patterns
	}{
		{"status", 0, `(?s)host +node01.*quorum +reached.*nodes +3  3 Online`, `^WARNING  one voter.*\n +fleet quorum add.*\n$`},
		{"status -o name", 0, `^dev\n$`, ``},
		{"status -o json", 0, `"LeaderName": "node01"`, ``},
		{"node ls", 0, `(?s)NAME +ID +ROLE.*node01 .* leader +Online.*node02 .*env=dev`, ``},
		{"nodes list -o name", 0, `^(mi-[0-9a-f]{17}\n){3}$`, ``},
		{"node ls --label env=dev -o yaml", 0, `(?s)Nodes:.*Name: node0[23]`, ``},
		{"node ls --label env=prod", 0, `^NAME[^\n]*\n$`, ``},
		{"node ls nothere", 1, ``, `there is no node "nothere"\nhint: +see which there are: fleet node ls`},
		{"node show node02", 0, `(?m)^labels +env=dev$`, ``},
		{"node label node02 rack=b7 env=prod", 0, `node02  env=prod rack=b7`, ``},
		{"node label node02 rack-", 0, `node02  env=prod\n`, ``},
		{"node label node02 aws:x=y", 64, ``, `label key`},
		{"run --all -- echo hello", 0, `^node\[01-03\] \(3\)\n  hello\n$`, `^3 Success of 3, `},
		{"run --all echo -n hello --all", 0, `  hello --all\n`, ``},
		{"run --node node01,node03 -- echo some", 0, `^node\[01,03\] \(2\)\n  some\n$`, `2 Success of 2`},
		{"run -l env=dev,prod -- echo labelled", 0, `^node\[02-03\] \(2\)`, ``},
		{"run -l env=none -- true", 1, ``, `no node matches`},
		{"command ls --limit 1", 0, `\n.*echo labelled`, ``}, // that one was not sent
		{"run --node nothere -- true", 1, ``, `there is no node "nothere"`},
		{"run --all -- echo out; echo err >&2; exit 3", 2, `^node\[01-03\] \(3\)  Failed, exit code 3\n  out\n  stderr:\n    err\n$`,
			`(?s)3 Failed of 3.*not successful:\n  node\[01-03\]  Failed, exit code 3\n    read the output`},
		{"run --all --no-fold --node-typo -- x", 64, ``, `no flag "--node-typo"`},
		{"run --all --no-fold -- echo a; echo b >&2", 0, `(?m)^node02: a\nnode02! b$`, ``},
		{"run --node node01 --timeout 5s -- sleep 60", 2, ``, `(?s)1 ExecutionTimedOut of 1.*raise --timeout`},
		{"run --all --dry-run -- rm -rf /", 0, `(?s)NAME +ID.*node03`, `3 hosts would run it`},
		{"run --all --detach -- echo later", 0, `^[0-9a-f-]{36}\n$`, `^wait for its answers: fleet command attach [0-9a-f-]{36}\n$`},
		{"command show LAST", 0, `(?s)what +echo later.*node01.*`, ``},
		{"command output LAST", 0, `node\[01-03\] \(3\)\n  later`, `3 Success`},
		{"command output LAST node02", 0, `^later\n$`, ``},
		{"command output LAST node02 --stderr", 0, `^$`, ``},
		{"command output 00000000-0000-4000-8000-000000000000", 1, ``, `^error: [^\n]*(\nhint:[^\n]*)?\n$`},
		{"run --node node01 --timeout 1m -- head -c 12000000 /dev/zero | tr '\\0' x", 0, `of 11.4 MiB, of which 10 MiB are kept: fleet command output [0-9a-f-]{36} node01\n`, ``},
		{"run --node node01 --no-fold -- head -c 12000000 /dev/zero | tr '\\0' x", 0, `node01: \.\.\. of 11.4 MiB, of which 10 MiB are kept: fleet command output [0-9a-f-]{36} node01\n`, ``},
		{"command output LAST node02 --step none", 1, ``, `name one of the steps: runShellScript`},
		{"command ls --limit 2", 0, `^COMMAND.*(\n.*/dev/zero.*){2}\n$`, ``},
		{"command ls --status Failed -o name", 0, `^[0-9a-f-]{36}\n`, ``},
		{"command show 00000000-0000-4000-8000-000000000000", 1, ``, `there is no command`},
		{"node rm node03", 64, ``, `Remove 1 host from the fleet dev for good: node03 \(mi-[0-9a-f]{17}\)\?\nhint: +there is no terminal`},
		{"node rm nothere --yes", 1, ``, `there is no node "nothere"`},
		{"node rm node01 --yes", 1, ``, `node01 \(mi-[0-9a-f]{17}\) is of the quorum: it cannot leave the fleet, be removed or be replaced\nhint`},
		{"node rm node03 node03 --yes", 0, `^removed node03 mi-[0-9a-f]{17}\n$`, `^$`},
		{"node ls", 0, `^NAME[^\n]*\nnode01[^\n]*\nnode02[^\n]*\n$`, ``},
		{"node ls --removed", 0, `^NAME[^\n]*REMOVED[^\n]*\nnode03 +mi-[^\n]* dev `, ``},
		{"node show node03", 0, `(?m)^removed +.* by dev$`, ``},
		{"node rm node03 --yes", 1, ``, `there is no node "node03"`},
		{"run --all -- echo left", 0, `^node\[01-02\] \(2\)`, ``},
		{"command output LAST", 0, `node\[01-03\] \(3\)\n  later`, `3 Success`},
		{"quorum ls", 0, `(?s)node01 .* leader +yes `, `1 voter to sign`},
		{"activation create --limit 2 --label env=test --name spare -o json", 0, `"Token": "fleet1_`, ``},
		{"activation ls", 0, `0/2 +in 23h +spare +env=test`, ``},
		{"activation rm 00000000-0000-4000-8000-000000000000", 1, ``, `(?i)activation`},
		{"quorum add node02 --root-key /nowhere", 1, ``, `/nowhere`},
	}
	for _, s := range steps {
		t.Run(s.args, func(t *testing.T) {
			code := w.run(t, words(strings.ReplaceAll(s.args, "LAST", command))...)
			if code != s.code {
				t.Errorf("exit %d, want %d", code, s.code)
			}
			if !regexp.MustCompile(s.out).MatchString(w.stdout.String()) {
				t.Errorf("stdout:\n%s\nwant %s", w.stdout.String(), s.out)
			}
			if !regexp.MustCompile(s.err).MatchString(w.stderr.String()) {
				t.Errorf("stderr:\n%s\nwant %s", w.stderr.String(), s.err)
			}
			if strings.Contains(s.args, "--detach") {
				command = strings.TrimSpace(w.stdout.String())
			}
		})
	}
}

// words splits a line at spaces; what follows a double dash is one word.
func words(line string) []string {
	before, after, ok := strings.Cut(line, " -- ")
	all := strings.Fields(before)
	if ok {
		all = append(all, "--", after)
	}
	return all
}

// What a host writes reaches the reader as text.
func TestRunEscapesHostileOutput(t *testing.T) {
	w, _ := startFleet(t, 1, 1)
	const script = `printf '\033]0;owned\007\nweb9 (1)\n\342\200\256gnp.exe\n\377\n'`
	if code := w.run(t, "run", "--all", "--", script); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	want := "node01 (1)\n  \\x1b]0;owned\\x07\n  web9 (1)\n  \\u202egnp.exe\n  \\xff\n"
	if got := w.stdout.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if code := w.run(t, "run", "--all", "-o", "json", "--", script); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	var r runResult
	if err := json.Unmarshal(w.stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Invocations) != 1 || len(r.Invocations[0].Stdout.Bytes) == 0 || r.Command.SuccessCount != 1 {
		t.Errorf("got %+v", r)
	}
	if code := w.run(t, "run", "--all", "--raw", "--", "printf 'a\\033[31mb'"); code != 0 || !strings.Contains(w.stdout.String(), "a\x1b[31mb") {
		t.Errorf("raw: exit %d, %q", code, w.stdout.String())
	}
	w.outTTY = true
	if code := w.run(t, "run", "--all", "--raw", "--", "printf 'a\\033[31mb'"); code != 0 || strings.Contains(w.stdout.String(), "a\x1b[31mb") {
		t.Errorf("raw on a terminal: exit %d, %q", code, w.stdout.String())
	}
}

// Ctrl-C stops the waiting, not the command.
func TestInterruptedRun(t *testing.T) {
	w, _ := startFleet(t, 1, 1)
	marker := filepath.Join(shortDir(t), "done")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- w.main(ctx, []string{"fleet", "run", "--all", "--", "touch " + marker + ".began; sleep 2; touch " + marker})
	}()
	await(t, marker+".began")
	cancel()
	select {
	case got := <-code:
		if got != ExitFailed {
			t.Errorf("exit %d, want %d", got, ExitFailed)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it waits on")
	}
	if !regexp.MustCompile(`the command goes on; wait for it again: fleet command attach [0-9a-f-]{36}\n$`).MatchString(w.stderr.String()) {
		t.Errorf("stderr: %q", w.stderr.String())
	}
	await(t, marker)
}

// An answer that has come is shown although another host's is still missing,
// and who that is; --timeout ends the wait for it.
func TestPartialAnswers(t *testing.T) {
	w, _ := startFleet(t, 2, 1)
	first := filepath.Join(shortDir(t), "first")
	if code := w.run(t, "run", "--all", "--detach", "if mkdir "+first+"; then echo early; else sleep 5; fi"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.stderr.String())
	}
	id := strings.TrimSpace(w.stdout.String())
	if code := w.run(t, "command", "output", id, "--timeout", "3s"); code != ExitFailed {
		t.Errorf("exit %d, want %d", code, ExitFailed)
	}
	if !regexp.MustCompile(`^node0[12] \(1\)\n  early\n$`).MatchString(w.stdout.String()) {
		t.Errorf("stdout: %q", w.stdout.String())
	}
	want := `^1 Success, 1 without an answer yet of 2, .*\nno answer yet: node0[12]\nthe command goes on; wait for it again: .*\nerror: not done within 3s\nhint: .*\n$`
	if !regexp.MustCompile(want).MatchString(w.stderr.String()) {
		t.Errorf("stderr: %q", w.stderr.String())
	}
}

// An activation's name counts before the host's own, and what is asked of a
// host that does not vote is said to be that.
func TestJoinTakesTheActivationsName(t *testing.T) {
	w, f := startFleet(t, 2, 1)
	for i, tt := range []struct{ activation, own, want string }{
		{"box", "", "box"}, {"", "", "web1.example.net"}, {"box", "mine", "mine"},
	} {
		token := filepath.Join(shortDir(t), "t")
		create, join := []string{"activation", "create", "--token-file", token}, []string{"join", "--enroll-only", "--token-file", token,
			"--data-dir", filepath.Join(shortDir(t), "d"), "--listen", freePort(t)}
		if tt.activation != "" {
			create = append(create, "--name", tt.activation)
		}
		if tt.own != "" {
			join = append(join, "--node-name", tt.own)
		}
		if code := w.run(t, create...); code != 0 {
			t.Fatalf("case %d: exit %d: %s", i, code, w.stderr.String())
		}
		if code := w.run(t, join...); code != 0 || !strings.Contains(w.stdout.String(), "node        "+tt.want+"  mi-") {
			t.Errorf("case %d: exit %d: %s%s", i, code, w.stdout.String(), w.stderr.String())
		}
	}
	for _, n := range f.Nodes() {
		// An ordinary host passes on to the quorum.
		if code := w.run(t, "node", "ls", "--connect", n.Address()); code != 0 {
			t.Errorf("%s: exit %d: %s", n.Address(), code, w.stderr.String())
		}
	}
}

func await(t *testing.T, path string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not appear", path)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestRunAsksBeforeMany(t *testing.T) {
	w, _ := startFleet(t, 2, 1)
	w.inTTY = true
	w.stdin.WriteString("n\n")
	if code := w.run(t, "run", "--all", "--", "true"); code != 0 {
		t.Errorf("two hosts: exit %d: %s", code, w.stderr.String())
	}
	if !strings.Contains(w.stdin.String(), "n") {
		t.Error("two hosts were asked about")
	}
}

// freePort is a port that nobody uses now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The first hour, as a person types it: one host, a second, a third, a quorum.
func TestFirstHour(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	dir := shortDir(t)
	w := newWorld(t)
	w.now = time.Now
	w.vars["HOME"] = w.home
	key := filepath.Join(dir, "acme.key")
	must := func(args ...string) string {
		t.Helper()
		if code := w.run(t, args...); code != 0 {
			t.Fatalf("fleet %s: exit %d\n%s%s", strings.Join(args, " "), code, w.stdout.String(), w.stderr.String())
		}
		return w.stdout.String()
	}
	mustFail := func(code int, want string, args ...string) {
		t.Helper()
		if got := w.run(t, args...); got != code || !regexp.MustCompile(want).MatchString(w.stderr.String()) {
			t.Errorf("fleet %s: exit %d, want %d\n%s\nwant %s", strings.Join(args, " "), got, code, w.stderr.String(), want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer cancel()
	agent := func(data, addr string) {
		t.Helper()
		a := newWorld(t)
		a.now = time.Now
		agents.Go(func() {
			if code := a.main(ctx, []string{"fleet", "agent", "--data-dir", data, "--listen", addr, "--advertise", addr, "--log-level", "error"}); code != 0 {
				t.Errorf("agent of %s: exit %d: %s", data, code, a.stderr.String())
			}
		})
		deadline := time.Now().Add(30 * time.Second)
		probe := newWorld(t)
		for {
			code := probe.main(ctx, []string{"fleet", "status", "--socket", filepath.Join(data, "fleet.sock")})
			if code == 0 && strings.Contains(probe.stdout.String(), "reached, last answer") && !strings.Contains(probe.stdout.String(), "not reached") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the agent of %s is not ready: %s%s", data, probe.stdout.String(), probe.stderr.String())
			}
			probe.stdout.Reset()
			time.Sleep(50 * time.Millisecond)
		}
	}
	data := func(i int) string { return filepath.Join(dir, fmt.Sprintf("d%d", i)) }

	addr1 := freePort(t)
	host1 := []string{"--data-dir", data(1), "--listen", addr1, "--node-name", "host1", "--enroll-only"}
	mustFail(64, `root key would lie in the data directory`, append([]string{"init", "--name", "acme", "--root-key", filepath.Join(data(1), "k")}, host1...)...)
	out := must(append([]string{"init", "--name", "acme", "--root-key", key}, host1...)...)
	for _, want := range []string{"root key    " + key + "   store it offline", `credential  ~/.config/fleet/acme   yours: operator "`} {
		if !strings.Contains(out, want) {
			t.Errorf("init says\n%s\nwithout %s", out, want)
		}
	}
	mustFail(1, `already holds host mi-`, append([]string{"init", "--name", "acme", "--root-key", key + "2"}, host1...)...)
	agent(data(1), addr1)
	mustFail(1, `taken|answers|running|use`, "agent", "--data-dir", data(1), "--listen", addr1)

	token := filepath.Join(dir, "t")
	must("activation", "create", "--limit", "2", "--label", "env=prod", "--token-file", token)
	if info, err := os.Stat(token); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token file: %v, %v", info.Mode(), err)
	}
	mustFail(1, `--token-file`, "activation", "create", "--token-file", token) // it is there already
	for i := 2; i <= 3; i++ {
		addr := freePort(t)
		must("join", "--token-file", token, "--data-dir", data(i), "--listen", addr, "--node-name", fmt.Sprintf("host%d", i), "--enroll-only")
		agent(data(i), addr)
	}
	mustFail(1, `spent`, "join", "--token-file", token, "--data-dir", data(4), "--listen", freePort(t), "--node-name", "host4", "--enroll-only")

	// A lone second host stays eligible; the third makes a quorum.
	mustFail(64, `there is no terminal to answer on: say --yes`, "quorum", "add", "host2", "--root-key", key)
	out = must("quorum", "add", "host2", "--root-key", key, "--yes")
	if !strings.Contains(w.stderr.String(), "eligible: host2; one more host makes a quorum of 3") || !regexp.MustCompile(`host2 .* eligible`).MatchString(out) {
		t.Errorf("after one: %s%s", out, w.stderr.String())
	}
	fingerprint := regexp.MustCompile(`([0-9a-f]{4}-){7}[0-9a-f]{4}`)
	local := newWorld(t)
	local.run(t, "status", "--socket", filepath.Join(data(3), "fleet.sock"))
	shown := fingerprint.FindString(local.stdout.String())
	out = must("quorum", "add", "host3", "--root-key", key, "--yes")
	if shown == "" || !regexp.MustCompile(`host3 .* voter +`+shown).MatchString(w.stderr.String()) {
		t.Errorf("host3 says %q, quorum add showed\n%s", shown, w.stderr.String())
	}
	if !strings.Contains(w.stderr.String(), "2 voters to sign a ticket; trust version 2") {
		t.Errorf("after two: %s%s", out, w.stderr.String())
	}
	mustFail(1, `host3 votes already`, "quorum", "add", "host3", "--root-key", key, "--yes")
	if got := must("run", "--all", "--", "echo hello"); got != "host[1-3] (3)\n  hello\n" {
		t.Errorf("run: %q", got)
	}

	// The credential has learnt where the voters are.
	b, err := os.ReadFile(filepath.Join(w.home, ".config", "fleet", "acme"))
	if err != nil || strings.Count(string(b), "127.0.0.1:") != 3 {
		t.Errorf("credential: %v\n%s", err, regexp.MustCompile(`"key": "[^"]*"`).ReplaceAllString(string(b), ""))
	}

	// Without a credential: what this host knows, and no more.
	stranger := newWorld(t)
	stranger.vars["FLEET_SOCKET"] = filepath.Join(data(2), "fleet.sock")
	if code := stranger.run(t, "node", "ls"); code != 0 || !strings.Contains(stranger.stdout.String(), "host3") || !strings.Contains(stranger.stderr.String(), "own copy") {
		t.Errorf("node ls of a stranger: %d\n%s%s", code, stranger.stdout.String(), stranger.stderr.String())
	}
	if code := stranger.run(t, "run", "--all", "--", "id"); code != ExitNotAllowed || !strings.Contains(stranger.stderr.String(), "no operator credential for acme") {
		t.Errorf("run of a stranger: %d %s", code, stranger.stderr.String())
	}
}

func TestDev(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole fleet")
	}
	dir := filepath.Join(shortDir(t), "dev")
	w := newWorld(t)
	w.now = time.Now
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() { code <- w.main(ctx, []string{"fleet", "dev", "--nodes", "1", "--dir", dir}) }()
	await(t, filepath.Join(dir, "env"))
	cancel()
	select {
	case got := <-code:
		if got != 0 || !strings.Contains(w.stdout.String(), "1 node, 1 voter. In another terminal:\n\n  . "+filepath.Join(dir, "env")) {
			t.Errorf("exit %d\n%s%s", got, w.stdout.String(), w.stderr.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not stop")
	}
	w = newWorld(t)
	if got := w.run(t, "dev", "--nodes", "2", "--quorum", "3"); got != ExitUsage || !strings.Contains(w.stderr.String(), "3 voters of 2 nodes") {
		t.Errorf("exit %d: %s", got, w.stderr.String())
	}
}

// Without a quorum, status and quorum ls still say who is missing.
func TestWithoutQuorum(t *testing.T) {
	w, f := startFleet(t, 4, 3)
	leader := f.Leader()
	for _, n := range f.Nodes()[:3] { // the fourth does not vote
		if n != leader {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := n.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
	}
	// All at once: each waits until the host gives up waiting for a leader.
	var all sync.WaitGroup
	for args, want := range map[string]string{
		"quorum ls":             `(?s)node0. .* no .*node0. .* no `,
		"status --socket /none": `(?s)1 of 3 voters answer`,
		"run --all -- true":     `^$`,
	} {
		one := newWorld(t)
		one.vars, one.now = w.vars, time.Now
		all.Go(func() {
			if code := one.run(t, words(args)...); code != ExitNoQuorum {
				t.Errorf("%s: exit %d", args, code)
			}
			if !regexp.MustCompile(want).MatchString(one.stdout.String()) {
				t.Errorf("%s:\n%s\nwant %s", args, one.stdout.String(), want)
			}
			if !regexp.MustCompile(`(?s)no quorum: 1 of 3 voters.*hint: .*start fleet on node0`).MatchString(one.stderr.String()) {
				t.Errorf("%s: %s", args, one.stderr.String())
			}
		})
	}
	all.Wait()
	if code := w.run(t, "node", "ls", "--stale"); code != 0 || strings.Count(w.stdout.String(), "node0") < 3 {
		t.Errorf("node ls --stale: exit %d: %s%s", code, w.stdout.String(), w.stderr.String())
	}

	// An answer that did not come in time is that, whatever the reason.
	if code := w.run(t, "node", "ls", "--timeout", "1s"); code != ExitFailed ||
		!strings.Contains(w.stderr.String(), "error: no answer to DescribeNodes: not done within 1s\nhint:") {
		t.Errorf("short timeout: exit %d: %s", code, w.stderr.String())
	}

	// An ordinary host, without a credential, notices after a few heartbeats.
	ordinary := newWorld(t)
	ordinary.now = time.Now
	ordinary.vars["FLEET_SOCKET"] = strings.Replace(w.vars["FLEET_SOCKET"], "node01", "node04", 1)
	deadline := time.Now().Add(time.Minute)
	for ordinary.run(t, "status") == ExitDone && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	if code := ordinary.run(t, "status"); code != ExitNoQuorum || !strings.Contains(ordinary.stdout.String(), "not reached") ||
		!strings.Contains(ordinary.stderr.String(), "WARNING  this host does not reach the quorum") {
		t.Errorf("status of an ordinary host: exit %d: %s%s", code, ordinary.stdout.String(), ordinary.stderr.String())
	}
}
