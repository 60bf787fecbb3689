package nodeset

import (
	"cmp"
	"slices"
	"strings"
)

// foldWork bounds the merging of one group: some tenths of a second. Sets of
// some thousand names in two dimensions need a small part of it.
const foldWork = 1 << 24

// Fold writes names as one expression, in any order and repeated or not:
// "web01 web02 web03" is "web[01-03]". Parse gives the names again.
func Fold(names []string) string {
	var out []string
	for _, g := range arrange(names) {
		out = g.fold(out)
	}
	return strings.Join(out, ",")
}

// group is the names of one pattern, as "rack", "n", ".example" for names with
// two numbers.
type group struct {
	texts   []string // around the numbers: one more than there are numbers
	numbers [][]string
	vectors []vector
}

// vector is a rectangle of names: for each place the numbers it takes, in order
// of length and then text.
type vector [][]string

// arrange groups names, in order of pattern, and covers each group by disjoint
// vectors.
func arrange(names []string) []*group {
	groups := map[string]*group{}
	seen := make(map[string]struct{}, len(names))
	for _, name := range names {
		if _, again := seen[name]; again || name == "" {
			continue
		}
		seen[name] = struct{}{}
		texts, numbers := split(name)
		pattern := strings.ReplaceAll(strings.Join(texts, "\x00"), "%", "%%")
		pattern = strings.ReplaceAll(pattern, "\x00", "%s") // as ClusterShell, which sorts by it
		g := groups[pattern]
		if g == nil {
			g = &group{texts: texts}
			groups[pattern] = g
		}
		g.numbers = append(g.numbers, numbers)
	}
	patterns := make([]string, 0, len(groups))
	for pattern := range groups {
		patterns = append(patterns, pattern)
	}
	slices.Sort(patterns)
	out := make([]*group, 0, len(patterns))
	for _, pattern := range patterns {
		g := groups[pattern]
		g.cover()
		out = append(out, g)
	}
	return out
}

// split takes a name apart at its numbers.
func split(name string) (texts, numbers []string) {
	for {
		i := 0
		for i < len(name) && !isDigit(name[i]) {
			i++
		}
		texts = append(texts, name[:i])
		if name = name[i:]; name == "" {
			return texts, numbers
		}
		i = 0
		for i < len(name) && isDigit(name[i]) {
			i++
		}
		numbers = append(numbers, name[:i])
		name = name[i:]
	}
}

// cover makes vectors of numbers.
func (g *group) cover() {
	dims := len(g.texts) - 1
	axes := make(vector, dims)
	full := 1
	for d := range dims {
		for _, n := range g.numbers {
			axes[d] = append(axes[d], n[d])
		}
		slices.SortFunc(axes[d], compareNumbers)
		axes[d] = slices.Clip(slices.Compact(axes[d]))
		if full <= len(g.numbers) { // else it is no rectangle, and might overflow
			full *= len(axes[d])
		}
	}
	if full == len(g.numbers) {
		g.vectors = []vector{axes}
		return
	}
	g.vectors = make([]vector, 0, len(g.numbers))
	for _, numbers := range g.numbers {
		v := make(vector, dims)
		for d := range v {
			v[d] = numbers[d : d+1 : d+1]
		}
		g.vectors = append(g.vectors, v)
	}
	g.merge()
}

// merge joins vectors that differ in one place, in ClusterShell's order of
// trying, which decides the order of names: passes that compare neighbours until
// they change nothing, then passes that compare all.
func (g *group) merge() {
	vs := g.vectors
	work := foldWork
	for full, changed := false, true; changed && work > 0; {
		slices.SortStableFunc(vs, compareVectors)
		work -= 16 * len(vs)
		before := len(vs)
		for i := 0; i+1 < len(vs); i++ {
			grown := growing{vector: vs[i], place: -1}
			rest := vs[i+1:]
			kept, j := 0, 0
			for ; j < len(rest) && work > 0; j++ {
				joined, cost := grown.join(rest[j])
				work -= cost
				if joined {
					continue
				}
				if !full {
					break
				}
				rest[kept] = rest[j]
				kept++
			}
			vs[i] = grown.sorted()
			if j > kept {
				work -= (len(rest) - j) / 8
				vs = slices.Delete(vs, i+1+kept, i+1+j)
			}
		}
		changed = len(vs) < before
		if !changed && !full {
			full, changed = true, true
		}
	}
	g.vectors = vs
}

// growing is a vector that takes in others. Until sorted, the numbers at place
// (-1: nowhere) are its own and in any order.
type growing struct {
	vector vector
	place  int
	mixed  bool
}

// join takes in b if the names of both are a rectangle, and tells what it cost
// to find out. They have no name in common, so at the one place where they
// differ they have no number in common.
func (g *growing) join(b vector) (joined bool, cost int) {
	place := -1
	for d := range b {
		cost += 2
		if len(g.vector[d]) == len(b[d]) {
			cost += len(b[d])
			if d == g.place && g.mixed {
				cost += 8 * len(b[d])
				g.sorted()
			}
			if slices.Equal(g.vector[d], b[d]) {
				continue
			}
		}
		if place >= 0 {
			return false, cost
		}
		place = d
	}
	if place != g.place {
		g.sorted()
		g.vector = slices.Clone(g.vector)
		g.vector[place] = slices.Clone(g.vector[place])
		g.place = place
		cost += len(g.vector[place])
	}
	g.vector[place] = append(g.vector[place], b[place]...)
	g.mixed = true
	return true, cost + 8*len(b[place])
}

func (g *growing) sorted() vector {
	if g.mixed {
		slices.SortFunc(g.vector[g.place], compareNumbers)
		g.mixed = false
	}
	return g.vector
}

// compareVectors puts larger vectors first, then, place by place, those with
// more numbers and those with lower ones: as text, unlike within a place.
func compareVectors(a, b vector) int {
	size := func(v vector) int {
		n := 1
		for _, numbers := range v {
			n *= len(numbers) // at most the number of names
		}
		return n
	}
	if c := cmp.Compare(size(b), size(a)); c != 0 {
		return c
	}
	for d := range a {
		x, y := a[d], b[d]
		if c := cmp.Or(cmp.Compare(len(y), len(x)), strings.Compare(x[0], y[0]),
			strings.Compare(x[len(x)-1], y[len(y)-1])); c != 0 {
			return c
		}
	}
	return 0
}

func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// expand appends the names of g.
func (g *group) expand(names []string) []string {
	for _, v := range g.vectors {
		these := []string{g.texts[0]}
		for d, numbers := range v {
			next := make([]string, 0, len(these)*len(numbers))
			for _, name := range these {
				for _, n := range numbers {
					next = append(next, name+n+g.texts[d+1])
				}
			}
			these = next
		}
		names = append(names, these...)
	}
	return names
}

// fold appends an expression for each vector of g.
func (g *group) fold(out []string) []string {
	for _, v := range g.vectors {
		var b strings.Builder
		b.WriteString(g.texts[0])
		for d, numbers := range v {
			if len(numbers) == 1 {
				b.WriteString(numbers[0])
			} else {
				b.WriteString("[" + ranges(numbers) + "]")
			}
			b.WriteString(g.texts[d+1])
		}
		out = append(out, b.String())
	}
	return out
}

// ranges writes sorted numbers: those that follow one another as a range.
func ranges(numbers []string) string {
	var parts []string
	zeros := padded(numbers[0]) // the width of this range is fixed
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && follows(numbers[j], numbers[j+1], zeros) {
			j++
		}
		if i == j {
			parts = append(parts, numbers[i])
		} else {
			parts = append(parts, numbers[i]+"-"+numbers[j])
		}
		// A number alone hands its fixed width to the next range of that width:
		// 09,99,100 but 08-09,99-100, as ClusterShell.
		if j+1 < len(numbers) {
			next := numbers[j+1]
			if j > i || zeros && len(next) != len(numbers[j]) || !zeros {
				zeros = padded(next)
			}
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// follows reports whether b is the number after a and may stand in its range.
func follows(a, b string, zeros bool) bool {
	if len(b) > maxDigits || zeros && len(a) != len(b) || !zeros && padded(b) {
		return false
	}
	next := []byte(a)
	i := len(next) - 1
	for ; i >= 0 && next[i] == '9'; i-- {
		next[i] = '0'
	}
	if i < 0 {
		return b == "1"+string(next)
	}
	next[i]++
	return b == string(next)
}
