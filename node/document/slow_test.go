package document

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Whatever 64 KiB of YAML are, they are read or refused in a moment.
func TestNoContentIsSlow(t *testing.T) {
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
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, _ = Parse([]byte(content)[:min(len(content), MaxContent)])
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("took %v", took)
			} else if took > 300*time.Millisecond {
				t.Logf("took %v", took)
			}
		})
	}
}
