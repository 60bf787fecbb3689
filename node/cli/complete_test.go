package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// fakeAgent is the local socket of an agent that has heard of these hosts.
func fakeAgent(t *testing.T, nodes ...fleet.LocalNode) (socket string) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/LocalNodes":
			_ = json.NewEncoder(w).Encode(fleet.LocalNodes{Nodes: nodes})
		default:
			http.NotFound(w, r)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return socket
}

// hostileNames try to run a command in the shell of who completes them.
var hostileNames = []string{
	"zulu$(touch PWNED)", "zulu`touch PWNED`", "zulu;touch PWNED", "zulu\ntouch PWNED", "zulu'", "zulu\"", "zulu|touch", "zulu&", "zulu>PWNED",
	"zulu\x1b[31m", "zulu\ttouch", "zulu*", "zulu~", "zulu!!", "zulu\\", "$(touch PWNED)", "-zulu", "zulu é", "zulu\u202e",
}

func testAgent(t *testing.T) (socket string) {
	t.Helper()
	nodes := []fleet.LocalNode{
		{InstanceId: "mi-00000000000000001", Name: "alpha1", Labels: map[string]string{"env": "prod", "rack": "b7"}},
		{InstanceId: "mi-00000000000000002", Name: "zebra1", Labels: map[string]string{"env": "test"}},
	}
	for _, name := range hostileNames {
		nodes = append(nodes, fleet.LocalNode{InstanceId: "mi-00000000000000003", Name: name, Labels: map[string]string{name: "x"}})
	}
	return fakeAgent(t, nodes...)
}

func TestComplete(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now
	w.vars["FLEET_SOCKET"] = testAgent(t)
	saveCredential(t, w, "acme")
	saveCredential(t, w, "beta")
	tests := []struct {
		line string
		want string // the mode, then the values
	}{
		{"fleet stat", ":values status"},
		{"fleet nod", ":values node"},
		{"fleet nodes sh", ":values show"},
		{"fleet node show ", ":values alpha1 zebra1"},
		{"fleet node show z", ":values zebra1"},
		{"fleet node show mi-", ":values mi-00000000000000001 mi-00000000000000002"},
		{"fleet node show alpha1 ", ":values"},
		{"fleet node ls alpha1 z", ":values zebra1"},
		{"fleet run --node alpha1,z", ":values alpha1,zebra1"},
		{"fleet run --node=alpha1,z", ":values --node=alpha1,zebra1"},
		{"fleet run --label ", ":nospace env= rack="},
		{"fleet run -l env=", ":values env=prod env=test"},
		{"fleet node label alpha1 e", ":nospace env="},
		{"fleet run --all -- ls -", ":values"},
		{"fleet run --all ls --", ":values"},
		{"fleet run --all --det", ":values --detach"},
		{"fleet run --all --al", ":values"}, // it was given
		{"fleet run --script ", ":files"},
		{"fleet agent --data-dir x", ":dirs"},
		{"fleet -o json node l", ":values ls label"},
		{"fleet node ls -o ", ":values table json yaml name"},
		{"fleet node ls -o=j", ":values -o=json"},
		{"fleet node ls --status On", ":values Online"},
		{"fleet command ls --status P", ":values Pending"},
		{"fleet agent --log-level d", ":values debug"},
		{"fleet context use ", ":values acme beta"},
		{"fleet node ls --context b", ":values beta"},
		{"fleet logout a", ":values acme"},
		{"fleet completion ", ":values bash zsh fish"},
		{"fleet nosuch ", ":values"},
		{"fleet node nosuch ", ":values"},
		{"fleet node ls --nosuch", ":values"},
		{`fleet run --comment "a b" --node 'alpha1,z`, ":values alpha1,zebra1"},
		{"fleet", ":values"},
		{"", ":values"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			if code := w.run(t, completeCommand, "--line", tt.line); code != 0 || w.stderr.Len() > 0 {
				t.Errorf("exit %d, stderr %q", code, w.stderr.String())
			}
			var got []string
			for l := range strings.Lines(w.stdout.String()) {
				value, _, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t")
				got = append(got, value)
			}
			if tt.line == "" || tt.line == "fleet" { // the commands
				got = got[:min(1, len(got))]
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func saveCredential(t *testing.T, w *world, name string) {
	t.Helper()
	key, err := identity.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.home, ".config", "fleet", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	cred := identity.Credential{Fleet: fleet.ID(strings.Repeat("a", 32)), Name: name, Operator: "me", Key: key, Addresses: []string{"127.0.0.1:1"}}
	if err := identity.SaveCredential(path, cred); err != nil {
		t.Fatal(err)
	}
}

// Nobody waits long for what does not answer, and nobody hears of it.
func TestCompleteIsQuickAndSilent(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now
	socket := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", socket) // it never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	saveCredential(t, w, "acme")
	w.vars["FLEET_SOCKET"], w.vars["FLEET_ADDRESS"] = socket, deaf.Addr().String()
	for _, line := range []string{"fleet node show ", "fleet command show ", "fleet run --label "} {
		began := time.Now()
		if code := w.run(t, completeCommand, "--line", line); code != 0 || w.stderr.Len() > 0 || strings.Count(w.stdout.String(), "\n") != 1 {
			t.Errorf("%q: exit %d, %q, %q", line, code, w.stdout.String(), w.stderr.String())
		}
		if d := time.Since(began); d > 10*completeWithin { // a busy machine may take its time, not five seconds
			t.Errorf("%q took %s", line, d)
		}
	}
}

// What the fleet answered is given again for a moment, from a file that only
// its owner reads.
func TestCompleteFromTheFleet(t *testing.T) {
	w, _ := startFleet(t, 2, 1)
	delete(w.vars, "FLEET_SOCKET")
	w.vars["FLEET_SOCKET"] = filepath.Join(shortDir(t), "none")
	offers := func(line string) string {
		deadline := time.Now().Add(20 * time.Second)
		for { // 300 ms may be too little for this machine now
			w.run(t, completeCommand, "--line", line)
			if strings.Count(w.stdout.String(), "\n") > 1 || time.Now().After(deadline) {
				return w.stdout.String()
			}
		}
	}
	if got := offers("fleet node show n"); !strings.Contains(got, "node01\t") || !strings.Contains(got, "node02\t") {
		t.Fatalf("got %q", got)
	}
	for _, name := range []string{"web", "wide"} {
		if code := w.run(t, "target", "put", name, "node01"); code != 0 {
			t.Fatalf("target put: %d %s", code, w.stderr.String())
		}
	}
	for line, want := range map[string]string{
		"fleet run --node @w": "@web\tnode01\n@wide\tnode01\n", "fleet run --node node01,@wi": "node01,@wide\tnode01\n",
		"fleet run --target wi": "wide\tnode01\n", "fleet target rm we": "web\tnode01\n", "fleet target show w": "web\tnode01\nwide\tnode01\n",
	} {
		if got := offers(line); got != ":values\n"+want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
	files, err := filepath.Glob(filepath.Join(w.home, ".cache", "fleet", "complete-*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files: %v, %v", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	// It is used, and what stands in it is checked again.
	b := `{"version":1,"values":{"nodes":["kept","bad$(id)","mi-00000000000000009"]}}`
	if err := os.WriteFile(files[0], []byte(b), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := offers("fleet node show "); got != ":values\nkept\t\n" {
		t.Errorf("from the file: %q", got)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(files[0], old, old); err != nil {
		t.Fatal(err)
	}
	if got := offers("fleet node show n"); strings.Contains(got, "kept") {
		t.Errorf("an old file: %q", got)
	}
	if code := w.run(t, "run", "--all", "--detach", "--", "echo $(completed)"); code != 0 {
		t.Fatal(w.stderr.String())
	}
	id := strings.TrimSpace(w.stdout.String())
	if got := offers("fleet command show "); !strings.Contains(got, id+"\t") || strings.ContainsAny(got, "$`") {
		t.Errorf("commands: %q, want %s", got, id)
	}
}

func TestParseOffered(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "another version": `{"version":2,"values":{}}`, "unknown member": `{"version":1,"values":{},"x":1}`,
		"too long": `{"version":1,"values":{"nodes":["` + strings.Repeat("a", maxCompleteFile) + `"]}}`,
	} {
		if o, err := parseOffered([]byte(text)); err == nil {
			t.Errorf("%s: got %+v", name, o)
		}
	}
}

// Whatever the line, the answer is a mode and then words in letters that mean
// nothing to a shell.
func FuzzComplete(f *testing.F) {
	f.Add("fleet node show ")
	f.Add("fleet run --label env=")
	f.Add("fleet 'a \\")
	f.Fuzz(func(t *testing.T, line string) {
		words := shellWords(line)
		if len(words) == 0 {
			t.Fatal("no word at the cursor")
		}
		e := &env{getenv: func(string) string { return "" }, now: time.Now}
		r := (&completer{e, t.Context(), map[string]string{}}).completions(e.commands(), words)
		for _, v := range r.values {
			if strings.ContainsAny(v.value, "\n\t$`;|&<>\"'\\") && !strings.HasPrefix(v.value, "-") {
				t.Errorf("%q offers %q", line, v.value)
			}
		}
	})
}

// Each word that a help text uses for a value is one that completion knows, or
// one that it cannot know.
func TestCompletionKnowsTheWordsOfTheHelp(t *testing.T) {
	w := newWorld(t)
	w.vars["FLEET_SOCKET"] = testAgent(t)
	saveCredential(t, w, "acme")
	cannotBeHere := []string{"COMMAND", "ACTIVATION", "OPERATOR"} // the agent does not know them
	check := func(path []*cli.Command, where, kind string, r completion) {
		if kind == "" || r.mode != "" || len(r.values) > 0 || slices.Contains(notCompleted, kind) || slices.Contains(cannotBeHere, kind) {
			return
		}
		t.Errorf("%s, %s: nothing completes %s: use a word that node/cli/complete.go: valuesOf knows, teach it this one, or add it to notCompleted",
			(&line{path: path}).name(), where, kind)
	}
	leaves(w.commands(), nil, func(path []*cli.Command) {
		c := path[len(path)-1]
		e := &completer{w.env, t.Context(), map[string]string{}}
		for _, f := range c.Flags {
			doc, ok := f.(cli.DocGenerationFlag)
			if _, isBool := f.(*cli.BoolFlag); !ok || isBool {
				continue
			}
			check(path, "--"+f.Names()[0], valueName(doc.GetUsage()), e.flagValues(path, f, "", ""))
		}
		for i, word := range argumentWord().FindAllStringSubmatch(c.ArgsUsage, -1) {
			if c.Name != "run" {
				check(path, fmt.Sprintf("argument %d", i+1), strings.TrimSuffix(word[1], "-"), e.argumentValues(path, i, ""))
			}
		}
	})
}
