package document

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func TestParameterValues(t *testing.T) {
	tests := []struct {
		name      string
		parameter string
		given     []string // nil: not given
		want      any      // nil: refused
	}{
		{"text", `{"type":"String"}`, []string{"a b"}, "a b"},
		{"empty text", `{"type":"String"}`, []string{""}, ""},
		{"no text", `{"type":"String"}`, []string{}, nil},
		{"needed", `{"type":"String"}`, nil, nil},
		{"default", `{"type":"String","default":"d"}`, nil, "d"},
		{"default of a number", `{"type":"String","default":5}`, nil, "5"},
		{"empty default despite a pattern", `{"type":"String","default":"","allowedPattern":"a+"}`, nil, ""},
		{"empty value despite a pattern", `{"type":"String","default":"","allowedPattern":"a+"}`, []string{""}, nil},
		{"NUL", `{"type":"String"}`, []string{"a\x00"}, nil},
		{"not UTF-8", `{"type":"String"}`, []string{"\xff"}, nil},
		{"list", `{"type":"StringList"}`, []string{"a", "b"}, []any{"a", "b"}},
		{"empty list", `{"type":"StringList"}`, []string{}, []any{}},
		{"list default", `{"type":"StringList","default":["x",1]}`, nil, []any{"x", "1"}},
		{"too few", `{"type":"StringList","minItems":2}`, []string{"a"}, nil},
		{"too many", `{"type":"StringList","maxItems":1}`, []string{"a", "b"}, nil},
		{"none allowed", `{"type":"StringList","maxItems":0}`, []string{"a"}, nil},
		{"true", `{"type":"Boolean"}`, []string{"true"}, true},
		{"yes", `{"type":"Boolean"}`, []string{"yes"}, nil},
		{"number", `{"type":"Integer"}`, []string{"-12"}, int64(-12)},
		{"number with a tail", `{"type":"Integer"}`, []string{"12;id"}, nil},
		{"number too large", `{"type":"Integer"}`, []string{"9223372036854775808"}, nil},
		{"map", `{"type":"StringMap"}`, []string{`{"a":"b"}`}, map[string]any{"a": "b"}},
		{"map that is a list", `{"type":"StringMap"}`, []string{`["a"]`}, nil},
		{"map with a key twice", `{"type":"StringMap"}`, []string{`{"a":"b","a":"c"}`}, nil},
		{"maps", `{"type":"MapList"}`, []string{`{"a":1}`, `{}`}, []any{map[string]any{"a": int64(1)}, map[string]any{}}},
		{"maps that are texts", `{"type":"MapList"}`, []string{`"a"`}, nil},
		{"characters, not bytes", `{"type":"String","maxChars":2}`, []string{"äö"}, "äö"},
		{"too long", `{"type":"String","maxChars":2}`, []string{"äöü"}, nil},
		{"too short", `{"type":"String","minChars":2}`, []string{"a"}, nil},
		{"element too long", `{"type":"StringList","maxChars":1}`, []string{"a", "bb"}, nil},
		{"allowed", `{"type":"String","allowedValues":["a","b"]}`, []string{"b"}, "b"},
		{"other case", `{"type":"String","allowedValues":["a","b"]}`, []string{"B"}, nil},
		{"allowed number", `{"type":"Integer","allowedValues":[1,2]}`, []string{"2"}, int64(2)},
		{"number that is not allowed", `{"type":"Integer","allowedValues":[1,2]}`, []string{"3"}, nil},
		{"the whole matches", `{"type":"String","allowedPattern":"[a-z]+"}`, []string{"abc"}, "abc"},
		{"only a part matches", `{"type":"String","allowedPattern":"[a-z]+"}`, []string{"abc; rm -rf /"}, nil},
		{"a line matches", `{"type":"String","allowedPattern":"[a-z]+"}`, []string{"abc\nid"}, nil},
		{"one of two patterns matches", `{"type":"String","allowedPattern":"(a)|(b)"}`, []string{"bx"}, nil},
		{"an element does not match", `{"type":"StringList","allowedPattern":"[a-z]+"}`, []string{"a", "1"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := parse(t, withInputs(test.parameter, `{"value":"{{ p }}"}`))
			given := map[string][]string{}
			if test.given != nil {
				given["p"] = test.given
			}
			steps, _, err := Resolve(d, given)
			if test.want == nil {
				var e *fleet.Error
				if err == nil || !asError(err, &e) || e.Code != codeParameters {
					t.Errorf("got %v, want code %s", err, codeParameters)
				}
				for _, v := range test.given {
					if len(v) > 2 && err != nil && strings.Contains(err.Error(), v) {
						t.Errorf("the error %q shows the value", err)
					}
				}
				return
			}
			if err != nil || !reflect.DeepEqual(steps[0].Inputs["value"], test.want) {
				t.Errorf("got %#v, %v, want %#v", steps, err, test.want)
			}
		})
	}
}

// nasty are values that a shell, a template or JSON could take for more.
var nasty = []string{
	"", " ", `"; rm -rf / #`, "'; id; '", "$(id)", "`id`", "$HOME", "${SSM_p}", "$$", "$1", "\\", "\\n", "a\nb", "\r\n",
	"{{ p }}", "{{p}}", "{{ other }}", "{{ssm:/prod/key}}", "{{ssm-secure:key}}", "%s%n", "*", "?", "~", "!!", "-rf", "--", "é𝄞\u202e",
	"\x01\x1b[31m", `{"a":1}`, "[1]", "null", "true", "&&", "|", ">/etc/passwd", "\t", strings.Repeat("x", 5000),
}

func TestValuesAreVariablesOfAScript(t *testing.T) {
	for _, declared := range []string{`{"type":"String"}`, `{"type":"String","interpolationType":"ENV_VAR"}`} {
		for _, inputs := range []string{
			`{"runCommand":["echo \"{{ p }}\" {{p}} {{ q }}"]}`, `{"runCommand":"echo \"{{ p }}\" {{p}} {{ q }}"}`,
		} {
			d := parse(t, withInputs(declared, inputs))
			for _, value := range nasty {
				steps, env, err := Resolve(d, map[string][]string{"p": {value}})
				if err != nil {
					t.Fatalf("%q: %v", value, err)
				}
				script, _ := Strings(steps[0].Inputs["runCommand"])
				if want := []string{`echo "${SSM_p}" ${SSM_p} {{ q }}`}; !slices.Equal(script, want) {
					t.Errorf("%q: script %q, want %q", value, script, want)
				}
				if want := []string{"SSM_p=" + value}; !slices.Equal(env, want) {
					t.Errorf("%q: environment %q", value, env)
				}
			}
		}
	}
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name      string
		parameter string
		inputs    string
		given     []string
		want      map[string]any
		env       []string
	}{
		{"text when asked for", `{"type":"String","interpolationType":"text"}`, `{"runCommand":["echo {{ p }}"]}`, []string{"a; id"},
			map[string]any{"runCommand": []any{"echo a; id"}}, nil},
		{"one pass", `{"type":"String","interpolationType":"text"}`, `{"runCommand":["{{ p }} {{p}}"]}`, []string{"{{ p }}"},
			map[string]any{"runCommand": []any{"{{ p }} {{ p }}"}}, nil},
		{"dollars stay", `{"type":"String","interpolationType":"text"}`, `{"runCommand":["x {{ p }} $$"]}`, []string{"$$ $1 ${0}"},
			map[string]any{"runCommand": []any{"x $$ $1 ${0} $$"}}, nil},
		{"a list is the script", `{"type":"StringList"}`, `{"runCommand":"{{ p }}"}`, []string{"a", "b"},
			map[string]any{"runCommand": []any{"a", "b"}}, nil},
		{"a list in a list", `{"type":"StringList"}`, `{"runCommand":["set -e","{{ p }}"]}`, []string{"a", "b"},
			map[string]any{"runCommand": []any{"set -e", []any{"a", "b"}}}, nil},
		{"a list in a text is a variable", `{"type":"StringList"}`, `{"runCommand":["echo {{ p }}"]}`, []string{`a"`, "<b>"},
			map[string]any{"runCommand": []any{"echo ${SSM_p}"}}, []string{`SSM_p=["a\"","<b>"]`}},
		{"a number is text", `{"type":"Integer"}`, `{"runCommand":["sleep {{ p }}","{{ p }}"]}`, []string{"7"},
			map[string]any{"runCommand": []any{"sleep 7", int64(7)}}, nil},
		{"a boolean is text", `{"type":"Boolean"}`, `{"runCommand":["if {{p}}; then"]}`, []string{"true"},
			map[string]any{"runCommand": []any{"if true; then"}}, nil},
		{"other inputs get the value", `{"type":"String"}`, `{"workingDirectory":"{{ p }}","x":"/a/{{ p }}/b"}`, []string{"$d"},
			map[string]any{"workingDirectory": "$d", "x": "/a/$d/b"}, []string{"SSM_p=$d"}},
		{"typed values in other inputs", `{"type":"StringList"}`, `{"x":"{{ p }}","y":"is {{ p }}"}`, []string{"a", "b"},
			map[string]any{"x": []any{"a", "b"}, "y": `is ["a","b"]`}, nil},
		{"nested inputs", `{"type":"String"}`, `{"x":{"y":["{{ p }}",{"z":"{{ p }}"}],"{{ p }}":1}}`, []string{"v"},
			map[string]any{"x": map[string]any{"y": []any{"v", map[string]any{"z": "v"}}, "{{ p }}": int64(1)}}, []string{"SSM_p=v"}},
		{"templates of others stay", `{"type":"String"}`, `{"runCommand":["docker inspect -f '{{ .State }}' {{ other }} {{ global:DATE }} {{}}"]}`, []string{"v"},
			map[string]any{"runCommand": []any{"docker inspect -f '{{ .State }}' {{ other }} {{ global:DATE }} {{}}"}}, []string{"SSM_p=v"}},
		{"controls are taken out", `{"type":"String"}`, `{"onFailure":"{{ p }}","onSuccess":"exit","finallyStep":"true","x":1}`, []string{"exit"},
			map[string]any{"x": int64(1)}, []string{"SSM_p=exit"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := parse(t, withInputs(test.parameter, test.inputs))
			steps, env, err := Resolve(d, map[string][]string{"p": test.given})
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(steps[0].Inputs, test.want) || !slices.Equal(env, test.env) {
				t.Errorf("got  %#v, %q\nwant %#v, %q", steps[0].Inputs, env, test.want, test.env)
			}
		})
	}
	d := parse(t, withInputs("", `{"onFailure":"{{ p }}","onSuccess":"exit","finallyStep":true}`))
	steps, _, err := Resolve(d, map[string][]string{"p": {"successAndExit"}})
	if err != nil || steps[0].OnFailure != FailureSuccess || steps[0].OnSuccess != SuccessExit || !steps[0].Finally {
		t.Errorf("controls: %+v, %v", steps, err)
	}
}

func TestResolveRefuses(t *testing.T) {
	tests := []struct {
		name   string
		inputs string
		given  string
		want   string
	}{
		{"reference to the store", `{"runCommand":["echo {{ssm:/prod/key}}"]}`, "x", "parameter store"},
		{"with spaces", `{"x":{"y":["{{  ssm:key }}"]}}`, "x", "parameter store"},
		{"secure reference", `{"tokenInfo":"{{ssm-secure:key}}"}`, "x", "parameter store"},
		{"control from a parameter", `{"onFailure":"{{ p }}"}`, "restart", "onFailure"},
		{"too long for a variable", `{"runCommand":["true"]}`, strings.Repeat("x", maxEnvValue+1), "environment variable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := parse(t, withInputs("", test.inputs))
			_, _, err := Resolve(d, map[string][]string{"p": {test.given}})
			if fleet.KindOf(err) != fleet.Invalid || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	// A value is only a value.
	d := parse(t, withInputs("", `{"x":"{{ p }}"}`))
	steps, _, err := Resolve(d, map[string][]string{"p": {"{{ssm:/prod/key}}"}})
	if err != nil || steps[0].Inputs["x"] != "{{ssm:/prod/key}}" {
		t.Errorf("a value that looks like a reference: %+v, %v", steps, err)
	}
}

func TestPrecondition(t *testing.T) {
	tests := []struct {
		name         string
		precondition string
		met          bool
		problem      bool
	}{
		{"none", `{}`, true, false},
		{"this platform", `{"StringEquals":["platformType","Linux"]}`, true, false},
		{"other order", `{"StringEquals":["Linux","platformType"]}`, true, false},
		{"other case", `{"StringEquals":["platformType","lINUX"]}`, true, false},
		{"other platform", `{"StringEquals":["platformType","Windows"]}`, false, true},
		{"parameter is equal", `{"StringEquals":["{{ p }}","yes"]}`, true, false},
		{"parameter in a text", `{"StringEquals":["is yes","is {{ p }}"]}`, true, false},
		{"parameter differs", `{"StringEquals":["{{ p }}","no"]}`, false, true},
		{"parameter in another case", `{"StringEquals":["{{ p }}","Yes"]}`, false, true},
		{"identical", `{"StringEquals":["{{ p }}","{{ p }}"]}`, true, true},
		{"platform twice", `{"StringEquals":["platformType","platformType"]}`, true, true},
		{"constants", `{"StringEquals":["a","b"]}`, true, true},
		{"platform by parameter", `{"StringEquals":["platformType","{{ p }}"]}`, true, true},
		{"unknown parameter", `{"StringEquals":["{{ q }}","x"]}`, true, true},
		{"store", `{"StringEquals":["{{ssm:x}}","{{ p }}"]}`, true, true},
		{"one argument", `{"StringEquals":["platformType"]}`, true, true},
		{"three arguments", `{"StringEquals":["platformType","Linux","x"]}`, true, true},
		{"another operator", `{"StringNotEquals":["platformType","Linux"]}`, true, true},
		{"two operators", `{"StringEquals":["platformType","Linux"],"Other":["a","b"]}`, true, true},
		{"two operators, one not met", `{"StringEquals":["platformType","Windows"],"Other":["a","b"]}`, false, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := parse(t, `{"schemaVersion":"2.2","parameters":{"p":{"type":"String"}},
				"mainSteps":[{"action":"a:b","name":"s","precondition":`+test.precondition+`}]}`)
			steps, _, err := Resolve(d, map[string][]string{"p": {"yes"}})
			if err != nil {
				t.Fatal(err)
			}
			met, problems := steps[0].Precondition.Met(PlatformLinux)
			if met != test.met || (len(problems) > 0) != test.problem {
				t.Errorf("got %v, %q, want %v, %v", met, problems, test.met, test.problem)
			}
		})
	}
}

func TestLint(t *testing.T) {
	tests := []struct {
		name    string
		content string
		want    string // in the one finding; "" is none
	}{
		{"nothing", withInputs("", `{"runCommand":["echo \"{{ p }}\""]}`), ""},
		{"text without limits", withInputs(`{"type":"String","interpolationType":"text"}`, `{"runCommand":["echo {{ p }}"]}`), "allowedPattern"},
		{"text with a pattern", withInputs(`{"type":"String","interpolationType":"text","allowedPattern":"[a-z]+"}`, `{"runCommand":["echo {{ p }}"]}`), ""},
		{"text outside of a script", withInputs(`{"type":"String","interpolationType":"text"}`, `{"x":"{{ p }}"}`), ""},
		{"single quotes", withInputs("", `{"runCommand":["a 'b'\necho '{{ p }}'"]}`), "single quotes"},
		{"after single quotes", withInputs("", `{"runCommand":["echo 'a' {{ p }}"]}`), ""},
		{"unknown parameter", withInputs("", `{"runCommand":["echo {{ q }}"]}`), "not a parameter"},
		{"finallyStep too early", `{"schemaVersion":"2.2","mainSteps":[{"action":"a:b","name":"x","inputs":{"finallyStep":true}},{"action":"a:b","name":"y"}]}`, "no effect"},
		{"finallyStep last", `{"schemaVersion":"2.2","mainSteps":[{"action":"a:b","name":"x"},{"action":"a:b","name":"y","inputs":{"finallyStep":true}}]}`, ""},
		{"precondition that never works", `{"schemaVersion":"2.2","mainSteps":[{"action":"a:b","name":"x","precondition":{"Equals":["a","b"]}}]}`, "unrecognized operator"},
		{"precondition for another platform", `{"schemaVersion":"2.2","mainSteps":[{"action":"a:b","name":"x","precondition":{"StringEquals":["platformType","Windows"]}}]}`, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			findings := parse(t, test.content).Lint()
			if test.want == "" && len(findings) == 0 {
				return
			}
			if len(findings) != 1 || test.want == "" || !strings.Contains(findings[0].Text, test.want) {
				t.Errorf("got %v, want %q", findings, test.want)
			}
		})
	}
}

// FuzzResolve: whatever the value, the script is the same and the variable
// holds the value byte for byte.
func FuzzResolve(f *testing.F) {
	for _, value := range nasty {
		f.Add(value)
	}
	d := parse(f, withInputs(`{"type":"String"}`, `{"runCommand":["echo \"{{ p }}\""],"x":"<{{ p }}>"}`))
	f.Fuzz(func(t *testing.T, value string) {
		steps, env, err := Resolve(d, map[string][]string{"p": {value}})
		if err != nil {
			return
		}
		if script, _ := Strings(steps[0].Inputs["runCommand"]); len(script) != 1 || script[0] != `echo "${SSM_p}"` {
			t.Fatalf("script %q", script)
		}
		if len(env) != 1 || env[0] != "SSM_p="+value || steps[0].Inputs["x"] != "<"+value+">" {
			t.Fatalf("environment %q, input %q", env, steps[0].Inputs["x"])
		}
	})
}
