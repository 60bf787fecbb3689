package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// escape makes text that others wrote fit for a terminal: what could move the
// cursor, set a title, answer for the reader, or turn the order of letters
// around is shown as an escape instead. Line breaks and tabs stay.
func escape(s string) string {
	return escapeWith(s, func(r rune) bool { return r == '\n' || r == '\t' })
}

// escapeCell is escape for text that must stay on its line.
func escapeCell(s string) string {
	return escapeWith(s, func(rune) bool { return false })
}

func escapeWith(s string, keep func(rune) bool) string {
	if clean(s, keep) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !hostile(r) || keep(r):
			b.WriteString(s[:size])
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		s = s[size:]
	}
	return b.String()
}

func clean(s string, keep func(rune) bool) bool {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return false
			}
		}
		if hostile(r) && !keep(r) {
			return false
		}
	}
	return true
}

// hostile reports whether a terminal does more with r than show it.
func hostile(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r < 0xa0: // C0, DEL, C1
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // order of letters
		return true
	case r == 0x2028, r == 0x2029: // line and paragraph separators
		return true
	case r >= 0xe0000 && r <= 0xe007f: // invisible tags
		return true
	}
	return false
}

// escapeJSON escapes inside a JSON text, whose meaning stays the same: after
// encoding/json only characters of two bytes and more are left to escape, and
// they stand in strings.
func escapeJSON(s string) string {
	return escapeWith(s, func(r rune) bool { return r < 0x80 || r > 0xffff })
}

// escapeWriter escapes a stream. A character may be split between two writes.
type escapeWriter struct {
	w    io.Writer
	rest []byte // beginning of a character
}

func (e *escapeWriter) Write(b []byte) (int, error) {
	all := append(e.rest, b...)
	whole := len(all)
	for i := 1; i < utf8.UTFMax && i <= len(all); i++ {
		if start := len(all) - i; utf8.RuneStart(all[start]) {
			if !utf8.FullRune(all[start:]) {
				whole = start
			}
			break
		}
	}
	e.rest = append([]byte(nil), all[whole:]...)
	if _, err := io.WriteString(e.w, escape(string(all[:whole]))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// flush writes what is left of a character that never came whole.
func (e *escapeWriter) flush() error {
	_, err := io.WriteString(e.w, escape(string(e.rest)))
	e.rest = nil
	return err
}

// lineWriter writes each line of a stream after the name of its host, so that
// no host can write a line that looks like another's.
type lineWriter struct {
	w      io.Writer
	before string
	inLine bool
	esc    *escapeWriter // nil: as it is
}

func newLineWriter(w io.Writer, before string, escaped bool) *lineWriter {
	l := &lineWriter{w: w, before: before}
	if escaped {
		l.esc = &escapeWriter{w: plainLines{l}}
	}
	return l
}

func (l *lineWriter) Write(b []byte) (int, error) {
	if l.esc != nil {
		return l.esc.Write(b)
	}
	return plainLines{l}.Write(b)
}

// flush ends a line that has no end.
func (l *lineWriter) flush() error {
	if l.esc != nil {
		if err := l.esc.flush(); err != nil {
			return err
		}
	}
	if !l.inLine {
		return nil
	}
	l.inLine = false
	_, err := io.WriteString(l.w, "\n")
	return err
}

// plainLines is a lineWriter behind its escaping.
type plainLines struct{ l *lineWriter }

func (p plainLines) Write(b []byte) (int, error) {
	var out []byte
	for line := range bytes.Lines(b) {
		if !p.l.inLine {
			out = append(out, p.l.before...)
		}
		out = append(out, line...)
		p.l.inLine = line[len(line)-1] != '\n'
	}
	if _, err := p.l.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
