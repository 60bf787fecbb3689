// Package document reads SSM's command documents: it parses and checks them,
// checks the values of their parameters, and resolves both into steps that a
// host can run. It runs nothing and knows no plugin.
//
// Schema 2.2 is built; JSON and YAML are read into the same tree and from
// there by one reader, so that no document means two things. What a reader
// could overlook is refused: unknown keys, keys that occur twice, values of
// another type. An unknown action is kept, because only a host knows its plugins.
//
// Parameters become environment variables of a script, not text of it: where
// a script says {{ name }}, it gets ${SSM_name}, and the value arrives byte for
// byte whatever it holds. Text goes into a script only where it cannot be
// harmful (numbers, booleans), where the value is the script (a whole list of
// commands), and where the document asks for it (interpolationType: text).
// Other inputs get the values themselves. Nothing is substituted twice: a value
// that holds {{ other }} or {{ssm:x}} is only a value.
package document

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"fleet/node/fleet"
)

// Limits of a document.
const (
	MaxContent    = 64 << 10 // bytes, as in SSM
	MaxSteps      = 64
	MaxParameters = 200
	maxName       = 64  // of a step or action
	maxText       = 256 // of the document, in an error message
)

// SSM's codes of the errors here.
const (
	codeContent    = "InvalidDocumentContent"
	codeVersion    = "InvalidDocumentSchemaVersion"
	codeSize       = "MaxDocumentSizeExceeded"
	codeParameters = "InvalidParameters"
)

// Platforms, as preconditions spell them.
const (
	PlatformLinux   = "Linux"
	PlatformMacOS   = "MacOS"
	PlatformWindows = "Windows"
)

// Document is a parsed document. It must not be changed.
type Document struct {
	SchemaVersion string
	Description   string
	Parameters    map[string]Parameter
	Steps         []Step

	// Idempotent says that a host may run the document again when it was cut
	// off in the middle by a crash. Ours; SSM has no such key.
	Idempotent bool
}

// Step is one step. In a Document its inputs are as written; Resolve replaces
// what they take from parameters.
type Step struct {
	Name         string
	Action       string // the plugin, such as "aws:runShellScript"
	Precondition Precondition
	Inputs       map[string]any // of string, int64, float64, bool, nil, []any and map[string]any

	// Of the inputs, those that say how to go on; they are not in Inputs of a
	// resolved step.
	OnFailure OnFailure
	OnSuccess OnSuccess
	Finally   bool // run whatever happened; counts on the last step only
}

// OnFailure says what follows a failed step; without it, the next step does.
type OnFailure string

// Values of OnFailure.
const (
	FailureContinue OnFailure = ""
	FailureExit     OnFailure = "exit"
	FailureSuccess  OnFailure = "successAndExit" // the step counts as a success
)

// OnSuccess says what follows a step that succeeded.
type OnSuccess string

// Values of OnSuccess.
const (
	SuccessContinue OnSuccess = ""
	SuccessExit     OnSuccess = "exit"
)

var (
	parameterName = regexp.MustCompile(`^[a-zA-Z0-9]{1,128}$`)
	stepName      = regexp.MustCompile(`^[a-zA-Z0-9_.:-]{1,` + strconv.Itoa(maxName) + `}$`)
	actionName    = regexp.MustCompile(`^[a-zA-Z]+:[a-zA-Z0-9]+$`)
)

func badContent(format string, args ...any) error {
	return fleet.CodeErrorf(fleet.Invalid, codeContent, format, args...)
}

// Parse reads a document: JSON if it begins with a brace, else YAML. Errors are
// of kind Invalid (TooLarge over MaxContent) and name the place.
func Parse(content []byte) (*Document, error) {
	if len(content) > MaxContent {
		return nil, fleet.CodeErrorf(fleet.TooLarge, codeSize, "the document has %d bytes, at most %d are allowed", len(content), MaxContent)
	}
	tree, err := parseTree(content)
	if err != nil {
		return nil, badContent("document: %w", err)
	}
	r := &reader{}
	d := r.document(tree)
	if r.err != nil {
		return nil, r.err
	}
	return d, nil
}

// reader turns a tree into a Document and keeps the first error.
type reader struct{ err error }

func (r *reader) fail(where, format string, args ...any) {
	if r.err == nil {
		r.err = badContent("document: %s: %w", where, fmt.Errorf(format, args...))
	}
}

// object is the value at where as a map whose keys are all among known.
func (r *reader) object(where string, v any, known ...string) map[string]any {
	m, ok := v.(map[string]any)
	if !ok {
		r.fail(where, "it must be a map, not %s", kindOf(v))
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if len(known) > 0 && !slices.Contains(known, k) {
			r.fail(where, "%.64q is not a key here; it may have %s", k, strings.Join(known, ", "))
		}
	}
	return m
}

// text is the text at a key; "" if it is absent.
func (r *reader) text(where string, m map[string]any, key string) string {
	v, there := m[key]
	s, ok := v.(string)
	if there && !ok {
		r.fail(where+"."+key, "it must be text, not %s", kindOf(v))
	}
	return s
}

func (r *reader) document(tree any) *Document {
	m := r.object("the whole", tree, "schemaVersion", "description", "parameters", "mainSteps", "idempotent")
	d := &Document{Description: r.text("the whole", m, "description"), Parameters: map[string]Parameter{}}
	switch v := m["schemaVersion"].(type) {
	case string:
		d.SchemaVersion = v
	case float64: // YAML without quotes
		d.SchemaVersion = strconv.FormatFloat(v, 'f', -1, 64)
	}
	if d.SchemaVersion != "2.2" && r.err == nil {
		r.err = fleet.CodeErrorf(fleet.Invalid, codeVersion, "document: schemaVersion must be \"2.2\"; %.20q is not supported",
			d.SchemaVersion)
	}
	if v, there := m["idempotent"]; there {
		b, ok := v.(bool)
		if !ok {
			r.fail("idempotent", "it must be true or false, not %s", kindOf(v))
		}
		d.Idempotent = b
	}
	if v, there := m["parameters"]; there {
		parameters := r.object("parameters", v)
		if len(parameters) > MaxParameters {
			r.fail("parameters", "there are %d, at most %d are allowed", len(parameters), MaxParameters)
			return d
		}
		for _, name := range slices.Sorted(maps.Keys(parameters)) {
			where := "parameters." + clip(name)
			if !parameterName.MatchString(name) {
				r.fail(where, "a name is of 1 to 128 letters and digits")
			}
			d.Parameters[name] = r.parameter(where, parameters[name])
		}
	}
	steps, ok := m["mainSteps"].([]any)
	if !ok || len(steps) == 0 || len(steps) > MaxSteps {
		r.fail("mainSteps", "there must be a list of 1 to %d steps", MaxSteps)
		return d
	}
	seen := map[string]bool{}
	for i, v := range steps {
		s := r.step(fmt.Sprintf("mainSteps[%d]", i), v)
		if seen[s.Name] {
			r.fail(fmt.Sprintf("mainSteps[%d]", i), "a step before has the name %q", s.Name)
		}
		seen[s.Name] = true
		d.Steps = append(d.Steps, s)
	}
	return d
}

func (r *reader) step(where string, v any) Step {
	m := r.object(where, v, "action", "name", "precondition", "inputs")
	s := Step{Name: r.text(where, m, "name"), Action: r.text(where, m, "action"), Inputs: map[string]any{}}
	if !stepName.MatchString(s.Name) {
		r.fail(where+".name", "a name is of 1 to %d letters, digits and _.:-", maxName)
	}
	if len(s.Action) > maxName || !actionName.MatchString(s.Action) {
		r.fail(where+".action", "an action looks like aws:runShellScript")
	}
	if v, there := m["inputs"]; there {
		s.Inputs = r.object(where+".inputs", v)
	}
	if v, there := m["precondition"]; there {
		s.Precondition = r.precondition(where+".precondition", v)
	}
	// Those that take no parameter can be checked now.
	for _, key := range controlKeys {
		if v, there := s.Inputs[key]; there && !isTemplate(v) {
			if err := (&Step{}).control(key, v); err != nil {
				r.fail(where+".inputs."+key, "%w", err)
			}
		}
	}
	return s
}

func (r *reader) precondition(where string, v any) Precondition {
	p := Precondition{}
	m := r.object(where, v)
	for operator, v := range m {
		list, ok := v.([]any)
		if !ok {
			r.fail(where+"."+clip(operator), "it must be a list, not %s", kindOf(v))
		}
		p[operator] = make([]Argument, 0, len(list))
		for _, a := range list {
			s, ok := a.(string)
			if !ok {
				r.fail(where+"."+clip(operator), "an argument must be text, not %s", kindOf(a))
			}
			p[operator] = append(p[operator], Argument{Initial: s, Resolved: s})
		}
	}
	return p
}

// controlKeys are the inputs that every plugin has.
var controlKeys = []string{"onFailure", "onSuccess", "finallyStep"}

// control takes one of them over into the step.
func (s *Step) control(key string, v any) error {
	switch key {
	case "onFailure":
		text, _ := v.(string)
		if s.OnFailure = OnFailure(text); s.OnFailure != FailureExit && s.OnFailure != FailureSuccess {
			return fmt.Errorf("it must be %s or %s", FailureExit, FailureSuccess)
		}
	case "onSuccess":
		text, _ := v.(string)
		if s.OnSuccess = OnSuccess(text); s.OnSuccess != SuccessExit {
			return fmt.Errorf("it must be %s", SuccessExit)
		}
	case "finallyStep":
		switch v {
		case true, "true":
			s.Finally = true
		case false, "false":
		default:
			return fmt.Errorf("it must be true or false")
		}
	}
	return nil
}

// Timeouts of a step, as in SSM. There an invalid one silently becomes the
// default; here it is refused.
const (
	DefaultTimeout = time.Hour
	MinTimeout     = 5 * time.Second
	MaxTimeout     = 48 * time.Hour
)

// Timeout is how long a resolved step may take: its input timeoutSeconds.
func (s *Step) Timeout() (time.Duration, error) {
	var seconds int64
	switch v := s.Inputs["timeoutSeconds"].(type) {
	case nil:
		return DefaultTimeout, nil
	case int64:
		seconds = v
	case string:
		if v == "" {
			return DefaultTimeout, nil
		}
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return 0, fleet.CodeErrorf(fleet.Invalid, codeParameters, "step %s: timeoutSeconds is not a number", s.Name)
		}
		seconds = n
	default:
		return 0, fleet.CodeErrorf(fleet.Invalid, codeParameters, "step %s: timeoutSeconds is not a number", s.Name)
	}
	if seconds < int64(MinTimeout/time.Second) || seconds > int64(MaxTimeout/time.Second) {
		return 0, fleet.CodeErrorf(fleet.Invalid, codeParameters, "step %s: timeoutSeconds must be %d to %d, not %d", s.Name,
			MinTimeout/time.Second, MaxTimeout/time.Second, seconds)
	}
	return time.Duration(seconds) * time.Second, nil
}

// ExecutionSeconds is how long all steps may take together with these
// parameters. It checks all that Resolve checks.
func ExecutionSeconds(d *Document, parameters map[string][]string) (int, error) {
	steps, _, err := Resolve(d, parameters)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for i := range steps {
		t, err := steps[i].Timeout()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return int(sum / time.Second), nil
}

// Strings is an input that is a text or a list of texts as a list; a list that
// a parameter put into a list is taken as its elements.
func Strings(v any) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		all := make([]string, 0, len(v))
		for _, e := range v {
			switch e := e.(type) {
			case string:
				all = append(all, e)
			case []any:
				for _, inner := range e {
					s, ok := inner.(string)
					if !ok {
						return nil, false
					}
					all = append(all, s)
				}
			default:
				return nil, false
			}
		}
		return all, true
	}
	return nil, false
}

// kindOf names the type of a value for a person.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case string:
		return "text"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "a map"
	}
	return fmt.Sprintf("%T", v)
}

// clip keeps foreign names in messages short.
func clip(s string) string { return shorten(s, maxName) }

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
