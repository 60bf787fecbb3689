package presence

import (
	"slices"
	"testing"
	"time"
)

func TestClones(t *testing.T) {
	const window = time.Minute
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	type beat struct {
		boot, source string
		at           time.Duration
	}
	for name, c := range map[string]struct {
		beats []beat
		later time.Duration // after the last
		want  []string
	}{
		"one host":             {[]beat{{"a", "1", 0}, {"a", "1", 15}, {"a", "1", 30}}, 0, nil},
		"one host that moved":  {[]beat{{"a", "1", 0}, {"a", "2", 15}, {"a", "1", 30}, {"a", "2", 45}}, 0, nil},
		"a restart":            {[]beat{{"a", "1", 0}, {"b", "1", 15}, {"b", "1", 30}}, 0, nil},
		"a late heartbeat":     {[]beat{{"a", "1", 0}, {"b", "1", 15}, {"a", "1", 16}, {"b", "1", 90}}, 0, nil},
		"many restarts":        {[]beat{{"a", "1", 0}, {"b", "1", 5}, {"c", "1", 10}, {"d", "1", 15}, {"e", "1", 20}, {"f", "1", 25}}, 0, nil},
		"two hosts":            {[]beat{{"a", "1", 0}, {"b", "2", 7}, {"a", "1", 15}, {"b", "2", 22}}, 0, []string{"1", "2"}},
		"two at one address":   {[]beat{{"a", "1", 0}, {"b", "1", 7}, {"a", "1", 15}, {"b", "1", 22}}, 0, []string{"1", "1"}},
		"three hosts":          {[]beat{{"a", "1", 0}, {"b", "2", 5}, {"c", "3", 10}, {"a", "1", 15}, {"b", "2", 20}}, 0, []string{"1", "2", "3"}},
		"two, one twice a row": {[]beat{{"a", "1", 0}, {"b", "2", 7}, {"b", "2", 8}, {"a", "1", 15}, {"b", "2", 22}}, 0, []string{"1", "2"}},
		"two, and then one":    {[]beat{{"a", "1", 0}, {"b", "2", 7}, {"a", "1", 15}, {"b", "2", 22}}, 61, nil},
	} {
		t.Run(name, func(t *testing.T) {
			table := NewTable(window)
			now := start
			for _, b := range c.beats {
				now = start.Add(b.at * time.Second)
				table.Hear(v1, b.boot, b.source, now)
			}
			if got := table.Clones(v1, now.Add(c.later*time.Second)); !slices.Equal(got, c.want) {
				t.Errorf("Clones = %q; want %q", got, c.want)
			}
			if got := table.Clones(v2, now); got != nil {
				t.Errorf("another node has the clones %q", got)
			}
		})
	}
}
