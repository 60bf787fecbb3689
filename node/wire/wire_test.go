package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

type inner struct {
	Name string   `msgpack:"n" json:"Name"`
	Tags []string `msgpack:"t,omitempty" json:"Tags,omitempty"`
}

type outer struct {
	Version uint8             `msgpack:"v" json:"Version"`
	ID      [16]byte          `msgpack:"i" json:"-"`
	Count   int64             `msgpack:"c" json:"Count"`
	Body    []byte            `msgpack:"b" json:"Body"`
	Labels  map[string]string `msgpack:"l" json:"Labels"`
	One     inner             `msgpack:"o" json:"One"`
	Many    []inner           `msgpack:"m" json:"Many"`
	Ptr     *inner            `msgpack:"p" json:"Ptr"`
}

// full is a value with something in each field.
func full(labels map[string]string) *outer {
	return &outer{
		Version: 1, ID: [16]byte{1, 2}, Count: -5, Body: []byte("body"), Labels: labels,
		One: inner{Name: "a"}, Many: []inner{{Name: "b", Tags: []string{"x", "y"}}, {}}, Ptr: &inner{Name: "c"},
	}
}

func TestUnmarshal(t *testing.T) {
	good := MustMarshal(full(map[string]string{"k": "v"}))
	unknown := MustMarshal(struct {
		Version uint8 `msgpack:"v"`
		Later   []any `msgpack:"later"`
	}{1, []any{map[string]any{"a": 1}}})
	for _, tc := range []struct {
		name          string
		in            []byte
		loose, strict bool
	}{
		{"whole", good, true, true},
		{"one byte short", good[:len(good)-1], false, false},
		{"one byte more", append(slices.Clone(good), 0xc0), false, false},
		{"a field of the next release", unknown, true, false},
		{"nothing", nil, false, false},
		{"another type", MustMarshal("text"), false, false},
		{"text for a number", []byte{0x81, 0xa1, 'v', 0xa1, 'x'}, false, false},
		{"a key twice", []byte{0x82, 0xa1, 'v', 1, 0xa1, 'v', 2}, false, false},
		{"too long for an array", append([]byte{0x81, 0xa1, 'i', 0xc4, 17}, make([]byte, 17)...), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var a, b outer
			if err := Unmarshal(tc.in, &a); (err == nil) != tc.loose {
				t.Errorf("Unmarshal: %v; want accepted %v", err, tc.loose)
			}
			if err := UnmarshalStrict(tc.in, &b); (err == nil) != tc.strict {
				t.Errorf("UnmarshalStrict: %v; want accepted %v", err, tc.strict)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	b := MustMarshal(full(map[string]string{"k": "v", "a": ""}))
	var v outer
	if err := UnmarshalStrict(b, &v); err != nil {
		t.Fatal(err)
	}
	if again := MustMarshal(&v); !bytes.Equal(again, b) {
		t.Errorf("encoded again: %x; want %x", again, b)
	}
}

// TestCanonical: equal values give equal bytes, however their maps were built.
func TestCanonical(t *testing.T) {
	keys := make([]string, 40)
	for i := range keys {
		keys[i] = strings.Repeat("k", i%7) + string(rune('a'+i%26)) + strings.Repeat("z", i%3)
	}
	build := func(seed uint64) any {
		r := rand.New(rand.NewPCG(seed, 0))
		text, lists, boolean, mixed := map[string]string{}, StringMap{}, map[string]bool{}, map[string]any{}
		for _, i := range r.Perm(len(keys)) {
			text[keys[i]] = "v"
			lists[keys[i]] = []string{"a", "b"}
			boolean[keys[i]] = i%2 == 0
			mixed[keys[i]] = map[string]any{"z": 1, "a": map[string]string{"q": "1", "b": "2"}, "m": nil}
		}
		return struct {
			Outer *outer
			A     any
			B     StringMap
			C     map[string]bool
			D     map[string]any
		}{full(text), text, lists, boolean, mixed}
	}
	want := MustMarshal(build(1))
	for seed := range uint64(50) {
		if got := MustMarshal(build(seed)); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: other bytes for an equal value", seed)
		}
	}
	if err := Check(want); err != nil {
		t.Errorf("Check of what Marshal wrote: %v", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	if b, err := Marshal(make(chan int)); err == nil {
		t.Errorf("a channel became %x", b)
	}
	defer func() {
		if recover() == nil {
			t.Error("MustMarshal did not panic")
		}
	}()
	MustMarshal(func() {})
}

func TestStringMap(t *testing.T) {
	for _, tc := range []struct {
		name string
		m    StringMap
		want string
	}{
		{"nil", nil, "\xc0"},
		{"empty", StringMap{}, "\x80"},
		{"sorted", StringMap{"b": {"2"}, "a": {"1", ""}}, "\x82\xa1a\x92\xa11\xa0\xa1b\x91\xa12"},
		{"without values", StringMap{"a": nil}, "\x81\xa1a\x90"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := MustMarshal(tc.m)
			if string(b) != tc.want {
				t.Errorf("got %x, want %x", b, tc.want)
			}
			var m map[string][]string
			if err := UnmarshalStrict(b, &m); err != nil {
				t.Fatal(err)
			}
			if again := MustMarshal(StringMap(m)); !bytes.Equal(again, b) {
				t.Errorf("encoded again: %x, want %x", again, b)
			}
		})
	}
}

func TestReadFrame(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   string
		max  int
		want string
		err  string // part of it; empty: none
	}{
		{"empty body", "\x00\x00\x00\x00", 0, "", ""},
		{"body", "\x00\x00\x00\x02hi", 2, "hi", ""},
		{"more follows", "\x00\x00\x00\x02hi\x00", 10, "hi", ""},
		{"over the limit", "\x00\x00\x00\x03abc", 2, "", "3 bytes is over the limit of 2"},
		{"four gigabytes", "\xff\xff\xff\xff", 1 << 20, "", "over the limit"},
		{"nothing", "", 10, "", "EOF"},
		{"half a length", "\x00\x00", 10, "", "unexpected EOF"},
		{"half a body", "\x00\x00\x00\x05abc", 10, "", "frame of 5 bytes: unexpected EOF"},
		{"no body", "\x00\x00\x00\x05", 10, "", "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ReadFrame(iotest.OneByteReader(strings.NewReader(tc.in)), tc.max)
			switch {
			case tc.err == "" && (err != nil || string(got) != tc.want):
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v; want one with %q", err, tc.err)
			}
		})
	}
	if _, err := ReadFrame(strings.NewReader(""), 1); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v; want io.EOF", err)
	}
}

type writes struct{ n int }

func (w *writes) Write(b []byte) (int, error) { w.n++; return len(b), nil }

func TestWriteFrame(t *testing.T) {
	var buf bytes.Buffer
	for _, body := range []string{"", "x", strings.Repeat("long ", 1000)} {
		if err := WriteFrame(&buf, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"", "x", strings.Repeat("long ", 1000)} {
		if got, err := ReadFrame(&buf, 5000); err != nil || string(got) != want {
			t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
		}
	}
	var w writes
	if err := WriteFrame(&w, []byte("body")); err != nil || w.n != 1 {
		t.Errorf("%d writes, %v; want 1", w.n, err)
	}
	if err := WriteFrame(failing{}, nil); err == nil {
		t.Error("a failed write was not reported")
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02hi"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := ReadFrame(bytes.NewReader(b), 1<<10)
		if err != nil {
			return
		}
		if len(body) > 1<<10 || !bytes.Equal(body, b[4:4+len(body)]) {
			t.Errorf("body of %d bytes", len(body))
		}
	})
}
