package document

import (
	"embed"
	"maps"
	"slices"
)

//go:embed builtin/*.json
var builtinFiles embed.FS

// builtins are the documents that every release brings: the name, the file and
// its version. A file never changes without a new version, since hosts compare
// its digest.
var builtins = map[string]struct{ file, version string }{
	"AWS-RunShellScript":      {"builtin/AWS-RunShellScript.json", "1"},
	"AWS-RunPowerShellScript": {"builtin/AWS-RunPowerShellScript.json", "1"},
	"Fleet-RunShellScript":    {"builtin/Fleet-RunShellScript.json", "1"},
	"Fleet-Upgrade":           {"builtin/Fleet-Upgrade.json", "1"},
}

// BuiltinNames are the names of the documents that need no creating.
func BuiltinNames() []string { return slices.Sorted(maps.Keys(builtins)) }

// Builtin gives the content and version of a document that needs no creating.
func Builtin(name string) (content []byte, version string, ok bool) {
	b, ok := builtins[name]
	if !ok {
		return nil, "", false
	}
	content, err := builtinFiles.ReadFile(b.file)
	if err != nil {
		return nil, "", false // a file that the table names and the program lacks: a test would have failed
	}
	return content, b.version, true
}
