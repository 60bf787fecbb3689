package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// StrictJSON decodes one JSON value into v, which must point to a zero value.
// encoding/json alone takes "rOLE" for Role, the last of two equal keys, and
// unknown keys: two readers of one signed request could then see two requests.
// Here a key must be written exactly as the field's json tag, occur once and
// be known; text must be valid UTF-8, nesting at most MaxDepth, and nothing
// may follow the value. Types with their own UnmarshalJSON are not supported
// inside v. A field without a json tag is not part of the format, nor is one
// that an embedded struct would lend.
func StrictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return fmt.Errorf("JSON: not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := strictValue(dec, reflect.TypeOf(v).Elem(), nil, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("JSON: bytes after the value")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	return nil
}

// place is where in the document a value stands. Its text is made for errors
// only: made for every value, a long key above many values would cost the
// square of the input.
type place struct {
	above *place
	key   *string // of an object; nil in an array
	index int
}

// String is a path such as Targets[0].Key, its last 200 bytes if it is longer.
func (p *place) String() string {
	var parts []string
	for ; p != nil; p = p.above {
		if p.key != nil {
			parts = append(parts, "."+*p.key)
		} else {
			parts = append(parts, fmt.Sprintf("[%d]", p.index))
		}
	}
	slices.Reverse(parts)
	path := strings.TrimPrefix(strings.Join(parts, ""), ".")
	return path[max(0, len(path)-200):]
}

// strictValue reads one value from dec that is to become a t. t may be nil
// below an any.
func strictValue(dec *json.Decoder, t reflect.Type, at *place, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("JSON: %w", err)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth >= MaxDepth {
		return fmt.Errorf("JSON: nested deeper than %d", MaxDepth)
	}
	if delim == '[' {
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; dec.More(); i++ {
			if err := strictValue(dec, elem, &place{above: at, index: i}, depth+1); err != nil {
				return err
			}
		}
	} else {
		seen := map[string]bool{}
		for dec.More() {
			tok, err := dec.Token()
			if err != nil {
				return fmt.Errorf("JSON: %w", err)
			}
			key, ok := tok.(string)
			if !ok {
				return fmt.Errorf("JSON: a key is not text")
			}
			here := &place{above: at, key: &key}
			if seen[key] {
				return fmt.Errorf("JSON: key %q occurs twice", here)
			}
			seen[key] = true
			elem, known := keyType(t, key)
			if !known {
				return fmt.Errorf("JSON: unknown key %q", here)
			}
			if err := strictValue(dec, elem, here, depth+1); err != nil {
				return err
			}
		}
	}
	if _, err = dec.Token(); err != nil { // the closing bracket
		return fmt.Errorf("JSON: %w", err)
	}
	return nil
}

// keyType is the type that the value of a key of a t becomes, nil for any;
// false if t has no such key.
func keyType(t reflect.Type, key string) (reflect.Type, bool) {
	if t == nil {
		return nil, true
	}
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), true
	case reflect.Struct:
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			if name != "" && name != "-" && name == key {
				return t.Field(i).Type, true
			}
		}
		return nil, false
	}
	return nil, true // json.Unmarshal reports the mismatch
}
