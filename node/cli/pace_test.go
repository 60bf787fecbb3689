package cli

import "testing"

func TestPaceText(t *testing.T) {
	for _, c := range []struct {
		concurrency, errors string
		hosts               int
		want                string
	}{
		{"100%", "100%", 10, ""},
		{"50", "0", 1, ""},
		{"", "", 10, ""}, // of a quorum host that does not say
		{"2", "100%", 10, "at most 2 at once, whatever fails"},
		{"25%", "0", 10, "at most 2 at once, until one fails"},
		{"1%", "10%", 30, "at most 1 at once, until 4 fail"},
		{"100%", "0%", 10, "all at once when the first ones have begun, until one fails"},
		{"50", "1", 10, "all at once when the first ones have begun, until 2 fail"},
	} {
		if got := paceText(c.concurrency, c.errors, c.hosts); got != c.want {
			t.Errorf("%s and %s of %d hosts: %q, want %q", c.concurrency, c.errors, c.hosts, got, c.want)
		}
	}
}
