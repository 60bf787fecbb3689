package cli

import (
	"fmt"
	"slices"
	"strings"
)

// diffContext is how many equal lines stand around a difference.
const diffContext = 3

// maxEdits bounds the work of a comparison, and its memory, by the square:
// texts that differ in more lines are shown as replaced.
const maxEdits = 1000

// unifiedDiff compares two texts by lines, as diff -u writes it, without the
// head. It is empty for equal texts. Lines are as in the texts: who prints them
// escapes them.
func unifiedDiff(old, new string) []string {
	a, b := splitLines(old), splitLines(new)
	ops := editScript(a, b)
	var out []string
	for i := 0; i < len(ops); {
		if ops[i].kind == ' ' {
			i++
			continue
		}
		// A hunk reaches from here to where more equal lines follow than two
		// contexts.
		begin, end := max(0, i-diffContext), i
		for j, equal := i, 0; j < len(ops) && equal <= 2*diffContext; j++ {
			if ops[j].kind == ' ' {
				equal++
			} else {
				equal, end = 0, j+1
			}
		}
		end = min(len(ops), end+diffContext)
		hunk := ops[begin:end]
		var lines []string
		oldLines, newLines := 0, 0
		for _, op := range hunk {
			if op.kind != '+' {
				oldLines++
			}
			if op.kind != '-' {
				newLines++
			}
			lines = append(lines, string(op.kind)+op.line)
		}
		out = append(out, fmt.Sprintf("@@ -%s +%s @@", lineSpan(hunk[0].a, oldLines), lineSpan(hunk[0].b, newLines)))
		out = append(out, lines...)
		i = end
	}
	return out
}

func lineSpan(before, n int) string {
	switch n {
	case 0:
		return fmt.Sprintf("%d,0", before)
	case 1:
		return fmt.Sprint(before + 1)
	}
	return fmt.Sprintf("%d,%d", before+1, n)
}

const noNewline = "\n\\ No newline at end of file"

// splitLines are the lines of a text; the last is marked if it has no end, so
// that it differs from one that has.
func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	lines := strings.Split(s, "\n")
	last := len(lines) - 1
	if lines[last] == "" {
		return lines[:last]
	}
	lines[last] += noNewline
	return lines
}

// editOp is one line of an edit script: kept, taken away or added. a and b are
// how many lines of the old and the new text come before it.
type editOp struct {
	kind byte // ' ', '-' or '+'
	line string
	a, b int
}

// editScript is a shortest edit script (Myers), or one that replaces all in
// the middle when that is too long.
func editScript(a, b []string) []editOp {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	var ops []editOp
	x, y := 0, 0
	add := func(kinds string) {
		for _, k := range []byte(kinds) {
			op := editOp{kind: k, a: x, b: y}
			if k != '+' {
				op.line = a[x]
				x++
			} else {
				op.line = b[y]
			}
			if k != '-' {
				y++
			}
			ops = append(ops, op)
		}
	}
	add(strings.Repeat(" ", head))
	middleA, middleB := a[head:len(a)-tail], b[head:len(b)-tail]
	kinds, ok := myers(middleA, middleB)
	if !ok {
		kinds = strings.Repeat("-", len(middleA)) + strings.Repeat("+", len(middleB))
	}
	add(kinds)
	add(strings.Repeat(" ", tail))
	return ops
}

// myers finds a shortest edit script of at most maxEdits edits.
func myers(a, b []string) (kinds string, ok bool) {
	most := min(maxEdits, len(a)+len(b))
	v := make([]int, 2*most+3)
	at := func(k int) *int { return &v[k+most+1] }
	var trace [][]int
	for d := 0; d <= most; d++ {
		trace = append(trace, slices.Clone(v[most+1-d:most+2+d])) // diagonals -d to d
		for k := -d; k <= d; k += 2 {
			x := *at(k - 1) + 1
			if k == -d || k != d && *at(k - 1) < *at(k + 1) {
				x = *at(k + 1)
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			*at(k) = x
			if x >= len(a) && x-k >= len(b) {
				return backtrack(trace, len(a), len(b)), true
			}
		}
	}
	return "", false
}

// backtrack reads the script off the furthest points, from the end.
func backtrack(trace [][]int, x, y int) string {
	var kinds []byte
	for d := len(trace) - 1; d > 0; d-- {
		v := func(k int) int { // before step d
			if k < -d || k > d {
				return -1
			}
			return trace[d][k+d]
		}
		k := x - y
		previous := k - 1
		if k == -d || k != d && v(k-1) < v(k+1) {
			previous = k + 1
		}
		px := v(previous)
		py := px - previous
		for x > px && y > py {
			kinds = append(kinds, ' ')
			x, y = x-1, y-1
		}
		if x == px {
			kinds = append(kinds, '+')
		} else {
			kinds = append(kinds, '-')
		}
		x, y = px, py
	}
	for ; x > 0; x-- {
		kinds = append(kinds, ' ')
	}
	slices.Reverse(kinds)
	return string(kinds)
}
