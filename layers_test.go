package main_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules of architecture, held by reading the files themselves: a `go list`
// in a child process would not be seen by the test cache, which would then
// answer "ok (cached)" for a tree that broke a rule.
//
// To move a package, change rows below in the same commit, with the reason.

// module is the module's name and so the first part of its import paths.
const module = "fleet"

// row is a layer. A package imports only packages of lower rows; within a row
// there are no imports, so the parts of a row can be read one at a time.
type row struct {
	name     string
	packages []string
}

// rows is the table, lowest first. A package that is not in it fails the test;
// a name without a package yet is a place already decided.
var rows = []row{
	{"0", []string{"node/fleet", "node/private", "node/quota", "node/ssm", "node/wire"}},
	{"1a", []string{
		"raftfsm/entry", "node/identity", "node/authz", "node/document", "node/blob", "node/disk", "node/schedule",
		"node/config", "node/logging", "node/nodeset", "node/process", "node/outbound", "node/memnet", "node/failpoint",
		"node/stagger",
	}},
	{"1b", []string{"node/ticket", "raftfsm/state", "node/secrets", "node/service"}},
	{"1c", []string{"raftfsm", "gossip", "node/transport", "node/inventory", "node/journal", "node/presence", "node/upgrade"}},
	{"2", []string{"raftfsm/quorum", "node/rpc", "node/runcmd", "node/api/client", "node/backup"}},
	// The relay is above rpc, whose streams it uses, and below dispatch: the
	// leader is the first parent of every tree.
	{"2b", []string{"node/relay"}},
	{"3", []string{
		"node/control", "node/cosign", "node/dispatch", "node/enrol", "node/session", "node/patch", "node/statemgr",
	}},
	{"4", []string{"node/api", "node/console", "node/doctor"}},
	{"5", []string{"node"}},
	{"6", []string{"node/devfleet"}},
	{"7", []string{"node/cli"}},
	{"8", []string{"."}},
	// Above the program: what builds hosts to run it on. Nothing imports it
	// but its tests.
	{"history", []string{"scripts/history"}},
	{"lab", []string{"scripts/lab", "scripts/faults"}},
}

var (
	// doers carry out what was decided; deciders decide. A doer that could
	// reach a decider could order what it is meant to be ordered.
	doers = []string{
		"node/runcmd", "node/patch", "node/session", "node/inventory", "node/statemgr", "node/dispatch",
	}
	deciders = []string{"node/control", "raftfsm/quorum"}

	// replicated packages give the same state for the same log on every voter.
	replicated = []string{"raftfsm", "raftfsm/entry", "raftfsm/state"}

	// node/process starts what a fleet was told to run. The lab starts fleet
	// itself, and is no part of it.
	processStarters = []string{"node/process", "scripts/lab"}

	// node/service writes to the datagram socket of the service manager.
	socketOpeners       = []string{"node/transport", "node/api", "node/api/client", "node/outbound", "node/session", "node/service"}
	certificateSigners  = []string{"node/identity"}
	meaninglessPackages = []string{"util", "utils", "common", "helper", "helpers", "types", "interfaces", "misc", "base"}
)

// source is one parsed Go file.
type source struct {
	path string // relative to the module's root, with slashes
	dir  string // "." for the root
	file *ast.File
	test bool // name ends in _test.go

	fset    *token.FileSet
	imports map[string]string // name in this file -> import path
}

func (s *source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

// tree is the module's Go files in order of path.
type tree []*source

// parse makes a tree of files given as path -> content.
func parse(files map[string]string) (tree, error) {
	fset := token.NewFileSet()
	var t tree
	for name, content := range files {
		f, err := parser.ParseFile(fset, name, content, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		s := &source{
			path: name, dir: path.Dir(name), file: f, test: strings.HasSuffix(name, "_test.go"),
			fset: fset, imports: map[string]string{},
		}
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: import %s: %w", name, spec.Path.Value, err)
			}
			s.imports[localName(spec, p)] = p
		}
		t = append(t, s)
	}
	slices.SortFunc(t, func(a, b *source) int { return strings.Compare(a.path, b.path) })
	return t, nil
}

// localName is what a file calls an import: its alias, or the last part of the
// path that is not a version.
func localName(spec *ast.ImportSpec, p string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	base := path.Base(p)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		base = path.Base(path.Dir(p))
	}
	return strings.TrimPrefix(base, "go-")
}

// read makes the tree of the module that lies at root.
func read(root string) (tree, error) {
	files := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "bin") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && rel != "." {
				return filepath.SkipDir // a module of its own, no part of the program
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") {
			return nil
		}
		b, err := os.ReadFile(p)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parse(files)
}

// code calls f for each file that is part of the program. A planted bug is not:
// checkPlanted holds that no normal build has it.
func (t tree) code(f func(*source)) {
	for _, s := range t {
		if !s.test && !s.planted() {
			f(s)
		}
	}
}

// planted reports whether a file is named as those that hold a planted bug.
func (s *source) planted() bool { return strings.HasSuffix(s.path, "_planted.go") }

// constraint is a file's build constraint, or "".
func (s *source) constraint() string {
	for _, g := range s.file.Comments {
		for _, c := range g.List {
			if rest, ok := strings.CutPrefix(c.Text, "//go:build "); ok && c.Pos() < s.file.Package {
				return rest
			}
		}
	}
	return ""
}

// uses calls f for each pkg.Name in the file whose pkg is an import. A name
// that the file declares itself (Obj) is not the import.
func (s *source) uses(f func(n ast.Node, importPath, name string)) {
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Obj == nil {
			if p, ok := s.imports[id.Name]; ok {
				f(n, p, sel.Sel.Name)
			}
		}
		return true
	})
}

// ours is the directory of an import of this module.
func ours(importPath string) (dir string, ok bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// rule finds what breaks one rule; bad are trees that break it, each with a
// part of the finding, and good are trees that come near and do not.
type rule struct {
	name  string
	check func(tree) []string
	bad   []example
	good  []example
}

type example struct {
	name  string
	files map[string]string
	want  string // in a finding; bad examples only
}

// in makes the smallest tree: one file of a package.
func in(name, body string) map[string]string {
	pkg := path.Base(path.Dir(name))
	if pkg == "." {
		pkg = "main"
	}
	return map[string]string{name: "// Package " + pkg + " is an example.\npackage " + pkg + "\n\n" + body}
}

var rules = []rule{
	{
		name:  "imports point down",
		check: checkLayers,
		bad: []example{
			{"up", in("node/wire/wire.go", `import _ "fleet/node/identity"`), "row 0 imports node/identity of row 1a"},
			{"sideways", in("node/rpc/rpc.go", `import _ "fleet/node/runcmd"`), "row 2 imports node/runcmd of row 2"},
			{"sub-row up", in("node/identity/keys.go", `import _ "fleet/node/ticket"`), "row 1a imports node/ticket of row 1b"},
			{"sub-row sideways", in("gossip/gossip.go", `import _ "fleet/node/transport"`), "row 1c imports node/transport of row 1c"},
			{"a part imports the node", in("node/control/control.go", `import _ "fleet/node"`), "imports node of row 5"},
			{"package not in the table", in("node/surprise/surprise.go", ""), "node/surprise is not in the table"},
			{"import not in the table", in("node/node.go", `import _ "fleet/node/surprise"`), "imports node/surprise, which is not"},
			{"main", in("node/cli/cli.go", `import _ "fleet"`), "imports . of row 8"},
			{"second file beside main.go", in("other.go", ""), "only main.go"},
			{"dot import", in("node/node.go", `import . "fleet/node/rpc"`), "dot import"},
		},
		good: []example{
			{"down", in("node/node.go", `import _ "fleet/node/rpc"`), ""},
			{"sub-row down", in("raftfsm/fsm.go", `import _ "fleet/raftfsm/state"`), ""},
			{"test imports anything", in("node/wire/wire_test.go", `import _ "fleet/node/devfleet"`), ""},
			{"others' packages", in("node/wire/wire.go", `import _ "github.com/vmihailenco/msgpack/v5"`), ""},
		},
	},
	{
		name:  "doers never import deciders",
		check: checkDoers,
		bad: []example{
			{"directly", in("node/dispatch/dispatch.go", `import _ "fleet/raftfsm/quorum"`), "node/dispatch reaches raftfsm/quorum"},
			{"through another", map[string]string{
				"node/patch/patch.go": `package patch; import _ "fleet/node/runcmd"`,
				"node/runcmd/run.go":  `package runcmd; import _ "fleet/node/control"`,
			}, "node/patch reaches node/control"},
		},
		good: []example{
			{"deciders import deciders", in("node/control/control.go", `import _ "fleet/raftfsm/quorum"`), ""},
		},
	},
	{
		name:  "replicated code is deterministic",
		check: checkReplicated,
		bad: []example{
			{"clock", in("raftfsm/fsm.go", `import "time"; var now = time.Now`), "time.Now"},
			{"timer", in("raftfsm/state/s.go", `import "time"; func f() { <-time.After(1) }`), "time.After"},
			{"renamed clock", in("raftfsm/fsm.go", `import clock "time"; var now = clock.Now()`), "time.Now"},
			{"timeout", in("raftfsm/fsm.go", `import "context"; var f = context.WithTimeout`), "context.WithTimeout"},
			{"raft's own clock", in("raftfsm/fsm.go", `type l struct{ AppendedAt int }; func f(x l) int { return x.AppendedAt }`), "AppendedAt"},
			{"randomness", in("raftfsm/entry/e.go", `import _ "math/rand/v2"`), "math/rand/v2"},
			{"good randomness", in("raftfsm/entry/e.go", `import _ "crypto/rand"`), "crypto/rand"},
			{"random hashes", in("raftfsm/state/s.go", `import _ "hash/maphash"`), "hash/maphash"},
			{"environment", in("raftfsm/fsm.go", `import "os"; var h, _ = os.Hostname()`), `import "os"`},
			{"logger", in("raftfsm/fsm.go", `import _ "log/slog"`), "log/slog"},
			{"printing", in("raftfsm/fsm.go", `import "fmt"; func f() { fmt.Println() }`), "fmt.Println"},
			{"goroutine", in("raftfsm/fsm.go", `func f() { go f() }`), "starts a goroutine"},
		},
		good: []example{
			{"stamps", in("raftfsm/fsm.go", `import "time"; func f(ns int64) time.Time { return time.Unix(0, ns).Add(time.Hour) }`), ""},
			{"quorum is not replicated", in("raftfsm/quorum/quorum.go", `import "time"; var now = time.Now`), ""},
			{"tests", in("raftfsm/fsm_test.go", `import "time"; var now = time.Now`), ""},
		},
	},
	{
		name:  "sockets are opened in named packages",
		check: checkSockets,
		bad: []example{
			{"listen", in("node/node.go", `import "net"; var l, _ = net.Listen("tcp", ":0")`), "net.Listen"},
			{"packets", in("gossip/gossip.go", `import "net"; var f = net.ListenPacket`), "net.ListenPacket"},
			{"dial", in("node/cli/cli.go", `import "net"; var f = net.DialTimeout`), "net.DialTimeout"},
			{"dialer", in("node/rpc/rpc.go", `import "net"; var d net.Dialer`), "net.Dialer"},
			{"names", in("node/rpc/rpc.go", `import "net"; var f = net.LookupHost`), "net.LookupHost"},
			{"tls", in("node/rpc/rpc.go", `import "crypto/tls"; var f = tls.Dial`), "tls.Dial"},
			{"http", in("node/runcmd/run.go", `import "net/http"; var f = http.Get`), "http.Get"},
			{"http client", in("node/runcmd/run.go", `import "net/http"; var c = http.Client{}`), "http.Client without a Transport"},
			{"new http client", in("node/runcmd/run.go", `import "net/http"; var c = new(http.Client)`), "new(http.Client)"},
			{"http transport", in("node/runcmd/run.go", `import "net/http"; var c = &http.Transport{}`), "http.Transport without a dialer"},
			{"http server", in("node/runcmd/run.go", `import "net/http"; func f(s *http.Server) { s.ListenAndServe() }`), "ListenAndServe"},
			{"system call", in("node/process/p.go", `import "syscall"; var f = syscall.Socket`), "syscall.Socket"},
			{"raft's own", in("raftfsm/quorum/quorum.go", `import "github.com/hashicorp/raft"; var f = raft.NewTCPTransport`), "raft.NewTCPTransport"},
			{"memberlist's own", in("gossip/gossip.go", `import "github.com/hashicorp/memberlist"; var f = memberlist.NewNetTransport`), "NewNetTransport"},
		},
		good: []example{
			{"transport", in("node/transport/t.go", `import "net"; var l, _ = net.Listen("tcp", ":0")`), ""},
			{"an interface", in("node/rpc/rpc.go", `import "net"; func f(l net.Listener, c net.Conn) {}`), ""},
			{"a client over a given connection", in("node/rpc/rpc.go",
				`import "net/http"; var c = http.Client{Transport: &http.Transport{DialTLSContext: nil}}`), ""},
			{"a variable called net", in("node/rpc/rpc.go",
				`import "net"; func f(net struct{ Listen func() }) { net.Listen() }; var _ net.Conn`), ""},
			{"tests", in("node/rpc/rpc_test.go", `import "net"; var l, _ = net.Listen("tcp", ":0")`), ""},
		},
	},
	{
		name:  "child processes are started in node/process",
		check: checkProcesses,
		bad: []example{
			{"exec", in("node/runcmd/run.go", `import _ "os/exec"`), "os/exec"},
			{"fork", in("node/runcmd/run.go", `import "syscall"; var f = syscall.ForkExec`), "syscall.ForkExec"},
			{"start", in("node/cli/cli.go", `import "os"; var f = os.StartProcess`), "os.StartProcess"},
			{"replace", in("node/cli/cli.go", `import "golang.org/x/sys/unix"; var f = unix.Exec`), "unix.Exec"},
		},
		good: []example{
			{"process", in("node/process/p.go", `import _ "os/exec"`), ""},
			{"tests", in("node/cli/cli_test.go", `import _ "os/exec"`), ""},
		},
	},
	{
		name:  "certificates are signed in node/identity",
		check: checkCertificates,
		bad: []example{
			{"elsewhere", in("node/enrol/join.go", `import "crypto/x509"; var f = x509.CreateCertificate`), "x509.CreateCertificate"},
		},
		good: []example{
			{"identity", in("node/identity/certificate.go", `import "crypto/x509"; var f = x509.CreateCertificate`), ""},
			{"tests forge", in("node/transport/t_test.go", `import "crypto/x509"; var f = x509.CreateCertificate`), ""},
		},
	},
	{
		name:  "one package comment",
		check: checkPackageComments,
		bad: []example{
			{"none", map[string]string{"node/rpc/rpc.go": "package rpc"}, "node/rpc has no package comment"},
			{"two", map[string]string{
				"node/rpc/rpc.go": "// Package rpc is.\npackage rpc",
				"node/rpc/doc.go": "// Package rpc is too.\npackage rpc",
			}, "node/rpc has 2 package comments"},
			{"in the wrong file", map[string]string{
				"node/rpc/rpc.go":    "package rpc",
				"node/rpc/frames.go": "// Package rpc is.\npackage rpc\n\ntype Server struct{}",
			}, "frames.go: the package comment belongs"},
			{"of another", map[string]string{"node/rpc/rpc.go": "// Package wire is.\npackage rpc"}, `begins "Package rpc "`},
		},
		good: []example{
			{"doc.go", map[string]string{"node/rpc/doc.go": "// Package rpc is.\npackage rpc", "node/rpc/rpc.go": "package rpc"}, ""},
			{"main type", map[string]string{"raftfsm/fsm.go": "// Package raftfsm is.\npackage raftfsm\n\ntype FSM struct{}"}, ""},
			{"tests", map[string]string{"node/rpc/rpc_test.go": "package rpc"}, ""},
		},
	},
	{
		name:  "package names say something",
		check: checkNames,
		bad: []example{
			{"folder", in("node/util/util.go", ""), "node/util"},
			{"name", map[string]string{"node/rpc/rpc.go": "package helpers"}, "helpers"},
		},
		good: []example{{"a noun", in("node/rpc/rpc.go", ""), ""}},
	},
	{
		name:  "planted bugs are in no normal build",
		check: checkPlanted,
		bad: []example{
			{"no tag", in("node/rpc/calls_planted.go", ""), "needs one tag planted_"},
			{"another tag", map[string]string{"node/rpc/calls_planted.go": "//go:build linux\n\npackage rpc"}, "needs one tag planted_"},
			{"where the tag is not", map[string]string{"node/rpc/calls_planted.go": "//go:build !planted_x\n\npackage rpc"}, "needs one tag planted_"},
			{"or another", map[string]string{"node/rpc/calls_planted.go": "//go:build planted_x || linux\n\npackage rpc"}, "needs one tag planted_"},
			{"without a twin", map[string]string{"node/rpc/calls_planted.go": "//go:build planted_x\n\npackage rpc"}, "calls.go is not built where planted_x is not"},
			{"under another name", map[string]string{"node/rpc/calls.go": "//go:build planted_x\n\npackage rpc"}, "is not named _planted.go"},
		},
		good: []example{{"twins", map[string]string{
			"node/rpc/calls_planted.go": "//go:build planted_x\n\npackage rpc",
			"node/rpc/calls.go":         "//go:build !planted_x\n\npackage rpc",
		}, ""}},
	},
	{
		name:  "no sleeping",
		check: checkSleep,
		bad: []example{
			{"sleep", in("node/rpc/rpc.go", `import "time"; func f() { time.Sleep(1) }`), "time.Sleep"},
		},
		good: []example{
			{"tests", in("node/rpc/rpc_test.go", `import "time"; func f() { time.Sleep(1) }`), ""},
			{"another Sleep", in("node/rpc/rpc.go", `func f(time struct{ Sleep func(int) }) { time.Sleep(1) }`), ""},
		},
	},
	{
		name:  "loggers are passed in",
		check: checkLoggers,
		bad: []example{
			{"default", in("node/rpc/rpc.go", `import "log/slog"; func f() { slog.Info("x") }`), "slog.Info"},
			{"taken", in("node/rpc/rpc.go", `import "log/slog"; var l = slog.Default()`), "slog.Default"},
			{"old", in("node/rpc/rpc.go", `import "log"; func f() { log.Fatal("x") }`), "log.Fatal"},
		},
		good: []example{
			{"given", in("node/rpc/rpc.go", `import "log/slog"; func f(l *slog.Logger) { l.Info("x", slog.String("a", "b")) }`), ""},
			{"bridge", in("gossip/log.go", `import "log"; func f() *log.Logger { return log.New(nil, "", 0) }`), ""},
		},
	},
}

func TestArchitecture(t *testing.T) {
	files, err := read(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("read %d Go files: the tree was not found", len(files))
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, finding := range r.check(files) {
				t.Error(finding)
			}
		})
	}
}

// A rule that cannot fail proves nothing.
func TestArchitectureRulesCanFail(t *testing.T) {
	for _, r := range rules {
		if len(r.bad) == 0 || len(r.good) == 0 {
			t.Errorf("%s: needs an example that breaks it and one that does not", r.name)
		}
		for _, e := range r.bad {
			t.Run(r.name+"/bad/"+e.name, func(t *testing.T) {
				files, err := parse(e.files)
				if err != nil {
					t.Fatal(err)
				}
				findings := r.check(files)
				if !slices.ContainsFunc(findings, func(f string) bool { return strings.Contains(f, e.want) }) {
					t.Errorf("findings %q, want one with %q", findings, e.want)
				}
			})
		}
		for _, e := range r.good {
			t.Run(r.name+"/good/"+e.name, func(t *testing.T) {
				files, err := parse(e.files)
				if err != nil {
					t.Fatal(err)
				}
				if findings := r.check(files); len(findings) != 0 {
					t.Errorf("findings %q, want none", findings)
				}
			})
		}
	}
}

// A package stands in the table once: twice would be two rules.
func TestArchitectureTable(t *testing.T) {
	seen := map[string]string{}
	for _, r := range rows {
		for _, p := range r.packages {
			if other, twice := seen[p]; twice {
				t.Errorf("%s is in row %s and in row %s", p, other, r.name)
			}
			seen[p] = r.name
		}
	}
	for _, list := range [][]string{doers, deciders, replicated, socketOpeners, processStarters, certificateSigners} {
		for _, p := range list {
			if _, ok := seen[p]; !ok {
				t.Errorf("%s has a rule and no row", p)
			}
		}
	}
}

// rowOf is the place of a package in rows.
func rowOf(dir string) (int, bool) {
	for i, r := range rows {
		if slices.Contains(r.packages, dir) {
			return i, true
		}
	}
	return 0, false
}

func checkLayers(t tree) (findings []string) {
	unplaced := map[string]bool{}
	t.code(func(s *source) {
		from, ok := rowOf(s.dir)
		if !ok {
			if !unplaced[s.dir] {
				unplaced[s.dir] = true
				findings = append(findings, s.dir+" is not in the table: give it a row, with the reason")
			}
			return
		}
		if s.dir == "." && s.path != "main.go" {
			findings = append(findings, s.path+": only main.go lies at the root")
		}
		for _, spec := range s.file.Imports {
			p, _ := strconv.Unquote(spec.Path.Value) // parse has unquoted it before
			if spec.Name != nil && spec.Name.Name == "." {
				findings = append(findings, fmt.Sprintf("%s: a dot import of %q hides what the file uses", s.at(spec), p))
			}
			dir, ok := ours(p)
			if !ok {
				continue
			}
			to, ok := rowOf(dir)
			switch {
			case !ok:
				findings = append(findings, fmt.Sprintf("%s: imports %s, which is not in the table", s.at(spec), dir))
			case to >= from:
				findings = append(findings, fmt.Sprintf("%s: row %s imports %s of row %s: imports point down",
					s.at(spec), rows[from].name, dir, rows[to].name))
			}
		}
	})
	return findings
}

func checkDoers(t tree) (findings []string) {
	imports := map[string][]string{}
	t.code(func(s *source) {
		for _, p := range s.imports {
			if dir, ok := ours(p); ok {
				imports[s.dir] = append(imports[s.dir], dir)
			}
		}
	})
	for _, doer := range doers {
		reached := map[string]bool{doer: true}
		for queue := []string{doer}; len(queue) > 0; {
			next := queue[0]
			queue = queue[1:]
			for _, dir := range imports[next] {
				if !reached[dir] {
					reached[dir] = true
					queue = append(queue, dir)
				}
			}
		}
		for _, decider := range deciders {
			if reached[decider] {
				findings = append(findings, doer+" reaches "+decider+": who carries out does not decide")
			}
		}
	}
	return findings
}

var (
	// Of package time, replicated code may name units and conversions of
	// stamps; everything not here reads a clock, waits, or knows a time zone.
	pureTime = []string{
		"Duration", "Time", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour",
		"Unix", "UnixMilli", "UTC", "RFC3339", "RFC3339Nano",
	}
	impureImports = []string{
		"os", "math/rand", "math/rand/v2", "crypto/rand", "hash/maphash", "log", "log/slog", "runtime", "runtime/debug",
		"syscall", "unsafe", "C", "github.com/hashicorp/go-hclog", "golang.org/x/sys/unix",
	}
	impureContext = []string{"WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"}
)

// checkPlanted finds planted bugs (scripts/planted.sh) that may be built
// without their tag, or that stand where these rules do not expect them.
func checkPlanted(t tree) (findings []string) {
	constraints := map[string]string{}
	for _, s := range t {
		constraints[s.path] = s.constraint()
	}
	for _, s := range t {
		tag := constraints[s.path]
		name, ok := strings.CutPrefix(tag, "planted_")
		one := ok && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
		twin := strings.TrimSuffix(s.path, "_planted.go") + ".go"
		switch {
		case s.planted() && !one:
			findings = append(findings, s.path+": needs one tag planted_NAME and nothing else")
		case s.planted() && constraints[twin] != "!"+tag:
			findings = append(findings, fmt.Sprintf("%s: %s is not built where %s is not", s.path, twin, tag))
		case ok && !s.planted():
			findings = append(findings, s.path+": has the tag of a planted bug and is not named _planted.go")
		}
	}
	return findings
}

func checkReplicated(t tree) (findings []string) {
	t.code(func(s *source) {
		if !slices.Contains(replicated, s.dir) {
			return
		}
		add := func(n ast.Node, format string, args ...any) {
			findings = append(findings, s.at(n)+": replicated code "+fmt.Sprintf(format, args...))
		}
		for _, spec := range s.file.Imports {
			p, _ := strconv.Unquote(spec.Path.Value)
			if slices.Contains(impureImports, p) || strings.HasPrefix(p, "os/") {
				add(spec, "has import %q", p)
			}
		}
		s.uses(func(n ast.Node, p, name string) {
			switch {
			case p == "time" && !slices.Contains(pureTime, name),
				p == "context" && slices.Contains(impureContext, name),
				p == "fmt" && strings.HasPrefix(name, "Print"):
				add(n, "names %s.%s", p, name)
			}
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				add(n, "starts a goroutine")
			case *ast.SelectorExpr:
				if n.Sel.Name == "AppendedAt" {
					add(n, "names AppendedAt, the leader's clock: the entry carries its own stamp")
				}
			}
			return true
		})
	})
	return findings
}

// opensSocket reports whether path.name opens a socket or asks the network.
func opensSocket(p, name string) bool {
	switch p {
	case "net":
		if name == "Listener" { // the interface
			return false
		}
		for _, prefix := range []string{"Listen", "Dial", "Lookup"} {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return slices.Contains([]string{"FileConn", "FileListener", "FilePacketConn", "Resolver", "DefaultResolver"}, name)
	case "crypto/tls":
		return name == "Listen" || strings.HasPrefix(name, "Dial")
	case "net/http":
		return slices.Contains([]string{
			"Get", "Head", "Post", "PostForm", "ListenAndServe", "ListenAndServeTLS", "DefaultClient", "DefaultTransport",
		}, name)
	case "syscall", "golang.org/x/sys/unix":
		return slices.Contains([]string{"Socket", "Socketpair", "Connect", "Bind", "Listen"}, name)
	case "github.com/hashicorp/raft":
		return strings.HasPrefix(name, "NewTCPTransport")
	case "github.com/hashicorp/memberlist":
		return name == "NewNetTransport"
	}
	return false
}

func checkSockets(t tree) (findings []string) {
	t.code(func(s *source) {
		if slices.Contains(socketOpeners, s.dir) {
			return
		}
		add := func(n ast.Node, what string) {
			findings = append(findings, s.at(n)+": "+what+": sockets are opened only in "+strings.Join(socketOpeners, ", "))
		}
		s.uses(func(n ast.Node, p, name string) {
			if opensSocket(p, name) {
				add(n, path.Base(p)+"."+name)
			}
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				switch s.httpType(n.Type) {
				case "Client":
					if !hasKey(n, "Transport") {
						add(n, "http.Client without a Transport")
					}
				case "Transport":
					if !hasKey(n, "DialContext") && !hasKey(n, "DialTLSContext") {
						add(n, "http.Transport without a dialer")
					}
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "new" && len(n.Args) == 1 {
					if name := s.httpType(n.Args[0]); name != "" {
						add(n, "new(http."+name+")")
					}
				}
			case *ast.SelectorExpr:
				if n.Sel.Name == "ListenAndServe" || n.Sel.Name == "ListenAndServeTLS" {
					add(n, n.Sel.Name)
				}
			}
			return true
		})
	})
	return findings
}

// httpType is "Client" or "Transport" when e names that type of net/http.
func (s *source) httpType(e ast.Expr) string {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok || s.imports[id.Name] != "net/http" || (sel.Sel.Name != "Client" && sel.Sel.Name != "Transport") {
		return ""
	}
	return sel.Sel.Name
}

func hasKey(lit *ast.CompositeLit, name string) bool {
	return slices.ContainsFunc(lit.Elts, func(e ast.Expr) bool {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		id, ok := kv.Key.(*ast.Ident)
		return ok && id.Name == name
	})
}

func checkProcesses(t tree) (findings []string) {
	t.code(func(s *source) {
		if slices.Contains(processStarters, s.dir) {
			return
		}
		where := ": child processes are started only in " + strings.Join(processStarters, ", ")
		for _, spec := range s.file.Imports {
			if spec.Path.Value == `"os/exec"` {
				findings = append(findings, s.at(spec)+": import of os/exec"+where)
			}
		}
		s.uses(func(n ast.Node, p, name string) {
			switch {
			case p == "os" && name == "StartProcess",
				(p == "syscall" || p == "golang.org/x/sys/unix") &&
					slices.Contains([]string{"ForkExec", "StartProcess", "Exec", "CreateProcess", "CreateProcessAsUser"}, name),
				p == "golang.org/x/sys/windows" && strings.HasPrefix(name, "CreateProcess"):
				findings = append(findings, s.at(n)+": "+path.Base(p)+"."+name+where)
			}
		})
	})
	return findings
}

func checkCertificates(t tree) (findings []string) {
	t.code(func(s *source) {
		s.uses(func(n ast.Node, p, name string) {
			if p == "crypto/x509" && name == "CreateCertificate" && !slices.Contains(certificateSigners, s.dir) {
				findings = append(findings, s.at(n)+": x509.CreateCertificate: certificates are signed only in "+
					strings.Join(certificateSigners, ", "))
			}
		})
	})
	return findings
}

func checkPackageComments(t tree) (findings []string) {
	comments := map[string][]*source{}
	t.code(func(s *source) {
		list := comments[s.dir]
		if s.file.Doc != nil {
			list = append(list, s)
		}
		comments[s.dir] = list
	})
	for _, dir := range sortedKeys(comments) {
		list := comments[dir]
		if len(list) == 0 {
			findings = append(findings, dir+" has no package comment")
			continue
		}
		if len(list) > 1 {
			findings = append(findings, fmt.Sprintf("%s has %d package comments: %s and %s", dir, len(list), list[0].path, list[1].path))
		}
		s := list[0]
		name := s.file.Name.Name
		if base := strings.TrimSuffix(path.Base(s.path), ".go"); base != name && base != "doc" && !declaresType(s.file, base) {
			findings = append(findings, s.path+": the package comment belongs in "+name+".go, doc.go or the file of the main type")
		}
		if name != "main" && !strings.HasPrefix(s.file.Doc.Text(), "Package "+name+" ") {
			findings = append(findings, fmt.Sprintf("%s: the package comment begins %q", s.path, "Package "+name+" "))
		}
	}
	return findings
}

// declaresType reports whether the file declares an exported type of that name,
// in any case.
func declaresType(f *ast.File, name string) bool {
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range gen.Specs {
			if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() && strings.EqualFold(ts.Name.Name, name) {
				return true
			}
		}
	}
	return false
}

func checkNames(t tree) (findings []string) {
	seen := map[string]bool{}
	t.code(func(s *source) {
		for _, name := range []string{s.file.Name.Name, path.Base(s.dir)} {
			if slices.Contains(meaninglessPackages, name) && !seen[s.dir] {
				seen[s.dir] = true
				findings = append(findings, s.dir+": a package called "+name+" says nothing: a helper lives with its user")
			}
		}
	})
	return findings
}

func checkSleep(t tree) (findings []string) {
	t.code(func(s *source) {
		s.uses(func(n ast.Node, p, name string) {
			if p == "time" && name == "Sleep" {
				findings = append(findings, s.at(n)+": time.Sleep: wait for the condition, or for a timer and the context")
			}
		})
	})
	return findings
}

func checkLoggers(t tree) (findings []string) {
	std := []string{"Print", "Fatal", "Panic", "Default", "Set"}
	slogDefault := []string{"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "Log", "LogAttrs"}
	t.code(func(s *source) {
		s.uses(func(n ast.Node, p, name string) {
			global := p == "log" && slices.ContainsFunc(std, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) ||
				p == "log/slog" && slices.Contains(slogDefault, strings.TrimSuffix(name, "Context"))
			if global {
				findings = append(findings, s.at(n)+": "+path.Base(p)+"."+name+": a logger is passed in")
			}
		})
	})
	return findings
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
