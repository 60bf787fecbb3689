package document

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Whatever 64 KiB of YAML are, they are read or refused in a moment: within a
// second on an idle machine. (Before the limits stood, some took a minute.)
func TestNoContentIsSlow(t *testing.T) {
	const manyLines = 4000
	fill := func(s string) string { return strings.Repeat(s, MaxContent/len(s)) }
	staircase := func() string {
		var b strings.Builder
		for i := 0; b.Len() < MaxContent-400; i++ {
			b.WriteString(strings.Repeat(" ", i%380) + "a:\n")
		}
		return b.String()
	}
	keys := func() string {
		var b strings.Builder
		for i := 0; b.Len() < MaxContent-20; i++ {
			fmt.Fprintf(&b, "k%d: &a%d v\n", i, i)
		}
		return b.String()
	}
	for name, content := range map[string]string{
		"dashes": fill("- "), "dashes below": fill("-\n"), "questions": fill("? "), "colons": fill(": "), "keys on a line": fill("a: "),
		"brackets": fill("["), "braces": fill("a: {"), "flow": "[" + fill("1,"), "flow maps": "[" + fill("{a: 1},"), "quotes": fill("'"),
		"double quotes": fill(`"\`), "pipes": fill("|\n"), "folded": fill(">\n "), "anchors": fill("&a "), "aliases": fill("*a "), "tags": fill("!a "),
		"comments": fill("#\n"), "documents": fill("---\n"), "percent": fill("%a\n"), "blank lines": "a: |\n" + fill("\n"),
		"deep": staircase(), "many keys": keys(), "literals": fill("- |\n x\n"), "tabs": "a:" + fill("\t"), "returns": fill("\r"),
		"JSON list": `{"a":[` + fill("[],"), "long text": "a: " + fill("x"), "escapes": `a: "` + fill(`\u0041`), "laughs": billionLaughs(),
		"allowed blank lines":                "a: |\n" + strings.Repeat("\n", manyLines-1) + fill(" x"),
		"blank lines last":                   "a: |\n x" + fill("x")[:50_000] + strings.Repeat("\n", manyLines-1),
		"a script":                           "a: |\n" + strings.Repeat("  echo a line\n", manyLines-1),
		"folded lines":                       "a: >\n" + strings.Repeat("  some words\n", manyLines-1),
		"plain lines":                        "a: b\n" + strings.Repeat("  some words\n", manyLines-1),
		"quoted lines":                       "a: '" + strings.Repeat("  some words\n", manyLines-1),
		"double quoted lines":                "a: \"" + strings.Repeat("  some words\n", manyLines-1),
		"plain blank lines":                  "a: b" + strings.Repeat("\n", manyLines-1) + " " + fill("x")[:50_000],
		"quoted blank lines":                 "a: 'b" + strings.Repeat("\n", manyLines-1) + " " + fill("x")[:50_000],
		"blank lines before a key":           "a: |\n x" + fill("x")[:50_000] + strings.Repeat("\n", manyLines-2) + "b: 1\n",
		"spaces before a key":                "a: |\n x" + fill("x")[:30_000] + strings.Repeat("  \n", manyLines-2) + "b: 1\n",
		"carriage returns before a key":      "a: |\n x" + fill("x")[:30_000] + strings.Repeat("\r", manyLines-2) + "b: 1\n",
		"folded blank lines before a key":    "a: >\n x" + fill("x")[:50_000] + strings.Repeat("\n", manyLines-2) + "b: 1\n",
		"comments in a text":                 "a: |\n x" + fill("x")[:30_000] + strings.Repeat("\n#\n", manyLines/2-2) + "b: 1\n",
		"markers":                            "a: |\n x" + fill("x")[:20_000] + strings.Repeat("\n---", manyLines-2) + "\nb: 1\n",
		"lists of texts":                     strings.Repeat("- |\n  x\n", manyLines/2-2),
		"as many blank lines as are allowed": "a: |\n x" + fill("x")[:60_000] + strings.Repeat("\n", maxBlank/61_000) + "b: 1\n",
		"no-break lines":                     "a: |\n" + fill(" \r"), "nested flow": fill("[[],"), "plain words": "a: " + fill("b "), "commas": "[" + fill(","),
		"colons in words": "a: " + fill("b:c "), "hashes": "a: " + fill("b #"), "equal keys": fill("a: 1\n")[:20_000],
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, _ = Parse([]byte(content)[:min(len(content), MaxContent)])
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("took %v", took)
			} else if took > 300*time.Millisecond {
				t.Logf("took %v", took)
			}
		})
	}
}
