package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// request has the shapes of signed requests and of our files.
type request struct {
	Role    string              `json:"Role"`
	Limit   int64               `json:"Limit,omitempty"`
	Date    float64             `json:"Date,omitempty"`
	On      bool                `json:"On"`
	Key     []byte              `json:"Key"`
	IDs     []string            `json:"IDs"`
	Targets []target            `json:"Targets"`
	Params  map[string][]string `json:"Params"`
	Sub     *target             `json:"Sub"`
	Any     any                 `json:"Any"`
	Hidden  string              `json:"-"`
	NoTag   string
}

type target struct {
	Key    string   `json:"Key"`
	Values []string `json:"Values,omitempty"`
}

func TestStrictJSON(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   string
		err  string // part of it; empty: accepted
	}{
		{"empty object", `{}`, ""},
		{"all keys", `{"Role":"a","Limit":1,"Date":1.5,"On":true,"Key":"AQI=","IDs":["x"],"Targets":[{"Key":"k","Values":["v"]}],` +
			`"Params":{"p":["1"]},"Sub":{"Key":"s"},"Any":{"x":[1,{"y":null}]}}`, ""},
		{"space around", " \n{ \"Role\" : \"a\" }\t", ""},
		{"escaped key", `{"\u0052ole":"a"}`, ""},
		{"null fields", `{"Role":null,"IDs":null,"Sub":null}`, ""},
		{"other case in a map's keys", `{"Params":{"a":[],"A":[]}}`, ""},

		{"other case", `{"role":"a"}`, `unknown key "role"`},
		{"mixed case", `{"rOLE":"a"}`, `unknown key "rOLE"`},
		{"both cases", `{"Role":"a","role":"b"}`, `unknown key "role"`},
		{"other case within", `{"Targets":[{"key":"k"}]}`, `unknown key "Targets[0].key"`},
		{"other case below a pointer", `{"Sub":{"key":"k"}}`, `unknown key "Sub.key"`},
		{"Kelvin sign", "{\"\u212aey\":\"\"}", "unknown key"},
		{"long s", "{\"ID\u017f\":[]}", "unknown key"},
		{"unknown", `{"Rolle":"a"}`, `unknown key "Rolle"`},
		{"unknown within", `{"Targets":[{},{"Key":"k","X":1}]}`, `unknown key "Targets[1].X"`},
		{"empty key", `{"":1}`, "unknown key"},
		{"field without a tag", `{"NoTag":"x"}`, "unknown key"},
		{"hidden field", `{"Hidden":"x"}`, "unknown key"},
		{"a dash", `{"-":"x"}`, "unknown key"},
		{"key twice", `{"Role":"a","Role":"a"}`, `key "Role" occurs twice`},
		{"key twice, once escaped", `{"Role":"a","\u0052ole":"b"}`, `key "Role" occurs twice`},
		{"key twice, other escapes", `{"\u0052\u006fle":"a","R\u006Fle":"b"}`, `key "Role" occurs twice`},
		{"key twice within", `{"Targets":[{"Key":"a","Key":"b"}]}`, `"Targets[0].Key" occurs twice`},
		{"key twice in a map", `{"Params":{"p":["1"],"p":["2"]}}`, `"Params.p" occurs twice`},
		{"key twice below any", `{"Any":[{"x":1,"x":2}]}`, `"Any[0].x" occurs twice`},
		{"key twice as broken surrogates", `{"Params":{"\ud800":[],"\ud801":[]}}`, "occurs twice"},
		{"trailing value", `{"Role":"a"}{}`, "bytes after the value"},
		{"trailing word", `{"Role":"a"} x`, "bytes after the value"},
		{"trailing bracket", `{"Role":"a"}]`, "bytes after the value"},
		{"trailing zero byte", "{}\x00", "bytes after the value"},
		{"cut off", `{"Role":"a"`, "EOF"},
		{"cut off in a key", `{"Ro`, "EOF"},
		{"nothing", ``, "EOF"},
		{"trailing comma", `{"Role":"a",}`, "JSON"},
		{"comma forgotten", `{"Role":"a" "Limit":1}`, "JSON"},
		{"number as key", `{1:2}`, "JSON"},
		{"comment", `{/*x*/"Role":"a"}`, "JSON"},
		{"an array instead", `[1]`, "JSON"},
		{"text instead", `"x"`, "JSON"},
		{"text for a number", `{"Limit":"1"}`, "JSON"},
		{"a fraction for an integer", `{"Limit":1.5}`, "JSON"},
		{"an integer too large", `{"Limit":9223372036854775808}`, "JSON"},
		{"an object for a list", `{"IDs":{"a":1}}`, "JSON"},
		{"a list for an object", `{"Sub":[1]}`, "JSON"},
		{"not UTF-8", "{\"Role\":\"\xff\"}", "UTF-8"},
		{"not UTF-8 in a key", "{\"\xff\":1}", "UTF-8"},
		{"byte order mark", "\ufeff{}", "JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r request
			err := StrictJSON([]byte(tc.in), &r)
			if tc.err == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got error %v; want one with %q", err, tc.err)
			}
			if err == nil {
				oracle(t, []byte(tc.in), &r)
			}
		})
	}
}

func TestStrictJSONDepth(t *testing.T) {
	nest := func(n int) string { // n brackets, the object included
		return `{"Any":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}`
	}
	var r request
	if err := StrictJSON([]byte(nest(MaxDepth)), &r); err != nil {
		t.Errorf("%d deep: %v", MaxDepth, err)
	}
	for _, n := range []int{MaxDepth + 1, 10_000} {
		if err := StrictJSON([]byte(nest(n)), new(request)); err == nil || !strings.Contains(err.Error(), "nested deeper") {
			t.Errorf("%d deep: %v", n, err)
		}
	}
	if err := StrictJSON([]byte(strings.Repeat(`{"Any":`, 100_000)), new(request)); err == nil {
		t.Error("100000 open objects were accepted")
	}
}

// TestStrictJSONErrorsAreShort: a key of the sender's choice must not make the
// message as long as the request, nor the work more than its length.
func TestStrictJSONErrorsAreShort(t *testing.T) {
	long := strings.Repeat("k", 20<<10)
	for name, in := range map[string]string{
		"unknown":      fmt.Sprintf(`{"%s":1}`, long),
		"twice":        fmt.Sprintf(`{"Params":{"%s":[],"%s":[]}}`, long, long),
		"below a long": fmt.Sprintf(`{"Params":{"%s":[%s1]},"x":1}`, long, strings.Repeat("1,", 10<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			err := StrictJSON([]byte(in), new(request))
			if err == nil || len(err.Error()) > 300 {
				t.Errorf("error of %d bytes", len(fmt.Sprint(err)))
			}
		})
	}
	in := fmt.Appendf(nil, `{"Any":{"%s":[%s1]}}`, long, strings.Repeat("1,", 10<<10))
	if got := allocated(func() {
		if err := StrictJSON(in, new(request)); err != nil {
			t.Error(err)
		}
	}); got > 300*uint64(len(in)) {
		t.Errorf("%d bytes allocated %d", len(in), got)
	}
}

// oracle compares what StrictJSON made of b with two other readings of it.
func oracle(t *testing.T, b []byte, got *request) {
	t.Helper()
	var want request
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&want); err != nil {
		t.Fatalf("%q: accepted, and refused by encoding/json: %v", b, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("%q: accepted with bytes after the value", b)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Fatalf("%q:\n got %+v\nwant %+v", b, *got, want)
	}
	// A reading that merges equal keys must have merged none.
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	written, depth := keysWritten(t, b)
	if merged := keysOf(tree); merged != written {
		t.Fatalf("%q: %d keys, %d different ones", b, written, merged)
	}
	if depth > MaxDepth {
		t.Fatalf("%q: accepted, %d deep", b, depth)
	}
	if top, ok := tree.(map[string]any); ok {
		for k := range top {
			if !slices.Contains([]string{"Role", "Limit", "Date", "On", "Key", "IDs", "Targets", "Params", "Sub", "Any"}, k) {
				t.Fatalf("%q: key %q was accepted", b, k)
			}
		}
	}
}

// keysWritten counts the keys as they stand in b, and its brackets' depth. It
// looks at bytes: a text is a key if a colon follows.
func keysWritten(t *testing.T, b []byte) (keys, deepest int) {
	t.Helper()
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '[', '{':
			depth++
			deepest = max(deepest, depth)
		case ']', '}':
			depth--
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if rest := bytes.TrimLeft(b[i+1:], " \t\r\n"); len(rest) > 0 && rest[0] == ':' {
				keys++
			}
		}
	}
	return keys, deepest
}

func keysOf(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		n = len(v)
		for _, e := range v {
			n += keysOf(e)
		}
	case []any:
		for _, e := range v {
			n += keysOf(e)
		}
	}
	return n
}

// FuzzStrictJSON: what StrictJSON accepts means the same to every reader.
func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, `{"Role":"a","\u0052ole":"b"}`, `{"role":"a"}`, `{"Params":{"a":["1"],"A":[]}}`, `{"Any":{"x":[1,{"y":null}]}}`,
		`{"Targets":[{"Key":"k","Values":["v"]},null]}`, `{"Sub":{"Key":"k"}} `, `{"Limit":1e3}`, `{"Key":"AQI="}`, `{"Key":[1,2]}`,
		`{"Any":[[[[[[]]]]]]}`, `{"Date":1.7e9,"On":true}`, `{"\ud800":1}`, `{"Params":{"\ud800":[],"\ufffd":[]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if StrictJSON(b, &r) == nil {
			oracle(t, b, &r)
		}
	})
}
