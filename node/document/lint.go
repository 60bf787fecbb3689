package document

import (
	"fmt"
	"strings"
)

// Finding is something in a document that works but should be looked at.
type Finding struct {
	Where string // "mainSteps[0].inputs.runCommand"
	Text  string // what and why, for a person
}

// Lint looks for what parses but surprises.
func (d *Document) Lint() []Finding {
	var all []Finding
	add := func(where, format string, args ...any) {
		all = append(all, Finding{where, fmt.Sprintf(format, args...)})
	}
	for i := range d.Steps {
		s := &d.Steps[i]
		where := fmt.Sprintf("mainSteps[%d]", i)
		if v, ok := s.Inputs["finallyStep"]; ok && i < len(d.Steps)-1 && v != false && v != "false" {
			add(where+".inputs.finallyStep", "only the last step can be the final one: here it has no effect")
		}
		if s.Precondition != nil {
			for _, platform := range []string{PlatformLinux, PlatformMacOS, PlatformWindows} {
				if met, problems := s.Precondition.Met(platform); met && len(problems) > 0 && !s.usesParameters() {
					add(where+".precondition", "the step fails on every host: %s", strings.Join(problems, ", "))
					break
				}
			}
		}
		script, ok := scriptInputs[s.Action]
		if !ok {
			continue
		}
		walkText(s.Inputs[script.input], func(text string) {
			for _, f := range d.lintScript(text) {
				add(where+".inputs."+script.input, "%s", f)
			}
		})
	}
	return all
}

func (s *Step) usesParameters() bool {
	for _, arguments := range s.Precondition {
		for _, a := range arguments {
			if isTemplate(a.Initial) {
				return true
			}
		}
	}
	return false
}

// lintScript looks at the references in one text of a script.
func (d *Document) lintScript(text string) (all []string) {
	for _, m := range reference.FindAllStringSubmatchIndex(text, -1) {
		name := text[m[2]:m[3]]
		p, ok := d.Parameters[name]
		if !ok {
			all = append(all, fmt.Sprintf("{{ %.64s }} is not a parameter and stays as it is", name))
			continue
		}
		whole := m[0] == 0 && m[1] == len(text)
		free := len(p.AllowedValues) == 0 && p.pattern == nil
		byVariable := p.Interpolation != Text && (p.Type == String || p.Type != Boolean && p.Type != Integer && !whole)
		switch {
		case byVariable && inSingleQuotes(text[:m[0]]):
			all = append(all, fmt.Sprintf("{{ %s }} becomes a variable, which is not expanded in single quotes: use double quotes", name))
		case p.Interpolation == Text && free && p.Type == String:
			all = append(all, fmt.Sprintf("parameter %s is put into the script as text and may hold any command: "+
				"declare allowedPattern or allowedValues, or use interpolationType %s", name, EnvVar))
		}
	}
	return all
}

// inSingleQuotes guesses whether a quote is open at the end of a script's text:
// by the quotes of its last line.
func inSingleQuotes(before string) bool {
	line := before[strings.LastIndexByte(before, '\n')+1:]
	return strings.Count(line, "'")%2 == 1
}

func walkText(v any, visit func(string)) {
	switch v := v.(type) {
	case string:
		visit(v)
	case []any:
		for _, e := range v {
			walkText(e, visit)
		}
	}
}
