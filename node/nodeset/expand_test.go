package nodeset

import (
	"path"
	"slices"
	"strings"
	"testing"

	"fleet/node/fleet"
)

// someFleet is twelve hosts and four groups.
func someFleet() ([]string, Fleet) {
	hosts := strings.Fields("web1 web2 web3 web10 db1 db2 rack1 rack2 a.dc1 a.dc2 mi-00000000000000001 cron")
	groups := map[string][]string{
		"*": hosts, "web": {"web1", "web2", "web3"}, "db": {"db1", "db2"}, "rack1": {"rack1"}, "rack2": {"rack2", "web1"}, "none": nil,
	}
	return hosts, Fleet{
		Group: func(name string) ([]string, error) {
			g, ok := groups[name]
			if !ok {
				return nil, fleet.Errorf(fleet.NotFound, "there is no target %s", name)
			}
			return slices.Clone(g), nil
		},
		Match: func(pattern string) (all []string) {
			for _, h := range hosts {
				if ok, err := path.Match(pattern, h); ok && err == nil {
					all = append(all, h)
				}
			}
			return all
		},
		Name: func(name string) string {
			if name == "mi-00000000000000001" {
				return "cron"
			}
			return name
		},
	}
}

func TestExpand(t *testing.T) {
	_, f := someFleet()
	for _, c := range []struct{ expr, want string }{
		{"@web", "web1 web2 web3"},
		{"@web,db1", "db1 web1 web2 web3"},
		{"@web!web2", "web1 web3"},
		{"@web&@rack2", "web1"},
		{"@web^web[2-4]", "web1 web4"},
		{"@rack[1-2]", "rack1 rack2 web1"},
		{"@*!@web!@db", "a.dc1 a.dc2 cron rack1 rack2 web10"},
		{" @web , @db ", "db1 db2 web1 web2 web3"},
		{"@none", ""},
		{"web*", "web1 web2 web3 web10"},
		{"web?", "web1 web2 web3"},
		{"*.dc1,db*", "a.dc1 db1 db2"},
		{"zzz*", ""},
		{"cron!mi-00000000000000001", ""},
		{"@*&mi-00000000000000001", "cron"},
		{"web[1-3]", "web1 web2 web3"},
		{"", ""},
	} {
		s, err := Expand(c.expr, 100, f)
		if err != nil {
			t.Errorf("%q: %v", c.expr, err)
			continue
		}
		if got := strings.Join(s.Names(), " "); got != c.want {
			t.Errorf("%q: %q, want %q", c.expr, got, c.want)
		}
	}
}

func TestExpandRefuses(t *testing.T) {
	_, f := someFleet()
	for _, c := range []struct {
		expr, want string
		kind       fleet.Kind
	}{
		{"@", "character 1: the name of a target is missing after @", fleet.Invalid},
		{"web1,@ ", "character 6: the name of a target is missing after @", fleet.Invalid},
		{"@nothere", "there is no target nothere", fleet.NotFound},
		{"@rack[1-3]", "there is no target rack3", fleet.NotFound},
		{"@@web", "groups are not known", fleet.Invalid},
		{"a@web", "groups are not known", fleet.Invalid},
		{"@we b", "a space within a name", fleet.Invalid},
		{"web[1-2]*", `"[" beside a wildcard`, fleet.Invalid},
		{"@web*", "wildcards are not known here", fleet.Invalid},
		{"w/b*", `"/" cannot be in the name`, fleet.Invalid},
		{"@web!", "a name is missing after", fleet.Invalid},
	} {
		_, err := Expand(c.expr, 100, f)
		if err == nil || !strings.Contains(err.Error(), c.want) || fleet.KindOf(err) != c.kind {
			t.Errorf("%q: %v, want %s %q", c.expr, err, c.kind, c.want)
		}
	}
	if _, err := Expand("@*", 5, f); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("a group over the limit: %v", err)
	}
	if _, err := Expand(strings.Repeat("@*,", 200)+"web1", 12, f); fleet.KindOf(err) != fleet.Invalid {
		t.Errorf("groups over the budget: %v", err)
	}
}

// FuzzExpand holds that what is read stays within the fleet's bounds, and that
// without groups and wildcards it is what Parse reads.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"@web!web1", "@rack[1-2],web*", "@*", "@", "*?", "@a[", "a!@b&c*^d"} {
		f.Add(s)
	}
	_, all := someFleet()
	f.Fuzz(func(t *testing.T, expr string) {
		s, err := Expand(expr, 50, all)
		if err != nil {
			return
		}
		if s.Len() > 50 {
			t.Fatalf("%d names", s.Len())
		}
		if !strings.ContainsAny(expr, "@*?") {
			plain, err := Expand(expr, 50, Fleet{Name: all.Name})
			if err != nil || !slices.Equal(plain.Names(), s.Names()) {
				t.Fatalf("%q: %v, and without a fleet %v (%v)", expr, s.Names(), plain, err)
			}
		}
	})
}
