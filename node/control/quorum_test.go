package control

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
	"fleet/node/identity"
)

// TestSteps orders changes of who votes and tells which of them would end in the
// middle.
func TestSteps(t *testing.T) {
	for _, tc := range []struct {
		now, next, silent string // a letter a host
		want              string
		refused           bool
	}{
		{"a", "abc", "", "+b +c", false},
		{"abc", "abd", "", "+d -c", false},
		{"abc", "abd", "c", "+d -c", false},
		{"abc", "abc", "b", "", false},
		{"abc", "a", "", "-b -c", false},
		{"abc", "a", "c", "-c -b", false}, // b is needed to take c out
		{"abc", "c", "c", "-a -b", true},
		{"abcde", "abc", "de", "-d -e", false},
		{"abcde", "abc", "bc", "-d -e", true},
		{"abcde", "abc", "c", "-d -e", false},
		{"abcde", "abcdf", "de", "+f -e", false},
		{"abc", "abcde", "c", "+d +e", false},
		{"abc", "ade", "b", "+d +e -b -c", false},
		{"abc", "abd", "ab", "+d -c", true},
	} {
		t.Run(tc.now+" to "+tc.next+" without "+tc.silent, func(t *testing.T) {
			var now []fleet.NodeID
			answers := map[fleet.NodeID]bool{}
			for _, r := range tc.now + tc.next {
				answers[fleet.NodeID(r)] = !strings.ContainsRune(tc.silent, r)
			}
			for _, r := range tc.now {
				now = append(now, fleet.NodeID(r))
			}
			next := &identity.Trust{}
			for _, r := range tc.next {
				next.Voters = append(next.Voters, identity.TrustVoter{Node: fleet.NodeID(r)})
			}
			all, err := steps(now, next, answers)
			var got []string
			for _, s := range all {
				got = append(got, fmt.Sprintf("%c%s", map[bool]rune{true: '+', false: '-'}[s.add], s.node))
			}
			if strings.Join(got, " ") != tc.want || (err != nil) != tc.refused {
				t.Errorf("got %v, %v; want %s, refused %v", got, err, tc.want, tc.refused)
			}
			// Whoever is to vote does afterwards, and nobody else.
			for _, s := range all {
				if s.add {
					now = append(now, s.node)
				} else {
					now = slices.DeleteFunc(now, func(id fleet.NodeID) bool { return id == s.node })
				}
			}
			if len(now) != len(next.Voters) {
				t.Errorf("%v vote in the end", now)
			}
		})
	}
}
