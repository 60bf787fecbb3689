package document

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"fleet/node/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// withInputs is a JSON document with one parameter p of the given declaration
// and one shell step of the given inputs.
func withInputs(parameter, inputs string) string {
	if parameter == "" {
		parameter = `{"type":"String","default":"x"}`
	}
	return fmt.Sprintf(`{"schemaVersion":"2.2","parameters":{"p":%s},
		"mainSteps":[{"action":"aws:runShellScript","name":"s","inputs":%s}]}`, parameter, inputs)
}

func parse(t testing.TB, content string) *Document {
	t.Helper()
	d, err := Parse([]byte(content))
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return d
}

func TestParse(t *testing.T) {
	want := &Document{
		SchemaVersion: "2.2", Description: "Say hello", Idempotent: true,
		Parameters: map[string]Parameter{
			"who":   {Type: String, Description: "Whom", Default: "world", AllowedPattern: "[a-z]+", MaxItems: -1, MinChars: 1, MaxChars: 20, Interpolation: EnvVar},
			"count": {Type: Integer, Default: int64(3), AllowedValues: []string{"1", "3"}, MaxItems: -1, MaxChars: -1},
			"lines": {Type: StringList, MinItems: 1, MaxItems: 5, MaxChars: -1, DisplayType: "textarea"},
		},
		Steps: []Step{
			{
				Name: "hello", Action: "aws:runShellScript",
				Precondition: Precondition{"StringEquals": {{"platformType", "platformType"}, {"Linux", "Linux"}}},
				Inputs: map[string]any{
					"runCommand": []any{"#!/bin/sh\necho \"$SSM_who\"\n", "exit 0"}, "timeoutSeconds": int64(60), "onFailure": "exit",
				},
			},
			{Name: "again", Action: "my:plugin", Inputs: map[string]any{"x": map[string]any{"y": nil, "z": 1.5, "on": true}}},
		},
	}
	for name, content := range map[string]string{
		"JSON": `{"schemaVersion": "2.2", "description": "Say hello", "idempotent": true, "parameters": {
			"who": {"type": "String", "description": "Whom", "default": "world", "allowedPattern": "[a-z]+", "minChars": 1, "maxChars": "20", "interpolationType": "ENV_VAR"},
			"count": {"type": "Integer", "default": "3", "allowedValues": [1, "3"]},
			"lines": {"type": "StringList", "minItems": 1, "maxItems": 5, "displayType": "textarea"}},
			"mainSteps": [
			{"action": "aws:runShellScript", "name": "hello", "precondition": {"StringEquals": ["platformType", "Linux"]},
			 "inputs": {"runCommand": ["#!/bin/sh\necho \"$SSM_who\"\n", "exit 0"], "timeoutSeconds": 60, "onFailure": "exit"}},
			{"action": "my:plugin", "name": "again", "inputs": {"x": {"y": null, "z": 1.5, "on": true}}}]}`,
		"YAML": `---
schemaVersion: 2.2
description: Say hello
idempotent: true
parameters:
  who: {type: String, description: Whom, default: world, allowedPattern: '[a-z]+', minChars: 1, maxChars: 20, interpolationType: ENV_VAR}
  count:
    type: Integer
    default: 3
    allowedValues: [1, 3]
  lines:
    type: StringList
    minItems: 1
    maxItems: 5
    displayType: textarea
mainSteps:
- action: &shell aws:runShellScript   # a comment
  name: hello
  precondition:
    StringEquals:
    - platformType
    - Linux
  inputs:
    runCommand:
    - |
      #!/bin/sh
      echo "$SSM_who"
    - exit 0
    timeoutSeconds: 60
    onFailure: exit
- action: my:plugin
  name: again
  inputs:
    x:
      y: ~
      z: 1.5
      on: true
...
`,
	} {
		t.Run(name, func(t *testing.T) {
			got := parse(t, content)
			for name, p := range got.Parameters { // compiled patterns do not compare
				p.pattern = nil
				got.Parameters[name] = p
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	step := `{"action":"aws:runShellScript","name":"s"}`
	doc := func(rest string) string { return `{"schemaVersion":"2.2",` + rest + `}` }
	steps := func(s string) string { return doc(`"mainSteps":[` + s + `]`) }
	parameter := func(p string) string {
		return doc(`"parameters":{"p":` + p + `},"mainSteps":[` + step + `]`)
	}
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	tests := []struct {
		name    string
		content string
		want    string // in the error
	}{
		{"empty", "", "empty"},
		{"blank", " \n\t", "empty"},
		{"not UTF-8", "{\"a\":\"\xff\"}", "UTF-8"},
		{"NUL", "a: \x00", "UTF-8"},
		{"cut JSON", `{"schemaVersion":`, "EOF"},
		{"two JSON documents", steps(step) + `{}`, "follows"},
		{"JSON list", `[1]`, "must be a map"},
		{"twice in JSON", `{"schemaVersion":"2.2","schemaVersion":"2.2"}`, "occurs twice"},
		{"twice in an input", steps(`{"action":"a:b","name":"s","inputs":{"a":1,"a":2}}`), "occurs twice"},
		{"deep JSON", steps(`{"action":"a:b","name":"s","inputs":{"a":` + deep + `}}`), "deeper"},
		{"other case", `{"SchemaVersion":"2.2"}`, "not a key here"},
		{"unknown key", doc(`"assumeRole":"x","mainSteps":[` + step + `]`), "assumeRole"},
		{"no version", `{"mainSteps":[` + step + `]}`, "schemaVersion"},
		{"version 1.2", `{"schemaVersion":"1.2","mainSteps":[` + step + `]}`, "1.2"},
		{"version 0.3", `{"schemaVersion":"0.3","mainSteps":[` + step + `]}`, "0.3"},
		{"no steps", doc(`"description":"x"`), "mainSteps"},
		{"empty steps", steps(``), "mainSteps"},
		{"too many steps", steps(strings.TrimSuffix(strings.Repeat(step+",", 65), ",")), "mainSteps"},
		{"two steps of one name", steps(step + "," + step), "has the name"},
		{"step without name", steps(`{"action":"a:b"}`), "name"},
		{"step with a path as name", steps(`{"action":"a:b","name":"../x"}`), "name"},
		{"step without action", steps(`{"name":"s"}`), "action"},
		{"action without plugin", steps(`{"action":"aws","name":"s"}`), "action"},
		{"key beside the inputs", steps(`{"action":"a:b","name":"s","timeoutSeconds":5}`), "timeoutSeconds"},
		{"inputs as a list", steps(`{"action":"a:b","name":"s","inputs":[]}`), "inputs"},
		{"onFailure unknown", steps(`{"action":"a:b","name":"s","inputs":{"onFailure":"stop"}}`), "onFailure"},
		{"onSuccess unknown", steps(`{"action":"a:b","name":"s","inputs":{"onSuccess":"stop"}}`), "onSuccess"},
		{"finallyStep unknown", steps(`{"action":"a:b","name":"s","inputs":{"finallyStep":{}}}`), "finallyStep"},
		{"precondition of numbers", steps(`{"action":"a:b","name":"s","precondition":{"StringEquals":[1,2]}}`), "must be text"},
		{"idempotent as text", doc(`"idempotent":"true","mainSteps":[` + step + `]`), "idempotent"},
		{"parameter name", doc(`"parameters":{"a_b":{"type":"String"}},"mainSteps":[` + step + `]`), "letters and digits"},
		{"parameter without type", parameter(`{}`), "type"},
		{"parameter of unknown type", parameter(`{"type":"Secret"}`), "type"},
		{"parameter with an unknown key", parameter(`{"type":"String","min":1}`), "min"},
		{"look-ahead", parameter(`{"type":"String","allowedPattern":"(?=a)b"}`), "RE2"},
		{"long pattern", parameter(`{"type":"String","allowedPattern":"` + strings.Repeat("a", 1025) + `"}`), "1025"},
		{"negative count", parameter(`{"type":"String","minChars":-1}`), "minChars"},
		{"display type", parameter(`{"type":"String","displayType":"password"}`), "displayType"},
		{"interpolation type", parameter(`{"type":"String","interpolationType":"TEXT"}`), "interpolationType"},
		{"interpolation of a list", parameter(`{"type":"StringList","interpolationType":"ENV_VAR"}`), "interpolationType"},
		{"default of another type", parameter(`{"type":"StringList","default":"a"}`), "default"},
		{"default that is not allowed", parameter(`{"type":"String","default":"c","allowedValues":["a","b"]}`), "default"},
		{"default that does not match", parameter(`{"type":"String","default":"xaa","allowedPattern":"a+"}`), "default"},
		{"cut YAML", "a: [", ""},
		{"twice in YAML", "schemaVersion: '2.2'\nschemaVersion: '2.2'\n", ""},
		{"two YAML documents", "a: 1\n---\nb: 1\n", "2 documents"},
		{"YAML tag", "schemaVersion: !!str 2.2\n", "tags"},
		{"YAML custom tag", "schemaVersion: !!python/object:os.system 2.2\n", "tags"},
		{"YAML merge key", "a: &a {b: 1}\nc:\n  <<: *a\n", "merge"},
		{"YAML alias to nothing", "a: *b\n", "anchor"},
		{"YAML alias in itself", "a: &a [*a]\n", "anchor"},
		{"YAML number as key", "1: a\n", "key"},
		{"YAML octal", "a: 0755\n", "quotes"},
		{"YAML underscore", "a: 1_000\n", ""},
		{"YAML infinity", "a: .inf\n", ""},
		{"deep YAML flow", "a: " + deep, "deeper"},
		{"deep YAML entries", strings.Repeat("- ", 1000) + "a", "deeper"},
		{"billion laughs", billionLaughs(), ""},
		{"too large", strings.Repeat(" ", MaxContent) + "{", "at most"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			begin := time.Now()
			d, err := Parse([]byte(test.content))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %+v, %v, want an error with %q", d, err, test.want)
			}
			var e *fleet.Error
			if k := fleet.KindOf(err); k != fleet.Invalid && k != fleet.TooLarge {
				t.Errorf("kind %v", k)
			}
			if !asError(err, &e) || e.Code == "" {
				t.Errorf("no SSM code: %v", err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func asError(err error, to **fleet.Error) bool {
	e, ok := err.(*fleet.Error) //nolint:errorlint // the outermost is meant
	*to = e
	return ok
}

func billionLaughs() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	return b.String()
}

func TestAliasesAreReadWhereTheyStand(t *testing.T) {
	d := parse(t, `
schemaVersion: "2.2"
mainSteps:
- action: &shell aws:runShellScript
  name: one
  inputs: &in
    runCommand: [echo]
- action: *shell
  name: two
  inputs: *in
`)
	if d.Steps[1].Action != "aws:runShellScript" || !reflect.DeepEqual(d.Steps[0].Inputs, d.Steps[1].Inputs) {
		t.Errorf("got %+v", d.Steps)
	}
}

func TestTimeout(t *testing.T) {
	tests := []struct {
		value string
		want  time.Duration
		bad   bool
	}{
		{value: `null`, want: time.Hour},
		{value: `""`, want: time.Hour},
		{value: `5`, want: 5 * time.Second},
		{value: `"172800"`, want: 48 * time.Hour},
		{value: `4`, bad: true},
		{value: `172801`, bad: true},
		{value: `"-5"`, bad: true},
		{value: `"5s"`, bad: true},
		{value: `5.5`, bad: true},
		{value: `[5]`, bad: true},
		{value: `"{{ p }}"`, want: 7 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.value, func(t *testing.T) {
			d := parse(t, withInputs("", `{"timeoutSeconds":`+test.value+`}`))
			steps, _, err := Resolve(d, map[string][]string{"p": {"7"}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := steps[0].Timeout()
			if (err != nil) != test.bad || got != test.want {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

func TestExecutionSeconds(t *testing.T) {
	content, _, _ := Builtin("AWS-RunShellScript")
	d := parse(t, string(content))
	commands := []string{"true"}
	tests := []struct {
		name       string
		parameters map[string][]string
		want       int
		code       string
	}{
		{"default", map[string][]string{"commands": commands}, 3600, ""},
		{"given", map[string][]string{"commands": commands, "executionTimeout": {"5"}}, 5, ""},
		{"longest", map[string][]string{"commands": commands, "executionTimeout": {"172800"}}, 172800, ""},
		{"too short", map[string][]string{"commands": commands, "executionTimeout": {"4"}}, 0, codeParameters},
		{"too long", map[string][]string{"commands": commands, "executionTimeout": {"172801"}}, 0, codeParameters},
		{"no commands", nil, 0, codeParameters},
		{"empty commands", map[string][]string{"commands": {}}, 0, codeParameters},
		{"unknown parameter", map[string][]string{"commands": commands, "Commands": commands}, 0, codeParameters},
		{"two values for one", map[string][]string{"commands": commands, "executionTimeout": {"5", "6"}}, 0, codeParameters},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ExecutionSeconds(d, test.parameters)
			var e *fleet.Error
			if got != test.want || (err == nil) != (test.code == "") || err != nil && (!asError(err, &e) || e.Code != test.code) {
				t.Errorf("got %d, %v, want %d, code %q", got, err, test.want, test.code)
			}
		})
	}
	two := parse(t, `{"schemaVersion":"2.2","mainSteps":[{"action":"a:b","name":"x","inputs":{"timeoutSeconds":10}},{"action":"a:b","name":"y"}]}`)
	if got, err := ExecutionSeconds(two, nil); got != 3610 || err != nil {
		t.Errorf("two steps: %d, %v", got, err)
	}
}

func TestBuiltin(t *testing.T) {
	for name := range builtins {
		content, version, ok := Builtin(name)
		if !ok || version == "" {
			t.Fatalf("%s is not there", name)
		}
		d := parse(t, string(content))
		if findings := d.Lint(); len(findings) > 0 {
			t.Errorf("%s: %v", name, findings)
		}
	}
	// SSM's document is SSM's: what is ours beyond it stands in a document of ours.
	aws, _, _ := Builtin("AWS-RunShellScript")
	ours, _, _ := Builtin("Fleet-RunShellScript")
	if got := parse(t, string(aws)).parameterNames(); got != "commands, executionTimeout, workingDirectory" {
		t.Errorf("AWS-RunShellScript has the parameters %s", got)
	}
	if got := parse(t, string(ours)).parameterNames(); got != "commands, environment, executionTimeout, shell, workingDirectory" {
		t.Errorf("Fleet-RunShellScript has the parameters %s", got)
	}
	if _, _, ok := Builtin("aws-runshellscript"); ok {
		t.Error("another case was found")
	}
	// Hosts compare digests: new content needs a new version.
	golden := filepath.Join("testdata", "builtin.json")
	got := map[string]string{}
	for name, b := range builtins {
		content, _, _ := Builtin(name)
		got[name+" "+b.version] = fleet.Sum(content).String()
	}
	if *update {
		b, err := json.MarshalIndent(got, "", "  ")
		if err == nil {
			err = os.MkdirAll("testdata", 0o755)
		}
		if err == nil {
			err = os.WriteFile(golden, append(b, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var want map[string]string
	b, err := os.ReadFile(golden)
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: the content of a version changed: got %v, want %v", err, got, want)
	}
}

func TestEnvironmentOfTheBuiltinDocument(t *testing.T) {
	content, _, _ := Builtin("Fleet-RunShellScript")
	d := parse(t, string(content))
	nasty := []string{"A=\"; rm -rf / #", "B=a\nb\n", "_c9={{ commands }}", "D="}
	steps, _, err := Resolve(d, map[string][]string{"commands": {"true"}, "environment": nasty})
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := Strings(steps[0].Inputs["environment"]); !ok || !slices.Equal(got, nasty) {
		t.Errorf("environment %q, want %q", got, nasty)
	}
	for _, bad := range []string{"", "A", "=x", "1A=x", "A B=x", "A-B=x", "A=\x00", "A=\xff"} {
		if _, _, err := Resolve(d, map[string][]string{"commands": {"true"}, "environment": {bad}}); fleet.KindOf(err) != fleet.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, _, err := Resolve(d, map[string][]string{"commands": {"true"}, "shell": {"zsh"}}); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("a shell that is none: %v", err)
	}
}

func TestStrings(t *testing.T) {
	tests := []struct {
		value any
		want  []string
		ok    bool
	}{
		{"a", []string{"a"}, true},
		{[]any{"a", "b"}, []string{"a", "b"}, true},
		{[]any{"a", []any{"b", "c"}}, []string{"a", "b", "c"}, true},
		{[]any{}, []string{}, true},
		{[]any{int64(1)}, nil, false},
		{[]any{[]any{int64(1)}}, nil, false},
		{nil, nil, false},
		{int64(1), nil, false},
	}
	for _, test := range tests {
		got, ok := Strings(test.value)
		if ok != test.ok || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%v: got %q, %v, want %q, %v", test.value, got, ok, test.want, test.ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	content, _, _ := Builtin("AWS-RunShellScript")
	f.Add(content)
	f.Add([]byte(billionLaughs()))
	f.Add([]byte("schemaVersion: '2.2'\nmainSteps:\n- {action: 'a:b', name: x, inputs: {a: &a [1, *a]}}\n"))
	f.Add([]byte("schemaVersion: 2.2\nparameters:\n  p: {type: Integer, default: 3}\nmainSteps:\n- action: aws:runShellScript\n  name: s\n  inputs:\n    runCommand: |\n      echo {{ p }}\n"))
	f.Add([]byte("? - - : : [{a: b}]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := Parse(content)
		if err != nil {
			if fleet.KindOf(err) != fleet.Invalid && fleet.KindOf(err) != fleet.TooLarge {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		d.Lint()
		given := map[string][]string{}
		for name := range d.Parameters {
			given[name] = []string{"1"}
		}
		steps, env, err := Resolve(d, given)
		if err != nil {
			return
		}
		if len(steps) != len(d.Steps) {
			t.Fatalf("%d steps of %d", len(steps), len(d.Steps))
		}
		for i := range steps {
			_, _ = steps[i].Timeout()
			_, _ = steps[i].Precondition.Met(PlatformLinux)
		}
		for _, e := range env {
			if !strings.HasPrefix(e, EnvPrefix) {
				t.Fatalf("variable %q", e)
			}
		}
	})
}
