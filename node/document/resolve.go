package document

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"fleet/node/fleet"
)

// EnvPrefix begins the name of the environment variable of a parameter.
const EnvPrefix = "SSM_"

// maxEnvValue keeps one variable below what an exec takes.
const maxEnvValue = 96 << 10

var (
	reference      = regexp.MustCompile(`\{\{\s*([a-zA-Z0-9]+)\s*\}\}`)
	wholeReference = regexp.MustCompile(`^\{\{\s*([a-zA-Z0-9]+)\s*\}\}$`)
	storeReference = regexp.MustCompile(`\{\{\s*(ssm|ssm-secure):`)
)

// scriptInputs are the inputs that a shell interprets, by action, and how a
// script there reads an environment variable.
var scriptInputs = map[string]struct {
	input string
	read  func(variable string) string
}{
	"aws:runShellScript":      {"runCommand", func(v string) string { return "${" + v + "}" }},
	"aws:runPowerShellScript": {"runCommand", func(v string) string { return "${env:" + v + "}" }},
	"fleet:runScript":         {"runCommand", func(v string) string { return "${" + v + "}" }},
	"aws:psModule":            {"runCommand", func(v string) string { return "${env:" + v + "}" }},
}

// isTemplate reports whether a value refers to a parameter.
func isTemplate(v any) bool {
	s, ok := v.(string)
	return ok && reference.MatchString(s)
}

// Resolve checks the parameters that a caller gave (as in SSM, each a list of
// texts) and gives the steps with all references replaced, and the environment
// variables ("NAME=value", ascending) that their scripts read. Errors are of
// kind Invalid with SSM's code and never show a value.
func Resolve(d *Document, parameters map[string][]string) ([]Step, []string, error) {
	values, err := d.values(parameters)
	if err != nil {
		return nil, nil, err
	}
	r := &resolver{doc: d, values: values, env: map[string]string{}}
	for name, p := range d.Parameters {
		if p.Type == String && p.Interpolation != Text {
			r.export(name)
		}
	}
	steps := make([]Step, 0, len(d.Steps))
	for _, s := range d.Steps {
		resolved, err := r.step(s)
		if err != nil {
			return nil, nil, err
		}
		steps = append(steps, resolved)
	}
	env := make([]string, 0, len(r.env))
	for _, name := range slices.Sorted(maps.Keys(r.env)) {
		if len(r.env[name]) > maxEnvValue {
			return nil, nil, fleet.CodeErrorf(fleet.Invalid, codeParameters, "parameter %s has %d bytes, an environment variable at most %d",
				strings.TrimPrefix(name, EnvPrefix), len(r.env[name]), maxEnvValue)
		}
		env = append(env, name+"="+r.env[name])
	}
	return steps, env, nil
}

type resolver struct {
	doc    *Document
	values map[string]any
	env    map[string]string
}

func (r *resolver) export(parameter string) {
	r.env[EnvPrefix+parameter] = asText(r.values[parameter])
}

func (r *resolver) step(s Step) (Step, error) {
	out := Step{Name: s.Name, Action: s.Action, Inputs: make(map[string]any, len(s.Inputs))}
	script := scriptInputs[s.Action]
	for key, v := range s.Inputs {
		if refersToStore(v) {
			return out, fleet.CodeErrorf(fleet.Invalid, codeContent,
				"step %s: references to the parameter store ({{ssm:...}}) are not supported in this release", s.Name)
		}
		read := (func(string) string)(nil)
		if script.input == key {
			read = script.read
		}
		v = r.replace(v, read)
		if slices.Contains(controlKeys, key) {
			if err := out.control(key, v); err != nil {
				return out, fleet.CodeErrorf(fleet.Invalid, codeParameters, "step %s: %s: %v", s.Name, key, err)
			}
			continue
		}
		out.Inputs[key] = v
	}
	if s.Precondition != nil {
		out.Precondition = Precondition{}
		for operator, arguments := range s.Precondition {
			resolved := make([]Argument, 0, len(arguments))
			for _, a := range arguments {
				resolved = append(resolved, Argument{a.Initial, r.text(a.Initial, nil)})
			}
			out.Precondition[operator] = resolved
		}
	}
	return out, nil
}

// refersToStore reports whether a value, as the document has it, asks for a
// stored parameter.
func refersToStore(v any) bool {
	switch v := v.(type) {
	case string:
		return storeReference.MatchString(v)
	case []any:
		return slices.ContainsFunc(v, refersToStore)
	case map[string]any:
		for _, e := range v {
			if refersToStore(e) {
				return true
			}
		}
	}
	return false
}

// replace is a value with its references replaced, once. read is not nil in a
// script: how it reads a variable.
func (r *resolver) replace(v any, read func(string) string) any {
	switch v := v.(type) {
	case string:
		if m := wholeReference.FindStringSubmatch(v); m != nil {
			if value, ok := r.values[m[1]]; ok && !(read != nil && r.byVariable(m[1], true)) {
				return value
			}
		}
		return r.text(v, read)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = r.replace(e, read)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = r.replace(e, read)
		}
		return out
	}
	return v
}

// text is a text with its references replaced. Names that are no parameters
// stay: templates of other tools look the same.
func (r *resolver) text(s string, read func(string) string) string {
	return reference.ReplaceAllStringFunc(s, func(ref string) string {
		name := reference.FindStringSubmatch(ref)[1]
		value, ok := r.values[name]
		if !ok {
			return ref
		}
		if read != nil && r.byVariable(name, false) {
			r.export(name)
			return read(EnvPrefix + name)
		}
		return asText(value)
	})
}

// byVariable reports whether a script gets a parameter as a variable. whole
// says that the reference is all of an input or of an element of it.
func (r *resolver) byVariable(name string, whole bool) bool {
	p := r.doc.Parameters[name]
	switch {
	case p.Interpolation == Text:
		return false
	case p.Type == Boolean, p.Type == Integer:
		return false // no value of these is harmful
	case p.Type == String:
		return true
	default:
		return !whole // a whole list is the script itself
	}
}
