package document

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"fleet/node/fleet"
)

// Type is the type of a parameter.
type Type string

// Types of parameters.
const (
	String     Type = "String"
	StringList Type = "StringList"
	Boolean    Type = "Boolean"
	Integer    Type = "Integer"
	StringMap  Type = "StringMap"
	MapList    Type = "MapList"
)

var types = []Type{String, StringList, Boolean, Integer, StringMap, MapList}

// Interpolation says how a parameter reaches a script.
type Interpolation string

// Interpolations. By default a String is an environment variable; see the
// package comment. Text is ours; SSM has EnvVar only, and text as its default.
const (
	ByDefault Interpolation = ""
	EnvVar    Interpolation = "ENV_VAR"
	Text      Interpolation = "text"
)

// Parameter declares one parameter.
type Parameter struct {
	Type          Type
	Description   string
	Default       any // nil when a value must be given
	AllowedValues []string

	// AllowedPattern must match the whole value (of a list, each element). It
	// is RE2: what Java knows beyond it is refused by Parse. (SSM's agent looks
	// for a match anywhere, so a forgotten ^ or $ opens its documents.)
	AllowedPattern string

	MinItems, MaxItems int // of a list or map; MaxItems -1 is no limit
	MinChars, MaxChars int // of a text, or each of a list; MaxChars -1 is no limit

	DisplayType   string // "textfield", "textarea" or ""
	Interpolation Interpolation

	pattern *regexp.Regexp
}

// maxPattern keeps a pattern's program small; RE2 itself is linear in the value.
const maxPattern = 1024

func (r *reader) parameter(where string, v any) Parameter {
	m := r.object(where, v, "type", "description", "default", "allowedValues", "allowedPattern",
		"minItems", "maxItems", "minChars", "maxChars", "displayType", "interpolationType")
	p := Parameter{
		Type: Type(r.text(where, m, "type")), Description: r.text(where, m, "description"),
		AllowedPattern: r.text(where, m, "allowedPattern"), DisplayType: r.text(where, m, "displayType"),
		Interpolation: Interpolation(r.text(where, m, "interpolationType")),
		MinItems:      r.count(where, m, "minItems", 0), MaxItems: r.count(where, m, "maxItems", -1),
		MinChars: r.count(where, m, "minChars", 0), MaxChars: r.count(where, m, "maxChars", -1),
	}
	if !slices.Contains(types, p.Type) {
		r.fail(where+".type", "%.64q is not one of %v", p.Type, types)
	}
	if !slices.Contains([]string{"", "textfield", "textarea"}, p.DisplayType) {
		r.fail(where+".displayType", "it must be textfield or textarea")
	}
	switch p.Interpolation {
	case ByDefault, Text:
	case EnvVar:
		if p.Type != String {
			r.fail(where+".interpolationType", "%s is for parameters of type %s", EnvVar, String)
		}
	default:
		r.fail(where+".interpolationType", "it must be %s or %s", EnvVar, Text)
	}
	if p.AllowedPattern != "" {
		var err error
		if len(p.AllowedPattern) > maxPattern {
			r.fail(where+".allowedPattern", "it has %d bytes, at most %d are allowed", len(p.AllowedPattern), maxPattern)
		} else if p.pattern, err = regexp.Compile(`^(?:` + p.AllowedPattern + `)$`); err != nil {
			r.fail(where+".allowedPattern", "it is not a pattern of RE2 (which has no look-ahead and no back-references)")
		}
	}
	if v, there := m["allowedValues"]; there {
		list, ok := v.([]any)
		if !ok {
			r.fail(where+".allowedValues", "it must be a list, not %s", kindOf(v))
		}
		for _, e := range list {
			s, ok := scalarText(e)
			if !ok {
				r.fail(where+".allowedValues", "a value must be text, not %s", kindOf(e))
			}
			p.AllowedValues = append(p.AllowedValues, s)
		}
	}
	if v := m["default"]; v != nil && r.err == nil {
		var err error
		if p.Default, err = p.typed(v); err == nil && v != "" { // "" stands for none in many documents
			err = p.allows(p.Default)
		}
		if err != nil {
			r.fail(where+".default", "%w", err)
		}
	}
	return p
}

func (r *reader) count(where string, m map[string]any, key string, absent int) int {
	v, there := m[key]
	if !there {
		return absent
	}
	var n int64
	ok := false
	switch v := v.(type) {
	case int64:
		n, ok = v, true
	case string:
		parsed, err := strconv.ParseInt(v, 10, 32)
		n, ok = parsed, err == nil
	}
	if !ok || n < 0 || n > 1<<30 {
		r.fail(where+"."+key, "it must be a whole number, 0 or more")
	}
	return int(n)
}

// scalarText is a text, whole number or boolean as text.
func scalarText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int64:
		return strconv.FormatInt(v, 10), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// typed turns a value of a document into one of the parameter's type.
func (p *Parameter) typed(v any) (any, error) {
	wrong := fmt.Errorf("%s is not a %s", kindOf(v), p.Type)
	switch p.Type {
	case String:
		if s, ok := scalarText(v); ok {
			return s, nil
		}
	case Boolean:
		switch v {
		case true, "true":
			return true, nil
		case false, "false":
			return false, nil
		}
	case Integer:
		switch v := v.(type) {
		case int64:
			return v, nil
		case string:
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				return n, nil
			}
		}
	case StringList:
		if list, ok := v.([]any); ok {
			texts := make([]any, 0, len(list))
			for _, e := range list {
				s, ok := scalarText(e)
				if !ok {
					return nil, fmt.Errorf("%s is not text in a %s", kindOf(e), p.Type)
				}
				texts = append(texts, s)
			}
			return texts, nil
		}
	case StringMap:
		if m, ok := v.(map[string]any); ok {
			return m, nil
		}
	case MapList:
		if list, ok := v.([]any); ok {
			for _, e := range list {
				if _, ok := e.(map[string]any); !ok {
					return nil, fmt.Errorf("%s is not a map in a %s", kindOf(e), p.Type)
				}
			}
			return list, nil
		}
	}
	return nil, wrong
}

// given turns the texts that a caller gave into a value of the parameter's type.
func (p *Parameter) given(values []string) (any, error) {
	for _, s := range values {
		if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return nil, fmt.Errorf("a value is not UTF-8 text without NUL")
		}
	}
	if p.Type == StringList {
		list := make([]any, len(values))
		for i, s := range values {
			list[i] = s
		}
		return list, nil
	}
	if p.Type == MapList {
		list := make([]any, 0, len(values))
		for _, s := range values {
			v, err := parseJSON([]byte(s))
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return p.typed(list)
	}
	if len(values) != 1 {
		return nil, fmt.Errorf("it takes one value, not %d", len(values))
	}
	if p.Type == StringMap {
		v, err := parseJSON([]byte(values[0]))
		if err != nil {
			return nil, err
		}
		return p.typed(v)
	}
	return p.typed(values[0])
}

// allows checks a typed value against the declared limits. Its errors do not
// show the value: it may be a secret.
func (p *Parameter) allows(v any) error {
	switch v := v.(type) {
	case string:
		return p.allowsText(v)
	case int64, bool:
		s, _ := scalarText(v)
		return p.allowsText(s)
	case []any:
		if err := p.allowsItems(len(v)); err != nil {
			return err
		}
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				continue // a map of a MapList
			}
			if err := p.allowsText(s); err != nil {
				return fmt.Errorf("element %d: %w", i+1, err)
			}
		}
	case map[string]any:
		return p.allowsItems(len(v))
	}
	return nil
}

func (p *Parameter) allowsItems(n int) error {
	if n < p.MinItems || p.MaxItems >= 0 && n > p.MaxItems {
		return fmt.Errorf("it has %d items, allowed are %s", n, span(p.MinItems, p.MaxItems))
	}
	return nil
}

func (p *Parameter) allowsText(s string) error {
	if n := utf8.RuneCountInString(s); n < p.MinChars || p.MaxChars >= 0 && n > p.MaxChars {
		return fmt.Errorf("it has %d characters, allowed are %s", n, span(p.MinChars, p.MaxChars))
	}
	if len(p.AllowedValues) > 0 && !slices.Contains(p.AllowedValues, s) {
		return fmt.Errorf("it must be one of %s", shorten(strings.Join(p.AllowedValues, ", "), maxText))
	}
	if p.pattern != nil && !p.pattern.MatchString(s) {
		return fmt.Errorf("it does not match %s", shorten(p.AllowedPattern, maxText))
	}
	return nil
}

func span(low, high int) string {
	if high < 0 {
		return fmt.Sprintf("%d or more", low)
	}
	return fmt.Sprintf("%d to %d", low, high)
}

// values checks what a caller gave and fills in the defaults.
func (d *Document) values(given map[string][]string) (map[string]any, error) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, ok := d.Parameters[name]; !ok {
			return nil, fleet.CodeErrorf(fleet.Invalid, codeParameters, "the document has no parameter %.64q", name).
				WithHint("it has %s", d.parameterNames())
		}
	}
	values := make(map[string]any, len(d.Parameters))
	for _, name := range slices.Sorted(maps.Keys(d.Parameters)) {
		p := d.Parameters[name]
		texts, ok := given[name]
		if !ok {
			if p.Default == nil {
				return nil, fleet.CodeErrorf(fleet.Invalid, codeParameters, "parameter %s needs a value", name)
			}
			values[name] = p.Default
			continue
		}
		v, err := p.given(texts)
		if err == nil {
			err = p.allows(v)
		}
		if err != nil {
			return nil, fleet.CodeErrorf(fleet.Invalid, codeParameters, "parameter %s: %v", name, err)
		}
		values[name] = v
	}
	return values, nil
}

func (d *Document) parameterNames() string {
	if len(d.Parameters) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(d.Parameters)), ", ")
}

// asText is a value inside of a text: a text as it is, anything else as JSON.
func asText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "" // a tree of ours always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}
