package raftfsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// forbiddenImports are packages that replicated code must not see: two
// replicas would read different things there.
var forbiddenImports = []string{
	"crypto/rand", "log", "log/slog", "math/rand", "math/rand/v2", "maphash", "hash/maphash", "net/http", "os", "os/exec", "os/signal",
	"plugin", "reflect", "runtime", "runtime/debug", "syscall", "testing", "unsafe",
}

// forbiddenNames are functions of packages that may otherwise be used.
var forbiddenNames = map[string][]string{
	"time": {
		"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Local", "LoadLocation",
	},
	"context": {"WithTimeout", "WithDeadline", "WithTimeoutCause", "WithDeadlineCause", "AfterFunc"},
	"net":     {"Dial", "DialTimeout", "Listen", "ListenPacket", "LookupHost", "Interfaces"},
}

// TestReplicatedCodeIsPure walks the syntax of this package, entry and state.
func TestReplicatedCodeIsPure(t *testing.T) {
	files := 0
	for _, dir := range []string{".", "entry", "state"} {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, "_planted.go") {
				continue // planted bugs are in no normal build: layers_test.go
			}
			files++
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, fault := range impurities(t, name, src) {
				t.Errorf("%s", fault)
			}
		}
	}
	if files < 10 {
		t.Errorf("only %d files were found", files)
	}
}

// impurities is what makes a file unfit for replicated code.
func impurities(t *testing.T, name string, src []byte) []string {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var faults []string
	fault := func(at ast.Node, text string) { faults = append(faults, set.Position(at.Pos()).String()+": "+text) }
	called := map[string]string{} // local name of an import to its path
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(forbiddenImports, path) {
			fault(spec, "imports "+path)
		}
		local := filepath.Base(path)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == "." {
			fault(spec, "imports "+path+" without a name")
		}
		called[local] = path
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			fault(n, "starts a goroutine")
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && slices.Contains(forbiddenNames[called[x.Name]], n.Sel.Name) {
				fault(n, "uses "+called[x.Name]+"."+n.Sel.Name)
			}
		}
		return true
	})
	return faults
}

// TestImpuritiesAreFound holds that the test above can fail.
func TestImpuritiesAreFound(t *testing.T) {
	for name, body := range map[string]string{
		"a clock":         `import "time"; var x = time.Now()`,
		"a renamed clock": `import wall "time"; var x = wall.Since`,
		"a timer":         `import "time"; func f() { <-time.After(1) }`,
		"randomness":      `import _ "math/rand/v2"`,
		"the environment": `import "os"`,
		"a logger":        `import "log/slog"`,
		"a goroutine":     `func f() { go f() }`,
		"a dot import":    `import . "strings"`,
	} {
		if faults := impurities(t, "x.go", []byte("package x; "+body)); len(faults) != 1 {
			t.Errorf("%s: found %q", name, faults)
		}
	}
	if faults := impurities(t, "x.go", []byte(`package x; import "time"; var x = time.Unix(0, 1).UTC()`)); len(faults) != 0 {
		t.Errorf("pure code: found %q", faults)
	}
}
