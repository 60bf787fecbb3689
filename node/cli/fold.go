package cli

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// foldNames writes names of hosts briefly: numbers that follow one another
// become a range, "web[01-17,19]". Names are given in any order.
func foldNames(names []string) string {
	names = slices.Clone(names)
	slices.SortFunc(names, naturalCompare)
	type numbered struct{ prefix, digits, suffix string }
	var parts []numbered
	padded := map[string]bool{} // prefix, suffix and width of numbers with leading zeros
	key := func(n numbered, width int) string { return n.prefix + "\x00" + n.suffix + "\x00" + strconv.Itoa(width) }
	for _, name := range names {
		prefix, digits, suffix := splitNumber(name)
		n := numbered{prefix, digits, suffix}
		parts = append(parts, n)
		if len(digits) > 1 && digits[0] == '0' {
			padded[key(n, len(digits))] = true
		}
	}
	type group struct {
		prefix, suffix string
		width          int // 0: without leading zeros
		numbers        []uint64
		plain          bool // a name without a number
	}
	var groups []*group
	byKey := map[string]*group{}
	for _, n := range parts {
		if n.digits == "" {
			groups = append(groups, &group{prefix: n.prefix, suffix: n.suffix, plain: true})
			continue
		}
		width := 0
		if padded[key(n, len(n.digits))] {
			width = len(n.digits)
		}
		g := byKey[key(n, width)]
		if g == nil {
			g = &group{prefix: n.prefix, suffix: n.suffix, width: width}
			byKey[key(n, width)] = g
			groups = append(groups, g)
		}
		number, _ := strconv.ParseUint(n.digits, 10, 64) // splitNumber gives at most 18 digits
		g.numbers = append(g.numbers, number)
	}
	var out []string
	for _, g := range groups {
		if g.plain {
			out = append(out, g.prefix+g.suffix)
			continue
		}
		out = append(out, g.prefix+ranges(g.numbers, g.width)+g.suffix)
	}
	return strings.Join(out, ",")
}

// ranges writes ascending numbers: one as it is, several in brackets.
func ranges(numbers []uint64, width int) string {
	text := func(n uint64) string {
		s := strconv.FormatUint(n, 10)
		return strings.Repeat("0", max(0, width-len(s))) + s
	}
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, text(numbers[i]))
		} else {
			parts = append(parts, text(numbers[i])+"-"+text(numbers[j]))
		}
		i = j + 1
	}
	if len(numbers) == 1 {
		return parts[0]
	}
	return "[" + strings.Join(parts, ",") + "]"
}

// splitNumber splits a name at the last number of its first part: "web12.x" is
// "web", "12", ".x". A name without one, with a very long one, or with an ID in
// it has no digits.
func splitNumber(name string) (prefix, digits, suffix string) {
	first, rest := name, ""
	if dot := strings.IndexByte(name, '.'); dot > 0 {
		first, rest = name[:dot], name[dot:]
	}
	isDigit := func(c byte) bool { return c >= '0' && c <= '9' }
	end := len(first)
	for end > 0 && !isDigit(first[end-1]) {
		end--
	}
	begin := end
	for begin > 0 && isDigit(first[begin-1]) {
		begin--
	}
	if begin == end || end-begin > 18 || strings.Contains(name, "mi-") {
		return name, "", ""
	}
	return first[:begin], first[begin:end], first[end:] + rest
}

// naturalCompare orders names as people do: web2 before web10.
func naturalCompare(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		nx, ny := leadingDigits(x), leadingDigits(y)
		if nx > 0 && ny > 0 {
			dx, dy := strings.TrimLeft(x[:nx], "0"), strings.TrimLeft(y[:ny], "0")
			if c := cmp.Or(cmp.Compare(len(dx), len(dy)), strings.Compare(dx, dy)); c != 0 {
				return c
			}
			x, y = x[nx:], y[ny:]
			continue
		}
		if x[0] != y[0] {
			return cmp.Compare(x[0], y[0])
		}
		x, y = x[1:], y[1:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(a, b))
}

func leadingDigits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
