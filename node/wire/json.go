package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// StrictJSON decodes one JSON value into v, which must point to a zero value.
// encoding/json alone takes "rOLE" for Role, the last of two equal keys, and
// unknown keys: two readers of one signed request could then see two requests.
// Here a key must be written exactly as the field's json tag, occur once and
// be known; text must be valid UTF-8, nesting at most MaxDepth, and nothing
// may follow the value. Types with their own UnmarshalJSON are not supported
// inside v. A field without a json tag is not part of the format.
func StrictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return fmt.Errorf("JSON: not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := strictValue(dec, reflect.TypeOf(v).Elem(), "", 0); err != nil {
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

// strictValue reads one value from dec that is to become a t; where is the
// path for messages. t may be nil below an any.
func strictValue(dec *json.Decoder, t reflect.Type, where string, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("JSON: nested deeper than %d", MaxDepth)
	}
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
	if delim == '[' {
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; dec.More(); i++ {
			if err := strictValue(dec, elem, fmt.Sprintf("%s[%d]", where, i), depth+1); err != nil {
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
			path := strings.TrimPrefix(where+"."+key, ".")
			if seen[key] {
				return fmt.Errorf("JSON: key %q occurs twice", path)
			}
			seen[key] = true
			elem, err := keyType(t, key, path)
			if err != nil {
				return err
			}
			if err := strictValue(dec, elem, path, depth+1); err != nil {
				return err
			}
		}
	}
	_, err = dec.Token() // the closing bracket
	return err
}

// keyType is the type that the value of a key of a t becomes.
func keyType(t reflect.Type, key, path string) (reflect.Type, error) {
	if t == nil {
		return nil, nil
	}
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), nil
	case reflect.Struct:
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			if name != "" && name != "-" && name == key {
				return t.Field(i).Type, nil
			}
		}
		return nil, fmt.Errorf("JSON: unknown key %q", path)
	}
	return nil, nil // json.Unmarshal reports the mismatch
}
