// Package nodeset reads and writes sets of node names in the notation of
// ClusterShell: "web[01-20]", "web[1-10/2]", "rack[1-2]n[01-04]", "a,b[1-3]".
// Operators work from left to right, without precedence: "," adds, "!" takes
// away, "&" keeps what is in both, "^" what is in exactly one.
//
// Names, their order and their folding are those of ClusterShell 1.9: "1" and
// "01" are two numbers, and the names of one pattern stand together. The
// differences are deliberate:
//
//   - Only what can be a node's name is accepted: no spaces within a name and
//     no negative numbers. "@group" and wildcards need somebody who knows the
//     fleet: Expand asks the caller, Parse refuses them.
//   - "web1[8-12]" is refused. ClusterShell reads it as web[18-112], 95 hosts;
//     who reads it aloud means five.
//   - An expression is bounded before it is expanded, not after.
//   - Names with several numbers that fill no rectangle are folded within a
//     budget of work. Beyond it, the result is longer than it could be and the
//     order another, never the names.
package nodeset

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"fleet/node/fleet"
)

const (
	operators = ",!&^"
	first     = 0 // in the place of the operator before the first operand
	// maxDigits is how long the numbers of a range may be: they fit in 64 bits.
	// Longer ones may stand alone.
	maxDigits = 18
	maxName   = 253 // as fleet.CheckNodeName
	// repeats is how many times max all operands together may expand to: room
	// for differences, and a bound for "a[1-1000],a[1-1000],…".
	repeats = 8
)

// Set is a set of names of nodes. The zero value is empty.
type Set struct {
	names []string // in ClusterShell's order, each once
}

// Names are the set's names in ClusterShell's order. The caller owns the slice.
func (s *Set) Names() []string { return slices.Clone(s.names) }

// Len is the number of names.
func (s *Set) Len() int { return len(s.names) }

// IsExpression reports whether s is more than the name of one node, so that
// Parse or Expand must expand it. It does not say that s is well formed.
func IsExpression(s string) bool { return strings.ContainsAny(s, "[]@*?"+operators) }

// Fleet is what Expand asks about the fleet. Its functions may be nil: what
// needs them is refused.
type Fleet struct {
	// Group is the nodes of "@name"; the name has no "@". "@*" asks for "*".
	// An error ends Expand and is its error.
	Group func(name string) ([]string, error)

	// Match is the nodes whose names match a pattern with * and ?.
	Match func(pattern string) []string

	// Name is the one word for a node that several words may name, such as its
	// name and its ID. Names are compared after it, so that "@web!web3" takes
	// web3 away however the group names it. Not asked about Match's nodes.
	Name func(name string) string
}

// Expand is Parse with groups and wildcards.
func Expand(expr string, max int, f Fleet) (*Set, error) { return parse(expr, max, f) }

// Parse expands an expression. Neither an operand nor a result on the way may
// have more than max names. Errors are of kind fleet.Invalid,
// name the position, counted in bytes from 1, and hint at what to write. An
// expression of nothing but spaces is the empty set.
func Parse(expr string, max int) (*Set, error) { return parse(expr, max, Fleet{}) }

func parse(expr string, max int, f Fleet) (*Set, error) {
	p := &parser{expr: expr, max: max, fleet: f}
	if max > 0 {
		p.budget = int(min(int64(max), math.MaxInt32)) * repeats
	}
	set := map[string]struct{}{}
	if strings.TrimLeft(expr, space) == "" {
		return &Set{}, nil
	}
	op := byte(first)
	for {
		names, err := p.operand(op)
		if err != nil {
			return nil, err
		}
		if set = apply(set, op, names); len(set) > max {
			return nil, p.tooMany(p.pos)
		}
		if p.pos == len(expr) {
			break
		}
		op = expr[p.pos]
		p.pos++
	}
	s := &Set{names: make([]string, 0, len(set))}
	all := make([]string, 0, len(set))
	for name := range set {
		all = append(all, name)
	}
	for _, g := range arrange(all) {
		s.names = g.expand(s.names)
	}
	return s, nil
}

func apply(set map[string]struct{}, op byte, names []string) map[string]struct{} {
	switch op {
	case first, ',':
		for _, name := range names {
			set[name] = struct{}{}
		}
	case '!':
		for _, name := range names {
			delete(set, name)
		}
	case '&':
		both := map[string]struct{}{}
		for _, name := range names {
			if _, ok := set[name]; ok {
				both[name] = struct{}{}
			}
		}
		return both
	case '^': // names has each once
		for _, name := range names {
			if _, ok := set[name]; ok {
				delete(set, name)
			} else {
				set[name] = struct{}{}
			}
		}
	}
	return set
}

const space = " \t\r\n\v\f"

// parser reads one expression. pos is where it is.
type parser struct {
	expr   string
	pos    int
	max    int
	budget int // names that operands may yet expand to
	fleet  Fleet
}

func (p *parser) fail(pos int, format string, args ...any) *fleet.Error {
	at := []any{quote(p.expr), pos + 1}
	return fleet.Errorf(fleet.Invalid, "node set %s, character %d: "+format, append(at, args...)...)
}

func (p *parser) tooMany(pos int) *fleet.Error {
	return p.fail(pos, "more than %d names", p.max).WithHint("write a smaller range, or select the nodes by a label")
}

func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// part of an operand: text, or else numbers in brackets.
type part struct {
	text    string
	numbers []string // each once
	pos     int
	ranges  string // what stood in the brackets
}

// operand reads up to the next operator or the end and expands what it read.
// Each name comes once.
func (p *parser) operand(op byte) ([]string, error) {
	for p.pos < len(p.expr) && strings.IndexByte(space, p.expr[p.pos]) >= 0 {
		p.pos++
	}
	start := p.pos
	if p.pos < len(p.expr) && p.expr[p.pos] == '@' && p.fleet.Group != nil {
		p.pos++
		return p.group(start)
	}
	if end := p.operandEnd(); p.fleet.Match != nil && strings.ContainsAny(p.expr[start:end], "*?") {
		return p.match(start, end)
	}
	names, err := p.names(op, start)
	return p.canonical(names), err
}

// operandEnd is where the operand at pos ends: at the next operator that is
// not in brackets.
func (p *parser) operandEnd() int {
	inside := false
	for i := p.pos; i < len(p.expr); i++ {
		switch c := p.expr[i]; {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case !inside && strings.IndexByte(operators, c) >= 0:
			return i
		}
	}
	return len(p.expr)
}

// group reads what follows an @ and asks for its nodes: "@db", "@rack[1-3]".
func (p *parser) group(start int) ([]string, error) {
	var groups []string
	if end := p.operandEnd(); strings.Trim(p.expr[p.pos:end], space) == "*" {
		groups, p.pos = []string{"*"}, end
	} else if strings.Trim(p.expr[p.pos:end], space) == "" {
		return nil, p.fail(start, "the name of a target is missing after @").WithHint("see which there are: fleet target ls")
	} else {
		var err error
		if groups, err = p.names(first, p.pos); err != nil {
			return nil, err
		}
	}
	var all []string
	for _, g := range groups {
		names, err := p.fleet.Group(g)
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	return p.given(start, p.canonical(all))
}

// match asks for the nodes of a pattern.
func (p *parser) match(start, end int) ([]string, error) {
	pattern := strings.TrimRight(p.expr[start:end], space)
	if i := strings.IndexAny(pattern, "[]@"); i >= 0 {
		return nil, p.fail(start+i, "%q beside a wildcard", string(pattern[i])).WithHint("write web* or web[1-3], one of the two")
	}
	if err := p.checkText(strings.NewReplacer("*", "x", "?", "x").Replace(pattern), start); err != nil {
		return nil, err
	}
	p.pos = end
	return p.given(start, p.fleet.Match(pattern))
}

// given counts the names that the caller gave, and gives each once.
func (p *parser) given(start int, names []string) ([]string, error) {
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > p.max {
		return nil, p.tooMany(start)
	}
	if p.budget -= len(names); p.budget < 0 {
		return nil, p.overBudget(start)
	}
	return names, nil
}

func (p *parser) canonical(names []string) []string {
	if p.fleet.Name == nil {
		return names
	}
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, p.fleet.Name(n))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *parser) overBudget(pos int) *fleet.Error {
	return p.fail(pos, "all operands together have more than %d names", p.max*repeats).WithHint("name each node once")
}

// names reads an operand that is written out. op is what stands before it.
func (p *parser) names(op byte, start int) ([]string, error) {
	var parts []part
	for p.pos < len(p.expr) && strings.IndexByte(operators, p.expr[p.pos]) < 0 {
		from := p.pos
		if p.expr[from] != '[' {
			n := strings.IndexAny(p.expr[from:], "["+operators)
			if n < 0 {
				n = len(p.expr) - from
			}
			p.pos += n
			text := p.expr[from:p.pos]
			if p.pos == len(p.expr) || p.expr[p.pos] != '[' {
				text = strings.TrimRight(text, space)
			}
			if err := p.checkText(text, from); err != nil {
				return nil, err
			}
			if text != "" {
				parts = append(parts, part{text: text, pos: from})
			}
			continue
		}
		n := strings.IndexByte(p.expr[from:], ']')
		if n < 0 {
			return nil, p.fail(from, "this [ is not closed").WithHint("write a range as web[1-3]")
		}
		p.pos += n + 1
		parts = append(parts, part{ranges: p.expr[from+1 : from+n], pos: from})
	}
	if len(parts) == 0 {
		where, neighbour := "after", op
		if op == first {
			where, neighbour = "before", p.expr[p.pos] // not the end: Parse knows an empty expression
		}
		return nil, p.fail(start, "a name is missing %s %q", where, string(neighbour)).
			WithHint("remove the operator, or write a node or a set on both sides of it: a,b[1-3]")
	}
	return p.expand(parts)
}

func (p *parser) checkText(text string, pos int) error {
	for i := range len(text) {
		c := text[i]
		switch {
		case isDigit(c), c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '.':
			continue
		case strings.IndexByte(space, c) >= 0:
			return p.fail(pos+i, "a space within a name").WithHint("separate names by commas: a,b[1-3]")
		case c == ']':
			return p.fail(pos+i, "a ] without its [").WithHint("write a range as web[1-3]")
		case c == '@':
			return p.fail(pos+i, "groups are not known here").WithHint("write the names of the nodes, or select them by a label")
		case c == '*', c == '?':
			return p.fail(pos+i, "wildcards are not known here").WithHint("write a range, web[01-20], or select the nodes by a label")
		default:
			r := []rune(text[i:])[0]
			return p.fail(pos+i, "%q cannot be in the name of a node", string(r)).
				WithHint("use letters, digits, dots and hyphens; operators are , ! & and ^")
		}
	}
	return nil
}

// expand makes an operand's names: the product of its parts. Sizes are checked
// before anything of that size is made.
func (p *parser) expand(parts []part) ([]string, error) {
	count, longest := 1, 0
	var first strings.Builder
	for i := range parts {
		part := &parts[i]
		if part.text != "" {
			longest += len(part.text)
			first.WriteString(part.text)
			continue
		}
		if err := p.checkNeighbours(parts, i); err != nil {
			return nil, err
		}
		var err error
		if part.numbers, err = p.numbers(part, parts, i, p.max/count); err != nil {
			return nil, err
		}
		count *= len(part.numbers) // at most max
		most := 0
		for _, n := range part.numbers {
			most = max(most, len(n))
		}
		longest += most
		first.WriteString(part.numbers[0])
	}
	if longest > maxName {
		return nil, p.fail(parts[0].pos, "a name of %d characters", longest).WithHint("a node's name has at most %d", maxName)
	}
	if err := fleet.CheckNodeName(first.String()); err != nil {
		return nil, p.fail(parts[0].pos, "%q is no name of a node", first.String()).
			WithHint("a name begins and ends with a letter or digit")
	}
	if count > p.max {
		return nil, p.tooMany(parts[0].pos)
	}
	if p.budget -= count; p.budget < 0 {
		return nil, p.overBudget(parts[0].pos)
	}
	names := []string{""}
	for _, part := range parts {
		choices := part.numbers
		if part.text != "" {
			choices = []string{part.text}
		}
		next := make([]string, 0, len(names)*len(choices))
		for _, name := range names {
			for _, c := range choices {
				next = append(next, name+c)
			}
		}
		names = next
	}
	return names, nil
}

// checkNeighbours refuses two brackets that only digits separate: which digit
// belongs to which number could not be told from the names.
func (p *parser) checkNeighbours(parts []part, i int) error {
	before := i - 1
	if before > 0 && strings.Trim(parts[before].text, "0123456789") == "" && parts[before].text != "" {
		before--
	}
	if before >= 0 && parts[before].text == "" {
		return p.fail(parts[i].pos, "two ranges make one number").
			WithHint("write it as one range, web[11-14,21-24], or put a letter, dot or hyphen between them")
	}
	return nil
}

// numbers reads what stands in brackets: at most room numbers, repeated ones
// counted.
func (p *parser) numbers(own *part, parts []part, i, room int) ([]string, error) {
	leading := i > 0 && endsInDigit(parts[i-1].text)
	trailing := i+1 < len(parts) && parts[i+1].text != "" && isDigit(parts[i+1].text[0])
	var out []string
	seen := map[string]bool{}
	pos := own.pos + 1
	for item := range strings.SplitSeq(own.ranges, ",") {
		begin, end, step, err := p.span(item, pos, trailing)
		if err != nil {
			return nil, err
		}
		n := uint64(1)
		var low uint64
		if begin != end {
			low, _ = strconv.ParseUint(begin, 10, 64) // span has checked both
			high, _ := strconv.ParseUint(end, 10, 64)
			n = (high-low)/step + 1
		}
		if n > uint64(max(room, 0)) {
			return nil, p.tooMany(pos)
		}
		room -= int(n)
		for k := range n {
			text := begin
			if k > 0 {
				text = pad(strconv.FormatUint(low+k*step, 10), len(begin))
			}
			if !seen[text] {
				seen[text] = true
				out = append(out, text)
			}
		}
		pos += len(item) + 1
	}
	if leading && !trailing {
		for _, n := range out {
			// A range over the edge from 9 to 10, 99 to 100, …
			if strings.Trim(n, "9") == "" && seen["1"+strings.Repeat("0", len(n))] {
				return nil, p.fail(own.pos, "digits before a range from %s to 1%s could mean two things", n, strings.Repeat("0", len(n))).
					WithHint("put all digits into the brackets: for web1[8-12] write web[18-19,110-112], or web[18-112]")
			}
		}
	}
	return out, nil
}

// span reads one item of a range: "7", "01-20" or "1-9/2".
func (p *parser) span(item string, pos int, trailing bool) (begin, end string, step uint64, err error) {
	const how = "write numbers and ranges: web[1,3-5], web[01-20], web[1-9/2]"
	bounds, stepText, stepped := strings.Cut(item, "/")
	step = 1
	if stepped {
		stepText = strings.Trim(stepText, space)
		if trailing {
			return "", "", 0, p.fail(pos, "a step, and digits after the brackets").WithHint("put the digits into the brackets: for web[1-5/2]0 write web[10-50/20]")
		}
		if !isNumber(stepText) || len(stepText) > maxDigits || strings.Trim(stepText, "0") == "" {
			return "", "", 0, p.fail(pos, "%s is no step", quote(stepText)).WithHint("write a step as web[1-9/2]")
		}
		step, _ = strconv.ParseUint(stepText, 10, 64)
	}
	begin, end, ranged := strings.Cut(bounds, "-")
	begin, end = strings.Trim(begin, space), strings.Trim(end, space)
	if !ranged {
		end = begin
	}
	switch {
	case strings.Trim(item, space) == "":
		return "", "", 0, p.fail(pos, "an empty range").WithHint(how)
	case ranged && begin == "":
		return "", "", 0, p.fail(pos, "a negative number").WithHint("write the hyphen before the brackets: web-[1-3]")
	case !isNumber(begin) || !isNumber(end):
		return "", "", 0, p.fail(pos, "%s is no range of numbers", quote(item)).WithHint(how)
	case !ranged && step != 1:
		return "", "", 0, p.fail(pos, "a step without a range").WithHint("write a step as web[1-9/2]")
	case !ranged && len(begin) > maxName:
		return "", "", 0, p.fail(pos, "a number of %d digits", len(begin)).WithHint("a node's name has at most %d characters", maxName)
	case !ranged:
		return begin, end, step, nil
	case len(begin) > maxDigits || len(end) > maxDigits:
		return "", "", 0, p.fail(pos, "a range of numbers with more than %d digits", maxDigits).WithHint("write these numbers one by one")
	case (padded(begin) || padded(end) || trailing && begin == "0") && len(begin) != len(end):
		width := max(len(begin), len(end))
		return "", "", 0, p.fail(pos, "%s and %s differ in length, and one has leading zeros", begin, end).
			WithHint("write %s-%s, or the numbers without leading zeros", pad(begin, width), pad(end, width))
	case len(begin) > len(end) || len(begin) == len(end) && begin > end:
		return "", "", 0, p.fail(pos, "%s is after %s", begin, end).WithHint("write %s-%s", end, begin)
	}
	return begin, end, step, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func endsInDigit(s string) bool { return s != "" && isDigit(s[len(s)-1]) }

func pad(s string, width int) string { return strings.Repeat("0", max(0, width-len(s))) + s }

func padded(s string) bool { return len(s) > 1 && s[0] == '0' }
