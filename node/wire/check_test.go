package wire

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	nested := func(n int, open string, rest string) string { return strings.Repeat(open, n) + rest }
	for _, tc := range []struct {
		name string
		in   string
		err  error
	}{
		{"nil", "\xc0", nil},
		{"false and true", "\x92\xc2\xc3", nil},
		{"small integers", "\x93\x00\x7f\xff", nil},
		{"integers of all widths", "\x98\xcc\x01\xcd\x00\x01\xce\x00\x00\x00\x01\xcf\x00\x00\x00\x00\x00\x00\x00\x01" +
			"\xd0\x01\xd1\x00\x01\xd2\x00\x00\x00\x01\xd3\x00\x00\x00\x00\x00\x00\x00\x01", nil},
		{"floats", "\x92\xca\x00\x00\x00\x00\xcb\x00\x00\x00\x00\x00\x00\x00\x00", nil},
		{"texts", "\x94\xa1a\xd9\x01a\xda\x00\x01a\xdb\x00\x00\x00\x01a", nil},
		{"bytes", "\x93\xc4\x01a\xc5\x00\x01a\xc6\x00\x00\x00\x01a", nil},
		{"arrays", "\x93\x90\xdc\x00\x01\xc0\xdd\x00\x00\x00\x01\xc0", nil},
		{"maps", "\x93\x80\xde\x00\x01\xa1a\xc0\xdf\x00\x00\x00\x01\x01\xc0", nil},
		{"an integer and its text as keys", "\x82\x01\xc0\xa11\xc0", nil},
		{"keys of both signs", "\x82\xff\xc0\xcc\xff\xc0", nil},
		{"the largest and smallest number as keys", "\x82\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xc0\xd3\xff\xff\xff\xff\xff\xff\xff\xff\xc0", nil},
		{"32 deep", nested(32, "\x91", "\xc0"), nil},
		{"32 maps deep", nested(32, "\x81\xa1a", "\xc0"), nil},

		{"nothing", "", ErrTruncated},
		{"a count of 4 billion", "\xdd\xff\xff\xff\xff", ErrTruncated},
		{"a count of 4 billion pairs", "\xdf\xff\xff\xff\xff", ErrTruncated},
		{"4 billion bytes", "\xc6\xff\xff\xff\xff", ErrTruncated},
		{"4 billion letters", "\xdb\xff\xff\xff\xff", ErrTruncated},
		{"one element short", "\x93\xc0\xc0", ErrTruncated},
		{"one value short", "\x82\xa1a\xc0\xa1b", ErrTruncated},
		{"pairs that fit as elements only", "\xde\x00\x03\x01\xc0\x02\xc0", ErrTruncated},
		{"text cut off", "\xa5abc", ErrTruncated},
		{"key cut off", "\x81\xa5a\xc0", ErrTruncated},
		{"length cut off", "\xdd\x00\x00", ErrTruncated},
		{"number cut off", "\xcf\x00", ErrTruncated},
		{"33 deep", nested(33, "\x91", "\xc0"), ErrTooDeep},
		{"33 maps deep", nested(33, "\x81\xa1a", "\xc0"), ErrTooDeep},
		{"33 deep and empty", nested(32, "\x91", "\x90"), ErrTooDeep},
		{"a million deep", nested(1<<20, "\x91", "\xc0"), ErrTooDeep},
		{"a second value", "\xc0\xc0", ErrTrailing},
		{"fixext", "\xd4\x01\x00", ErrType},
		{"ext", "\xc7\x01\x01\x00", ErrType},
		{"a time", "\xd6\xff\x00\x00\x00\x00", ErrType},
		{"unassigned", "\xc1", ErrType},
		{"ext within", "\x81\xa1a\x91\xc9\x00\x00\x00\x00\x05", ErrType},
		{"ext as key", "\x81\xd4\x01\x00\xc0", ErrType},
		{"key twice", "\x82\xa1a\xc0\xa1a\xc0", ErrKey},
		{"key twice in two lengths", "\x82\xa1a\xc0\xda\x00\x01a\xc0", ErrKey},
		{"number twice in two widths", "\x82\x01\xc0\xcd\x00\x01\xc0", ErrKey},
		{"negative number twice", "\x82\xff\xc0\xd3\xff\xff\xff\xff\xff\xff\xff\xff\xc0", ErrKey},
		{"key twice within", "\x91\x81\xa1x\x82\xa1a\xc0\xa1a\xc0", ErrKey},
		{"nil key", "\x81\xc0\xc0", ErrKey},
		{"bytes as key", "\x81\xc4\x01a\xc0", ErrKey},
		{"array as key", "\x81\x90\xc0", ErrKey},
		{"a huge array as key", "\x81\xdd\xff\xff\xff\xff\xc0", ErrTruncated},
		{"float key", "\x81\xca\x00\x00\x00\x00\xc0", ErrKey},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := Check([]byte(tc.in)); !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
		})
	}
}

// targets makes one zero value of each shape that we decode into.
func targets() []any {
	return []any{
		new(any), new([]any), new(map[string]any), new(map[string]string), new(map[string][]string), new(map[string]bool),
		new([]string), new([]byte), new([][]byte), new([][32]byte), new([]int64), new([]uint8), new([]bool), new([][]string),
		new([]map[string]string), new([]inner), new([]*inner), new(inner), new(outer), new([]outer), new([]*outer), new(map[string]outer),
		new(map[uint32]string), new([32]byte), new([4]uint32), new(string), new(int64), new(uint8), new(bool), new(StringMap),
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// decodeAll decodes b into every target, both ways, and checks that this costs
// no panic and no more memory than the size of b justifies.
func decodeAll(t *testing.T, b []byte, all []any) (accepted int) {
	t.Helper()
	var v any
	defer func() {
		if p := recover(); p != nil {
			t.Errorf("decoding %x into %T panicked: %v", b, v, p)
		}
	}()
	got := allocated(func() {
		for _, v = range all {
			loose := Unmarshal(b, v)
			strict := UnmarshalStrict(b, reflect.New(reflect.TypeOf(v).Elem()).Interface())
			if loose == nil {
				accepted++
			} else if strict == nil {
				t.Errorf("%x into %T: refused (%v), and accepted as strict", b, v, loose)
			}
		}
	})
	// The largest element of the targets is an outer, which one byte (nil)
	// makes; appending copies it, and both ways of decoding count.
	if most := uint64(len(all)) * (64<<10 + uint64(len(b))*16*uint64(reflect.TypeFor[outer]().Size())); got > most {
		t.Errorf("%d bytes %.20x... into %d targets allocated %d bytes; want at most %d", len(b), b, len(all), got, most)
	}
	return accepted
}

// bombs are short inputs that declare much, as they are and nested.
func bombs() [][]byte {
	var out [][]byte
	for _, b := range []string{
		"\xdd\xff\xff\xff\xff", "\xdc\xff\xff", "\xdf\xff\xff\xff\xff", "\xde\xff\xff", "\xc6\xff\xff\xff\xff", "\xc5\xff\xff",
		"\xdb\xff\xff\xff\xff", "\xda\xff\xff", "\xdd\x7f\xff\xff\xff", "\xdd\x80\x00\x00\x00", "\xc9\xff\xff\xff\xff\x01", "\xdd\x00\x0f\x42\x40",
	} {
		for _, around := range []string{
			"%s", "\x91%s", "\x92\xc0%s", "\x81\xa1a%s", "\x82\xa1a\xc0\xa1b%s", "\x81\xa1m%s", "\x81\xa1m\x91%s", "\x81\xa1l%s",
			"\x81\xa1l\x81\xa1k%s", "\x81\xa1b%s", "\x81\xa1i%s", "\x81\xa1o\x81\xa1t%s", "\x81\xa1p%s", "\x81%s\xc0", "%s\xc0\xc0\xc0\xc0",
			"\x91\x91\x91\x91%s", "\x81\xa7unknown%s",
		} {
			out = append(out, fmt.Appendf(nil, around, b))
		}
	}
	return out
}

func TestBombs(t *testing.T) {
	for _, b := range bombs() {
		if err := Check(b); err == nil {
			t.Errorf("%x was accepted", b)
		}
		if n := decodeAll(t, b, targets()); n > 0 {
			t.Errorf("%x was decoded into %d targets", b, n)
		}
	}
}

// TestMemoryIsProportional decodes inputs that are as large as they say, made
// of the smallest elements.
func TestMemoryIsProportional(t *testing.T) {
	const n = 1 << 12
	for name, b := range map[string][]byte{
		"nils":         append([]byte("\xdc\x10\x00"), bytes.Repeat([]byte{0xc0}, n)...),
		"empty arrays": append([]byte("\xdc\x10\x00"), bytes.Repeat([]byte{0x90}, n)...),
		"empty maps":   append([]byte("\xdc\x10\x00"), bytes.Repeat([]byte{0x80}, n)...),
		"empty texts":  append([]byte("\xdc\x10\x00"), bytes.Repeat([]byte{0xa0}, n)...),
		"zeros":        append([]byte("\xdc\x10\x00"), make([]byte, n)...),
		"within":       append([]byte("\x81\xa1m\xdc\x10\x00"), bytes.Repeat([]byte{0xc0}, n)...),
		"unknown":      append([]byte("\x81\xa1?\xdc\x10\x00"), bytes.Repeat([]byte{0xc0}, n)...),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Check(b); err != nil {
				t.Fatal(err)
			}
			for _, v := range targets() { // one by one: each has the bound for itself
				decodeAll(t, b, []any{v})
			}
		})
	}
}

// FuzzCheck: what Check accepts is decoded without a panic and within memory
// proportional to its size; what it refuses reaches no decoder.
func FuzzCheck(f *testing.F) {
	for _, b := range bombs() {
		f.Add(b)
	}
	f.Add(MustMarshal(full(map[string]string{"k": "v"})))
	f.Add(MustMarshal(map[string]any{"a": []any{1, "x", nil, map[string]any{}}}))
	f.Add([]byte("\x82\x01\xc0\xcd\x00\x01\xc0"))
	f.Add([]byte(strings.Repeat("\x91", 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		err := Check(b)
		if n := decodeAll(t, b, targets()); n > 0 && err != nil {
			t.Errorf("%x is refused (%v) and was decoded into %d targets", b, err, n)
		}
		if err == nil {
			checkAgain(t, b)
		}
	})
}

// checkAgain: what was decoded is encoded to bytes that Check accepts.
func checkAgain(t *testing.T, b []byte) {
	var v any
	if Unmarshal(b, &v) != nil {
		return // a map with integer keys does not become an any
	}
	again, err := Marshal(v)
	if err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	if err := Check(again); err != nil {
		t.Errorf("%x became %x, which is refused: %v", b, again, err)
	}
	var w any
	if err := Unmarshal(again, &w); err != nil {
		t.Fatalf("%x: %v", again, err)
	}
	if third := MustMarshal(w); !bytes.Equal(third, again) {
		t.Errorf("%x: two encodings, %x and %x", b, again, third)
	}
}
