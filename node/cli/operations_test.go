package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestOperationsPage holds that every command of docs/operations.md, but for
// sections that name tests of their own, is typed by a script against a real fleet: the same command, with at least the flags that
// the page gives it. Who is in trouble must not find out that the page is old.
func TestOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	tree := newWorld(t).commands()
	typed := map[string][][]string{} // by command: the flags of each call in a script
	files, err := filepath.Glob(filepath.Join(scriptDir, "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`^(?:exec |exits 0 |until \S+ |until '[^']*' )fleet (.*)$`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if m := call.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				if name, flags := callOf(tree, m[1]); name != "" {
					typed[name] = append(typed[name], flags)
				}
			}
		}
	}
	found := 0
	for section := range strings.SplitSeq(string(page), "\n## ") {
		if strings.Contains(section, "\nTests: ") {
			continue // it names its own
		}
		found += checkSection(t, tree, section, typed)
	}
	if found < 20 {
		t.Errorf("%d commands on the page: the test does not see what it is for", found)
	}
}

func checkSection(t *testing.T, tree []*cli.Command, section string, typed map[string][][]string) (found int) {
	t.Helper()
	for line := range strings.Lines(section) {
		command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "    fleet ")
		if !ok {
			continue
		}
		command, _, _ = strings.Cut(command, "#")
		found++
		name, flags := callOf(tree, command)
		if name == "" {
			t.Errorf("%q: there is no such command", command)
			continue
		}
		if !slices.ContainsFunc(typed[name], func(have []string) bool {
			return !slices.ContainsFunc(flags, func(f string) bool { return !slices.Contains(have, f) })
		}) {
			t.Errorf("%q is typed by no script: %s with %v", command, name, flags)
		}
	}
	return found
}

// callOf is the command that a line calls, and its flags without their values.
func callOf(tree []*cli.Command, line string) (name string, flags []string) {
	words := strings.Fields(line)
	var path []string
	for len(words) > 0 {
		i := slices.IndexFunc(tree, func(c *cli.Command) bool { return c.HasName(words[0]) })
		if i < 0 {
			break
		}
		path, tree, words = append(path, tree[i].Name), tree[i].Subcommands, words[1:]
	}
	if len(path) == 0 || len(tree) > 0 {
		return "", nil
	}
	for _, w := range words {
		if w == "--" {
			break
		}
		if strings.HasPrefix(w, "--") {
			flag, _, _ := strings.Cut(w, "=")
			flags = append(flags, flag)
		}
	}
	return strings.Join(path, " "), flags
}
