package main_test

import (
	"fmt"
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The documents that describe the code are checked against it, so that a name
// that moved or a guard that was deleted fails here and not in a reader.

const architecturePage = "docs/ARCHITECTURE.md"

// documents are the pages whose links and references are checked.
var documents = []string{"*.md", "docs/*.md"}

var (
	// reference is `path: Name` or `path: Type.Method` in a document. The path
	// is a package's directory or a Go file, from the root of the module. One
	// word that is no package (`idempotent: true`) makes no reference.
	referencePattern = regexp.MustCompile("`([a-z0-9_./-]+): ([A-Za-z_][A-Za-z0-9_]*(?:\\.[A-Za-z_][A-Za-z0-9_]*)?)`")

	itemPattern    = regexp.MustCompile(`^(\d+)\. `)
	headingPattern = regexp.MustCompile(`^(#+) (.*)$`)
	linkPattern    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// declared are the names at the top level of a Go file: Name, and Type.Method.
func declared(f *ast.File) []string {
	var names []string
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			name := decl.Name.Name
			if decl.Recv != nil && len(decl.Recv.List) == 1 {
				name = receiver(decl.Recv.List[0].Type) + "." + name
			}
			names = append(names, name)
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names = append(names, spec.Name.Name)
				case *ast.ValueSpec:
					for _, n := range spec.Names {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

// receiver is the type's name of a method's receiver, without pointer and
// type parameters.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// declares reports whether a directory or file of the tree declares name, and
// whether it does so in a test.
func (t tree) declares(where, name string) (ok, inTest bool) {
	for _, s := range t {
		if s.path != where && s.dir != path.Clean(where) {
			continue
		}
		if slices.Contains(declared(s.file), name) {
			return true, s.test
		}
	}
	return false, false
}

// has reports whether a directory has Go files.
func (t tree) has(dir string) bool {
	return slices.ContainsFunc(t, func(s *source) bool { return s.dir == dir })
}

// checkReferences finds references to what does not exist.
func checkReferences(t tree, name, text string) (findings []string) {
	for i, line := range strings.Split(text, "\n") {
		for _, m := range referencePattern.FindAllStringSubmatch(line, -1) {
			if !strings.ContainsAny(m[1], "/.") && !t.has(m[1]) {
				continue
			}
			if ok, _ := t.declares(m[1], m[2]); !ok {
				findings = append(findings, fmt.Sprintf("%s:%d: %s declares no %s", name, i+1, m[1], m[2]))
			}
		}
	}
	return findings
}

// section is the text below a heading, until the next of its level or above.
func section(text, title string) string {
	var b strings.Builder
	level := 0
	for line := range strings.SplitSeq(text, "\n") {
		if m := headingPattern.FindStringSubmatch(line); m != nil {
			switch {
			case m[2] == title:
				level = len(m[1])
				continue
			case level > 0 && len(m[1]) <= level:
				return b.String()
			}
		}
		if level > 0 {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// checkInvariants holds the list below "Invariants" to its form: numbered from
// 1 without a gap, each with a test or fuzz target that exists.
func checkInvariants(t tree, text string) (findings []string) {
	var items []string
	for line := range strings.SplitSeq(section(text, "Invariants"), "\n") {
		switch {
		case itemPattern.MatchString(line):
			items = append(items, line)
		case len(items) > 0:
			items[len(items)-1] += "\n" + line
		}
	}
	if len(items) == 0 {
		return []string{"no numbered invariants below a heading Invariants"}
	}
	for i, item := range items {
		if n := itemPattern.FindStringSubmatch(item)[1]; n != strconv.Itoa(i+1) {
			findings = append(findings, fmt.Sprintf("invariant %s stands in place %d", n, i+1))
		}
		guards := 0
		for _, m := range referencePattern.FindAllStringSubmatch(item, -1) {
			_, inTest := t.declares(m[1], m[2])
			if inTest && (strings.HasPrefix(m[2], "Test") || strings.HasPrefix(m[2], "Fuzz")) {
				guards++
			}
		}
		if guards == 0 {
			findings = append(findings, fmt.Sprintf("invariant %d names no test that guards it", i+1))
		}
	}
	return findings
}

// checkMap finds packages that the map of the code leaves out.
func checkMap(t tree, text string) (findings []string) {
	page := section(text, "Map of the code")
	seen := map[string]bool{".": true}
	t.code(func(s *source) {
		if !seen[s.dir] && !strings.Contains(page, "`"+s.dir+"`") {
			findings = append(findings, s.dir+" is not on the map")
		}
		seen[s.dir] = true
	})
	return findings
}

// checkLinks finds relative links of the document at name to files that do not
// exist.
func checkLinks(exists func(string) bool, name, text string) (findings []string) {
	for i, line := range strings.Split(text, "\n") {
		for _, m := range linkPattern.FindAllStringSubmatch(line, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if to := path.Join(path.Dir(name), target); !exists(to) {
				findings = append(findings, fmt.Sprintf("%s:%d: link to %s: no such file", name, i+1, m[1]))
			}
		}
	}
	return findings
}

func exists(name string) bool {
	_, err := os.Stat(filepath.FromSlash(name))
	return err == nil
}

func TestDocumentsMatchTheCode(t *testing.T) {
	files, err := read(".")
	if err != nil {
		t.Fatal(err)
	}
	var pages []string
	for _, pattern := range documents {
		found, err := filepath.Glob(filepath.FromSlash(pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	if !slices.Contains(pages, filepath.FromSlash(architecturePage)) {
		t.Fatalf("%s is missing", architecturePage)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.ToSlash(page)
		findings := append(checkReferences(files, name, string(b)), checkLinks(exists, name, string(b))...)
		if name == architecturePage {
			findings = append(findings, checkInvariants(files, string(b))...)
			findings = append(findings, checkMap(files, string(b))...)
		}
		for _, f := range findings {
			t.Error(f)
		}
	}
}

// The checks of documents can fail, each on what it is for.
func TestDocumentChecksCanFail(t *testing.T) {
	files, err := parse(map[string]string{
		"node/ring/ring.go": "package ring\n\ntype Ring struct{}\n\nfunc (r *Ring) Join() {}\n\nfunc New() {}\n\nconst Max = 1\n",
		"node/ring/ring_test.go": "package ring\n\nimport \"testing\"\n\nfunc TestJoin(t *testing.T) {}\n\n" +
			"func FuzzPacket(f *testing.F) {}\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	references := func(text string) []string { return checkReferences(files, "a.md", text) }
	invariants := func(text string) []string { return checkInvariants(files, text) }
	onMap := func(text string) []string { return checkMap(files, text) }
	links := func(text string) []string {
		return checkLinks(func(p string) bool { return p == "docs/b.md" }, "docs/a.md", text)
	}
	const head = "# Page\n\n## Invariants\n\n"
	tests := []struct {
		name  string
		check func(string) []string
		text  string
		want  string // "" is: no finding
	}{
		{"function", references, "x `node/ring: New` y", ""},
		{"method", references, "`node/ring: Ring.Join`", ""},
		{"type and constant", references, "`node/ring/ring.go: Ring`, `node/ring: Max`", ""},
		{"test", references, "`node/ring: TestJoin`", ""},
		{"function that is gone", references, "\n`node/ring: Leave`", "a.md:2: node/ring declares no Leave"},
		{"method of another", references, "`node/ring: Other.Join`", "declares no Other.Join"},
		{"method without its type", references, "`node/ring: Join`", "declares no Join"},
		{"package that is gone", references, "`node/wheel: New`", "node/wheel declares no New"},
		{"file that is gone", references, "`node/ring/other.go: New`", "other.go declares no New"},
		{"a line of YAML is no reference", references, "`listen: :7790`, `idempotent: true`", ""},

		{"invariants", invariants, head + "1. **A.** Guard: `node/ring: TestJoin`\n2. B\n   `node/ring: FuzzPacket`\n\n## Next\n", ""},
		{"no invariants", invariants, "# Page\n", "no numbered invariants"},
		{"gap", invariants, head + "1. `node/ring: TestJoin`\n3. `node/ring: TestJoin`\n", "invariant 3 stands in place 2"},
		{"no guard", invariants, head + "1. **A.** Nobody looks.\n", "invariant 1 names no test"},
		{"guard that is no test", invariants, head + "1. **A.** `node/ring: New`\n", "invariant 1 names no test"},
		{"guard that is gone", invariants, head + "1. **A.** `node/ring: TestLeave`\n", "invariant 1 names no test"},
		{"guard in the next section", invariants, head + "1. **A.**\n\n## Next\n\n`node/ring: TestJoin`\n", "invariant 1 names no test"},

		{"map", onMap, "## Map of the code\n\n| `node/ring` | who is here |\n", ""},
		{"package not on the map", onMap, "## Map of the code\n\nnothing\n\n## Next\n\n`node/ring`\n", "node/ring is not on the map"},

		{"link", links, "[b](b.md#part) [c](https://example.org) [d](#here)", ""},
		{"link to nothing", links, "[b](c.md)", "docs/a.md:1: link to c.md"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.check(tt.text)
			if tt.want == "" && len(got) != 0 {
				t.Errorf("findings %q, want none", got)
			}
			if tt.want != "" && !slices.ContainsFunc(got, func(f string) bool { return strings.Contains(f, tt.want) }) {
				t.Errorf("findings %q, want one with %q", got, tt.want)
			}
		})
	}
}
