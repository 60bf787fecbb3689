package nodeset

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
)

var live = flag.Bool("oracle", false, "compare random expressions with the program nodeset")

var update = flag.Bool("update", false, "record ClusterShell's answers in testdata/clustershell.tsv")

func TestParse(t *testing.T) {
	for _, c := range []struct{ expr, names, fold string }{
		{"web", "web", "web"},
		{"web[08-11]", "web08 web09 web10 web11", "web[08-11]"},
		{"web[1-10/3]", "web1 web4 web7 web10", "web[1,4,7,10]"},
		{"rack[1-2]n[01-02]", "rack1n01 rack1n02 rack2n01 rack2n02", "rack[1-2]n[01-02]"},
		{"a,b[1-3]", "a b1 b2 b3", "a,b[1-3]"},
		{"a[1-5]!a3", "a1 a2 a4 a5", "a[1-2,4-5]"},
		{"a[1-5]&a[4-9]", "a4 a5", "a[4-5]"},
		{"a[1-3]^a[2-4]", "a1 a4", "a[1,4]"},
		{"a[1-3]^a[2-5]!a5&a[1-4]", "a1 a4", "a[1,4]"},
		{"a1!a1,a2", "a2", "a2"},
		{"a[1-3]!a[1-3]", "", ""},
		{" a , b[ 1 - 2 ] ", "a b1 b2", "a,b[1-2]"},
		{"web[1-2].dc1.example.org", "web1.dc1.example.org web2.dc1.example.org", "web[1-2].dc1.example.org"},
		{"web1[0-2]", "web10 web11 web12", "web[10-12]"},
		{"web[8-12]0", "web80 web90 web100 web110 web120", "web[80,90,100,110,120]"},
		{"a10,a9,a09,a1", "a1 a9 a09 a10", "a[1,9,09-10]"},
		{"[1-3]", "1 2 3", "[1-3]"},
		{"", "", ""},
	} {
		s, err := Parse(c.expr, 100)
		if err != nil {
			t.Errorf("%q: %v", c.expr, err)
			continue
		}
		if got := strings.Join(s.Names(), " "); got != c.names {
			t.Errorf("%q: names %q, want %q", c.expr, got, c.names)
		}
		if got := Fold(s.Names()); got != c.fold {
			t.Errorf("%q: folded %q, want %q", c.expr, got, c.fold)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ expr, want, hint string }{
		{"a,,b", `character 3: a name is missing after ","`, "a,b[1-3]"},
		{" ,a", `character 2: a name is missing before ","`, "a,b[1-3]"},
		{"a! ", `character 4: a name is missing after "!"`, "a,b[1-3]"},
		{"web[1-3", "character 4: this [ is not closed", "web[1-3]"},
		{"web1-3]", "character 7: a ] without its [", "web[1-3]"},
		{"a b", "character 2: a space within a name", "commas"},
		{"a,@db", "character 3: groups", "label"},
		{"web*", "character 4: wildcards", "label"},
		{"wéb", `character 2: "é" cannot`, "letters"},
		{"w\xffb", "character 2: ", "letters"},
		{"web[]", "character 5: an empty range", "web[1,3-5]"},
		{"web[1,x-3]", `character 7: "x-3" is no range`, "web[1,3-5]"},
		{"web[1-2-3]", `"1-2-3" is no range`, "web[1,3-5]"},
		{"web[5-1]", "character 5: 5 is after 1", "write 1-5"},
		{"web[-5]", "character 5: a negative number", "web-[1-3]"},
		{"web[01-100]", "01 and 100 differ in length", "001-100"},
		{"web[1-9/0]", `"0" is no step`, "web[1-9/2]"},
		{"web[5/2]", "a step without a range", "web[1-9/2]"},
		{"a[1-2][3-4]", "character 7: two ranges make one number", "[11-14,21-24]"},
		{"a[1-2]0[3-4]", "two ranges make one number", "[11-14,21-24]"},
		{"a[1-5/2]0", "a step, and digits after", "web[10-50/20]"},
		{"web1[8-12]", "character 5: digits before a range from 9 to 10", "web[18-19,110-112]"},
		{"web[1-101]", "character 5: more than 100 names", "label"},
		{"a[1-99],b[1-2]", "more than 100 names", "label"},
		{"a[1-20]b[1-20]", "character 10: more than 100 names", "label"},
		{"a[0-999999999999999999]", "more than 100 names", "label"},
		{"a[0-9999999999999999999]", "more than 18 digits", "one by one"},
		{strings.Repeat("a[1-100],", 9) + "b", "all operands together have more than 800 names", "once"},
		{"-[1-2]", `"-1" is no name`, "begins and ends"},
		{strings.Repeat("a", 254), "a name of 254 characters", "253"},
	} {
		s, err := Parse(c.expr, 100)
		if err == nil {
			t.Errorf("%.40q: %d names, want an error with %q", c.expr, s.Len(), c.want)
			continue
		}
		if fleet.KindOf(err) != fleet.Invalid || !strings.Contains(err.Error(), c.want) || !strings.Contains(fleet.HintOf(err), c.hint) {
			t.Errorf("%.40q: %v: %v (hint %q), want %q and hint %q", c.expr, fleet.KindOf(err), err, fleet.HintOf(err), c.want, c.hint)
		}
	}
	for _, most := range []int{0, -1} {
		if _, err := Parse("a", most); err == nil {
			t.Errorf("a name with max %d was accepted", most)
		}
	}
}

func TestIsExpression(t *testing.T) {
	for s, want := range map[string]bool{
		"web01": false, "web-1.example.org": false, "mi-0123456789abcdef0": false, "": false,
		"web[1-2]": true, "a,b": true, "a!b": true, "a&b": true, "a^b": true, "a]": true,
	} {
		if got := IsExpression(s); got != want {
			t.Errorf("IsExpression(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestFold(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"web03 web01 web02 web01", "web[01-03]"},
		{"db web1 web2 web4", "db,web[1-2,4]"},
		{"a9 a10", "a[9-10]"},
		{"a09 a99 a100", "a[09,99,100]"},
		{"a08 a09 a99 a100", "a[08-09,99-100]"},
		{"r1n1 r1n2 r2n1", "r1n[1-2],r2n1"},
		{"100%a1 100%a2", "100%a[1-2]"},
	} {
		if got := Fold(strings.Fields(c.names)); got != c.want {
			t.Errorf("Fold(%s) = %s, want %s", c.names, got, c.want)
		}
	}
}

// Scattered names in several dimensions are the worst that folding meets.
func TestFoldIsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var names []string
	for range 10000 {
		names = append(names, fmt.Sprintf("r%dn%dp%d", random.IntN(100), random.IntN(100), random.IntN(100)))
	}
	s, err := Parse(Fold(names), len(names))
	if err != nil {
		t.Fatal(err)
	}
	got := s.Names()
	slices.Sort(names)
	slices.Sort(got)
	if !slices.Equal(got, slices.Compact(names)) {
		t.Errorf("%d names, want %d", len(got), len(slices.Compact(names)))
	}
}

// The recorded answers, whether or not ClusterShell is here. To record anew:
// go test ./node/nodeset -run TestRecorded -update
func TestRecorded(t *testing.T) {
	const file = "testdata/clustershell.tsv"
	if *update {
		exprs := expressions(rand.New(rand.NewPCG(3, 4)), 400)
		var b bytes.Buffer
		for i, answer := range oracle(t, exprs) {
			b.WriteString(exprs[i] + "\t" + answer + "\n")
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if len(lines) < 400 {
		t.Fatalf("%s has %d answers", file, len(lines))
	}
	for _, line := range lines {
		expr, answer, _ := strings.Cut(line, "\t")
		compare(t, expr, answer)
	}
}

// TestAgainstClusterShell compares with the program itself on other random
// expressions each time, so it is asked for by name (-oracle): what ClusterShell
// reads in a way of its own and the package refuses with another message is for a
// person to judge. The recorded answers are compared always.
func TestAgainstClusterShell(t *testing.T) {
	if !*live {
		t.Skip("compares random expressions with the program nodeset: go test ./node/nodeset -oracle")
	}
	exprs := expressions(rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), 1000)
	for i, answer := range oracle(t, exprs) {
		compare(t, exprs[i], answer)
	}
}

// deliberate are the refusals of what ClusterShell accepts.
var deliberate = []string{
	"could mean two things", "a space within a name", "is no name of a node", "a negative number", "is no range of numbers",
}

// compare checks an expression against ClusterShell's answer: all of it, but
// for what the package's comment names.
func compare(t *testing.T, expr, answer string) {
	t.Helper()
	got := "refused"
	s, err := Parse(expr, 100000)
	if err == nil {
		names := s.Names()
		got = strings.Join(names, " ") + "\t" + Fold(names)
	} else if slices.ContainsFunc(deliberate, func(s string) bool { return strings.Contains(err.Error(), s) }) {
		return
	}
	if got != answer {
		t.Errorf("%q: %s (%v)\nClusterShell: %s", expr, got, err, answer)
	}
}

// oracle asks ClusterShell, with the interpreter that its program nodeset runs
// in: one start for all expressions.
func oracle(t *testing.T, exprs []string) []string {
	t.Helper()
	program, err := exec.LookPath("nodeset")
	if err != nil {
		t.Skip("nodeset of ClusterShell is not installed (Debian: apt-get install clustershell): compared with recorded answers only")
	}
	script, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(script), "\n")
	interpreter := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(interpreter) == 0 || !strings.Contains(line, "python") {
		t.Skipf("%s is not ClusterShell's: it begins %.80q", program, line)
	}
	cmd := exec.CommandContext(t.Context(), interpreter[0], append(interpreter[1:], "testdata/oracle.py")...)
	cmd.Env = append(os.Environ(), "PYTHONIOENCODING=utf-8")
	cmd.Stdin = strings.NewReader(strings.Join(exprs, "\n") + "\n")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(answers) != len(exprs) {
		t.Fatalf("%d answers to %d expressions", len(answers), len(exprs))
	}
	return answers
}

// expressions are random ones that use the whole notation, some malformed.
func expressions(random *rand.Rand, n int) []string {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	number := func() string {
		return pick("", "", "0", "00") + fmt.Sprint(random.IntN(pow10(random.IntN(3)+1)))
	}
	item := func() string {
		a, width := random.IntN(120), 1+random.IntN(3)
		b := a + random.IntN(15)
		switch random.IntN(8) {
		case 0, 1:
			return number()
		case 2:
			return number() + "-" + number()
		case 3:
			return fmt.Sprintf("%d-%d/%d", a, b, random.IntN(5))
		case 4:
			return fmt.Sprintf("%0*d-%0*d", width, a, width, b)
		default:
			return fmt.Sprintf("%d-%d", a%12, a%12+random.IntN(4))
		}
	}
	bracket := func() string {
		s := "[" + item()
		for random.IntN(3) == 0 {
			s += "," + item()
		}
		return s + "]"
	}
	operand := func() string {
		switch random.IntN(8) {
		case 0:
			return pick("a", "b", "a.b", "web") + pick("", number())
		case 1:
			return "a" + pick("", number()) + bracket() + pick("", "-x", number(), ".d"+number())
		case 2, 3:
			return "a" + bracket()
		case 4, 5, 6:
			return "r" + pick(number(), bracket()) + "n" + pick(number(), bracket())
		default:
			return "r" + bracket() + "n" + bracket() + "p" + pick(number(), bracket())
		}
	}
	var out []string
	for range n {
		s := operand()
		for random.IntN(4) > 0 {
			s += pick("", "", " ") + pick(",", ",", "!", "&", "^") + pick("", "", " ") + operand()
		}
		if random.IntN(20) == 0 { // drop a byte
			i := random.IntN(len(s))
			s = s[:i] + s[i+1:]
		}
		if strings.TrimSpace(s) != "" {
			out = append(out, s)
		}
	}
	return out
}

func pow10(n int) int {
	p := 1
	for range n {
		p *= 10
	}
	return p
}

func FuzzParse(f *testing.F) {
	for _, s := range expressions(rand.New(rand.NewPCG(5, 6)), 50) {
		f.Add(s)
	}
	f.Add("a[0-999999999999999999/7]b[1-99999]")
	f.Fuzz(func(t *testing.T, expr string) {
		const most = 500
		s, err := Parse(expr, most)
		if err != nil {
			if fleet.KindOf(err) != fleet.Invalid || fleet.HintOf(err) == "" {
				t.Fatalf("%q: %v %v, hint %q", expr, fleet.KindOf(err), err, fleet.HintOf(err))
			}
			return
		}
		names := s.Names()
		if s.Len() != len(names) || len(names) > most {
			t.Fatalf("%q: Len %d, %d names, at most %d", expr, s.Len(), len(names), most)
		}
		for _, name := range names {
			if err := fleet.CheckNodeName(name); err != nil {
				t.Fatalf("%q: %v", expr, err)
			}
		}
		folded := Fold(names)
		again, err := Parse(folded, most)
		if err != nil {
			t.Fatalf("%q: folded %q: %v", expr, folded, err)
		}
		if !slices.Equal(again.Names(), names) {
			t.Fatalf("%q: folded %q: %q, want %q", expr, folded, again.Names(), names)
		}
	})
}
