package document

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Precondition says when a step is run: arguments by operator. SSM knows the
// operator StringEquals only; others are kept, and make the step fail.
type Precondition map[string][]Argument

// Argument is one argument as the document has it and with its parameters
// replaced.
type Argument struct{ Initial, Resolved string }

const platformType = "platformType"

// Met decides whether a step is run on a platform. problems says which part is
// not satisfied, or, when met is true, which part SSM would not understand: the
// step then fails.
func (p Precondition) Met(platform string) (met bool, problems []string) {
	met = true
	for _, operator := range slices.Sorted(maps.Keys(p)) {
		a := p[operator]
		switch {
		case operator != "StringEquals":
			problems = append(problems, fmt.Sprintf("unrecognized operator: %.64q", operator))
			continue
		case len(a) != 2:
			problems = append(problems, fmt.Sprintf("%q: operator accepts exactly 2 arguments", operator))
			continue
		}
		ok, problem := stringEquals(a[0], a[1], platform)
		met = met && ok
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%q: %s", operator, problem))
		}
	}
	return met, problems
}

// stringEquals compares two arguments. One of them is platformType, or at least
// one holds a parameter: anything else would always be true or always false.
func stringEquals(a, b Argument, platform string) (met bool, problem string) {
	if b.Initial == platformType {
		a, b = b, a
	}
	switch {
	case a.Initial == b.Initial:
		return true, "operator's arguments can't be identical"
	case storeReference.MatchString(a.Initial), storeReference.MatchString(b.Initial):
		return true, "operator's arguments can't contain SSM parameters"
	case a.Initial == platformType && b.Initial != b.Resolved:
		return true, "the second argument for the platformType variable can't contain document parameters"
	case a.Initial == platformType:
		if !strings.EqualFold(b.Initial, platform) {
			return false, fmt.Sprintf("[%s, %.64s]", platformType, b.Initial)
		}
		return true, ""
	case a.Initial == a.Resolved && b.Initial == b.Resolved:
		return true, "at least one of operator's arguments must contain a valid document parameter"
	case a.Resolved != b.Resolved:
		return false, fmt.Sprintf("[%.64s, %.64s]", a.Initial, b.Initial) // not the values: they may be secrets
	}
	return true, ""
}
