package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"fleet/node/fleet"
)

// The file is read from its syntax tree and not into the struct: a decoder
// stops at the first mistake and forgets the lines, and whoever mends a file
// wants all mistakes, each with its place and with what is allowed there.

// entry is one value of the file.
type entry struct {
	key   string // dotted
	value string
	line  int
	kind  string // "" for a plain value, else what stands there instead
}

// merge reads a file over the defaults. name is for messages. What is wrong
// with the form is in the error; what is wrong with the values is for Validate.
func (c *Config) merge(b []byte, name string) error {
	if len(b) > maxFile {
		return fleet.Errorf(fleet.TooLarge, "configuration file %s: over %d bytes", name, maxFile)
	}
	entries, err := parseFile(b)
	if err != nil {
		return fleet.Errorf(fleet.Invalid, "configuration file %s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	c.file = name
	c.Version = 0
	first := map[string]int{} // key -> line
	for _, e := range entries {
		if line, twice := first[e.key]; twice {
			c.bad(e.line, "%s stands here again, after line %d", e.key, line)
			continue
		}
		first[e.key] = e.line
		c.take(e)
	}
	switch line, there := first["version"]; {
	case !there:
		c.bad(1, "version is missing: write \"version: %d\"", Version)
	case c.Version != Version && c.Version != 0:
		c.bad(line, "version is %d, this program reads version %d", c.Version, Version)
	}
	return nil
}

// take sets one value or notes what is wrong with it.
func (c *Config) take(e entry) {
	if e.key == "version" {
		n, err := strconv.Atoi(e.value)
		if err != nil || n <= 0 || e.kind != "" {
			c.bad(e.line, "version is not a number: write \"version: %d\"", Version)
			n = 0
		}
		c.Version = n
		return
	}
	set := settingOf(e.key)
	switch {
	case set == nil && isGroup(e.key):
		c.bad(e.line, "%s is a group: its values stand indented below it: %s", e.key, strings.Join(keysBelow(e.key), ", "))
	case set == nil:
		hint := "what there is: " + strings.Join(keys(), ", ")
		if s := similar(e.key); s != "" {
			hint = "did you mean " + s + "?"
		}
		c.bad(e.line, "there is no key %.60q; %s", e.key, hint)
	case e.kind != "":
		c.bad(e.line, "%s is %s; allowed is %s", e.key, e.kind, set.allowed)
	default:
		*set.field(c) = e.value
		c.sources[e.key], c.lines[e.key] = c.file, e.line
	}
}

// bad notes a problem of the file.
func (c *Config) bad(line int, format string, args ...any) {
	c.problems = append(c.problems, problem{line, fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)})
}

// problem is one thing that is wrong, with its line in the file or 0.
type problem struct {
	line int
	text string
}

// maxEntries bounds what is looked at of a file; there are a dozen keys.
const maxEntries = 1000

// parseFile flattens the file. The error is of YAML's grammar, or says that
// there is no mapping.
func parseFile(b []byte) ([]entry, error) {
	f, err := parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if err := flatten("", doc.Body, &entries); err != nil {
			return nil, err
		}
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("it is empty: write \"version: %d\" in its first line", Version)
	}
	return entries, nil
}

func flatten(prefix string, n ast.Node, into *[]entry) error {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		return fmt.Errorf("line %d: \"key: value\" is expected", lineOf(n))
	}
	for _, p := range pairs {
		key := prefix + strings.Trim(p.Key.String(), `"'`)
		e := entry{key: key, line: lineOf(p.Key)}
		switch v := p.Value.(type) {
		case *ast.MappingNode, *ast.MappingValueNode:
			if prefix != "" || !isGroup(key) {
				e.kind = "a group of values"
				break
			}
			if err := flatten(key+".", v, into); err != nil {
				return err
			}
			continue
		case *ast.StringNode:
			e.value = v.Value
		case *ast.LiteralNode:
			e.value = v.Value.Value
		case *ast.NullNode, nil:
			e.kind = "empty"
		case *ast.SequenceNode:
			e.kind = "a list"
		case *ast.AliasNode, *ast.AnchorNode, *ast.TagNode:
			e.kind = "an anchor, alias or tag of YAML"
		default: // numbers and words that YAML reads as such: as they were written
			e.value = p.Value.GetToken().Value
		}
		if len(*into) == maxEntries {
			return fmt.Errorf("line %d: more than %d values", e.line, maxEntries)
		}
		*into = append(*into, e)
	}
	return nil
}

func lineOf(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

func settingOf(key string) *setting {
	for i := range settings {
		if settings[i].key == key {
			return &settings[i]
		}
	}
	return nil
}

// keys are all that may stand in a file.
func keys() []string {
	all := []string{"version"}
	for _, set := range settings {
		all = append(all, set.key)
	}
	return all
}

func keysBelow(group string) []string {
	var below []string
	for _, k := range keys() {
		if rest, ok := strings.CutPrefix(k, group+"."); ok {
			below = append(below, rest)
		}
	}
	return below
}

func isGroup(key string) bool { return len(keysBelow(key)) > 0 }

// similar is the key that was probably meant.
func similar(typed string) string {
	best, distance := "", 3
	for _, k := range keys() {
		_, last, _ := strings.Cut(k, ".")
		switch {
		case normal(k) == normal(typed), last != "" && normal(last) == normal(typed):
			return k
		}
		for _, word := range []string{k, last} {
			if d := editDistance(normal(word), normal(typed)); word != "" && d < distance {
				best, distance = k, d
			}
		}
	}
	return best
}

// normal takes out how words are joined: data_dir and dataDir are data-dir.
func normal(s string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(s))
}

// editDistance counts insertions, deletions and replacements.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost = 1 + min(diagonal, row[j], row[j-1])
			}
			diagonal, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}

// Encode writes the configuration as a file that Load reads.
func (c *Config) Encode() ([]byte, error) {
	b, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}

// EncodeChanges writes a file with what is not the default, for a service that
// is to run with the configuration that this process has. The host's name is
// not in it: it counts at enrolment only. Nil means that there is nothing to say.
func (c *Config) EncodeChanges() []byte {
	plain := Default()
	var b strings.Builder
	group := ""
	for _, set := range settings {
		value := *set.field(c)
		if value == *set.field(plain) || set.key == "name" || set.key == "socket" && c.sources["socket"] == fromDataDir {
			continue
		}
		head, rest, grouped := strings.Cut(set.key, ".")
		if !grouped {
			fmt.Fprintf(&b, "%s: %s\n", set.key, strconv.Quote(value))
			continue
		}
		if head != group {
			fmt.Fprintf(&b, "%s:\n", head)
			group = head
		}
		fmt.Fprintf(&b, "  %s: %s\n", rest, strconv.Quote(value))
	}
	if b.Len() == 0 {
		return nil
	}
	return []byte(fmt.Sprintf("# Written by fleet. \"fleet agent --help\" names what may stand here.\nversion: %d\n", Version) + b.String())
}

// Difference is a value that two configurations do not share.
type Difference struct {
	Key           string
	Mine, Other   string
	Source        string // of Mine
	OtherDeclares bool   // the other one does not have its default
}

// Differences are the values of c, the host's name at enrolment excepted, that
// other has otherwise.
func (c *Config) Differences(other *Config) []Difference {
	var all []Difference
	for _, set := range settings {
		mine, theirs := *set.field(c), *set.field(other)
		if mine == theirs || set.key == "name" || set.key == "socket" && c.sources["socket"] == fromDataDir {
			continue
		}
		_, declared := other.sources[set.key]
		all = append(all, Difference{set.key, mine, theirs, c.Source(set.key), declared})
	}
	return all
}

// Value is one value of a configuration.
type Value struct {
	Key     string `json:"Key"`
	Value   string `json:"Value"`
	Source  string `json:"Source"` // see Config.Source
	Line    int    `json:"Line,omitempty"`
	Flag    string `json:"Flag,omitempty"`
	Env     string `json:"Env"`
	Allowed string `json:"Allowed"`
}

// Values are all values in the order of the file, each with its source.
func (c *Config) Values() []Value {
	all := make([]Value, 0, len(settings))
	for _, set := range settings {
		line := 0
		if c.Source(set.key) == c.file {
			line = c.lines[set.key]
		}
		flag := ""
		if set.flag != "" {
			flag = "--" + set.flag
		}
		all = append(all, Value{set.key, *set.field(c), c.Source(set.key), line, flag, set.env, set.allowed})
	}
	return all
}

func sortProblems(all []problem) {
	slices.SortStableFunc(all, func(a, b problem) int { return a.line - b.line })
}
