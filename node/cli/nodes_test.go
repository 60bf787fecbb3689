package cli

import (
	"slices"
	"testing"

	"fleet/node/fleet"
)

func TestExpandNodes(t *testing.T) {
	for _, tc := range []struct {
		values []string
		want   []string
		kind   fleet.Kind // of the error; Other for none
	}{
		{values: nil, want: nil},
		{values: []string{"b,a", "a"}, want: []string{"a", "b"}},
		{values: []string{"web[01-03]"}, want: []string{"web01", "web02", "web03"}},
		{values: []string{"web[01-04]!web02", "db1"}, want: []string{"db1", "web01", "web03", "web04"}},
		{values: []string{"web[01-"}, kind: fleet.Invalid},
		{values: []string{"web[1-100000000]"}, kind: fleet.Invalid},
		{values: []string{"web1!web1"}, kind: fleet.Invalid},
	} {
		got, err := expandNodes(tc.values)
		if !slices.Equal(got, tc.want) || (err != nil) != (tc.kind != fleet.Other) {
			t.Errorf("expandNodes(%q) = %q, %v; want %q", tc.values, got, err, tc.want)
		}
	}
}
